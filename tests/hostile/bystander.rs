//! Another client, who means no harm: all of its calls are answered, on its old connection and on new ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use vmsnap::proto::v1;
use vmsnap::proto::v1::event_service_client::EventServiceClient;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;

use super::bed::wait_until;

/// Its own deadline for each call: only what serves it no more takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bystander {
    calls: Arc<AtomicU64>,
    leaves: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Bystander {
    /// Calls the daemon at a socket, over and over.
    pub fn of(socket: &Path) -> Self {
        let (calls, leaves) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let live = live(socket.to_owned(), Arc::clone(&calls), Arc::clone(&leaves));
        let thread = std::thread::spawn(move || runtime.block_on(live));
        Self { calls, leaves, thread }
    }

    /// Lets it make so many more rounds of calls. Gives how many calls it has made in all.
    #[track_caller]
    pub fn leave_after(self, rounds: u64) -> u64 {
        let enough = self.calls.load(Ordering::Relaxed) + 2 * rounds;
        let is_served = || self.thread.is_finished() || self.calls.load(Ordering::Relaxed) >= enough;
        wait_until("another client is served", PATIENCE * 3, is_served);
        self.leaves.store(true, Ordering::Relaxed);
        self.thread.join().expect("all its calls are answered");
        self.calls.load(Ordering::Relaxed)
    }
}

async fn live(socket: PathBuf, calls: Arc<AtomicU64>, leaves: Arc<AtomicBool>) {
    let old = channel(&socket);
    while !leaves.load(Ordering::Relaxed) {
        let request = v1::ListEventsRequest { page_size: 5, ..Default::default() };
        let answer = EventServiceClient::new(old.clone()).list_events(request).await.unwrap();
        assert_eq!(answer.into_inner().events.len(), 5);
        calls.fetch_add(1, Ordering::Relaxed);
        let mut another = SnapshotServiceClient::new(channel(&socket));
        another.list_snapshots(v1::ListSnapshotsRequest::default()).await.unwrap();
        calls.fetch_add(1, Ordering::Relaxed);
    }
}

pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            // Where the queue of the listener is full, a connection that blocks waits, and one that does not fails.
            let connected = tokio::task::spawn_blocking(|| std::os::unix::net::UnixStream::connect(socket));
            let connected = connected.await.unwrap()?;
            connected.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(connected).map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://localhost").timeout(PATIENCE).connect_with_connector_lazy(connector)
}
