//! Lists of snapshots: pages of all, and the tree of one VM.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use tonic::{Response, Status};

use super::status::Violations;
use super::{Answer, Api, convert, paging, status};
use crate::model::{LayerTree, Snapshot, SnapshotId, SnapshotKind, SnapshotState, VmId};
use crate::ops::OpsError;
use crate::proto::v1;
use crate::store::{Order, Page, SnapshotFilter};

/// A page of snapshots.
pub(super) async fn snapshots(
    api: &Api,
    mut request: v1::ListSnapshotsRequest,
) -> Answer<v1::ListSnapshotsResponse> {
    let limit = paging::size(request.page_size)?;
    let token = std::mem::take(&mut request.page_token);
    request.page_size = 0;
    let query = status::digest("ListSnapshots", &request);
    let after = paging::position(&query, &token)?.map(position).transpose()?;
    let order = order(&request.order_by)?;
    let filter = filter(api, request.filter.unwrap_or_default()).await?;
    let page = api.engine.snapshots(filter, Page { limit, after, order }).await.map_err(status::of)?;

    let mut trees: HashMap<VmId, LayerTree> = HashMap::new();
    let mut answer = v1::ListSnapshotsResponse {
        total_size: i64::try_from(page.total).unwrap_or(i64::MAX),
        ..v1::ListSnapshotsResponse::default()
    };
    if let Some(last) = page.snapshots.last().filter(|_| page.has_more) {
        let position = format!("{}_{}", last.created_at.as_millisecond(), last.id);
        answer.next_page_token = paging::token(&query, &position);
    }
    for snapshot in &page.snapshots {
        let tree = match trees.entry(snapshot.vm) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(api.tree(snapshot.vm).await?),
        };
        answer.snapshots.push(convert::snapshot(snapshot, &api.surroundings(tree)));
    }
    Ok(Response::new(answer))
}

/// The tree of a VM: each snapshot behind its parent.
pub(super) async fn tree(
    api: &Api,
    request: v1::GetSnapshotTreeRequest,
) -> Answer<v1::GetSnapshotTreeResponse> {
    let mut violations = Violations::default();
    violations.required("vm", &request.vm);
    violations.check()?;
    let vm = api.vm_id(&request.vm).await?;
    let tree = api.tree(vm).await?;
    let around = api.surroundings(&tree);
    // A VM that has left, or a hypervisor that is down: the tree is shown all the same.
    let summary = api.engine.find_vm(&vm.to_string()).await.ok();
    let nodes = in_tree_order(&tree).into_iter().map(|(id, depth)| v1::SnapshotTreeNode {
        snapshot: tree.snapshot(id).map(|snapshot| convert::snapshot(snapshot, &around)),
        depth,
        child_ids: children(&tree, Some(id)).map(|child| child.to_string()).collect(),
    });
    Ok(Response::new(v1::GetSnapshotTreeResponse {
        vm_id: vm.to_string(),
        vm_name: summary.as_ref().map(|vm| vm.name.clone()).unwrap_or_default(),
        nodes: nodes.collect(),
        current_snapshot_id: tree.current.map(|current| current.to_string()).unwrap_or_default(),
        run_state: summary.map_or(v1::RunState::Unknown, |vm| convert::run_state(vm.run_state)).into(),
        operation_id: api.engine.holder(vm).map(|holder| holder.to_string()).unwrap_or_default(),
        ..v1::GetSnapshotTreeResponse::default()
    }))
}

/// Depth first, siblings oldest first.
fn in_tree_order(tree: &LayerTree) -> Vec<(SnapshotId, u32)> {
    let is_root = |parent: Option<SnapshotId>| parent.is_none_or(|parent| tree.snapshot(parent).is_none());
    // One of a volume is no place that the VM has been at.
    let of_vm = |snapshot: &&Snapshot| snapshot.kind != SnapshotKind::Volume;
    let roots = tree
        .snapshots
        .iter()
        .filter(of_vm)
        .filter(|snapshot| is_root(snapshot.parent))
        .map(|snapshot| (snapshot.id, 0));
    let mut open: Vec<(SnapshotId, u32)> = roots.collect();
    open.reverse();
    let mut order = Vec::new();
    while let Some((id, depth)) = open.pop() {
        order.push((id, depth));
        let mut below: Vec<_> = children(tree, Some(id)).map(|child| (child, depth + 1)).collect();
        below.reverse();
        open.extend(below);
    }
    order
}

fn children(tree: &LayerTree, parent: Option<SnapshotId>) -> impl Iterator<Item = SnapshotId> {
    tree.snapshots.iter().filter(move |snapshot| snapshot.parent == parent).map(|snapshot| snapshot.id)
}

fn position(text: &str) -> Result<(i64, SnapshotId), Status> {
    let parse = || {
        let (created, id) = text.split_once('_')?;
        Some((created.parse().ok()?, id.parse().ok()?))
    };
    parse().ok_or_else(paging::invalid)
}

fn order(order_by: &str) -> Result<Order, Status> {
    match order_by {
        "" | "create_time" | "create_time asc" => Ok(Order::Oldest),
        "create_time desc" => Ok(Order::Newest),
        _ => {
            let mut violations = Violations::default();
            violations.add("order_by", "create_time, or create_time desc");
            violations.check().map(|()| Order::Oldest)
        }
    }
}

async fn filter(api: &Api, asked: v1::SnapshotFilter) -> Result<SnapshotFilter, Status> {
    let vm = match asked.vm.as_str() {
        "" => None,
        vm => Some(api.vm_id(vm).await?),
    };
    if !asked.volume_id.is_empty()
        || !asked.schedule_id.is_empty()
        || !asked.parent_id.is_empty()
        || asked.held.is_some()
    {
        return Err(status::not_implemented("a filter of snapshots by volume, schedule, parent or hold"));
    }
    let states: Vec<SnapshotState> = asked.states().filter_map(convert::snapshot_state).collect();
    let kinds: Vec<v1::SnapshotKind> = asked.kinds().collect();
    let wants = |kind| kinds.is_empty() || kinds.contains(&kind);
    let has_memory = match (wants(v1::SnapshotKind::VmDisks), wants(v1::SnapshotKind::VmDisksAndMemory)) {
        (true, true) => None,
        (false, true) => Some(true),
        (true, false) => Some(false),
        (false, false) => return Err(status::not_implemented("snapshots of volumes")),
    };
    let millisecond = |time: prost_types::Timestamp| time.seconds * 1000 + i64::from(time.nanos) / 1_000_000;
    Ok(SnapshotFilter {
        vm,
        states,
        has_memory,
        account: asked.account,
        domain: asked.domain,
        project: asked.project,
        name: asked.name,
        name_prefix: asked.name_prefix,
        properties: asked.properties.into_iter().map(|property| (property.key, property.value)).collect(),
        created_after_ms: asked.created_after.map(millisecond),
        created_before_ms: asked.created_before.map(millisecond),
    })
}

impl Api {
    /// The VM of a name or an id. One that the hypervisor cannot be asked about is still known by its id.
    pub(super) async fn vm_id(&self, vm: &str) -> Result<VmId, Status> {
        match (self.engine.find_vm(vm).await, vm.parse()) {
            (Ok(vm), _) => Ok(vm.id),
            (Err(OpsError::Host(_) | OpsError::NoSuchVm(_)), Ok(id)) if self.is_known(id).await => Ok(id),
            (Err(error), _) => Err(status::of(error)),
        }
    }

    async fn is_known(&self, vm: VmId) -> bool {
        self.engine.store().tree(vm).await.is_ok_and(|tree| !tree.snapshots.is_empty())
    }

    /// What the catalog knows of a VM.
    pub(super) async fn tree(&self, vm: VmId) -> Result<LayerTree, Status> {
        self.engine.store().tree(vm).await.map_err(|error| status::of(error.into()))
    }
}
