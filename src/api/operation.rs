//! `OperationService`: see, follow, cancel and resolve what is under way.

use tonic::{Request, Response, Status};

use super::later::later;
use super::snapshot::bandwidth;
use super::watch::WatchStream;
use super::{Answer, Api, Caller, answered, convert, later, paging, status, watch};
use crate::model::OperationId;
use crate::ops::OpsError;
use crate::proto::v1;
use crate::proto::v1::operation_service_server::OperationService;
use crate::store::OperationFilter;

#[tonic::async_trait]
impl OperationService for Api {
    type WatchOperationStream = WatchStream;
    type WatchOperationsStream = later::Never<v1::WatchOperationsResponse>;

    async fn get_operation(
        &self,
        request: Request<v1::GetOperationRequest>,
    ) -> Answer<v1::GetOperationResponse> {
        let reach = self.caller(&request).await?.reach;
        let view = self.found_operation(&reach, &request.get_ref().operation_id).await?;
        Ok(Response::new(v1::GetOperationResponse { operation: Some(convert::operation(&view)) }))
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Answer<v1::ListOperationsResponse> {
        let Caller { reach, grant, .. } = self.caller(&request).await?;
        let mut request = request.into_inner();
        let limit = paging::size(request.page_size)?;
        let token = std::mem::take(&mut request.page_token);
        request.page_size = 0;
        let query = status::digest("ListOperations", &request);
        let before = paging::position(&query, &token)?;
        let before = before.map(str::parse::<OperationId>).transpose().map_err(|_| paging::invalid())?;
        check_order(&request.order_by)?;
        let filter = request.filter.unwrap_or_default();
        let vms = match filter.vm.as_str() {
            "" => reach.vms(),
            vm => Some(vec![self.found_vm(&reach, vm).await.map_err(status::of)?.id]),
        };
        let only_open = is_only_open(&filter)?;
        let wanted = OperationFilter { vms, only_open, without_clones: reach.is_scoped() };
        let turn = self.turns.take(&grant.principal).await?;
        let (operations, total) = self.engine.operations(wanted, before, limit).await.map_err(status::of)?;
        drop(turn);
        let mut answer = v1::ListOperationsResponse {
            total_size: i64::try_from(total).unwrap_or(i64::MAX),
            ..v1::ListOperationsResponse::default()
        };
        if operations.len() == usize::try_from(limit).unwrap_or(usize::MAX)
            && let Some(last) = operations.last()
        {
            answer.next_page_token = paging::token(&query, &last.id.to_string());
        }
        for operation in operations {
            // One that is under way is shown as it is now, not as it was last journaled.
            let view = self.engine.operation(operation.id).await.map_err(status::of)?;
            answer.operations.push(convert::operation(&view));
        }
        Ok(Response::new(answer))
    }

    async fn watch_operation(
        &self,
        request: Request<v1::WatchOperationRequest>,
    ) -> Answer<Self::WatchOperationStream> {
        let reach = self.caller(&request).await?.reach;
        let id = self.found_operation(&reach, &request.get_ref().operation_id).await?.operation.id;
        watch::start(&self.engine, &self.watched, id, request.get_ref()).await.map(Response::new)
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Answer<v1::CancelOperationResponse> {
        let caller = self.caller(&request).await?;
        let id = self.steered_operation(&caller, &request.get_ref().operation_id).await?;
        let view = self.engine.cancel(id).await.map_err(status::of)?;
        Ok(answered(v1::CancelOperationResponse { operation: Some(convert::operation(&view)) }))
    }

    async fn resolve_operation(
        &self,
        request: Request<v1::ResolveOperationRequest>,
    ) -> Answer<v1::ResolveOperationResponse> {
        let caller = self.caller(&request).await?;
        let request = request.into_inner();
        let id = self.steered_operation(&caller, &request.operation_id).await?;
        let abandon = match request.action() {
            v1::Resolution::Retry => false,
            v1::Resolution::Abandon => true,
            v1::Resolution::TurnBack => return Err(status::of(OpsError::ResolutionNotOffered)),
            v1::Resolution::Unspecified => {
                let mut violations = status::Violations::default();
                violations.add("action", "RETRY or ABANDON");
                violations.check()?;
                return Err(status::of(OpsError::ResolutionNotOffered));
            }
        };
        tracing::warn!(operation = %id, abandon, comment = request.comment, "an operation is resolved by a person");
        let view = self.engine.resolve(id, abandon).await.map_err(status::of)?;
        Ok(answered(v1::ResolveOperationResponse { operation: Some(convert::operation(&view)) }))
    }

    async fn set_operation_bandwidth(
        &self,
        request: Request<v1::SetOperationBandwidthRequest>,
    ) -> Answer<v1::SetOperationBandwidthResponse> {
        let caller = self.caller(&request).await?;
        let request = request.into_inner();
        let id = self.steered_operation(&caller, &request.operation_id).await?;
        let bandwidth = bandwidth(request.bandwidth_bytes_per_second);
        let view = self.engine.limit(id, bandwidth).await.map_err(status::of)?;
        Ok(answered(v1::SetOperationBandwidthResponse { operation: Some(convert::operation(&view)) }))
    }

    later! {
        watch_operations(WatchOperationsRequest) -> Self::WatchOperationsStream;
    }
}

/// The states that are not ends.
const OPEN: [v1::OperationState; 3] =
    [v1::OperationState::Running, v1::OperationState::Undoing, v1::OperationState::Stuck];

/// Lets through what has not ended.
pub(super) fn only_open() -> v1::OperationFilter {
    v1::OperationFilter { states: OPEN.map(i32::from).to_vec(), ..v1::OperationFilter::default() }
}

/// This version has one order.
fn check_order(order_by: &str) -> Result<(), Status> {
    match order_by {
        "" | "create_time desc" => Ok(()),
        "create_time" | "create_time asc" | "update_time" | "update_time asc" | "update_time desc" => {
            Err(status::not_implemented("operations in another order than create_time desc"))
        }
        _ => Err(paging::bad_order("create_time or update_time, and if you like \" desc\" behind it")),
    }
}

/// The parts of the filter that this version serves: a VM, and the states that are not ends. Any other is refused
/// rather than passed over.
fn is_only_open(filter: &v1::OperationFilter) -> Result<bool, Status> {
    let is_other = !filter.snapshot_id.is_empty()
        || !filter.kinds.is_empty()
        || !filter.request_id.is_empty()
        || !filter.created_by.is_empty()
        || filter.created_after.is_some()
        || filter.created_before.is_some();
    let states: Vec<v1::OperationState> = filter.states().collect();
    match states.as_slice() {
        _ if is_other => {
            Err(status::not_implemented("a filter of operations by more than vm and open states"))
        }
        [] => Ok(false),
        states if OPEN.iter().all(|state| states.contains(state)) && states.len() == OPEN.len() => Ok(true),
        _ => Err(status::not_implemented("a filter of operations by single states")),
    }
}
