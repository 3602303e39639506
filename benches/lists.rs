//! A page of 100 snapshots out of 100,000, asked for through gRPC: 1,000 VMs with 100 snapshots each.
//!
//! `cargo bench --bench lists`. DESIGN's bound is 10 ms for a page at the server; what is timed here is that and the way
//! there and back over the socket.

#![allow(clippy::unwrap_used, reason = "a benchmark stops where it fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use divan::Bencher;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;
use vmsnap::daemon::Daemon;
use vmsnap::daemon::config::Config;
use vmsnap::host::sim::SimHost;
use vmsnap::model::cursor::{Cursor, Outcome};
use vmsnap::model::snapshot::Owner;
use vmsnap::model::{
    Attachment, Consistency, DeleteSnapshots, DeletionReason, Findings, LayerId, Operation, OperationId,
    Request, RunState, Snapshot, SnapshotDisk, SnapshotId, SnapshotKind, SnapshotState, Step, VmId, VolumeId,
};
use vmsnap::proto::v1;
use vmsnap::proto::v1::node_service_client::NodeServiceClient;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;
use vmsnap::store::{Reservation, Store};

const VMS: u128 = 1000;
const SNAPSHOTS: u128 = 100_000;
/// Snapshots are a minute apart.
const APART_MS: i64 = 60_000;

fn main() {
    LazyLock::force(&NODE);
    divan::main();
}

/// What is asked for, by name. An owner has one in ten snapshots, a property's value one in a hundred.
fn cases() -> [(&'static str, v1::ListSnapshotsRequest); 15] {
    let ask = |order_by: &str, filter| v1::ListSnapshotsRequest {
        filter: Some(filter),
        order_by: order_by.to_owned(),
        ..Default::default()
    };
    let all = v1::SnapshotFilter::default;
    let account = || v1::SnapshotFilter { account: "account-3".to_owned(), ..all() };
    let property = |value: Option<&str>| v1::SnapshotFilter {
        properties: vec![v1::PropertyFilter { key: "ticket".to_owned(), value: value.map(str::to_owned) }],
        ..all()
    };
    let ready = || vec![v1::SnapshotState::Ready.into()];
    let half = Timestamp::from_millisecond(50_000 * APART_MS).unwrap();
    let half = prost_types::Timestamp { seconds: half.as_second(), nanos: 0 };
    [
        ("everything", ask("", all())),
        ("everything, by name", ask("name", all())),
        ("everything, by VM", ask("vm_name desc", all())),
        ("everything, the last page", v1::ListSnapshotsRequest { page_token: last_page(), ..ask("", all()) }),
        ("one VM", ask("", v1::SnapshotFilter { vm: vm(17).to_string(), ..all() })),
        ("one volume", ask("", v1::SnapshotFilter { volume_id: volume(17).to_string(), ..all() })),
        ("one account", ask("", account())),
        ("one account, by name", ask("name", account())),
        ("ready", ask("", v1::SnapshotFilter { states: ready(), ..all() })),
        ("in error", ask("", v1::SnapshotFilter { states: vec![v1::SnapshotState::Error.into()], ..all() })),
        ("name prefix", ask("name", v1::SnapshotFilter { name_prefix: "nightly-04".to_owned(), ..all() })),
        ("one property's value", ask("", property(Some("42")))),
        ("any value, and ready", ask("", v1::SnapshotFilter { states: ready(), ..property(None) })),
        ("any value of a property", ask("", property(None))),
        ("the older half", ask("", v1::SnapshotFilter { created_before: Some(half), ..all() })),
    ]
}

#[divan::bench(args = cases().map(|(name, _)| name), sample_count = 50, sample_size = 1)]
fn page(bencher: Bencher<'_, '_>, name: &str) {
    let (_, request) = cases().into_iter().find(|(case, _)| *case == name).unwrap();
    bencher.bench(|| NODE.list(request.clone()));
}

static NODE: LazyLock<Node> = LazyLock::new(Node::fill);

struct Node {
    runtime: Runtime,
    channel: Channel,
    _directory: TempDir,
}

impl Node {
    fn fill() -> Self {
        // Filling syncs the file for each snapshot; where that is free, it takes seconds.
        let memory = Path::new("/dev/shm");
        let directory =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let store = Store::open(&directory.path().join("catalog.db")).unwrap();
        let runtime = Runtime::new().unwrap();
        let config = Config {
            socket: directory.path().join("vmsnapd.sock"),
            state_directory: directory.path().to_owned(),
            ..Config::default()
        };
        let channel = runtime.block_on(async {
            for number in 0..SNAPSHOTS {
                let reservation = Reservation::Snapshot(Box::new(snapshot(number)), String::new());
                store.begin(operation(number), None, reservation).await.unwrap();
            }
            // Snapshots of VMs that are not there would become LOST meanwhile.
            let sim = SimHost::new();
            for number in 0..VMS {
                sim.vm(&vm_name(number)).build();
            }
            let daemon = Daemon::start(sim.host(), store, &config).await.unwrap();
            tokio::spawn(daemon.run(std::future::pending()));
            let connector = tower::service_fn(move |_| {
                let socket = config.socket.clone();
                async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
            });
            let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
            // What the start looks at is over, too, when this is.
            NodeServiceClient::new(channel.clone()).check_node(v1::CheckNodeRequest {}).await.unwrap();
            channel
        });
        Self { runtime, channel, _directory: directory }
    }

    fn list(&self, request: v1::ListSnapshotsRequest) -> v1::ListSnapshotsResponse {
        let mut client = SnapshotServiceClient::new(self.channel.clone());
        self.runtime.block_on(client.list_snapshots(request)).unwrap().into_inner()
    }
}

/// The token of the last page of everything, found as a client finds it, in large steps.
fn last_page() -> String {
    static TOKEN: LazyLock<String> = LazyLock::new(|| {
        // As `ask("", all())` asks: a token goes with its list.
        let filter = Some(v1::SnapshotFilter::default());
        let mut request = v1::ListSnapshotsRequest { filter, page_size: 1000, ..Default::default() };
        loop {
            let next = NODE.list(request.clone()).next_page_token;
            if next.is_empty() {
                return request.page_token;
            }
            request.page_token = next;
        }
    });
    TOKEN.clone()
}

fn vm_name(number: u128) -> String {
    format!("web-{:04}", number % VMS)
}

/// As the simulated node identifies a VM of that name.
fn vm(number: u128) -> VmId {
    VmId(Uuid::new_v5(&Uuid::NAMESPACE_OID, vm_name(number).as_bytes()))
}

fn volume(number: u128) -> VolumeId {
    VolumeId(Uuid::from_u128(number % VMS + VMS))
}

fn snapshot(number: u128) -> Snapshot {
    let disk = |target: &str| SnapshotDisk {
        target: target.parse().unwrap(),
        volume: volume(number),
        layer: LayerId(Uuid::from_u128(number)),
        virtual_size: 1 << 40,
        allocated: 1 << 30,
    };
    Snapshot {
        id: SnapshotId(Uuid::from_u128(number)),
        vm: vm(number),
        vm_name: vm_name(number),
        attachment: Attachment::Attached,
        name: format!("nightly-{number:06}").parse().unwrap(),
        display_name: format!("Nightly {number}"),
        description: "Made by the schedule of every night, before the backup.".to_owned(),
        kind: SnapshotKind::VmDisks,
        trouble: None,
        state: if number.is_multiple_of(1000) { SnapshotState::Error } else { SnapshotState::Ready },
        parent: (number >= VMS).then(|| SnapshotId(Uuid::from_u128(number - VMS))),
        source: None,
        disks: vec![disk("vda"), disk("vdb")],
        memory: None,
        variables: None,
        run_state: RunState::Running,
        consistency: Some(Consistency::FileSystem),
        frozen_ms: 20.0,
        paused_ms: 2.0,
        owner: Owner { account: format!("account-{}", number % 10), ..Owner::default() },
        properties: BTreeMap::from([("ticket".to_owned(), (number % 100).to_string())]),
        holds: Vec::new(),
        comments: 0,
        expires_at: None,
        created_at: Timestamp::from_millisecond(i64::try_from(number).unwrap() * APART_MS).unwrap(),
        schedule: None,
        created_by: "bench".to_owned(),
        operation: OperationId(Uuid::from_u128(number)),
        generation: 1,
    }
}

/// One that has ended: a snapshot is entered together with what made it.
fn operation(number: u128) -> Operation {
    let snapshot = SnapshotId(Uuid::from_u128(number));
    let mut cursor = Cursor::start(1, 0).unwrap();
    cursor.record(cursor.turn().unwrap(), Outcome::Done);
    Operation {
        id: OperationId(Uuid::from_u128(number)),
        vm: vm(number),
        vm_name: vm_name(number),
        attachment: Attachment::Attached,
        snapshot: Some(snapshot),
        snapshot_name: None,
        request: Request::DeleteSnapshots(DeleteSnapshots {
            snapshots: vec![snapshot],
            with_children: false,
            bandwidth: None,
            merge_deadline_ms: None,
            generation: None,
            reason: DeletionReason::Asked,
        }),
        created_by: "bench".to_owned(),
        request_id: String::new(),
        steps: vec![Step::Thaw],
        cursor,
        failure: None,
        later_failure: None,
        findings: Findings::default(),
        cancel_requested: false,
        was_abandoned: false,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
        generation: 1,
    }
}
