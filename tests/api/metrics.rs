//! What Prometheus reads: figures that follow what happens, in a format that it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vmsnap::host::Link;
use vmsnap::host::sim::SimHost;

use super::client::succeed;
use super::node::{Node, PATIENCE};

fn node() -> Node {
    let sim = SimHost::new();
    let vm = sim.vm("web").disks(2).build();
    Node::configured(sim, vm, "[metrics]\nlisten = '127.0.0.1:0'")
}

/// The first line and the body of an answer.
async fn ask(node: &Node, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(node.figures()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

async fn text(node: &Node) -> String {
    let (status, body) = ask(node, "GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    body
}

/// All figures, by name and labels.
async fn figures(node: &Node) -> BTreeMap<String, f64> {
    let text = text(node).await;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let figure = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    lines.map(figure).collect()
}

/// Waits until a figure is so: events are counted behind the answers of calls.
async fn becomes(node: &Node, name: &str, expected: f64) {
    let is_so = async {
        while figures(node).await.get(name).is_none_or(|value| (value - expected).abs() > 1e-9) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let came = tokio::time::timeout(PATIENCE, is_so).await;
    assert!(came.is_ok(), "{name} does not become {expected}: {:#?}", figures(node).await);
}

#[tokio::test]
async fn figures_follow_what_happens() {
    let node = node();
    becomes(&node, "vmsnap_up{part=\"libvirt\"}", 1.0).await;
    becomes(&node, "vmsnap_vms", 1.0).await;
    becomes(&node, "vmsnap_snapshots{state=\"ready\"}", 0.0).await;
    becomes(&node, "vmsnap_layers", 0.0).await;
    node.take("one").await;
    node.take("two").await;
    becomes(&node, "vmsnap_snapshots{state=\"ready\"}", 2.0).await;
    becomes(&node, "vmsnap_operations_total{operation=\"create_snapshot\",outcome=\"succeeded\"}", 2.0).await;
    becomes(&node, "vmsnap_operation_duration_seconds_count{operation=\"create_snapshot\"}", 2.0).await;
    becomes(&node, "vmsnap_guest_frozen_seconds_count", 2.0).await;
    becomes(&node, "vmsnap_layers", 6.0).await;
    becomes(&node, "vmsnap_chain_depth", 3.0).await;
    becomes(&node, "vmsnap_layers_waiting", 0.0).await;
    becomes(&node, "vmsnap_calls_total{call=\"vmsnap.v1.SnapshotService/CreateSnapshot\",code=\"Ok\"}", 2.0)
        .await;
    succeed(&node, "snapshot delete web/one --yes").await;
    becomes(&node, "vmsnap_operations_total{operation=\"delete_snapshot\",outcome=\"succeeded\"}", 1.0).await;
    becomes(&node, "vmsnap_layers", 4.0).await;
    becomes(&node, "vmsnap_operations_open{state=\"running\"}", 0.0).await;
    becomes(&node, "vmsnap_up{part=\"catalog\"}", 1.0).await;
    node.sim.set_link(Link::Down("libvirtd is away".to_owned()));
    becomes(&node, "vmsnap_up{part=\"libvirt\"}", 0.0).await;
}

/// No VM, snapshot or person is named: there is no end of them.
#[tokio::test]
async fn nobody_is_named() {
    let node = node();
    node.take("one").await;
    becomes(&node, "vmsnap_operations_total{operation=\"create_snapshot\",outcome=\"succeeded\"}", 1.0).await;
    let text = text(&node).await;
    for name in ["web", "\"one\"", "uid", &node.vm.to_string()] {
        assert!(!text.contains(name), "{name} in {text}");
    }
}

/// Each figure says what it is and of which kind, once, before its values, as `promtool check metrics` wants it.
#[tokio::test]
async fn each_figure_says_what_it_is() {
    let node = node();
    node.take("one").await;
    becomes(&node, "vmsnap_operations_total{operation=\"create_snapshot\",outcome=\"succeeded\"}", 1.0).await;
    let text = text(&node).await;
    let mut kinds = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "HELP", name, help] => assert!(!help.is_empty() && name.starts_with("vmsnap_"), "{line}"),
            ["#", "TYPE", name, kind] => {
                assert!(kinds.insert((*name).to_owned(), (*kind).to_owned()).is_none(), "{line}");
            }
            _ => {
                let name = line.split(['{', ' ']).next().unwrap();
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
                let kind = kinds.get(name).or_else(|| kinds.get(family.unwrap_or_default()));
                let kind = kind.unwrap_or_else(|| panic!("{line} is of no kind"));
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line} is a {kind}");
            }
        }
    }
    assert!(kinds.len() > 15, "{kinds:?}");
}

#[tokio::test]
async fn what_else_is_asked() {
    let node = node();
    let check = async |request: &str, expected: &str| {
        let request = format!("{request} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n");
        assert_eq!(ask(&node, &request).await.0, expected, "{request}");
    };
    check("GET /", "HTTP/1.1 404 Not Found").await;
    check("POST /metrics", "HTTP/1.1 405 Method Not Allowed").await;
    // Who only holds a connection keeps nobody out.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(node.figures()).await.unwrap());
    }
    drop(silent);
    let is_answered = async {
        loop {
            let mut stream = TcpStream::connect(node.figures()).await.unwrap();
            let mut answer = String::new();
            // A connection for which there is no place ends at once.
            let asked =
                stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n").await;
            if asked.is_ok()
                && stream.read_to_string(&mut answer).await.is_ok()
                && answer.contains("vmsnap_vms 1")
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_answered).await.expect("who has gone keeps a place");
}

/// What the dashboard and the alarms ask for is there.
#[tokio::test]
async fn the_dashboard_asks_for_what_there_is() {
    let node = node();
    let asked = [
        include_str!("../../contrib/grafana/vmsnap.json"),
        include_str!("../../contrib/prometheus/vmsnap.rules.yml"),
    ];
    let words = asked.iter().flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("vmsnap_")).collect();
    assert!(asked.len() > 15, "{asked:?}");
    node.take("one").await;
    becomes(&node, "vmsnap_operations_total{operation=\"create_snapshot\",outcome=\"succeeded\"}", 1.0).await;
    let text = text(&node).await;
    for name in asked {
        let family = name.strip_suffix("_bucket").unwrap_or(name);
        assert!(text.contains(&format!("# TYPE {family} ")), "there is no {name}");
    }
}
