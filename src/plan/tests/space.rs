//! Room: what merges need, who may go on, when to be told.

use super::*;
use crate::model::Space;
use crate::model::vm::Pieces;

const MIB: u64 = 1 << 20;

/// The file system that everything is on, with so many bytes free.
pub(super) fn of(free: u64) -> Space {
    Space { file_system: 1, total: 1 << 40, free }
}

/// A VM of one disk whose layer under snapshot `one` is merged with what was written since. The lower layer takes 20 MiB,
/// the upper one 9 MiB.
fn tight(free: u64) -> (Paper, [PathBuf; 2]) {
    let mut paper = Paper::new();
    paper.world.vm.disks.pop();
    let base = paper.disk("vda").active().unwrap().path.clone();
    paper.create("one");
    let top = paper.disk("vda").active().unwrap().path.clone();
    for (path, allocated) in [(&base, 20), (&top, 9)] {
        paper.world.images.get_mut(path).unwrap().allocated = allocated * MIB;
    }
    paper.world.free_space = HashMap::from([("/images".into(), of(free))]);
    (paper, [base, top])
}

/// With so many MiB free and so many kept free, when the layers are measured to take so many MiB: the lower alone, both,
/// both with the lower on top.
#[track_caller]
fn check(free: u64, reserve: u64, measured: [Option<u64>; 3], expected: Result<(), &str>) {
    let (mut paper, [base, top]) = tight(free * MIB);
    paper.world.places.reserve = reserve * MIB;
    let runs = [vec![base.clone()], vec![top.clone(), base.clone()], vec![base, top]];
    paper.world.measured =
        runs.into_iter().zip(measured).map(|(run, mib)| (run, mib.map(|mib| mib * MIB))).collect();
    let planned = paper.plan_delete("one");
    assert_eq!(planned.map(drop).map_err(|refusal| refusal.to_string()), expected.map_err(str::to_owned));
}

#[test]
fn a_merge_that_fits_in_any_case_is_not_measured() {
    for (free, reserve) in [(9, 0), (12, 3)] {
        let (mut paper, _) = tight(free * MIB);
        paper.world.places.reserve = reserve * MIB;
        paper.plan_delete("one").unwrap();
    }
    let (paper, [base, top]) = tight(8 * MIB);
    let paths = |runs: &[Vec<crate::model::step::ImageRef>]| -> Vec<Vec<PathBuf>> {
        runs.iter().map(|run| run.iter().map(|image| image.path.clone()).collect()).collect()
    };
    match paper.plan_delete("one") {
        Err(Refusal::NotMeasured(runs)) => {
            assert_eq!(paths(&runs), [vec![base.clone()], vec![top.clone(), base.clone()], vec![base, top]]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_there_already_needs_no_new_room() {
    let all = |own, both, on_top| [Some(own), Some(both), Some(on_top)];
    // The guest wrote over what is there.
    check(1, 0, all(20, 20, 20), Ok(()));
    // 3 MiB are new, and the image of 10 MiB has one table.
    check(4, 0, all(20, 23, 23), Ok(()));
    let refused = "a merge needs 3211264 bytes in /images, which has 3145728 bytes free";
    check(3, 0, all(20, 23, 23), Err(refused));
    // What one of the two has zeroed hides what is there.
    check(3, 0, all(20, 18, 23), Err(refused));
    check(3, 0, all(20, 23, 18), Err(refused));
    let refused =
        "a merge needs 5308416 bytes in /images (with 2097152 that stay free), which has 5242880 bytes free";
    check(5, 2, all(20, 23, 23), Err(refused));
    // It never needs more than what goes takes now.
    check(8, 0, all(20, 40, 40), Err("a merge needs 9437184 bytes in /images, which has 8388608 bytes free"));
    // What cannot be measured is guessed, and never too low.
    for missing in 0..3 {
        let mut measured = all(20, 20, 20);
        measured[missing] = None;
        let refused = "a merge needs 9437184 bytes in /images, which has 8388608 bytes free";
        check(8, 0, measured, Err(refused));
    }
}

#[test]
fn small_pieces_take_more_room_in_a_layer_of_large_ones() {
    let check = |smallest: u64, fits: bool| {
        let (mut paper, [base, top]) = tight(9 * MIB);
        for (path, smallest, mib) in [(&base, 64 << 10, 20), (&top, smallest, 1)] {
            let facts = paper.world.images.get_mut(path).unwrap();
            facts.pieces = Some(Pieces { cluster: 64 << 10, smallest });
            facts.allocated = mib * MIB;
        }
        assert_eq!(paper.plan_delete("one").is_ok(), fits, "{smallest}");
    };
    check(64 << 10, true);
    check(8 << 10, true);
    check(4 << 10, false);
}

#[test]
fn a_raw_image_never_grows_beyond_its_size() {
    let mut paper = Paper::new();
    paper.world.vm.disks.pop();
    let base = paper.disk("vda").active().unwrap().path.clone();
    if let DiskSource::Chain { images, .. } = &mut paper.disk("vda").source {
        images[0].format = Format::Raw;
    }
    paper.create("one");
    let top = paper.disk("vda").active().unwrap().path.clone();
    paper.world.measured =
        [(vec![base.clone()], 1), (vec![top.clone(), base.clone()], 5), (vec![top, base.clone()], 5)]
            .map(|(run, mib)| (run, Some(mib * MIB)))
            .into();
    paper.world.free_space = HashMap::from([("/images".into(), of(MIB / 2))]);
    // It is 10 MiB long.
    for (allocated, fits) in [(10 * MIB, true), (9 * MIB + MIB / 2, true), (9 * MIB, false)] {
        paper.world.images.get_mut(&base).unwrap().allocated = allocated;
        assert_eq!(paper.plan_delete("one").is_ok(), fits, "{allocated}");
    }
}

#[test]
fn what_goes_as_it_is_needs_no_room() {
    let mut paper = Paper::new();
    paper.create("root");
    paper.create("dead");
    paper.revert("root");
    paper.world.free_space = HashMap::from([("/images".into(), of(0))]);
    paper.world.places.reserve = 100 * MIB;
    let plan = paper.plan_delete("dead").unwrap();
    assert!(plan.bytes_needed == 0 && plan.steps.iter().all(|step| !matches!(step, Step::Merge(_))));
}

#[test]
fn directories_share_the_room_of_their_file_system() {
    let mut paper = Paper::new();
    paper.world.vm.disks.clear();
    paper.add_disk("vda", &["/images/a.qcow2"]);
    paper.add_disk("vdb", &["/other/b.qcow2"]);
    let needed = 2 * NEW_OVERLAY_BYTES;
    for (file_system, free, fits) in [(1, needed, true), (1, needed - 1, false), (2, needed - 1, true)] {
        let other = Space { file_system, ..of(free) };
        paper.world.free_space = HashMap::from([("/images".into(), of(free)), ("/other".into(), other)]);
        assert_eq!(paper.plan_create(&named("one")).is_ok(), fits, "{file_system} {free}");
    }
}

#[test]
fn who_may_be_resumed() {
    #[track_caller]
    fn check(prepare: impl FnOnce(&mut VmView), free: u64, expected: Result<bool, &str>) {
        let mut vm = Paper::new().world.vm;
        vm.run_state = RunState::Paused(PauseReason::IoError);
        vm.full_disks = vec!["vda".parse().unwrap()];
        prepare(&mut vm);
        let spaces = BTreeMap::from([("/images".into(), of(free))]);
        let resumed = resume(&vm, &spaces, 10 * MIB).map_err(|refusal| refusal.to_string());
        assert_eq!(resumed, expected.map_err(str::to_owned));
    }
    check(|_| {}, 10 * MIB, Ok(true));
    let refused = "/images has 10485759 bytes free, 10485760 are needed (with 10485760 that stay free)";
    check(|_| {}, 10 * MIB - 1, Err(refused));
    check(|vm| vm.run_state = RunState::Running, 0, Ok(false));
    let error =
        "the VM is not paused for lack of space: it is paused for an error of a disk that is none of space";
    check(|vm| vm.full_disks.clear(), 10 * MIB, Err(error));
    let somebody = "the VM is not paused for lack of space: it was paused by somebody";
    check(|vm| vm.run_state = RunState::Paused(PauseReason::User), 10 * MIB, Err(somebody));
    let off = "the VM is not paused for lack of space: it is off";
    check(|vm| vm.run_state = RunState::Off, 10 * MIB, Err(off));
    // Nobody can tell how full a block device is.
    let to_device = |vm: &mut VmView| match &mut vm.disks[0].source {
        DiskSource::Chain { images, .. } => images[0].is_block_device = true,
        _ => unreachable!(),
    };
    check(to_device, 0, Ok(true));
}

#[test]
fn low_space() {
    let places = Places { reserve: 10, low_space: 100, ..Paper::new().world.places };
    let space = |total, free| Space { file_system: 1, total, free };
    let check = |total, expected| assert_eq!(low_water(&space(total, 0), &places), expected, "{total}");
    check(10_000, 100);
    check(500, 50);
    check(50, 10);
    let check =
        |free, was, expected| assert_eq!(is_low(&space(10_000, free), 100, was), expected, "{free} {was}");
    check(100, false, false);
    check(99, false, true);
    check(100, true, true);
    check(124, true, true);
    check(125, true, false);
}

#[test]
fn thresholds() {
    let check = |free: u64, images, before: Option<u64>, expected: Option<u64>| {
        let next = next_threshold(&of(free * MIB), 100 * MIB, images, 7 * MIB, before.map(|mib| mib * MIB));
        assert_eq!(next, expected.map(|mib| mib * MIB), "{free} {images} {before:?}");
    };
    check(300, 1, None, Some(107));
    check(300, 10, None, Some(17));
    // What is set will do for as long as it comes before the whole share is used.
    check(300, 10, Some(17), None);
    check(300, 10, Some(27), None);
    check(300, 10, Some(28), Some(17));
    // Never a flood of news, and below the bound it is about room that is made.
    check(101, 10, None, Some(8));
    check(100, 1, None, Some(32));
    check(0, 1, None, Some(8));
}

proptest::proptest! {
    /// Whatever they write and in whatever order: before the bound is reached, one of them is told of.
    #[test]
    fn somebody_is_told_before_it_is_low(
        images in 1_usize..8,
        room in 64_u64..4096,
        writes in proptest::collection::vec((0_usize..8, 1_u64..64), 1..200),
    ) {
        let bound = 1000 * MIB;
        let mut free = bound + room * MIB;
        let mut lengths = vec![MIB; images];
        let mut set: Vec<Option<u64>> = vec![None; images];
        let count = images as u64;
        for (length, threshold) in lengths.iter().zip(&mut set) {
            *threshold = next_threshold(&of(free), bound, count, *length, None);
        }
        for (image, mib) in writes {
            let image = image % images;
            let bytes = (mib * MIB).min(free - bound);
            lengths[image] += bytes;
            free -= bytes;
            let is_told = lengths.iter().zip(&set).any(|(length, set)| set.is_some_and(|set| *length >= set));
            if free == bound {
                // A megabyte for each is the least that is waited for.
                let slack = lengths.iter().zip(&set).any(|(length, set)| set.is_some_and(|set| length + MIB >= set));
                proptest::prop_assert!(is_told || slack, "{lengths:?} {set:?}");
                return Ok(());
            }
            if is_told {
                for (length, threshold) in lengths.iter().zip(&mut set) {
                    let before = threshold.filter(|set| *length < *set);
                    if let Some(next) = next_threshold(&of(free), bound, count, *length, before) {
                        *threshold = Some(next);
                    } else {
                        *threshold = before;
                    }
                }
            }
        }
    }
}
