//! What came of each fault at each call, over all requests. `make faults` prints it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use vmsnap::host::sim::Method;

/// What came of a request.
#[derive(Debug, Clone, Copy)]
pub enum Came {
    Finished,
    TurnedBack,
    /// Nothing was begun.
    Refused,
}

/// So often each came, by the call that was struck and the fault.
static TABLE: Mutex<BTreeMap<(Method, &str), [u32; 3]>> = Mutex::new(BTreeMap::new());

pub fn note(struck: Method, fault: &'static str, came: Came) {
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    table.entry((struck, fault)).or_default()[came as usize] += 1;
}

/// Writes what is known by now. Whichever test ends last writes all of it.
pub fn write(faults: &[&str]) {
    let table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text =
        format!("| struck call | {} |\n|---|{}\n", faults.join(" | "), "---|".repeat(faults.len()));
    let mut methods: Vec<Method> = table.keys().map(|(method, _)| *method).collect();
    methods.dedup();
    for method in methods {
        write!(text, "| {method} |").unwrap();
        for fault in faults {
            let came = table.get(&(method, *fault)).map(|[finished, back, refused]| {
                [(finished, "finished"), (back, "undone"), (refused, "refused")]
                    .into_iter()
                    .filter(|(count, _)| **count > 0)
                    .map(|(count, word)| format!("{count} {word}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            });
            write!(text, " {} |", came.unwrap_or_else(|| "-".to_owned())).unwrap();
        }
        text.push('\n');
    }
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.md"), text).unwrap();
}
