//! A VM that somebody starts, saves or resizes in the midst of an operation: what its guest writes then is kept, and what
//! was planned for a VM that was off is not done to one that runs.

use std::path::PathBuf;

use uuid::Uuid;
use vmsnap::host::sim::{BLOCK, Call, Complaint, Fault, Method, Mishap, Moment, SimHost, Trigger};
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;
use vmsnap::model::{RunState, VmId};
use vmsnap::proto::v1;

use super::client::succeed;
use super::node::{Node, delete, revert, vda};
use super::stuck::resolve;

/// A node with a VM of one disk, and snapshots `one` and `two` of it. Block 1 reads 10, 20, and 30 now.
async fn bed() -> Node {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(1).build();
    let node = Node::start_with(sim, vm);
    for (value, name) in [(10, "one"), (20, "two")] {
        write(&node, value);
        node.take(name).await;
    }
    write(&node, 30);
    node
}

fn write(node: &Node, value: u64) {
    node.sim.guest_write(node.vm, &vda(), 1, value).unwrap();
}

/// What the guest would find after a cold start.
fn boots(node: &Node) -> Option<u64> {
    node.sim.boot_contents(node.vm)[&vda()].get(&1).copied()
}

/// Something happens at the n-th of the next calls of a method.
fn at(node: &Node, (method, n): (Method, usize), moment: Moment, mishap: Mishap) {
    let occurrence = node.calls_of(method) + n;
    node.sim.add_fault(Fault { at: Trigger::Call(Call { method, occurrence }), moment, mishap });
}

async fn begin_deletion(node: &Node, name: &str) -> String {
    node.snapshots().delete_snapshot(delete(name)).await.unwrap().into_inner().operation.unwrap().id
}

async fn begin_revert(node: &Node, name: &str) -> String {
    node.snapshots().revert_snapshot(revert(name)).await.unwrap().into_inner().operation.unwrap().id
}

async fn ends(node: &Node, operation: &str, state: v1::OperationState) -> v1::Operation {
    let ended = node.end_of(operation).await;
    assert_eq!(ended.state(), state, "{ended:?}");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
    ended
}

/// The VM is off and its layer is merged down; somebody starts it at that moment, and it ends before it is merged again.
async fn is_merged_under(method: Method, moment: Moment) {
    let node = bed().await;
    node.sim.someone_stops(node.vm);
    at(&node, (method, 1), moment, Mishap::VmStarts(node.vm));
    let hold = node.hold(Method::StartCommit);
    let operation = begin_deletion(&node, "two").await;
    crate::node::reached(&hold).await;
    write(&node, 99);
    node.sim.someone_stops(node.vm);
    hold.release();
    ends(&node, &operation, v1::OperationState::Succeeded).await;
    assert_eq!(boots(&node), Some(99), "what it wrote last");
}

#[tokio::test]
async fn a_vm_is_started_as_its_layer_has_been_merged() {
    is_merged_under(Method::Commit, Moment::After).await;
}

#[tokio::test]
async fn a_vm_is_started_as_its_definition_is_changed() {
    is_merged_under(Method::PointDisks, Moment::Before).await;
}

/// A saved state goes on with the images of then.
#[tokio::test]
async fn a_vm_is_saved_before_its_layers_are_merged() {
    let node = bed().await;
    // The manifests are written anew before the layers are touched.
    let hold = node.hold(Method::WriteFile);
    let operation = begin_deletion(&node, "two").await;
    crate::node::reached(&hold).await;
    node.sim.someone_saves(node.vm);
    hold.release();
    let failed = ends(&node, &operation, v1::OperationState::Failed).await;
    assert!(failed.error.unwrap().cause.contains("saved state"));
    assert_eq!(node.names().await, ["one", "two"]);
    node.sim.someone_starts(node.vm);
    assert_eq!(node.sim.guest_read(node.vm, &vda(), 1), Ok(30));
    succeed(&node, "snapshot delete web/two --yes").await;
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_vm_is_saved_while_its_layers_are_merged() {
    let node = bed().await;
    let hold = node.hold(Method::StartCommit);
    let operation = begin_deletion(&node, "two").await;
    crate::node::reached(&hold).await;
    node.sim.someone_saves(node.vm);
    hold.release();
    ends(&node, &operation, v1::OperationState::Stuck).await;
    node.sim.someone_starts(node.vm);
    assert_eq!(node.sim.guest_read(node.vm, &vda(), 1), Ok(30));
    resolve(&node, &operation, v1::Resolution::Retry).await.unwrap();
    ends(&node, &operation, v1::OperationState::Succeeded).await;
}

/// It went to sleep, or takes its time to end: then no jobs of it are to be seen.
#[tokio::test]
async fn a_vm_is_between_two_states_while_its_layers_are_merged() {
    let node = bed().await;
    let hold = node.hold(Method::StartCommit);
    let operation = begin_deletion(&node, "two").await;
    crate::node::reached(&hold).await;
    node.sim.becomes_unsettled(node.vm);
    hold.release();
    let looks = || node.calls_of(Method::Observe);
    let before = looks();
    while looks() < before + 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.operation(&operation).await.state(), v1::OperationState::Running);
    node.sim.someone_resumes(node.vm);
    ends(&node, &operation, v1::OperationState::Succeeded).await;
    assert_eq!(node.sim.guest_read(node.vm, &vda(), 1), Ok(30));
}

/// Its former layer is what it runs on.
#[tokio::test]
async fn a_vm_is_started_before_a_revert_has_changed_its_definition() {
    let node = bed().await;
    at(&node, (Method::PointDisks, 1), Moment::Before, Mishap::Error(Complaint::TimedOut));
    at(&node, (Method::PointDisks, 1), Moment::After, Mishap::VmStarts(node.vm));
    let operation = begin_revert(&node, "one").await;
    ends(&node, &operation, v1::OperationState::Failed).await;
    assert_eq!(node.sim.guest_read(node.vm, &vda(), 1), Ok(30));
    assert_eq!(boots(&node), Some(30));
}

#[tokio::test]
async fn a_vm_is_started_as_a_revert_changes_its_definition() {
    let node = bed().await;
    node.sim.someone_stops(node.vm);
    at(&node, (Method::PointDisks, 1), Moment::Before, Mishap::VmStarts(node.vm));
    let operation = begin_revert(&node, "one").await;
    ends(&node, &operation, v1::OperationState::Failed).await;
    assert_eq!(node.sim.guest_read(node.vm, &vda(), 1), Ok(30));
    assert_eq!(boots(&node), Some(30));
}

#[tokio::test]
async fn a_vm_is_started_before_a_revert_has_turned_back() {
    let lost = Mishap::Error(Complaint::TimedOut);
    turns_back_under(&[(Moment::Before, lost), (Moment::After, Mishap::VmStarts(VmId(Uuid::nil())))]).await;
}

#[tokio::test]
async fn a_vm_is_started_as_a_revert_turns_back() {
    turns_back_under(&[(Moment::Before, Mishap::VmStarts(VmId(Uuid::nil())))]).await;
}

/// What it wrote to the overlays of a revert that turns back goes only once somebody says so.
async fn turns_back_under(meanwhile: &[(Moment, Mishap)]) {
    let node = bed().await;
    let active = node.sim.image_of(node.vm, &vda()).unwrap();
    at(&node, (Method::Start, 1), Moment::Before, Mishap::Error(Complaint::Refused));
    for (moment, mishap) in meanwhile {
        let mishap = match mishap {
            Mishap::VmStarts(_) => Mishap::VmStarts(node.vm),
            other => other.clone(),
        };
        at(&node, (Method::PointDisks, 2), *moment, mishap);
    }
    let operation = begin_revert(&node, "one").await;
    let stuck = ends(&node, &operation, v1::OperationState::Stuck).await;
    let overlay = node.sim.image_of(node.vm, &vda()).unwrap();
    let told = format!("{:?} {:?}", stuck.error, stuck.undo_error);
    for image in [&active, &overlay] {
        assert!(told.contains(&image.display().to_string()), "{told}");
    }
    // Whether it runs or has ended.
    write(&node, 77);
    node.sim.someone_stops(node.vm);
    resolve(&node, &operation, v1::Resolution::Retry).await.unwrap();
    ends(&node, &operation, v1::OperationState::Stuck).await;
    assert_eq!(boots(&node), Some(77), "nothing of it is gone");
    node.sim.someone_redefines(node.vm, &vda(), ImageRef { path: active, format: Format::Qcow2 });
    resolve(&node, &operation, v1::Resolution::Retry).await.unwrap();
    ends(&node, &operation, v1::OperationState::Failed).await;
    assert_eq!(node.sim.guest_read(node.vm, &vda(), 1), Ok(30));
    assert!(!node.sim.files().contains(&overlay));
}

#[tokio::test]
async fn a_vm_is_started_before_it_is_switched() {
    let node = bed().await;
    node.sim.someone_stops(node.vm);
    let files = node.images();
    // The last of what is looked at beforehand.
    at(&node, (Method::IsWritten, 1), Moment::After, Mishap::VmStarts(node.vm));
    let begun = node.begin("three").await;
    ends(&node, &begun.id, v1::OperationState::Failed).await;
    assert_eq!(node.images(), files, "nothing is left over");
    assert_eq!(node.sim.run_state(node.vm), Some(RunState::Running));
}

/// It is no snapshot of a VM that was off.
#[tokio::test]
async fn a_vm_is_started_in_the_moment_of_the_switch() {
    let node = bed().await;
    node.sim.someone_stops(node.vm);
    at(&node, (Method::SwitchDisks, 1), Moment::Before, Mishap::VmStarts(node.vm));
    let taken = node.take("three").await;
    assert_eq!(taken.consistency(), v1::Consistency::Crash, "{taken:?}");
    assert!(taken.consistency_reason.contains("started"), "{taken:?}");
}

/// A rescue VM, `qemu-nbd`, `virt-customize`: whoever has the disk of a VM that is off goes on writing to it.
#[tokio::test]
async fn the_disk_of_a_vm_that_is_off_is_open_elsewhere() {
    let node = bed().await;
    node.sim.someone_stops(node.vm);
    let files = node.images();
    let image = ImageRef { path: node.sim.image_of(node.vm, &vda()).unwrap(), format: Format::Qcow2 };
    let rescue = node.sim.vm("rescue").image("vda", image).build();
    let begun = node.begin("three").await;
    let failed = ends(&node, &begun.id, v1::OperationState::Failed).await;
    assert_eq!(failed.error.unwrap().reason(), v1::Reason::LayerInUse);
    assert_eq!(node.images(), files, "nothing is left over");
    node.sim.someone_stops(rescue);
    node.sim.someone_undefines(rescue);
    node.take("three").await;
}

/// It reads what it read, and reads it still.
#[tokio::test]
async fn the_disk_of_a_vm_that_is_off_is_read_elsewhere() {
    const MINE: &str = "/images/by-hand";
    let node = bed().await;
    node.sim.someone_stops(node.vm);
    let active = node.sim.image_of(node.vm, &vda()).unwrap();
    node.overlay(MINE, &active.display().to_string()).await;
    node.sim.vm("reader").image("vda", ImageRef { path: MINE.into(), format: Format::Qcow2 }).build();
    node.take("three").await;
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// The merge was planned before anybody lay on what it lets go. No lock tells of a VM that is off.
#[tokio::test]
async fn somebody_lies_on_a_layer_that_is_being_merged() {
    const MINE: &str = "/images/by-hand";
    let node = bed().await;
    let child = node.sim.image_of(node.vm, &vda()).unwrap();
    let hold = node.hold(Method::StartCommit);
    let operation = begin_deletion(&node, "two").await;
    crate::node::reached(&hold).await;
    node.overlay(MINE, &child.display().to_string()).await;
    let image = ImageRef { path: MINE.into(), format: Format::Qcow2 };
    let reader = node.sim.vm("reader").image("vda", image).off().build();
    hold.release();
    ends(&node, &operation, v1::OperationState::Stuck).await;
    assert!(node.sim.files().contains(&child), "it is read");
    node.sim.someone_undefines(reader);
    node.sim.someone_removes(MINE.as_ref());
    resolve(&node, &operation, v1::Resolution::Retry).await.unwrap();
    ends(&node, &operation, v1::OperationState::Succeeded).await;
    assert!(!node.sim.files().contains(&child));
}

#[tokio::test]
async fn a_disk_is_resized_in_the_moment_of_the_switch() {
    let node = bed().await;
    let base: PathBuf = node.sim.image_of(node.vm, &vda()).unwrap();
    let size = node.sim.disk_size(node.vm, &vda()).unwrap();
    let hold = node.hold(Method::SwitchDisks);
    let begun = node.begin("three").await;
    crate::node::reached(&hold).await;
    node.sim.someone_resizes_image(&base, size + BLOCK);
    hold.release();
    let stuck = ends(&node, &begun.id, v1::OperationState::Stuck).await;
    let told = format!("{:?} {:?}", stuck.error, stuck.undo_error);
    assert!(told.contains("virsh blockresize web vda"), "{told}");
    node.sim.someone_resizes(node.vm, &vda(), size + BLOCK);
    resolve(&node, &begun.id, v1::Resolution::Retry).await.unwrap();
    ends(&node, &begun.id, v1::OperationState::Succeeded).await;
}
