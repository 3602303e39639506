//! The listener and the server on it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};

use super::config::Config;
use super::start::StartError;
use crate::api::Api;
use crate::proto;

/// Listens on the configured socket. A socket that nobody answers on any more is replaced.
pub(super) fn listen(config: &Config) -> Result<UnixListener, StartError> {
    let path = &config.socket;
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
    Ok(listener)
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
    listener: UnixListener,
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
    let built = "our own descriptors are well formed";
    api.routes(
        Server::builder()
            // A peer that vanished without a word is noticed.
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10))),
    )
    .add_service(health)
    .add_service(describe().build_v1().expect(built))
    // Python's grpcio-reflection and older grpcurl ask for v1alpha.
    .add_service(describe().build_v1alpha().expect(built))
    .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
    .await
}
