//! Memory in a snapshot: behind the guest's back, or while it stands still.

use super::*;

fn check_capture(
    prepare: impl Fn(&mut Paper),
    max_pause_ms: Option<u64>,
    expected: Result<(&str, &[&str]), &str>,
) {
    let mut paper = Paper::new();
    prepare(&mut paper);
    let request = CreateSnapshot { kind: SnapshotKind::VmDisksAndMemory, max_pause_ms, ..named("one") };
    let planned = paper.plan_create(&request);
    let told = planned.as_ref().map(|plan| (outline(plan), plan.warnings.clone()));
    let expected = expected.map(|(steps, warnings)| {
        (steps.to_owned(), warnings.iter().map(|warning| (*warning).to_owned()).collect::<Vec<_>>())
    });
    assert_eq!(told.map_err(ToString::to_string), expected.map_err(ToOwned::to_owned));
}

#[test]
fn how_memory_is_captured() {
    let behind = "reserve overlay overlay begin-memory flush prepare pause capture switch prove resume await finish! record";
    let standing = "reserve overlay overlay memory switch! record";
    let warning = "the guest stands still until its memory is written: its QEMU is too old";
    let can = |paper: &mut Paper| paper.world.background_blocker = None;
    let is_paused = |paper: &mut Paper| paper.world.vm.run_state = RunState::Paused(PauseReason::User);
    check_capture(can, None, Ok((behind, &[])));
    check_capture(can, Some(500), Ok((behind, &[])));
    check_capture(|_| {}, None, Ok((standing, &[warning])));
    let unbounded =
        "memory cannot be captured while the VM runs, so its pause has no bound: its QEMU is too old";
    check_capture(|_| {}, Some(500), Err(unbounded));
    // It stands still already.
    check_capture(is_paused, None, Ok((standing, &[])));
    check_capture(is_paused, Some(500), Ok((standing, &[])));
}

#[test]
fn how_memory_is_written() {
    let check = |memory_compression, blocker: Option<&str>, expected, warnings: &[&str]| {
        let mut paper = Paper::new();
        paper.world.background_blocker = None;
        paper.world.memory_compression = memory_compression;
        paper.world.compression_blocker = blocker.map(ToOwned::to_owned);
        let request = CreateSnapshot { kind: SnapshotKind::VmDisksAndMemory, ..named("one") };
        let plan = paper.plan_create(&request).unwrap();
        let format = plan.steps.iter().find_map(|step| match step {
            Step::BeginMemoryImage { format, .. } => Some(*format),
            _ => None,
        });
        assert_eq!(
            (format, plan.warnings),
            (Some(expected), warnings.iter().map(ToString::to_string).collect())
        );
    };
    let warning = "the memory is not compressed: its libvirt is too old";
    check(MemoryCompression::None, None, MemoryFormat::Raw, &[]);
    check(MemoryCompression::Zstd, None, MemoryFormat::Zstd, &[]);
    check(MemoryCompression::Zstd, Some("its libvirt is too old"), MemoryFormat::Raw, &[warning]);
}

/// The journal of a daemon that knew one format only.
#[test]
fn a_step_from_before_is_read() {
    let step = Step::BeginMemoryImage {
        snapshot: SnapshotId(uuid::Uuid::nil()),
        path: "/m".into(),
        format: MemoryFormat::Raw,
    };
    let mut json = serde_json::to_value(&step).unwrap();
    assert_eq!(json.as_object_mut().unwrap().remove("format"), Some("raw".into()));
    assert_eq!(serde_json::from_value::<Step>(json).unwrap(), step);
}

#[test]
fn how_long_it_may_stand_still() {
    let check = |max_pause_ms, expected| {
        let mut paper = Paper::new();
        paper.world.background_blocker = None;
        let request = CreateSnapshot { kind: SnapshotKind::VmDisksAndMemory, max_pause_ms, ..named("one") };
        let plan = paper.plan_create(&request).unwrap();
        let pause = plan.steps.iter().find_map(|step| match step {
            Step::PauseVm { timeout_ms, .. } => Some(*timeout_ms),
            _ => None,
        });
        assert_eq!(pause, Some(expected));
    };
    check(None, 10_000);
    check(Some(500), 500);
    check(Some(60_000), 10_000);
}
