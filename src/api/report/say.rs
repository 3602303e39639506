//! What is said to a controller. It goes on when its reader takes what it has, and keeps nothing for a slow one.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::inventory::Inventory;
use super::{Heard, of_store};
use crate::api::{Api, convert};
use crate::host::Link;
use crate::model::OperationId;
use crate::ops::OperationView;
use crate::proto::controller::v1 as wire;
use crate::proto::controller::v1::report_request::Message;
use crate::store::{News, Outbox, OutboxItem};

/// Items that are read at once.
const ITEMS: u32 = 64;

/// Progress of an operation is said so often: nobody looks more often.
const PACE: Duration = Duration::from_secs(1);

/// The speaker on one stream.
pub(super) struct Say {
    api: Api,
    outbox: Outbox,
    hears: watch::Receiver<Heard>,
    over: CancellationToken,
    /// Until it is said.
    hello: Option<wire::Hello>,
    /// The last item that was said; None before the welcome.
    said: Option<u64>,
    /// Read, and not said yet.
    items: VecDeque<OutboxItem>,
    /// Seen to move, and not said yet.
    moving: VecDeque<OperationView>,
    /// The revisions of what was last said of operations that have not ended.
    told: HashMap<OperationId, u64>,
    /// When progress may be said again.
    progress_due: Instant,
    /// The one that is being said.
    inventory: Option<Inventory>,
    /// So many were said, or begun.
    inventories: u64,
    /// When anything was last said.
    spoke: Instant,
    wakes: Wakes,
}

/// What there may be something to say about.
struct Wakes {
    events: watch::Receiver<u64>,
    moves: watch::Receiver<u64>,
    link: watch::Receiver<Link>,
}

impl Say {
    pub(super) fn new(
        api: Api,
        outbox: Outbox,
        hello: wire::Hello,
        hears: watch::Receiver<Heard>,
        over: CancellationToken,
    ) -> Self {
        let wakes = Wakes {
            events: api.engine.newest_event(),
            moves: api.engine.moves(),
            link: api.engine.host().hypervisor.link(),
        };
        Self {
            api,
            outbox,
            hears,
            over,
            hello: Some(hello),
            said: None,
            items: VecDeque::new(),
            moving: VecDeque::new(),
            told: HashMap::new(),
            progress_due: Instant::now(),
            inventory: None,
            inventories: 0,
            spoke: Instant::now(),
            wakes,
        }
    }

    /// The next message; None when there is nothing more to say on this stream.
    pub(super) async fn next(mut self) -> Option<(wire::ReportRequest, Self)> {
        let over = self.over.clone();
        let message = tokio::select! {
            message = self.message() => message,
            () = over.cancelled() => return None,
        };
        match message {
            Ok(message) => {
                self.spoke = Instant::now();
                message.map(|message| (message, self))
            }
            Err(status) => {
                tracing::warn!(%status, "a stream to the controller ends: what it has to be told cannot be read");
                None
            }
        }
    }

    async fn message(&mut self) -> Result<Option<wire::ReportRequest>, Status> {
        if let Some(hello) = self.hello.take() {
            return Ok(Some(now(Message::Hello(hello))));
        }
        let Some(heartbeat) = self.welcomed().await else { return Ok(None) };
        loop {
            // Whatever comes from here on wakes us again.
            self.wakes.events.mark_unchanged();
            self.wakes.link.mark_unchanged();
            if let Some(part) = self.inventory().await? {
                return Ok(Some(now(Message::Inventory(part))));
            }
            self.look_at_what_moves();
            match self.item().await? {
                Item::Next(item) => return Ok(Some(*item)),
                // The stream is of the outbox that was.
                Item::Foreign => return Ok(None),
                Item::None => {}
            }
            if let Some(view) = self.progress() {
                return Ok(Some(now(Message::Operation(convert::operation(&view)))));
            }
            if !self.wait(self.spoke + heartbeat).await {
                let parts = self.api.parts().await;
                let last_sequence = self.said.unwrap_or_default();
                return Ok(Some(now(Message::Heartbeat(wire::AgentHeartbeat { last_sequence, parts }))));
            }
        }
    }

    /// Waits for the welcome. Gives the longest silence; None if there will be no welcome.
    async fn welcomed(&mut self) -> Option<Duration> {
        let heard = self.hears.wait_for(|heard| heard.welcome.is_some()).await.ok()?;
        let (after, heartbeat) = heard.welcome?;
        self.said.get_or_insert(after);
        Some(heartbeat)
    }

    /// A part of an inventory, if one is asked for. Without the hypervisor there is none: items go on meanwhile.
    async fn inventory(&mut self) -> Result<Option<wire::Inventory>, Status> {
        let asked = self.hears.borrow().inventories;
        if self.inventory.is_none() && asked > self.inventories && *self.wakes.link.borrow() == Link::Up {
            // Whoever asked twice before we came to it wants one.
            self.inventories = asked;
            self.inventory = self.api.outbox().await?.map(|outbox| Inventory::begin(outbox.last));
        }
        let Some(inventory) = self.inventory.take() else { return Ok(None) };
        let (part, rest) = inventory.part(&self.api).await?;
        self.inventory = rest;
        Ok(Some(part))
    }

    async fn item(&mut self) -> Result<Item, Status> {
        if self.items.is_empty() {
            let after = self.said.unwrap_or_default();
            let read = self.api.engine.store().outbox_items(after, ITEMS).await.map_err(of_store)?;
            match read {
                Some((outbox, items)) if outbox.id == self.outbox.id => self.items.extend(items),
                Some(_) | None => return Ok(Item::Foreign),
            }
        }
        let Some(item) = self.items.pop_front() else { return Ok(Item::None) };
        // What was seen to move before is older.
        self.moving.clear();
        self.said = Some(item.sequence);
        let message = match item.news {
            News::Event(event) => Message::Event(convert::event(&event)),
            News::Operation(operation) => {
                let view = OperationView::of(*operation);
                if view.operation.cursor.has_ended() {
                    self.told.remove(&view.operation.id);
                } else {
                    self.told.insert(view.operation.id, view.revision);
                }
                Message::Operation(convert::operation(&view))
            }
        };
        let time = Some(convert::timestamp(item.at));
        let item = wire::ReportRequest { sequence: item.sequence, time, message: Some(message) };
        Ok(Item::Next(Box::new(item)))
    }

    fn look_at_what_moves(&mut self) {
        if self.moving.is_empty() && Instant::now() >= self.progress_due {
            self.progress_due = Instant::now() + PACE;
            self.wakes.moves.mark_unchanged();
            self.moving = self.api.engine.under_way_now().into();
        }
    }

    /// What has moved of an operation whose begin was told, and whose end was not.
    fn progress(&mut self) -> Option<OperationView> {
        while let Some(view) = self.moving.pop_front() {
            let told = self.told.entry(view.operation.id).or_insert(0);
            if *told < view.revision && !view.operation.cursor.has_ended() {
                *told = view.revision;
                return Some(view);
            }
        }
        None
    }

    /// Gives whether there may be something to say before `silence`.
    async fn wait(&mut self, silence: Instant) -> bool {
        let moved = async {
            // An error: the engine is gone, and with it this stream.
            let _ = self.wakes.moves.changed().await;
            tokio::time::sleep_until(self.progress_due).await;
        };
        tokio::select! {
            _ = self.wakes.events.changed() => true,
            _ = self.wakes.link.changed() => true,
            _ = self.hears.changed() => true,
            () = moved => true,
            () = tokio::time::sleep_until(silence) => false,
        }
    }
}

/// What is next in the outbox.
enum Item {
    Next(Box<wire::ReportRequest>),
    None,
    /// It is another outbox.
    Foreign,
}

fn now(message: Message) -> wire::ReportRequest {
    let time = Some(convert::timestamp(Timestamp::now()));
    wire::ReportRequest { sequence: 0, time, message: Some(message) }
}
