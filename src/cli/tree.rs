//! The tree of a VM's snapshots, drawn; it ends in where the VM is now.

use std::collections::HashMap;

use super::{snapshot, words};
use crate::proto::v1;

/// Draws the tree.
pub(super) fn draw(tree: &v1::GetSnapshotTreeResponse) -> String {
    let nodes: HashMap<&str, &v1::SnapshotTreeNode> =
        tree.nodes.iter().filter_map(|node| Some((node.snapshot.as_ref()?.id.as_str(), node))).collect();
    let mut lines = vec![format!("{} ({})", tree.vm_name, words::run_state(tree.run_state()))];
    let roots: Vec<Entry<'_>> = tree.nodes.iter().filter(|node| node.depth == 0).map(Entry::Node).collect();
    let here = tree.current_snapshot_id.as_str();
    let roots = if here.is_empty() { roots.into_iter().chain([Entry::Here]).collect() } else { roots };
    draw_below(&roots, "", &nodes, here, &mut lines);
    lines.join("\n")
}

#[derive(Clone, Copy)]
enum Entry<'a> {
    Node(&'a v1::SnapshotTreeNode),
    Here,
}

fn draw_below(
    entries: &[Entry<'_>],
    indent: &str,
    nodes: &HashMap<&str, &v1::SnapshotTreeNode>,
    here: &str,
    lines: &mut Vec<String>,
) {
    for (index, entry) in entries.iter().enumerate() {
        let is_last = index + 1 == entries.len();
        let (branch, rail) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let Entry::Node(node) = entry else {
            lines.push(format!("{indent}{branch}current (you are here)"));
            continue;
        };
        let Some(snapshot) = &node.snapshot else { continue };
        lines.push(format!("{indent}{branch}{}", describe(snapshot)));
        let children =
            node.child_ids.iter().filter_map(|id| nodes.get(id.as_str()).copied()).map(Entry::Node);
        let current = (snapshot.id == here).then_some(Entry::Here);
        let below: Vec<Entry<'_>> = children.chain(current).collect();
        draw_below(&below, &format!("{indent}{rail}"), nodes, here, lines);
    }
}

fn describe(snapshot: &v1::Snapshot) -> String {
    let parts = [
        snapshot.name.clone(),
        words::snapshot_state(snapshot.state()),
        words::snapshot_kind(snapshot.kind()).to_owned(),
        words::consistency(snapshot.consistency()),
        words::size(snapshot::bytes(snapshot)),
        words::age(snapshot.create_time),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, depth: u32, children: &[&str]) -> v1::SnapshotTreeNode {
        let snapshot = v1::Snapshot {
            id: name.to_owned(),
            name: name.to_owned(),
            state: v1::SnapshotState::Ready.into(),
            ..v1::Snapshot::default()
        };
        v1::SnapshotTreeNode {
            snapshot: Some(snapshot),
            depth,
            child_ids: children.iter().map(|child| (*child).to_owned()).collect(),
        }
    }

    fn check(nodes: Vec<v1::SnapshotTreeNode>, current: &str, expected: &[&str]) {
        let tree = v1::GetSnapshotTreeResponse {
            vm_name: "web".to_owned(),
            run_state: v1::RunState::Running.into(),
            nodes,
            current_snapshot_id: current.to_owned(),
            ..v1::GetSnapshotTreeResponse::default()
        };
        assert_eq!(draw(&tree), expected.join("\n"));
    }

    #[test]
    fn trees() {
        check(Vec::new(), "", &["web (running)", "└─ current (you are here)"]);
        check(
            vec![node("a", 0, &["b", "d"]), node("b", 1, &["c"]), node("c", 2, &[]), node("d", 1, &[])],
            "b",
            &[
                "web (running)",
                "└─ a  READY  0 B",
                "   ├─ b  READY  0 B",
                "   │  ├─ c  READY  0 B",
                "   │  └─ current (you are here)",
                "   └─ d  READY  0 B",
            ],
        );
    }
}
