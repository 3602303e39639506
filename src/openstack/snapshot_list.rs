//! Lists of snapshots: newest first, with what Cinder lets one ask for.
//!
//! Decides where a page begins behind its marker, of which only the id is known. Leaves most of the looking to the calls: what they
//! cannot look for, a name for people and what one that is being made is of, is looked for here.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::id::SnapshotId;
use super::making::Making;
use super::request::Asked;
use super::shape::{Shown, states};
use super::snapshot::{Looks, found, shown, volume_id};
use super::{Answer, Calls, Fault, Shared, discovery};
use crate::proto::v1;

/// Most snapshots that are asked for at once.
const BATCH: usize = 1000;

/// Those that may stand before a page and have the time of its marker.
const BESIDE: usize = 16;

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(calls): Extension<Calls>,
    uri: Uri,
    headers: HeaderMap,
    asked: Asked,
) -> Result<Answer, Fault> {
    let found = page(&calls, &shared.making, &asked).await?;
    let last = found.last().filter(|_| found.len() == asked.limit).map(|last| last.id.to_string());
    let values: Vec<Value> = found.iter().map(Shown::value).collect();
    let mut answer = json!({ "snapshots": values });
    if asked.with_count {
        answer["count"] = count(&calls, &shared.making, &asked).await?.into();
    }
    if let Some(last) = last {
        let base = discovery::base(shared.scheme, &headers);
        answer["snapshots_links"] = next(&base, uri.path(), &asked, &last);
    }
    Ok(Answer(StatusCode::OK, answer))
}

/// Where a list goes on.
pub(super) fn next(base: &str, path: &str, asked: &Asked, last: &str) -> Value {
    let pairs = asked.rest.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let mut query = String::new();
    for (key, value) in pairs.chain([("marker", last)]) {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(&encoded(key));
        query.push('=');
        query.push_str(&encoded(value));
    }
    json!([{ "rel": "next", "href": format!("{base}{path}{query}") }])
}

/// As a part of a query: all but the plainest characters as their bytes.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// What a page holds.
async fn page(calls: &Calls, making: &Making, asked: &Asked) -> Result<Vec<Shown>, Fault> {
    let begin = Begin::behind(calls, asked.marker.as_deref()).await?;
    // Whoever walks through a long list in small pages does not have all of it read for each of them.
    let looks_at_all = asked.name.is_some() || asked.offset > 0;
    let batch = if looks_at_all { BATCH } else { BATCH.min(asked.limit + BESIDE) };
    let (mut found, mut left_out) = (Vec::new(), 0);
    let take = |shown| {
        if left_out < asked.offset {
            left_out += 1;
        } else if found.len() < asked.limit {
            found.push(shown);
        }
        found.len() < asked.limit
    };
    Walk::new(calls, making, asked).go(begin, batch, take).await?;
    Ok(found)
}

/// How many there are, wherever the page begins and ends. A VM's snapshot is as many as it has disks: they are counted one by one.
async fn count(calls: &Calls, making: &Making, asked: &Asked) -> Result<usize, Fault> {
    let mut count = 0;
    let take = |_| {
        count += 1;
        true
    };
    Walk::new(calls, making, asked).go(Begin { marker: None }, BATCH, take).await?;
    Ok(count)
}

/// A way through all that is asked for.
struct Walk<'a> {
    calls: &'a Calls,
    making: &'a Making,
    asked: &'a Asked,
    seen: HashSet<String>,
    looks: Looks,
}

impl<'a> Walk<'a> {
    fn new(calls: &'a Calls, making: &'a Making, asked: &'a Asked) -> Self {
        Self { calls, making, asked, seen: HashSet::new(), looks: Looks::new() }
    }

    /// Hands over one behind the other, as long as more are wanted.
    async fn go(
        mut self,
        begin: Begin,
        batch: usize,
        mut take: impl FnMut(Shown) -> bool + Send,
    ) -> Result<(), Fault> {
        for filter in filters(self.asked) {
            let filter = v1::SnapshotFilter { created_before: begin.before(), ..filter };
            let page_size = i32::try_from(batch).unwrap_or(i32::MAX);
            let mut request =
                v1::ListSnapshotsRequest { filter: Some(filter), page_size, ..Default::default() };
            let mut begin = begin.clone();
            loop {
                let answer = self.calls.list_snapshots(request.clone()).await?;
                for snapshot in answer.snapshots {
                    for shown in self.wanted(snapshot, &mut begin).await {
                        if !take(shown) {
                            return Ok(());
                        }
                    }
                }
                if answer.next_page_token.is_empty() {
                    break;
                }
                request.page_token = answer.next_page_token;
            }
        }
        Ok(())
    }

    /// What is asked for of a snapshot.
    async fn wanted(&mut self, snapshot: v1::Snapshot, begin: &mut Begin) -> Vec<Shown> {
        let Self { calls, making, asked, .. } = *self;
        let mut wanted = Vec::new();
        // It may have been made between two lists.
        if self.seen.contains(&snapshot.id) {
            return wanted;
        }
        for id in SnapshotId::all_of(&snapshot) {
            if !begin.is_behind(&id, &snapshot) || !holds(asked, making, &id, &snapshot) {
                continue;
            }
            let shown = shown(calls, making, id, snapshot.clone(), &mut self.looks).await;
            if asked.name.as_ref().is_none_or(|name| shown.name() == *name)
                && asked.status.as_ref().is_none_or(|status| shown.status == status)
            {
                wanted.push(shown);
            }
        }
        if !wanted.is_empty() {
            self.seen.insert(snapshot.id);
        }
        wanted
    }
}

/// What can be asked of the calls, one list behind the other: none where nothing would be found.
fn filters(asked: &Asked) -> Vec<v1::SnapshotFilter> {
    let wanted = asked.status.as_ref().map(|status| states(status));
    // A state of Cinder's that none of ours is in.
    if wanted.as_ref().is_some_and(Vec::is_empty) {
        return Vec::new();
    }
    let wanted = wanted.unwrap_or_default();
    let all = v1::SnapshotFilter {
        states: wanted.iter().map(|state| i32::from(*state)).collect(),
        project: asked.project_id.clone().unwrap_or_default(),
        ..v1::SnapshotFilter::default()
    };
    let Some(volume) = &asked.volume_id else { return vec![all] };
    let Some(volume_id) = volume_id(volume) else { return Vec::new() };
    let of_volume = v1::SnapshotFilter { volume_id, ..all.clone() };
    if !wanted.is_empty() && !wanted.contains(&v1::SnapshotState::Creating) {
        return vec![of_volume];
    }
    // The catalog does not know yet what these hold. None of the volume is newer: one at a time is made.
    let being_made = v1::SnapshotFilter {
        states: vec![v1::SnapshotState::Creating.into()],
        kinds: vec![v1::SnapshotKind::Volume.into()],
        ..all
    };
    vec![being_made, of_volume]
}

/// Of a VM's snapshot, the disk that was asked for alone.
fn holds(asked: &Asked, making: &Making, id: &SnapshotId, snapshot: &v1::Snapshot) -> bool {
    let Some(volume) = &asked.volume_id else { return true };
    let held = id.disk_of(snapshot).map(|held| held.volume_id.clone());
    let held = held.or_else(|| making.of(&snapshot.id).map(|(volume, _)| volume));
    held.is_some_and(|held| held.eq_ignore_ascii_case(volume))
}

/// Where a page begins.
#[derive(Clone)]
struct Begin {
    /// The last one of the page before, as long as it was not met.
    marker: Option<(SnapshotId, i64)>,
}

impl Begin {
    async fn behind(calls: &Calls, marker: Option<&str>) -> Result<Self, Fault> {
        let Some(marker) = marker else { return Ok(Self { marker: None }) };
        let (id, snapshot) = found(calls, marker).await?;
        Ok(Self { marker: Some((id, millis(snapshot.create_time))) })
    }

    /// What is newer than the marker stands before it.
    fn before(&self) -> Option<Timestamp> {
        let (_, millis) = self.marker.as_ref()?;
        let next = millis + 1;
        let nanos = i32::try_from(next.rem_euclid(1000)).unwrap_or_default() * 1_000_000;
        Some(Timestamp { seconds: next.div_euclid(1000), nanos })
    }

    /// Whether the marker has been met before this one. If it does not come, it has another state than the list is of by now.
    fn is_behind(&mut self, id: &SnapshotId, snapshot: &v1::Snapshot) -> bool {
        let Some((marker, at)) = &self.marker else { return true };
        if marker == id {
            self.marker = None;
            return false;
        }
        let is_older = millis(snapshot.create_time) < *at;
        if is_older {
            self.marker = None;
        }
        is_older
    }
}

/// The catalog orders by these.
fn millis(at: Option<Timestamp>) -> i64 {
    at.map_or(0, |at| at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos / 1_000_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        let rest = vec![("limit".to_owned(), "1".to_owned()), ("name".to_owned(), "a b&c".to_owned())];
        let asked = Asked { rest, ..Asked::default() };
        let links = next("http://node:1", "/v3/snapshots/detail", &asked, "x.vda");
        assert_eq!(links[0]["rel"], "next");
        assert_eq!(links[0]["href"], "http://node:1/v3/snapshots/detail?limit=1&name=a%20b%26c&marker=x.vda");
    }

    #[test]
    fn a_page_begins_behind_its_marker() {
        let snapshot = |number: u128, millis: i64| v1::Snapshot {
            id: uuid::Uuid::from_u128(number).to_string(),
            kind: v1::SnapshotKind::Volume.into(),
            create_time: Some(Timestamp { seconds: millis, nanos: 0 }),
            ..v1::Snapshot::default()
        };
        let id = |snapshot: &v1::Snapshot| SnapshotId::all_of(snapshot).remove(0);
        let [first, second, third] = [snapshot(1, 9), snapshot(2, 9), snapshot(3, 8)];
        let marker = |of: &v1::Snapshot| Begin { marker: Some((id(of), millis(of.create_time))) };
        let mut begin = marker(&first);
        assert_eq!(begin.before(), Some(Timestamp { seconds: 9, nanos: 1_000_000 }));
        let behind = [&first, &second, &third].map(|one| begin.is_behind(&id(one), one));
        assert_eq!(behind, [false, true, true]);
        // One that is not in the list any more: only what is older is certainly behind it.
        let mut begin = marker(&snapshot(4, 9));
        assert_eq!([&second, &third].map(|one| begin.is_behind(&id(one), one)), [false, true]);
    }
}
