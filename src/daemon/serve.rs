//! The listener and the server on it.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};

use super::access::Current;
use super::admission::{Admission, Limits};
use super::config::Config;
use super::connections;
use super::service;
use super::start::StartError;
use crate::api::Api;
use crate::proto;

/// Calls at once on one connection. tonic's own default is no limit at all, and each may hold a request and an answer.
const STREAMS: u32 = 64;

/// Headers of a call, in bytes. Ours have some hundred.
const HEADERS: u32 = 16 * 1024;

/// The ports that are listened on.
pub(super) struct Ports {
    /// For clients with a certificate.
    pub(super) network: Option<TcpListener>,
    /// For Prometheus.
    pub(super) metrics: Option<TcpListener>,
    /// For the OpenStack client.
    pub(super) openstack: Option<TcpListener>,
}

/// Takes the ports that the configuration names. Nobody is answered yet.
pub(super) async fn bind_ports(config: &Config) -> Result<Ports, StartError> {
    let network = bind(config.tcp.as_ref().map(|tcp| tcp.listen)).await?;
    let metrics = bind(config.metrics.as_ref().map(|metrics| metrics.listen)).await?;
    let openstack = bind(config.openstack.as_ref().map(|openstack| openstack.listen)).await?;
    Ok(Ports { network, metrics, openstack })
}

async fn bind(address: Option<SocketAddr>) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|cause| StartError::ListenTcp { address, cause })
}

/// Listens on the socket that systemd hands over, or else on the configured one. A socket that nobody answers on any more is
/// replaced. Gives the file of it, if we made it: then it is ours to remove.
pub(super) fn listen(config: &Config) -> Result<(UnixListener, Option<PathBuf>), StartError> {
    let path = &config.socket;
    let take = || -> io::Result<Option<UnixListener>> {
        let Some(listener) = service::handed_over()? else { return Ok(None) };
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Some)
    };
    if let Some(listener) = take().map_err(|cause| StartError::Listen { path: path.clone(), cause })? {
        return Ok((listener, None));
    }
    let bind = || -> io::Result<UnixListener> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path)?;
        Ok(listener)
    };
    let listener = bind().map_err(|cause| StartError::Listen { path: path.clone(), cause })?;
    let mode = Permissions::from_mode(config.mode()?);
    fs::set_permissions(path, mode).map_err(|cause| StartError::Listen { path: path.clone(), cause })?;
    Ok((listener, Some(path.clone())))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not a socket"));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody answers on it"));
    }
    fs::remove_file(path)
}

/// Serves until `stop`, then until the open calls have ended.
pub(super) async fn serve<H: Health>(
    (listener, network): (UnixListener, Option<TcpListener>),
    current: Current,
    limits: Arc<Limits>,
    api: Api,
    health: HealthServer<H>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let incoming = connections::incoming(listener, network, current, Arc::clone(&limits.refusals));
    let built = "our own descriptors are well formed";
    api.routes(
        Server::builder()
            // A peer that vanished without a word is noticed.
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .max_concurrent_streams(STREAMS)
            .http2_max_header_list_size(HEADERS)
            .layer(tower::layer::layer_fn(move |inner| Admission { inner, limits: Arc::clone(&limits) })),
    )
    .add_service(health)
    .add_service(describe().build_v1().expect(built))
    // Python's grpcio-reflection and older grpcurl ask for v1alpha.
    .add_service(describe().build_v1alpha().expect(built))
    .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
    .await
}
