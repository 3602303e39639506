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

const WATCHERS: [u32; 3] = [10, 100, 1000];
/// With so many the operation goes on until all watch it.
const DISKS: usize = 16;

pub fn figures(blocks: usize) -> Vec<Figure> {
    let figure = Figure::plain(
        "watchers",
        "The end of an operation, told to all who watch it",
        "ms",
        "watchers",
        "From the moment in which the first of them had it to the moment in which 99 of 100 had it; the watchers share the machine \
         with the daemon, each with a connection of its own. The operation is a snapshot of a VM with 16 disks that is off.",
    );
    figure::measured(vec![figure], &WATCHERS, |watchers| case(watchers, blocks))
}

fn case(watchers: u32, blocks: usize) -> Vec<Vec<Samples>> {
    let spec = Spec { disks: vec![Disk::new(Format::Qcow2); DISKS], ..Spec::default() };
    let guest = Guest::define(&spec);
    let daemon = Daemon::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = || runtime.block_on(tell(&daemon, guest.name(), watchers));
    let blocks = (0..blocks).map(|_| [run(), run()]).collect();
    vec![vec![Samples { arm: OURS, blocks }]]
}

/// Milliseconds.
async fn tell(daemon: &Daemon, vm: &str, watchers: u32) -> f64 {
    let mut channels = Vec::new();
    for _ in 0..watchers {
        channels.push(daemon.connect().await.unwrap());
    }
    let mut snapshots = SnapshotServiceClient::new(daemon.connect().await.unwrap());
    let request = v1::CreateSnapshotRequest { vm: vm.to_owned(), ..Default::default() };
    let begun = snapshots.create_snapshot(request).await.unwrap().into_inner().operation.unwrap();
    let mut watching = JoinSet::new();
    for channel in channels {
        let mut client = OperationServiceClient::new(channel);
        let request = v1::WatchOperationRequest { operation_id: begun.id.clone(), ..Default::default() };
        watching.spawn(async move {
            let mut stream = client.watch_operation(request).await.unwrap().into_inner();
            let mut states = Vec::new();
            while let Some(told) = stream.message().await.unwrap() {
                if let Some(Update::Operation(operation)) = told.update {
                    states.push(operation.state());
                }
            }
            let at = Instant::now();
            assert_eq!(states.last(), Some(&v1::OperationState::Succeeded));
            (at, states.len() == 1)
        });
    }
    let (mut told, late): (Vec<Instant>, Vec<bool>) = watching.join_all().await.into_iter().unzip();
    let late = late.into_iter().filter(|is_late| *is_late).count();
    if late > 0 {
        eprintln!("{watchers} watchers: {late} came when the operation had ended: they say nothing");
    }
    told.sort();
    let nearly_all = told[(told.len() * 99).div_ceil(100) - 1];
    nearly_all.duration_since(told[0]).as_secs_f64() * 1e3
}
