//! A VM that is not here: what its disks wrote to last is told by a manifest, and what nothing needs can go.

use std::collections::BTreeSet;
use std::path::PathBuf;

use vmsnap::model::manifest::Manifest;
use vmsnap::model::{PurgeSnapshot, Request};

use super::conflicts::{leave, manifests};
use super::{carry_out, set_up};
use crate::simulated::{Life, Scene, disks};

/// How a manifest tells of the VM's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    AsItIs,
    /// An older program wrote it.
    NotAtAll,
    /// Somebody has taken the image away.
    Missing,
}

/// All snapshots of a VM that went back to the first one, and has left, are purged. Gives the images that are gone.
fn purge_all(told: Told) -> BTreeSet<PathBuf> {
    let (mut scene, _) = set_up();
    let life = Life::start(&scene);
    carry_out(&life, scene.revert("one"));
    drop(life);
    scene.write(3, 70);
    let images: Vec<PathBuf> =
        disks().iter().map(|disk| scene.sim.image_of(scene.vm, disk).unwrap()).collect();
    scene.sim.someone_stops(scene.vm);
    scene.sim.someone_undefines(scene.vm);
    match told {
        Told::AsItIs => {}
        Told::NotAtAll => forget_disks(&scene),
        Told::Missing => scene.sim.someone_removes(&images[0]),
    }
    let there = |scene: &Scene| -> BTreeSet<PathBuf> {
        let is_image = |file: &PathBuf| file.extension().is_none_or(|ending| ending == "qcow2");
        scene.sim.files().into_iter().filter(is_image).collect()
    };
    let (before, reads) = (there(&scene), images.iter().map(|image| scene.sim.read_image(image).ok()));
    let reads: Vec<_> = reads.collect();
    scene.rebuild_catalog();
    let life = Life::start(&scene);
    life.settle(&scene);
    for snapshot in scene.tree().snapshots {
        carry_out(&life, Request::PurgeSnapshot(PurgeSnapshot { snapshot: snapshot.id, generation: None }));
    }
    drop(life);
    let now: Vec<_> = images.iter().map(|image| scene.sim.read_image(image).ok()).collect();
    assert_eq!(now, reads, "{told:?}: what the VM wrote last");
    let after = there(&scene);
    before.difference(&after).cloned().collect()
}

fn forget_disks(scene: &Scene) {
    for manifest in manifests(scene) {
        if let Manifest::Snapshot(mut of) = manifest {
            of.volumes.clear();
            of.active.clear();
            leave(scene, "/images", &Manifest::Snapshot(of));
        }
    }
}

#[test]
fn what_nothing_needs_goes_if_it_is_told_what_the_disks_need() {
    // The layers of `two` and `three`, of two disks.
    assert_eq!(purge_all(Told::AsItIs).len(), 4);
    assert_eq!(purge_all(Told::NotAtAll), BTreeSet::new());
    assert_eq!(purge_all(Told::Missing), BTreeSet::new());
}

/// One snapshot tells of the disks: the one that is written anew with each change of them.
#[test]
fn the_disks_are_told_of_once() {
    let (scene, _) = set_up();
    let check = |name: &str| {
        let active: BTreeSet<PathBuf> =
            disks().iter().map(|disk| scene.sim.image_of(scene.vm, disk).unwrap()).collect();
        for manifest in manifests(&scene) {
            let Manifest::Snapshot(of) = manifest else { continue };
            let writes = of
                .volumes
                .iter()
                .map(|volume| of.active.iter().find(|layer| layer.id == volume.active).unwrap().path.clone());
            let expected = if of.snapshot.name.as_str() == name { active.clone() } else { BTreeSet::new() };
            assert_eq!(writes.collect::<BTreeSet<_>>(), expected, "{}", of.snapshot.name);
        }
    };
    check("three");
    let life = Life::start(&scene);
    carry_out(&life, scene.revert_volume("one", &disks()[0]));
    check("three");
    carry_out(&life, scene.revert("one"));
    check("one");
    carry_out(&life, scene.delete(&["one"]));
    check("three");
}
