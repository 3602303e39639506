//! The whole daemon over a simulated node, reached as clients reach it: gRPC over its socket, and the `vmsnap` program.
//!
//! Everything is real but the hypervisor. A crash is dropping the daemon's runtime; the node and the catalog stay.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::disallowed_methods, reason = "tests run programs: they are the outside")]

mod access;
mod adoption;
mod api_page;
mod authority;
mod backup;
mod bad_requests;
mod bandwidth;
mod captures;
mod check;
mod client;
mod clones;
mod controller;
mod declare;
mod differences;
mod edit;
mod elsewhere;
mod events;
mod expiry;
mod facts;
mod heard;
mod life;
mod lists;
mod manifests;
mod metrics;
mod network;
mod node;
mod openstack;
mod operations;
mod orphans;
mod page;
mod presence;
mod readers;
mod readme;
mod resolve;
mod schedule_page;
mod schedule_runs;
mod schedule_slips;
mod schedules;
mod secured;
mod space;
mod started;
mod stuck;
mod tenants;
mod thaw;
mod volumes;
mod watch;
mod window;
mod work;
