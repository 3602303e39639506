//! Lists: filters, and pages by their markers.

use serde_json::{Value, json};

use super::http::assert_fault;
use super::{Cinder, id};

/// The names of all snapshots that a query finds, page by page as the client asks for them.
async fn walked(cinder: &Cinder, query: &str, limit: usize) -> Vec<String> {
    let (mut names, mut marker) = (Vec::new(), String::new());
    loop {
        let page = cinder.get(&format!("/v3/snapshots/detail?limit={limit}{query}{marker}")).await;
        let page = page["snapshots"].as_array().unwrap();
        assert!(page.len() <= limit);
        let Some(last) = page.last() else { return names };
        marker = format!("&marker={}", id(last));
        names.extend(page.iter().map(|one| one["name"].as_str().unwrap().to_owned()));
        assert!(names.len() < 100, "it does not end");
    }
}

#[tokio::test]
async fn pages_follow_their_markers() {
    let cinder = Cinder::start();
    for name in ["a", "b", "c"] {
        cinder.take(name).await;
    }
    cinder.node.take("whole").await;
    cinder.take("d").await;
    let all = ["d", "whole.vda", "whole.vdb", "c", "b", "a"];
    for limit in 1..=7 {
        assert_eq!(walked(&cinder, "", limit).await, all, "{limit}");
    }
    let volume = cinder.disk("vda").await;
    let of_volume = walked(&cinder, &format!("&volume_id={volume}"), 2).await;
    assert_eq!(of_volume, ["d", "whole.vda", "c", "b", "a"]);
    assert_eq!(walked(&cinder, "&name=whole.vdb", 1).await, ["whole.vdb"]);
    assert_eq!(cinder.get("/v3/snapshots/detail?limit=0").await["snapshots"], json!([]));
    let part = cinder.get("/v3/snapshots/detail?limit=2&offset=1&sort=created_at%3Adesc").await;
    let names: Vec<&Value> = part["snapshots"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["whole.vda", "whole.vdb"]);
    // The link goes where the marker would.
    let link = part["snapshots_links"][0]["href"].as_str().unwrap();
    let (_, path) = link.split_once("/v3/").unwrap();
    let next = cinder.get(&format!("/v3/{path}")).await;
    assert_eq!((&next["snapshots"][0]["name"], &next["snapshots"][1]["name"]), (&"c".into(), &"b".into()));
}

/// One that is not there is told as if it had been asked for by itself; one that the filter leaves out is a place as good as any.
#[tokio::test]
async fn markers() {
    let cinder = Cinder::start();
    let whole = cinder.node.take("whole").await.id;
    let unknown = "01a20843-9990-7137-8cd6-1b47d8d6a58d";
    for (list, what, markers) in [
        ("snapshots/detail", "Snapshot", [unknown, "x", &whole, &format!("{whole}.vdz")]),
        ("volumes/detail", "Volume", [unknown, "x", "web/vda", &whole]),
    ] {
        for marker in markers {
            let path = format!("/v3/{list}?marker={}", marker.replace('/', "%2F"));
            let words = format!("{what} {marker} could not be found.");
            let refused = cinder.http.ask("GET", &path, &Value::Null).await;
            assert_fault(&refused, 404, "itemNotFound", &words);
        }
    }
    let marker = cinder.disk("vda").await;
    let rest = cinder.get(&format!("/v3/volumes?name=web%2Fvdb&marker={}", marker.to_uppercase())).await;
    assert_eq!(rest["volumes"][0]["name"], "web/vdb");
}

/// Of all that fit, whatever the page is.
#[tokio::test]
async fn counts() {
    let cinder = Cinder::start();
    let first = cinder.take("a").await;
    cinder.node.take("whole").await;
    let check = async |list: &str, query: &str, count: Value| {
        let page = cinder.get(&format!("/v3/{list}?{query}")).await;
        assert_eq!(page["count"], count, "{list} {query}: {page}");
    };
    let marker = id(&first);
    for (query, count) in [
        ("with_count=true".to_owned(), json!(3)),
        ("with_count=True&limit=1".to_owned(), json!(3)),
        (format!("with_count=True&marker={marker}"), json!(3)),
        ("with_count=True&offset=2&limit=0".to_owned(), json!(3)),
        ("with_count=True&name=whole.vda&limit=1".to_owned(), json!(1)),
        ("with_count=True&project_id=p-2".to_owned(), json!(0)),
        ("with_count=False".to_owned(), Value::Null),
        (String::new(), Value::Null),
    ] {
        check("snapshots", &query, count.clone()).await;
        check("snapshots/detail", &query, count).await;
    }
    let marker = cinder.disk("vda").await;
    for list in ["volumes", "volumes/detail"] {
        check(list, &format!("with_count=true&limit=1&marker={marker}"), json!(2)).await;
        check(list, "with_count=true&status=available", json!(0)).await;
        check(list, "limit=1", Value::Null).await;
    }
    let refused = cinder.http.ask("GET", "/v3/volumes?with_count=some", &Value::Null).await;
    assert_fault(&refused, 400, "badRequest", "some is no truth value");
}

#[tokio::test]
async fn filters() {
    let cinder = Cinder::start();
    cinder.take("a").await;
    cinder.take("b").await;
    let check = async |query: &str, expected: &[&str]| {
        let list = cinder.get(&format!("/v3/snapshots/detail?{query}")).await;
        let names: Vec<&str> =
            list["snapshots"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{query}");
    };
    check("status=available", &["b", "a"]).await;
    check("status=error", &[]).await;
    check("status=unmanaging", &[]).await;
    check("name=a&status=available&all_tenants=True", &["a"]).await;
    check("project_id=p-1&all_tenants=True", &["b", "a"]).await;
    check("project_id=p-2&all_tenants=True", &[]).await;
    check("volume_id=web%2Fvda", &[]).await;
    check(&format!("volume_id={}", cinder.disk("vdb").await), &[]).await;
    check(&format!("volume_id={}", cinder.disk("vda").await), &["b", "a"]).await;
    let refused = cinder.http.ask("GET", "/v3/snapshots/detail?colour=blue", &Value::Null).await;
    assert_fault(&refused, 400, "badRequest", "Invalid filters colour are found in query options.");
}

#[tokio::test]
async fn volumes() {
    let cinder = Cinder::start();
    let all = cinder.get("/v3/volumes/detail").await;
    let names = |list: &Value| -> Vec<String> {
        let volumes = list["volumes"].as_array().unwrap().iter();
        volumes.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&all), ["web/vda", "web/vdb"]);
    assert_eq!(names(&cinder.get("/v3/volumes").await), ["web/vda", "web/vdb"]);
    let first = cinder.get("/v3/volumes/detail?limit=1").await;
    let second = cinder.get(&format!("/v3/volumes/detail?limit=1&marker={}", id(&first["volumes"][0]))).await;
    assert_eq!((names(&first), names(&second)), (vec!["web/vda".to_owned()], vec!["web/vdb".to_owned()]));
    let end = cinder.get(&format!("/v3/volumes/detail?limit=1&marker={}", id(&second["volumes"][0]))).await;
    assert!(names(&end).is_empty());
    assert!(names(&cinder.get("/v3/volumes/detail?status=available").await).is_empty());
    let one = format!("/v3/volumes/detail?volume_id={}", cinder.disk("vdb").await);
    assert_eq!(names(&cinder.get(&one).await), ["web/vdb"]);
    // Theirs is the VM's.
    let of = async |project: &str| {
        names(&cinder.get(&format!("/v3/volumes/detail?all_tenants=True&project_id={project}")).await)
    };
    assert_eq!((of("p-1").await.len(), of("p-2").await.len()), (2, 0));
    assert_eq!(all["volumes"][0]["os-vol-tenant-attr:tenant_id"], "p-1");
    // A name is none of the ids, however it is spelled: the client looks for it in the list then.
    for path in ["/v3/volumes/web%2Fvda", "/v3/volumes/web/vda", "/v3/volumes/nothing"] {
        assert_fault(
            &cinder.http.ask("GET", path, &Value::Null).await,
            404,
            "itemNotFound",
            "could not be found.",
        );
    }
}

#[tokio::test]
async fn the_newest_volume_first() {
    let cinder = Cinder::start();
    let source = cinder.take("one").await;
    for name in ["a-older", "b-newer"] {
        let body = json!({ "volume": { "snapshot_id": id(&source), "name": name } });
        cinder.ok("POST", "/v3/volumes", body, 202).await;
    }
    let check = async |query: &str, expected: [&str; 4]| {
        let (mut names, mut marker) = (Vec::new(), String::new());
        for _ in expected {
            let page = cinder.get(&format!("/v3/volumes?limit=1{query}{marker}")).await["volumes"][0].take();
            marker = format!("&marker={}", id(&page));
            names.push(page["name"].as_str().unwrap().to_owned());
        }
        names[2..].sort();
        assert_eq!(names, expected, "{query}");
    };
    let newest = ["b-newer", "a-older", "web/vda", "web/vdb"];
    check("", ["a-older", "b-newer", "web/vda", "web/vdb"]).await;
    check("&sort=created_at%3Adesc", newest).await;
    check("&sort_key=created_at&sort_dir=desc", newest).await;
    let refused = cinder.http.ask("GET", "/v3/volumes?sort=created_at%3Aasc", &Value::Null).await;
    assert_fault(&refused, 400, "badRequest", "only created_at:desc is served");
}
