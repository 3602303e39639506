//! What clients ask of the simulated node.

use std::collections::BTreeMap;
use std::time::Duration;

use vmsnap::model::request::NewVmState;
use vmsnap::model::snapshot::Owner;
use vmsnap::model::{
    CloneMode, CloneVolume, CreateSnapshot, DeleteSnapshots, DeleteVolume, DeletionReason, DeployVm,
    DifferenceAction, DifferenceKind, DiskTarget, FlattenVolume, Label, Quiesce, Request, ResolveDifference,
    RevertSnapshot, RevertVolume, RunStateAfter, SnapshotKind, TakeFromSnapshot, VmId,
};

use super::{Life, Scene, clone_path, find};

impl Scene {
    pub fn create(&self, name: &str, quiesce: Quiesce, memory: bool, disks: &[DiskTarget]) -> Request {
        Request::CreateSnapshot(CreateSnapshot {
            vm: self.vm,
            image: None,
            kind: if memory { SnapshotKind::VmDisksAndMemory } else { SnapshotKind::VmDisks },
            label: Label { name: Some(name.parse().unwrap()), ..Label::default() },
            quiesce,
            mount_points: Vec::new(),
            freeze_timeout_ms: 60_000,
            max_pause_ms: None,
            disks: disks.iter().cloned().collect(),
        })
    }

    pub fn revert(&self, name: &str) -> Request {
        Request::RevertSnapshot(RevertSnapshot {
            snapshot: self.find(name),
            run_state_after: RunStateAfter::AsItWas,
            generation: None,
        })
    }

    /// One disk, as it is now.
    pub fn take_now(&self, name: &str, disk: &DiskTarget) -> Request {
        let Request::CreateSnapshot(request) =
            self.create(name, Quiesce::Auto, false, std::slice::from_ref(disk))
        else {
            unreachable!("it is a create");
        };
        Request::CreateSnapshot(CreateSnapshot { kind: SnapshotKind::Volume, ..request })
    }

    /// One disk, as it was in a snapshot.
    pub fn take_from(&self, name: &str, source: &str, disk: &DiskTarget) -> Request {
        Request::TakeFromSnapshot(TakeFromSnapshot {
            snapshot: self.find(source),
            disk: Some(disk.clone()),
            label: Label { name: Some(name.parse().unwrap()), ..Label::default() },
        })
    }

    /// One disk goes back to a snapshot that holds it.
    pub fn revert_volume(&self, name: &str, disk: &DiskTarget) -> Request {
        let (tree, snapshot) = (self.tree(), self.find(name));
        let held = &tree.snapshot(snapshot).unwrap().disks;
        let volume = held.iter().find(|held| held.target == *disk).unwrap().volume;
        Request::RevertVolume(RevertVolume { volume, snapshot, stop: true, active: None })
    }

    /// A volume out of one disk of a snapshot, in a file of its name.
    pub fn clone_volume(&self, name: &str, source: &str, disk: &DiskTarget, mode: CloneMode) -> Request {
        Request::CloneVolume(CloneVolume {
            snapshot: self.find(source),
            disk: Some(disk.clone()),
            path: clone_path(name),
            name: name.parse().unwrap(),
            mode,
            bandwidth: None,
            owner: Owner::default(),
            properties: BTreeMap::new(),
        })
    }

    /// Settles the one difference that there is.
    pub fn resolve(&self, action: DifferenceAction) -> Request {
        let life = Life::start(self);
        let found = life.check_once().unwrap().differences;
        let [only] = &found[..] else { panic!("{found:?}") };
        let orphan = only.path.clone().filter(|_| only.kind == DifferenceKind::OrphanFile);
        drop(life);
        self.sim.reset_script();
        Request::ResolveDifference(ResolveDifference { difference: only.id(), action, orphan })
    }

    pub fn flatten(&self, name: &str) -> Request {
        let volume = self.find_clone(name);
        Request::FlattenVolume(FlattenVolume {
            volume,
            bandwidth: None,
            merge_deadline_ms: None,
            generation: None,
        })
    }

    pub fn delete_volume(&self, name: &str) -> Request {
        Request::DeleteVolume(DeleteVolume { volume: self.find_clone(name), generation: None })
    }

    /// A snapshot of a clone that no VM has.
    pub fn take_clone(&self, name: &str, clone: &str) -> Request {
        let Request::CreateSnapshot(request) = self.create(name, Quiesce::Auto, false, &[]) else {
            unreachable!("it is a create");
        };
        Request::CreateSnapshot(CreateSnapshot {
            vm: VmId::of_detached(self.find_clone(clone)),
            image: Some(clone_path(clone)),
            kind: SnapshotKind::Volume,
            ..request
        })
    }

    /// A clone that no VM has goes back to a snapshot of its own.
    pub fn revert_clone(&self, name: &str, clone: &str) -> Request {
        let snapshot = find(&self.tree_of_clone(clone), name);
        let volume = self.find_clone(clone);
        Request::RevertVolume(RevertVolume { volume, snapshot, stop: false, active: None })
    }

    /// Snapshots of a clone go.
    pub fn delete_of_clone(&self, names: &[&str], clone: &str) -> Request {
        let tree = self.tree_of_clone(clone);
        Request::DeleteSnapshots(DeleteSnapshots {
            snapshots: names.iter().map(|name| find(&tree, name)).collect(),
            with_children: false,
            bandwidth: None,
            merge_deadline_ms: None,
            generation: None,
            reason: DeletionReason::Asked,
        })
    }

    /// A running VM out of a snapshot.
    pub fn deploy(&self, name: &str, source: &str, mode: CloneMode) -> Request {
        Request::DeployVm(DeployVm {
            snapshot: self.find(source),
            name: name.parse().unwrap(),
            mode,
            then: NewVmState::Running,
            new_serials: false,
            bandwidth: None,
        })
    }

    pub fn delete(&self, names: &[&str]) -> Request {
        Request::DeleteSnapshots(DeleteSnapshots {
            snapshots: names.iter().map(|name| self.find(name)).collect(),
            with_children: false,
            bandwidth: None,
            merge_deadline_ms: None,
            generation: None,
            reason: DeletionReason::Asked,
        })
    }

    /// As [`Scene::delete`]; merges without headway for so long are ended.
    pub fn delete_within(&self, names: &[&str], deadline: Duration) -> Request {
        let Request::DeleteSnapshots(request) = self.delete(names) else { unreachable!("it is a deletion") };
        let millis = u64::try_from(deadline.as_millis()).unwrap();
        Request::DeleteSnapshots(DeleteSnapshots { merge_deadline_ms: Some(millis), ..request })
    }
}
