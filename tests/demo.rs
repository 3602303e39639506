//! The program of `make demo`, as it was built with the tests: it checks every claim itself and says how it ended.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::disallowed_methods, reason = "tests run programs: they are the outside")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_demo_ends_well() {
    let built = Path::new(env!("CARGO_BIN_EXE_vmsnapd")).parent().unwrap();
    let demo = built.join("examples/demo");
    assert!(demo.exists(), "it is built by 'cargo test' of everything, or 'cargo build --examples'");
    let output = Command::new(demo).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{complaints}");
    assert_eq!(told.lines().last(), Some("demo: ok"), "{told}");
}
