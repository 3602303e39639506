//! Asking the daemon over gRPC, as a controller does that must know what came of each request: with a request id, again
//! after each break, until there is an answer.

use std::fmt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};
use tonic_types::StatusExt;
use vmsnap::proto::v1;
use vmsnap::proto::v1::operation_service_client::OperationServiceClient;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;
use vmsnap::proto::v1::volume_service_client::VolumeServiceClient;

/// Between two looks: the daemon is away for as long as it was killed.
const PAUSE: Duration = Duration::from_millis(50);
/// Only what is broken for good takes so long.
const PATIENCE: Duration = Duration::from_secs(240);

/// What a guest's worker asks for.
#[derive(Debug, Clone)]
pub enum Request {
    Create { vm: String, name: String, quiesce: v1::Quiesce, memory: bool },
    Revert { id: String },
    RevertVolume { volume: String, id: String },
    Delete { ids: Vec<String> },
    TakeVolume { name: String, from: v1::create_volume_snapshot_request::Source },
    Clone { id: String, disk: String, path: String, name: String, mode: v1::CloneMode },
    Flatten { volume: String },
    DeleteVolume { volume: String },
}

/// What came of a request.
#[derive(Debug)]
pub enum Ending {
    /// Nothing was begun; the reason in the contract's word.
    Refused(String),
    /// It was begun, and ended so: SUCCEEDED, FAILED or STUCK.
    Ended(Box<v1::Operation>),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "refused, {reason}"),
            Self::Ended(operation) => f.write_str(&outcome(operation)),
        }
    }
}

/// How an operation stands, in words: with its reason if it did not succeed.
pub fn outcome(operation: &v1::Operation) -> String {
    let state = operation.state().as_str_name().trim_start_matches("OPERATION_STATE_").to_lowercase();
    match &operation.error {
        None => state,
        Some(error) => format!("{state}, {}", error.reason().as_str_name().trim_start_matches("REASON_")),
    }
}

/// A line of one thread.
pub struct Line {
    runtime: Runtime,
    channel: Channel,
}

impl Line {
    pub fn to(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let channel = {
            let _context = runtime.enter();
            channel(socket)
        };
        Self { runtime, channel }
    }

    /// Asks and waits for the end, over any number of deaths of the daemon. After so many looks it is wanted no more.
    pub fn see_through(&self, request: &Request, cancelled_after: Option<usize>) -> Ending {
        let request_id = uuid::Uuid::now_v7().to_string();
        let begun = Instant::now();
        let operation = loop {
            match self.runtime.block_on(begin(self.channel.clone(), request.clone(), request_id.clone())) {
                Ok(operation) => break operation,
                Err(status) => {
                    if let Some(reason) = reason(&status) {
                        return Ending::Refused(reason);
                    }
                    assert!(begun.elapsed() < PATIENCE, "{request:?}: {status}");
                    sleep(PAUSE);
                }
            }
        };
        Ending::Ended(Box::new(self.follow(operation, cancelled_after)))
    }

    /// Waits for the end of an operation.
    fn follow(&self, mut operation: v1::Operation, cancelled_after: Option<usize>) -> v1::Operation {
        let begun = Instant::now();
        for look in 0.. {
            if is_over(&operation) {
                break;
            }
            if Some(look) == cancelled_after {
                self.cancel(&operation);
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end: {operation:#?}");
            sleep(PAUSE);
            if let Some(seen) = self.operation(&operation.id) {
                operation = seen;
            }
        }
        operation
    }

    /// What has gone too far goes on, and a daemon that is away does not hear of it.
    fn cancel(&self, operation: &v1::Operation) {
        let request = v1::CancelOperationRequest { operation_id: operation.id.clone(), ..Default::default() };
        let mut operations = OperationServiceClient::new(self.channel.clone());
        let _ = self.runtime.block_on(operations.cancel_operation(request));
    }

    /// Lets a stuck operation try again, and waits for its end.
    pub fn retry(&self, stuck: &v1::Operation) -> v1::Operation {
        let request = v1::ResolveOperationRequest {
            operation_id: stuck.id.clone(),
            action: v1::Resolution::Retry.into(),
            ..Default::default()
        };
        let mut operations = OperationServiceClient::new(self.channel.clone());
        match self.runtime.block_on(operations.resolve_operation(request)) {
            Ok(answer) => self.follow(answer.into_inner().operation.unwrap_or_default(), None),
            Err(status) => panic!("{status}: {stuck:#?}"),
        }
    }

    /// An operation as it is now; None if the daemon does not answer.
    pub fn operation(&self, id: &str) -> Option<v1::Operation> {
        let request = v1::GetOperationRequest { operation_id: id.to_owned() };
        let mut operations = OperationServiceClient::new(self.channel.clone());
        match self.runtime.block_on(operations.get_operation(request)) {
            Ok(answer) => answer.into_inner().operation,
            Err(status) => match reason(&status) {
                None => None,
                Some(_) => panic!("an operation that was begun is not known any more: {status}"),
            },
        }
    }
}

/// A channel that connects with the first call, and again after each break.
pub fn channel(socket: &Path) -> Channel {
    let socket: PathBuf = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .timeout(Duration::from_secs(20))
        .connect_with_connector_lazy(connect)
}

/// STUCK does not move until a person acts.
pub fn is_over(operation: &v1::Operation) -> bool {
    match operation.state() {
        v1::OperationState::Succeeded | v1::OperationState::Failed => operation.end_time.is_some(),
        v1::OperationState::Stuck => true,
        _ => false,
    }
}

/// The daemon's own answer has a reason; what a break of the connection gives has none.
fn reason(status: &Status) -> Option<String> {
    Some(status.get_details_error_info()?.reason)
}

async fn begin(channel: Channel, request: Request, request_id: String) -> Result<v1::Operation, Status> {
    let mut snapshots = SnapshotServiceClient::new(channel.clone());
    let mut volumes = VolumeServiceClient::new(channel);
    let operation = match request {
        Request::Create { vm, name, quiesce, memory } => {
            let quiesce = quiesce.into();
            let request =
                v1::CreateSnapshotRequest { vm, name, quiesce, memory, request_id, ..Default::default() };
            snapshots.create_snapshot(request).await.map(Response::into_inner)?.operation
        }
        Request::Revert { id } => {
            let request = v1::RevertSnapshotRequest { snapshot: id, request_id, ..Default::default() };
            snapshots.revert_snapshot(request).await.map(Response::into_inner)?.operation
        }
        Request::RevertVolume { volume, id } => {
            let request = v1::RevertVolumeRequest {
                volume,
                snapshot: id,
                stop: true,
                request_id,
                ..Default::default()
            };
            volumes.revert_volume(request).await.map(Response::into_inner)?.operation
        }
        Request::Delete { ids } => {
            let request =
                v1::BatchDeleteSnapshotsRequest { snapshots: ids, request_id, ..Default::default() };
            snapshots.batch_delete_snapshots(request).await.map(Response::into_inner)?.operation
        }
        Request::TakeVolume { name, from } => {
            let source = Some(from);
            let request = v1::CreateVolumeSnapshotRequest { source, name, request_id, ..Default::default() };
            volumes.create_volume_snapshot(request).await.map(Response::into_inner)?.operation
        }
        Request::Clone { id, disk, path, name, mode } => {
            let source = Some(v1::SnapshotDiskReference { snapshot: id, disk, ..Default::default() });
            let mode = mode.into();
            let request =
                v1::CloneVolumeRequest { source, path, name, mode, request_id, ..Default::default() };
            volumes.clone_volume(request).await.map(Response::into_inner)?.operation
        }
        Request::Flatten { volume } => {
            let request = v1::FlattenVolumeRequest { volume, request_id, ..Default::default() };
            volumes.flatten_volume(request).await.map(Response::into_inner)?.operation
        }
        Request::DeleteVolume { volume } => {
            let request = v1::DeleteVolumeRequest { volume, request_id, ..Default::default() };
            volumes.delete_volume(request).await.map(Response::into_inner)?.operation
        }
    };
    Ok(operation.expect("what was asked for in earnest has an operation"))
}
