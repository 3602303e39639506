//! Lists of snapshots: pages of all, and the tree of one VM.

use tonic::{Response, Status};

use super::status::Violations;
use super::{Answer, Api, Caller, Reach, convert, paging, status};
use crate::model::{LayerTree, Snapshot, SnapshotId, SnapshotKind, VmId};
use crate::ops::OpsError;
use crate::proto::v1;
use crate::store::{Direction, OrderBy, Page, Placed, Position, SnapshotFilter};

/// A page of snapshots.
pub(super) async fn snapshots(
    api: &Api,
    caller: Caller,
    mut request: v1::ListSnapshotsRequest,
) -> Answer<v1::ListSnapshotsResponse> {
    let limit = paging::size(request.page_size)?;
    let token = std::mem::take(&mut request.page_token);
    request.page_size = 0;
    let query = status::digest("ListSnapshots", &request);
    let (order, direction) = order(&request.order_by)?;
    let after = paging::position(&query, &token)?.map(|text| position(order, text)).transpose()?;
    let filter = filter(api, &caller.reach, request.filter.unwrap_or_default()).await?;
    let turn = api.turns.take(&caller.grant.principal).await?;
    let page =
        api.engine.snapshots(filter, Page { limit, after, order, direction }).await.map_err(status::of)?;
    drop(turn);

    let shown = |placed: &Placed| convert::snapshot(placed, api.engine.under_way(placed.snapshot.vm));
    Ok(Response::new(v1::ListSnapshotsResponse {
        snapshots: page.snapshots.iter().map(shown).collect(),
        next_page_token: page.next.map(|next| paging::token(&query, &text(&next))).unwrap_or_default(),
        total_size: i64::try_from(page.total).unwrap_or(i64::MAX),
    }))
}

/// The tree of a VM: each snapshot behind its parent.
pub(super) async fn tree(
    api: &Api,
    reach: Reach,
    request: v1::GetSnapshotTreeRequest,
) -> Answer<v1::GetSnapshotTreeResponse> {
    let mut violations = Violations::default();
    violations.required("vm", &request.vm);
    violations.check()?;
    let vm = api.vm_id(&reach, &request.vm).await?;
    let tree = api.tree(vm).await?;
    let holder = api.engine.under_way(vm);
    // A VM that has left, or a hypervisor that is down: the tree is shown all the same.
    let summary = api.engine.find_vm(&vm.to_string()).await.ok();
    let (snapshots, depths): (Vec<_>, Vec<_>) = in_tree_order(&tree).into_iter().unzip();
    let placed = api.engine.store().placed(snapshots).await.map_err(|error| status::of(error.into()))?;
    let nodes = placed.iter().zip(depths).map(|(placed, depth)| v1::SnapshotTreeNode {
        snapshot: Some(convert::snapshot(placed, holder)),
        depth,
        child_ids: children(&tree, placed.snapshot.id).map(|child| child.id.to_string()).collect(),
    });
    Ok(Response::new(v1::GetSnapshotTreeResponse {
        vm_id: vm.to_string(),
        vm_name: summary.as_ref().map(|vm| vm.name.clone()).unwrap_or_default(),
        nodes: nodes.collect(),
        current_snapshot_id: tree.current.map(|current| current.to_string()).unwrap_or_default(),
        run_state: summary.map_or(v1::RunState::Unknown, |vm| convert::run_state(vm.run_state)).into(),
        operation_id: holder.map(|holder| holder.to_string()).unwrap_or_default(),
        ..v1::GetSnapshotTreeResponse::default()
    }))
}

/// Depth first, siblings oldest first. Each with how deep it stands.
fn in_tree_order(tree: &LayerTree) -> Vec<(Snapshot, u32)> {
    let is_root = |parent: Option<SnapshotId>| parent.is_none_or(|parent| tree.snapshot(parent).is_none());
    // One of a volume is no place that the VM has been at.
    let of_vm = |snapshot: &&Snapshot| snapshot.kind != SnapshotKind::Volume;
    let roots = tree.snapshots.iter().filter(of_vm).filter(|snapshot| is_root(snapshot.parent));
    let mut open: Vec<(&Snapshot, u32)> = roots.map(|root| (root, 0)).collect();
    open.reverse();
    let mut order = Vec::new();
    while let Some((snapshot, depth)) = open.pop() {
        order.push((snapshot.clone(), depth));
        let mut below: Vec<_> = children(tree, snapshot.id).map(|child| (child, depth + 1)).collect();
        below.reverse();
        open.extend(below);
    }
    order
}

fn children(tree: &LayerTree, parent: SnapshotId) -> impl Iterator<Item = &Snapshot> {
    tree.snapshots.iter().filter(move |snapshot| snapshot.parent == Some(parent))
}

/// A position as a page token spells it.
fn text(position: &Position) -> String {
    format!("{}_{}", position.number, position.key)
}

fn position(order: OrderBy, text: &str) -> Result<Position, Status> {
    let parse = || {
        let (number, key) = text.split_once('_')?;
        let is_key = match order {
            OrderBy::Created => key.parse::<i64>().is_ok(),
            OrderBy::Name | OrderBy::VmName => true,
        };
        is_key.then_some(Position { key: key.to_owned(), number: number.parse().ok()? })
    };
    parse().ok_or_else(paging::invalid)
}

fn order(order_by: &str) -> Result<(OrderBy, Direction), Status> {
    let (field, direction) = match order_by.split_once(' ') {
        None if order_by.is_empty() => ("create_time", Direction::Descending),
        None | Some((_, "asc")) => (order_by.trim_end_matches(" asc"), Direction::Ascending),
        Some((field, "desc")) => (field, Direction::Descending),
        Some(_) => ("", Direction::Ascending),
    };
    let order = match field {
        "create_time" => OrderBy::Created,
        "name" => OrderBy::Name,
        "vm_name" => OrderBy::VmName,
        _ => {
            let allowed = "create_time, name or vm_name, and if you like \" desc\" behind it";
            return Err(paging::bad_order(allowed));
        }
    };
    Ok((order, direction))
}

async fn filter(api: &Api, reach: &Reach, asked: v1::SnapshotFilter) -> Result<SnapshotFilter, Status> {
    let mut violations = Violations::default();
    let volume = violations.take_id("filter.volume_id", &asked.volume_id);
    let parent = violations.take_id("filter.parent_id", &asked.parent_id);
    let schedule = violations.take_id("filter.schedule_id", &asked.schedule_id);
    let created_after = violations.take_time("filter.created_after", asked.created_after);
    let created_before = violations.take_time("filter.created_before", asked.created_before);
    violations.few("filter.states", asked.states.len());
    violations.few("filter.kinds", asked.kinds.len());
    violations.few("filter.properties", asked.properties.len());
    // None at all means all of them: that is not what somebody wants who asks for what only a newer daemon knows.
    let states: Vec<_> = asked.states().filter_map(convert::snapshot_state).collect();
    let kinds: Vec<_> = asked.kinds().filter_map(convert::snapshot_kind).collect();
    violations.known("filter.states", states.len() == asked.states.len());
    violations.known("filter.kinds", kinds.len() == asked.kinds.len());
    violations.check()?;
    Ok(SnapshotFilter {
        vms: api.vms_of(reach, &asked.vm).await?,
        states,
        kinds,
        volume,
        parent,
        schedule,
        held: asked.held,
        account: asked.account,
        domain: asked.domain,
        project: asked.project,
        name: asked.name,
        name_prefix: asked.name_prefix,
        properties: asked.properties.into_iter().map(|property| (property.key, property.value)).collect(),
        created_after,
        created_before,
    })
}

impl Api {
    /// The VM of a name or an id. One that the hypervisor cannot be asked about is still known by its id. Where there is
    /// no such VM, whatever has snapshots under that name: a volume that no VM had, a VM that has gone.
    pub(super) async fn vm_id(&self, reach: &Reach, vm: &str) -> Result<VmId, Status> {
        match (self.found_vm(reach, vm).await, vm.parse()) {
            (Ok(vm), _) => Ok(vm.id),
            // Of what is not there now, nothing is within a scope.
            (Err(error), _) if reach.is_scoped() => Err(status::of(error)),
            (Err(OpsError::Host(_) | OpsError::NoSuchVm(_)), Ok(id)) if self.is_known(id).await => Ok(id),
            (Err(error @ OpsError::NoSuchVm(_)), _) => {
                let known = self.engine.store().snapshotted_as(vm.to_owned()).await;
                match known.map_err(|error| status::of(error.into()))?.as_slice() {
                    [only] => Ok(*only),
                    [] | [_, ..] => Err(status::of(error)),
                }
            }
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
