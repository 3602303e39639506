//! What is asked for in the midst of faults, and what must be true once it has been done.

use vmsnap::host::sim::BLOCK;
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;
use vmsnap::model::{CloneMode, DifferenceAction, DiskTarget, Quiesce, Request};
use vmsnap::plan::MemoryCompression;

use crate::simulated::{Disks, Scene, Truth};

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Wish {
    Create {
        quiesce: Quiesce,
        memory: bool,
    },
    /// Its memory is written while the guest runs.
    CreateBehind,
    /// And compressed on its way.
    CreateCompressed,
    Revert {
        to: &'static str,
    },
    Delete {
        name: &'static str,
    },
    /// What lies below the VM's own layer is less than what it has written: it is pulled up.
    DeleteByPull {
        name: &'static str,
    },
    /// The guest writes faster than is copied, and is slowed.
    DeleteOutrun,
    TakeNow,
    TakeFrom {
        source: &'static str,
    },
    RevertVolume {
        to: &'static str,
    },
    Clone {
        mode: CloneMode,
    },
    Flatten,
    /// While a VM runs on the clone.
    FlattenLive,
    DeleteClone,
    Deploy {
        mode: CloneMode,
    },
    /// Of a clone that no VM has; it has snapshots `first` and `second` already.
    TakeDetached,
    RevertDetached {
        to: &'static str,
    },
    /// The older layer is the larger one: what lies on it goes down, and it takes the name.
    DeleteDetached {
        names: &'static [&'static str],
    },
    /// The image has more than the layer below it: that goes up.
    DeleteDetachedByPull,
    FlattenDetached,
    /// Somebody has put an overlay on vdb.
    AdoptOverlay,
    /// Somebody lets vdb lie on nothing.
    AdoptMerge,
    /// Somebody lets the stored definition name another image.
    RestoreDefinition,
    RemoveOrphan,
}

const ORPHAN: &str = "/images/vmsnap-0199aaaa-0000-7000-8000-000000000001.qcow2";

impl Wish {
    /// Whether it settles what somebody has done.
    pub fn is_resolution(self) -> bool {
        matches!(self, Self::AdoptOverlay | Self::AdoptMerge | Self::RestoreDefinition | Self::RemoveOrphan)
    }

    /// What somebody has done.
    pub fn happen(self, scene: &mut Scene) {
        let sim = scene.sim.clone();
        match self {
            Self::AdoptOverlay => {
                sim.someone_overlays(scene.vm, &vdb(), "/images/mine".as_ref());
                scene.keep("/images/mine".as_ref());
            }
            Self::AdoptMerge => sim.someone_pulls(scene.vm, &vdb()),
            Self::CreateBehind => sim.learns_to_capture_behind(scene.vm, 0),
            Self::CreateCompressed => {
                sim.learns_to_capture_behind(scene.vm, 2);
                scene.memory_compression = MemoryCompression::Zstd;
            }
            Self::RestoreDefinition => {
                let tree = scene.tree();
                let held = tree.snapshots[0].disks.iter().find(|disk| disk.target == vdb()).unwrap();
                let path = tree.layers[&held.layer].path.clone();
                sim.someone_redefines(scene.vm, &vdb(), ImageRef { path, format: Format::Qcow2 });
            }
            Self::RemoveOrphan => sim.put_image(ORPHAN.as_ref(), Format::Qcow2, BLOCK, false).unwrap(),
            _ => {}
        }
    }

    pub fn is_detached(self) -> bool {
        matches!(
            self,
            Self::TakeDetached
                | Self::RevertDetached { .. }
                | Self::DeleteDetached { .. }
                | Self::DeleteDetachedByPull
                | Self::FlattenDetached
        )
    }
}

impl Wish {
    pub fn request(self, scene: &Scene) -> Request {
        match self {
            Self::Create { quiesce, memory } => scene.create("new", quiesce, memory, &[]),
            Self::CreateBehind | Self::CreateCompressed => scene.create("new", Quiesce::Auto, true, &[]),
            Self::Revert { to } => scene.revert(to),
            Self::Delete { name } | Self::DeleteByPull { name } => scene.delete(&[name]),
            Self::DeleteOutrun => scene.delete(&["three"]),
            Self::TakeNow => scene.take_now("new", &vdb()),
            Self::TakeFrom { source } => scene.take_from("new", source, &vdb()),
            Self::RevertVolume { to } => scene.revert_volume(to, &vdb()),
            Self::Clone { mode } => scene.clone_volume("new", "one", &vdb(), mode),
            Self::Flatten | Self::FlattenLive | Self::FlattenDetached => scene.flatten("clone"),
            Self::TakeDetached => scene.take_clone("new", "clone"),
            Self::RevertDetached { to } => scene.revert_clone(to, "clone"),
            Self::DeleteDetached { names } => scene.delete_of_clone(names, "clone"),
            Self::DeleteDetachedByPull => scene.delete_of_clone(&["second"], "clone"),
            Self::DeleteClone => scene.delete_volume("clone"),
            Self::Deploy { mode } => scene.deploy("new", "one", mode),
            Self::AdoptOverlay | Self::AdoptMerge => scene.resolve(DifferenceAction::Adopt),
            Self::RestoreDefinition => scene.resolve(DifferenceAction::Restore),
            Self::RemoveOrphan => scene.resolve(DifferenceAction::RemoveFile),
        }
    }

    /// What must be true when it has been done.
    pub fn apply(self, scene: &Scene, truth: &mut Truth) {
        match self {
            Self::AdoptOverlay => {
                // Nobody has said what it is called.
                let is_new = |name: &&String| !truth.snapshots.contains_key(*name);
                let names: Vec<String> =
                    scene.tree().snapshots.iter().map(|found| found.name.to_string()).collect();
                let name = names.iter().find(is_new).unwrap().clone();
                let held = only_vdb(&truth.snapshots["three"]);
                truth.snapshots.insert(name, held);
            }
            Self::Create { .. } | Self::CreateBehind | Self::CreateCompressed => {
                truth.snapshots.insert("new".to_owned(), truth.active.clone());
                truth.kept_variables.insert("new".to_owned(), truth.variables);
            }
            Self::Revert { to } => {
                truth.active = truth.snapshots[to].clone();
                truth.variables = truth.kept_variables[to];
            }
            Self::Delete { name } | Self::DeleteByPull { name } => {
                truth.snapshots.remove(name);
                truth.kept_variables.remove(name);
            }
            Self::DeleteOutrun => {
                truth.snapshots.remove("three");
                truth.kept_variables.remove("three");
            }
            Self::TakeNow => drop(truth.snapshots.insert("new".to_owned(), only_vdb(&truth.active))),
            Self::TakeFrom { source } => {
                let taken = only_vdb(&truth.snapshots[source]);
                truth.snapshots.insert("new".to_owned(), taken);
            }
            Self::Clone { .. } => {
                let content = truth.snapshots["one"][&vdb()].clone();
                truth.clones.insert("new".to_owned(), content);
            }
            Self::Flatten
            | Self::FlattenLive
            | Self::FlattenDetached
            | Self::AdoptMerge
            | Self::RestoreDefinition
            | Self::RemoveOrphan => {}
            Self::TakeDetached => {
                let reads = truth.clones["clone"].clone();
                truth.of_clones.get_mut("clone").unwrap().insert("new".to_owned(), reads);
            }
            Self::RevertDetached { to } => {
                let reads = truth.of_clones["clone"][to].clone();
                truth.clones.insert("clone".to_owned(), reads);
            }
            Self::DeleteDetached { names } => {
                let held = truth.of_clones.get_mut("clone").unwrap();
                held.retain(|name, _| !names.contains(&name.as_str()));
            }
            Self::DeleteDetachedByPull => drop(truth.of_clones.get_mut("clone").unwrap().remove("second")),
            Self::DeleteClone => drop(truth.clones.remove("clone")),
            Self::Deploy { .. } => {
                let disks = truth.snapshots["one"].clone();
                truth
                    .clones
                    .extend(disks.into_iter().map(|(disk, content)| (format!("new-{disk}"), content)));
            }
            Self::RevertVolume { to } => truth.active.extend(only_vdb(&truth.snapshots[to])),
        }
    }
}

/// The disk that is treated by itself.
pub fn vdb() -> DiskTarget {
    "vdb".parse().unwrap()
}

pub fn only_vdb(disks: &Disks) -> Disks {
    Disks::from([(vdb(), disks[&vdb()].clone())])
}
