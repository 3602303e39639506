//! The daemon: configuration, start order, listeners, shutdown. Puts the parts together; decides nothing about VMs.

mod admission;
mod advice;
mod args;
pub mod config;
mod connections;
mod controller;
mod health;
mod identity;
mod lock;
mod rebuild;
mod serve;
mod service;
mod start;
pub mod telemetry;
mod thaw;

pub use args::main;
pub use start::{Daemon, StartError};
