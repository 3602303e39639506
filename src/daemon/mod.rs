//! The daemon: configuration, start order, listeners, shutdown. Puts the parts together; decides nothing about VMs.

pub mod config;
mod lock;
pub mod telemetry;
