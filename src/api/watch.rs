//! Following an operation: the present state first, then every change, a heartbeat in between, to its end.
//!
//! A watcher that was cut off comes back with its token and misses nothing that still matters: states are kept,
//! progress is the latest. When the daemon goes down it says so, with a token for the next one.

use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Status;

use super::shown::{Shown, Watched};
use super::{convert, request, status};
use crate::model::{OperationId, Reason};
use crate::ops::{Engine, OperationView, OpsError};
use crate::proto::v1;
use crate::proto::v1::watch_operation_response::Update;

/// What `WatchOperation` answers with.
pub(super) type WatchStream = Pin<Box<dyn Stream<Item = Message> + Send>>;

type Message = Result<v1::WatchOperationResponse, Status>;

/// Between heartbeats if the client, or the controller, does not say.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);

/// What either may ask for between heartbeats.
pub(super) const HEARTBEATS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);

/// Updates closer together than this are one: nobody reads faster.
const PACE: Duration = Duration::from_millis(100);

/// Starts to follow an operation.
pub(super) async fn start(
    engine: &Engine,
    shared: &Watched,
    id: OperationId,
    request: &v1::WatchOperationRequest,
) -> Result<WatchStream, Status> {
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
    let (engine, messages) = (engine.clone(), shared.enter(id));
    let stage = Stage::Begun(Box::new(present), watcher);
    let watch = Watch { engine, id, messages, heartbeat, seen, shown: Instant::now(), stage };
    Ok(Box::pin(stream::unfold(watch, Watch::next)))
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
    match request::duration(asked) {
        Some(asked) if HEARTBEATS.contains(&asked) => Ok(asked),
        Some(_) | None => {
            let mut violations = status::Violations::default();
            violations.add("heartbeat_interval", "between 1 second and 5 minutes");
            violations.check().map(|()| HEARTBEAT)
        }
    }
}

/// A watch. It goes on when its reader takes what it has: it needs no task of its own and keeps nothing for a slow one.
struct Watch {
    engine: Engine,
    id: OperationId,
    messages: Arc<Shown>,
    heartbeat: Duration,
    /// The latest revision that the client has.
    seen: Option<u64>,
    /// When the client was last looked after.
    shown: Instant,
    stage: Stage,
}

/// What a watch does next.
enum Stage {
    /// Show the present state.
    Begun(Box<OperationView>, Option<watch::Receiver<OperationView>>),
    /// Show what changes.
    Following(watch::Receiver<OperationView>),
    /// Look where the runner has gone: with the daemon, if the operation has not ended.
    Left,
    /// Say that the daemon goes.
    Draining,
    /// Say so once more, to clients that look at nothing but the status.
    Refused,
    /// Nothing.
    Over,
}

impl Watch {
    async fn next(mut self) -> Option<(Message, Self)> {
        loop {
            let update = match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Begun(present, watcher) => {
                    if !is_over(&present) {
                        self.stage = watcher.map_or(Stage::Left, Stage::Following);
                    }
                    self.show(&present)
                }
                Stage::Following(watcher) => self.follow(watcher).await,
                Stage::Left => {
                    let view = self.engine.operation(self.id).await.ok();
                    if !view.as_ref().is_some_and(is_over) {
                        self.stage = Stage::Draining;
                    }
                    view.and_then(|view| self.show(&view))
                }
                Stage::Draining => {
                    self.stage = Stage::Refused;
                    let retry_after = Some(prost_types::Duration { seconds: 1, nanos: 0 });
                    Some(Update::Draining(v1::Draining { retry_after }))
                }
                Stage::Refused => return Some((Err(status::of(OpsError::Draining)), self)),
                Stage::Over => return None,
            };
            if let Some(update) = update {
                let resume_token = self.seen.map(|seen| seen.to_string()).unwrap_or_default();
                return Some((Ok(v1::WatchOperationResponse { resume_token, update: Some(update) }), self));
            }
        }
    }

    /// Waits for a change, or for the time of a heartbeat.
    async fn follow(&mut self, mut watcher: watch::Receiver<OperationView>) -> Option<Update> {
        let stopping = self.engine.draining();
        let has_gone = tokio::select! {
            changed = watcher.changed() => changed.is_err(),
            () = tokio::time::sleep(self.heartbeat) => {
                self.stage = Stage::Following(watcher);
                let server_time = Some(convert::timestamp(Timestamp::now()));
                return Some(Update::Heartbeat(v1::Heartbeat { server_time }));
            }
            () = stopping.cancelled() => {
                self.stage = Stage::Left;
                return None;
            }
        };
        // The end waits for nobody.
        let _ = tokio::time::timeout_at(self.shown + PACE, watcher.wait_for(is_over)).await;
        self.shown = Instant::now();
        let (update, is_over) = {
            let view = watcher.borrow_and_update();
            (self.show(&view), is_over(&view))
        };
        if !is_over {
            self.stage = if has_gone { Stage::Left } else { Stage::Following(watcher) };
        }
        update
    }

    /// Shows a state unless the client has it.
    fn show(&mut self, view: &OperationView) -> Option<Update> {
        if self.seen.is_some_and(|seen| seen >= view.revision) && !is_over(view) {
            return None;
        }
        self.seen = Some(view.revision);
        Some(Update::Operation(self.messages.of(view)))
    }
}

/// A stuck operation does not move before a person acts: there is nothing to follow.
fn is_over(view: &OperationView) -> bool {
    view.operation.cursor.turn().is_none()
}
