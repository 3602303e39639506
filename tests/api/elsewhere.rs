//! A merge waits for whoever lies on what it would write into, whatever made them and whatever they are called.

use std::path::{Path, PathBuf};

use vmsnap::host::sim::{BLOCK, Call, Fault, Method, Mishap, Moment, SimHost, Trigger};
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::{ExcludedDisk, Format};

use serde_json::Value;
use vmsnap::proto::v1;

use super::client::{json, run, succeed};
use super::node::{Node, PATIENCE, delete};
use super::stuck::resolve;

/// What the VM was made with: the first snapshot holds it.
const BASE: &str = "/images/web-vda";

async fn file_of(node: &Node, snapshot: &str) -> PathBuf {
    let disks = node.snapshot(snapshot).await.disks;
    disks.into_iter().find(|disk| disk.target == "vda").unwrap().path.into()
}

/// Two snapshots; then something is done, and the first is deleted. Gives what the second held, that is to be merged into
/// the base.
async fn delete_first(node: &Node, act: impl AsyncFnOnce(&Node)) -> PathBuf {
    for (value, name) in [(10, "one"), (20, "two")] {
        node.write(1, value);
        node.take(name).await;
    }
    node.write(1, 30);
    let upper = file_of(node, "two").await;
    act(node).await;
    succeed(node, "snapshot delete web/one --yes").await;
    upper
}

fn is_there(node: &Node, path: &Path) -> bool {
    node.sim.files().iter().any(|file| file == path)
}

async fn until_gone(node: &Node, path: &Path) {
    let gone = async {
        while is_there(node, path) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("nobody lies on it any more");
}

async fn check(node: Node, base: &str, act: impl AsyncFnOnce(&Node)) {
    let upper = delete_first(&node, act).await;
    assert!(is_there(&node, &upper), "it is merged into what somebody reads");
    let waits = json(&node, "vm show web").await["vm"]["merge_debt"]["waits_for"].clone();
    let is_told = |wait: &Value| {
        ["VM other has ", "VM web has ", " lies on it"]
            .iter()
            .any(|words| wait.as_str().unwrap().contains(words))
    };
    assert!(waits.as_array().unwrap().iter().any(is_told), "{waits}");
    assert_eq!(node.sim.read_image(base.as_ref()).unwrap().get(&1), Some(&10));
    assert_eq!(node.read(1), [30, 30]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn nobody_lies_on_it() {
    let node = Node::start();
    let upper = delete_first(&node, async |_: &Node| {}).await;
    assert!(!is_there(&node, &upper));
    assert_eq!(node.sim.read_image(BASE.as_ref()).unwrap().get(&1), Some(&20));
}

/// Once they are gone, it goes on.
#[tokio::test]
async fn an_overlay_of_any_name() {
    const MINE: &str = "/images/by-hand.img";
    let node = Node::start();
    let upper = delete_first(&node, async |node: &Node| node.overlay(MINE, BASE).await).await;
    assert!(is_there(&node, &upper));
    assert_eq!(node.sim.read_image(MINE.as_ref()).unwrap().get(&1), Some(&10));
    node.sim.someone_removes(MINE.as_ref());
    // Something happens to a VM: whoever waits looks again.
    node.sim.someone_resumes(node.vm);
    until_gone(&node, &upper).await;
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn an_overlay_in_a_directory_that_only_the_vm_has() {
    let sim = SimHost::new();
    let mut vm = sim.vm("web");
    for disk in ["vda", "vdb"] {
        let image = ImageRef { path: format!("/pool/{disk}").into(), format: Format::Qcow2 };
        sim.put_image(&image.path, Format::Qcow2, 1024 * BLOCK, false).unwrap();
        vm = vm.image(disk, image);
    }
    let vm = vm.build();
    let node = Node::start_with(sim, vm);
    check(node, "/pool/vda", async |node: &Node| node.overlay("/pool/by-hand", "/pool/vda").await).await;
}

#[tokio::test]
async fn an_overlay_on_another_name_of_it() {
    let act = async |node: &Node| {
        node.sim.host().images.hard_link(BASE.as_ref(), "/links/image".as_ref()).await.unwrap();
        node.overlay("/images/by-hand", "/links/image").await;
    };
    check(Node::start(), BASE, act).await;
}

#[tokio::test]
async fn a_disk_of_another_vm_that_is_not_handled() {
    let other = |node: &Node, file: &str| {
        node.sim.vm("other").excluded("vda", ExcludedDisk::ReadOnly).names(file.as_ref()).off().build();
    };
    check(Node::start(), BASE, async |node: &Node| other(node, BASE)).await;
    let act = async |node: &Node| {
        node.overlay("/far/away", BASE).await;
        other(node, "/far/away");
    };
    check(Node::start(), BASE, act).await;
}

/// When libvirt goes while VMs are looked at, it is not taken for nobody reading anything: a VM that is off locks no image.
#[tokio::test]
async fn a_link_that_breaks_during_the_look() {
    const FAR: &str = "/far/away";
    let node = Node::start();
    for (value, name) in [(10, "one"), (20, "two")] {
        node.write(1, value);
        node.take(name).await;
    }
    node.overlay(FAR, BASE).await;
    node.sim.vm("other").excluded("vda", ExcludedDisk::ReadOnly).names(FAR.as_ref()).off().build();
    let mut refused = 0;
    for ahead in 1..=4 {
        let occurrence = node.calls_of(Method::Observe) + ahead;
        let at = Trigger::Call(Call { method: Method::Observe, occurrence });
        node.sim.add_fault(Fault { at, moment: Moment::Before, mishap: Mishap::LinkDown { calls: 1 } });
        let plan = run(&node, "snapshot delete web/one --dry-run").await;
        refused += usize::from(plan.code == 8);
        assert!(plan.code == 8 || plan.stdout.contains("are read by other VMs"), "{plan:?}");
    }
    assert!(refused > 0, "it never broke");
    // What did not break it yet may break this.
    while run(&node, "snapshot delete web/one --yes").await.code == 8 {}
    assert_eq!(node.names().await, ["two"]);
    assert_eq!(node.sim.read_image(FAR.as_ref()).unwrap().get(&1), Some(&10), "it lies on what it lay on");
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// The VM itself has what its snapshots hold as a disk of its own, read-only or in the stored definition.
#[tokio::test]
async fn another_disk_of_the_vm() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(2).names(BASE.as_ref()).build();
    check(Node::start_with(sim, vm), BASE, async |_: &Node| {}).await;
}

/// What a revert leaves behind stays for whoever lies on it, and goes when they are gone.
#[tokio::test]
async fn what_a_vm_wrote_to_before_a_revert() {
    const MINE: &str = "/images/by-hand";
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    let left = node.sim.image_of(node.vm, &"vda".parse().unwrap()).unwrap();
    node.sim.someone_stops(node.vm);
    node.overlay(MINE, &left.display().to_string()).await;
    succeed(&node, "snapshot revert web/one --yes").await;
    assert!(is_there(&node, &left), "somebody lies on it");
    assert_eq!(node.sim.read_image(MINE.as_ref()).unwrap().get(&1), Some(&20));
    node.sim.someone_removes(MINE.as_ref());
    node.sim.someone_starts(node.vm);
    until_gone(&node, &left).await;
    assert_eq!(node.read(1), [10, 10]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// It is passed over in the search for readers. What it has open stays.
#[tokio::test]
async fn a_running_vm_that_cannot_be_looked_at() {
    let node = Node::start();
    for (value, name) in [(10, "one"), (20, "two")] {
        node.write(1, value);
        node.take(name).await;
    }
    succeed(&node, "snapshot revert web/one --yes").await;
    let path = file_of(&node, "two").await;
    let other =
        node.sim.vm("other").image("vda", ImageRef { path: path.clone(), format: Format::Qcow2 }).build();
    node.sim.becomes_known_wrongly(other);
    let begun =
        node.snapshots().delete_snapshot(delete("two")).await.unwrap().into_inner().operation.unwrap();
    let stuck = node.end_of(&begun.id).await;
    assert_eq!(stuck.state(), v1::OperationState::Stuck, "{stuck:?}");
    assert!(is_there(&node, &path), "a VM runs on it");
    node.sim.someone_stops(other);
    node.sim.someone_undefines(other);
    resolve(&node, &begun.id, v1::Resolution::Retry).await.unwrap();
    let ended = node.end_of(&begun.id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert!(!is_there(&node, &path));
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}

/// Nobody does anything with a VM between two states. Once it is out of them, what waited for it goes on by itself.
#[tokio::test]
async fn a_vm_between_two_states() {
    let node = Node::start();
    node.write(1, 10);
    node.take("one").await;
    node.write(1, 20);
    succeed(&node, "volume clone web/one --disk vda --to clone").await;
    succeed(&node, "snapshot delete web/one --yes").await;
    let upper = node.sim.image_of(node.vm, &"vda".parse().unwrap()).unwrap();
    node.sim.becomes_unsettled(node.vm);
    succeed(&node, "volume flatten clone").await;
    let told = async {
        loop {
            let waits = json(&node, "vm show web").await["vm"]["merge_debt"]["waits_for"].to_string();
            if waits.contains("between two states") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("nobody says what it waits for");
    assert!(is_there(&node, &upper));
    node.sim.someone_resumes(node.vm);
    until_gone(&node, &upper).await;
    assert_eq!(node.read(1), [20, 20]);
    assert_eq!(node.sim.violations(), Vec::<String>::new());
}
