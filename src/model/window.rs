//! The window: the part of a plan in which a guest stands still because of us, frozen or paused.
//!
//! Decides which steps those are, and what the journal says meanwhile: as long as all goes well nothing is written while a guest
//! waits for it. Leaves how long that lasts to whoever carries the steps out.
//!
//! ```text
//!   [..] [Freeze] [SwitchDisks] [Thaw] [..]
//!        ^ written here: SwitchDisks may have begun
//!   [..] [PauseVm] [CaptureMemory] [SwitchDisks] [ProveCapture] [ResumeVm] [..]
//!        ^ written here: ProveCapture may have begun
//! ```
//! What is written ahead says that more may have happened than has: whoever goes on from there looks what has, and does not
//! ask whether the guest stood still, for that cannot be known any more.

use super::operation::{Operation, OperationState, Turn};
use super::step::Step;

/// Steps in the midst of which a guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Index of the step that stops the guest.
    pub first: usize,
    /// Index of the step that lets it go on.
    pub last: usize,
    /// Index of the last step that only a guest which stands still lets be done. The journal has it before the first begins.
    pub intent: usize,
}

impl Window {
    /// Whether the guest may stand still in this turn, if all goes well.
    #[must_use]
    pub fn has(&self, turn: Turn) -> bool {
        matches!(turn, Turn::Ensure(at) if (self.first..=self.last).contains(&at))
    }
}

impl Operation {
    /// Its window. None if its guest does not stand still.
    #[must_use]
    pub fn window(&self) -> Option<Window> {
        let position = |wanted: fn(&Step) -> bool| self.steps.iter().position(wanted);
        let first = position(|step| matches!(step, Step::Freeze(_) | Step::PauseVm { .. }))?;
        let last = position(|step| matches!(step, Step::Thaw | Step::ResumeVm))?;
        Some(Window { first, last, intent: last.checked_sub(1).filter(|intent| *intent > first)? })
    }

    /// Whether it is where a life of the daemon that ends takes with it what is known of the guest: from the step that stops it up to
    /// the commit point.
    #[must_use]
    pub fn is_cut_short_by_death(&self) -> bool {
        let (Some(Turn::Ensure(at)), Some(window)) = (self.cursor.turn(), self.window()) else {
            return false;
        };
        (window.first..=self.cursor.commit_point.max(window.last)).contains(&at)
    }

    /// What the journal is to say before its guest stands still: that all is under way that is done meanwhile.
    #[must_use]
    pub fn ahead(&self, window: Window) -> Self {
        let mut ahead = self.clone();
        ahead.cursor.state = OperationState::Running { at: window.intent };
        // Whoever goes on from there must not show less than what was shown meanwhile.
        for _ in window.first..window.last {
            ahead.generation += 1;
        }
        ahead
    }
}
