//! Which versions there are. Decides what a client may believe that we can do.

use std::ops::RangeInclusive;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::{Answer, Fault, Scheme, Shared};

/// The newest microversion. From 3.66 on `openstack` sends no `force` any more, and a snapshot of a volume that is in use would be
/// taken without it.
const NEWEST: &str = "3.65";

/// As answers name it.
pub(super) const NEWEST_OF_VOLUMES: &str = "volume 3.65";

/// The oldest.
const OLDEST: &str = "3.0";

/// As numbers.
const RANGE: RangeInclusive<(u32, u32)> = (3, 0)..=(3, 65);

pub(super) async fn version(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Answer {
    Answer(StatusCode::OK, all(shared.scheme, &headers))
}

/// As Cinder does at its root: choose one.
pub(super) async fn versions(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Answer {
    Answer(StatusCode::MULTIPLE_CHOICES, all(shared.scheme, &headers))
}

fn all(scheme: Scheme, headers: &HeaderMap) -> Value {
    json!({ "versions": [{
        "id": "v3.0",
        "status": "CURRENT",
        "version": NEWEST,
        "min_version": OLDEST,
        "updated": "2026-11-28T00:00:00Z",
        "links": [{ "rel": "self", "href": format!("{}/v3/", base(scheme, headers)) }],
        "media-types": [{
            "base": "application/json",
            "type": "application/vnd.openstack.volume+json;version=3",
        }],
    }]})
}

/// By which the client has reached us: it goes on from there.
pub(super) fn base(scheme: Scheme, headers: &HeaderMap) -> String {
    let scheme = match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    format!("{scheme}://{host}")
}

/// Refuses what was asked for in a version that there is not.
pub(super) fn check_version(headers: &HeaderMap) -> Result<(), Fault> {
    let asked = headers.get("openstack-api-version").and_then(|asked| asked.to_str().ok());
    let Some(asked) = asked.and_then(|asked| asked.split(',').find_map(of_volumes)) else { return Ok(()) };
    match (asked, numbers(asked)) {
        ("latest", _) => Ok(()),
        (_, Some(numbers)) if RANGE.contains(&numbers) => Ok(()),
        (_, Some(_)) => {
            let message = format!(
                "Version {asked} is not supported by the API. Minimum is {OLDEST} and maximum is {NEWEST}."
            );
            Err(Fault::new(StatusCode::NOT_ACCEPTABLE, message))
        }
        (_, None) => Err(Fault::bad_request(format!("API Version String {asked} is of invalid format."))),
    }
}

fn of_volumes(asked: &str) -> Option<&str> {
    asked.trim().strip_prefix("volume ").map(str::trim)
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let check = |asked: &'static str, status: Option<u16>| {
            let name = axum::http::HeaderName::from_static("openstack-api-version");
            let headers = HeaderMap::from_iter([(name, axum::http::HeaderValue::from_static(asked))]);
            let refused = check_version(&headers).err();
            let answer = refused.map(axum::http::Response::<axum::body::Body>::from);
            assert_eq!(answer.map(|answer| answer.status().as_u16()), status, "{asked:?}");
        };
        for asked in
            ["volume 3.0", "volume 3.65", "volume latest", "compute 2.1", "compute 2.1, volume 3.8", ""]
        {
            check(asked, None);
        }
        check("volume 3.66", Some(406));
        check("volume 2.0", Some(406));
        check("volume x", Some(400));
        check("volume 3.-1", Some(400));
        let range = [OLDEST, NEWEST].map(|text| numbers(text).unwrap());
        assert_eq!(range, [*RANGE.start(), *RANGE.end()]);
        assert_eq!(NEWEST_OF_VOLUMES, format!("volume {NEWEST}"));
    }
}
