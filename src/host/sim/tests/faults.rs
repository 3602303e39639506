//! Faults strike where they are told to, and nowhere else.

use super::super::super::{HostEvent, Link, StartFrom};
use super::*;
use crate::model::vm::PauseReason;

fn fault(at: Trigger, moment: Moment, mishap: Mishap) -> Fault {
    Fault { at, moment, mishap }
}

fn first_of(method: Method) -> Trigger {
    Trigger::Call(Call { method, occurrence: 1 })
}

/// A switch that is struck: what it comes to, and what the process and the stored definition name afterwards.
async fn check_switch(memory: Option<&str>, moment: Moment, mishap: Mishap, expected: (&str, &str, &str)) {
    let bed = Bed::running();
    let mut switch = switch(&[("vda", bed.overlay("/a", VDA).await)], memory);
    switch.others.push(target("vdb"));
    bed.sim.add_fault(fault(first_of(Method::SwitchDisks), moment, mishap.clone()));
    let result = bed.sim.switch_disks(bed.vm, &switch).await;
    bed.sim.reset_script();
    bed.sim.set_link(Link::Up);
    let view = bed.view().await;
    let active = view.disks[0].active().unwrap().path.to_str().unwrap().to_owned();
    let stored = bed.stored("vda").await.unwrap();
    let found = (kind(&result), active.as_str(), stored.to_str().unwrap());
    assert_eq!(found, expected, "{memory:?} {moment:?} {mishap:?}");
}

#[tokio::test]
async fn before_midway_and_after_the_effect() {
    use Moment::{After, Before, Midway};
    let error = || Mishap::Error(Complaint::Refused);
    let blind = || Mishap::Blind { looks: 0 };
    let down = || Mishap::LinkDown { calls: 1 };
    check_switch(None, Before, error(), ("refused", VDA, VDA)).await;
    check_switch(None, Midway, error(), ("refused", "/a", VDA)).await;
    check_switch(None, After, error(), ("refused", "/a", "/a")).await;
    check_switch(Some("/m"), Midway, error(), ("refused", VDA, VDA)).await;
    check_switch(None, After, Mishap::Error(Complaint::Busy), ("busy", VDA, VDA)).await;
    check_switch(None, Before, blind(), ("timed out", VDA, VDA)).await;
    check_switch(None, After, blind(), ("timed out", "/a", "/a")).await;
    check_switch(None, Before, down(), ("unreachable", VDA, VDA)).await;
    check_switch(None, After, down(), ("unreachable", "/a", "/a")).await;
}

#[tokio::test]
async fn what_is_left_midway() {
    let bed = Bed::running();
    let strike = |method| {
        bed.sim.reset_script();
        bed.sim.add_fault(fault(first_of(method), Moment::Midway, Mishap::Error(Complaint::TimedOut)));
    };
    strike(Method::CreateOverlay);
    bed.sim.create_overlay(&overlay("/half", VDA, BLOCK)).await.unwrap_err();
    assert_eq!(kind(&bed.sim.inspect(Path::new("/half"), Format::Qcow2).await), "bad image");

    let mut capture = switch(&[("vda", bed.overlay("/a", VDA).await)], Some("/m"));
    capture.others.push(target("vdb"));
    strike(Method::SwitchDisks);
    bed.sim.switch_disks(bed.vm, &capture).await.unwrap_err();
    assert_eq!(bed.view().await.run_state, RunState::Paused(PauseReason::Snapshot));
    assert_eq!(bed.sim.memory_image(Path::new("/m")).await.unwrap(), None);

    bed.sim.stop(bed.vm).await.unwrap();
    strike(Method::Start);
    bed.sim.start(bed.vm, &StartFrom::Disks, false).await.unwrap_err();
    assert_eq!(bed.view().await.run_state, RunState::Unsettled);
    assert_eq!(bed.view().await.run_state, RunState::Off);

    bed.sim.write_image(Path::new("/a"), 0, 1).unwrap();
    bed.sim.write_image(Path::new("/a"), 1, 1).unwrap();
    let (progress, _) = tokio::sync::watch::channel((0, 0));
    strike(Method::Commit);
    bed.sim.commit(&[qcow2("/a"), qcow2(VDA)], &progress).await.unwrap_err();
    assert_eq!(bed.image(VDA), [1, 0, 0, 0]);

    bed.sim.someone_starts(bed.vm);
    bed.snapshot(&[("vda", "/b")], None).await;
    bed.start_commit("/b", VDA, true).await.unwrap();
    bed.sim.tick();
    strike(Method::Pivot);
    bed.sim.pivot(bed.vm, &target("vda")).await.unwrap_err();
    assert_eq!(bed.chain("vda").await, paths(&[VDA]));
    assert_eq!(bed.stored("vda").await, Some("/b".into()));
}

#[tokio::test]
async fn blindness_strikes_the_looks_that_follow() {
    let bed = Bed::running();
    bed.sim.add_fault(fault(first_of(Method::Stop), Moment::After, Mishap::Blind { looks: 2 }));
    assert_eq!(kind(&bed.sim.stop(bed.vm).await), "timed out");
    assert_eq!(kind(&bed.sim.observe(bed.vm).await), "timed out");
    assert_eq!(kind(&bed.sim.start(bed.vm, &StartFrom::Disks, false).await), "ok", "no look");
    assert_eq!(kind(&bed.sim.block_jobs(bed.vm).await), "timed out");
    assert_eq!(bed.view().await.run_state, RunState::Running);
}

#[tokio::test]
async fn the_link_breaks_and_comes_back() {
    let bed = Bed::running();
    let (mut link, mut events) = (bed.sim.link(), bed.sim.events());
    bed.sim.add_fault(fault(Trigger::Number(1), Moment::Before, Mishap::LinkDown { calls: 3 }));
    assert_eq!(kind(&bed.sim.vms().await), "unreachable");
    assert!(matches!(*link.borrow_and_update(), Link::Down(_)));
    assert_eq!(kind(&bed.sim.freeze(bed.vm, &[], SOON).await), "unreachable");
    assert_eq!(kind(&bed.sim.free_space(Path::new("/")).await), "ok", "files need no link");
    bed.sim.someone_pauses(bed.vm, PauseReason::User);
    assert!(events.try_recv().is_err(), "nobody hears of it");
    assert_eq!(kind(&bed.sim.vms().await), "unreachable");
    assert_eq!(*link.borrow_and_update(), Link::Up);
    assert_eq!(kind(&bed.sim.vms().await), "ok");
    bed.sim.someone_resumes(bed.vm);
    assert_eq!(events.try_recv(), Ok(HostEvent::VmChanged(bed.vm)));
}

#[tokio::test]
async fn a_hang_is_for_ever_and_the_effect_is_there_or_not() {
    let check = async |moment, expected| {
        let bed = Bed::running();
        bed.sim.add_fault(fault(first_of(Method::Stop), moment, Mishap::Hang));
        let (sim, vm) = (bed.sim.clone(), bed.vm);
        let stop = tokio::spawn(async move { sim.stop(vm).await });
        while bed.sim.calls().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!stop.is_finished());
        stop.abort();
        assert_eq!(bed.view().await.run_state, expected);
    };
    check(Moment::Before, RunState::Running).await;
    check(Moment::Midway, RunState::Running).await;
    check(Moment::After, RunState::Off).await;
}

/// Something happens to the VM at a look: before it, so that it shows, or after it.
#[tokio::test]
async fn the_world_changes_under_us() {
    let check = async |build: fn(VmBuilder) -> VmBuilder, mishap: fn(VmId) -> Mishap, expected: &str| {
        for (moment, shows) in [(Moment::Before, true), (Moment::After, false)] {
            let bed = Bed::new(build);
            let before = format!("{:?}", bed.sim.run_state(bed.vm).unwrap());
            bed.sim.add_fault(fault(first_of(Method::Observe), moment, mishap(bed.vm)));
            let seen = format!("{:?}", bed.view().await.run_state);
            assert_eq!(seen, if shows { expected } else { &before });
            assert_eq!(format!("{:?}", bed.view().await.run_state), expected);
        }
    };
    check(|vm| vm, Mishap::VmStops, "Off").await;
    check(VmBuilder::off, Mishap::VmStarts, "Running").await;
    check(|vm| vm, |vm| Mishap::VmPauses(vm, PauseReason::IoError), "Paused(IoError)").await;
    check(VmBuilder::paused, Mishap::VmResumes, "Running").await;
    let bed = Bed::running();
    let hangs = Mishap::Agent(bed.vm, AgentBehaviour::Hangs);
    bed.sim.add_fault(fault(Trigger::Each(Method::Freeze), Moment::Before, hangs));
    assert_eq!(kind(&bed.sim.freeze(bed.vm, &[], SOON).await), "timed out");
    bed.sim.add_fault(fault(Trigger::Each(Method::FreeSpace), Moment::Before, Mishap::NoSpace));
    assert_eq!(bed.sim.free_space(Path::new("/")).await.unwrap().free, 0);
}

/// The same run twice: the same calls, the same files, the same contents.
#[tokio::test]
async fn nothing_is_left_to_chance() {
    let run = async || {
        let bed = Bed::running();
        bed.write("vda", 0, 1);
        bed.snapshot(&[("vda", "/a"), ("vdb", "/b")], Some("/m")).await;
        bed.start_commit("/a", VDA, true).await.unwrap();
        bed.view().await;
        (bed.sim.calls(), bed.sim.files(), bed.image(VDA), bed.vm, bed.sim.guest_memory(bed.vm))
    };
    let (first, second) = (run().await, run().await);
    assert_eq!(first, second);
    let names: Vec<String> = first.0.iter().map(ToString::to_string).collect();
    let expected = [
        "observe#1",
        "inspect#1",
        "create_overlay#1",
        "inspect#2",
        "create_overlay#2",
        "switch_disks#1",
        "start_commit#1",
        "observe#2",
    ];
    assert_eq!(names, expected);
}
