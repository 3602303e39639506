//! Which way layers are merged: the one that moves fewer bytes, where it is possible.

use super::*;
use crate::model::step::Merge;

const MIB: u64 = 1 << 20;

/// A VM of one disk with snapshots `one`, `two` and `three`; its layers take so many MiB, the lowest first.
pub(super) fn tower(allocated: [u64; 4]) -> (Paper, [PathBuf; 4]) {
    let mut paper = Paper::new();
    paper.world.vm.disks.pop();
    let mut paths = Vec::new();
    for name in ["one", "two", "three"] {
        paths.push(paper.disk("vda").active().unwrap().path.clone());
        paper.create(name);
    }
    paths.push(paper.disk("vda").active().unwrap().path.clone());
    for (path, allocated) in paths.iter().zip(allocated) {
        paper.world.images.get_mut(path).unwrap().allocated = allocated * MIB;
    }
    (paper, paths.try_into().unwrap())
}

fn merge(plan: &Plan) -> Merge {
    let merges = plan.steps.iter().find_map(|step| match step {
        Step::Merge(layers) => Some(layers.merges[0].clone()),
        _ => None,
    });
    merges.unwrap()
}

/// Deletes a snapshot; gives the number of the layer that is left, and the MiB that move.
#[allow(clippy::needless_pass_by_value, reason = "cases read better by value")]
fn check(allocated: [u64; 4], prepare: impl FnOnce(&mut Paper), name: &str, expected: (usize, u64)) {
    let (mut paper, paths) = tower(allocated);
    prepare(&mut paper);
    let plan = paper.plan_delete(name).unwrap();
    let survivor = merge(&plan).survivor().path.clone();
    let survivor = paths.iter().position(|path| *path == survivor).unwrap();
    assert_eq!((survivor, plan.bytes_to_copy / MIB), expected, "{name} of {allocated:?}");
    paper.carry_out(&plan);
    let left: Vec<bool> = paths.iter().map(|path| paper.world.images.contains_key(path)).collect();
    assert_eq!(left.iter().filter(|is_left| **is_left).count(), 3, "{name} of {allocated:?}: {left:?}");
    assert!(left[survivor]);
    // What is left is in order: the next deletion finds nothing wrong, and leaves one image in the end.
    for snapshot in paper.world.tree.snapshots.clone() {
        let plan = paper.plan_delete(snapshot.name.as_str()).unwrap();
        paper.carry_out(&plan);
    }
    assert_eq!(paper.disk("vda").active().unwrap().path, paths[0], "the image that the VM was made with");
}

#[test]
fn fewer_bytes() {
    let running = |_: &mut Paper| {};
    // Into the layer that the VM writes to, if that is the larger one.
    check([9, 9, 1, 50], running, "three", (3, 1));
    check([9, 9, 50, 1], running, "three", (2, 1));
    check([9, 9, 7, 7], running, "three", (2, 7));
    // A running VM pulls into no other.
    check([9, 1, 50, 9], running, "two", (1, 50));
    let off = |paper: &mut Paper| paper.world.vm.run_state = RunState::Off;
    check([9, 1, 50, 9], off, "two", (2, 1));
    // The image that the VM was made with stays, whatever it costs.
    check([1, 50, 9, 9], running, "one", (0, 50));
    check([1, 50, 9, 9], off, "one", (0, 50));
    // A base that was shortened hides the end of what lies below it.
    let shortened = |paper: &mut Paper| {
        let path = paper.world.vm.disks[0].chain()[1].path.clone();
        paper.world.images.get_mut(&path).unwrap().virtual_size -= 1;
    };
    check([9, 9, 1, 50], shortened, "three", (2, 50));
}

/// QEMU issue 3149: the VM could end with the pull.
#[test]
fn a_running_vm_pulls_only_when_that_is_safe() {
    let dangerous = |paper: &mut Paper| paper.world.vm.pull_blocker = Some("it may crash".to_owned());
    check([9, 9, 1, 50], dangerous, "three", (2, 50));
    let taken = |paper: &mut Paper| {
        dangerous(paper);
        paper.world.live_pulls = LivePulls::Always;
    };
    check([9, 9, 1, 50], taken, "three", (3, 1));
    // What nobody has open is pulled into by qemu-img.
    let off = |paper: &mut Paper| {
        dangerous(paper);
        paper.world.vm.run_state = RunState::Off;
    };
    check([9, 9, 1, 50], off, "three", (3, 1));
}

/// Where it is dangerous, no other job of the VM ends beside a pull.
#[test]
fn a_dangerous_pull_is_alone() {
    for (blocker, rounds) in [(None, 1), (Some("it may crash".to_owned()), 2)] {
        let mut paper = Paper::new();
        paper.create("one");
        paper.create("two");
        paper.world.live_pulls = LivePulls::Always;
        paper.world.vm.pull_blocker.clone_from(&blocker);
        let active = paper.disk("vda").active().unwrap().path.clone();
        paper.world.images.get_mut(&active).unwrap().allocated = 50 * MIB;
        let plan = paper.plan_delete("two").unwrap();
        let merges = plan.steps.iter().filter(|step| matches!(step, Step::Merge(_))).count();
        assert_eq!(merges, rounds, "{blocker:?}: vda goes up, vdb down");
    }
}

#[test]
fn a_clone_keeps_its_file() {
    let (mut paper, paths) = tower([9, 9, 1, 50]);
    paper.world.volumes.insert(paths[2].clone(), VolumeId(Uuid::nil()));
    assert_eq!(merge(&paper.plan_delete("three").unwrap()).survivor().path, paths[2]);
}

/// The lower of two merges of one disk leaves another image below the upper one.
#[test]
fn merges_of_one_disk_fit_each_other() {
    let (mut paper, paths) = tower([9, 9, 1, 50]);
    let request = DeleteSnapshots {
        snapshots: vec![paper.id("one"), paper.id("three")],
        with_children: false,
        bandwidth: None,
        merge_deadline_ms: None,
        generation: None,
        reason: DeletionReason::Asked,
    };
    let plan = delete(&paper.world, &request).unwrap();
    paper.carry_out(&plan);
    let backing = |path: &Path| paper.world.images[path].backing.clone().map(|backing| backing.path);
    assert_eq!(backing(&paths[3]), Some(paths[0].clone()));
    assert!(!paper.world.images.contains_key(&paths[1]) && !paper.world.images.contains_key(&paths[2]));
}
