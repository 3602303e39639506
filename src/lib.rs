//! `vmsnap`: a snapshot agent for KVM hypervisors.

pub mod api;
pub mod daemon;
pub mod host;
pub mod model;
#[cfg(test)]
mod mutation;
pub mod openstack;
pub mod ops;
pub mod plan;
pub mod proto;
pub mod schedule;
pub mod store;
