//! Generates the gRPC code from `proto/`.

fn main() {}
