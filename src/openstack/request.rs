//! What a client sends: bodies and queries, read with bounds.
//!
//! Decides how long a body may be, and which parts of a query are known. What is not known is refused, not passed over.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;

use super::Fault;

/// Longest body, in bytes. Cinder's own default.
const LONGEST: usize = 114_688;

/// How much of a longer one is thrown away before it is refused: a client that still writes would not read why.
const THROWN_AWAY: usize = 64 << 20;

/// Most entries of a list at once: Cinder's own default.
pub(super) const MOST: usize = 1000;

/// A body.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        let kind = request.headers().get(CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
        let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_owned());
        let body = read(request.into_body()).await?;
        match kind.as_deref() {
            None | Some("application/json") => {}
            Some(other) => {
                let message = format!("Unsupported Content-Type {other:?}: application/json is.");
                return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
            }
        }
        serde_json::from_slice(&body).map(Self).map_err(|error| match error.classify() {
            Category::Data => Fault::invalid_input(&error.to_string()),
            Category::Io | Category::Syntax | Category::Eof => {
                Fault::bad_request(format!("Malformed request body: {error}"))
            }
        })
    }
}

async fn read(mut body: Body) -> Result<Bytes, Fault> {
    let (mut kept, mut length) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Fault::bad_request(format!("Malformed request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length <= LONGEST {
            kept.extend_from_slice(&data);
        } else if length > THROWN_AWAY {
            break;
        } else {
            kept = Vec::new();
        }
    }
    if length > LONGEST {
        return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "Request is too large."));
    }
    Ok(kept.into())
}

/// The parts of a query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) name: Option<String>,
    pub(super) status: Option<String>,
    pub(super) volume_id: Option<String>,
    pub(super) project_id: Option<String>,
    pub(super) marker: Option<String>,
    /// The only order that can be asked for.
    pub(super) newest_first: bool,
    pub(super) limit: usize,
    pub(super) offset: usize,
    /// How many there are is to be told, over all pages.
    pub(super) with_count: bool,
    /// As it came, without what says where the page begins: for the link to the next one.
    pub(super) rest: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) = query.map_err(|error| Fault::bad_request(error.body_text()))?;
        Self::of(pairs)
    }
}

impl Asked {
    fn of(pairs: Vec<(String, String)>) -> Result<Self, Fault> {
        let mut asked = Self { limit: MOST, ..Self::default() };
        for (key, value) in pairs {
            let number = || {
                let message = format!("{key} must be an integer that is not negative");
                value.parse::<usize>().map_err(|_| Fault::invalid_input(&message))
            };
            match key.as_str() {
                "name" => asked.name = Some(value.clone()),
                "status" => asked.status = Some(value.clone()),
                "volume_id" => asked.volume_id = Some(value.clone()),
                "project_id" => asked.project_id = Some(value.clone()),
                "marker" => asked.marker = Some(value.clone()),
                "limit" => asked.limit = number()?.min(MOST),
                "offset" => asked.offset = number()?,
                "with_count" => asked.with_count = is_true(Some(&value.as_str().into()))?,
                // All that a caller may know of is shown anyway.
                "all_tenants" => {}
                "sort_key" if value == "created_at" => asked.newest_first = true,
                "sort_dir" if value == "desc" => asked.newest_first = true,
                "sort" if matches!(value.as_str(), "created_at" | "created_at:desc") => {
                    asked.newest_first = true;
                }
                "sort" | "sort_key" | "sort_dir" => {
                    return Err(Fault::invalid_input(&format!("{key}: only created_at:desc is served")));
                }
                other => {
                    let message = format!("Invalid filters {other} are found in query options.");
                    return Err(Fault::bad_request(message));
                }
            }
            if !matches!(key.as_str(), "marker" | "offset") {
                asked.rest.push((key, value));
            }
        }
        Ok(asked)
    }
}

/// Metadata as it comes: texts by texts.
pub(super) type Metadata = BTreeMap<String, String>;

/// A truth value as Cinder takes it.
pub(super) fn is_true(value: Option<&Value>) -> Result<bool, Fault> {
    let word = match value {
        None | Some(Value::Null) => return Ok(false),
        Some(Value::Bool(is)) => return Ok(*is),
        Some(Value::String(word)) => word.to_ascii_lowercase(),
        Some(other) => other.to_string(),
    };
    match word.as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Ok(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Ok(false),
        _ => Err(Fault::invalid_input(&format!("{word} is no truth value"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let read = |text: &[(&str, &str)]| {
            Asked::of(text.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        let asked =
            read(&[("name", "a b"), ("marker", "x"), ("limit", "5"), ("all_tenants", "True")]).unwrap();
        assert_eq!(
            (asked.name.as_deref(), asked.marker.as_deref(), asked.limit),
            (Some("a b"), Some("x"), 5)
        );
        assert_eq!(asked.rest.len(), 3, "not the marker: {:?}", asked.rest);
        assert_eq!(read(&[]).unwrap().limit, MOST);
        assert_eq!(read(&[("limit", "100000")]).unwrap().limit, MOST);
        assert!(!asked.newest_first);
        for newest in [("sort", "created_at:desc"), ("sort", "created_at"), ("sort_dir", "desc")] {
            assert!(read(&[newest]).unwrap().newest_first, "{newest:?}");
        }
        for wrong in
            [("limit", "-1"), ("limit", "x"), ("sort", "size:asc"), ("with_count", "x"), ("colour", "blue")]
        {
            assert!(read(&[wrong]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn truths() {
        assert_eq!(is_true(None), Ok(false));
        assert_eq!(is_true(Some(&Value::Null)), Ok(false));
        assert_eq!(is_true(Some(&true.into())), Ok(true));
        assert_eq!(is_true(Some(&"True".into())), Ok(true));
        assert_eq!(is_true(Some(&1.into())), Ok(true));
        assert!(is_true(Some(&"perhaps".into())).is_err());
        assert!(is_true(Some(&serde_json::json!({}))).is_err());
    }

    /// Any parts of a query, as they come behind the question mark.
    fn query(text: &str) -> Result<Asked, Fault> {
        let uri: axum::http::Uri = format!("/x?{text}").parse().map_err(|_| Fault::bad_request("no URI"))?;
        let query = Query::<Vec<(String, String)>>::try_from_uri(&uri);
        let Query(pairs) = query.map_err(|error| Fault::bad_request(error.body_text()))?;
        Asked::of(pairs)
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_query_is_refused_or_understood(
            text in crate::mutation::text(["name=a%20b&status=available&limit=7&offset=1&marker=x", "sort=created_at:desc&with_count=true"])
        ) {
            if let Ok(asked) = query(&text) {
                assert!(asked.limit <= MOST);
                let known = ["name", "status", "volume_id", "project_id", "limit", "all_tenants", "sort", "with_count"];
                let is_known = |key: &str| known.contains(&key) || key.starts_with("sort_");
                assert!(asked.rest.iter().all(|(key, _)| is_known(key)), "{asked:?}");
            }
        }
    }
}
