//! `vmsnapd`.

fn main() {}
