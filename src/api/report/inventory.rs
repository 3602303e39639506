//! All there is on the node, in parts: what a client would list.
//!
//! Decides the order of the parts. Each is of the instant in which it was read, which is not before the first: a change in
//! between may be in it already, and comes as an item, too.

use tonic::{Request, Status};

use crate::api::Api;
use crate::api::operation::only_open;
use crate::model::access::{Grant, Identity, Role};
use crate::proto::controller::v1 as wire;
use crate::proto::v1;
use crate::proto::v1::operation_service_server::OperationService;
use crate::proto::v1::snapshot_service_server::SnapshotService;
use crate::proto::v1::vm_service_server::VmService;
use crate::proto::v1::volume_service_server::VolumeService;

/// How far an inventory is.
pub(super) struct Inventory {
    as_of: u64,
    list: List,
    /// Where the list goes on.
    token: String,
}

/// What is listed.
#[derive(Clone, Copy)]
enum List {
    Vms,
    Volumes,
    Snapshots,
    Operations,
}

impl List {
    /// Entries of a part: with texts as long as may be, it is within the 4 MiB that a gRPC server takes unless told otherwise.
    /// Volumes are all looked at for each part.
    fn page_size(self) -> i32 {
        match self {
            Self::Vms => 500,
            Self::Volumes => 1000,
            Self::Snapshots | Self::Operations => 50,
        }
    }

    fn next(self) -> Option<Self> {
        match self {
            Self::Vms => Some(Self::Volumes),
            Self::Volumes => Some(Self::Snapshots),
            Self::Snapshots => Some(Self::Operations),
            Self::Operations => None,
        }
    }
}

impl Inventory {
    /// Begins. `as_of` is the last item of the outbox now.
    pub(super) fn begin(as_of: u64) -> Self {
        Self { as_of, list: List::Vms, token: String::new() }
    }

    /// The next part, and what is left behind it.
    pub(super) async fn part(self, api: &Api) -> Result<(wire::Inventory, Option<Self>), Status> {
        let mut part = wire::Inventory { as_of_sequence: self.as_of, ..wire::Inventory::default() };
        let token = fill(api, self.list, self.token, &mut part).await?;
        let list = if token.is_empty() { self.list.next() } else { Some(self.list) };
        part.last = list.is_none();
        Ok((part, list.map(|list| Self { list, token, ..self })))
    }
}

/// Reads a page of the list. Gives the token of the next one.
async fn fill(
    api: &Api,
    list: List,
    page_token: String,
    part: &mut wire::Inventory,
) -> Result<String, Status> {
    let page_size = list.page_size();
    Ok(match list {
        List::Vms => {
            let filter = Some(v1::VmFilter { include_gone: true, ..v1::VmFilter::default() });
            let asked = v1::ListVmsRequest { filter, page_size, page_token, ..v1::ListVmsRequest::default() };
            let page = api.list_vms(of_node(asked)).await?.into_inner();
            part.vms = page.vms;
            page.next_page_token
        }
        List::Volumes => {
            let asked = v1::ListVolumesRequest { page_size, page_token, ..v1::ListVolumesRequest::default() };
            let page = api.list_volumes(of_node(asked)).await?.into_inner();
            part.volumes = page.volumes;
            page.next_page_token
        }
        List::Snapshots => {
            let asked =
                v1::ListSnapshotsRequest { page_size, page_token, ..v1::ListSnapshotsRequest::default() };
            let page = api.list_snapshots(of_node(asked)).await?.into_inner();
            part.snapshots = page.snapshots;
            page.next_page_token
        }
        List::Operations => {
            let filter = Some(only_open());
            let asked = v1::ListOperationsRequest {
                filter,
                page_size,
                page_token,
                ..v1::ListOperationsRequest::default()
            };
            let page = api.list_operations(of_node(asked)).await?.into_inner();
            part.operations = page.operations;
            page.next_page_token
        }
    })
}

/// A request that the daemon makes for a controller that it calls by itself: of all that there is.
fn of_node<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Grant { principal: Identity::User(0), role: Role::Viewer, scope: None });
    request
}
