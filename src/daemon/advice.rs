//! What an operator is told when the catalog is refused: what to do next. Decides the words, does nothing.

use std::path::Path;

use crate::store::StoreError;

/// What to do about a catalog that cannot be used, in the state directory. None where only the cause can be mended.
pub(super) fn on(refused: &StoreError, state: &Path) -> Option<String> {
    let state = state.display();
    let again = format!(
        "with vmsnapd stopped, move catalog.db, catalog.db-wal and catalog.db-shm out of {state} together, and copy the newest \
         file of {state}/backup to {state}/catalog.db; or run 'vmsnapd rebuild', which makes it anew from the disks"
    );
    match refused {
        StoreError::Foreign | StoreError::NotAFile(_) => Some(format!(
            "see whether state_directory should be {state}, and whose file that is; if it is in the way of the catalog: {again}"
        )),
        StoreError::TooNew { .. } => Some(format!(
            "install the version of vmsnapd that wrote it, or a later one; to stay with this one, give up what came since: \
             {again}, one from before"
        )),
        StoreError::ForeignLog => Some(format!(
            "move catalog.db-wal and catalog.db-shm out of {state}, and start again; they belong to the file that catalog.db \
             was before, and hold what that file does not"
        )),
        StoreError::Corrupt(_) | StoreError::Malformed { .. } => {
            Some(format!("keep the files, and see whether the disk is failing; then, {again}"))
        }
        StoreError::Lost => {
            Some(format!("{again}; to begin with an empty one, move {state}/backup away first"))
        }
        StoreError::Unreadable(_) => {
            Some(format!("let the user of vmsnapd read and write the files of {state}"))
        }
        StoreError::Sqlite(_)
        | StoreError::Backup { .. }
        | StoreError::Closed
        | StoreError::NameTaken
        | StoreError::VolumeNameTaken(_)
        | StoreError::ScheduleNameTaken { .. }
        | StoreError::ScheduleGone(_)
        | StoreError::ScheduleChanged { .. }
        | StoreError::ScheduleRunning(_)
        | StoreError::KeyReused(_)
        | StoreError::Edit(_) => None,
    }
}
