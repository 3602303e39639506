//! What each call asks of its caller.
//!
//! Decides the least role for each, which calls a caller with a scope may make, and which of them change something. A call that
//! does not stand here is for nobody; a test holds that all stand here. Leaves to `model` whether a caller is enough.

use crate::model::access::{Demand, Role};

/// A call, as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// As in `/vmsnap.v1.SnapshotService/CreateSnapshot`.
    pub path: &'static str,
    /// What it asks of its caller. None: nothing, whoever is connected may make it.
    pub demand: Option<Demand>,
    /// Whether it may change something: it is written down who made it.
    pub is_mutation: bool,
}

const ALL: &[Call] = &[
    // Probes come without a name.
    Call { path: "/grpc.health.v1.Health/Check", demand: None, is_mutation: false },
    Call { path: "/grpc.health.v1.Health/Watch", demand: None, is_mutation: false },
    looks("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    looks("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    looks_at_node("/vmsnap.v1.NodeService/GetNode"),
    looks_at_node("/vmsnap.v1.NodeService/CheckNode"),
    changes_node("/vmsnap.v1.NodeService/BackUpCatalog", Role::Admin),
    changes_node("/vmsnap.v1.NodeService/ReloadConfiguration", Role::Admin),
    looks("/vmsnap.v1.VmService/GetVm"),
    looks("/vmsnap.v1.VmService/ListVms"),
    // What differs may be about what others have made of it.
    looks_at_node("/vmsnap.v1.VmService/CheckVm"),
    // A file that nothing refers to belongs to no VM.
    changes_node("/vmsnap.v1.VmService/ResolveVm", Role::Admin),
    // Whose the new VM is has to be said by whoever may say so of any.
    changes_node("/vmsnap.v1.VmService/DeployVm", Role::Restorer),
    changes("/vmsnap.v1.VmService/ResumeVm", Role::Operator),
    looks("/vmsnap.v1.SnapshotService/GetSnapshot"),
    looks("/vmsnap.v1.SnapshotService/ListSnapshots"),
    looks("/vmsnap.v1.SnapshotService/GetSnapshotTree"),
    looks("/vmsnap.v1.SnapshotService/ListSnapshotComments"),
    changes("/vmsnap.v1.SnapshotService/CreateSnapshot", Role::Operator),
    changes("/vmsnap.v1.SnapshotService/UpdateSnapshot", Role::Operator),
    changes("/vmsnap.v1.SnapshotService/RevertSnapshot", Role::Restorer),
    changes("/vmsnap.v1.SnapshotService/DeleteSnapshot", Role::Operator),
    changes("/vmsnap.v1.SnapshotService/BatchDeleteSnapshots", Role::Operator),
    // What they are about is LOST or in ERROR: a person has to know why.
    changes_node("/vmsnap.v1.SnapshotService/PurgeSnapshot", Role::Admin),
    changes_node("/vmsnap.v1.SnapshotService/ResetSnapshotState", Role::Admin),
    changes("/vmsnap.v1.SnapshotService/AddSnapshotHold", Role::Operator),
    changes("/vmsnap.v1.SnapshotService/RemoveSnapshotHold", Role::Operator),
    changes("/vmsnap.v1.SnapshotService/AddSnapshotComment", Role::Operator),
    // It names a comment, and no VM.
    changes_node("/vmsnap.v1.SnapshotService/DeleteSnapshotComment", Role::Operator),
    looks("/vmsnap.v1.VolumeService/GetVolume"),
    looks("/vmsnap.v1.VolumeService/ListVolumes"),
    changes("/vmsnap.v1.VolumeService/CreateVolumeSnapshot", Role::Operator),
    changes("/vmsnap.v1.VolumeService/RevertVolume", Role::Restorer),
    // Clones belong to no VM.
    changes_node("/vmsnap.v1.VolumeService/CloneVolume", Role::Restorer),
    changes_node("/vmsnap.v1.VolumeService/FlattenVolume", Role::Restorer),
    changes_node("/vmsnap.v1.VolumeService/DeleteVolume", Role::Restorer),
    looks("/vmsnap.v1.OperationService/GetOperation"),
    looks("/vmsnap.v1.OperationService/ListOperations"),
    looks("/vmsnap.v1.OperationService/WatchOperation"),
    looks_at_node("/vmsnap.v1.OperationService/WatchOperations"),
    changes("/vmsnap.v1.OperationService/CancelOperation", Role::Operator),
    changes_node("/vmsnap.v1.OperationService/ResolveOperation", Role::Admin),
    changes("/vmsnap.v1.OperationService/SetOperationBandwidth", Role::Operator),
    looks("/vmsnap.v1.EventService/ListEvents"),
    looks("/vmsnap.v1.EventService/WatchEvents"),
    looks_at_node("/vmsnap.v1.ScheduleService/GetSchedule"),
    looks_at_node("/vmsnap.v1.ScheduleService/ListSchedules"),
    looks_at_node("/vmsnap.v1.ScheduleService/PreviewSchedule"),
    looks_at_node("/vmsnap.v1.ScheduleService/ListScheduleRuns"),
    changes_node("/vmsnap.v1.ScheduleService/CreateSchedule", Role::Operator),
    changes_node("/vmsnap.v1.ScheduleService/UpdateSchedule", Role::Operator),
    changes_node("/vmsnap.v1.ScheduleService/DeleteSchedule", Role::Operator),
    changes_node("/vmsnap.v1.ScheduleService/PauseSchedule", Role::Operator),
    changes_node("/vmsnap.v1.ScheduleService/ResumeSchedule", Role::Operator),
    changes_node("/vmsnap.v1.ScheduleService/RunSchedule", Role::Operator),
];

/// The call of a path. None for one that there is none of.
#[must_use]
pub fn call(path: &str) -> Option<&'static Call> {
    ALL.iter().find(|call| call.path == path)
}

const fn looks(path: &'static str) -> Call {
    Call { path, demand: Some(Demand { role: Role::Viewer, within_scope: true }), is_mutation: false }
}

const fn looks_at_node(path: &'static str) -> Call {
    Call { path, demand: Some(Demand { role: Role::Viewer, within_scope: false }), is_mutation: false }
}

const fn changes(path: &'static str, role: Role) -> Call {
    Call { path, demand: Some(Demand { role, within_scope: true }), is_mutation: true }
}

const fn changes_node(path: &'static str, role: Role) -> Call {
    Call { path, demand: Some(Demand { role, within_scope: false }), is_mutation: true }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::proto::DESCRIPTOR_SET;

    #[test]
    fn every_call_is_in_the_table_once() {
        let ours = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
        let health = DescriptorPool::decode(tonic_health::pb::FILE_DESCRIPTOR_SET).unwrap();
        let services = ours.services().chain(health.services());
        // The controller serves that one.
        let served = services.filter(|service| service.package_name() != "vmsnap.controller.v1");
        let path = |method: prost_reflect::MethodDescriptor| {
            format!("/{}/{}", method.parent_service().full_name(), method.name())
        };
        let served: BTreeSet<String> =
            served.flat_map(|service| service.methods().map(path).collect::<Vec<_>>()).collect();
        let listed: Vec<&str> =
            ALL.iter().map(|call| call.path).filter(|path| !path.contains("reflection")).collect();
        assert_eq!(listed.len(), listed.iter().collect::<BTreeSet<_>>().len(), "one stands there twice");
        assert_eq!(listed.into_iter().map(ToOwned::to_owned).collect::<BTreeSet<_>>(), served);
    }

    #[test]
    fn whoever_looks_changes_nothing() {
        for call in ALL {
            let verb = call.path.rsplit('/').next().unwrap_or_default();
            let looks = ["Get", "List", "Check", "Watch", "Preview", "ServerReflection"];
            let looks = looks.iter().any(|looks| verb.starts_with(looks));
            assert_eq!(call.is_mutation, !looks, "{verb}");
            let role = call.demand.map_or(Role::Viewer, |demand| demand.role);
            assert_eq!(role == Role::Viewer, looks, "{verb}");
        }
    }
}
