//! Following an operation: the present state first, then every change, a heartbeat in between, to its end.
//!
//! A watcher that was cut off comes back with its token and misses nothing that still matters: states are kept,
//! progress is the latest. When the daemon goes down it says so, with a token for the next one.

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::operation::parse;
use super::{convert, status};
use crate::model::Reason;
use crate::ops::{Engine, OperationView, OpsError};
use crate::proto::v1;
use crate::proto::v1::watch_operation_response::Update;

/// What `WatchOperation` answers with.
pub(super) type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchOperationResponse, Status>> + Send>>;

/// Between heartbeats if the client does not say.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// What a client may ask for between heartbeats.
const HEARTBEATS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);

/// Updates closer together than this are one: nobody reads faster.
const PACE: Duration = Duration::from_millis(100);

/// Starts to follow an operation.
pub(super) async fn start(
    engine: &Engine,
    request: v1::WatchOperationRequest,
) -> Result<WatchStream, Status> {
    let id = parse(&request.operation_id)?;
    let seen = revision(&request.resume_token)?;
    let heartbeat = heartbeat(request.heartbeat_interval)?;
    // Before the look at the journal: one that ends in between is found there.
    let watcher = engine.watch(id);
    let present = engine.operation(id).await.map_err(status::of)?;
    if seen.is_some_and(|seen| seen > present.revision) {
        // The catalog is an older one now: what the client knows has not happened here.
        let message = "the resume token is of a state that this catalog does not know";
        return Err(status::plain(Reason::ResumeTokenExpired, message, "begin again without a resume token"));
    }
    let (sender, receiver) = mpsc::channel(8);
    let watch = Watch { engine: engine.clone(), sender, heartbeat, seen };
    tokio::spawn(watch.follow(present, watcher));
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn revision(token: &str) -> Result<Option<u64>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    token.parse().map(Some).map_err(|_| {
        let message = "the resume token is not one of ours";
        status::plain(Reason::ResumeTokenInvalid, message, "begin again without a resume token")
    })
}

/// The longest silence of a watch.
pub(super) fn heartbeat(asked: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let Some(asked) = asked else { return Ok(HEARTBEAT) };
    match Duration::try_from(asked) {
        Ok(asked) if HEARTBEATS.contains(&asked) => Ok(asked),
        Ok(_) | Err(_) => {
            let mut violations = status::Violations::default();
            violations.add("heartbeat_interval", "between 1 second and 5 minutes");
            violations.check().map(|()| HEARTBEAT)
        }
    }
}

struct Watch {
    engine: Engine,
    sender: mpsc::Sender<Result<v1::WatchOperationResponse, Status>>,
    heartbeat: Duration,
    /// The latest revision that the client has.
    seen: Option<u64>,
}

impl Watch {
    async fn follow(mut self, present: OperationView, watcher: Option<watch::Receiver<OperationView>>) {
        if self.show(&present).await.is_none() || is_over(&present) {
            return;
        }
        let stopping = self.engine.draining();
        let Some(mut watcher) = watcher else { return };
        let mut shown = Instant::now();
        loop {
            let has_gone = tokio::select! {
                changed = watcher.changed() => changed.is_err(),
                () = tokio::time::sleep(self.heartbeat) => {
                    let heartbeat = v1::Heartbeat { server_time: Some(convert::timestamp(Timestamp::now())) };
                    if self.send(Update::Heartbeat(heartbeat)).await.is_none() {
                        return;
                    }
                    continue;
                }
                () = stopping.cancelled() => break,
                () = self.sender.closed() => return,
            };
            // The end waits for nobody.
            let _ = tokio::time::timeout_at(shown + PACE, watcher.wait_for(is_over)).await;
            let view = watcher.borrow_and_update().clone();
            if self.show(&view).await.is_none() || is_over(&view) {
                return;
            }
            if has_gone {
                break;
            }
            shown = Instant::now();
        }
        // The runner has gone: with the daemon, if the operation has not ended.
        if let Ok(view) = self.engine.operation(present.operation.id).await
            && (self.show(&view).await.is_none() || is_over(&view))
        {
            return;
        }
        let retry_after = prost_types::Duration { seconds: 1, nanos: 0 };
        self.send(Update::Draining(v1::Draining { retry_after: Some(retry_after) })).await;
        // The last word counts only for clients that look at nothing else; one that has gone needs none.
        let _ = self.sender.send(Err(status::of(OpsError::Draining))).await;
    }

    /// Shows a state unless the client has it. None if the client is gone.
    async fn show(&mut self, view: &OperationView) -> Option<()> {
        if self.seen.is_some_and(|seen| seen >= view.revision) && !is_over(view) {
            return Some(());
        }
        self.seen = Some(view.revision);
        self.send(Update::Operation(convert::operation(view))).await
    }

    async fn send(&self, update: Update) -> Option<()> {
        let resume_token = self.seen.map(|seen| seen.to_string()).unwrap_or_default();
        self.sender.send(Ok(v1::WatchOperationResponse { resume_token, update: Some(update) })).await.ok()
    }
}

/// A stuck operation does not move before a person acts: there is nothing to follow.
fn is_over(view: &OperationView) -> bool {
    view.operation.cursor.turn().is_none()
}
