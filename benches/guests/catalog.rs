//! A catalog of very many snapshots: how long a page of them takes, and what the daemon holds of it.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use uuid::Uuid;
use vmsnap::model::rebuilt::RebuiltTree;
use vmsnap::model::snapshot::Owner;
use vmsnap::model::{
    Attachment, Consistency, LayerTree, OperationId, RunState, Snapshot, SnapshotId, SnapshotKind,
    SnapshotState, VmId,
};
use vmsnap::proto::v1;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;
use vmsnap::store::write_anew;

use super::agent::resident;
use super::arms::OURS;
use super::bed::{Daemon, Disk, Format, Guest, Spec, wait_until};
use super::figure::{self, Figure, Samples};
use super::measure::processor;

const SNAPSHOTS: [u32; 3] = [1_000, 10_000, 100_000];
/// They are off, as a node has them that is about to be used.
const VMS: u32 = 32;
const PAGE: i32 = 100;
/// For 100,000 snapshots.
const SETTLES: Duration = Duration::from_secs(600);
/// Who takes no more milliseconds than this in a second has nothing to do.
const LOOK: Duration = Duration::from_secs(1);
const IDLE: f64 = 20.0;

pub fn figures(blocks: usize) -> Vec<Figure> {
    let of = |name, title, unit, note| Figure::plain(name, title, unit, "snapshots", note);
    let figures = vec![
        of(
            "list-page",
            "A page of 100 snapshots",
            "ms",
            "From the call to the answer at a client that stays connected, the client's own work included. Page after page, the \
             newest first.",
        ),
        of(
            "list-page-server",
            "A page of 100 snapshots, at the server",
            "ms",
            "Processor time of `vmsnapd` from one call to the next, gRPC and all its threads included, in that same run: what a \
             page takes there once nobody waits for a processor.",
        ),
        of(
            "catalog-memory",
            "Resident memory with 32 VMs",
            "MiB",
            "`VmRSS`, after all snapshots were listed; of that, what is the daemon's own alone is `RssAnon`.",
        ),
    ];
    figure::measured(figures, &SNAPSHOTS, |snapshots| case(snapshots, blocks))
}

fn case(snapshots: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let spec = Spec { disks: vec![Disk::new(Format::Qcow2); 2], ..Spec::default() };
    let first = Guest::define(&spec);
    let mut guests: Vec<Guest> = (1..VMS).map(|_| first.define_beside(&spec)).collect();
    guests.push(first);
    let mut daemon = Daemon::start();
    daemon.stop();
    fill(&daemon, &guests, snapshots);
    daemon.restart();
    settle(daemon.id());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pages = runtime.block_on(async {
        let mut client = SnapshotServiceClient::new(daemon.connect().await.unwrap());
        let mut pages = Vec::new();
        let mut spent = processor(daemon.id());
        for _ in 0..=blocks {
            let mut request = v1::ListSnapshotsRequest { page_size: PAGE, ..Default::default() };
            loop {
                let asked = Instant::now();
                let answer = client.list_snapshots(request.clone()).await.unwrap().into_inner();
                let waited = asked.elapsed().as_secs_f64() * 1e3;
                let before = std::mem::replace(&mut spent, processor(daemon.id()));
                pages.push([waited, spent - before]);
                if answer.next_page_token.is_empty() {
                    break;
                }
                request.page_token = answer.next_page_token;
            }
        }
        pages
    });
    let of = |number: usize| {
        let pairs = pages.chunks_exact(2).map(|pair| [pair[0][number], pair[1][number]]);
        vec![Samples { arm: OURS, blocks: pairs.collect() }]
    };
    vec![of(0), of(1), resident(daemon.id())]
}

/// It looks after the manifests of all of them first, which is done once.
fn settle(daemon: u32) {
    let is_idle = || {
        let before = processor(daemon);
        sleep(LOOK);
        processor(daemon) - before < IDLE
    };
    wait_until("vmsnapd has nothing to do", SETTLES, is_idle);
}

/// Puts a catalog with so many snapshots in the place of the daemon's.
fn fill(daemon: &Daemon, guests: &[Guest], snapshots: u32) {
    let each = snapshots / VMS;
    let trees: Vec<RebuiltTree> = guests.iter().map(|guest| tree(guest, each)).collect();
    let catalog = daemon.state_directory().join("catalog.db");
    for log in ["catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(daemon.state_directory().join(log));
    }
    write_anew(&catalog, &trees, Timestamp::now()).unwrap();
}

fn tree(guest: &Guest, snapshots: u32) -> RebuiltTree {
    let vm = VmId(guest.virsh("domuuid", &[]).trim().parse().unwrap());
    let snapshots = (0..snapshots).map(|number| snapshot(vm, guest.name(), number)).collect();
    let tree = LayerTree { snapshots, ..LayerTree::empty(vm) };
    RebuiltTree { tree, definitions: BTreeMap::new(), comments: Vec::new(), manifests: BTreeMap::new() }
}

fn snapshot(vm: VmId, vm_name: &str, number: u32) -> Snapshot {
    Snapshot {
        id: SnapshotId(Uuid::now_v7()),
        vm,
        vm_name: vm_name.to_owned(),
        attachment: Attachment::Attached,
        name: format!("nightly-{number}").parse().unwrap(),
        display_name: String::new(),
        description: "taken each night".to_owned(),
        kind: SnapshotKind::VmDisks,
        state: SnapshotState::Ready,
        trouble: None,
        parent: None,
        source: None,
        disks: Vec::new(),
        memory: None,
        variables: None,
        run_state: RunState::Running,
        consistency: Some(Consistency::FileSystem),
        frozen_ms: 50.0,
        paused_ms: 0.0,
        owner: Owner { account: "alice".to_owned(), ..Owner::default() },
        properties: BTreeMap::from([("tier".to_owned(), "gold".to_owned())]),
        holds: Vec::new(),
        comments: 0,
        expires_at: None,
        created_at: Timestamp::from_second(1_700_000_000 + i64::from(number)).unwrap(),
        schedule: None,
        created_by: "bench".to_owned(),
        operation: OperationId::new(),
        generation: 1,
    }
}
