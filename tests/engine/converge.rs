//! Merges that a guest outruns, that stand still, or that a guest waits for, and captures of memory that do: seen, told, slowed,
//! ended; and a guest that is never left slowed, whenever the daemon dies.

use std::collections::BTreeMap;
use std::time::Duration;

use vmsnap::host::sim::{Call, Complaint, Fault, Method, Mishap, Moment, Trigger, Waits};
use vmsnap::model::event::EventKind;
use vmsnap::model::io_limits::{Directions, IoLimits, Limit};
use vmsnap::model::operation::OperationState;
use vmsnap::model::{DiskTarget, OperationId, Quiesce, Reason, RunState};

use crate::simulated::{self, Life, Scene, Truth, ensure};

/// The guest writes these blocks over and over.
const FIRST: u64 = 20;
const BLOCKS: u64 = 12;

fn vda() -> DiskTarget {
    "vda".parse().unwrap()
}

/// What an operator has limited before, and must find again.
fn limits() -> IoLimits {
    let both = Limit { rate: 1 << 40, burst: 1 << 41, burst_seconds: 2 };
    IoLimits { bytes: Directions { both, ..Directions::default() }, ..IoLimits::default() }
}

/// A VM with a snapshot `one`, whose guest writes more than is copied from now on.
fn set_up() -> (Scene, Truth) {
    let scene = Scene::forkable();
    let mut truth = Truth::default();
    scene.sim.set_job_notches(2);
    let life = Life::start(&scene);
    scene.write(1, 10);
    let id = life.begin(scene.create("one", Quiesce::Auto, false, &[]), || false).unwrap().unwrap();
    assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
    drop(life);
    for block in 0..4 {
        scene.write(block, 100 + block);
    }
    truth.active = scene.active();
    scene.sim.someone_limits(scene.vm, &vda(), limits());
    scene.sim.guest_writes_on(scene.vm, &vda(), 4, FIRST, BLOCKS);
    scene.sim.reset_script();
    (scene, truth)
}

fn begin(life: &Life, scene: &Scene) -> OperationId {
    life.begin(scene.delete(&["one"]), || false).unwrap().unwrap()
}

/// The guest reads what it has written; nobody has slowed it, and nothing is noted any more.
fn verify_guest(scene: &Scene, truth: &Truth) -> Result<(), String> {
    let mut active = truth.active.clone();
    let written = scene.sim.written_by_itself(scene.vm, &vda());
    active.get_mut(&vda()).unwrap().content.extend(written);
    ensure(scene.active() == active, || format!("the VM reads {:?}, not {active:?}", scene.active()))?;
    let now = scene.sim.limits_of(scene.vm, &vda());
    ensure(now == limits(), || format!("the limits are {now:?}"))?;
    ensure(scene.throttles() == 0, || "a throttle is noted".to_owned())?;
    let violations = scene.sim.violations();
    ensure(violations.is_empty(), || violations.join("; "))
}

/// As above, and the merge is over.
fn verify_merged(scene: &Scene, truth: &Truth) -> Result<(), String> {
    verify_guest(scene, truth)?;
    let (mut truth, written) = (truth.clone(), scene.sim.written_by_itself(scene.vm, &vda()));
    truth.active.get_mut(&vda()).unwrap().content.extend(written);
    scene.verify(&truth)
}

/// What was told of merges, in order.
fn told(scene: &Scene) -> Vec<String> {
    let merges = scene.events().into_iter().filter(|event| event.kind == EventKind::MergeNotConverging);
    merges.map(|event| event.attributes["change"].clone()).collect()
}

#[test]
fn a_guest_that_writes_too_fast_is_slowed_until_it_is_merged() {
    let (scene, truth) = set_up();
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    let mut slowed = Vec::new();
    let watch = || {
        slowed.push(scene.sim.limits_of(scene.vm, &vda()).bytes);
        false
    };
    let ended = life.run_watching(id, watch).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Succeeded, "{ended:?}");
    slowed.dedup();
    let reads: Vec<u64> = slowed.iter().map(|bytes| bytes.read.rate).collect();
    assert!(
        reads[1..reads.len() - 1].iter().all(|rate| *rate == 1 << 40),
        "reads are not slowed: {slowed:?}"
    );
    assert!(slowed.len() > 2, "{slowed:?}");
    let told = told(&scene);
    assert_eq!(told[..2], ["outrun", "slowed"], "{told:?}");
    assert_eq!(told.iter().filter(|change| *change == "outrun").count(), 1, "once: {told:?}");
    verify_merged(&scene, &truth).unwrap();
}

/// The host cannot slow it: the merge is ended at its deadline, and goes on when somebody says so.
fn ends_stuck(prepare: impl Fn(&Scene), cure: impl Fn(&Scene), first_told: &str, ended_jobs: usize) {
    let (scene, truth) = set_up();
    prepare(&scene);
    let limits_before = scene.sim.limits_of(scene.vm, &vda());
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    let stuck = life.run(id, || false).unwrap();
    assert!(matches!(stuck.cursor.state, OperationState::Stuck { .. }), "{stuck:?}");
    assert_eq!(stuck.failure.unwrap().reason, Reason::MergeNotConverging);
    assert_eq!(scene.calls_of(Method::AbortBlockJob), ended_jobs, "each is ended once, not tried again");
    let has_job = |disk: &DiskTarget| scene.sim.has_block_job(scene.vm, disk);
    assert!(!simulated::disks().iter().any(has_job), "no job is left running");
    assert_eq!(told(&scene)[0], first_told);
    assert_eq!(scene.sim.limits_of(scene.vm, &vda()), limits_before);
    // It keeps the VM, over a restart, too: what the snapshot lies on is a mixture.
    drop(life);
    let life = Life::start(&scene);
    let refused = life.begin(scene.revert("one"), || false).unwrap();
    assert!(refused.is_err(), "nobody goes back to a base that is half written");
    cure(&scene);
    scene.sim.someone_limits(scene.vm, &vda(), limits());
    scene.sim.reset_script();
    life.retry(id);
    let ended = life.run(id, || false).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Succeeded, "{ended:?}");
    verify_merged(&scene, &truth).unwrap();
}

#[test]
fn a_guest_that_cannot_be_slowed() {
    let refuse = |scene: &Scene| {
        let mishap = Mishap::Error(Complaint::Refused);
        let at = Trigger::Each(Method::SetIoLimits);
        scene.sim.add_fault(Fault { at, moment: Moment::Before, mishap });
    };
    ends_stuck(refuse, |scene| scene.sim.guest_calms_down(scene.vm), "outrun", 1);
}

#[test]
fn a_guest_whose_disks_share_their_limits() {
    let share = |scene: &Scene| {
        let shared = IoLimits { group: Some("gold".to_owned()), ..limits() };
        scene.sim.someone_limits(scene.vm, &vda(), shared);
    };
    ends_stuck(share, |scene| scene.sim.guest_calms_down(scene.vm), "outrun", 1);
}

/// A long merge of a guest that writes nothing, and waits for what it reads the longer the faster is copied.
fn set_up_waiting() -> (Scene, Truth) {
    let (scene, mut truth) = set_up();
    scene.sim.guest_calms_down(scene.vm);
    for block in 100..900 {
        scene.write(block, block);
    }
    truth.active = scene.active();
    scene.sim.set_job_notches(1000);
    let millis = Duration::from_millis;
    scene.sim.guest_waits(scene.vm, &vda(), Waits { calm: millis(5), busy: millis(50), slowly: 120_000 });
    (scene, truth)
}

/// What each merge may copy at first, in bytes per second: more than these disks ever do.
const START: u64 = 64 << 20;

/// Whether the merge copies less than it could.
fn is_held(scene: &Scene) -> bool {
    let job = scene.sim.block_job_of(scene.vm, &vda());
    job.and_then(|job| job.bandwidth).is_some_and(|bandwidth| bandwidth < START)
}

/// Runs to the end, which is a good one. Gives the limits that the block job had, in order.
fn limits_of_job(life: &Life, scene: &Scene, id: OperationId) -> Vec<Option<u64>> {
    let mut limits = Vec::new();
    let watch = || {
        limits.extend(scene.sim.block_job_of(scene.vm, &vda()).map(|job| job.bandwidth));
        false
    };
    let ended = life.run_watching(id, watch).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Succeeded, "{ended:?}");
    limits.dedup();
    limits
}

/// The guest waits for nothing any more: the merge is let go before it ends.
fn is_let_go(life: &Life, scene: &Scene, id: OperationId, truth: &Truth) {
    assert!(life.run(id, || !is_held(scene)).is_none());
    assert!(scene.sim.has_block_job(scene.vm, &vda()), "it is not over yet");
    let ended = life.run(id, || false).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Succeeded);
    verify_merged(scene, truth).unwrap();
}

/// However fast is copied.
fn guest_waits_no_more(scene: &Scene) {
    let waits = Waits { calm: Duration::ZERO, busy: Duration::ZERO, slowly: 0 };
    scene.sim.guest_waits(scene.vm, &vda(), waits);
}

#[test]
fn a_merge_that_lets_its_guest_wait_is_held_back() {
    let (scene, truth) = set_up_waiting();
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    let limits = limits_of_job(&life, &scene, id);
    // Half of what it copied, half of that, as the guest waits still, and a quarter more now that it does not.
    let [Some(START), Some(half), Some(less), Some(more), ..] = limits[..] else { panic!("{limits:?}") };
    assert!(half > 120_000 && less == half / 2 && more == less + less / 4, "{limits:?}");
    verify_merged(&scene, &truth).unwrap();
}

/// Where nobody can say how long the guest waits, no merge is held back.
#[test]
fn a_merge_whose_guest_cannot_be_asked_is_let_go() {
    let (scene, truth) = set_up_waiting();
    let mishap = Mishap::Error(Complaint::Refused);
    scene.sim.add_fault(Fault { at: Trigger::Each(Method::Served), moment: Moment::Before, mishap });
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    assert_eq!(limits_of_job(&life, &scene, id), [Some(START), None]);
    verify_merged(&scene, &truth).unwrap();
}

/// Before a guest is slowed for a merge, the merge is let go.
#[test]
fn a_merge_that_is_held_back_gives_way_before_its_guest_does() {
    let (scene, truth) = set_up();
    // It waits too long whatever is copied.
    let wait = Duration::from_millis(50);
    scene.sim.guest_waits(scene.vm, &vda(), Waits { calm: wait, busy: wait, slowly: 0 });
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    let (mut was_limited, mut limits_when_slowed) = (false, Vec::new());
    let watch = || {
        let limit = scene.sim.block_job_of(scene.vm, &vda()).and_then(|job| job.bandwidth);
        was_limited |= limit.is_some();
        if scene.sim.limits_of(scene.vm, &vda()) != limits() {
            limits_when_slowed.push(limit);
        }
        false
    };
    let ended = life.run_watching(id, watch).unwrap();
    assert_eq!(ended.cursor.state, OperationState::Succeeded, "{ended:?}");
    // Nor is it held back later: what the guest waits for then is what was done to it.
    limits_when_slowed.dedup();
    assert_eq!((was_limited, limits_when_slowed), (true, vec![None]));
    verify_merged(&scene, &truth).unwrap();
}

/// What a person has given the job by hand it keeps, held back or not.
#[test]
fn a_merge_whose_speed_somebody_has_set_is_let_alone() {
    let (scene, truth) = set_up_waiting();
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    assert!(life.run(id, || is_held(&scene)).is_none());
    let theirs = Some(1 << 30);
    scene.sim.someone_limits_job(scene.vm, &vda(), theirs);
    assert_eq!(limits_of_job(&life, &scene, id), [theirs]);
    verify_merged(&scene, &truth).unwrap();
}

/// No answer came when it was held back, and then it was: that is no limit of somebody else.
#[test]
fn a_merge_that_is_held_back_late_is_let_go() {
    let (scene, truth) = set_up_waiting();
    let call = Call { method: Method::LimitBlockJob, occurrence: 1 };
    let mishap = Mishap::Error(Complaint::TimedOut);
    scene.sim.add_fault(Fault { at: Trigger::Call(call), moment: Moment::After, mishap });
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    assert!(life.run(id, || is_held(&scene)).is_none());
    guest_waits_no_more(&scene);
    is_let_go(&life, &scene, id, &truth);
}

/// The next life knows nothing of it, and begins anew.
#[test]
fn a_merge_that_was_held_back_when_the_daemon_died_is_let_go() {
    let (scene, truth) = set_up_waiting();
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    assert!(life.run(id, || is_held(&scene)).is_none());
    drop(life);
    guest_waits_no_more(&scene);
    let life = Life::start(&scene);
    is_let_go(&life, &scene, id, &truth);
}

#[test]
fn a_job_that_stands_still() {
    let hang = |scene: &Scene| {
        scene.sim.guest_calms_down(scene.vm);
        scene.sim.set_storage_hangs(true);
    };
    ends_stuck(hang, |scene| scene.sim.set_storage_hangs(false), "still", 2);
}

#[test]
fn the_deadline_of_the_request_counts() {
    let (scene, _) = set_up();
    scene.sim.guest_calms_down(scene.vm);
    scene.sim.set_storage_hangs(true);
    let life = Life::start(&scene);
    let request = scene.delete_within(&["one"], 2 * simulated::MERGE_POLICY.deadline);
    let id = life.begin(request, || false).unwrap().unwrap();
    let stuck = life.run(id, || false).unwrap();
    let failure = stuck.failure.unwrap();
    assert_eq!(failure.reason, Reason::MergeNotConverging);
    assert!(failure.message.contains("for 120 s without headway"), "{failure:?}");
}

/// The daemon dies at each call that comes after the first sign of trouble, before it and after it: the next life frees the
/// guest, and the merge comes to its end.
#[test]
fn no_guest_stays_slowed_when_the_daemon_dies() {
    let (before, truth) = set_up();
    let mut deaths: BTreeMap<Method, usize> = BTreeMap::new();
    for method in [Method::IoLimits, Method::SetIoLimits, Method::Pivot, Method::AbortBlockJob] {
        for occurrence in 1.. {
            let mut is_struck = false;
            for moment in [Moment::Before, Moment::After] {
                let scene = before.fork();
                let call = vmsnap::host::sim::Call { method, occurrence };
                scene.sim.add_fault(Fault { at: Trigger::Call(call), moment, mishap: Mishap::Hang });
                let dies = || scene.calls_of(method) >= occurrence;
                let life = Life::start(&scene);
                let id = begin(&life, &scene);
                let ended = life.run(id, dies);
                drop(life);
                if !dies() {
                    continue;
                }
                is_struck = true;
                *deaths.entry(method).or_default() += 1;
                assert!(ended.is_none(), "it hangs");
                scene.sim.reset_script();
                let life = Life::start(&scene);
                life.settle_throttles(&scene);
                let ended = life.run(id, || false).unwrap();
                assert_eq!(ended.cursor.state, OperationState::Succeeded, "{call} {moment:?}: {ended:?}");
                verify_merged(&scene, &truth)
                    .unwrap_or_else(|problem| panic!("{call} {moment:?}: {problem}"));
            }
            if !is_struck {
                break;
            }
        }
    }
    assert!(deaths[&Method::SetIoLimits] >= 4 && deaths[&Method::IoLimits] >= 4, "{deaths:?}");
}

/// The daemon dies while it ends a merge, before it or after it, and could not note it: the next life comes to the same end.
#[test]
fn the_daemon_dies_while_it_ends_a_merge() {
    let (before, truth) = set_up();
    for moment in [Moment::Before, Moment::After] {
        let scene = before.fork();
        let shared = IoLimits { group: Some("gold".to_owned()), ..limits() };
        scene.sim.someone_limits(scene.vm, &vda(), shared);
        let at = Trigger::Each(Method::AbortBlockJob);
        scene.sim.add_fault(Fault { at, moment, mishap: Mishap::Hang });
        let life = Life::start(&scene);
        let id = begin(&life, &scene);
        assert!(life.run(id, || scene.calls_of(Method::AbortBlockJob) > 0).is_none());
        drop(life);
        scene.sim.reset_script();
        let life = Life::start(&scene);
        let stuck = life.run(id, || false).unwrap();
        assert_eq!(stuck.failure.as_ref().unwrap().reason, Reason::MergeNotConverging, "{stuck:?}");
        assert!(!scene.sim.has_block_job(scene.vm, &vda()));
        scene.sim.guest_calms_down(scene.vm);
        scene.sim.someone_limits(scene.vm, &vda(), limits());
        verify_guest(&scene, &truth).unwrap();
        life.retry(id);
        assert_eq!(life.run(id, || false).unwrap().cursor.state, OperationState::Succeeded);
        verify_merged(&scene, &truth).unwrap();
    }
}

/// Without a daemon: `vmsnapd thaw` frees it.
#[test]
fn a_guest_is_freed_without_a_daemon() {
    let (scene, truth) = set_up();
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    let is_slowed = || scene.sim.limits_of(scene.vm, &vda()) != limits();
    assert!(life.run(id, is_slowed).is_none());
    drop(life);
    assert!(is_slowed() && scene.throttles() == 1);
    assert!(scene.free_guests().is_empty());
    verify_guest(&scene, &truth).unwrap();
}

/// What somebody else has set meanwhile is theirs.
#[test]
fn limits_of_somebody_else_are_left_alone() {
    let (scene, _) = set_up();
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    let is_slowed = || scene.sim.limits_of(scene.vm, &vda()) != limits();
    assert!(life.run(id, is_slowed).is_none());
    drop(life);
    let write = Limit { rate: 77_777, ..Limit::default() };
    let theirs = IoLimits { bytes: Directions { write, ..Directions::default() }, ..IoLimits::default() };
    scene.sim.someone_limits(scene.vm, &vda(), theirs.clone());
    assert!(scene.free_guests().is_empty());
    assert_eq!(scene.sim.limits_of(scene.vm, &vda()), theirs);
    assert_eq!(scene.throttles(), 0);
}

/// The hypervisor does not take the limit back when the operation is over in STUCK: it is tried until it does.
#[test]
fn a_limit_that_cannot_be_taken_back_at_once() {
    let (scene, truth) = set_up();
    let life = Life::start(&scene);
    let id = begin(&life, &scene);
    let is_slowed = || scene.sim.limits_of(scene.vm, &vda()) != limits();
    assert!(life.run(id, is_slowed).is_none());
    let mishap = Mishap::Error(Complaint::Refused);
    let at = Trigger::Each(Method::SetIoLimits);
    scene.sim.add_fault(Fault { at, moment: Moment::Before, mishap });
    let stuck = life.run(id, || false).unwrap();
    assert!(matches!(stuck.cursor.state, OperationState::Stuck { .. }), "{stuck:?}");
    assert!(is_slowed());
    scene.sim.reset_script();
    life.settle_throttles(&scene);
    verify_guest(&scene, &truth).unwrap();
}

/// The hypervisor gives no answer, and slows the guest when nobody counts on it any more.
#[test]
fn a_limit_that_comes_late() {
    let (scene, truth) = set_up();
    let at = Trigger::Each(Method::SetIoLimits);
    let mishap = Mishap::Error(Complaint::TimedOut);
    scene.sim.add_fault(Fault { at, moment: Moment::Before, mishap });
    let life = Life::start(&scene);
    // It gives up long before a call without an answer is past.
    let request = scene.delete_within(&["one"], simulated::MERGE_POLICY.patience);
    let id = life.begin(request, || false).unwrap().unwrap();
    let stuck = life.run(id, || false).unwrap();
    assert_eq!(stuck.failure.unwrap().reason, Reason::MergeNotConverging);
    scene.sim.reset_script();
    let noted = scene.noted_limits();
    scene.sim.someone_limits(scene.vm, &vda(), limits().with_writes_at_most(noted[0]));
    life.settle_throttles(&scene);
    verify_guest(&scene, &truth).unwrap();
}

/// A job that could not be ended is followed on, and ended later.
#[test]
fn a_job_that_does_not_end_when_it_is_told_to() {
    for (moment, complaint) in [
        (Moment::Before, Complaint::TimedOut),
        (Moment::Before, Complaint::Refused),
        (Moment::After, Complaint::TimedOut),
    ] {
        // Of two disks each.
        let aborts = if moment == Moment::After { 2 } else { 3 };
        let prepare = |scene: &Scene| {
            scene.sim.guest_calms_down(scene.vm);
            scene.sim.set_storage_hangs(true);
            let at = Trigger::Call(Call { method: Method::AbortBlockJob, occurrence: 1 });
            scene.sim.add_fault(Fault { at, moment, mishap: Mishap::Error(complaint.clone()) });
        };
        ends_stuck(prepare, |scene| scene.sim.set_storage_hangs(false), "still", aborts);
    }
}

/// Memory of which nothing is written any more: the guest, which waits for that as soon as it changes anything, does not wait.
#[test]
fn a_capture_that_stands_still() {
    let scene = Scene::forkable();
    scene.sim.learns_to_capture_behind(scene.vm, 3);
    scene.sim.set_storage_hangs(true);
    let before = scene.active();
    let life = Life::start(&scene);
    let id = life.begin(scene.create("one", Quiesce::Auto, true, &[]), || false).unwrap().unwrap();
    let ended = life.run_watching(id, || {
        // What it has switched it merges back.
        if scene.calls_of(Method::EndBackgroundCapture) > 1 {
            scene.sim.set_storage_hangs(false);
        }
        false
    });
    let ended = ended.unwrap();
    assert_eq!(ended.cursor.state, OperationState::Failed, "{ended:?}");
    let failure = ended.failure.unwrap();
    assert!(failure.causes.iter().any(|cause| cause.contains("nothing was written for 10 s")), "{failure:?}");
    assert_eq!(scene.sim.run_state(scene.vm), Some(RunState::Running));
    assert_eq!(scene.active(), before);
    scene.sim.someone_migrates(scene.vm);
    assert_eq!(scene.sim.violations(), Vec::<String>::new());
}
