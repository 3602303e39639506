//! `vmsnap`: a snapshot agent for KVM hypervisors.

pub mod host;
pub mod model;
pub mod plan;
pub mod store;
