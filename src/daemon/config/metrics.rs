//! The section `[metrics]`: where Prometheus asks for figures. Without it there is no such listener.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A listener for HTTP, with one path: `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Address and port to listen on, as in `127.0.0.1:9477`. Whoever reaches it reads all figures: no VM is named in them, but
    /// paths of directories are.
    pub listen: SocketAddr,
}
