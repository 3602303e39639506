//! What a request is made of: calls of gRPC, in the name of whoever has made it.
//!
//! Decides how long a request waits for a VM that is busy with another operation, and for the end of one that it has begun.
//! Leaves to the daemon whether its caller may make a call: it is asked with each of them.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::proto::v1;
use crate::proto::v1::operation_service_client::OperationServiceClient;
use crate::proto::v1::snapshot_service_client::SnapshotServiceClient;
use crate::proto::v1::volume_service_client::VolumeServiceClient;
use crate::proto::v1::watch_operation_response::Update;

/// How long a request waits for a VM that is busy. One client deletes several snapshots with one command, one request right
/// behind the other, and Cinder lets them wait, too.
const FREE: Duration = Duration::from_secs(60);

/// Between two attempts: who holds a VM may have ended, and not have let go of it yet.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a request waits for what it has begun: most of it is over by then, and what has failed is told at once.
const END: Duration = Duration::from_secs(5);

/// The calls that one caller may make.
#[derive(Clone)]
pub struct Calls(BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>);

/// A call as one of the functions of [`Calls`].
macro_rules! calls {
    ($($name:ident: $client:ident, $request:ident -> $response:ident;)*) => {
        impl Calls {
            $(pub(super) async fn $name(&self, request: v1::$request) -> Result<v1::$response, Refused> {
                // An answer comes from this process: it is as long as the daemon lets it be.
                let mut client = $client::new(self.0.clone()).max_decoding_message_size(usize::MAX);
                client.$name(request).await.map(tonic::Response::into_inner).map_err(Refused)
            })*
        }
    };
}

calls! {
    get_volume: VolumeServiceClient, GetVolumeRequest -> GetVolumeResponse;
    list_volumes: VolumeServiceClient, ListVolumesRequest -> ListVolumesResponse;
    create_volume_snapshot: VolumeServiceClient, CreateVolumeSnapshotRequest -> CreateVolumeSnapshotResponse;
    revert_volume: VolumeServiceClient, RevertVolumeRequest -> RevertVolumeResponse;
    clone_volume: VolumeServiceClient, CloneVolumeRequest -> CloneVolumeResponse;
    delete_volume: VolumeServiceClient, DeleteVolumeRequest -> DeleteVolumeResponse;
    get_snapshot: SnapshotServiceClient, GetSnapshotRequest -> GetSnapshotResponse;
    list_snapshots: SnapshotServiceClient, ListSnapshotsRequest -> ListSnapshotsResponse;
    update_snapshot: SnapshotServiceClient, UpdateSnapshotRequest -> UpdateSnapshotResponse;
    delete_snapshot: SnapshotServiceClient, DeleteSnapshotRequest -> DeleteSnapshotResponse;
    reset_snapshot_state: SnapshotServiceClient, ResetSnapshotStateRequest -> ResetSnapshotStateResponse;
    get_operation: OperationServiceClient, GetOperationRequest -> GetOperationResponse;
}

impl Calls {
    /// The calls that go to this service, which knows who makes them.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        Self(BoxCloneSyncService::new(service))
    }

    /// Makes a call, again if need be as soon as the VM that it is about is free.
    pub(super) async fn once_free<T, F>(&self, call: impl Fn(Self) -> F) -> Result<T, Refused>
    where
        F: Future<Output = Result<T, Refused>>,
    {
        let until = Instant::now() + FREE;
        loop {
            let refused = match call(self.clone()).await {
                Err(refused) if refused.reason() == v1::Reason::VmBusy => refused,
                answer => return answer,
            };
            let Some(holder) = refused.fact("operation_id") else { return Err(refused) };
            if Instant::now() >= until {
                return Err(refused);
            }
            // One that ends without a word is asked about again.
            let _ = tokio::time::timeout_at(until, self.follow(&holder)).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// An operation that this request has begun, as it is when it ends, or after a while.
    pub(super) async fn end_of(&self, begun: Option<v1::Operation>) -> Result<v1::Operation, Refused> {
        let begun = begun.unwrap_or_default();
        let followed = tokio::time::timeout(END, self.follow(&begun.id)).await;
        if let Ok(Ok(Some(ended))) = followed {
            return Ok(ended);
        }
        let request = v1::GetOperationRequest { operation_id: begun.id };
        Ok(self.get_operation(request).await?.operation.unwrap_or_default())
    }

    /// The last that is said of an operation.
    async fn follow(&self, id: &str) -> Result<Option<v1::Operation>, Refused> {
        let request = v1::WatchOperationRequest { operation_id: id.to_owned(), ..Default::default() };
        let mut client = OperationServiceClient::new(self.0.clone());
        let mut said = client.watch_operation(request).await.map_err(Refused)?.into_inner();
        let mut last = None;
        while let Some(message) = said.message().await.map_err(Refused)? {
            if let Some(Update::Operation(operation)) = message.update {
                last = Some(operation);
            }
        }
        Ok(last)
    }
}

/// Why a call was not carried out.
#[derive(Debug)]
pub(super) struct Refused(Status);

impl Refused {
    pub(super) fn code(&self) -> Code {
        self.0.code()
    }

    /// The reason of the contract.
    pub(super) fn reason(&self) -> v1::Reason {
        let details = self.0.get_error_details();
        let name = details.error_info().map(|info| format!("REASON_{}", info.reason));
        name.and_then(|name| v1::Reason::from_str_name(&name)).unwrap_or_default()
    }

    pub(super) fn message(&self) -> String {
        self.0.message().to_owned()
    }

    /// Whether another name would do.
    pub(super) fn is_about_name(&self) -> bool {
        let details = self.0.get_error_details();
        let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        self.reason() == v1::Reason::SnapshotExists
            || (!violations.is_empty() && violations.iter().all(|violation| violation.field == "name"))
    }

    pub(super) fn into_status(self) -> Status {
        self.0
    }

    /// A moving part of it.
    fn fact(&self, key: &str) -> Option<String> {
        self.0.get_error_details().error_info()?.metadata.get(key).cloned()
    }
}
