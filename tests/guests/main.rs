//! The daemon and the client on real guests under real libvirt, looked at from inside the guests and at their images from
//! outside. One program for all of them: they run side by side, with as many guests at once as the bed allows. Those that are
//! ignored take minutes; `make guests` runs all.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and wait: they are the outside")]

#[path = "../bed/mod.rs"]
mod bed;
mod clones;
mod controller;
mod crowd;
mod devices;
mod e2e;
mod firmware;
mod memory;
mod openstack;
mod outrun;
mod proxy;
mod rebuild;
mod schedule;
mod space;
#[cfg(feature = "opentelemetry")]
mod traces;
mod tree;
mod unnoted;
