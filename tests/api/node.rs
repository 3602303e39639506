//! A simulated node with a daemon on it, and the ways to reach it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use vmsnap::daemon::config::{Config, ControllerConfig, Origin};
use vmsnap::daemon::{Daemon, StartError};
use vmsnap::host::sim::{BLOCK, Fault, Hold, Method, Mishap, Moment, SimHost, Trigger};
use vmsnap::model::step::NewOverlay;
use vmsnap::model::vm::Format;
use vmsnap::model::{DiskTarget, VmId};
use vmsnap::proto::v1;
use vmsnap::proto::v1::event_service_client::EventServiceClient;
use vmsnap::proto::v1::node_service_client::NodeServiceClient;
use vmsnap::proto::v1::operation_service_client::OperationServiceClient;
use vmsnap::proto::v1::schedule_service_client::ScheduleServiceClient;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;
use vmsnap::proto::v1::vm_service_client::VmServiceClient;
use vmsnap::proto::v1::volume_service_client::VolumeServiceClient;
use vmsnap::store::Store;

/// What only a broken daemon does not do in time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Until the call that is held is made.
pub async fn reached(hold: &Hold) {
    tokio::time::timeout(PATIENCE, hold.reached()).await.expect("the call that is held is made");
}

/// A node with the VM `web` on it, and a daemon.
pub struct Node {
    pub sim: SimHost,
    pub vm: VmId,
    store: Store,
    directory: TempDir,
    controller: Option<ControllerConfig>,
    /// The text of its configuration is in a file, and can be read again.
    configured: bool,
    life: Option<Life>,
}

/// A runtime that can be dropped while another one runs on the thread.
struct Apart(Option<Runtime>);

impl Drop for Apart {
    fn drop(&mut self) {
        let runtime = self.0.take();
        // Returns when every task has been dropped where it stood.
        std::thread::spawn(move || drop(runtime)).join().unwrap();
    }
}

/// One life of the daemon.
struct Life {
    /// First: dropping it is the crash.
    runtime: Apart,
    told: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), StartError>>,
    network: Option<SocketAddr>,
    figures: Option<SocketAddr>,
    openstack: Option<SocketAddr>,
}

impl Node {
    /// One with a running VM of two disks.
    pub fn start() -> Self {
        let sim = SimHost::new();
        let vm = sim.vm("web").disks(2).build();
        Self::start_with(sim, vm)
    }

    /// The same, with a controller on this machine.
    pub fn reporting_to(endpoint: String) -> Self {
        let (ca, certificate, key, server_name) = (None, None, None, None);
        let outbox_bytes = 1 << 20;
        Self::reporting_with(ControllerConfig { endpoint, ca, certificate, key, server_name, outbox_bytes })
    }

    /// The same, with any controller.
    pub fn reporting_with(controller: ControllerConfig) -> Self {
        let sim = SimHost::new();
        let vm = sim.vm("web").disks(2).build();
        let mut node = Self::without_daemon(sim, vm);
        node.controller = Some(controller);
        node.restart();
        node
    }

    /// One with a world of its own.
    pub fn start_with(sim: SimHost, vm: VmId) -> Self {
        let mut node = Self::without_daemon(sim, vm);
        node.restart();
        node
    }

    /// One whose configuration is this text, and what every node of the tests has.
    pub fn configured(sim: SimHost, vm: VmId, text: &str) -> Self {
        let mut node = Self::without_daemon(sim, vm);
        node.configured = true;
        node.configure(text);
        node.restart();
        node
    }

    /// Another text, for when it is read again.
    pub fn configure(&self, text: &str) {
        let all = format!("image_directories = ['/images']\ndrain_seconds = 30\n{text}");
        std::fs::write(self.configuration(), all).unwrap();
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("vmsnapd.toml")
    }

    /// Where the daemon takes calls from the network.
    pub fn network(&self) -> SocketAddr {
        self.life.as_ref().and_then(|life| life.network).expect("it listens on the network")
    }

    /// Where Prometheus asks the daemon.
    pub fn figures(&self) -> SocketAddr {
        self.life.as_ref().and_then(|life| life.figures).expect("it has a listener for metrics")
    }

    /// Where the daemon answers the OpenStack client.
    pub fn openstack(&self) -> SocketAddr {
        self.life.as_ref().and_then(|life| life.openstack).expect("it has a listener for OpenStack")
    }

    fn without_daemon(sim: SimHost, vm: VmId) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("catalog.db")).unwrap();
        Self { sim, vm, store, directory, controller: None, configured: false, life: None }
    }

    /// Another life of the daemon.
    pub fn restart(&mut self) {
        assert!(self.life.is_none(), "a daemon runs");
        let config = self.config();
        let (host, store) = (self.sim.host(), self.store.clone());
        let runtime = Runtime::new().unwrap();
        let starting = runtime.spawn(async move { Daemon::start(host, store, &config).await });
        let daemon = wait(starting).unwrap().unwrap();
        let (told, hear) = oneshot::channel::<()>();
        let (network, figures, openstack) = (daemon.network(), daemon.figures(), daemon.openstack());
        let serving = runtime.spawn(daemon.run(async { drop(hear.await) }));
        self.life = Some(Life { runtime: Apart(Some(runtime)), told, serving, network, figures, openstack });
    }

    /// The daemon dies: every task is dropped where it stands.
    pub fn crash(&mut self) {
        assert!(self.life.take().is_some(), "no daemon runs");
        // A program that another test has just forked has all descriptors of this process until it is executed: the listener,
        // too, and whoever connects to that is not told that nobody is there. No event tells when it is gone.
        let died = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_ok() {
            assert!(died.elapsed() < PATIENCE, "the listener has outlived its daemon");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Tells the daemon to go, as SIGTERM does. Gives what waits for its end.
    pub fn tell_to_go(&mut self) -> Going {
        let life = self.life.take().unwrap();
        life.told.send(()).unwrap();
        Going { runtime: life.runtime, serving: life.serving }
    }

    /// The catalog, while no daemon runs or beside one.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("vmsnapd.sock")
    }

    fn config(&self) -> Config {
        if self.configured {
            let (socket, state_directory) = (Some(self.socket()), Some(self.directory.path().to_owned()));
            let origin = Origin { path: Some(self.configuration()), socket, state_directory };
            return Config::load(&origin).unwrap();
        }
        Config {
            socket: self.socket(),
            state_directory: self.directory.path().to_owned(),
            image_directories: vec!["/images".into()],
            drain_seconds: 30,
            controller: self.controller.clone(),
            ..Config::default()
        }
    }

    pub fn channel(&self) -> Channel {
        let socket = self.socket();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
    }

    pub fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel())
    }

    pub fn vms(&self) -> VmServiceClient<Channel> {
        VmServiceClient::new(self.channel())
    }

    pub fn snapshots(&self) -> SnapshotServiceClient<Channel> {
        SnapshotServiceClient::new(self.channel())
    }

    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel())
    }

    pub fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel())
    }

    pub fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel())
    }

    pub fn schedules(&self) -> ScheduleServiceClient<Channel> {
        ScheduleServiceClient::new(self.channel())
    }

    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel())
    }

    /// Begins a snapshot.
    pub async fn begin(&self, name: &str) -> v1::Operation {
        let answer = self.snapshots().create_snapshot(create("web", name)).await.unwrap();
        answer.into_inner().operation.unwrap()
    }

    /// Takes a snapshot.
    pub async fn take(&self, name: &str) -> v1::Snapshot {
        let begun = self.begin(name).await;
        let ended = self.end_of(&begun.id).await;
        assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
        self.snapshot(name).await
    }

    pub async fn snapshot(&self, name: &str) -> v1::Snapshot {
        let request = v1::GetSnapshotRequest { snapshot: name.to_owned(), vm: "web".to_owned() };
        self.snapshots().get_snapshot(request).await.unwrap().into_inner().snapshot.unwrap()
    }

    /// The names of all snapshots, oldest first.
    pub async fn names(&self) -> Vec<String> {
        let list = self.snapshots().list_snapshots(oldest_first()).await.unwrap();
        list.into_inner().snapshots.into_iter().map(|snapshot| snapshot.name).collect()
    }

    pub async fn operation(&self, id: &str) -> v1::Operation {
        let request = v1::GetOperationRequest { operation_id: id.to_owned() };
        self.operations().get_operation(request).await.unwrap().into_inner().operation.unwrap()
    }

    /// Waits until a part is ill for a reason with these words. Only its health has an event, not its reason.
    pub async fn until_part_says(&self, part: &str, words: &str) {
        let look = async {
            loop {
                let node =
                    self.nodes().get_node(v1::GetNodeRequest {}).await.unwrap().into_inner().node.unwrap();
                let part = node.parts.into_iter().find(|found| found.name == part).unwrap();
                if part.reason.contains(words) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look)
            .await
            .unwrap_or_else(|_| panic!("{part} does not say {words:?}"));
    }

    /// Follows an operation until it does not move any more.
    pub async fn end_of(&self, id: &str) -> v1::Operation {
        let request = v1::WatchOperationRequest { operation_id: id.to_owned(), ..Default::default() };
        let follow = async {
            let mut stream = self.operations().watch_operation(request).await.unwrap().into_inner();
            let mut last = None;
            while let Some(message) = stream.message().await.unwrap() {
                if let Some(v1::watch_operation_response::Update::Operation(operation)) = message.update {
                    last = Some(operation);
                }
            }
            last.unwrap()
        };
        tokio::time::timeout(PATIENCE, follow).await.expect("the operation does not end")
    }

    /// Every call of a method goes wrong.
    pub fn strike(&self, method: Method, mishap: Mishap) {
        self.sim.add_fault(Fault { at: Trigger::Each(method), moment: Moment::Before, mishap });
    }

    /// The next call of a method has its effect, and is held.
    pub fn hold(&self, method: Method) -> Hold {
        let hold = Hold::default();
        let occurrence = self.calls_of(method) + 1;
        let at = Trigger::Call(vmsnap::host::sim::Call { method, occurrence });
        self.sim.add_fault(Fault { at, moment: Moment::After, mishap: Mishap::Late(hold.clone()) });
        hold
    }

    /// What has been done to the world, looks and manifests aside.
    pub fn acts(&self) -> usize {
        let is_act = |method: Method| !method.is_look() && method != Method::WriteFile;
        self.sim.calls().iter().filter(|call| is_act(call.method)).count()
    }

    /// How often the daemon has made such a call.
    pub fn calls_of(&self, method: Method) -> usize {
        self.sim.calls().iter().filter(|call| call.method == method).count()
    }

    /// All files but manifests.
    pub fn images(&self) -> Vec<PathBuf> {
        let files = self.sim.files().into_iter();
        files.filter(|file| file.extension().is_none_or(|ending| ending != "manifest")).collect()
    }

    /// Somebody makes an overlay by hand.
    pub async fn overlay(&self, path: &str, backing: &str) {
        let overlay = NewOverlay {
            target: "vda".parse().unwrap(),
            path: path.into(),
            backing_path: backing.into(),
            backing_format: Format::Qcow2,
            virtual_size: BLOCK,
        };
        self.sim.host().images.create_overlay(&overlay).await.unwrap();
    }

    pub fn write(&self, block: u64, value: u64) {
        for disk in disks() {
            self.sim.guest_write(self.vm, &disk, block, value).unwrap();
        }
    }

    pub fn read(&self, block: u64) -> [u64; 2] {
        disks().map(|disk| self.sim.guest_read(self.vm, &disk, block).unwrap())
    }
}

/// A daemon that was told to go.
pub struct Going {
    runtime: Apart,
    serving: JoinHandle<Result<(), StartError>>,
}

impl Going {
    /// Waits for its end.
    pub async fn gone(mut self) {
        let served = tokio::time::timeout(PATIENCE, &mut self.serving).await.expect("the daemon does not go");
        served.unwrap().unwrap();
        drop(self.runtime);
    }
}

/// Waits for a task of another runtime.
fn wait<T: Send + 'static>(task: JoinHandle<T>) -> Result<T, tokio::task::JoinError> {
    std::thread::spawn(move || tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(task))
        .join()
        .unwrap()
}

pub fn disks() -> [DiskTarget; 2] {
    ["vda", "vdb"].map(|disk| disk.parse().unwrap())
}

/// The first of them.
pub fn vda() -> DiskTarget {
    "vda".parse().unwrap()
}

pub fn create(vm: &str, name: &str) -> v1::CreateSnapshotRequest {
    v1::CreateSnapshotRequest { vm: vm.to_owned(), name: name.to_owned(), ..Default::default() }
}

pub fn delete(name: &str) -> v1::DeleteSnapshotRequest {
    v1::DeleteSnapshotRequest { snapshot: name.to_owned(), vm: "web".to_owned(), ..Default::default() }
}

pub fn revert(name: &str) -> v1::RevertSnapshotRequest {
    v1::RevertSnapshotRequest { snapshot: name.to_owned(), vm: "web".to_owned(), ..Default::default() }
}

/// A failed call has this code and this reason.
#[track_caller]
pub fn assert_refused(status: &Status, code: Code, reason: &str) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("{status:?} has no reason"));
    assert_eq!((status.code(), info.reason.as_str()), (code, reason), "{status:?}");
    assert_eq!(info.domain, "vmsnap");
    assert_eq!(info.metadata["changed"], "nothing");
    assert!(!info.metadata["remedy"].is_empty(), "{status:?} says nothing of what to do");
}

/// Asks for all snapshots in the order they were made in.
pub fn oldest_first() -> v1::ListSnapshotsRequest {
    v1::ListSnapshotsRequest { order_by: "create_time".to_owned(), ..Default::default() }
}
