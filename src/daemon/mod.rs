//! The daemon: configuration, start order, listeners, shutdown. Puts the parts together; decides nothing about VMs.

mod access;
mod admission;
mod advice;
mod args;
mod audit;
pub mod config;
mod connections;
mod controller;
mod deadline;
mod event_log;
mod follow;
mod guesses;
mod health;
mod identity;
mod lock;
mod metrics;
mod openstack;
mod pace;
mod passwords;
mod probe;
mod rebuild;
mod reload;
mod serve;
mod service;
mod start;
mod telemetry;
mod thaw;
mod tls;
#[cfg(feature = "opentelemetry")]
mod traces;
#[cfg(not(feature = "opentelemetry"))]
#[path = "traces_off.rs"]
mod traces;

pub use args::main;
pub use start::{Daemon, StartError};
