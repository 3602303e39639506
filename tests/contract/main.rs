//! The contract of the host's traits: the same cases over the simulation and over real libvirt, so that what is tested
//! over the simulation means something.
//!
//! Real VMs have no guest system: a BIOS that finds nothing to boot is a running VM, and QEMU's monitor writes in its
//! place. Where no libvirtd answers, only the simulated half runs, and says so.

#![allow(clippy::disallowed_methods, reason = "tests run programs and wait: they are the outside")]
#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod background;
mod images;
mod limits;
mod merges;
mod node;
mod powers;
mod real;
mod simulated;
mod switches;

/// Each case, over both nodes.
macro_rules! over_both_nodes {
    ($($case:ident)*) => {
        $(
            mod $case {
                #[tokio::test]
                async fn simulated() {
                    super::$case(&crate::simulated::Simulated::new()).await;
                }

                #[tokio::test]
                async fn real() {
                    if let Some(node) = crate::real::Real::new().await {
                        super::$case(&node).await;
                    }
                }
            }
        )*
    };
}

use over_both_nodes;
