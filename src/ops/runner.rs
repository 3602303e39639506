//! Carries a plan out, turn by turn; new work and what an earlier life left behind are the same to it.
//!
//! ```text
//!   loop: turn = cursor.turn()          none when it has ended
//!         journal(operation, turn)      the intent is durable before the effect
//!         performed = perform(turn)     look; act; look again
//!         cursor.record(turn, outcome)
//! ```
//! Decides when to wait: for the hypervisor, between attempts, for a person. Everything else is the cursor's.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::host::Link;
use crate::model::operation::{OperationState, Reason};
use crate::model::step::CatalogChange;
use crate::model::window::Window;
use crate::model::{Failure, Finding, Operation, Outcome, Request, ResolveDifference, Step, Turn, VmId};

use super::board::{Command, Decision, Limit, Reporter};
use super::gate::Permit;
use super::steps::{Context, Performed, SeenBefore, perform};
use super::{Engine, Inner, OpsError, spans};

/// An operation on its way.
pub(super) struct Runner {
    engine: Engine,
    operation: Operation,
    reporter: Reporter,
    commands: mpsc::Receiver<Command>,
    /// The most bytes per second that it copies for each disk, as it is now.
    bandwidth: watch::Sender<Option<u64>>,
    seen_before: SeenBefore,
    /// Holds the VM until the operation has ended.
    permit: Permit,
    /// Whether the present turn has never been tried, in this life or an earlier one.
    is_fresh: bool,
    /// Whether the journal says already that what is done while the guest stands still is under way.
    is_ahead: bool,
}

impl Runner {
    /// Takes charge of an operation that the journal has. `is_fresh`: it has never run.
    pub(super) fn new(engine: Engine, operation: Operation, permit: Permit, is_fresh: bool) -> Self {
        let (reporter, commands) = engine.0.board.enter(&operation);
        engine.0.gate.tell();
        let bandwidth = watch::Sender::new(operation.bandwidth());
        Self {
            engine,
            operation,
            reporter,
            commands,
            bandwidth,
            seen_before: SeenBefore::default(),
            permit,
            is_fresh,
            is_ahead: false,
        }
    }

    /// With something that was learned before it runs.
    pub(super) fn knowing(mut self, finding: Option<Finding>) -> Self {
        if let Some(finding) = finding {
            self.operation.findings.add(finding);
        }
        self
    }

    /// Runs it to its end, or until the daemon goes down. It is part of what whoever calls this does.
    pub(super) fn run(self) -> impl Future<Output = ()> + Send {
        let span = spans::of_operation(&self.operation);
        async move {
            let mut next = self.run_one().instrument(span).await;
            while let Some(runner) = next {
                let span = spans::of_operation(&runner.operation);
                next = runner.run_one().instrument(span).await;
            }
        }
    }

    /// Gives what it has made way for.
    async fn run_one(mut self) -> Option<Self> {
        tracing::info!(operation = %self.operation.id, vm = %self.operation.vm, snapshot = ?self.operation.snapshot, "operation runs");
        loop {
            if !self.take_turns().await {
                tracing::info!(operation = %self.operation.id, "operation is left for the next start");
                return None;
            }
            if !matches!(self.operation.cursor.state, OperationState::Stuck { .. }) {
                break;
            }
            if !self.wait_for_a_person().await {
                return None;
            }
        }
        self.end().await
    }

    /// Until there is none left to take. False if the daemon goes down first.
    async fn take_turns(&mut self) -> bool {
        // What is said to one that is stuck is for a person's turn.
        while self.operation.cursor.turn().is_some() {
            self.take_commands().await;
            // One that has nothing left to do comes to its end, whoever wants the daemon to go: no later start would end it.
            let Some(turn) = self.operation.cursor.turn() else { break };
            if self.may_stop() {
                // What the last turn has learned cannot be seen again.
                self.save().await;
                return false;
            }
            if !self.is_linked() {
                // What the last turn has learned is not to wait for the hypervisor.
                self.save().await;
                self.wait_for_link().await;
                continue;
            }
            if !self.journal(turn).await {
                return false;
            }
            let span = spans::of_turn(&self.operation, turn);
            self.take_turn(turn).instrument(span).await;
        }
        true
    }

    async fn end(mut self) -> Option<Self> {
        // Whoever still says something is told that it comes too late.
        self.commands = mpsc::channel(1).1;
        // Before the end is durable: what was written to has to be looked at, even if the daemon dies now.
        self.engine.remember(&self.operation).await;
        // Those that could not be written before.
        let concerned = self.source().into_iter().chain([self.operation.vm]).collect();
        self.engine.0.manifests.settle(&concerned).await;
        // What failed for a moment is not to wait for the next operation. Mostly nothing is due any more.
        self.engine.0.manifests.settle(&concerned).await;
        if let Request::ResolveDifference(ResolveDifference { orphan: None, .. }) = self.operation.request {
            // Whoever waits for the end finds the difference settled.
            self.engine.look_again(self.operation.vm).await;
        }
        self.operation.ended_at = Some(Timestamp::now());
        if self.operation.cursor.state == OperationState::Failed {
            spans::failed();
        }
        if self.operation.was_abandoned {
            self.save_as(Entry::Abandoned).await;
            self.engine.settle_manifests();
        } else {
            self.save().await;
        }
        self.engine.0.touched.note(self.operation.vm);
        // One that went wrong would only do so again.
        let is_collapse = matches!(self.operation.request, Request::Collapse { .. });
        if is_collapse && self.operation.cursor.state != OperationState::Succeeded {
            return None;
        }
        // What was held up by the references that have gone now, or for want of room, goes, too.
        self.settle_source();
        self.engine.collapse_waiting(Some(self.operation.vm));
        self.engine.collapse(self.operation.vm, self.permit).await
    }

    /// The VM that a clone was made out of, if this lets it stand alone.
    fn source(&self) -> Option<VmId> {
        self.operation.steps.iter().find_map(|step| match step {
            Step::Record(CatalogChange::CloneFlattened { source, .. }) => Some(*source),
            _ => None,
        })
    }

    /// A clone that stands alone holds nothing of the VM any more that it was made out of.
    fn settle_source(&self) {
        if let Some(source) = self.source().filter(|source| *source != self.operation.vm) {
            let engine = self.engine.clone();
            self.engine.0.tasks.spawn(async move { engine.collapse_when_free(source).await });
        }
    }

    async fn take_turn(&mut self, turn: Turn) {
        let cancelled = CancellationToken::new();
        let engine = self.engine.clone();
        let inner = &engine.0;
        // What is done while the guest may be frozen is not cut off: it would be begun anew, again and again.
        let never = CancellationToken::new();
        let stopping = if self.holds_freeze() { &never } else { &inner.stopping };
        let mut limited = None;
        let performed = {
            let context = Context {
                engine: &engine,
                host: &inner.host,
                store: &inner.store,
                places: &inner.places,
                dead_man: &inner.dead_man,
                manifests: &inner.manifests,
                limits: &inner.limits,
                reporter: &self.reporter,
                operation: &self.operation,
                is_fresh: self.is_fresh,
                bandwidth: self.bandwidth.subscribe(),
                seen_before: &self.seen_before,
                cancelled: &cancelled,
                stopping,
            };
            let mut turn = std::pin::pin!(perform(&context, turn));
            loop {
                tokio::select! {
                    biased;
                    performed = &mut turn => break performed,
                    Some(command) = self.commands.recv() => match command {
                        Command::Cancel => cancelled.cancel(),
                        Command::Limit(limit) if self.is_ahead || !self.operation.can_limit() => refuse(limit),
                        Command::Limit(limit) => {
                            let mut operation = limited.take().unwrap_or_else(|| self.operation.clone());
                            take_limit(inner, (&self.reporter, &self.bandwidth), &mut operation, limit).await;
                            limited = Some(operation);
                        }
                        Command::Resolve(decision) => come_too_late(decision),
                    }
                }
            }
        };
        if let Some(limited) = limited {
            self.operation = limited;
        }
        self.operation.cancel_requested |= cancelled.is_cancelled();
        let Performed::Seen { outcome, findings, failure } = performed else {
            self.is_fresh = false;
            return;
        };
        if let Some(failure) = &failure {
            let causes = failure.causes.join(": ");
            tracing::warn!(operation = %self.operation.id, ?turn, ?outcome, reason = ?failure.reason, causes, "{}", failure.message);
        }
        let is_unreachable =
            failure.as_ref().is_some_and(|failure| failure.reason == Reason::HypervisorUnavailable);
        let before = self.operation.cursor;
        if is_unreachable && outcome == Outcome::Unknown && !self.would_turn_back(turn) {
            // Nothing can be said until the hypervisor is back; that is no failure of this step.
            self.is_fresh = false;
            self.pause(1).await;
            return;
        }
        self.operation.record(turn, outcome, findings, failure);
        self.is_fresh = self.operation.cursor.state != before.state;
        if !self.is_fresh {
            self.pause(self.operation.cursor.attempts).await;
        }
    }

    fn would_turn_back(&self, turn: Turn) -> bool {
        matches!(turn, Turn::Ensure(at) if at < self.operation.cursor.commit_point)
    }

    /// A wish to cancel is granted between turns, as long as the commit step has not been tried.
    async fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.take_command(command).await;
        }
        if self.operation.cancel_requested && self.is_fresh && self.operation.cursor.turn_back() {
            self.operation.failure = Some(Failure::cancelled("the operation was cancelled"));
        }
    }

    async fn take_command(&mut self, command: Command) {
        match command {
            Command::Cancel => self.operation.cancel_requested = true,
            Command::Limit(limit) if self.is_ahead || !self.operation.can_limit() => refuse(limit),
            Command::Limit(limit) => {
                let shown = (&self.reporter, &self.bandwidth);
                take_limit(&self.engine.0, shown, &mut self.operation, limit).await;
            }
            Command::Resolve(decision) => come_too_late(decision),
        }
    }

    /// The daemon goes down between turns, but never with a guest frozen.
    fn may_stop(&self) -> bool {
        self.engine.0.stopping.is_cancelled() && !self.holds_freeze()
    }

    /// Whether the guest may be frozen or paused by this operation now.
    fn holds_freeze(&self) -> bool {
        let findings = &self.operation.findings;
        let (Some(turn), Some(window)) = (self.operation.cursor.turn(), self.operation.window()) else {
            return false;
        };
        let (Turn::Ensure(at) | Turn::Undo(at)) = turn;
        let is_between = (window.first..=window.last).contains(&at);
        if let Step::PauseVm { .. } = self.operation.steps[window.first] {
            // What is still to come would only be taken back: the capture does not outlive the daemon.
            let has_begun = !(turn == Turn::Ensure(window.first) && self.is_fresh);
            return has_begun
                && is_between
                && self.engine.0.dead_man.watches(self.operation.vm, self.operation.id);
        }
        match turn {
            Turn::Ensure(_) => is_between,
            // A switch that is taken back after the thaw takes its time, and holds nothing.
            Turn::Undo(at) => {
                let is_frozen = findings.frozen.is_some() && findings.thawed.is_none();
                at == window.first || (is_between && is_frozen)
            }
        }
    }

    /// Until the hypervisor can be reached, or something is said, or the daemon goes down, which it does not while it holds a
    /// guest frozen.
    async fn wait_for_link(&mut self) {
        let mut link = self.engine.0.host.hypervisor.link();
        let holds_freeze = self.holds_freeze();
        let command = tokio::select! {
            biased;
            Ok(_) = link.wait_for(|link| *link == Link::Up) => None,
            () = self.engine.0.stopping.cancelled(), if !holds_freeze => None,
            Some(command) = self.commands.recv() => Some(command),
            else => None,
        };
        if let Some(command) = command {
            self.take_command(command).await;
        }
    }

    fn is_linked(&self) -> bool {
        *self.engine.0.host.hypervisor.link().borrow() == Link::Up
    }

    /// Makes durable that a turn may have begun, and shows it. While a guest stands still that was said before, and nothing is
    /// written: see [`crate::model::window`]. False as in [`Self::save`].
    async fn journal(&mut self, turn: Turn) -> bool {
        let window = self.operation.window().filter(|window| window.has(turn));
        match window.filter(|_| self.is_fresh) {
            Some(window) if turn == Turn::Ensure(window.first) => {
                let is_saved = self.save_as(Entry::Ahead(window)).await;
                self.is_ahead = is_saved;
                is_saved
            }
            Some(_) if self.is_ahead => {
                self.operation.generation += 1;
                self.reporter.publish(&self.operation);
                true
            }
            Some(_) | None => self.save().await,
        }
    }

    /// Makes the operation durable and shows it. If that fails it is tried again: nothing is done before. False if the
    /// daemon goes down first; see [`Self::wait_for_link`].
    async fn save(&mut self) -> bool {
        self.is_ahead = false;
        self.save_as(Entry::AsItStands).await
    }

    /// [`Self::save`], as another entry.
    async fn save_as(&mut self, entry: Entry) -> bool {
        self.operation.generation += 1;
        self.operation.updated_at = Timestamp::now();
        let mut failures = 0;
        loop {
            let (store, operation) = (&self.engine.0.store, &self.operation);
            let saved = match entry {
                Entry::AsItStands => store.save(operation.clone()).await,
                Entry::Ahead(window) => store.save(operation.ahead(window)).await,
                Entry::Abandoned => store.abandon(operation.clone()).await,
            };
            match saved {
                Ok(()) => break,
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(operation = %self.operation.id, error, "the journal cannot be written");
                }
            }
            failures += 1;
            if self.may_stop() {
                return false;
            }
            self.pause(failures).await;
        }
        self.reporter.publish(&self.operation);
        true
    }

    /// 0.1 s, doubled with each failure, at most 5 s. Not cut short by a stop that does not come before the guest is thawed:
    /// it would be no pause at all.
    async fn pause(&self, failures: u8) {
        let pause = Duration::from_millis(50).saturating_mul(1 << u32::from(failures.min(7)));
        let holds_freeze = self.holds_freeze();
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause.min(Duration::from_secs(5))) => {}
            () = self.engine.0.stopping.cancelled(), if !holds_freeze => {}
        }
    }

    /// The VM stays held and takes no new work until a person has decided. False if the daemon goes down first.
    async fn wait_for_a_person(&mut self) -> bool {
        if !self.save().await {
            return false;
        }
        loop {
            let command = tokio::select! {
                biased;
                command = self.commands.recv() => command,
                () = self.engine.0.stopping.cancelled() => None,
            };
            match command {
                None => return false,
                Some(Command::Cancel) => {}
                Some(Command::Limit(limit)) => refuse(limit),
                Some(Command::Resolve(Decision { abandon, told })) => {
                    self.go_on(abandon);
                    // Nobody may wait for it any more.
                    let _ = told.send(Ok(self.reporter.revision()));
                    return true;
                }
            }
        }
    }

    fn go_on(&mut self, abandon: bool) {
        if abandon {
            self.operation.was_abandoned = self.operation.cursor.abandon();
            self.engine.0.captures_left.notify_one();
        } else {
            self.operation.cursor.retry();
            self.is_fresh = false;
        }
    }
}

/// What the journal is to say of an operation.
#[derive(Clone, Copy)]
enum Entry {
    AsItStands,
    /// That all is under way that is done while its guest stands still.
    Ahead(Window),
    /// That nobody goes on with it: what it was in the midst of is in ERROR from then on.
    Abandoned,
}

/// The limit is durable before anything keeps to it. What cannot be written down is not taken.
async fn take_limit(
    engine: &Inner,
    (reporter, bandwidth): (&Reporter, &watch::Sender<Option<u64>>),
    operation: &mut Operation,
    limit: Limit,
) {
    let before = operation.bandwidth();
    operation.limit(limit.bandwidth);
    operation.generation += 1;
    operation.updated_at = Timestamp::now();
    let saved = engine.store.save(operation.clone()).await;
    if saved.is_ok() {
        bandwidth.send_replace(limit.bandwidth);
        reporter.publish(operation);
    } else {
        operation.limit(before);
    }
    // Nobody may wait for it any more.
    let _ = limit.told.send(saved.map_err(OpsError::from));
}

/// It copies nothing, or nothing any more. And while a guest stands still the journal is ahead of the operation, and stays so.
fn refuse(limit: Limit) {
    let _ = limit.told.send(Err(OpsError::NothingToLimit));
}

/// It is not stuck, or not any more.
fn come_too_late(decision: Decision) {
    let _ = decision.told.send(Err(OpsError::NotStuck));
}
