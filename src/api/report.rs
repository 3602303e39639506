//! One stream to a controller: who we are, what there is, what is new, what moves.
//!
//! Decides what is said in which order, and when nothing is. Leaves to `store` what is kept for a controller that is away, to
//! `daemon` which controller that is and when to call it again. Must never know a certificate or an address.
//!
//! ```text
//!   hello -> welcome -> items of the outbox, in order --.
//!              |          progress, while there are no   +-- until either side ends it
//!              `-> inventory, whenever asked for  ------'
//! ```
//! An item that was sent stays in the outbox until it is acknowledged: a stream that breaks loses nothing. Progress is not
//! kept. It is only said when all items have been, and of an instant before they were looked for: it never runs ahead of a
//! state.

use std::time::Duration;

use futures_util::stream;
use tokio::sync::watch;
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

/// How long a controller may take to welcome us.
const WELCOME: Duration = Duration::from_secs(30);

/// Longest message of a controller, in bytes: numbers and durations.
const LONGEST_ANSWER: usize = 64 * 1024;

/// What the controller has said so far.
#[derive(Debug, Clone, Default)]
struct Heard {
    /// It has welcomed us: this item is the last that it has, and it wants to hear something so often.
    welcome: Option<(u64, Duration)>,
    /// So many inventories were asked for.
    inventories: u64,
}

impl Api {
    /// Reports over `channel` until the controller ends the stream, or it breaks. `accepted` is told once it is welcomed.
    pub async fn report(&self, channel: Channel, accepted: impl FnOnce() + Send) -> Result<(), Status> {
        let Some(outbox) = self.outbox().await? else { return Ok(()) };
        let hello = self.hello(outbox).await?;
        let (ear, hears) = watch::channel(Heard::default());
        // What is said ends with what is heard: tonic may keep the stream for a while.
        let over = CancellationToken::new();
        let _ends = over.clone().drop_guard();
        let say = Say::new(self.clone(), outbox, hello, hears, over);
        let requests = stream::unfold(say, Say::next);
        let mut client = ControllerServiceClient::new(channel).max_decoding_message_size(LONGEST_ANSWER);
        let welcomed = async {
            let mut answers = client.report(requests).await?.into_inner();
            let first = answers.message().await?;
            Ok::<_, Status>((answers, first))
        };
        let late = |_| Status::deadline_exceeded("the controller did not welcome us in time");
        let (answers, first) = tokio::time::timeout(WELCOME, welcomed).await.map_err(late)??;
        let hear = Hear::new(self.engine.store().clone(), outbox, ear);
        hear.listen(first, answers, accepted).await
    }

    async fn hello(&self, outbox: Outbox) -> Result<wire::Hello, Status> {
        Ok(wire::Hello {
            node: Some(self.node().await?),
            outbox_id: outbox.id.to_string(),
            acknowledged_sequence: outbox.acknowledged,
            last_sequence: outbox.last,
        })
    }

    async fn outbox(&self) -> Result<Option<Outbox>, Status> {
        self.engine.store().outbox().await.map_err(of_store)
    }
}

fn of_store(error: StoreError) -> Status {
    status::of(OpsError::Store(error))
}
