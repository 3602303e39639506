//! What differs on a simulated node, as the client tells it, and the request that settles it.

use serde_json::Value;
use vmsnap::host::sim::BLOCK;
use vmsnap::model::vm::Format;
use vmsnap::proto::v1;

use super::client::run;
use super::node::Node;

/// A file of ours that the catalog does not know, where somebody puts it.
pub const ORPHAN: &str = "/images/vmsnap-0199aaaa-0000-7000-8000-000000000001.qcow2";

/// What differs: kind, ways, id.
pub async fn differences(node: &Node, line: &str) -> Vec<(String, Vec<String>, String)> {
    let word = |value: &Value, prefix: &str| value.as_str().unwrap().trim_start_matches(prefix).to_owned();
    let of = |found: &Value| {
        let ways = found["actions"].as_array().cloned().unwrap_or_default();
        let ways = ways.iter().map(|way| word(way, "DIFFERENCE_ACTION_").to_lowercase().replace('_', "-"));
        (word(&found["kind"], "DIFFERENCE_KIND_"), ways.collect(), found["id"].as_str().unwrap().to_owned())
    };
    // A check that finds something does not exit with 0.
    let told: Value = serde_json::from_str(&run(node, &format!("{line} -o json")).await.stdout).unwrap();
    told["differences"].as_array().cloned().unwrap_or_default().iter().map(of).collect()
}

/// The one difference of the VM, which offers these ways. Gives its id.
pub async fn only(node: &Node, kind: &str, ways: &[&str]) -> String {
    let found = differences(node, "vm check web").await;
    let [(found_kind, offered, id)] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (found_kind.as_str(), offered.iter().map(String::as_str).collect::<Vec<_>>()),
        (kind, ways.to_vec())
    );
    id.clone()
}

pub fn request(vm: &str, id: &str, action: v1::DifferenceAction) -> v1::ResolveVmRequest {
    v1::ResolveVmRequest {
        vm: vm.to_owned(),
        difference_id: id.to_owned(),
        action: action.into(),
        ..Default::default()
    }
}

pub fn put_orphan(node: &Node) {
    node.sim.put_image(ORPHAN.as_ref(), Format::Qcow2, BLOCK, false).unwrap();
}
