//! What makes no sense is refused in Cinder's shapes, and nothing is changed.

use serde_json::{Value, json};

use super::http::assert_fault;
use super::{Cinder, id};

const UNKNOWN: &str = "01a20843-9990-7137-8cd6-1b47d8d6a58d";

#[tokio::test]
async fn bodies() {
    let cinder = Cinder::start();
    let made = cinder.take("one").await;
    let snapshot = format!("/v3/snapshots/{}", id(&made));
    let acts = cinder.node.acts();
    let check = async |method: &str, path: &str, body: &str, words: &str| {
        let refused = cinder.http.try_raw(method, path, body.as_bytes().to_vec()).await.unwrap();
        assert_fault(&refused, 400, "badRequest", words);
    };
    for (method, path) in [
        ("POST", "/v3/snapshots".to_owned()),
        ("POST", "/v3/volumes".to_owned()),
        ("PUT", snapshot.clone()),
        ("POST", format!("{snapshot}/metadata")),
        ("PUT", format!("{snapshot}/metadata")),
        ("PUT", format!("{snapshot}/metadata/a")),
        ("POST", format!("{snapshot}/action")),
        ("POST", format!("/v3/volumes/{}/action", cinder.disk("vda").await)),
    ] {
        check(method, &path, "", "Malformed request body").await;
        check(method, &path, "{\"snapshot\": ", "Malformed request body").await;
        check(method, &path, "\u{0}\u{1}garbage", "Malformed request body").await;
        check(method, &path, &"[".repeat(100_000), "").await;
        check(method, &path, "[]", "").await;
        check(method, &path, "{}", "").await;
        check(method, &path, "7", "").await;
    }
    let volume = cinder.disk("vda").await;
    let create =
        |more: &str| format!("{{\"snapshot\": {{\"volume_id\": \"{volume}\", \"force\": true, {more}}}}}");
    check("POST", "/v3/snapshots", &create("\"colour\": \"blue\""), "unknown field `colour`").await;
    check("POST", "/v3/snapshots", &create("\"name\": 7"), "invalid type").await;
    check("POST", "/v3/snapshots", &create("\"metadata\": {\"a\": 1}"), "invalid type").await;
    check("POST", "/v3/snapshots", &create("\"metadata\": {\"\": \"x\"}"), "a key is empty").await;
    check("POST", "/v3/snapshots", &create(&format!("\"name\": \"{}\"", "x".repeat(256))), "display_name")
        .await;
    check(
        "POST",
        "/v3/snapshots",
        &create(&format!("\"description\": \"{}\"", "x".repeat(5000))),
        "description",
    )
    .await;
    let force = format!("{{\"snapshot\": {{\"volume_id\": \"{volume}\", \"force\": \"perhaps\"}}}}");
    check("POST", "/v3/snapshots", &force, "is no truth value").await;
    check("PUT", &format!("{snapshot}/metadata/a"), "{\"meta\": {\"b\": \"1\"}}", "another than the path")
        .await;
    let typed = cinder.http.with("content-type", "text/plain").ask("POST", "/v3/snapshots", &json!({})).await;
    assert_fault(&typed, 415, "badMediaType", "text/plain");
    assert_eq!(cinder.get(&snapshot).await["snapshot"], made);
    assert_eq!(cinder.node.names().await, ["one"]);
    assert_eq!(cinder.node.acts(), acts);
}

#[tokio::test]
async fn ten_mebibytes() {
    let cinder = Cinder::start();
    let body =
        json!({ "snapshot": { "volume_id": cinder.disk("vda").await, "description": "x".repeat(10 << 20) } });
    let refused = cinder.http.ask("POST", "/v3/snapshots", &body).await;
    assert_fault(&refused, 413, "overLimit", "Request is too large.");
    assert!(cinder.node.names().await.is_empty());
}

#[tokio::test]
async fn what_there_is_not() {
    let cinder = Cinder::start();
    let check = async |method: &str, path: &str, body: Value, status: u16, word: &str, words: &str| {
        assert_fault(&cinder.http.ask(method, path, &body).await, status, word, words);
    };
    for id in [UNKNOWN, "nothing", "..", "%00", "a%20b", "%F0%9F%92%A3"] {
        for (method, rest, body) in [
            ("GET", "", Value::Null),
            ("DELETE", "", Value::Null),
            ("PUT", "", json!({ "snapshot": { "name": "x" } })),
            ("GET", "/metadata", Value::Null),
            ("POST", "/metadata", json!({ "metadata": { "a": "1" } })),
            ("DELETE", "/metadata/a", Value::Null),
            ("POST", "/action", json!({ "os-force_delete": null })),
            ("POST", "/action", json!({ "os-reset_status": { "status": "available" } })),
        ] {
            check(
                method,
                &format!("/v3/snapshots/{id}{rest}"),
                body,
                404,
                "itemNotFound",
                "could not be found",
            )
            .await;
        }
        for (method, rest) in [("GET", ""), ("DELETE", ""), ("PUT", ""), ("GET", "/metadata")] {
            check(
                method,
                &format!("/v3/volumes/{id}{rest}"),
                Value::Null,
                404,
                "itemNotFound",
                "could not be",
            )
            .await;
        }
    }
    check("GET", "/v3/snapshots/%FF", Value::Null, 400, "badRequest", "").await;
    let body = json!({ "snapshot": { "volume_id": UNKNOWN, "force": true } });
    check("POST", "/v3/snapshots", body, 404, "itemNotFound", "Volume").await;
    let body = json!({ "snapshot": { "volume_id": "web/vda", "force": true } });
    check("POST", "/v3/snapshots", body, 404, "itemNotFound", "Volume").await;
    let body = json!({ "volume": { "snapshot_id": UNKNOWN } });
    check("POST", "/v3/volumes", body, 404, "itemNotFound", "Snapshot").await;
    for path in ["/v3/backups", "/v2/volumes", "/x", "/v3/snapshots/a/b/c/d"] {
        check("GET", path, Value::Null, 404, "itemNotFound", "").await;
    }
    check("PATCH", "/v3/snapshots", Value::Null, 405, "badMethod", "PATCH cannot be done").await;
}

/// What Cinder can do and we cannot is answered as where a driver lacks it.
#[tokio::test]
async fn what_is_lacking() {
    let cinder = Cinder::start();
    let made = cinder.take("one").await;
    let disk = cinder.disk("vda").await;
    let create = |more: Value| {
        let mut volume = json!({ "snapshot_id": id(&made), "name": "copy" });
        volume.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "volume": volume })
    };
    for (path, body) in [
        ("/v3/volumes".to_owned(), json!({ "volume": { "size": 1, "name": "empty" } })),
        ("/v3/volumes".to_owned(), create(json!({ "size": 2 }))),
        ("/v3/volumes".to_owned(), create(json!({ "volume_type": "fast" }))),
        ("/v3/volumes".to_owned(), create(json!({ "multiattach": true }))),
        ("/v3/volumes".to_owned(), create(json!({ "source_volid": disk }))),
        (format!("/v3/volumes/{disk}/action"), json!({ "os-extend": { "new_size": 2 } })),
        (format!("/v3/volumes/{disk}/metadata"), json!({ "metadata": { "a": "1" } })),
    ] {
        assert_fault(
            &cinder.http.ask("POST", &path, &body).await,
            501,
            "notImplemented",
            "vmsnapd does not support",
        );
    }
    let body = json!({ "volume": { "name": "x" } });
    assert_fault(
        &cinder.http.ask("PUT", &format!("/v3/volumes/{disk}"), &body).await,
        501,
        "notImplemented",
        "",
    );
    for (more, words) in [
        (json!({ "size": 0 }), "cannot be smaller"),
        (json!({ "size": "large" }), "size is a number"),
        (json!({ "availability_zone": "moon" }), "Availability zone 'moon' is invalid."),
        (json!({ "name": "a/b" }), "name"),
        (json!({ "name": "../x" }), "name"),
    ] {
        assert_fault(&cinder.http.ask("POST", "/v3/volumes", &create(more)).await, 400, "badRequest", words);
    }
    let list = cinder.get("/v3/volumes/detail").await;
    assert_eq!(list["volumes"].as_array().unwrap().len(), 2, "{list}");
}

/// A page in a browser may not ask what the browser's user could.
#[tokio::test]
async fn browsers() {
    let cinder = Cinder::start();
    let refused =
        cinder.http.with("origin", "http://example.org").ask("GET", "/v3/snapshots", &Value::Null).await;
    assert_fault(&refused, 403, "forbidden", "Browsers are not served.");
}
