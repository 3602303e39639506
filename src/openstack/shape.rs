//! Snapshots and volumes in Cinder's shapes. Decides only spelling: states, sizes, times.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::id::SnapshotId;
use crate::proto::v1;

/// Cinder's unit.
const GIB: u64 = 1 << 30;

/// A snapshot of one volume, as Cinder has them.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) id: SnapshotId,
    pub(super) snapshot: v1::Snapshot,
    pub(super) status: &'static str,
    /// The volume; empty while nobody knows.
    pub(super) volume: String,
    /// Its size, in bytes.
    pub(super) bytes: u64,
}

impl Shown {
    /// What it is called. A volume snapshot may have a name that Cinder allows and we do not; that is the one for people.
    pub(super) fn name(&self) -> String {
        let Self { id, snapshot, .. } = self;
        let name = if snapshot.display_name.is_empty() { &snapshot.name } else { &snapshot.display_name };
        match &id.disk {
            None => name.clone(),
            Some(disk) => format!("{name}.{disk}"),
        }
    }

    pub(super) fn value(&self) -> Value {
        let Self { id, snapshot, status, volume, bytes } = self;
        json!({
            "id": id.to_string(),
            "name": self.name(),
            "description": text(&snapshot.description),
            "status": status,
            "size": gib(*bytes),
            "volume_id": text(volume),
            "metadata": self.metadata(),
            "created_at": time(snapshot.create_time),
            "updated_at": Value::Null,
            "user_id": snapshot.created_by,
            "group_snapshot_id": Value::Null,
            "consumes_quota": true,
            "os-extended-snapshot-attributes:project_id": snapshot.project,
            "os-extended-snapshot-attributes:progress": if *status == "creating" { "0%" } else { "100%" },
        })
    }

    /// Properties, and of a disk in a VM's snapshot that snapshot.
    pub(super) fn metadata(&self) -> Value {
        let properties = self.snapshot.properties.iter();
        let mut metadata: Map<String, Value> =
            properties.map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        if self.id.disk.is_some() {
            metadata.insert("group".to_owned(), self.snapshot.id.as_str().into());
        }
        metadata.into()
    }
}

/// A volume.
pub(super) fn volume(volume: &v1::Volume) -> Value {
    let attachments = (!volume.vm_id.is_empty()).then(|| {
        json!({
            "id": volume.id,
            "volume_id": volume.id,
            "attachment_id": volume.id,
            "server_id": volume.vm_id,
            "device": format!("/dev/{}", volume.target),
            "host_name": Value::Null,
            "attached_at": Value::Null,
        })
    });
    json!({
        "id": volume.id,
        "name": volume.name,
        // A volume has none; one that was given with it is kept as a property.
        "description": volume.properties.get("description"),
        "status": volume_status(volume.state()),
        "size": gib(volume.virtual_size_bytes),
        "metadata": volume.properties,
        "created_at": time(volume.create_time),
        "updated_at": Value::Null,
        "attachments": Vec::from_iter(attachments),
        "availability_zone": ZONE,
        "bootable": "false",
        "encrypted": false,
        "multiattach": false,
        "snapshot_id": text(&volume.source_snapshot_id),
        "source_volid": Value::Null,
        "volume_type": Value::Null,
        "user_id": Value::Null,
        "consistencygroup_id": Value::Null,
        "replication_status": Value::Null,
        "links": [],
        "os-vol-tenant-attr:tenant_id": volume.project,
    })
}

/// The only availability zone. Cinder's own default.
pub(super) const ZONE: &str = "nova";

/// The state of a volume.
pub(super) fn volume_status(state: v1::VolumeState) -> &'static str {
    match state {
        v1::VolumeState::Creating => "creating",
        v1::VolumeState::Available => "available",
        v1::VolumeState::InUse => "in-use",
        v1::VolumeState::Deleting => "deleting",
        v1::VolumeState::Error | v1::VolumeState::Unspecified => "error",
    }
}

/// The state of a snapshot; `is_stuck` when the operation on it needs a person.
pub(super) fn snapshot_status(state: v1::SnapshotState, is_stuck: bool) -> &'static str {
    match state {
        v1::SnapshotState::Creating if !is_stuck => "creating",
        v1::SnapshotState::Ready => "available",
        // Cinder's word for a snapshot that a volume is on its way back to.
        v1::SnapshotState::Reverting => "restoring",
        v1::SnapshotState::Deleting if is_stuck => "error_deleting",
        v1::SnapshotState::Deleting => "deleting",
        v1::SnapshotState::Creating
        | v1::SnapshotState::Error
        | v1::SnapshotState::Lost
        | v1::SnapshotState::Unspecified => "error",
    }
}

/// The states of ours that Cinder may call so.
pub(super) fn states(status: &str) -> Vec<v1::SnapshotState> {
    let all = [
        v1::SnapshotState::Creating,
        v1::SnapshotState::Ready,
        v1::SnapshotState::Reverting,
        v1::SnapshotState::Deleting,
        v1::SnapshotState::Error,
        v1::SnapshotState::Lost,
    ];
    let fits =
        |state: &v1::SnapshotState| [false, true].iter().any(|is| snapshot_status(*state, *is) == status);
    all.into_iter().filter(fits).collect()
}

/// Bytes as Cinder counts them: whole GiB, rounded up.
pub(super) fn gib(bytes: u64) -> u64 {
    bytes.div_ceil(GIB)
}

fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// As Cinder spells a time: UTC, and it does not say so.
fn time(at: Option<prost_types::Timestamp>) -> Option<String> {
    let at = at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())?;
    Some(at.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up() {
        for (bytes, expected) in [(0, 0), (1, 1), (GIB, 1), (GIB + 1, 2), (u64::MAX, 1 << 34)] {
            assert_eq!(gib(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn times() {
        let at = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 };
        assert_eq!(time(Some(at)).as_deref(), Some("2023-11-14T22:13:20.123456"));
        assert_eq!(time(None), None);
    }

    #[test]
    fn a_filter_finds_what_a_state_is_called() {
        assert_eq!(states("available"), [v1::SnapshotState::Ready]);
        assert_eq!(states("error_deleting"), [v1::SnapshotState::Deleting]);
        let errors = [v1::SnapshotState::Creating, v1::SnapshotState::Error, v1::SnapshotState::Lost];
        assert_eq!(states("error"), errors);
        assert!(states("backing-up").is_empty());
    }
}
