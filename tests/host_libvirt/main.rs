//! The real outside world: libvirt and QEMU of this machine.

mod agent;
mod bed;
mod link;
mod merge;
mod observe;
mod restart;
mod switch;
