//! Runs of schedules that something is in the way of: room that is not there, a VM that takes long, a person who stops them.

use std::time::Instant;

use jiff::{Timestamp, ToSpan as _};
use vmsnap::host::sim::{Complaint, Fault, Method, Mishap, Moment, Trigger};
use vmsnap::model::event::EventKind;
use vmsnap::model::schedule::{RunState, ScheduleWish, Timing};
use vmsnap::model::{Reason, ScheduleId, ScheduleRun, SnapshotState};
use vmsnap::store::ScheduleEdit;

use super::schedules::{Life, PATIENCE, asked, by_test, hold, last, names, wish};
use crate::simulated::Scene;

/// Due in some two minutes, and so each hour.
fn soon() -> Timing {
    let due = Timestamp::now().checked_add(2.minutes()).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
    Timing { cron: format!("{} * * * *", due.minute()).parse().unwrap(), ..wish(last(9)).timing }
}

fn edit(life: &Life, schedule: ScheduleId, edit: ScheduleEdit) {
    life.runtime.block_on(life.schedules.edit(schedule, edit, None, asked())).unwrap();
}

fn reason(run: &ScheduleRun) -> Option<Reason> {
    run.vms[0].failure.as_ref().map(|failure| failure.reason)
}

/// Else a storage that is full stays so.
#[test]
fn what_a_take_lacks_room_for_is_made_room_for() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let schedule = life.create(wish(last(9)));
    for _ in 0..3 {
        life.run(schedule);
    }
    edit(&life, schedule, ScheduleEdit::Set(Box::new(wish(last(1)))));
    let full = Mishap::Error(Complaint::NoSpace("/images".into()));
    let at = Trigger::Each(Method::CreateOverlay);
    scene.sim.add_fault(Fault { at, moment: Moment::Before, mishap: full });
    let run = life.run(schedule);
    assert_eq!((run.state, reason(&run)), (RunState::Failed, Some(Reason::InsufficientSpace)), "{run:?}");
    assert_eq!(run.pruned().0, 1, "half of three: {run:?}");
    assert_eq!(names(&scene), ["r-2", "r-3"]);
}

/// There is room to merge one, and not to merge all that are to go.
#[test]
fn what_there_is_no_room_to_prune_at_once_goes_by_and_by() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let schedule = life.create(wish(last(9)));
    for run in 0..3 {
        (200 * run..200 * run + 200).for_each(|block| scene.write(block, 1));
        life.run(schedule);
    }
    edit(&life, schedule, ScheduleEdit::Set(Box::new(wish(last(1)))));
    // Of two disks, one snapshot has 25 MiB.
    scene.sim.set_free_space(36 << 20);
    let run = life.run(schedule);
    assert_eq!((run.state, run.pruned().0), (RunState::Succeeded, 1), "{run:?}");
    assert_eq!(names(&scene), ["r-2", "r-3", "r-4"]);
}

/// Whoever sees that a schedule prunes too much can stop what has not gone yet.
#[test]
fn a_run_that_is_stopped_prunes_nothing_more() {
    type Stop = fn(&Life, ScheduleId);
    let stops: [Stop; 3] = [
        |life, schedule| edit(life, schedule, ScheduleEdit::Pause),
        |life, schedule| edit(life, schedule, ScheduleEdit::Set(Box::new(wish(last(9))))),
        |life, schedule| life.runtime.block_on(life.schedules.delete(schedule, None, asked())).unwrap(),
    ];
    for stop in stops {
        let scene = Scene::new();
        let life = Life::start(&scene);
        let schedule = life.create(wish(last(1)));
        life.run(schedule);
        let held = hold(&scene, Method::SwitchDisks);
        life.begin(schedule);
        life.runtime.block_on(held.reached());
        stop(&life, schedule);
        held.release();
        let run = life.end(schedule, usize::MAX).expect("nobody dies");
        assert_eq!((run.state, run.pruned().0), (RunState::Succeeded, 0), "{run:?}");
        assert_eq!(names(&scene), ["r-1", "r-2"]);
    }
}

/// What is taken of a schedule that is gone would be nobody's.
#[test]
fn a_schedule_that_is_deleted_before_the_turn_of_a_vm() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let late = Timing { jitter_ms: 600_000, ..wish(last(1)).timing };
    let schedule = life.create(ScheduleWish { timing: late, ..wish(last(1)) });
    life.begin(schedule);
    life.runtime.block_on(life.schedules.delete(schedule, None, asked())).unwrap();
    let run = life.end(schedule, usize::MAX).expect("nobody dies");
    assert_eq!((run.state, reason(&run)), (RunState::Failed, Some(Reason::Cancelled)), "{run:?}");
    assert_eq!(names(&scene), [] as [&str; 0]);
}

/// An operation that does not end keeps neither its run nor the next one from ending.
#[test]
fn what_takes_longer_than_until_the_next_run_is_left_to_itself() {
    let scene = Scene::new();
    let life = Life::start(&scene);
    let schedule = life.create(ScheduleWish { timing: soon(), ..wish(last(9)) });
    let held = hold(&scene, Method::SwitchDisks);
    for _ in 0..2 {
        let run = life.run(schedule);
        assert_eq!((run.state, reason(&run)), (RunState::Failed, Some(Reason::VmBusy)), "{run:?}");
    }
    held.release();
    let begun = Instant::now();
    while scene.tree().snapshots.iter().any(|snapshot| snapshot.state != SnapshotState::Ready) {
        assert!(begun.elapsed() < PATIENCE, "it does not go on");
        life.pass(1);
    }
    assert_eq!(names(&scene), ["r-1"], "it went on");
}

/// A run that goes on for long hides nothing that is missed.
#[test]
fn what_is_missed_is_told_while_a_run_is_going() {
    let scene = Scene::new();
    let life = Life::since(&scene, "2019-01-01T00:00:00Z".parse().unwrap());
    let schedule = life.create(wish(last(9)));
    let held = hold(&scene, Method::SwitchDisks);
    life.begin(schedule);
    life.runtime.block_on(held.reached());
    // As if it had been going for years.
    let set = scene.store.skip_runs(schedule, "2020-01-01T00:00:00Z".parse().unwrap(), None, by_test());
    life.runtime.block_on(set).unwrap();
    // It looks each minute.
    life.pass(2 * 60 * 10);
    let missed = scene.events().into_iter().filter(|event| event.kind == EventKind::ScheduleMissed);
    let missed: Vec<String> = missed.map(|event| event.message).collect();
    assert!(matches!(&missed[..], [why] if why.contains("still going")), "{missed:?}");
    held.release();
    assert_eq!(life.end(schedule, usize::MAX).expect("nobody dies").state, RunState::Succeeded);
}
