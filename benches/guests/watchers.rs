//! Many who watch one operation: each has to learn of its end, and how much later than the first.

use std::time::Instant;

use tokio::task::JoinSet;
use vmsnap::proto::v1;
use vmsnap::proto::v1::operation_service_client::OperationServiceClient;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;
use vmsnap::proto::v1::watch_operation_response::Update;

use super::arms::OURS;
use super::bed::{Daemon, Disk, Format, Guest, Spec};
use super::figure::{self, Figure, Samples};

/// As many as the daemon lets in, one on each connection, and fewer.
const WATCHERS: [u32; 3] = [10, 100, 500];

pub fn figures(blocks: usize) -> Vec<Figure> {
    let figure = Figure::plain(
        "watchers",
        "The end of an operation, told to all who watch it",
        "ms",
        "watchers",
        "From the moment in which the first of them had it to the moment in which 99 of 100 had it; the watchers share the machine \
         with the daemon. Each has a connection of its own: the daemon takes 512.",
    );
    figure::measured(vec![figure], &WATCHERS, |watchers| case(watchers, blocks))
}

fn case(watchers: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let spec = Spec { disks: vec![Disk::new(Format::Qcow2); 2], ..Spec::default() };
    let guest = Guest::define(&spec);
    let daemon = Daemon::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = || runtime.block_on(tell(&daemon, guest.name(), watchers));
    let blocks = (0..blocks).map(|_| [run(), run()]).collect();
    vec![vec![Samples { arm: OURS, blocks }]]
}

/// Milliseconds.
async fn tell(daemon: &Daemon, vm: &str, watchers: u32) -> f64 {
    let mut clients = Vec::new();
    for _ in 0..watchers {
        clients.push(OperationServiceClient::new(daemon.connect().await.unwrap()));
    }
    let mut snapshots = SnapshotServiceClient::new(daemon.connect().await.unwrap());
    let request = v1::CreateSnapshotRequest { vm: vm.to_owned(), ..Default::default() };
    let begun = snapshots.create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    let mut watching = JoinSet::new();
    for mut client in clients {
        let request = v1::WatchOperationRequest { operation_id: begun.id.clone(), ..Default::default() };
        watching.spawn(async move {
            let mut stream = client.watch_operation(request).await.unwrap().into_inner();
            let mut last = None;
            while let Some(told) = stream.message().await.unwrap() {
                if let Some(Update::Operation(operation)) = told.update {
                    last = Some(operation);
                }
            }
            assert_eq!(last.unwrap().state(), v1::OperationState::Succeeded);
            Instant::now()
        });
    }
    let mut told: Vec<Instant> = watching.join_all().await;
    told.sort();
    let nearly_all = told[(told.len() * 99).div_ceil(100) - 1];
    nearly_all.duration_since(told[0]).as_secs_f64() * 1e3
}
