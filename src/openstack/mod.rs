//! The part of OpenStack's Block Storage API, version 3, that the `openstack` client needs for volumes and their snapshots.
//!
//! Decides what a request of Cinder's means here: which calls of gRPC it is made of, and how their answers look in Cinder's
//! shapes. Leaves to the daemon who may make these calls, and to gRPC all that they do: nothing is done here that a client of
//! gRPC could not do itself. Must never know TLS, libvirt, SQL, the engine.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use serde_json::{Value, json};

mod action;
mod calls;
mod discovery;
mod fault;
mod id;
mod making;
mod metadata;
mod request;
mod shape;
mod snapshot;
mod snapshot_list;
mod volume;
mod volume_list;

pub use calls::Calls;
pub use fault::Fault;

use making::Making;

/// By which a client reaches this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With it.
    Https,
}

/// What all requests share.
struct Shared {
    scheme: Scheme,
    making: Making,
}

/// An answer that is no error.
struct Answer(StatusCode, Value);

/// All routes. Each request has the [`Calls`] of whoever makes it among its extensions.
pub fn router(scheme: Scheme) -> Router {
    Router::new()
        .route("/", get(discovery::versions))
        .route("/v3", get(discovery::version))
        .route("/v3/", get(discovery::version))
        .route("/v3/extensions", get(async || Answer(StatusCode::OK, json!({ "extensions": [] }))))
        .route("/v3/volumes", get(volume_list::summaries).post(volume::create))
        .route("/v3/volumes/detail", get(volume_list::details))
        .route("/v3/volumes/{id}", get(volume::show).put(volume::update).delete(volume::delete))
        .route("/v3/volumes/{id}/action", post(action::on_volume))
        .route("/v3/volumes/{id}/{*rest}", any(volume::others))
        .route("/v3/snapshots", get(snapshot_list::list).post(snapshot::create))
        .route("/v3/snapshots/detail", get(snapshot_list::list))
        .route("/v3/snapshots/{id}", get(snapshot::show).put(snapshot::update).delete(snapshot::delete))
        .route("/v3/snapshots/{id}/action", post(action::on_snapshot))
        .route("/v3/snapshots/{id}/metadata", get(metadata::all).post(metadata::merge).put(metadata::replace))
        .route(
            "/v3/snapshots/{id}/metadata/{key}",
            get(metadata::one).put(metadata::set).delete(metadata::remove),
        )
        // Keystone's, which the client asks at the same place. It takes a name for an id then.
        .route("/v3/projects", any(no_keystone))
        .route("/v3/projects/{*rest}", any(no_keystone))
        .fallback(nothing)
        .method_not_allowed_fallback(not_so)
        .layer(middleware::from_fn(move |request, next| with_manners(scheme, request, next)))
        .with_state(Arc::new(Shared { scheme, making: Making::default() }))
}

async fn no_keystone() -> Fault {
    Fault::new(StatusCode::FORBIDDEN, "There is no Keystone here: a project is known by its id.")
}

async fn nothing(uri: Uri) -> Fault {
    Fault::new(StatusCode::NOT_FOUND, format!("There is no {} here.", uri.path()))
}

async fn not_so(request: Request) -> Fault {
    let message = format!("{} cannot be done with {}.", request.method(), request.uri().path());
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// What holds for all requests and answers.
async fn with_manners(scheme: Scheme, request: Request, next: Next) -> Response<Body> {
    // Programs send none. A page in somebody's browser could ask whatever its user may reach.
    let answer = if request.headers().contains_key(ORIGIN) {
        Fault::new(StatusCode::FORBIDDEN, "Browsers are not served.").into()
    } else if scheme == Scheme::Http && !is_for_this_node(request.headers()) {
        Fault::new(StatusCode::FORBIDDEN, "Without TLS this is localhost, and nothing else.").into()
    } else if let Err(fault) = discovery::check_version(request.headers()) {
        fault.into()
    } else {
        next.run(request).await
    };
    let is_json = answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let mut answer = match answer.status() {
        // Of a path that cannot be read, for one.
        status if status.as_u16() >= 400 && !is_json => {
            let why = status.canonical_reason().unwrap_or("The request cannot be answered");
            Fault::new(status, format!("{why}.")).into()
        }
        _ => answer,
    };
    let version = HeaderValue::from_static(discovery::NEWEST_OF_VOLUMES);
    answer.headers_mut().insert("openstack-api-version", version);
    answer.headers_mut().insert("vary", HeaderValue::from_static("OpenStack-API-Version"));
    answer
}

/// Whether it was asked of this node by one of the names that it has for itself. The name of a page in a browser can be made to mean
/// this node as well, and what the page asks then is to the browser the page's own: it sends no `Origin`.
fn is_for_this_node(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(host) = host.and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let name = host.host();
    let address = name.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response<Body> {
        let Self(status, body) = self;
        let mut answer = match body {
            Value::Null => Response::new(Body::empty()),
            body => Response::new(Body::from(body.to_string())),
        };
        *answer.status_mut() = status;
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let is_ours = |host: &'static str| {
            is_for_this_node(&HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]))
        };
        for ours in ["localhost", "LocalHost:8776", "127.0.0.1", "127.1.2.3:1", "[::1]:8776", "[::1]"] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in
            ["", "rebound.example", "localhost.example:8776", "192.0.2.1:8776", "[2001:db8::1]", "a b"]
        {
            assert!(!is_ours(other), "{other}");
        }
        assert!(!is_for_this_node(&HeaderMap::new()));
    }
}
