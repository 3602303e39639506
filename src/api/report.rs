//! One stream to a controller: who we are, what there is, what is new, what moves.
//!
//! Decides what is said in which order, when nothing is, and when a stream is no good. Leaves to `store` what is kept for a
//! controller that is away, to `daemon` which controller that is and when to call it again. Must never know a certificate or
//! an address.
//!
//! ```text
//!   hello -> welcome -> items of the outbox, in order --.
//!              |          progress, while there are no   +-- until either side ends it
//!              `-> inventory, when asked for  ----------'
//! ```
//! An item that was sent stays in the outbox until it is acknowledged: a stream that breaks loses nothing. Progress is not
//! kept. It is only said when all items have been, and is of an instant before they were looked for: it never runs ahead of
//! a state.
//!
//! A controller is not trusted: it can make a stream end, and have an inventory listed once a minute; nothing waits for it
//! but its own stream.

use std::time::Duration;

use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use super::{Api, status};
use crate::ops::OpsError;
use crate::proto::controller::v1 as wire;
use crate::proto::controller::v1::controller_service_client::ControllerServiceClient;
use crate::store::{Outbox, StoreError};

mod hear;
mod inventory;
mod say;

use hear::Hear;
use say::Say;

/// How long a controller may take to welcome us, and the node to say who it is.
const WELCOME: Duration = Duration::from_secs(30);

/// How long a controller may take nothing of what is said.
const STALLED: Duration = Duration::from_secs(60);

/// When we have nothing more to say, what the controller still has to say is waited for so long.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Longest message of a controller, in bytes: numbers and durations.
const LONGEST_ANSWER: usize = 64 * 1024;

/// How a stream ended that did not break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportEnd {
    /// The controller wanted it.
    ByController,
    /// Another outbox has begun, or there is none: it is for the next stream.
    ByUs,
}

/// What the controller has said so far.
#[derive(Debug, Clone, Default)]
struct Heard {
    /// It has welcomed us: this item is the last that it has, and it wants to hear something so often.
    welcome: Option<(u64, Duration)>,
    /// So many inventories were asked for.
    inventories: u64,
}

/// How far what is said has come.
#[derive(Debug, Clone, Copy)]
struct Said {
    /// The last item that was sent on this stream; 0 for none.
    item: u64,
    /// When the controller last wanted to hear more. It does at each heartbeat.
    wanted: Instant,
}

impl Api {
    /// Reports over `channel` until the controller ends the stream, or it breaks. `accepted` is told once it is welcomed.
    pub async fn report(
        &self,
        channel: Channel,
        accepted: impl FnOnce() + Send,
    ) -> Result<ReportEnd, Status> {
        let hello = tokio::time::timeout(WELCOME, self.hello()).await;
        let late = |_| Status::deadline_exceeded("this node cannot say in time who it is");
        let Some((outbox, hello)) = hello.map_err(late)?? else { return Ok(ReportEnd::ByUs) };
        let (ear, hears) = watch::channel(Heard::default());
        let (mouth, says) = watch::channel(Said { item: 0, wanted: Instant::now() });
        let silent = CancellationToken::new();
        let say = Say::new(self.clone(), outbox, hello, hears, mouth, silent.clone().drop_guard());
        let requests = Box::pin(stream::unfold(say, Say::next));
        let mut client = ControllerServiceClient::new(channel).max_decoding_message_size(LONGEST_ANSWER);
        let welcomed = async {
            let mut answers = client.report(requests).await?.into_inner();
            let first = answers.message().await?;
            Ok::<_, Status>((answers, first))
        };
        let late = |_| Status::deadline_exceeded("the controller did not welcome us in time");
        let (answers, first) = tokio::time::timeout(WELCOME, welcomed).await.map_err(late)??;
        let hear = Hear::new(self.engine.store().clone(), outbox, ear.clone(), says.clone());
        tokio::select! {
            ended = hear.listen(first, answers, accepted) => ended,
            () = stalled(ear, says) => Err(Status::deadline_exceeded("the controller takes nothing of what is sent to it")),
            // A half that has ended is no stream; the other one may stand for ever.
            () = async { silent.cancelled().await; tokio::time::sleep(LAST_WORDS).await } => Ok(ReportEnd::ByUs),
        }
    }

    async fn hello(&self) -> Result<Option<(Outbox, wire::Hello)>, Status> {
        let Some(outbox) = self.engine.store().outbox().await.map_err(of_store)? else { return Ok(None) };
        let hello = wire::Hello {
            node: Some(self.node().await?),
            outbox_id: outbox.id.to_string(),
            acknowledged_sequence: outbox.acknowledged,
            last_sequence: outbox.last,
        };
        Ok(Some((outbox, hello)))
    }
}

/// Ends when the controller has not wanted to hear anything for too long, although there was a heartbeat to be had.
async fn stalled(ear: watch::Sender<Heard>, says: watch::Receiver<Said>) {
    loop {
        let heartbeat = ear.borrow().welcome.map_or(WELCOME, |(_, heartbeat)| heartbeat);
        let due = says.borrow().wanted + heartbeat + STALLED;
        if Instant::now() >= due {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}

fn of_store(error: StoreError) -> Status {
    status::of(OpsError::Store(error))
}
