//! The way to the daemon: its Unix socket.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::proto::v1::event_service_client::EventServiceClient;
use crate::proto::v1::node_service_client::NodeServiceClient;
use crate::proto::v1::operation_service_client::OperationServiceClient;
use crate::proto::v1::snapshot_service_client::SnapshotServiceClient;
use crate::proto::v1::vm_service_client::VmServiceClient;
use crate::proto::v1::volume_service_client::VolumeServiceClient;

/// The daemon. Connects with the first call, and again after each break.
pub(super) struct Daemon {
    channel: Channel,
}

impl Daemon {
    /// The daemon at a socket.
    pub(super) fn new(socket: &Path) -> Self {
        let socket: PathBuf = socket.to_owned();
        let connect = service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // Only a name: the connector above goes to the socket.
        let endpoint = Endpoint::from_static("http://localhost");
        Self { channel: endpoint.connect_with_connector_lazy(connect) }
    }

    pub(super) fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    pub(super) fn vms(&self) -> VmServiceClient<Channel> {
        VmServiceClient::new(self.channel.clone())
    }

    pub(super) fn snapshots(&self) -> SnapshotServiceClient<Channel> {
        SnapshotServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(super) fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    pub(super) fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone())
    }

    pub(super) fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel.clone())
    }
}

/// A fresh id, so that a call that is made again is the same call.
pub(super) fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
