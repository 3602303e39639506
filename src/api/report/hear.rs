//! What a controller says: that it takes us, what it has, that it wants an inventory.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::{Heard, ReportEnd, Said, of_store};
use crate::api::request::duration;
use crate::api::watch::{HEARTBEAT, HEARTBEATS};
use crate::model::OutboxId;
use crate::proto::controller::v1 as wire;
use crate::proto::controller::v1::report_response::Message;
use crate::store::{Outbox, Store};

/// Acknowledgements closer together than this are written as one: each is a write to the disk.
const PACE: Duration = Duration::from_millis(500);

/// A listener to one stream.
pub(super) struct Hear {
    store: Store,
    outbox: Outbox,
    ear: watch::Sender<Heard>,
    says: watch::Receiver<Said>,
    /// The last item that was acknowledged, and is not written as such.
    unwritten: Option<u64>,
}

impl Hear {
    pub(super) fn new(
        store: Store,
        outbox: Outbox,
        ear: watch::Sender<Heard>,
        says: watch::Receiver<Said>,
    ) -> Self {
        Self { store, outbox, ear, says, unwritten: None }
    }

    /// Listens until the controller ends the stream.
    pub(super) async fn listen(
        mut self,
        first: Option<wire::ReportResponse>,
        mut answers: Streaming<wire::ReportResponse>,
        accepted: impl FnOnce(),
    ) -> Result<ReportEnd, Status> {
        let Some(Message::Welcome(welcome)) = first.and_then(|first| first.message) else {
            return Err(Status::failed_precondition("the controller did not begin with a welcome"));
        };
        if !self.welcome(&welcome).await? {
            return Ok(ReportEnd::ByUs);
        }
        accepted();
        let ended = self.go_on(&mut answers).await;
        // Whatever ended it: what the controller has need not be sent again.
        self.write().await;
        ended.map(|()| ReportEnd::ByController)
    }

    /// Gives whether the stream goes on.
    async fn welcome(&mut self, welcome: &wire::Welcome) -> Result<bool, Status> {
        let known = welcome.acknowledged_sequence;
        if known > self.outbox.last {
            // Our catalog is older than what the controller knows of it: its numbers stand for something else there.
            let why = "the controller has more of it than there is, so the catalog is an older one";
            let renewed =
                self.store.renew_outbox(self.outbox.id, OutboxId::new(), why, Timestamp::now()).await;
            return renewed.map(|()| false).map_err(of_store);
        }
        self.unwritten = Some(known);
        self.write().await;
        let asked = welcome.heartbeat_interval.and_then(duration);
        let heartbeat = asked.unwrap_or(HEARTBEAT).clamp(*HEARTBEATS.start(), *HEARTBEATS.end());
        let after = known.max(self.outbox.acknowledged);
        self.ear.send_modify(|heard| {
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
                    self.write().await;
                    due = Instant::now() + PACE;
                    continue;
                }
            };
            let Some(answer) = answer else { return Ok(()) };
            match answer.message {
                Some(Message::Acknowledge(items)) => self.acknowledge(items.sequence)?,
                Some(Message::RequestInventory(_)) => self.ear.send_modify(|heard| heard.inventories += 1),
                Some(Message::Welcome(_)) => {
                    return Err(Status::failed_precondition("the controller welcomed us twice"));
                }
                // A later version may say more.
                None => {}
            }
        }
    }

    /// What was never sent would be gone, and the controller would never miss it.
    fn acknowledge(&mut self, sequence: u64) -> Result<(), Status> {
        if sequence > self.says.borrow().item.max(self.outbox.acknowledged) {
            return Err(Status::failed_precondition("the controller acknowledged what was never sent"));
        }
        self.unwritten = self.unwritten.max(Some(sequence));
        Ok(())
    }

    /// What cannot be written is written with the next one, or sent again at worst.
    async fn write(&mut self) {
        let Some(sequence) = self.unwritten.take() else { return };
        if let Err(error) = self.pass_on(sequence).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "what the controller has acknowledged cannot be noted");
        }
    }

    async fn pass_on(&self, sequence: u64) -> crate::store::Result<()> {
        self.store.acknowledge(self.outbox.id, sequence).await?;
        self.store.prune_outbox().await
    }
}
