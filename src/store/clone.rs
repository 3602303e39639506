//! Clones: entered when they are begun, changed with the tree of the VM whose snapshot they were made out of.

use std::path::PathBuf;

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Prepared, Result, Store, StoreError, event, from_json, to_json};
use crate::model::event::{Cause, of_clone};
use crate::model::{CloneState, ClonedVolume, Layer, LayerTree, VmId, VolumeId};

impl Store {
    /// All clones of the node, by name.
    pub async fn clones(&self) -> Result<Vec<ClonedVolume>> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT body FROM clone ORDER BY name")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| from_json(&row?, "clone")).collect()
        })
        .await
    }

    /// The images of clones, and of volumes with snapshots of their own, and which volume each is.
    pub async fn volumes_without_vm(&self) -> Result<Vec<(PathBuf, VolumeId)>> {
        let clones = self.clones().await?;
        let mut volumes: Vec<_> = clones.into_iter().map(|clone| (clone.path, clone.id)).collect();
        volumes.extend(self.detached().await?.into_iter().map(|layer| (layer.path, layer.volume)));
        Ok(volumes)
    }

    /// The images of volumes that have snapshots of their own.
    pub async fn detached(&self) -> Result<Vec<Layer>> {
        self.transact(|transaction| {
            // What stands for the VM of such a volume is its own id.
            let sql =
                "SELECT body FROM volume JOIN layer ON layer.id = volume.active WHERE volume.vm = volume.id";
            let mut statement = transaction.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| from_json(&row?, "layer")).collect()
        })
        .await
    }

    /// The images that volumes are written to.
    pub async fn active_images(&self) -> Result<Vec<PathBuf>> {
        self.transact(|transaction| {
            let sql = "SELECT layer.path FROM volume JOIN layer ON layer.id = volume.active";
            let mut statement = transaction.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| Ok(PathBuf::from(row?))).collect()
        })
        .await
    }

    /// Takes reservations back.
    pub async fn forget_clones(&self, ids: Vec<VolumeId>, cause: Cause) -> Result<()> {
        self.transact(move |transaction| {
            for id in ids {
                let reserved = read(transaction, id)?.filter(|clone| clone.state == CloneState::Creating);
                if reserved.is_some() {
                    transaction.run("DELETE FROM clone WHERE id = ?", [id.to_string()])?;
                    // It has none yet.
                    transaction.run("DELETE FROM manifest WHERE id = ?", [id.to_string()])?;
                    event::insert_all(transaction, of_clone(reserved.as_ref(), None, &cause))?;
                }
            }
            Ok(())
        })
        .await
    }
}

/// Enters a clone that is being made. [`StoreError::VolumeNameTaken`] if its name is.
pub(super) fn reserve(transaction: &Transaction<'_>, clone: &ClonedVolume) -> Result<()> {
    let inserted = transaction.run(
        "INSERT INTO clone (id, vm, name, body) VALUES (?, ?, ?, ?)",
        params![clone.id.to_string(), clone.vm.to_string(), clone.name.as_str(), to_json(clone, "clone")?],
    );
    match inserted {
        Ok(_) => Ok(()),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
            Err(StoreError::VolumeNameTaken(clone.name.clone()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Those made out of snapshots of a VM.
pub(super) fn read_of_vm(transaction: &Transaction<'_>, vm: VmId) -> Result<Vec<ClonedVolume>> {
    let mut statement = transaction.prepare_cached("SELECT body FROM clone WHERE vm = ? ORDER BY id")?;
    let rows = statement.query_map([vm.to_string()], |row| row.get::<_, String>(0))?;
    rows.map(|row| from_json(&row?, "clone")).collect()
}

/// Writes back what has changed of them.
pub(super) fn write_of_vm(transaction: &Transaction<'_>, tree: &LayerTree) -> Result<()> {
    for before in read_of_vm(transaction, tree.vm)? {
        match tree.clones.iter().find(|clone| clone.id == before.id) {
            Some(clone) if *clone == before => {}
            Some(clone) => {
                let body = to_json(clone, "clone")?;
                transaction
                    .run("UPDATE clone SET body = ?2 WHERE id = ?1", params![clone.id.to_string(), body])?;
            }
            None => drop(transaction.run("DELETE FROM clone WHERE id = ?", [before.id.to_string()])?),
        }
    }
    Ok(())
}

fn read(transaction: &Transaction<'_>, id: VolumeId) -> Result<Option<ClonedVolume>> {
    let sql = "SELECT body FROM clone WHERE id = ?";
    let body: Option<String> = transaction.row(sql, [id.to_string()], |row| row.get(0)).optional()?;
    body.map(|body| from_json(&body, "clone")).transpose()
}
