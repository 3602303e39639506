//! The test bed: real guests under real libvirt, the daemon and the client as separate processes.
//!
//! Decides nothing about `vmsnap`; it only lets tests and the demo do to a guest what an operator could, and see
//! from inside the guest and from outside what came of it. It must never use the daemon's own code to look: what
//! the daemon believes is what is tested. Everything here blocks and panics with a reason, as tests want it.
//!
//! Whatever is started is ended when its value is dropped, and also if the process is killed: see [`scratch`].

#![allow(dead_code, unused_imports, reason = "each test program uses its own part of the bed")]
#![allow(clippy::disallowed_methods, reason = "the bed runs programs and waits: it is the outside")]

mod agent;
mod client;
mod daemon;
mod definition;
mod dice;
mod elsewhere;
mod guest;
pub mod images;
mod load;
pub mod named;
mod node;
pub mod process;
mod progress;
pub mod reports;
pub mod scratch;
mod slot;
mod small;
pub mod virsh;
mod wait;

use std::path::{Path, PathBuf};

pub use client::{Client, Reply};
pub use daemon::{Daemon, Setup};
pub use definition::{Agent, Disk, Firmware, Format, Spec};
pub use dice::Dice;
pub use elsewhere::Elsewhere;
pub use guest::Guest;
pub use load::{Counter, Ring};
pub use node::{Filler, Node, end};
pub use progress::Progress;
pub use small::SmallFileSystem;
pub use wait::{eventually, wait_until};

/// Where `tests/bed/setup.sh` keeps what it made.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".testbed")
}

/// The interpreter with the stock gRPC client that `tests/bed/setup.sh --with-python` made.
pub fn python() -> PathBuf {
    let python = cache().join("python/bin/python3");
    assert!(
        python.exists(),
        "there is no {}: run 'make test', or tests/bed/setup.sh --with-python",
        python.display()
    );
    python
}

/// A program of this package: one in the directory `VMSNAP_PROGRAMS`, as tests/package has it for what is installed, else of the
/// same build as the running test or example.
pub fn program(name: &str) -> PathBuf {
    if let Some(programs) = std::env::var_os("VMSNAP_PROGRAMS") {
        return Path::new(&programs).join(name);
    }
    let own = std::env::current_exe().expect("a process knows its own file");
    // target/PROFILE/deps/test-HASH or target/PROFILE/examples/demo
    let profile = own.parent().and_then(Path::parent).expect("cargo puts programs two levels deep");
    let path = profile.join(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}
