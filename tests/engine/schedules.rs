//! Runs of schedules on a simulated node: what one takes and lets go, and what comes of one whose daemon dies at any moment.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::runtime::{Builder, Runtime};
use vmsnap::host::Link;
use vmsnap::host::sim::{self, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::event::EventKind;
use vmsnap::model::operation::Failure;
use vmsnap::model::schedule::{
    CatchUp, Retention, RunStage, RunState, RunVm, ScheduleLimits, ScheduleWish, SnapshotTemplate, Timing,
    VmSelector,
};
use vmsnap::model::snapshot::Owner;
use vmsnap::model::{
    Cause, Edit, Hold, Quiesce, Reason, ScheduleId, ScheduleRun, ScheduleRunId, Snapshot, SnapshotState,
};
use vmsnap::ops::{Asked, Engine};
use vmsnap::schedule::{Preview, Schedules};
use vmsnap::store::KeptSchedule;

use crate::simulated::{Scene, pass_time, settings, submit};

/// What only a broken engine does not do in time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One life of the daemon. Dropping it is a crash.
pub struct Life {
    pub runtime: Runtime,
    pub engine: Engine,
    pub schedules: Schedules,
}

impl Life {
    pub fn start(scene: &Scene) -> Self {
        Self::since(scene, Timestamp::now())
    }

    /// One that began then.
    pub fn since(scene: &Scene, begun_at: Timestamp) -> Self {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (engine, schedules) = runtime.block_on(async {
            let settings = settings(scene.memory_compression);
            let engine = Engine::new(scene.sim.host(), scene.store.clone(), settings).unwrap();
            engine.recover().await.unwrap();
            let schedules = Schedules::new(engine.clone(), begun_at);
            schedules.start();
            // The clock stands still while anything has to be done. It does not know of the catalog's thread, and would go on to
            // whatever is waited for next, be that an hour.
            tokio::spawn(async {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            (engine, schedules)
        });
        Self { runtime, engine, schedules }
    }

    pub fn create(&self, wish: ScheduleWish) -> ScheduleId {
        let schedules = self.schedules.clone();
        let kept: KeptSchedule =
            self.runtime.block_on(async { schedules.create(wish, false, asked()).await }).unwrap();
        kept.schedule.id
    }

    pub fn begin(&self, schedule: ScheduleId) -> ScheduleRunId {
        let schedules = self.schedules.clone();
        self.runtime.block_on(async { schedules.run_now(schedule, asked()).await }).unwrap().id
    }

    /// Goes on until the newest run has ended; None if the daemon dies before, after so many steps.
    pub fn end(&self, schedule: ScheduleId, mut steps: usize) -> Option<ScheduleRun> {
        let schedules = self.schedules.clone();
        self.runtime.block_on(async move {
            let begun = Instant::now();
            while begun.elapsed() < PATIENCE {
                let (runs, _) = schedules.runs(schedule, None, 1).await.unwrap();
                let run = runs.into_iter().next().expect("one was begun");
                if run.state != RunState::Running {
                    return Some(run);
                }
                steps = steps.checked_sub(1)?;
                pass_time().await;
            }
            panic!("the run does not end");
        })
    }

    /// Somebody holds the oldest snapshot.
    fn hold_oldest(&self, scene: &Scene) {
        let oldest = scene.tree().snapshots[0].id;
        let hold = Hold {
            name: "audit".parse().unwrap(),
            reason: String::new(),
            created_at: Timestamp::now(),
            created_by: String::new(),
        };
        let edited = scene.store.edit(oldest, Edit::AddHold(hold), None, by_test());
        self.runtime.block_on(edited).unwrap();
    }

    /// So many steps.
    pub fn pass(&self, steps: usize) {
        self.runtime.block_on(async {
            for _ in 0..steps {
                pass_time().await;
            }
        });
    }

    /// Goes on until the only VM of the newest run is as wanted.
    pub fn until(&self, schedule: ScheduleId, wanted: impl Fn(&RunVm) -> bool) -> RunVm {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let (runs, _) = self.runtime.block_on(self.schedules.runs(schedule, None, 1)).unwrap();
            let vm = &runs.first().expect("one was begun").vms[0];
            if wanted(vm) {
                return vm.clone();
            }
            self.pass(1);
        }
        panic!("its VM does not come so far");
    }

    fn preview(&self, wish: &ScheduleWish, of: Option<ScheduleId>) -> Preview {
        self.runtime.block_on(self.schedules.preview(wish, of, 1)).unwrap()
    }

    pub fn run(&self, schedule: ScheduleId) -> ScheduleRun {
        self.begin(schedule);
        self.end(schedule, usize::MAX).expect("nobody dies")
    }
}

/// The next call of a method has its effect and is held.
pub fn hold(scene: &Scene, method: Method) -> sim::Hold {
    let hold = sim::Hold::default();
    let at = Trigger::Call(scene.sim.next_call(method));
    scene.sim.add_fault(Fault { at, moment: Moment::After, mishap: Mishap::Late(hold.clone()) });
    hold
}

pub fn by_test() -> Cause {
    Cause { operation: None, actor: "test".to_owned(), at: Timestamp::now() }
}

pub fn asked() -> Asked {
    Asked { by: "test".to_owned(), key: None, validate_only: false }
}

/// By hand only: its time comes once in a leap year.
pub fn wish(retention: Retention) -> ScheduleWish {
    ScheduleWish {
        name: "rarely".parse().unwrap(),
        description: String::new(),
        selector: VmSelector { all: true, ..VmSelector::default() },
        template: SnapshotTemplate {
            name: "r-{count}".parse().unwrap(),
            description: String::new(),
            disks: [].into(),
            memory: false,
            quiesce: Quiesce::Auto,
            mount_points: Vec::new(),
            owner: Owner::default(),
            properties: [].into(),
        },
        timing: Timing {
            cron: "0 3 29 2 *".parse().unwrap(),
            zone: "UTC".parse().unwrap(),
            jitter_ms: 0,
            blackouts: Vec::new(),
            catch_up: CatchUp::Once,
        },
        retention,
        limits: ScheduleLimits::default(),
    }
}

pub fn last(last: u32) -> Retention {
    Retention { last, ..Retention::default() }
}

/// The names of all snapshots, in order; all of them READY.
pub fn names(scene: &Scene) -> Vec<String> {
    let tree = scene.tree();
    let not_ready: Vec<&Snapshot> =
        tree.snapshots.iter().filter(|snapshot| snapshot.state != SnapshotState::Ready).collect();
    assert!(not_ready.is_empty(), "{not_ready:?}");
    tree.snapshots.iter().map(|snapshot| snapshot.name.to_string()).collect()
}

#[test]
fn a_run_takes_and_lets_go() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let schedule = life.create(wish(last(2)));
    for count in 1..=3 {
        let run = life.run(schedule);
        assert_eq!((run.state, run.count), (RunState::Succeeded, count), "{run:?}");
    }
    assert_eq!(names(&scene), ["r-2", "r-3"]);
    // One that is held is nobody's to prune.
    life.hold_oldest(&scene);
    let pruned: Vec<u32> = (0..3).map(|_| life.run(schedule).pruned().0).collect();
    assert_eq!(pruned, [0, 1, 1]);
    assert_eq!(names(&scene), ["r-2", "r-5", "r-6"]);
}

/// The daemon dies after each step of a run: the next life ends it, as if nothing had been. Gives how often it took the VM again.
fn check_deaths(wish: &ScheduleWish) -> usize {
    let (mut died, mut again) = (0, 0);
    for steps in 0.. {
        let scene = Scene::new();
        scene.sim.learns_to_capture_behind(scene.vm, 6);
        let first = Life::start(&scene);
        let schedule = first.create(wish.clone());
        first.run(schedule);
        first.begin(schedule);
        let ended = first.end(schedule, steps);
        drop(first);
        let has_died = ended.is_none();
        died += usize::from(has_died);
        let run = ended.or_else(|| Life::start(&scene).end(schedule, usize::MAX)).expect("it ends");
        assert_eq!(run.state, RunState::Succeeded, "after {steps} steps: {run:?}");
        assert_eq!((run.count, run.pruned().0), (2, 1), "after {steps} steps: {run:?}");
        assert_eq!(names(&scene), ["r-2"], "after {steps} steps");
        again += usize::from(run.vms[0].is_second_take);
        if !has_died {
            break;
        }
    }
    assert!(died >= 5, "it died {died} times only");
    again
}

#[test]
fn a_run_whose_daemon_dies_at_any_moment_is_gone_on_with() {
    assert_eq!(check_deaths(&wish(last(1))), 0);
}

/// A take that the death of the daemon in the freeze has undone is taken again.
#[test]
fn a_take_whose_daemon_dies_in_the_freeze_is_taken_again() {
    let mut wish = wish(last(1));
    wish.template.quiesce = Quiesce::Required;
    assert!(check_deaths(&wish) > 0, "it never died in the freeze");
}

/// A capture of memory does not outlive the daemon either.
#[test]
fn a_take_whose_daemon_dies_in_the_capture_is_taken_again() {
    let mut wish = wish(last(1));
    wish.template.memory = true;
    assert!(check_deaths(&wish) > 0, "it never died in the capture");
}

/// What was due while a run was going is told with its end, whenever the daemon dies: no run is made up for it.
#[test]
fn what_was_due_while_a_run_was_going_is_not_made_up_for() {
    let long_ago: Timestamp = "2019-01-01T00:00:00Z".parse().unwrap();
    for steps in 0.. {
        let scene = Scene::new();
        let first = Life::since(&scene, long_ago);
        let schedule = first.create(wish(last(2)));
        first.begin(schedule);
        // As if it had been going for years.
        let set = scene.store.skip_runs(schedule, long_ago, None, by_test());
        first.runtime.block_on(set).unwrap();
        let ended = first.end(schedule, steps);
        drop(first);
        // Nobody was away for long.
        let second = Life::since(&scene, long_ago);
        second.end(schedule, usize::MAX).expect("nobody dies");
        // It looks what is due.
        second.pass(50);
        let (runs, count) = second.runtime.block_on(second.schedules.runs(schedule, None, 9)).unwrap();
        assert_eq!(count, 1, "after {steps} steps: {runs:?}");
        let kept = second.runtime.block_on(second.schedules.find(&schedule.to_string())).unwrap();
        assert!(kept.seen_until > long_ago, "after {steps} steps: {kept:?}");
        let missed = scene.events().into_iter().filter(|event| event.kind == EventKind::ScheduleMissed);
        let missed: Vec<String> = missed.map(|event| event.message).collect();
        assert_eq!(missed.len(), 1, "after {steps} steps: {missed:?}");
        if ended.is_some() {
            break;
        }
    }
}

/// A run was cut off, and nobody was there for years: what it has begun is ended, and what was missed since is made up for.
#[test]
fn a_downtime_in_a_run_is_made_up_for() {
    let long_ago: Timestamp = "2019-01-01T00:00:00Z".parse().unwrap();
    let scene = Scene::new();
    let first = Life::start(&scene);
    let schedule = first.create(wish(last(2)));
    first.begin(schedule);
    let set = scene.store.skip_runs(schedule, long_ago, None, by_test());
    first.runtime.block_on(set).unwrap();
    assert_eq!(first.end(schedule, 5), None, "it is not so fast");
    drop(first);
    let second = Life::start(&scene);
    let begun = Instant::now();
    let runs = loop {
        assert!(begun.elapsed() < PATIENCE, "nothing is made up for");
        let (runs, _) = second.runtime.block_on(second.schedules.runs(schedule, None, 9)).unwrap();
        if runs.len() > 1 && runs.iter().all(|run| run.state != RunState::Running) {
            break runs;
        }
        second.pass(1);
    };
    let late: Vec<bool> = runs.iter().map(|run| run.is_late).collect();
    assert_eq!(late, [true, false], "{runs:?}");
    let missed = scene.events().into_iter().filter(|event| event.kind == EventKind::ScheduleMissed);
    let missed: Vec<String> = missed.map(|event| event.message).collect();
    assert!(matches!(&missed[..], [why] if why.contains("nobody was there")), "{missed:?}");
}

/// A VM that is named has to be there.
#[test]
fn a_vm_that_is_not_there_is_told() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let named = |names: &[&str]| VmSelector {
        vms: names.iter().map(|name| (*name).to_owned()).collect(),
        ..VmSelector::default()
    };
    let schedule = life.create(ScheduleWish { selector: named(&["web", "gone"]), ..wish(last(2)) });
    let run = life.run(schedule);
    assert_eq!((run.state, run.vms.len(), run.missing.len()), (RunState::Partly, 1, 1), "{run:?}");
    let other = ScheduleWish { name: "other".parse().unwrap(), selector: named(&["gone"]), ..wish(last(2)) };
    let schedule = life.create(other);
    assert_eq!(life.run(schedule).state, RunState::Failed);
    let told = scene.events().into_iter().filter(|event| event.message.contains("there is no VM gone"));
    assert_eq!(told.count(), 4, "as each run begins, and as it ends");
}

#[test]
fn what_a_limit_forbids_is_skipped_and_told() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let limits = ScheduleLimits { snapshots: 2, ..ScheduleLimits::default() };
    let schedule = life.create(ScheduleWish { limits, ..wish(last(5)) });
    let ends: Vec<RunState> = (0..3).map(|_| life.run(schedule).state).collect();
    assert_eq!(ends, [RunState::Succeeded, RunState::Succeeded, RunState::Failed]);
    let (runs, _) = life.runtime.block_on(life.schedules.runs(schedule, None, 1)).unwrap();
    let failure = runs[0].vms[0].failure.as_ref().map(|failure| failure.reason);
    assert_eq!(failure, Some(Reason::ScheduleLimit));
    let of_vm = scene
        .events()
        .into_iter()
        .filter(|event| event.attributes.get("change") == Some(&"failed".to_owned()));
    let of_vm: Vec<_> = of_vm.map(|event| (event.vm, event.failure.map(|failure| failure.reason))).collect();
    assert_eq!(of_vm, [(Some(scene.vm), Some(Reason::ScheduleLimit))]);
    assert_eq!(names(&scene), ["r-1", "r-2"]);
}

/// So many runs go well with these limits, while each leaves ten blocks behind that the next one finds in the images; then one
/// is skipped, for this reason.
fn check_limit(limits: ScheduleLimits, taken: usize, free: impl Fn(usize) -> u64, why: &str) {
    let scene = Scene::new();
    // Nobody's snapshot: the VM has it with and without them.
    (0..40).for_each(|block| scene.write(block, 1));
    let life = Life::start(&scene);
    let schedule = life.create(ScheduleWish { limits, ..wish(last(9)) });
    for run in 0..taken {
        scene.sim.set_free_space(free(run));
        let run = life.run(schedule);
        assert_eq!(run.state, RunState::Succeeded, "{limits:?}: {run:?}");
        (0..10).for_each(|block| scene.write(block, 1 + run.count));
    }
    scene.sim.set_free_space(free(taken));
    let seen = life.preview(&wish(last(9)), None);
    assert_eq!(seen.skipped, [], "without limits there are none");
    let seen = life.preview(&ScheduleWish { limits, ..wish(last(9)) }, Some(schedule));
    let skipped: Vec<Failure> = seen.skipped.into_iter().map(|(_, failure)| failure).collect();
    let run = life.run(schedule);
    let failure = run.vms[0].failure.clone().expect("it is skipped");
    assert_eq!((run.state, failure.reason), (RunState::Failed, Reason::ScheduleLimit), "{limits:?}");
    assert!(failure.message.contains(why), "{failure:?}");
    assert_eq!(skipped, [failure]);
    assert_eq!(names(&scene).len(), taken);
}

#[test]
fn each_limit() {
    const GIB: u64 = 1 << 30;
    let none = ScheduleLimits::default;
    let much = |_| 9 * GIB;
    check_limit(ScheduleLimits { snapshots: 2, ..none() }, 2, much, "3 snapshots of the VM");
    // Each of two layers has a header of three blocks.
    let blocks = |count: u64| count * (64 << 10);
    let most = ScheduleLimits { bytes: blocks(4 * 13), ..none() };
    check_limit(most, 3, much, &format!("take {} bytes", blocks(6 * 13)));
    check_limit(ScheduleLimits { chain_depth: 3, ..none() }, 2, much, "4 layers");
    let falling = |run| if run < 2 { GIB } else { GIB - 1 };
    check_limit(ScheduleLimits { free_bytes: GIB, ..none() }, 2, falling, "must stay free");
}

/// A run that a limit forbids to take prunes without a new snapshot, and that is what its preview says.
#[test]
fn a_preview_asks_the_limits() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let limits = ScheduleLimits { free_bytes: 1 << 30, ..ScheduleLimits::default() };
    let selector = VmSelector { vms: ["web".to_owned(), "gone".to_owned()].into(), ..VmSelector::default() };
    let wish = ScheduleWish { limits, selector, ..wish(last(2)) };
    let schedule = life.create(wish.clone());
    let check = |free: u64, skipped: usize, doomed: usize| {
        scene.sim.set_free_space(free);
        let (seen, before) = (life.preview(&wish, Some(schedule)), names(&scene).len());
        assert_eq!((seen.skipped.len(), seen.of_vms[0].doomed().0.len()), (skipped, doomed), "{seen:?}");
        let run = life.run(schedule);
        assert_eq!(seen.missing, run.missing);
        let (pruned, bytes) = run.pruned();
        assert_eq!((pruned as usize, bytes), (doomed, seen.of_vms[0].doomed().1), "{run:?}");
        assert_eq!(names(&scene).len(), before + 1 - skipped - doomed);
    };
    check(2 << 30, 0, 0);
    check(2 << 30, 0, 0);
    check(2 << 30, 0, 1);
    check(1 << 29, 1, 0);
    check(2 << 30, 0, 1);
    scene.sim.set_free_space(1 << 29);
    assert_eq!(life.preview(&wish, None).skipped.len(), 1, "of one that is not there yet, too");
}

#[test]
fn a_pruning_that_would_leave_too_few_is_refused_and_told() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let schedule = life.create(wish(Retention { minimum: 3, ..last(2) }));
    let ends: Vec<RunState> = (0..3).map(|_| life.run(schedule).state).collect();
    assert_eq!(ends, [RunState::Succeeded, RunState::Succeeded, RunState::Partly]);
    assert_eq!(names(&scene), ["r-1", "r-2", "r-3"]);
}

/// Each write of how a run stands fails for a while: it is taken up where it was written last.
#[test]
fn a_run_that_cannot_be_written_is_taken_up_again() {
    let scene = Scene::forkable();
    let life = Life::start(&scene);
    let schedule = life.create(wish(last(1)));
    life.run(schedule);
    life.begin(schedule);
    // How it stands with a VM, and that it has ended, are rows of their own.
    for table in ["schedule_run_vm", "schedule_run"] {
        scene.meddle_with_catalog(&format!(
            "CREATE TRIGGER full BEFORE UPDATE ON {table} BEGIN SELECT RAISE(ABORT, 'no room'); END"
        ));
        assert!(life.end(schedule, 200).is_none(), "its {table} cannot be written");
        scene.meddle_with_catalog("DROP TRIGGER full");
    }
    let run = life.end(schedule, usize::MAX).expect("nobody dies");
    assert_eq!((run.state, run.pruned().0), (RunState::Succeeded, 1), "{run:?}");
    assert_eq!(names(&scene), ["r-2"]);
}

/// What is in the way passes by itself: a hypervisor that is away.
#[test]
fn a_hypervisor_that_is_away_is_waited_for() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let schedule = life.create(wish(last(1)));
    life.begin(schedule);
    scene.sim.set_link(Link::Down("libvirtd is away".to_owned()));
    assert!(life.end(schedule, 100).is_none(), "it waits");
    assert_eq!(names(&scene), [] as [&str; 0]);
    scene.sim.set_link(Link::Up);
    let run = life.end(schedule, usize::MAX).expect("nobody dies");
    assert_eq!(run.state, RunState::Succeeded, "{run:?}");
    assert_eq!(names(&scene), ["r-1"]);
}

/// What is in the way passes by itself: another operation that the VM is busy with when its turn comes.
#[test]
fn a_vm_that_is_busy_is_waited_for() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let schedule = life.create(wish(last(1)));
    let held = hold(&scene, Method::SwitchDisks);
    let by_hand = scene.create("by-hand", Quiesce::Off, false, &[]);
    life.runtime.block_on(submit(&life.engine, scene.vm, by_hand, asked())).unwrap();
    life.runtime.block_on(held.reached());
    life.begin(schedule);
    assert!(life.end(schedule, 100).is_none(), "it waits");
    let vm = life.until(schedule, |_| true);
    assert_eq!((vm.stage, vm.failure), (RunStage::Waiting, None));
    held.release();
    let run = life.end(schedule, usize::MAX).expect("nobody dies");
    assert_eq!(run.state, RunState::Succeeded, "{run:?}");
    assert_eq!(names(&scene), ["by-hand", "r-1"]);
}

/// What was to go is decided anew after each wait: it may be held by then.
#[test]
fn what_is_held_while_the_pruning_waits_stays() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let schedule = life.create(wish(last(1)));
    life.run(schedule);
    let oldest = scene.tree().snapshots[0].id;
    life.begin(schedule);
    life.until(schedule, |vm| vm.stage == RunStage::Pruning);
    scene.sim.set_link(Link::Down("libvirtd is away".to_owned()));
    assert!(life.end(schedule, 100).is_none(), "it waits");
    assert_eq!(life.until(schedule, |_| true).doomed, [oldest], "it was to go");
    life.hold_oldest(&scene);
    scene.sim.set_link(Link::Up);
    let run = life.end(schedule, usize::MAX).expect("nobody dies");
    assert_eq!((run.state, run.pruned().0), (RunState::Succeeded, 0), "{run:?}");
    assert_eq!(names(&scene), ["r-1", "r-2"]);
}

/// One that cannot be read holds up no other.
#[test]
fn a_schedule_that_cannot_be_read_holds_up_no_other() {
    let scene = Scene::forkable();
    let life = Life::start(&scene);
    let schedule = life.create(wish(last(1)));
    life.create(ScheduleWish { name: "broken".parse().unwrap(), ..wish(last(1)) });
    scene.meddle_with_catalog("UPDATE schedule SET body = '{}' WHERE name = 'broken'");
    let all = life.runtime.block_on(life.schedules.all()).unwrap();
    assert_eq!(all.iter().map(|kept| kept.schedule.id).collect::<Vec<_>>(), [schedule]);
    assert_eq!(life.run(schedule).state, RunState::Succeeded);
}
