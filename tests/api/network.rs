//! Calls from the network: whoever cannot prove who it is gets nothing, certificates change while calls are made, and one that
//! is revoked is of no use from then on, on connections that are open, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Identity};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use vmsnap::host::sim::SimHost;
use vmsnap::proto::v1;
use vmsnap::proto::v1::event_service_client::EventServiceClient;
use vmsnap::proto::v1::snapshot_service_client::SnapshotServiceClient;

use super::authority::{Authority, Files};
use super::client::{run, succeed};
use super::node::PATIENCE;
use super::secured::{Secured, audit_lines, read, rules};

const OPERATOR: &str = "spiffe://test/network/operator";

fn secured() -> Secured {
    Secured::start(&rules(&[(&format!("uri:{OPERATOR}"), "operator", "")]))
}

async fn list(channel: &Channel) -> Result<(), Status> {
    SnapshotServiceClient::new(channel.clone())
        .list_snapshots(v1::ListSnapshotsRequest::default())
        .await
        .map(drop)
}

/// Whoever shows these gets nothing from the node, and the audit trail says why.
async fn turned_away(channel: Channel, why: &str) {
    let refused = list(&channel).await.unwrap_err();
    // By TLS, not by us: which code that is, is the client's.
    assert!(refused.get_details_error_info().is_none(), "{refused:?}");
    let written = async {
        while audit_lines(&["a connection was refused", why]).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let lines = audit_lines(&["a connection was refused"]);
    tokio::time::timeout(PATIENCE, written)
        .await
        .unwrap_or_else(|_| panic!("no line has {why:?}: {lines:?}"));
}

#[tokio::test]
async fn who_proves_nothing_gets_nothing() {
    let secured = secured();
    let path = secured.path();
    turned_away(secured.channel_with(secured.trusting()), "peer sent no certificates").await;
    let strange = Authority::new().sign_uri(OPERATOR, 1, path, "strange");
    turned_away(secured.channel(&strange), "UnknownIssuer").await;
    let expired = secured.authority.sign_expired(OPERATOR, path, "expired");
    turned_away(secured.channel(&expired), "certificate expired").await;
    let revoked = secured.client(OPERATOR, 7);
    secured.authority.revoke(&[7], path, "clients");
    succeed(&secured.node, "node reload").await;
    turned_away(secured.channel(&revoked), "Revoked").await;
}

/// A certificate that is well says who somebody is, and no more.
#[tokio::test]
async fn who_is_named_by_no_rule_gets_nothing() {
    let secured = secured();
    let stranger = secured.channel(&secured.client("spiffe://test/network/stranger", 1));
    let refused = list(&stranger).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "uri:spiffe://test/network/stranger is given no access");
    assert_eq!(audit_lines(&["uri:spiffe://test/network/stranger is given no access"]).len(), 1);
    // A probe needs no role, but somebody must have named it.
    let health = HealthClient::new(stranger).check(HealthCheckRequest::default()).await;
    assert_eq!(health.unwrap_err().code(), Code::PermissionDenied);
    let operator = secured.channel(&secured.client(OPERATOR, 2));
    list(&operator).await.unwrap();
    HealthClient::new(operator).check(HealthCheckRequest::default()).await.unwrap();
}

/// Without TLS nothing is said: no banner, no error that a scanner could read.
#[tokio::test]
async fn without_tls_nothing_is_said() {
    let secured = secured();
    let mut stream = TcpStream::connect(secured.node.network()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.unwrap();
    assert!(end.is_err() || said.len() <= 7, "at most an alert of TLS: {said:?}");
}

/// On a connection that is open: the next call is refused, and a watch ends with its next message.
#[tokio::test]
async fn a_certificate_that_is_revoked_is_of_no_use() {
    let secured = secured();
    let (kept, lost) =
        (secured.channel(&secured.client(OPERATOR, 1)), secured.channel(&secured.client(OPERATOR, 2)));
    list(&kept).await.unwrap();
    list(&lost).await.unwrap();
    let request = v1::WatchEventsRequest {
        heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let mut watch = EventServiceClient::new(lost.clone()).watch_events(request).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("a heartbeat");
    secured.authority.revoke(&[2], secured.path(), "clients");
    let told = succeed(&secured.node, "node reload").await;
    assert_eq!(told.trim(), "in force: tcp.revocation_list");
    let refused = list(&lost).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert!(refused.message().contains("Revoked"), "{refused:?}");
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the watch ended as if all had been said"),
                Err(status) => return status,
            }
        }
    });
    assert_eq!(ended.await.unwrap().code(), Code::Unauthenticated);
    list(&kept).await.unwrap();
    assert!(!audit_lines(&["ListSnapshots", "Revoked", "decision=refused"]).is_empty());
}

/// One caller cannot take all that may be open, over however many connections it calls.
#[tokio::test]
async fn one_caller_has_so_many_calls_open() {
    let access =
        rules(&[(&format!("uri:{OPERATOR}"), "operator", ""), ("uri:spiffe://test/other", "viewer", "")]);
    let sim = SimHost::new();
    let vm = sim.vm("web").build();
    let secured = Secured::limited(sim, vm, "open_calls = 2", &access);
    let files = secured.authority.sign_uri(OPERATOR, 1, secured.path(), "operator");
    let watch = async |channel: Channel| {
        EventServiceClient::new(channel).watch_events(v1::WatchEventsRequest::default()).await
    };
    let first = watch(secured.channel(&files)).await.unwrap();
    let _second = watch(secured.channel(&files)).await.unwrap();
    let refused = watch(secured.channel(&files)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some()));

    let other = secured.authority.sign_uri("spiffe://test/other", 2, secured.path(), "other");
    assert!(watch(secured.channel(&other)).await.is_ok(), "others have their own");

    drop(first);
    let channel = secured.channel(&files);
    let again = async { while watch(channel.clone()).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("what has ended is not counted");
}

/// A rule that was taken away counts at once.
#[tokio::test]
async fn a_rule_that_is_gone_counts_at_once() {
    let mut secured = secured();
    let operator = secured.channel(&secured.client(OPERATOR, 1));
    list(&operator).await.unwrap();
    secured.write_access(&rules(&[]));
    assert_eq!(succeed(&secured.node, "node reload --dry-run").await.trim(), "would be in force: access");
    list(&operator).await.unwrap();
    assert_eq!(succeed(&secured.node, "node reload").await.trim(), "in force: access");
    assert_eq!(list(&operator).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn what_cannot_be_used_is_not_taken_in_part() {
    let mut secured = secured();
    let operator = secured.channel(&secured.client(OPERATOR, 1));
    let check = async |words: &str| {
        let reply = run(&secured.node, "node reload").await;
        assert_eq!(reply.code, 6, "{}", reply.stderr);
        assert!(
            reply.stderr.contains(words) && reply.stderr.contains("CONFIGURATION_INVALID"),
            "{}",
            reply.stderr
        );
        list(&operator).await.unwrap();
        assert_eq!(run(&secured.node, "node reload --dry-run").await.code, 6);
    };
    let list_of_revoked = read(&secured.path().join("clients.crl"));
    std::fs::write(secured.path().join("clients.crl"), "nothing").unwrap();
    check("clients.crl has nothing of that kind in it").await;
    std::fs::write(secured.path().join("clients.crl"), list_of_revoked).unwrap();
    // The key of another certificate.
    let key = read(&secured.path().join("node.key"));
    std::fs::copy(secured.path().join("client-1.key"), secured.path().join("node.key")).unwrap();
    check("the certificate or its key cannot be used").await;
    std::fs::write(secured.path().join("node.key"), key).unwrap();
    std::fs::remove_file(secured.path().join("clients.pem")).unwrap();
    check("cannot read").await;
    secured.authority.write(secured.path(), "clients");
    secured.write_access("[[access]]\nwho = ['user:nobody-has-this-name']\nrole = 'viewer'");
    let reply = run(&secured.node, "node reload").await;
    assert!(reply.stderr.contains("access.who: there is no user"), "{}", reply.stderr);
    list(&operator).await.unwrap();
    secured.write_access(&rules(&[(&format!("uri:{OPERATOR}"), "operator", "")]));
    assert_eq!(succeed(&secured.node, "node reload").await.trim(), "nothing has changed");
}

/// The authority, our certificate and those of clients change, one after the other, while calls are made on connections that
/// stay and on new ones. No call fails.
#[tokio::test]
async fn certificates_change_under_load() {
    let secured = Arc::new(secured());
    let path = secured.path().to_owned();
    let (new, is_over) = (Authority::new(), Arc::new(AtomicBool::new(false)));
    let made = Arc::new(AtomicU64::new(0));
    let identities = [secured.client(OPERATOR, 1), new.sign_uri(OPERATOR, 2, &path, "client-new")];
    // Both authorities are known before anybody shows a certificate of the new one, and by clients, too.
    let old_pem = read(&path.join("clients.pem"));
    let new_pem = read(&new.write(&path, "new"));
    let both = [old_pem.clone(), new_pem.clone()].concat();
    let trusted = path.join("trusted.pem");
    std::fs::write(&trusted, &both).unwrap();
    let lists =
        [secured.authority.revoke(&[], &path, "old"), new.revoke(&[], &path, "new")].map(|list| read(&list));
    std::fs::write(path.join("clients.pem"), &both).unwrap();
    std::fs::write(path.join("clients.crl"), lists.concat()).unwrap();
    succeed(&secured.node, "node reload").await;
    let clients: Vec<_> = identities
        .iter()
        .flat_map(|files| [(files.clone(), true), (files.clone(), false)])
        .map(|(files, stays)| {
            let (secured, trusted) = (Arc::clone(&secured), trusted.clone());
            let (is_over, made) = (Arc::clone(&is_over), Arc::clone(&made));
            tokio::spawn(async move {
                let connect = || connect(&secured, &files, &trusted);
                let mut channel = connect();
                while !is_over.load(Ordering::Relaxed) {
                    if !stays {
                        channel = connect();
                    }
                    list(&channel).await.unwrap();
                    made.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for round in 0..10 {
        let signer = if round % 2 == 0 { &new } else { &secured.authority };
        let files = signer.sign("localhost", &path, "next");
        std::fs::rename(files.certificate, path.join("node.pem")).unwrap();
        std::fs::rename(files.key, path.join("node.key")).unwrap();
        let told = succeed(&secured.node, "node reload").await;
        assert_eq!(told.trim(), "in force: tcp.certificate, tcp.key");
        // The next change comes when each certificate was used.
        let until = made.load(Ordering::Relaxed) + 20;
        let used = async {
            while made.load(Ordering::Relaxed) < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, used).await.expect("calls are made");
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no call has failed");
    }
    // The last one is what is shown now.
    let of_old = secured.channel_with(Secured::trusting_in(&old_pem).identity(identity(&identities[0])));
    list(&of_old).await.unwrap();
    let of_new = secured.channel_with(Secured::trusting_in(&new_pem).identity(identity(&identities[0])));
    assert!(list(&of_new).await.is_err(), "its authority did not sign what is shown now");
}

fn identity(files: &Files) -> Identity {
    Identity::from_pem(read(&files.certificate), read(&files.key))
}

fn connect(secured: &Secured, files: &Files, trusted: &std::path::Path) -> Channel {
    secured.channel_with(Secured::trusting_in(&read(trusted)).identity(identity(files)))
}

/// The program on another node.
#[tokio::test]
async fn the_client_over_the_network() {
    let secured = secured();
    secured.node.take("one").await;
    let files = secured.client(OPERATOR, 1);
    let place = format!("--host localhost:{}", secured.node.network().port());
    let (ca, certificate, key) =
        (secured.path().join("clients.pem"), files.certificate.display(), files.key.display());
    let shown = format!("--tls-ca {} --tls-certificate {certificate} --tls-key {key}", ca.display());
    let check = async |line: String, code: i32, words: &str| {
        let reply = run(&secured.node, &line).await;
        assert_eq!(reply.code, code, "{}", reply.stderr);
        assert!(format!("{}{}", reply.stdout, reply.stderr).contains(words), "{reply:?}");
    };
    check(format!("snapshot list {place} {shown}"), 0, "one").await;
    check(format!("snapshot create web two {place} {shown}"), 0, "two").await;
    check(format!("snapshot revert web/one --yes {place} {shown}"), 7, "this call needs restorer").await;
    check(format!("snapshot list {place}"), 2, "--tls-ca").await;
    check(
        format!("snapshot list {place} --tls-ca /nowhere --tls-certificate {certificate} --tls-key {key}"),
        2,
        "cannot read /nowhere",
    )
    .await;
    let strange = Authority::new().sign_uri(OPERATOR, 1, secured.path(), "strange");
    let (certificate, key) = (strange.certificate.display(), strange.key.display());
    let shown = format!("--tls-ca {} --tls-certificate {certificate} --tls-key {key}", ca.display());
    check(format!("snapshot list {place} {shown}"), 8, "vmsnapd cannot be reached").await;
}
