//! `EventService`: what happened, listed and followed. A watch reads from the catalog, at its reader's pace: none is left
//! out, and nobody is held up.

use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::known::KnownLabels;
use super::status::Violations;
use super::{Answer, Api, Caller, Reach, convert, paging, status, watch};
use crate::model::{Reason, VmId};
use crate::ops::{Engine, OpsError};
use crate::proto::v1;
use crate::proto::v1::event_service_server::EventService;
use crate::proto::v1::watch_events_response::Update;
use crate::store::{EventFilter, EventOrder};

/// Events that a watch reads at once. They are held for as long as its reader does not take them.
const BATCH: u32 = 64;

type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchEventsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl EventService for Api {
    type WatchEventsStream = WatchStream;

    async fn list_events(&self, request: Request<v1::ListEventsRequest>) -> Answer<v1::ListEventsResponse> {
        let Caller { reach, grant, .. } = self.caller(&request).await?;
        let mut request = request.into_inner();
        let limit = paging::size(request.page_size)?;
        let token = std::mem::take(&mut request.page_token);
        request.page_size = 0;
        let query = status::digest("ListEvents", &request);
        let place = paging::position(&query, &token)?
            .map(|place| place.parse::<u64>().map_err(|_| paging::invalid()))
            .transpose()?;
        let order = match request.order_by.as_str() {
            "" | "sequence desc" => EventOrder::Before(place),
            "sequence" | "sequence asc" => EventOrder::After(place.unwrap_or(0)),
            _ => return Err(paging::bad_order("sequence, or sequence desc")),
        };
        let filter = self.event_filter(&reach, request.filter.unwrap_or_default()).await?;
        let turn = self.turns.take(&grant.principal).await?;
        let page = self.engine.events(filter, order, limit).await.map_err(status::of)?;
        drop(turn);
        let last = page.events.last().filter(|_| page.has_more);
        Ok(Response::new(v1::ListEventsResponse {
            next_page_token: last
                .map(|last| paging::token(&query, &last.sequence.to_string()))
                .unwrap_or_default(),
            total_size: i64::try_from(page.total).unwrap_or(i64::MAX),
            resume_token: page.newest.to_string(),
            events: page.events.iter().map(convert::event).collect(),
        }))
    }

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        let Caller { reach, grant, .. } = self.caller(&request).await?;
        let request = request.into_inner();
        let heartbeat = watch::heartbeat(request.heartbeat_interval)?;
        let mut violations = Violations::default();
        let since = violations.take_time("since", request.since);
        violations.check()?;
        let filter = request.filter.unwrap_or_default();
        let names_one = !filter.vm.is_empty();
        let filter = EventFilter { uncounted: true, ..self.event_filter(&reach, filter).await? };
        let of_one = filter.vms.clone().filter(|_| names_one);
        // Where it begins may have to be looked for.
        let turn = self.turns.take(&grant.principal).await?;
        let from = start(&self.engine, &request.resume_token, since).await?;
        drop(turn);
        let (sender, receiver) = mpsc::channel(8);
        let follow = Follow {
            engine: self.engine.clone(),
            known: self.known.clone(),
            reach,
            of_one,
            filter,
            from,
            heartbeat,
            sender,
        };
        tokio::spawn(follow.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The place that a watch begins behind.
async fn start(engine: &Engine, token: &str, since: Option<Timestamp>) -> Result<u64, Status> {
    let filter = EventFilter { created_after: since, uncounted: true, ..EventFilter::default() };
    let page = engine.events(filter, EventOrder::After(0), 1).await.map_err(status::of)?;
    if token.is_empty() {
        let first = page.events.first().filter(|_| since.is_some());
        return Ok(first.map_or(page.newest, |first| first.sequence - 1));
    }
    let place: u64 = token.parse().map_err(|_| {
        let message = "the resume token is not one of ours";
        status::plain(Reason::ResumeTokenInvalid, message, "begin again without a resume token")
    })?;
    // Behind the newest: the catalog is an older one now. Before the oldest: what comes next is not kept any more.
    if place > page.newest || place + 1 < page.oldest {
        let message = "the events behind the resume token are not kept";
        return Err(status::plain(Reason::ResumeTokenExpired, message, "begin again without a resume token"));
    }
    Ok(place)
}

/// A watch.
struct Follow {
    engine: Engine,
    known: KnownLabels,
    reach: Reach,
    /// The VM that the request names.
    of_one: Option<Vec<VmId>>,
    filter: EventFilter,
    /// All up to here has been looked at.
    from: u64,
    heartbeat: Duration,
    sender: mpsc::Sender<Result<v1::WatchEventsResponse, Status>>,
}

impl Follow {
    async fn run(mut self) {
        let stopping = self.engine.draining();
        let mut newest = self.engine.newest_event();
        loop {
            match self.send_new().await {
                Some(Ok(())) => {}
                Some(Err(status)) => {
                    // Nobody listens any more: nobody is told.
                    let _ = self.sender.send(Err(status)).await;
                    return;
                }
                None => return,
            }
            let from = self.from;
            let more = async { newest.wait_for(|newest| *newest > from).await.is_ok() };
            tokio::select! {
                there_is = more => {
                    if !there_is {
                        return;
                    }
                }
                () = tokio::time::sleep(self.heartbeat) => {
                    let heartbeat = v1::Heartbeat { server_time: Some(convert::timestamp(Timestamp::now())) };
                    if self.send(Update::Heartbeat(heartbeat)).await.is_none() {
                        return;
                    }
                }
                () = stopping.cancelled() => {
                    // What was told until now, the daemon's own last word among it.
                    if !matches!(self.send_new().await, Some(Ok(()))) {
                        return;
                    }
                    let retry_after = prost_types::Duration { seconds: 1, nanos: 0 };
                    self.send(Update::Draining(v1::Draining { retry_after: Some(retry_after) })).await;
                    // One that has gone needs no last word.
                    let _ = self.sender.send(Err(status::of(OpsError::Draining))).await;
                    return;
                }
                () = self.sender.closed() => return,
            }
        }
    }

    /// Sends all that is new. None if the client is gone.
    async fn send_new(&mut self) -> Option<Result<(), Status>> {
        if let Err(error) = self.look_anew().await {
            return Some(Err(status::of(error)));
        }
        loop {
            match self.send_fresh().await? {
                Ok(true) => return Some(Ok(())),
                Ok(false) => {}
                Err(error) => return Some(Err(status::of(error))),
            }
            let page = self.engine.events(self.filter.clone(), EventOrder::After(self.from), BATCH).await;
            let page = match page {
                Ok(page) => page,
                Err(error) => return Some(Err(status::of(error))),
            };
            for event in &page.events {
                self.from = event.sequence;
                self.send(Update::Event(convert::event(event))).await?;
            }
            if !page.has_more {
                // What does not match has been looked at, too.
                self.from = self.from.max(page.newest);
                return Some(Ok(()));
            }
        }
    }

    /// Sends all that is new out of memory. False if it has to be looked for in the catalog. None if the client is gone.
    async fn send_fresh(&mut self) -> Option<Result<bool, OpsError>> {
        if self.filter.without_clones {
            return Some(Ok(false));
        }
        let fresh = match self.engine.fresh_events(self.from).await {
            Ok(Some(fresh)) => fresh,
            Ok(None) => return Some(Ok(false)),
            Err(error) => return Some(Err(error)),
        };
        for event in &fresh.events {
            self.from = event.sequence;
            if self.filter.lets_through(&event.event) != Some(false) {
                self.send(Update::Event(convert::event(event))).await?;
            }
        }
        self.from = self.from.max(fresh.newest);
        Some(Ok(true))
    }

    /// VMs come and go while somebody watches all that are within his scope.
    async fn look_anew(&mut self) -> Result<(), OpsError> {
        let Reach::Vms { scope, .. } = &self.reach else { return Ok(()) };
        self.reach = self.known.reach(&self.engine, Some(scope.clone())).await?;
        self.filter.vms = match &self.of_one {
            Some(vms) => Some(vms.iter().copied().filter(|vm| self.reach.has(*vm)).collect()),
            None => self.reach.vms(),
        };
        Ok(())
    }

    async fn send(&self, update: Update) -> Option<()> {
        let resume_token = self.from.to_string();
        self.sender.send(Ok(v1::WatchEventsResponse { resume_token, update: Some(update) })).await.ok()
    }
}

impl Api {
    async fn event_filter(&self, reach: &Reach, asked: v1::EventFilter) -> Result<EventFilter, Status> {
        let mut violations = Violations::default();
        violations.few("filter.kinds", asked.kinds.len());
        let known = asked.kinds().filter_map(convert::event_kind).collect();
        let filter = EventFilter {
            vms: None,
            without_clones: reach.is_scoped(),
            uncounted: false,
            snapshot: violations.take_id("snapshot_id", &asked.snapshot_id),
            volume: violations.take_id("volume_id", &asked.volume_id),
            operation: violations.take_id("operation_id", &asked.operation_id),
            schedule: violations.take_id("schedule_id", &asked.schedule_id),
            kinds: known,
            min_severity: convert::severity(asked.min_severity()),
            created_after: violations.take_time("created_after", asked.created_after),
            created_before: violations.take_time("created_before", asked.created_before),
        };
        violations.check()?;
        if filter.kinds.is_empty() && !asked.kinds.is_empty() {
            return Err(status::not_implemented("events of these kinds"));
        }
        Ok(EventFilter { vms: self.vms_of(reach, &asked.vm).await?, ..filter })
    }
}
