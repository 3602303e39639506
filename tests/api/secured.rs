//! A node that takes calls from the network, an authority for those who make them, and the lines of its audit trail.

use std::path::Path;
use std::sync::{Mutex, OnceLock};

use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tracing::field::{Field, Visit};
use tracing::span;
use vmsnap::host::sim::SimHost;
use vmsnap::model::VmId;

use super::authority::{Authority, Files};
use super::node::Node;

/// A node, and what its clients need.
pub struct Secured {
    pub node: Node,
    pub authority: Authority,
    directory: TempDir,
    access: String,
}

impl Secured {
    /// One with these rules.
    pub fn start(access: &str) -> Self {
        let sim = SimHost::new();
        let vm = sim.vm("web").disks(2).build();
        Self::start_with(sim, vm, access)
    }

    /// The same, of a world of its own.
    pub fn start_with(sim: SimHost, vm: VmId, access: &str) -> Self {
        Self::limited(sim, vm, "", access)
    }

    /// The same, with other limits than the tests have else.
    pub fn limited(sim: SimHost, vm: VmId, limits: &str, access: &str) -> Self {
        listen_to_the_audit();
        let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.write(directory.path(), "clients");
        authority.sign("localhost", directory.path(), "node");
        authority.revoke(&[], directory.path(), "clients");
        let text = format!("{limits}\n{}", text_of(directory.path(), access));
        let node = Node::configured(sim, vm, &text);
        Self { node, authority, directory, access: access.to_owned() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Other rules, for when the configuration is read again.
    pub fn write_access(&mut self, access: &str) {
        access.clone_into(&mut self.access);
        self.node.configure(&text_of(self.path(), access));
    }

    /// The certificate of a client.
    pub fn client(&self, uri: &str, serial: u64) -> Files {
        self.authority.sign_uri(uri, serial, self.path(), &format!("client-{serial}"))
    }

    /// The way to the node for whoever has these files.
    pub fn channel(&self, files: &Files) -> Channel {
        let identity = Identity::from_pem(read(&files.certificate), read(&files.key));
        self.channel_with(self.trusting().identity(identity))
    }

    /// The way to the node with any TLS.
    pub fn channel_with(&self, tls: ClientTlsConfig) -> Channel {
        let endpoint =
            Endpoint::from_shared(format!("https://localhost:{}", self.node.network().port())).unwrap();
        endpoint.tls_config(tls).unwrap().connect_lazy()
    }

    /// TLS that trusts the node's certificate, and shows none.
    pub fn trusting(&self) -> ClientTlsConfig {
        Self::trusting_in(&read(&self.path().join("clients.pem")))
    }

    /// TLS that trusts what these have signed, PEM, and shows nothing.
    pub fn trusting_in(authorities: &[u8]) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities))
    }
}

fn text_of(directory: &Path, access: &str) -> String {
    let place = directory.display();
    format!(
        "calls_per_second = 100000\n[tcp]\nlisten = '127.0.0.1:0'\ncertificate = '{place}/node.pem'\nkey = '{place}/node.key'\n\
         client_ca = '{place}/clients.pem'\nrevocation_list = '{place}/clients.crl'\n{access}"
    )
}

pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// Rules for tests: each of these has one, and whoever is on the node may do all.
pub fn rules(rules: &[(&str, &str, &str)]) -> String {
    let socket = ("socket", "admin", "");
    let rule = |(who, role, more): &(&str, &str, &str)| {
        format!("[[access]]\nwho = ['{who}']\nrole = '{role}'\n{more}\n")
    };
    rules.iter().chain([&socket]).map(rule).collect()
}

/// The lines of the audit trail of this process that have all of these words.
pub fn audit_lines(words: &[&str]) -> Vec<String> {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).cloned().collect()
}

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn listen_to_the_audit() {
    static LISTENING: OnceLock<()> = OnceLock::new();
    LISTENING.get_or_init(|| tracing::subscriber::set_global_default(Audit).unwrap());
}

/// Writes down what is said for the audit trail, and nothing else.
struct Audit;

impl tracing::Subscriber for Audit {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "vmsnapd::audit"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        LINES.lock().unwrap().push(line.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        write!(self.0, "{field}={value:?} ").unwrap();
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        use std::fmt::Write;
        write!(self.0, "{field}={value} ").unwrap();
    }
}
