//! Manifests that cannot all be right: of two catalogs on shared storage, of copies, of volumes with one name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use vmsnap::host::Images;
use vmsnap::model::manifest::Manifest;
use vmsnap::model::step::{ImageRef, NewOverlay};
use vmsnap::model::{
    CloneMode, Format, Layer, LayerId, LayerTree, Ownership, SnapshotId, SnapshotState, VolumeId,
};

use super::{carry_out, set_up, verify};
use crate::simulated::{Life, Scene};

pub fn manifests(scene: &Scene) -> Vec<Manifest> {
    let files = scene.sim.files().into_iter();
    let files = files.filter(|file| file.extension().is_some_and(|ending| ending == "manifest"));
    files.map(|file| Manifest::decode(&scene.sim.small_file(&file).unwrap()).unwrap()).collect()
}

/// Gives where it is.
pub fn leave(scene: &Scene, directory: &str, manifest: &Manifest) -> PathBuf {
    let path = PathBuf::from(format!("{directory}/vmsnap-{}.manifest", manifest.id()));
    let content = manifest.encode().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(scene.sim.host().images.write_file(&path, &content)).unwrap();
    path
}

/// Nothing is known twice.
fn check_once(tree: &LayerTree) {
    let mut by_path: BTreeMap<&Path, Vec<&Layer>> = BTreeMap::new();
    for layer in tree.layers.values() {
        by_path.entry(&layer.path).or_default().push(layer);
    }
    for (path, layers) in by_path {
        assert_eq!(layers.len(), 1, "{}: {layers:#?}", path.display());
    }
}

/// The VM was on another node for a while, whose catalog gave all of it ids of its own.
#[test]
fn two_catalogs_on_shared_storage() {
    let (mut scene, mut truth) = set_up();
    let other = |id: Uuid| Uuid::from_u128(id.as_u128() ^ (1 << 64));
    for manifest in manifests(&scene) {
        let Manifest::Snapshot(mut of) = manifest else { continue };
        let name = format!("{}-there", of.snapshot.name);
        truth.snapshots.insert(name.clone(), truth.snapshots[of.snapshot.name.as_str()].clone());
        of.snapshot.name = name.parse().unwrap();
        of.snapshot.id = SnapshotId(other(of.snapshot.id.0));
        of.is_current = false;
        for disk in &mut of.snapshot.disks {
            (disk.layer, disk.volume) = (LayerId(other(disk.layer.0)), VolumeId(other(disk.volume.0)));
        }
        for layer in &mut of.layers {
            (layer.id, layer.volume) = (LayerId(other(layer.id.0)), VolumeId(other(layer.volume.0)));
            layer.parent = layer.parent.map(|parent| LayerId(other(parent.0)));
        }
        leave(&scene, "/images", &Manifest::Snapshot(of));
    }
    let told = scene.rebuild_catalog();
    assert_eq!(told.restored[0].snapshots.len(), 6, "{told:#?}");
    assert!(told.notes.iter().any(|note| note.contains("several catalogs tell of it")), "{told:#?}");
    let tree = scene.tree();
    check_once(&tree);
    verify(&scene, &truth, &[]).unwrap();
    // The other catalog may count on what it told of.
    for snapshot in &tree.snapshots {
        for disk in &snapshot.disks {
            assert_eq!(tree.layers[&disk.layer].ownership, Ownership::Foreign);
        }
    }
    let life = Life::start(&scene);
    life.settle(&scene);
    for name in ["one", "two-there"] {
        carry_out(&life, scene.revert(name));
        truth.active = truth.snapshots[name].clone();
        verify(&scene, &truth, &[]).unwrap();
    }
    carry_out(&life, scene.delete(&["one", "one-there"]));
    truth.snapshots.retain(|name, _| !name.starts_with("one"));
    drop(life);
    verify(&scene, &truth, &[]).unwrap();
}

/// Two VMs are said to own a layer: neither removes it.
#[test]
fn a_layer_of_two_vms() {
    let (mut scene, truth) = set_up();
    let below = scene.tree().snapshots[1].disks[0].layer;
    let below = scene.tree().layers[&below].path.clone();
    let vm = scene.sim.vm("other").image("vda", overlay(&scene, "/images/other", &below)).build();
    for manifest in manifests(&scene) {
        let Manifest::Snapshot(mut of) = manifest else { continue };
        if of.snapshot.name.as_str() == "two" {
            (of.snapshot.id, of.snapshot.vm) = (SnapshotId(Uuid::from_u128(7)), vm);
            leave(&scene, "/images", &Manifest::Snapshot(of));
        }
    }
    let told = scene.rebuild_catalog();
    assert_eq!(told.restored.len(), 2, "{told:#?}");
    assert!(told.notes.iter().any(|note| note.contains("are said to own it")), "{told:#?}");
    let tree = scene.tree();
    assert_eq!(tree.layer_at(&below).unwrap().ownership, Ownership::Foreign);
    let life = Life::start(&scene);
    carry_out(&life, scene.delete(&["one", "two"]));
    drop(life);
    assert!(scene.sim.files().contains(&below));
    assert_eq!(scene.active(), truth.active);
}

/// An image over another, by hand.
fn overlay(scene: &Scene, path: &str, base: &Path) -> ImageRef {
    let overlay = NewOverlay {
        target: "vda".parse().unwrap(),
        path: path.into(),
        backing_path: base.to_owned(),
        backing_format: Format::Qcow2,
        virtual_size: scene.sim.image_size(base).unwrap(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(scene.sim.create_overlay(&overlay)).unwrap();
    ImageRef { path: path.into(), format: Format::Qcow2 }
}

#[test]
fn volumes_with_one_name_and_in_one_file() {
    let (mut scene, truth) = set_up();
    let life = Life::start(&scene);
    let disk = &crate::simulated::disks()[0];
    carry_out(&life, scene.clone_volume("copy", "one", disk, CloneMode::Linked));
    drop(life);
    let is_clone = |manifest: &Manifest| matches!(manifest, Manifest::Clone(_));
    let Some(Manifest::Clone(copy)) = manifests(&scene).into_iter().find(is_clone) else {
        panic!("no clone")
    };
    let mut named_alike = copy.clone();
    named_alike.clone.id = VolumeId(Uuid::from_u128(8));
    named_alike.clone.path = "/images/gone".into();
    named_alike.clone.created_at += jiff::SignedDuration::from_secs(1);
    leave(&scene, "/images", &Manifest::Clone(named_alike));
    let mut in_the_same_file = copy.clone();
    in_the_same_file.clone.id = VolumeId(Uuid::from_u128(9));
    in_the_same_file.clone.name = "older".parse().unwrap();
    in_the_same_file.clone.created_at -= jiff::SignedDuration::from_secs(1);
    leave(&scene, "/images", &Manifest::Clone(in_the_same_file));
    let told = scene.rebuild_catalog();
    let names: Vec<&str> = told.restored[0].clones.iter().map(String::as_str).collect();
    assert_eq!(names.len(), 2, "{told:#?}");
    assert!(names.contains(&"copy") && names.contains(&"copy-000000000008"), "{names:?}");
    assert!(told.notes.iter().any(|note| note.starts_with("copy: another volume has the name")), "{told:#?}");
    let out = &told.left_out;
    assert!(
        out.iter().any(|out| out.why.contains("volumes older and copy are said to be here")),
        "{told:#?}"
    );
    let kept = scene.tree().clones.iter().find(|clone| clone.name.as_str() == "copy").unwrap().clone();
    assert_eq!((kept.id, kept.path), (copy.clone.id, copy.clone.path));
    verify(&scene, &truth, &[]).unwrap();
}

/// The same is taken each time, and the other one is named: the one whose images are there, then the one whose path comes
/// first.
#[test]
fn two_manifests_of_one_generation() {
    let (scene, _) = set_up();
    let is_one =
        |found: &Manifest| matches!(found, Manifest::Snapshot(of) if of.snapshot.name.as_str() == "one");
    let Some(Manifest::Snapshot(one)) = manifests(&scene).into_iter().find(is_one) else { panic!("none") };
    for (moved, taken) in [(None, "/images"), (Some("/memory"), "/images"), (Some("/images"), "/memory")] {
        let mut scene = scene.fork();
        let mut left = BTreeMap::new();
        for directory in ["/images", "/memory"] {
            let mut of = one.clone();
            directory.clone_into(&mut of.snapshot.description);
            if moved == Some(directory) {
                for layer in &mut of.layers {
                    layer.path = Path::new("/nowhere").join(layer.path.file_name().unwrap());
                }
            }
            left.insert(directory, leave(&scene, directory, &Manifest::Snapshot(of)));
        }
        let told = scene.rebuild_catalog();
        let tree = scene.tree();
        let known = tree.snapshots.iter().find(|known| known.id == one.snapshot.id).unwrap();
        assert_eq!(
            (known.description.as_str(), known.state),
            (taken, SnapshotState::Ready),
            "{moved:?}: {told:#?}"
        );
        left.remove(taken);
        let out: Vec<&PathBuf> = told.left_out.iter().map(|out| &out.path).collect();
        assert_eq!(out, left.values().collect::<Vec<_>>(), "{moved:?}: {told:#?}");
    }
}
