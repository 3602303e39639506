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

/// The node's identity. One that cannot be read or kept is no reason not to start: guests may wait for a thaw. Blocks.
pub(super) fn of_node(state_directory: &Path) -> NodeIdentity {
    let path = state_directory.join(FILE);
    let id = read_or_make(&path).unwrap_or_else(|error| {
        let path = path.display();
        tracing::warn!(%path, %error, "the id of this node cannot be read or kept: another one is used until the next start");
        Uuid::now_v7()
    });
    let host_name = uname().map(|names| names.nodename().to_string_lossy().into_owned()).unwrap_or_default();
    NodeIdentity { id, host_name }
}

/// Another one is made only where there is none: one that cannot be read now may be well.
fn read_or_make(path: &Path) -> io::Result<Uuid> {
    match fs::read_to_string(path) {
        Ok(text) => Uuid::parse_str(text.trim()).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::now_v7();
            keep(path, id).map(|()| id)
        }
        Err(error) => Err(error),
    }
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
        assert_ne!(of_node(state.path()).id, first.id);
        assert_eq!(fs::read_to_string(state.path().join(FILE)).unwrap(), "nonsense", "somebody may mend it");
    }

    #[test]
    fn where_nothing_can_be_kept_there_is_one_all_the_same() {
        let nowhere = Path::new("/nowhere");
        assert_ne!(of_node(nowhere).id, of_node(nowhere).id);
    }
}
