//! What the guest notices of a snapshot, and how long it takes: `vmsnap` beside `virsh` as a user types it, and beside the
//! strongest script of `virsh`, on real guests, in one run.
//!
//! `make bench`, or `cargo bench --bench guests -- PART OF A NAME` for some figures; `VMSNAP_BENCH_BLOCKS=n` for longer or
//! shorter runs. The table and the plots are written where `VMSNAP_BENCH_OUT` says. Decides which figures there are. Leaves
//! what is done to a guest to `arms`, what is measured to `measure`, what it means to `figure`.

#![allow(clippy::unwrap_used, reason = "a benchmark stops where it fails")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what it finds is told")]
#![allow(clippy::disallowed_methods, reason = "a benchmark runs programs: it is the outside")]

#[path = "../../tests/bed/mod.rs"]
mod bed;

mod agent;
mod arms;
mod catalog;
mod compressed;
mod deletion;
mod figure;
mod first_writes;
mod floors;
mod measure;
mod memory;
mod merge;
mod pauses;
mod plot;
mod report;
mod restore;
mod stall;
mod watchers;

use std::path::PathBuf;

use figure::Figure;

/// Some figures by a name. All arms of each case run so many times there and back.
type Part = (&'static str, fn(usize) -> Vec<Figure>);

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let is_wanted =
        |part: &&Part| wanted.is_empty() || wanted.iter().any(|word| part.0.contains(word.as_str()));
    let blocks = std::env::var("VMSNAP_BENCH_BLOCKS").map_or(4, |text| text.parse().unwrap());
    let parts: [Part; 12] = [
        ("floors", floors::figures),
        ("stall", stall::figures),
        ("first-writes", first_writes::figures),
        ("memory", memory::figures),
        ("compressed", compressed::figures),
        ("restore", restore::figures),
        ("deletion-depth", deletion::by_depth),
        ("deletion-disks", deletion::by_disks),
        ("merge", merge::figures),
        ("agent", agent::figures),
        ("catalog", catalog::figures),
        ("watchers", watchers::figures),
    ];
    let out = std::env::var_os("VMSNAP_BENCH_OUT")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let (mut figures, mut page) = (Vec::new(), String::new());
    for (name, measure) in parts.iter().filter(is_wanted) {
        figures.extend(measure(blocks));
        // What was measured in an hour is not to be lost with a later part.
        page = report::write(&figures, &out);
        println!("bench: {name} is written to {}", out.display());
    }
    println!("{page}");
}
