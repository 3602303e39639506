//! What snapshots take, and where the next one writes.

use super::directions::tower;
use super::*;
use crate::plan::limits::{TakenUp, taken, taken_up, weighed, written};

const MIB: u64 = 1 << 20;

/// What `one`, `two` and `three` take and would give back, in MiB, where the layers of the only disk take so many, the lowest
/// first.
fn check(allocated: [u64; 4], expected: [(u64, u64); 3]) {
    let (paper, _) = tower(allocated);
    let tree = &paper.world.tree;
    let take = ["one", "two", "three"].map(|name| {
        let snapshot = paper.snapshot(name);
        let layers = weighed(tree, &snapshot);
        let sizes =
            layers.iter().map(|layer| (*layer, paper.world.images[&tree.layers[layer].path].allocated));
        let TakenUp { bytes, freed } = taken_up(tree, &snapshot, &sizes.collect());
        (bytes / MIB, freed / MIB)
    });
    assert_eq!(take, expected, "{allocated:?}");
}

#[test]
fn what_is_there_with_and_without_a_snapshot_is_not_its_own() {
    check([40_960, 0, 0, 0], [(0, 0), (0, 0), (0, 0)]);
    check([40_960, 3, 5, 0], [(3, 3), (5, 3), (0, 0)]);
    check([40_960, 3, 20, 7], [(3, 3), (20, 3), (7, 7)]);
    // A full layer over an empty one hides nothing of it.
    check([0, 40_960, 0, 7], [(40_960, 0), (0, 0), (7, 0)]);
}

#[test]
fn memory_is_its_own() {
    let mut paper = Paper::new();
    let request = CreateSnapshot { kind: SnapshotKind::VmDisksAndMemory, ..named("one") };
    let plan = paper.plan_create(&request).unwrap();
    paper.carry_out(&plan);
    let snapshot = paper.snapshot("one");
    let took = taken_up(&paper.world.tree, &snapshot, &BTreeMap::new());
    assert_eq!(took, TakenUp { bytes: 5, freed: 5 });
}

#[test]
fn only_disks_that_are_taken_are_written() {
    let mut paper = Paper::new();
    paper.add_disk("vdc", &["/other/vdc.qcow2"]);
    paper.add_disk("vdd", &["/dev/vg/vdd"]);
    let DiskSource::Chain { images, .. } = &mut paper.disk("vdd").source else { unreachable!() };
    images[0].is_block_device = true;
    paper.world.places.overlays = Some("/overlays".into());
    let check = |named: &[&str], memory, expected: &[&str]| {
        let named = named.iter().map(|target| target.parse().unwrap()).collect();
        let directories: Vec<&Path> =
            written(&paper.world.vm, &named, memory, &paper.world.places).into_iter().collect();
        assert_eq!(directories, expected.iter().map(Path::new).collect::<Vec<_>>(), "{named:?}");
    };
    check(&[], false, &["/images", "/other", "/overlays"]);
    check(&["vda"], true, &["/images", "/memory"]);
    check(&["vdc"], false, &["/other"]);
    check(&["vdd"], false, &["/overlays"]);
    paper.disk("vdc").source = DiskSource::Excluded(ExcludedDisk::ReadOnly);
    assert_eq!(taken(&paper.world.vm, &[].into()).count(), 3);
}
