//! TLS between the daemon and its controller: each proves who it is, and files that were changed are used.

use std::path::Path;

use tempfile::TempDir;
use vmsnap::daemon::config::ControllerConfig;

use super::receive::Receiver;
use crate::authority::{Authority, Files};
use crate::node::{Node, PATIENCE};

/// Both sides' files, made by two authorities.
struct Bed {
    directory: TempDir,
    ours: Authority,
    strange: Authority,
}

impl Bed {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), ours: Authority::new(), strange: Authority::new() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    async fn receiver(&self, authority: &Authority) -> Receiver {
        let shown = authority.sign("localhost", self.path(), "controller");
        let tls = ["--certificate", text(&shown.certificate), "--key", text(&shown.key), "--client-ca"];
        let ca = self.ours.write(self.path(), "ca");
        let log = self.path().join("reports.jsonl");
        Receiver::start_with("127.0.0.1:0", &log, "table", &[&tls[..], &[text(&ca)]].concat()).await
    }

    fn config(&self, address: &str, shown: &Files) -> ControllerConfig {
        let port = address.rsplit_once(':').unwrap().1;
        ControllerConfig {
            endpoint: format!("https://localhost:{port}"),
            ca: Some(self.ours.write(self.path(), "ca")),
            certificate: Some(shown.certificate.clone()),
            key: Some(shown.key.clone()),
            server_name: None,
            outbox_bytes: 1 << 20,
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn each_side_proves_who_it_is() {
    let bed = Bed::new();
    let mut receiver = bed.receiver(&bed.ours).await;
    let stranger = bed.strange.sign("node", bed.path(), "node");
    let node = Node::reporting_with(bed.config(&receiver.address, &stranger));
    node.until_part_says("controller", "the stream broke").await;
    // The same files, signed anew: the next call uses them.
    bed.ours.sign("node", bed.path(), "node");
    receiver.until(&["hello"]).await;
    node.take("one").await;
    receiver.until(&["create snapshot web/one SUCCEEDED"]).await;
}

#[tokio::test]
async fn a_controller_that_somebody_else_vouches_for_is_told_nothing() {
    let bed = Bed::new();
    let receiver = bed.receiver(&bed.strange).await;
    let shown = bed.ours.sign("node", bed.path(), "node");
    let node = Node::reporting_with(bed.config(&receiver.address, &shown));
    node.until_part_says("controller", "cannot connect").await;
    assert_eq!(std::fs::read_to_string(bed.path().join("reports.jsonl")).unwrap(), "");
}

/// Whoever takes a connection and never answers is left, and called again.
#[tokio::test]
async fn a_controller_that_says_nothing_is_left() {
    let bed = Bed::new();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shown = bed.ours.sign("node", bed.path(), "node");
    let node = Node::reporting_with(bed.config(&silent.local_addr().unwrap().to_string(), &shown));
    let (_first, _) = silent.accept().await.unwrap();
    node.until_part_says("controller", "the controller does not answer").await;
    let again = tokio::time::timeout(PATIENCE, silent.accept()).await;
    again.expect("it is called again").unwrap();
}
