//! How a snapshot of Cinder's is called: each is of one volume, and a VM's snapshot holds several.
//!
//! Decides that a volume snapshot has its own id, and a disk in a VM's snapshot that snapshot's with `.TARGET` behind.

use std::fmt;

use uuid::Uuid;

use super::Fault;
use crate::proto::v1;

/// The id of a snapshot as Cinder's clients have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotId {
    /// The snapshot of ours.
    pub(super) snapshot: String,
    /// The disk in a VM's snapshot; None for a volume snapshot.
    pub(super) disk: Option<String>,
}

impl SnapshotId {
    /// A text that is no id names none: the client looks for a name in the list then.
    pub(super) fn read(text: &str) -> Result<Self, Fault> {
        let (uuid, disk) = match text.split_once('.') {
            Some((uuid, disk)) => (uuid, Some(disk.to_owned())),
            None => (text, None),
        };
        let snapshot = read(uuid).ok_or_else(|| Fault::no_snapshot(text))?;
        Ok(Self { snapshot, disk })
    }

    /// What the snapshot holds under this id, if it does.
    pub(super) fn disk_of<'a>(&self, snapshot: &'a v1::Snapshot) -> Option<&'a v1::SnapshotDisk> {
        snapshot.disks.iter().find(|held| self.disk.as_ref().is_none_or(|disk| held.target == *disk))
    }

    /// Whether a snapshot is one that has such an id.
    pub(super) fn fits(&self, snapshot: &v1::Snapshot) -> bool {
        let is_of_volume = snapshot.kind() == v1::SnapshotKind::Volume;
        match &self.disk {
            None => is_of_volume,
            Some(_) => !is_of_volume && self.disk_of(snapshot).is_some(),
        }
    }

    /// All that a snapshot has. None while a VM's is being made: nobody knows its disks yet.
    pub(super) fn all_of(snapshot: &v1::Snapshot) -> Vec<Self> {
        let id = |disk| Self { snapshot: snapshot.id.clone(), disk };
        if snapshot.kind() == v1::SnapshotKind::Volume {
            return vec![id(None)];
        }
        snapshot.disks.iter().map(|held| id(Some(held.target.clone()))).collect()
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.disk {
            None => f.write_str(&self.snapshot),
            Some(disk) => write!(f, "{}.{disk}", self.snapshot),
        }
    }
}

/// The id of a volume, for which a name or a path is none.
pub(super) fn volume(text: &str) -> Result<String, Fault> {
    read(text).ok_or_else(|| Fault::no_volume(text))
}

/// In its long form alone, so that each has one spelling.
fn read(text: &str) -> Option<String> {
    let id = Uuid::parse_str(text).ok()?.to_string();
    id.eq_ignore_ascii_case(text).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        const ID: &str = "01a20843-9990-7137-8cd6-1b47d8d6a58d";
        for text in [ID.to_owned(), format!("{ID}.vda")] {
            assert_eq!(SnapshotId::read(&text).unwrap().to_string(), text);
        }
        for text in ["", "one", "01a20843999071378cd61b47d8d6a58d", ".vda", "one.vda"] {
            assert!(SnapshotId::read(text).is_err(), "{text:?}");
        }
        assert!(volume("web/vda").is_err() && volume("/images/a.qcow2").is_err());
        assert_eq!(volume(&ID.to_uppercase()).unwrap(), ID);
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_text_is_an_id_or_none(
            text in crate::mutation::text([
                "01a20843-9990-7137-8cd6-1b47d8d6a58d", "01a20843-9990-7137-8cd6-1b47d8d6a58d.vda",
            ])
        ) {
            if let Ok(id) = SnapshotId::read(&text) {
                assert!(id.to_string().eq_ignore_ascii_case(&text) && id.snapshot.len() == 36);
            }
            if let Ok(id) = volume(&text) {
                assert_eq!(id, text.to_ascii_lowercase());
            }
        }
    }
}
