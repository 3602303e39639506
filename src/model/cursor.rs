//! Where an operation stands: one cursor, one direction. The only state machine of the engine.
//!
//! Decides what the next turn is and what its outcome means. Leaves doing it to `ops`. Must never know what a step is.
//!
//! ```text
//!            Done               Done, last step
//!          +------+   +-----------------------------> Succeeded
//!          v      |   |
//!   ---> Running(at) -+-- not Done, before the commit point ---> Undoing(at) ----+
//!          |  ^       |                                                          |
//!          |  |       +-- NotApplied, at the commit point ---> Undoing(at - 1) --+-- Done at 0 --> Failed
//!          |  |       +-- cancelled before it was started ---> the same; of the first step, Undoing(0)
//!          |  | again                                            |  ^            |
//!          v  |                                                  +--+ Done: down, else again
//!        (at or past the commit point: only on)                  |
//!          |                                                     |
//!          +-- too often, or GaveUp ----> Stuck(at, direction) <---- too often, or GaveUp
//! ```
//! A step before the commit point that fails is itself undone: it may have half happened. The commit step turns back
//! only on proof that it did not happen. After it there is only forward.

use serde::{Deserialize, Serialize};

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// Number of steps; at least one.
    pub steps: usize,
    /// Index of the point of no return.
    pub commit_point: usize,
    /// State.
    pub state: State,
    /// How often the present turn has failed.
    pub attempts: u8,
}

/// The states of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// All before `at` is done; `at` may have started. In a journal that was written ahead ([`super::window`]), any step of the
    /// window up to `at` may or may not be done.
    Running {
        /// Index of the step.
        at: usize,
    },
    /// All after `at` is undone; undoing `at` may have started.
    Undoing {
        /// Index of the step.
        at: usize,
    },
    /// All is done.
    Succeeded,
    /// All is undone.
    Failed,
    /// Neither way works. A person is needed.
    Stuck {
        /// Index of the step.
        at: usize,
        /// The way it was going.
        direction: Direction,
    },
}

/// Which way an operation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Making it so.
    Forward,
    /// Unmaking it.
    Back,
}

/// What to do next: the step and the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// Make step `.0` so.
    Ensure(usize),
    /// Unmake step `.0`.
    Undo(usize),
}

/// What was learned from a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is seen to be so.
    Done,
    /// It is seen not to be so, and nothing is under way that could still make it so.
    NotApplied,
    /// It could not be seen.
    Unknown,
    /// It is not so, or half so, and will not be by trying again: something outside has to change first.
    GaveUp,
}

impl Cursor {
    /// How often a turn may fail before a person is needed.
    pub const MAX_ATTEMPTS: u8 = 5;

    /// The start of a plan of `steps` steps. None if the plan is empty or its commit point is outside of it.
    #[must_use]
    pub fn start(steps: usize, commit_point: usize) -> Option<Self> {
        (commit_point < steps).then_some(Self {
            steps,
            commit_point,
            state: State::Running { at: 0 },
            attempts: 0,
        })
    }

    /// Whether it is the cursor of a plan of so many steps. One that was read back from somewhere may be none.
    #[must_use]
    pub fn fits(&self, steps: usize) -> bool {
        let is_inside = match self.state {
            State::Running { at } | State::Undoing { at } | State::Stuck { at, .. } => at < steps,
            State::Succeeded | State::Failed => true,
        };
        self.steps == steps && self.commit_point < steps && is_inside && self.attempts <= Self::MAX_ATTEMPTS
    }

    /// What to do next; None when the operation has ended or is stuck.
    #[must_use]
    pub fn turn(&self) -> Option<Turn> {
        match self.state {
            State::Running { at } => Some(Turn::Ensure(at)),
            State::Undoing { at } => Some(Turn::Undo(at)),
            State::Succeeded | State::Failed | State::Stuck { .. } => None,
        }
    }

    /// Whether nothing will happen any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Succeeded | State::Failed)
    }

    /// Takes in what was learned from `turn`.
    pub fn record(&mut self, turn: Turn, outcome: Outcome) {
        match (turn, outcome) {
            (Turn::Ensure(at), Outcome::Done) if at + 1 == self.steps => self.enter(State::Succeeded),
            (Turn::Ensure(at), Outcome::Done) => self.enter(State::Running { at: at + 1 }),
            (Turn::Ensure(at), Outcome::NotApplied | Outcome::Unknown | Outcome::GaveUp)
                if at < self.commit_point =>
            {
                self.enter(State::Undoing { at });
            }
            (Turn::Ensure(at), Outcome::NotApplied) if at == self.commit_point => self.enter(Self::below(at)),
            (Turn::Undo(at), Outcome::Done) => self.enter(Self::below(at)),
            (Turn::Ensure(at), Outcome::NotApplied | Outcome::Unknown) => self.again(at, Direction::Forward),
            (Turn::Undo(at), Outcome::NotApplied | Outcome::Unknown) => self.again(at, Direction::Back),
            (Turn::Ensure(at), Outcome::GaveUp) => {
                self.enter(State::Stuck { at, direction: Direction::Forward });
            }
            (Turn::Undo(at), Outcome::GaveUp) => self.enter(State::Stuck { at, direction: Direction::Back }),
        }
    }

    /// Whether a wish to cancel can still be granted.
    #[must_use]
    pub fn can_cancel(&self) -> bool {
        matches!(self.state, State::Running { at } if at < self.commit_point)
    }

    /// Turns back before the present step has been started in this life of the process. True if it did.
    ///
    /// The caller asserts that the step at the cursor has not been started. What the first one makes so may have come with
    /// the operation itself: it is undone, unless it is the commit step.
    pub fn turn_back(&mut self) -> bool {
        match self.state {
            State::Running { at: 0 } if self.commit_point > 0 && self.attempts == 0 => {
                self.enter(State::Undoing { at: 0 });
                true
            }
            // A failed attempt at the commit step may have half happened.
            State::Running { at } if at <= self.commit_point && self.attempts == 0 => {
                self.enter(Self::below(at));
                true
            }
            State::Running { .. }
            | State::Undoing { .. }
            | State::Succeeded
            | State::Failed
            | State::Stuck { .. } => false,
        }
    }

    /// Lets a stuck operation try again the way it was going. True if it was stuck.
    pub fn retry(&mut self) -> bool {
        let State::Stuck { at, direction } = self.state else { return false };
        self.enter(match direction {
            Direction::Forward => State::Running { at },
            Direction::Back => State::Undoing { at },
        });
        true
    }

    /// Stops where it stands, until a person decides. Nothing if it has ended, or is stuck already.
    pub fn hold(&mut self) {
        match self.state {
            State::Running { at } => self.enter(State::Stuck { at, direction: Direction::Forward }),
            State::Undoing { at } => self.enter(State::Stuck { at, direction: Direction::Back }),
            State::Succeeded | State::Failed | State::Stuck { .. } => {}
        }
    }

    /// Ends a stuck operation where it stands. Nothing is done or undone any more. True if it was stuck.
    pub fn abandon(&mut self) -> bool {
        let is_stuck = matches!(self.state, State::Stuck { .. });
        if is_stuck {
            self.enter(State::Failed);
        }
        is_stuck
    }

    fn enter(&mut self, state: State) {
        self.attempts = 0;
        self.state = state;
    }

    fn below(at: usize) -> State {
        if at == 0 { State::Failed } else { State::Undoing { at: at - 1 } }
    }

    fn again(&mut self, at: usize, direction: Direction) {
        self.attempts += 1;
        if self.attempts > Self::MAX_ATTEMPTS {
            self.enter(State::Stuck { at, direction });
        }
    }
}

#[cfg(test)]
mod tests {
    //! Every schedule of faults over every small plan: each end is all applied, nothing left, or stuck, and nothing is
    //! ever undone after the commit point.

    use std::collections::BTreeSet;

    use super::*;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Fault {
        None,
        ErrorBefore,
        ErrorAfter,
        BlindErrorBefore,
        BlindErrorAfter,
        GiveUpBefore,
        GiveUpAfter,
        CrashBefore,
        CrashAfter,
        Cancel,
    }

    const FAULTS: [Fault; 10] = [
        Fault::None,
        Fault::ErrorBefore,
        Fault::ErrorAfter,
        Fault::BlindErrorBefore,
        Fault::BlindErrorAfter,
        Fault::GiveUpBefore,
        Fault::GiveUpAfter,
        Fault::CrashBefore,
        Fault::CrashAfter,
        Fault::Cancel,
    ];

    #[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
    struct World {
        applied: Vec<bool>,
        cursor: Cursor,
        started: bool,
        faults_left: u8,
        committed: bool,
        undone_after_commit: bool,
    }

    impl World {
        fn new(steps: usize, commit_point: usize) -> Self {
            // What the first step makes so comes with the operation.
            let applied = (0..steps).map(|step| step == 0 && commit_point > 0).collect();
            Self {
                applied,
                cursor: Cursor::start(steps, commit_point).unwrap(),
                started: false,
                faults_left: 7,
                committed: false,
                undone_after_commit: false,
            }
        }

        fn after(&self, fault: Fault, rule: fn(&mut Cursor, Turn, Outcome)) -> Self {
            let mut world = self.clone();
            if fault != Fault::None {
                world.faults_left -= 1;
            }
            if fault == Fault::Cancel {
                if !world.started {
                    world.cursor.turn_back();
                }
                return world;
            }
            let turn = world.cursor.turn().unwrap();
            let (step, wanted) = match turn {
                Turn::Ensure(step) => (step, true),
                Turn::Undo(step) => (step, false),
            };
            if !matches!(
                fault,
                Fault::ErrorBefore | Fault::BlindErrorBefore | Fault::GiveUpBefore | Fault::CrashBefore
            ) {
                world.undone_after_commit |= !wanted && world.committed;
                world.applied[step] = wanted;
                world.committed |= wanted && step == world.cursor.commit_point;
            }
            world.started = matches!(fault, Fault::CrashBefore | Fault::CrashAfter);
            match fault {
                // The journal holds the turn: the next life of the process begins with it.
                Fault::CrashBefore | Fault::CrashAfter => {}
                Fault::GiveUpBefore | Fault::GiveUpAfter => rule(&mut world.cursor, turn, Outcome::GaveUp),
                Fault::BlindErrorBefore | Fault::BlindErrorAfter => {
                    rule(&mut world.cursor, turn, Outcome::Unknown);
                }
                Fault::None | Fault::ErrorBefore | Fault::ErrorAfter | Fault::Cancel => {
                    let seen = world.applied[step] == wanted;
                    rule(&mut world.cursor, turn, if seen { Outcome::Done } else { Outcome::NotApplied });
                }
            }
            world
        }

        fn verdict(&self) -> Result<(), String> {
            if self.undone_after_commit {
                return Err("undone after the commit point".to_owned());
            }
            match self.cursor.state {
                State::Succeeded if self.applied.contains(&false) => {
                    Err("succeeded, not all applied".to_owned())
                }
                State::Failed if self.applied.contains(&true) => {
                    Err(format!("left behind: {:?}", self.applied))
                }
                State::Succeeded
                | State::Failed
                | State::Stuck { .. }
                | State::Running { .. }
                | State::Undoing { .. } => Ok(()),
            }
        }
    }

    /// Walks through everything that can happen; gives the number of worlds seen, or the first that is wrong.
    fn explore(rule: fn(&mut Cursor, Turn, Outcome)) -> Result<usize, String> {
        let mut seen = BTreeSet::new();
        let mut ends = BTreeSet::new();
        for steps in 1..=6 {
            for commit_point in 0..steps {
                let mut open = vec![World::new(steps, commit_point)];
                while let Some(world) = open.pop() {
                    if !seen.insert(world.clone()) {
                        continue;
                    }
                    world.verdict()?;
                    if world.cursor.turn().is_none() {
                        ends.insert(
                            std::mem::discriminant(&world.cursor.state)
                                == std::mem::discriminant(&State::Failed),
                        );
                        continue;
                    }
                    for fault in FAULTS {
                        if fault == Fault::None || world.faults_left > 0 {
                            open.push(world.after(fault, rule));
                        }
                    }
                }
            }
        }
        assert_eq!(ends.len(), 2, "both ways of ending are reached");
        Ok(seen.len())
    }

    #[test]
    fn no_schedule_of_faults_breaks_the_rule() {
        let worlds = explore(Cursor::record).unwrap();
        assert!(worlds > 5_000, "only {worlds} worlds seen");
    }

    #[test]
    fn a_rule_that_does_not_undo_the_failed_step_is_caught() {
        fn mutant(cursor: &mut Cursor, turn: Turn, outcome: Outcome) {
            match (turn, outcome) {
                (Turn::Ensure(at), Outcome::NotApplied | Outcome::Unknown) if at < cursor.commit_point => {
                    cursor.enter(Cursor::below(at));
                }
                _ => cursor.record(turn, outcome),
            }
        }
        assert!(explore(mutant).is_err());
    }

    #[test]
    fn a_rule_that_turns_back_blindly_at_the_commit_point_is_caught() {
        fn mutant(cursor: &mut Cursor, turn: Turn, outcome: Outcome) {
            match (turn, outcome) {
                (Turn::Ensure(at), Outcome::Unknown) if at == cursor.commit_point => {
                    cursor.enter(Cursor::below(at));
                }
                _ => cursor.record(turn, outcome),
            }
        }
        assert!(explore(mutant).is_err());
    }

    #[test]
    fn a_step_that_gives_up_waits_for_a_person_at_once() {
        for (state, turn, direction) in [
            (State::Running { at: 1 }, Turn::Ensure(1), Direction::Forward),
            (State::Running { at: 2 }, Turn::Ensure(2), Direction::Forward),
            (State::Undoing { at: 0 }, Turn::Undo(0), Direction::Back),
        ] {
            let mut cursor = Cursor { state, ..Cursor::start(3, 1).unwrap() };
            cursor.record(turn, Outcome::GaveUp);
            let (Turn::Ensure(at) | Turn::Undo(at)) = turn;
            assert_eq!(cursor.state, State::Stuck { at, direction });
            assert!(cursor.retry());
            assert_eq!((cursor.state, cursor.attempts), (state, 0));
        }
    }

    #[test]
    fn a_stuck_operation_goes_on_the_way_it_went() {
        for (direction, state) in
            [(Direction::Forward, State::Running { at: 1 }), (Direction::Back, State::Undoing { at: 1 })]
        {
            let mut cursor =
                Cursor { steps: 3, commit_point: 1, state: State::Stuck { at: 1, direction }, attempts: 0 };
            assert!(cursor.retry());
            assert_eq!(cursor.state, state);
            assert!(!cursor.retry());
        }
    }
}
