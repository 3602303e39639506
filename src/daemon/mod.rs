//! The daemon.

pub mod config;
mod lock;
pub mod telemetry;
