//! The real outside world: libvirt and QEMU of this machine.

#![allow(clippy::disallowed_methods, reason = "tests run programs and wait: they are the outside")]
#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod agent;
mod background;
mod bed;
mod link;
mod merge;
mod observe;
mod restart;
mod switch;
