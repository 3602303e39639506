//! What a controller says: that it takes us, what it has, that it wants an inventory.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::{Heard, of_store};
use crate::proto::controller::v1 as wire;
use crate::proto::controller::v1::report_response::Message;
use crate::store::{Outbox, Store};

/// Acknowledgements closer together than this are written as one: each is a write to the disk.
const PACE: Duration = Duration::from_millis(500);

/// The longest silence if the controller does not say.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The shortest silence that a controller may ask for.
const SHORTEST_HEARTBEAT: Duration = Duration::from_secs(1);

/// A listener to one stream.
pub(super) struct Hear {
    store: Store,
    outbox: Outbox,
    heard: watch::Sender<Heard>,
    /// The last item that was acknowledged, and is not written as such.
    unwritten: Option<u64>,
}

impl Hear {
    pub(super) fn new(store: Store, outbox: Outbox, heard: watch::Sender<Heard>) -> Self {
        Self { store, outbox, heard, unwritten: None }
    }

    /// Listens until the controller ends the stream.
    pub(super) async fn listen(
        mut self,
        first: Option<wire::ReportResponse>,
        mut answers: Streaming<wire::ReportResponse>,
        accepted: impl FnOnce(),
    ) -> Result<(), Status> {
        let Some(Message::Welcome(welcome)) = first.and_then(|first| first.message) else {
            return Err(Status::failed_precondition("the controller did not begin with a welcome"));
        };
        if !self.welcome(&welcome).await? {
            return Ok(());
        }
        accepted();
        let ended = self.go_on(&mut answers).await;
        // Whatever ended it: what the controller has need not be sent again.
        self.write().await.and(ended)
    }

    /// Gives whether the stream goes on.
    async fn welcome(&mut self, welcome: &wire::Welcome) -> Result<bool, Status> {
        let known = welcome.acknowledged_sequence;
        if known > self.outbox.last {
            // Our catalog is older than what the controller knows of it: its numbers stand for something else there.
            tracing::warn!(
                known,
                last = self.outbox.last,
                "the controller is ahead of the outbox: another begins"
            );
            self.store.renew_outbox(self.outbox.id).await.map_err(of_store)?;
            return Ok(false);
        }
        self.unwritten = Some(known);
        self.write().await?;
        let asked = welcome.heartbeat_interval.and_then(|asked| Duration::try_from(asked).ok());
        let heartbeat = asked.unwrap_or(HEARTBEAT).max(SHORTEST_HEARTBEAT);
        let after = known.max(self.outbox.acknowledged);
        self.heard.send_modify(|heard| {
            heard.welcome = Some((after, heartbeat));
            heard.inventories = u64::from(welcome.send_inventory);
        });
        Ok(true)
    }

    async fn go_on(&mut self, answers: &mut Streaming<wire::ReportResponse>) -> Result<(), Status> {
        let mut due = Instant::now();
        loop {
            let answer = tokio::select! {
                answer = answers.message() => answer?,
                () = tokio::time::sleep_until(due), if self.unwritten.is_some() => {
                    self.write().await?;
                    due = Instant::now() + PACE;
                    continue;
                }
            };
            let Some(answer) = answer else { return Ok(()) };
            match answer.message {
                Some(Message::Acknowledge(items)) => {
                    self.unwritten = self.unwritten.max(Some(items.sequence));
                }
                Some(Message::RequestInventory(_)) => self.heard.send_modify(|heard| heard.inventories += 1),
                Some(Message::Welcome(_)) => {
                    return Err(Status::failed_precondition("the controller welcomed us twice"));
                }
                // A later version may say more.
                None => {}
            }
        }
    }

    async fn write(&mut self) -> Result<(), Status> {
        let Some(sequence) = self.unwritten.take() else { return Ok(()) };
        self.store.acknowledge(self.outbox.id, sequence).await.map_err(of_store)
    }
}
