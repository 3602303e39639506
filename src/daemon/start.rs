//! The start order: lock, catalog, hypervisor, recovery, listener, ready; and the same backwards.
//!
//! The hypervisor may be down: the daemon serves all the same and says so. It never comes and goes with libvirtd.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use super::admission::Limits;
use super::config::{Config, ConfigError};
use super::event_log::EventLog;
use super::metrics::Metrics;
use super::pace::Pace;
use super::reload::Reloading;
use super::serve::Ports;
use super::{controller, health, identity, lock, metrics, openstack, reload, serve, service};
use crate::api::{Api, Crowd, NodeIdentity};
use crate::host::images::{HostImages, ImageDeadlines};
use crate::host::libvirt::{Deadlines, Libvirt};
use crate::host::{Host, HostError};
use crate::ops::{Engine, OpsError, Settings};
use crate::plan::Places;
use crate::store::{Store, StoreError};

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory cannot be made.
    #[error("cannot make directory {}", .path.display())]
    Directory {
        /// Path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Another daemon has the state directory.
    #[error("another vmsnapd runs on {}", .0.display())]
    AlreadyRunning(PathBuf),
    /// The lock cannot be taken.
    #[error("cannot lock {}", .path.display())]
    Lock {
        /// Path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The catalog cannot be used.
    #[error("cannot use the catalog {}", .path.display())]
    Catalog {
        /// Path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: StoreError,
    },
    /// What an earlier life left cannot be read.
    #[error("cannot recover")]
    Recover(#[source] OpsError),
    /// What may be frozen cannot be read or noted.
    #[error("cannot thaw")]
    Thaw(#[source] OpsError),
    /// Nothing is written over.
    #[error(
        "there is a catalog already: {}; move it away together with what is named like it, or add --replace, which keeps it \
         under another name",
        .0.display()
    )]
    CatalogIsThere(PathBuf),
    /// What VMs there are has to be known.
    #[error("libvirt cannot be reached")]
    NoHypervisor,
    /// What is on the disks cannot be gathered.
    #[error("cannot gather what is there")]
    Rebuild(#[source] OpsError),
    /// The catalog that was made cannot take its place.
    #[error("cannot put the new catalog in the place of {}", .path.display())]
    Replace {
        /// Path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Guests may be frozen still.
    #[error("the guests of {vms} may be frozen or paused: {}; the next start of vmsnapd lets them go on", why(*.is_up))]
    Frozen {
        /// Their VMs.
        vms: String,
        /// Whether the hypervisor could be reached.
        is_up: bool,
    },
    /// Guests may be slowed still.
    #[error("the writes of the guests of {vms} may be slowed: {}; the next start of vmsnapd frees them", why_slowed(*.is_up))]
    Slowed {
        /// Their VMs.
        vms: String,
        /// Whether the hypervisor could be reached.
        is_up: bool,
    },
    /// A migration may go wrong.
    #[error(
        "the memory of {vms} may still be captured: {}; until the next start of vmsnapd ends that, they cannot be migrated",
        why_captured(*.is_up)
    )]
    Captured {
        /// Their VMs.
        vms: String,
        /// Whether the hypervisor could be reached.
        is_up: bool,
    },
    /// A value makes no sense.
    #[error("the configuration is wrong")]
    Config(#[from] ConfigError),
    /// Who may do what, or the certificates, cannot be used.
    #[error("cannot tell who may do what")]
    Access(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The port cannot be listened on.
    #[error("cannot listen on {address}")]
    ListenTcp {
        /// Address and port.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The socket cannot be listened on.
    #[error("cannot listen on {}", .path.display())]
    Listen {
        /// Path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The outside world cannot be used: qemu-img is missing, an address makes no sense.
    #[error("cannot use the hypervisor")]
    Host(#[source] HostError),
    /// Threads, signals, the runtime.
    #[error("cannot start")]
    System(#[source] io::Error),
    /// The listener ended by itself.
    #[error("the server failed")]
    Serve(#[source] tonic::transport::Error),
}

fn why(is_up: bool) -> &'static str {
    if is_up { "they do not say that they go on" } else { "libvirt cannot be reached" }
}

fn why_slowed(is_up: bool) -> &'static str {
    if is_up { "libvirt does not take the limits back" } else { "libvirt cannot be reached" }
}

fn why_captured(is_up: bool) -> &'static str {
    if is_up { "QEMU does not end that" } else { "libvirt cannot be reached" }
}

impl StartError {
    /// Why the catalog cannot be used, if that is why. Nothing was changed then.
    pub(super) fn refused_catalog(&self) -> Option<&StoreError> {
        match self {
            Self::Catalog { cause, .. }
            | Self::Recover(OpsError::Store(cause))
            | Self::Thaw(OpsError::Store(cause)) => Some(cause),
            _ => None,
        }
    }

    /// 78 where starting again changes nothing, else 1.
    pub(super) fn exit_code(&self) -> u8 {
        let needs_a_person = |refused: &StoreError| {
            matches!(
                refused,
                StoreError::Foreign
                    | StoreError::NotAFile(_)
                    | StoreError::Unreadable(_)
                    | StoreError::ForeignLog
                    | StoreError::TooNew { .. }
                    | StoreError::Corrupt(_)
                    | StoreError::Lost
                    // What is under way, or who is frozen, cannot be told: going on without it could cost data.
                    | StoreError::Malformed { .. }
            )
        };
        if self.refused_catalog().is_some_and(needs_a_person) {
            return 78;
        }
        match self {
            Self::Config(_) => 78,
            Self::Directory { .. }
            | Self::AlreadyRunning(_)
            | Self::Lock { .. }
            | Self::Catalog { .. }
            | Self::Recover(_)
            | Self::Thaw(_)
            | Self::CatalogIsThere(_)
            | Self::NoHypervisor
            | Self::Rebuild(_)
            | Self::Replace { .. }
            | Self::Frozen { .. }
            | Self::Slowed { .. }
            | Self::Captured { .. }
            | Self::Listen { .. }
            | Self::ListenTcp { .. }
            // Users may be looked up where nobody answers now; certificates may be about to be written.
            | Self::Access(_)
            | Self::Host(_)
            | Self::System(_)
            | Self::Serve(_) => 1,
        }
    }
}

/// Runs until a signal ends it.
pub(super) fn run(config: &Config) -> Result<(), StartError> {
    make_directory(&config.state_directory)?;
    make_directory(&config.memory_directory())?;
    let _lock = take_lock(&config.state_directory)?;
    let store = open_catalog(config)?;
    let runtime = tokio::runtime::Runtime::new().map_err(StartError::System)?;
    let result = runtime.block_on(serve_libvirt(config, store));
    // Calls into libvirt that are still out cannot be called back; the process does not wait for them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve_libvirt(config: &Config, store: Store) -> Result<(), StartError> {
    // Before anything else: a signal while the daemon starts is not lost.
    let told = told_to_go().map_err(StartError::System)?;
    Daemon::start(libvirt_host(config)?, store, config).await?.run(told).await
}

pub(super) fn open_catalog(config: &Config) -> Result<Store, StartError> {
    let catalog = config.catalog();
    Store::open(&catalog).map_err(|cause| StartError::Catalog { path: catalog, cause })
}

/// The node that the configuration names. Needs a runtime.
pub(super) fn libvirt_host(config: &Config) -> Result<Host, StartError> {
    let libvirt = Libvirt::connect(&config.libvirt_uri, Deadlines::default()).map_err(StartError::Host)?;
    Ok(Host {
        hypervisor: Arc::clone(&libvirt) as _,
        agent: Arc::clone(&libvirt) as _,
        images: HostImages::new(ImageDeadlines::default(), config.overlays()?).map_err(StartError::Host)?,
        emergency: libvirt.emergency(),
    })
}

/// How long streams have to end, and events to be logged, when the daemon goes down.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A daemon that has recovered and listens. It is the same over libvirt and over a simulated node.
pub struct Daemon {
    engine: Engine,
    health: HealthReporter,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    /// The listener for the OpenStack client, if there is one.
    web: Option<JoinHandle<()>>,
    event_log: EventLog,
    /// The file of the socket that we made.
    socket: Option<PathBuf>,
    addresses: Addresses,
    patience: Duration,
}

/// The ports that are listened on.
struct Addresses {
    /// For clients from the network.
    network: Option<SocketAddr>,
    /// For Prometheus.
    figures: Option<SocketAddr>,
    /// For the OpenStack client.
    openstack: Option<SocketAddr>,
}

impl Addresses {
    fn of(listeners: [&Option<TcpListener>; 3]) -> Self {
        let address = |listener: &Option<TcpListener>| listener.as_ref()?.local_addr().ok();
        let [network, figures, openstack] = listeners.map(address);
        Self { network, figures, openstack }
    }
}

impl Daemon {
    /// Recovers what an earlier life left, then listens. Calls are answered when this returns.
    pub async fn start(host: Host, store: Store, config: &Config) -> Result<Self, StartError> {
        let hangups = reload::hangups().map_err(StartError::System)?;
        let reloading = Reloading::start(config).await.map_err(|error| StartError::Access(error.into()))?;
        // Before anything is gone on with: where a port is taken, the next start tries again.
        let Ports { network, metrics: asked, openstack } = serve::bind_ports(config).await?;
        let addresses = Addresses::of([&network, &asked, &openstack]);
        // What is told from here on is kept for the controller, too.
        controller::keep_outbox(&store, config.controller.as_ref()).await;
        let engine = Engine::new(host, store, settings(config)?).map_err(StartError::System)?;
        // What the recovery does is logged, too.
        let event_log = EventLog::start(&engine);
        let stop = CancellationToken::new();
        let recovered = engine.recover().await.map_err(StartError::Recover)?;
        engine.attend(config.event_retention());
        let (listener, made) = serve::listen(config)?;
        let (health, health_service) = health::start(&engine, config);
        let identity = identity_of_node(config.state_directory.clone()).await?;
        let mut api = Api::new(engine.clone(), identity, config.state_directory.clone());
        api = api.reloading(Arc::clone(&reloading) as _);
        api.schedules().start();
        let (mut reporting, store) = (None, engine.store().clone());
        if let Some(controller) = config.controller.clone() {
            let (told, watched) = watch::channel(Err("it is called for the first time".to_owned()));
            health::watch_controller(health.clone(), watched.clone());
            api = api.reporting(watched.clone());
            reporting = Some(watched);
            tokio::spawn(controller::report(api.clone(), store, controller, told, stop.clone()));
        } else {
            tokio::spawn(async move { controller::prune_outbox(&store).await });
        }
        let metrics = Arc::new(Metrics::new().map_err(|error| StartError::System(io::Error::other(error)))?);
        if let Some(asked) = asked {
            let (metrics, engine, reporting) = (Arc::clone(&metrics), engine.clone(), reporting.clone());
            tokio::spawn(metrics::observe(Arc::clone(&metrics), engine.clone()));
            let state_directory = config.state_directory.clone();
            let source = metrics::listen::Source { metrics, engine, state_directory, reporting };
            tokio::spawn(metrics::listen::listen(asked, source, stop.clone()));
        }
        service::feed_watchdog(engine.clone());
        service::keep_status(engine.clone(), reporting);
        let limits = Arc::new(Limits {
            pace: Pace::of(config.pace()?),
            crowd: Crowd::of(config.crowd()?),
            refusals: Arc::default(),
            metrics,
        });
        let listeners = (listener, network);
        let current = reloading.current();
        let mut web = None;
        if let (Some(listener), Some(section)) = (openstack, &config.openstack) {
            let is_secured = section.is_secured(config);
            let (limits, routes) = (Arc::clone(&limits), api.within());
            let door = openstack::Door { limits, routes, desk: Arc::default(), guesses: Arc::default() };
            let serve = openstack::serve(listener, is_secured, current.clone(), door, stop.clone());
            web = Some(tokio::spawn(serve));
        }
        let serving =
            tokio::spawn(serve::serve(listeners, current, limits, api, health_service, stop.clone()));
        tokio::spawn(reload::on_hangup(reloading, hangups, stop.clone()));
        tracing::info!(socket = %config.socket.display(), recovered, "vmsnapd is ready");
        service::tell(&[NotifyState::Ready]);
        Ok(Self {
            engine,
            health,
            stop,
            serving,
            web,
            event_log,
            socket: made,
            addresses,
            patience: Duration::from_secs(config.drain_seconds),
        })
    }

    /// Where clients from the network are listened for, if they are.
    #[must_use]
    pub fn network(&self) -> Option<SocketAddr> {
        self.addresses.network
    }

    /// Where Prometheus asks for figures, if it may.
    #[must_use]
    pub fn figures(&self) -> Option<SocketAddr> {
        self.addresses.figures
    }

    /// Where the OpenStack client is answered, if it is.
    #[must_use]
    pub fn openstack(&self) -> Option<SocketAddr> {
        self.addresses.openstack
    }

    /// Serves until `told` to go; then takes no new work, lets operations come to a durable stop, ends the streams.
    pub async fn run(mut self, told: impl Future<Output = ()>) -> Result<(), StartError> {
        tokio::select! {
            () = told => {}
            // A server that ends by itself has failed, and a daemon that nobody can reach is none.
            served = &mut self.serving => {
                self.event_log.end(LAST_WORDS).await;
                return served.unwrap_or(Ok(())).map_err(StartError::Serve);
            }
        }
        tracing::info!(operations = self.engine.busy(), "vmsnapd goes down");
        service::tell(&[NotifyState::Stopping]);
        health::not_serving(&self.health).await;
        if tokio::time::timeout(self.patience, self.engine.drain()).await.is_err() {
            tracing::warn!("operations did not come to a stop in time; the next start goes on with them");
        }
        self.stop.cancel();
        let until = Instant::now() + LAST_WORDS;
        let served = tokio::time::timeout_at(until, self.serving).await;
        if let Some(web) = self.web {
            // Requests that are not answered by then are cut, too.
            let _ = tokio::time::timeout_at(until, web).await;
        }
        self.event_log.end(LAST_WORDS).await;
        // The socket is removed only by the daemon that made it, and only while it still holds the lock.
        let _ = self.socket.map(fs::remove_file);
        match served {
            Ok(Ok(result)) => result.map_err(StartError::Serve),
            // Streams that do not end are cut.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

async fn identity_of_node(state_directory: PathBuf) -> Result<NodeIdentity, StartError> {
    let read = tokio::task::spawn_blocking(move || identity::of_node(&state_directory)).await;
    read.map_err(|panicked| StartError::System(io::Error::other(panicked)))
}

/// Where files of ours are.
pub(super) fn places(config: &Config) -> Places {
    Places {
        memory: config.memory_directory(),
        images: config.image_directories.clone(),
        overlays: config.overlay_directory.clone(),
        reserve: config.reserve_bytes,
        low_space: config.space_warning_bytes,
    }
}

fn settings(config: &Config) -> Result<Settings, StartError> {
    Ok(Settings {
        places: places(config),
        live_pulls: config.live_pulls,
        background_captures: config.background_captures,
        memory_compression: config.memory_compression,
        concurrent_merges: config.concurrent_merges,
        merge_policy: config.merge_policy(),
        speed_policy: config.speed_policy(),
        concurrent_captures: config.concurrent_captures,
        backups: config.catalog_backups,
        boot_id: boot_id()?,
    })
}

/// This boot of the node.
pub(super) fn boot_id() -> Result<String, StartError> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(StartError::System)?;
    Ok(boot_id.trim().to_owned())
}

/// Memory images hold the secrets of guests: nobody else looks in.
pub(super) fn make_directory(path: &Path) -> Result<(), StartError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|cause| StartError::Directory { path: path.to_owned(), cause })
}

pub(super) fn take_lock(directory: &Path) -> Result<fs::File, StartError> {
    let lock = lock::take(directory);
    let lock = lock.map_err(|cause| StartError::Lock { path: directory.to_owned(), cause })?;
    lock.ok_or_else(|| StartError::AlreadyRunning(directory.to_owned()))
}

/// SIGTERM or SIGINT, from now on.
fn told_to_go() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
