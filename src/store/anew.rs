//! A catalog that was lost, written anew, and put where it belongs.
//!
//! Decides that the new file has its name only once it is whole, and that nothing that had the name is gone. Leaves what is
//! in it to `plan`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Transaction, TransactionBehavior, params};

use super::{Result, StoreError, catalog, clone, manifest, schema, snapshot, to_json};
use crate::model::LayerTree;
use crate::model::rebuilt::RebuiltTree;

/// What belongs to the file of a catalog while it is in use.
const LOGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Writes a catalog with these trees at `path`, over whatever an earlier try left. It is whole and durable when this returns,
/// and says that it has no log: with that of another it would be refused. Blocks.
pub fn write_anew(path: &Path, trees: &[RebuiltTree], now: Timestamp) -> Result<()> {
    for name in [path.to_owned()].into_iter().chain(LOGS.map(|log| beside(path, log))) {
        remove_if_there(&name).map_err(StoreError::Unreadable)?;
    }
    let mut connection = schema::open(path)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for rebuilt in trees {
        write_tree(&transaction, rebuilt)?;
    }
    // Whoever has seen events of the lost catalog must not take those of this one for them.
    transaction
        .execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('event', ?)", [now.as_millisecond()])?;
    transaction.commit()?;
    connection.pragma_update(None, "journal_mode", "DELETE")?;
    connection.close().map_err(|(_, error)| error)?;
    File::open(path).and_then(|file| file.sync_all()).map_err(StoreError::Unreadable)
}

/// Lets a catalog that was made take the name of another, which keeps its content under a new name: that is given. The log
/// of the other goes with it. At each moment one of the two has the name. Blocks.
pub fn put_in_place(made: &Path, catalog: &Path, now: Timestamp) -> io::Result<Option<PathBuf>> {
    let directory = File::open(catalog.parent().unwrap_or(catalog))?;
    let kept = PathBuf::from(format!("{}.before-{}", catalog.display(), now.strftime("%Y%m%dT%H%M%S.%3fZ")));
    let mut is_kept = false;
    for log in ["", "-wal", "-journal"] {
        let old = beside(catalog, log);
        if fs::symlink_metadata(&old).is_ok() {
            fs::hard_link(&old, beside(&kept, log))?;
            is_kept = true;
        }
    }
    directory.sync_all()?;
    fs::rename(made, catalog)?;
    for log in LOGS {
        remove_if_there(&beside(catalog, log))?;
    }
    directory.sync_all()?;
    Ok(is_kept.then_some(kept))
}

fn beside(path: &Path, log: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(log);
    name.into()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write_tree(transaction: &Transaction<'_>, rebuilt: &RebuiltTree) -> Result<()> {
    let tree = &rebuilt.tree;
    for snapshot in &tree.snapshots {
        let definition = rebuilt.definitions.get(&snapshot.id).map_or("", String::as_str);
        snapshot::reserve(transaction, snapshot, definition)?;
    }
    for new in &tree.clones {
        clone::reserve(transaction, new)?;
        manifest::mark(transaction, tree.vm, new.id.0)?;
    }
    catalog::write_tree(transaction, &LayerTree::empty(tree.vm), tree)?;
    for comment in &rebuilt.comments {
        transaction.execute(
            "INSERT INTO comment (id, snapshot, body) VALUES (?, ?, ?)",
            params![comment.id.to_string(), comment.snapshot.to_string(), to_json(comment, "comment")?],
        )?;
    }
    for (id, places) in &rebuilt.manifests {
        let sql = "UPDATE manifest SET places = ?2 WHERE id = ?1";
        transaction.execute(sql, params![id.to_string(), to_json(places, "list of paths")?])?;
    }
    Ok(())
}
