//! The way to the daemon: its Unix socket, or TLS to that of another node.

use std::fs;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tower::service_fn;

use super::args::Global;
use super::failure::{Failure, exit};
use crate::proto::v1::event_service_client::EventServiceClient;
use crate::proto::v1::node_service_client::NodeServiceClient;
use crate::proto::v1::operation_service_client::OperationServiceClient;
use crate::proto::v1::schedule_service_client::ScheduleServiceClient;
use crate::proto::v1::snapshot_service_client::SnapshotServiceClient;
use crate::proto::v1::vm_service_client::VmServiceClient;
use crate::proto::v1::volume_service_client::VolumeServiceClient;

/// How long a connection to another node may take.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(10);

/// The daemon. Connects with the first call, and again after each break.
pub(super) struct Daemon {
    channel: Channel,
}

impl Daemon {
    /// The daemon that is meant.
    pub(super) fn new(global: &Global) -> Result<Self, Failure> {
        let remote = &global.remote;
        match (&remote.host, &remote.tls_ca, &remote.tls_certificate, &remote.tls_key) {
            (Some(host), Some(ca), Some(certificate), Some(key)) => {
                let identity = Identity::from_pem(read(certificate)?, read(key)?);
                let tls = ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(read(ca)?))
                    .identity(identity);
                Self::of_node(host, tls)
            }
            // Without a host there is nobody to show a certificate to.
            _ => Ok(Self::at(&global.socket)),
        }
    }

    fn of_node(host: &str, tls: ClientTlsConfig) -> Result<Self, Failure> {
        let cannot = |error: tonic::transport::Error| {
            let message = format!("{host:?} cannot be used: {}", source_of(&error));
            Failure::new(exit::USAGE, message, "name the node and its port, as in node-7.example:7443")
        };
        let endpoint = Endpoint::from_shared(format!("https://{host}")).map_err(cannot)?;
        let endpoint = endpoint.connect_timeout(CONNECT).tls_config(tls).map_err(cannot)?;
        Ok(Self { channel: endpoint.connect_lazy() })
    }

    /// The daemon at a socket.
    fn at(socket: &Path) -> Self {
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

    pub(super) fn schedules(&self) -> ScheduleServiceClient<Channel> {
        ScheduleServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(super) fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel.clone())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| {
        Failure::new(
            exit::USAGE,
            format!("cannot read {}: {error}", path.display()),
            "name a file that can be read",
        )
    })
}

fn source_of(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// A fresh id, so that a call that is made again is the same call.
pub(super) fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
