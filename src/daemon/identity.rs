//! Which node this is: an id that is made once and kept beside the catalog, so that it outlives a catalog that is lost.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::utsname::uname;
use uuid::Uuid;

use crate::api::NodeIdentity;

/// The file in the state directory.
const FILE: &str = "node-id";

/// The node's identity. One that cannot be kept is no reason not to start: guests may wait for a thaw. Blocks.
pub(super) fn of_node(state_directory: &Path) -> NodeIdentity {
    let path = state_directory.join(FILE);
    let id = read(&path).unwrap_or_else(|| {
        let id = Uuid::now_v7();
        if let Err(error) = keep(&path, id) {
            let path = path.display();
            tracing::warn!(%path, %error, "the id of this node cannot be kept: the next start makes another");
        }
        id
    });
    let host_name = uname().map(|names| names.nodename().to_string_lossy().into_owned()).unwrap_or_default();
    NodeIdentity { id, host_name }
}

fn read(path: &Path) -> Option<Uuid> {
    let text = fs::read_to_string(path).ok()?;
    let id = Uuid::parse_str(text.trim()).ok();
    if id.is_none() {
        tracing::warn!(path = %path.display(), "this is no id of a node: another is made");
    }
    id
}

/// It has its name once it is whole.
fn keep(path: &Path, id: Uuid) -> io::Result<()> {
    let unfinished = path.with_extension("part");
    let mut file = File::create(&unfinished)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_once() {
        let state = tempfile::tempdir().unwrap();
        let first = of_node(state.path());
        assert!(!first.host_name.is_empty());
        assert_eq!(of_node(state.path()), first);
        fs::write(state.path().join(FILE), "nonsense").unwrap();
        let second = of_node(state.path());
        assert_ne!(second.id, first.id);
        assert_eq!(of_node(state.path()), second);
    }

    #[test]
    fn where_nothing_can_be_kept_there_is_one_all_the_same() {
        let nowhere = Path::new("/nowhere");
        assert_ne!(of_node(nowhere).id, of_node(nowhere).id);
    }
}
