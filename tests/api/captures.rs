//! Captures of memory: cancelled, waiting for their turn, going on over a death of the daemon.

use vmsnap::host::sim::{
    AgentBehaviour, Call, Complaint, Fault, Hold, Method, Mishap, Moment, SimHost, Trigger,
};
use vmsnap::model::vm::PauseReason;
use vmsnap::model::{OperationId, RunState, VmId};
use vmsnap::proto::v1;
use vmsnap::proto::v1::watch_operation_response::Update;
use vmsnap::store::{GuestLease, Standstill};

use super::client::{json, run, succeed};
use super::node::{Node, PATIENCE, create};
use super::stuck::cancel;
use super::thaw::boot;

/// The step that captures, of a VM with one disk: its reservation, an overlay and the memory image come first.
const CAPTURE: u32 = 3;

async fn begin(node: &Node, vm: &str) -> v1::Operation {
    let request = v1::CreateSnapshotRequest { memory: true, ..create(vm, "one") };
    node.snapshots().create_snapshot(request).await.unwrap().into_inner().operation.unwrap()
}

/// A node with as many captures under way as there may be, and one more that waits for its turn.
struct Crowd {
    node: Node,
    vm: VmId,
    under_way: [String; 2],
    waits: String,
}

impl Crowd {
    async fn gather() -> Self {
        let sim = SimHost::new();
        let others = ["a", "b"].map(|name| sim.vm(name).disks(1).slow_capture(1_000_000).build());
        let vm = sim.vm("web").disks(1).build();
        let node = Node::start_with(sim, vm);
        let under_way = [begin(&node, "a").await.id, begin(&node, "b").await.id];
        while others.iter().any(|other| node.sim.run_state(*other) == Some(RunState::Running)) {
            tokio::task::yield_now().await;
        }
        let waits = begin(&node, "web").await.id;
        while node.operation(&waits).await.current_step < CAPTURE {}
        // What it looks at first it has looked at by then.
        for _ in 0..50 {
            node.operation(&waits).await;
        }
        assert_eq!(node.sim.run_state(vm), Some(RunState::Running), "it waits for its turn");
        Self { node, vm, under_way, waits }
    }

    async fn make_room(&self) {
        for operation in &self.under_way {
            cancel(&self.node, operation).await.unwrap();
            self.node.end_of(operation).await;
        }
    }
}

/// The overlay is as large as the disk was: the guest would find it cut off.
#[tokio::test]
async fn a_disk_that_is_resized_while_the_capture_waits() {
    let crowd = Crowd::gather().await;
    let (node, disk) = (&crowd.node, "vda".parse().unwrap());
    let size = node.sim.disk_size(crowd.vm, &disk).unwrap();
    node.sim.someone_resizes(crowd.vm, &disk, 2 * size);
    crowd.make_room().await;
    let ended = node.end_of(&crowd.waits).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(ended.error.unwrap().reason(), v1::Reason::ImageChanged);
    assert_eq!(node.sim.disk_size(crowd.vm, &disk), Some(2 * size));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_capture_that_waits_is_cancelled_at_once() {
    let crowd = Crowd::gather().await;
    let node = &crowd.node;
    let switches = || node.calls_of(Method::SwitchDisks);
    let before = switches();
    cancel(node, &crowd.waits).await.unwrap();
    let ended = node.end_of(&crowd.waits).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(ended.error.unwrap().reason(), v1::Reason::Cancelled);
    assert_eq!(switches(), before, "nothing was begun");
    crowd.make_room().await;
}

#[tokio::test]
async fn a_capture_of_memory_is_cancelled() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).slow_capture(1_000_000).build();
    let node = Node::start_with(sim, vm);
    let files = node.images();
    let hold = node.hold(Method::MemoryProgress);
    let request = v1::CreateSnapshotRequest { memory: true, ..create("web", "one") };
    let begun = node.snapshots().create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    crate::node::reached(&hold).await;
    hold.release();
    cancel(&node, &begun.id).await.unwrap();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(ended.error.unwrap().reason(), v1::Reason::Cancelled);
    assert_eq!(node.sim.run_state(vm), Some(vmsnap::model::RunState::Running), "the guest runs on");
    assert_eq!(node.images(), files, "nothing is left over");
}

/// The hypervisor captures on when the daemon dies. Asked once more, it would do it all again after that: a snapshot over
/// disks that lie on the overlays already.
#[tokio::test]
async fn a_capture_goes_on_over_a_death_and_is_not_asked_for_again() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(2).slow_capture(12).build();
    let mut node = Node::start_with(sim, vm);
    let hold = node.hold(Method::MemoryProgress);
    let request = v1::CreateSnapshotRequest { memory: true, ..create("web", "one") };
    let begun = node.snapshots().create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    crate::node::reached(&hold).await;
    node.crash();
    node.sim.reset_script();
    node.restart();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    let of_all = node.sim.calls();
    let switches = of_all.iter().filter(|call| call.method == Method::SwitchDisks).count();
    assert_eq!(switches, 0, "since the restart");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
    assert_eq!(node.sim.run_state(vm), Some(vmsnap::model::RunState::Running));
    assert_eq!(node.snapshot("one").await.kind(), v1::SnapshotKind::VmDisksAndMemory);
}

/// An answer is no proof as long as memory is captured: what ends after a look at the disks has switched them.
#[tokio::test]
async fn a_capture_that_goes_on_although_it_was_refused() {
    for notches in [1, 2, 3, 12] {
        let sim = SimHost::new();
        let vm = sim.vm("web").disks(2).slow_capture(notches).build();
        let node = Node::start_with(sim, vm);
        let mishap = Mishap::Error(Complaint::Refused);
        node.sim.add_fault(Fault { at: Trigger::Each(Method::SwitchDisks), moment: Moment::After, mishap });
        let begun = begin(&node, "web").await;
        let ended = node.end_of(&begun.id).await;
        assert_eq!(ended.state(), v1::OperationState::Succeeded, "{notches}: {ended:?}");
        assert_eq!(node.calls_of(Method::SwitchDisks), 1, "{notches}");
        assert_eq!(node.snapshot("one").await.kind(), v1::SnapshotKind::VmDisksAndMemory);
        assert_eq!(node.sim.violations(), Vec::<String>::new());
    }
}

/// A VM whose memory is written while it runs.
fn capable(notches: u32) -> Node {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(2).captures_behind_its_back(notches).build();
    Node::start_with(sim, vm)
}

#[tokio::test]
async fn memory_behind_the_guests_back() {
    let node = capable(3);
    node.write(1, 10);
    let plan = succeed(&node, "snapshot create web one --memory --dry-run").await;
    assert!(plan.contains("pause the VM") && plan.contains("write the memory while the VM runs"), "{plan}");
    assert_eq!(node.acts(), 0);
    let remembered = node.sim.guest_memory(node.vm).unwrap();
    let shown = json(&node, "snapshot create web one --memory --max-pause 10s").await;
    assert_eq!(shown["snapshot"]["kind"], "SNAPSHOT_KIND_VM_DISKS_AND_MEMORY");
    assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running));
    node.write(1, 20);
    succeed(&node, "snapshot revert web/one --yes").await;
    assert_eq!(node.read(1), [10, 10]);
    assert_eq!(node.sim.guest_memory(node.vm), Some(remembered), "its guest goes on where it was");
    node.sim.someone_migrates(node.vm);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pause_that_cannot_be_bounded() {
    let node = Node::start();
    let refused = run(&node, "snapshot create web one --memory --max-pause 500ms").await;
    assert_eq!(refused.code, 6, "{refused:?}");
    for word in ["MEMORY_NOT_SUPPORTED", "cannot keep apart what a guest changes", "leave out --max-pause"] {
        assert!(refused.stderr.contains(word), "{refused:?}");
    }
    let plan = succeed(&node, "snapshot create web one --memory --dry-run").await;
    assert!(plan.contains("the guest stands still until its memory is written"), "{plan}");
    let usage = run(&node, "snapshot create web one --max-pause 500ms").await;
    assert_eq!(usage.code, 2, "{usage:?}");
}

/// A pause ends at its deadline, whatever holds up what it is for.
#[tokio::test]
async fn a_pause_that_takes_too_long() {
    let node = capable(3);
    let files = node.images();
    let hold = node.hold(Method::SwitchDisks);
    let (created, ()) = tokio::join!(run(&node, "snapshot create web one --memory --max-pause 5s"), async {
        crate::node::reached(&hold).await;
        let runs = async {
            while node.sim.run_state(node.vm) != Some(RunState::Running) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, runs).await.expect("nobody resumes it");
        hold.release();
    });
    assert_eq!(created.code, 1, "{created:?}");
    assert!(created.stderr.contains("the VM was resumed: its pause took too long"), "{created:?}");
    assert_eq!(node.images(), files, "nothing is left over");
    assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// A pause does not tell whose it is: that the guest ran meanwhile shows in what it wrote.
#[tokio::test]
async fn somebody_lets_the_guest_run_within_the_pause() {
    for within in [Method::BeginBackgroundCapture, Method::SwitchDisks] {
        let node = capable(3);
        let files = node.images();
        let hold = node.hold(within);
        let (created, ()) = tokio::join!(run(&node, "snapshot create web one --memory"), async {
            crate::node::reached(&hold).await;
            node.sim.someone_resumes(node.vm);
            node.write(1, 20);
            node.sim.someone_pauses(node.vm, PauseReason::User);
            hold.release();
        });
        assert_eq!(created.code, 1, "{within}: {created:?}");
        assert!(
            created.stderr.contains("somebody has resumed it, and paused it again"),
            "{within}: {created:?}"
        );
        assert_eq!(node.read(1), [20, 20], "{within}");
        assert_eq!(node.images(), files, "{within}: nothing is left over");
        assert_eq!(node.sim.violations(), Vec::<String>::new(), "{within}");
    }
}

/// To ask is to begin it: what a question without an answer has left is looked for.
#[tokio::test]
async fn a_question_that_may_have_left_a_capture() {
    let node = capable(3);
    let ended = async |count: usize| {
        while node.calls_of(Method::EndBackgroundCapture) < count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended(1)).await.expect("each start looks");
    let mishap = Mishap::Error(Complaint::Busy);
    node.sim.add_fault(Fault { at: Trigger::Each(Method::BackgroundBlocker), moment: Moment::After, mishap });
    let refused = run(&node, "snapshot create web one --memory").await;
    assert_ne!(refused.code, 0, "{refused:?}");
    tokio::time::timeout(PATIENCE, ended(2)).await.expect("nobody looks for it");
}

/// The lease of an operation that was given up, whose guest may still be frozen, is what will thaw it.
#[tokio::test]
async fn a_guest_that_may_still_be_frozen_is_not_paused() {
    let node = capable(3);
    let host = node.sim.host();
    host.agent.freeze(node.vm, &[], PATIENCE).await.unwrap();
    node.sim.set_agent(node.vm, AgentBehaviour::Hangs);
    let earlier = GuestLease {
        vm: node.vm,
        operation: OperationId::new(),
        standstill: Standstill::Frozen,
        boot_id: boot(),
        since_ms: 0,
        deadline_ms: 0,
        is_thawed: false,
    };
    node.store().put_lease(earlier.clone()).await.unwrap();
    let refused = run(&node, "snapshot create web one --memory").await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains(&earlier.operation.to_string()), "{refused:?}");
    assert_eq!(node.calls_of(Method::Pause), 0);
    assert_eq!(node.store().leases().await.unwrap(), [earlier]);
    node.sim.set_agent(node.vm, AgentBehaviour::Obeys);
    succeed(&node, "snapshot create web one --memory").await;
    assert!(!node.sim.is_guest_frozen(node.vm));
    assert_eq!(node.store().leases().await.unwrap(), []);
}

#[tokio::test]
async fn a_capture_behind_the_guests_back_is_cancelled() {
    let node = capable(1_000_000);
    let files = node.images();
    let begun = begin(&node, "web").await;
    while node.calls_of(Method::BackgroundCapture) == 0 {
        tokio::task::yield_now().await;
    }
    cancel(&node, &begun.id).await.unwrap();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(ended.error.unwrap().reason(), v1::Reason::Cancelled);
    assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running));
    assert_eq!(node.images(), files, "nothing is left over");
    node.sim.someone_migrates(node.vm);
    assert_eq!(node.sim.violations(), Vec::<String>::new(), "it can be migrated");
}

/// What is taken back may take hours: nobody attends the capture any more, which ends before that. The simulation looks.
#[tokio::test]
async fn a_switch_that_fails_while_memory_is_captured() {
    let fault = |moment, complaint| Some((moment, Mishap::Error(complaint)));
    let cases = [
        fault(Moment::Before, Complaint::Refused),
        fault(Moment::Midway, Complaint::Unreachable),
        fault(Moment::After, Complaint::TimedOut),
        // Cancelled once the disks are switched, and before that is proven.
        None,
    ];
    for case in cases {
        let node = capable(1_000_000);
        let files = node.images();
        let hold = case.is_none().then(|| node.hold(Method::SwitchDisks));
        if let Some((moment, mishap)) = case.clone() {
            let call = Call { method: Method::SwitchDisks, occurrence: 1 };
            node.sim.add_fault(Fault { at: Trigger::Call(call), moment, mishap });
        }
        let begun = begin(&node, "web").await;
        while node.calls_of(Method::SwitchDisks) == 0 {
            tokio::task::yield_now().await;
        }
        // If the switch went well after all, it is captured until somebody ends it.
        let cancelled = cancel(&node, &begun.id).await;
        if let Some(hold) = hold {
            cancelled.unwrap();
            hold.release();
        }
        let ended = node.end_of(&begun.id).await;
        assert_eq!(ended.state(), v1::OperationState::Failed, "{case:?}: {ended:?}");
        assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running), "{case:?}");
        assert_eq!(node.images(), files, "{case:?}: nothing is left over");
        node.sim.someone_migrates(node.vm);
        assert_eq!(node.sim.violations(), Vec::<String>::new(), "{case:?}");
    }
}

/// QEMU may stop a guest once more that was let go on too early for it.
#[tokio::test]
async fn a_guest_that_qemu_stops_while_its_capture_is_broken_off() {
    let node = capable(3);
    while node.calls_of(Method::EndBackgroundCapture) == 0 {
        tokio::task::yield_now().await;
    }
    node.strike(Method::ProveBackgroundCapture, Mishap::Error(Complaint::Refused));
    // The first end comes before it is let go on.
    let second = Call {
        method: Method::EndBackgroundCapture,
        occurrence: node.calls_of(Method::EndBackgroundCapture) + 2,
    };
    let hold = Hold::default();
    let mishap = Mishap::Late(hold.clone());
    node.sim.add_fault(Fault { at: Trigger::Call(second), moment: Moment::After, mishap });
    let (created, ()) = tokio::join!(run(&node, "snapshot create web one --memory"), async {
        crate::node::reached(&hold).await;
        assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running), "it was let go on");
        node.sim.someone_pauses(node.vm, PauseReason::Snapshot);
        hold.release();
    });
    assert_eq!(created.code, 1, "{created:?}");
    assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// What was prepared for a pause goes with whoever has prepared it. Before that all can be done again; a guest is not paused for
/// what has to fail.
#[tokio::test]
async fn a_daemon_that_goes_before_the_pause() {
    let check = async |at, expected| {
        let mut node = capable(3);
        let hold = node.hold(at);
        let begun = begin(&node, "web").await;
        crate::node::reached(&hold).await;
        let request = v1::WatchOperationRequest { operation_id: begun.id.clone(), ..Default::default() };
        let mut watched = node.operations().watch_operation(request).await.unwrap().into_inner();
        let going = node.tell_to_go();
        while !matches!(watched.message().await.unwrap().unwrap().update, Some(Update::Draining(_))) {}
        hold.release();
        going.gone().await;
        node.restart();
        let ended = node.end_of(&begun.id).await;
        assert_eq!(ended.state(), expected, "{at}: {ended:?}");
        assert_eq!(
            node.calls_of(Method::Pause),
            usize::from(expected == v1::OperationState::Succeeded),
            "{at}"
        );
        assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running), "{at}");
        node.sim.someone_migrates(node.vm);
        assert_eq!(node.sim.violations(), Vec::<String>::new(), "{at}");
    };
    check(Method::Sync, v1::OperationState::Succeeded).await;
    check(Method::PrepareBackgroundCapture, v1::OperationState::Failed).await;
}

/// What an earlier life has begun, and nobody waits for, would make the next migration go wrong.
#[tokio::test]
async fn a_capture_that_was_left_is_ended_by_the_next_start() {
    let mut node = capable(3);
    let hold = node.hold(Method::BeginBackgroundCapture);
    let begun = begin(&node, "web").await;
    crate::node::reached(&hold).await;
    node.crash();
    node.sim.reset_script();
    node.restart();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Failed, "whether it stood still is not known: {ended:?}");
    assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running));
    node.sim.someone_migrates(node.vm);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}
