//! The log of `vmsnap controller receive`, looked at afterwards.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// The items that were kept of the one outbox there was. None may be there twice, none may be missing.
#[track_caller]
pub fn items(log: &Path) -> Vec<Value> {
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    let mut items = Vec::new();
    for entry in entries(log) {
        let Some(sequence) = entry["report"]["sequence"].as_str() else { continue };
        let last =
            last.entry(entry["outbox_id"].as_str().expect("each report has one").to_owned()).or_default();
        *last += 1;
        assert_eq!(sequence, last.to_string(), "in order, without gaps");
        items.push(entry["report"].clone());
    }
    assert_eq!(last.len(), 1, "there is one outbox");
    items
}

/// Everything that was kept. A line that is being written is left out.
pub fn entries(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).expect("the receiver has made it");
    text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()
}

/// The states that an operation came to.
pub fn states<'a>(items: &'a [Value], operation: &str) -> Vec<&'a str> {
    let of_it = items.iter().filter(|item| item["operation"]["id"] == operation);
    of_it.filter_map(|item| item["operation"]["state"].as_str()).collect()
}
