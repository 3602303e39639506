//! The engine on a simulated node with one VM: what it does in each situation that has to be set up by hand, and what is
//! there afterwards. One program, since each of its own would be compiled with the whole node.
//!
//! Whole nodes with everything at once are `tests/simulation`.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod converge;
mod crash;
mod histories;
mod lost_catalog;
mod pivots;
mod reverts;
mod schedule_trouble;
mod schedules;
#[path = "../simulated/mod.rs"]
mod simulated;
mod switches;
