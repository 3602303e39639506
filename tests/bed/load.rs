//! The guest's load: the counter that lives in RAM, the writers that live on disks. See `tests/guest`.

use super::guest::Guest;

/// A look at the counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// Random, chosen when the process started: another process has another one.
    pub token: String,
    /// Grows about every ten milliseconds.
    pub number: u64,
}

/// What a writer's ring holds, read from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// The last number on the disk; 0 if there is none.
    pub last: u64,
    /// Blocks that are as they must be.
    pub valid: u64,
    /// Blocks that are lost, torn or mixed up.
    pub bad: u64,
}

impl Ring {
    /// Panics if a block is not what it must be.
    #[track_caller]
    pub fn assert_whole(&self) {
        assert!(self.bad == 0 && self.valid == self.last.min(256), "the ring is broken: {self:?}");
    }
}

impl Guest {
    /// Asks the counter.
    #[track_caller]
    pub fn counter(&self) -> Counter {
        let answer = self.exec("counter");
        let (token, number) = answer.split_once(' ').expect("the counter answers TOKEN NUMBER");
        Counter { token: token.to_owned(), number: number.parse().expect("a number") }
    }

    /// Lets a writer begin, or go on.
    #[track_caller]
    pub fn start_writer(&self, target: &str) {
        self.exec(&format!("writer start {target}"));
    }

    /// Lets a writer pause after the write that it is in.
    #[track_caller]
    pub fn stop_writer(&self, target: &str) {
        self.exec(&format!("writer stop {target}"));
    }

    /// What is on the disk of a writer, between two of its writes.
    #[track_caller]
    pub fn ring(&self, target: &str) -> Ring {
        let answer = self.exec(&format!("writer check {target}"));
        let words: Vec<&str> = answer.split(' ').collect();
        let number = |index: usize| words[index].parse().expect("a number");
        assert!(words.len() == 7, "no answer of a writer: {answer}");
        Ring { last: number(2), valid: number(4), bad: number(6) }
    }
}
