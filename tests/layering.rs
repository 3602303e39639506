//! The house: each folder imports only what stands under it, every module says what it is for, no file grows too long.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// A folder of `src/` and what it may import of the crate. `docs/ARCHITECTURE.md` draws the same.
const HOUSE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("plan", &["model"]),
    ("store", &["model"]),
    ("host", &["model"]),
    ("ops", &["model", "plan", "store", "host"]),
    ("schedule", &["model", "plan", "store", "host", "ops"]),
    ("api", &["model", "plan", "store", "host", "ops", "schedule", "proto"]),
    ("openstack", &["proto"]),
    ("daemon", &["model", "plan", "store", "host", "ops", "schedule", "api", "openstack", "proto"]),
    ("cli", &["proto"]),
    ("proto", &[]),
];

/// Words that only one floor may know, and the folders that are that floor.
const SECRETS: &[(&str, &[&str])] = &[
    ("tonic::", &["api", "openstack", "daemon", "cli", "proto"]),
    ("axum::", &["openstack", "daemon"]),
    ("virt::", &["host"]),
    ("virt_sys::", &["host"]),
    ("roxmltree", &["host"]),
    ("rusqlite", &["store"]),
    ("anyhow", &["cli"]),
];

/// Longest file in lines.
const LONGEST_FILE: usize = 600;

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(sources.len() > 20, "the sources were found");
    sources
}

fn room(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// What a line imports of the crate.
fn imports(line: &str) -> Vec<&str> {
    let is_room = |name: &&str| HOUSE.iter().any(|(room, _)| room == name);
    line.split("crate::")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next())
        .filter(is_room)
        .collect()
}

/// Whether a line has the word, and not only the end of a longer one: `libvirt::` is not `virt::`.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
}

fn check_line(room: &str, allowed: &[&str], line: &str) -> Result<(), String> {
    for import in imports(line) {
        if import != room && !allowed.contains(&import) {
            return Err(format!("{room} imports {import}"));
        }
    }
    for (secret, rooms) in SECRETS {
        if names(line, secret) && !rooms.contains(&room) {
            return Err(format!("{room} knows of {secret}"));
        }
    }
    Ok(())
}

#[test]
fn folders_import_only_downward() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let room = room(&path);
        let Some((_, allowed)) = HOUSE.iter().find(|(name, _)| *name == room) else { continue };
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            if let Err(problem) = check_line(&room, allowed, line) {
                wrong.push(format!("{}:{}: {problem}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_can_fail() {
    assert!(check_line("model", &[], "use crate::store::Store;").is_err());
    assert!(check_line("ops", &["model"], "let status = tonic::Status::internal(text);").is_err());
    assert!(check_line("ops", &["model"], "use crate::model::VmId;").is_ok());
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent: Vec<_> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(path, _)| path).collect();
    assert!(silent.is_empty(), "no module documentation: {silent:?}");
}

#[test]
fn no_file_grows_too_long() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .collect();
    assert!(long.is_empty(), "each is two things: {long:?}");
}

#[test]
fn unsafe_lives_in_one_module() {
    let elsewhere: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| {
            path != Path::new("host/libvirt/ffi.rs")
                && text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("unsafe "))
        })
        .map(|(path, _)| path)
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

/// An order by chance would differ each time that a simulation is run again.
#[test]
fn the_engine_leaves_no_order_to_chance() {
    let by_chance: Vec<_> = sources()
        .into_iter()
        .filter(|(path, _)| room(path) == "ops")
        .flat_map(|(path, text)| {
            let selects = text.split("select! {").skip(1);
            selects
                .filter(|select| !select.trim_start().starts_with("biased;"))
                .map(move |select| {
                    format!("{}: {}", path.display(), select.lines().nth(1).unwrap_or_default())
                })
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(by_chance.is_empty(), "not biased: {by_chance:#?}");
}
