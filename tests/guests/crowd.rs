//! A crowd for minutes: clients that call, and many more that watch, while a real guest is snapshotted and merged. Each gets all
//! that it asks for, in order, and the daemon does not grow. `make crowd` runs it for ten minutes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use vmsnap::proto::v1;
use vmsnap::proto::v1::event_service_client::EventServiceClient;
use vmsnap::proto::v1::operation_service_client::OperationServiceClient;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;
use vmsnap::proto::v1::vm_service_client::VmServiceClient;
use vmsnap::proto::v1::watch_events_response::Update;

use nix::sys::resource::{Resource, setrlimit};

use crate::bed::{Client, Daemon, Guest, Setup, Spec, process, wait_until};

/// As the unit has it, and enough for the other end.
const DESCRIPTORS: u64 = 8192;

const CLIENTS: usize = 200;
const WATCHERS: usize = 1000;

/// Each client calls so often.
const PACE: Duration = Duration::from_secs(1);

/// Snapshots that are taken and merged before: a page of operations is full then, and a connection keeps the last frame of the last
/// answer, with all that lies around it, until the next one.
const BEFORE: usize = 55;

/// A client waits for so long: the machine has a guest, the daemon and all clients on its processors.
const ANSWER: Duration = Duration::from_secs(60);

/// What the second half may add: pages that the allocator keeps, KiB. A watch keeps the most that it ever had to say at once.
const SLACK: u64 = 16 * 1024;

/// Until the last of the crowd has been told what there is.
const END: Duration = Duration::from_secs(120);

/// What a limit of docs/OPERATIONS.md has refused, and nothing else: it says when to come again.
fn is_a_limit(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.get_details_retry_info().is_some()
}

/// What the crowd has seen.
#[derive(Default)]
struct Seen {
    calls: AtomicU64,
    events: AtomicU64,
    limits: AtomicU64,
}

impl Seen {
    /// Counts an answer; whatever is no documented limit ends the test.
    #[track_caller]
    fn count<T>(&self, answer: Result<T, Status>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.calls.fetch_add(1, Ordering::Relaxed);
                Some(answer)
            }
            Err(status) if is_a_limit(&status) => {
                self.limits.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(status) => panic!("{status:?}"),
        }
    }
}

/// One that calls, one thing after the other, until the time is over.
async fn client(
    channel: Channel,
    number: usize,
    vm: String,
    seen: Arc<Seen>,
    mut is_over: watch::Receiver<bool>,
) {
    let mut snapshots = SnapshotServiceClient::new(channel.clone());
    let mut operations = OperationServiceClient::new(channel.clone());
    let mut events = EventServiceClient::new(channel.clone());
    let mut vms = VmServiceClient::new(channel);
    let mut beats = tokio::time::interval(PACE);
    for round in number.. {
        tokio::select! {
            _ = beats.tick() => {}
            _ = is_over.wait_for(|is_over| *is_over) => return,
        }
        match round % 4 {
            0 => drop(seen.count(snapshots.list_snapshots(v1::ListSnapshotsRequest::default()).await)),
            1 => drop(seen.count(operations.list_operations(v1::ListOperationsRequest::default()).await)),
            2 => drop(seen.count(events.list_events(v1::ListEventsRequest::default()).await)),
            _ => drop(seen.count(vms.get_vm(v1::GetVmRequest { vm: vm.clone() }).await)),
        }
    }
}

/// One that watches events from the first on, until it has had the last. They come in order, and none twice.
async fn watcher(channel: Channel, seen: Arc<Seen>, mut last: watch::Receiver<Option<u64>>) -> usize {
    let mut client = EventServiceClient::new(channel);
    let since = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
    let stream = loop {
        let request = v1::WatchEventsRequest { since, ..Default::default() };
        if let Some(stream) = seen.count(client.watch_events(request).await) {
            break stream;
        }
        tokio::time::sleep(PACE).await;
    };
    let mut stream = stream.into_inner();
    let (mut had, mut newest) = (Vec::new(), 0);
    loop {
        if let Some(last) = last.borrow_and_update().filter(|last| newest >= *last) {
            return had.into_iter().filter(|sequence| *sequence <= last).count();
        }
        let told = tokio::select! {
            told = stream.message() => told.unwrap().expect("it does not end by itself"),
            _ = last.changed() => continue,
        };
        if let Some(Update::Event(event)) = told.update {
            assert!(event.sequence > newest, "{} comes after {newest}", event.sequence);
            newest = event.sequence;
            had.push(newest);
            seen.events.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn round(client: &Client, guest: &Guest) {
    let vm = guest.name();
    client.json(&["snapshot", "create", vm, "crowded"]);
    guest.exec("dd if=/dev/urandom of=/mnt/vdb/crowded bs=64k count=16 conv=fsync 2>/dev/null");
    client.json(&["snapshot", "delete", &format!("{vm}/crowded"), "--yes"]);
}

/// Snapshots and their deletions until the time is over. Gives how many there were, and what the daemon had after half of
/// the time and at the end: KiB and descriptors.
fn work(client: &Client, guest: &Guest, daemon: u32, long: Duration) -> (u32, [(u64, usize); 2]) {
    let begun = Instant::now();
    let (mut rounds, mut taken) = (0, [(0, 0); 2]);
    while begun.elapsed() < long {
        rounds += 1;
        round(client, guest);
        taken[1] = (process::status(daemon, "RssAnon:"), descriptors(daemon));
        if rounds == 1 || begun.elapsed() < long / 2 {
            taken[0] = taken[1];
        }
        told(&format!(
            "{:.0} s: {} KiB, {} descriptors",
            begun.elapsed().as_secs_f64(),
            taken[1].0,
            taken[1].1
        ));
    }
    (rounds, taken)
}

#[allow(clippy::print_stdout, reason = "figures for whoever runs it")]
fn told(words: &str) {
    println!("{words}");
}

fn descriptors(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

#[test]
#[ignore = "it takes minutes: make crowd"]
fn a_crowd_is_served_and_the_daemon_does_not_grow() {
    let minutes = std::env::var("VMSNAP_CROWD_MINUTES").map_or(1.0, |text| text.parse().unwrap());
    let guest = Guest::boot(&Spec::default());
    let daemon = Daemon::start_with(Setup { descriptors: Some(DESCRIPTORS), ..Setup::default() });
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).unwrap();
    let alone = descriptors(daemon.id());
    for _ in 0..BEFORE {
        round(&daemon.client(), &guest);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let seen = Arc::new(Seen::default());
    let ((over, is_over), (last, is_last)) = (watch::channel(false), watch::channel(None));
    let (mut clients, mut watchers) = (JoinSet::new(), JoinSet::new());
    runtime.block_on(async {
        for _ in 0..WATCHERS {
            let channel = daemon.connect_for(ANSWER).await.unwrap();
            watchers.spawn(watcher(channel, Arc::clone(&seen), is_last.clone()));
        }
        for number in 0..CLIENTS {
            let (channel, vm) = (daemon.connect_for(ANSWER).await.unwrap(), guest.name().to_owned());
            clients.spawn(client(channel, number, vm, Arc::clone(&seen), is_over.clone()));
        }
    });

    let (rounds, taken) =
        work(&daemon.client(), &guest, daemon.id(), Duration::from_secs_f64(60.0 * minutes));
    over.send(true).unwrap();
    let all = daemon.client().json(&["event", "list", "--limit", "1000000"]);
    let all = all["events"].as_array().unwrap();
    let newest = all[0]["sequence"].as_str().unwrap().parse().unwrap();
    last.send(Some(newest)).unwrap();
    let had: BTreeMap<usize, usize> = runtime.block_on(async {
        clients.join_all().await;
        let had =
            tokio::time::timeout(END, watchers.join_all()).await.expect("each is told of the last event");
        had.into_iter().fold(BTreeMap::new(), |mut counts, had| {
            *counts.entry(had).or_default() += 1;
            counts
        })
    });
    let [half, end] = taken;
    told(&format!(
        "{minutes} minutes: {rounds} snapshots taken and merged; {} calls, {} events told, {} refused by a limit; \
             {} KiB and {} descriptors after half of it, {} and {} at the end, {alone} descriptors before",
        seen.calls.load(Ordering::Relaxed),
        seen.events.load(Ordering::Relaxed),
        seen.limits.load(Ordering::Relaxed),
        half.0,
        half.1,
        end.0,
        end.1,
    ));
    assert_eq!(had, BTreeMap::from([(all.len(), WATCHERS)]), "each has had each event");
    let (calls, limits) = (seen.calls.load(Ordering::Relaxed), seen.limits.load(Ordering::Relaxed));
    assert!(10 * limits <= calls, "{limits} of {calls} calls were refused");
    assert!(end.0 <= half.0 + SLACK, "{} KiB became {}", half.0, end.0);
    // The client of the moment, and files of the work.
    assert!(end.1 <= half.1 + 8, "{} descriptors became {}", half.1, end.1);
    wait_until("all connections are gone", END, || descriptors(daemon.id()) <= alone + 8);
}
