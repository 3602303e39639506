//! `vmsnap`.

fn main() {}
