//! What is said to a controller. It goes on when its reader takes what it has, and keeps nothing for a slow one.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;
use tonic::Status;

use super::inventory::Inventory;
use super::{Heard, Said};
use crate::api::{Api, convert};
use crate::host::Link;
use crate::model::{OperationId, OutboxId};
use crate::ops::OperationView;
use crate::proto::controller::v1 as wire;
use crate::proto::controller::v1::report_request::Message;
use crate::store::{News, Outbox, OutboxItem, StoreError};

/// Progress of an operation is said so often: nobody looks more often.
const PACE: Duration = Duration::from_secs(1);

/// How long a part of an inventory may take. Nothing else is said meanwhile.
const PART: Duration = Duration::from_secs(10);

/// From an inventory that failed to the next attempt, and from one that is complete to another one.
const AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(60));

/// The speaker on one stream.
pub(super) struct Say {
    api: Api,
    outbox: Outbox,
    hears: watch::Receiver<Heard>,
    mouth: watch::Sender<Said>,
    /// Until it is said.
    hello: Option<wire::Hello>,
    /// The last item that was said, or that the controller has from before; None before the welcome.
    last: Option<u64>,
    /// Read, and not said yet.
    items: VecDeque<OutboxItem>,
    /// Seen to move, and not said yet.
    moving: VecDeque<OperationView>,
    /// The revisions of what was last said of operations that may be under way.
    told: HashMap<OperationId, u64>,
    /// When progress may be said again.
    progress_due: Instant,
    /// The one that is being said.
    inventory: Option<Inventory>,
    /// So many were said.
    inventories: u64,
    /// When one may begin.
    inventory_due: Instant,
    /// When anything was last said.
    spoke: Instant,
    wakes: Wakes,
    /// Says that there is no more to say.
    _silent: DropGuard,
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
        mouth: watch::Sender<Said>,
        silent: DropGuard,
    ) -> Self {
        let wakes = Wakes {
            events: api.engine.newest_event(),
            moves: api.engine.moves(),
            link: api.engine.host().hypervisor.link(),
        };
        let now = Instant::now();
        Self {
            api,
            outbox,
            hears,
            mouth,
            hello: Some(hello),
            last: None,
            items: VecDeque::new(),
            moving: VecDeque::new(),
            told: HashMap::new(),
            progress_due: now,
            inventory: None,
            inventories: 0,
            inventory_due: now,
            spoke: now,
            wakes,
            _silent: silent,
        }
    }

    /// The next message; None when there is nothing more to say on this stream.
    pub(super) async fn next(mut self) -> Option<(wire::ReportRequest, Self)> {
        self.mouth.send_modify(|said| said.wanted = Instant::now());
        match self.message().await {
            Ok(message) => {
                self.spoke = Instant::now();
                message.map(|message| (message, self))
            }
            Err(error) => {
                self.give_up(&error).await;
                None
            }
        }
    }

    /// What cannot be read now may be read later; what cannot be understood never will.
    async fn give_up(&self, error: &StoreError) {
        tell(error, "what the controller has to be told cannot be read");
        if let StoreError::Malformed { .. } = error {
            let (new, why) = (OutboxId::new(), "an item in it cannot be understood");
            let renewed =
                self.api.engine.store().renew_outbox(self.outbox.id, new, why, Timestamp::now()).await;
            if let Err(error) = renewed {
                tell(&error, "no other outbox can begin");
            }
        }
    }

    async fn message(&mut self) -> Result<Option<wire::ReportRequest>, StoreError> {
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
                let last_sequence = self.last.unwrap_or_default();
                return Ok(Some(now(Message::Heartbeat(wire::AgentHeartbeat { last_sequence, parts }))));
            }
        }
    }

    /// Waits for the welcome. Gives the longest silence; None if there will be no welcome.
    async fn welcomed(&mut self) -> Option<Duration> {
        let heard = self.hears.wait_for(|heard| heard.welcome.is_some()).await.ok()?;
        let (after, heartbeat) = heard.welcome?;
        self.last.get_or_insert(after);
        Some(heartbeat)
    }

    /// Whether an inventory was asked for that was not said. Without the hypervisor there is none: items go on meanwhile.
    fn wants_inventory(&self) -> bool {
        self.hears.borrow().inventories > self.inventories && *self.wakes.link.borrow() == Link::Up
    }

    /// A part of an inventory, if it is time for one. One that fails keeps nothing else from being said.
    async fn inventory(&mut self) -> Result<Option<wire::Inventory>, StoreError> {
        let inventory = match self.inventory.take() {
            Some(inventory) => inventory,
            None if self.wants_inventory() && Instant::now() >= self.inventory_due => {
                match self.api.engine.store().outbox().await? {
                    Some(outbox) if outbox.id == self.outbox.id => Inventory::begin(outbox.last),
                    // The look at the items will find that, too.
                    Some(_) | None => return Ok(None),
                }
            }
            None => return Ok(None),
        };
        // It is newer than what was seen to move before.
        self.forget_what_moved();
        let asked = self.hears.borrow().inventories;
        let late = |_| Status::deadline_exceeded("it takes too long");
        let part = tokio::time::timeout(PART, inventory.part(&self.api)).await.map_err(late).flatten();
        match part {
            Ok((part, rest)) => {
                if rest.is_none() {
                    // Whoever asked twice before we came to it wants one.
                    self.inventories = asked;
                    self.inventory_due = Instant::now() + AGAIN.1;
                }
                self.inventory = rest;
                Ok(Some(part))
            }
            Err(status) => {
                tracing::warn!(%status, "the controller gets its inventory later: a part of it cannot be listed");
                self.inventory_due = Instant::now() + AGAIN.0;
                Ok(None)
            }
        }
    }

    async fn item(&mut self) -> Result<Item, StoreError> {
        if self.items.is_empty() {
            let after = self.last.unwrap_or_default();
            match self.api.engine.store().outbox_items(after).await? {
                Some((outbox, items)) if outbox.id == self.outbox.id => self.items.extend(items),
                Some(_) | None => return Ok(Item::Foreign),
            }
        }
        let Some(item) = self.items.pop_front() else { return Ok(Item::None) };
        // What was seen to move before is older.
        self.forget_what_moved();
        self.last = Some(item.sequence);
        self.mouth.send_modify(|said| said.item = item.sequence);
        let message = match item.news {
            News::Event(event) => Message::Event(convert::event(&event)),
            News::Operation(operation) => {
                let view = OperationView::of(*operation);
                self.told.insert(view.operation.id, view.revision);
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
            // One that has ended may be on the board for a moment, as it was before its end.
            let moving = &self.moving;
            self.told.retain(|id, _| moving.iter().any(|view| view.operation.id == *id));
        }
    }

    fn forget_what_moved(&mut self) {
        if !self.moving.is_empty() {
            self.moving.clear();
            self.wakes.moves.mark_changed();
        }
    }

    /// What has moved of an operation since it was last told of.
    fn progress(&mut self) -> Option<OperationView> {
        while let Some(view) = self.moving.pop_front() {
            let told = self.told.get(&view.operation.id).copied().unwrap_or_default();
            if told < view.revision && !view.operation.cursor.has_ended() {
                self.told.insert(view.operation.id, view.revision);
                return Some(view);
            }
        }
        None
    }

    /// Gives whether there may be something to say before `silence`.
    async fn wait(&mut self, silence: Instant) -> bool {
        let (may_list, wants_inventory) = (self.inventory_due, self.wants_inventory());
        let progress_due = self.progress_due;
        let Wakes { events, moves, link } = &mut self.wakes;
        // A sender that is gone never says anything again.
        let moved = async {
            match moves.changed().await {
                // It is still to be looked at, whoever wakes us first.
                Ok(()) => moves.mark_changed(),
                Err(_) => std::future::pending().await,
            }
            tokio::time::sleep_until(progress_due).await;
        };
        tokio::select! {
            Ok(()) = events.changed() => true,
            Ok(()) = link.changed() => true,
            Ok(()) = self.hears.changed() => true,
            () = moved => true,
            () = tokio::time::sleep_until(may_list), if wants_inventory => true,
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

fn tell(error: &StoreError, what: &str) {
    let error: &dyn std::error::Error = error;
    tracing::warn!(error, "{what}");
}

fn now(message: Message) -> wire::ReportRequest {
    let time = Some(convert::timestamp(Timestamp::now()));
    wire::ReportRequest { sequence: 0, time, message: Some(message) }
}
