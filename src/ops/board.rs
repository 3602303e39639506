//! Where operations under way can be seen and spoken to. Decides nothing.
//!
//! A watcher always gets the latest; a slow one misses what lies between, and never holds anybody up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::model::convergence::{Pace, Trend};
use crate::model::{DiskTarget, Operation, OperationId};

use super::Result;

/// An operation as a watcher sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationView {
    /// What it is at.
    pub operation: Operation,
    /// What moves now.
    pub progress: Vec<Progress>,
    /// Rises with every change, over restarts too.
    pub revision: u64,
}

/// Something that moves.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is going on.
    pub phase: Phase,
    /// On which disk, if on one.
    pub disk: Option<DiskTarget>,
    /// Bytes dealt with. Never goes back.
    pub done: u64,
    /// Bytes to deal with. May grow.
    pub total: u64,
    /// Bytes per second so far.
    pub rate: f64,
    /// Of a block job: whether it gains on the guest.
    pub course: Option<Course>,
}

/// How a block job stands against the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// Whether it gains.
    pub trend: Trend,
    /// The rates of the last seconds.
    pub pace: Pace,
    /// Bytes per second that the guest's writes are slowed to.
    pub slowed_to: Option<u64>,
    /// Bytes per second that the block job is held to, so that the guest does not wait too long for its disk.
    pub held_to: Option<u64>,
    /// How long a request of the guest takes, as far as it is known.
    pub wait: Option<Duration>,
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Memory is captured.
    CaptureMemory,
    /// Layers are merged.
    Merge,
    /// An image is copied.
    Copy,
}

/// What one can say to an operation under way.
#[derive(Debug)]
pub(super) enum Command {
    /// Turn back.
    Cancel,
    /// Go on, although it is stuck.
    Resolve(Decision),
    /// Copy so many bytes per second at most.
    Limit(Limit),
}

/// What becomes of an operation that is stuck.
#[derive(Debug)]
pub(super) struct Decision {
    /// It gives up where it stands, and does not try again.
    pub(super) abandon: bool,
    /// Told once it is taken, with the revision that was shown until then; or why it is not.
    pub(super) told: oneshot::Sender<Result<u64>>,
}

/// Another limit on what is copied.
#[derive(Debug)]
pub(super) struct Limit {
    /// Bytes per second; None for no limit.
    pub(super) bandwidth: Option<u64>,
    /// Told once it is durable, or why it is not.
    pub(super) told: oneshot::Sender<Result<()>>,
}

/// All operations under way.
#[derive(Clone, Default)]
pub(super) struct Board {
    entries: Arc<Mutex<HashMap<OperationId, Entry>>>,
    /// Counts whatever is shown.
    moves: Arc<watch::Sender<u64>>,
}

struct Entry {
    view: watch::Receiver<OperationView>,
    commands: mpsc::Sender<Command>,
}

/// The runner's side of an entry.
pub(super) struct Reporter {
    view: watch::Sender<OperationView>,
    started: Mutex<HashMap<(Option<DiskTarget>, Phase), Instant>>,
    board: Board,
    id: OperationId,
}

/// Revisions of one journaled generation: more progress reports than a turn can have.
const REVISIONS_PER_GENERATION: u32 = 24;

impl OperationView {
    /// The view of an operation that does not move.
    #[must_use]
    pub fn of(operation: Operation) -> Self {
        let revision = operation.generation << REVISIONS_PER_GENERATION;
        Self { operation, progress: Vec::new(), revision }
    }
}

impl Board {
    /// Puts an operation on the board; it is there until the reporter is dropped.
    pub(super) fn enter(&self, operation: &Operation) -> (Reporter, mpsc::Receiver<Command>) {
        let (view, watcher) = watch::channel(OperationView::of(operation.clone()));
        let (commands, inbox) = mpsc::channel(4);
        let entry = Entry { view: watcher, commands };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(operation.id, entry);
        let reporter = Reporter { view, started: Mutex::default(), board: self.clone(), id: operation.id };
        (reporter, inbox)
    }

    /// A watcher of an operation under way.
    pub(super) fn watch(&self, id: OperationId) -> Option<watch::Receiver<OperationView>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(&id).map(|entry| entry.view.clone())
    }

    /// Tells whenever anything else is shown of any operation.
    pub(super) fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// All operations as they are shown now.
    pub(super) fn views(&self) -> Vec<OperationView> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.values().map(|entry| entry.view.borrow().clone()).collect()
    }

    /// The way to speak to an operation under way.
    pub(super) fn commands(&self, id: OperationId) -> Option<mpsc::Sender<Command>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(&id).map(|entry| entry.commands.clone())
    }

    /// Whether an operation still moves, or waits for a person. One that has ended stays for a moment, until what it held up
    /// is looked at: whoever has seen its end is not to be told that it is busy.
    pub(super) fn is_under_way(&self, id: OperationId) -> bool {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(&id).is_some_and(|entry| !entry.view.borrow().operation.cursor.has_ended())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Reporter {
    /// Shows an operation. The journal has its state, or has one that covers it ([`crate::model::window`]).
    pub(super) fn publish(&self, operation: &Operation) {
        self.view.send_replace(OperationView::of(operation.clone()));
        self.moved();
    }

    fn moved(&self) {
        self.board.moves.send_modify(|moves| *moves += 1);
    }

    /// What is shown now.
    pub(super) fn revision(&self) -> u64 {
        self.view.borrow().revision
    }

    /// Shows that something moves.
    pub(super) fn progress(&self, phase: Phase, disk: Option<&DiskTarget>, done: u64, total: u64) {
        let key = (disk.cloned(), phase);
        let since = *self
            .started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(key)
            .or_insert_with(Instant::now);
        self.view.send_modify(|view| {
            let known =
                view.progress.iter().position(|entry| entry.phase == phase && entry.disk.as_ref() == disk);
            let (done, total) = match known.map(|index| &view.progress[index]) {
                Some(before) => (done.max(before.done), total.max(before.total)),
                None => (done, total),
            };
            #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
            let rate = done as f64 / since.elapsed().as_secs_f64().max(0.001);
            let course = known.and_then(|index| view.progress[index].course);
            let entry = Progress { phase, disk: disk.cloned(), done, total: total.max(done), rate, course };
            match known {
                Some(index) => view.progress[index] = entry,
                None => view.progress.push(entry),
            }
            view.revision += 1;
        });
        self.moved();
    }

    /// Shows how the merge of a disk, whose progress is shown already, stands against the guest.
    pub(super) fn converges(&self, disk: &DiskTarget, course: Course) {
        self.view.send_modify(|view| {
            let is_it =
                |entry: &&mut Progress| entry.phase == Phase::Merge && entry.disk.as_ref() == Some(disk);
            if let Some(entry) = view.progress.iter_mut().find(is_it) {
                entry.course = Some(course);
                view.revision += 1;
            }
        });
        self.moved();
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.board.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::operation::{Direction, OperationState};
    use crate::store::tests::operation;

    #[test]
    fn an_operation_is_under_way_until_its_end_is_shown() {
        let board = Board::default();
        let mut operation = operation(1);
        assert!(!board.is_under_way(operation.id));
        let (reporter, _commands) = board.enter(&operation);
        for (state, expected) in [
            (OperationState::Running { at: 0 }, true),
            (OperationState::Stuck { at: 0, direction: Direction::Forward }, true),
            (OperationState::Succeeded, false),
            (OperationState::Failed, false),
        ] {
            operation.cursor.state = state;
            reporter.publish(&operation);
            assert_eq!(board.is_under_way(operation.id), expected, "{state:?}");
        }
        drop(reporter);
        assert!(!board.is_under_way(operation.id));
    }
}
