//! Broken engines: each mutant breaks one rule that keeps data, guests or the journal safe, and the simulation has to see
//! it. A simulation that lets one through would let a mistake of ours through, too.
//!
//! A mutant is one place of the source, written otherwise; the sources are copied and built beside the others, without
//! programs: no test may meet a broken one. A place that is no longer there fails each test run: a mutant cannot rot.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::disallowed_methods, reason = "it runs cargo, and waits for it")]
#![allow(clippy::print_stdout, reason = "how each was seen is its result")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// One way to be wrong.
struct Mutant {
    /// What it gets wrong.
    rule: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "a step that fails may have half happened, so it is itself undone",
        file: "src/model/cursor.rs",
        right: "self.enter(State::Undoing { at });\n            }",
        wrong: "self.enter(Self::below(at));\n            }",
    },
    Mutant {
        rule: "the commit step turns back only on proof that it did not happen",
        file: "src/model/cursor.rs",
        right: "(Turn::Ensure(at), Outcome::NotApplied) if at == self.commit_point",
        wrong: "(Turn::Ensure(at), Outcome::NotApplied | Outcome::Unknown) if at == self.commit_point",
    },
    Mutant {
        rule: "after the commit point there is only forward",
        file: "src/model/cursor.rs",
        right: "if at < self.commit_point =>\n            {",
        wrong: "if at < self.steps - 1 =>\n            {",
    },
    Mutant {
        rule: "a merge that was refused may have begun: look again",
        file: "src/ops/steps/merge.rs",
        right: "self.has_begun |= !is_refused || !self.is_as_before(context, merge, before).await;",
        wrong: "self.has_begun |= !is_refused;",
    },
    Mutant {
        rule: "a pivot is noted before it is asked for",
        file: "src/ops/steps/pivot.rs",
        right: "        self.put(context, merge).await?;\n",
        wrong: "",
    },
    Mutant {
        rule: "the intent to freeze is durable before the guest is asked",
        file: "src/ops/steps/quiesce.rs",
        right: "    if let Err(error) = take_lease(context, Standstill::Frozen, timeout).await {\n        return Performed::not_applied(error);\n    }\n",
        wrong: "",
    },
    Mutant {
        rule: "the intent to pause is durable before the VM is asked",
        file: "src/ops/steps/pause.rs",
        right: "    if let Err(error) = take_lease(context, Standstill::Paused, timeout).await {\n        return Performed::not_applied(error);\n    }\n",
        wrong: "",
    },
    Mutant {
        rule: "a capture of memory is ended once it is complete",
        file: "src/ops/steps/background.rs",
        right: "        }\n    }\n    ended(context, Performed::done()).await\n}\n",
        wrong: "        }\n    }\n    Performed::done()\n}\n",
    },
    Mutant {
        rule: "a guest that gives no answer is not proven thawed",
        file: "src/ops/steps/quiesce.rs",
        right: "            Err(error) => last = Err(error),\n        }\n        match host.hypervisor",
        wrong: "            Err(_) => return Ok(Thawed::Proven { file_systems }),\n        }\n        match host.hypervisor",
    },
    Mutant {
        rule: "a guest that somebody else has frozen is left alone",
        file: "src/ops/steps/quiesce.rs",
        right: "Ok(true) => return cannot_freeze(freeze, \"somebody else has frozen the guest\".to_owned()),",
        wrong: "Ok(true) => {}",
    },
    Mutant {
        rule: "what is done is journaled before anything more is",
        file: "src/ops/runner.rs",
        right: "            if !self.journal(turn).await {\n                return false;\n            }\n",
        wrong: "",
    },
    Mutant {
        rule: "a VM that went to another node is left alone, whatever was begun",
        file: "src/ops/steps/mod.rs",
        right: "if view.run_state == RunState::Migrated { Err(HostError::Migrated) } else { Ok(view) }",
        wrong: "Ok(view)",
    },
    Mutant {
        rule: "a VM that comes back is not back before it executes here",
        file: "src/ops/departure.rs",
        right: "RunState::Off | RunState::Unsettled | RunState::Paused(PauseReason::Snapshot)\n                if",
        wrong: "RunState::Off\n                if",
    },
    Mutant {
        rule: "an overlay that a guest wrote to is kept, whatever the hypervisor knows of the switch",
        file: "src/plan/switch.rs",
        right: "disks.iter().find(|(_, seen)| seen.overlay != LastWritten::Never).map(",
        wrong: "disks.iter().find(|_| false).map(",
    },
    Mutant {
        rule: "what was merged back tells nothing of the switch any more",
        file: "src/ops/steps/switch_back.rs",
        right: "let settled = if is_on_way_back {",
        wrong: "let settled = if is_on_way_back && false {",
    },
    Mutant {
        rule: "a layer that several lie on is merged with none of them",
        file: "src/plan/collapse.rs",
        right: "children.next().is_none().then_some(child)",
        wrong: "Some(child)",
    },
];

/// So many seeds a mutant has to pass to get through. Most are seen in the first few.
const SEEDS: &str = "1500";

/// The rules are still kept where the mutants break them.
#[test]
fn each_place_is_there_once() {
    for mutant in MUTANTS {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(mutant.file)).unwrap();
        assert_eq!(text.matches(mutant.right).count(), 1, "{}: {:?}", mutant.file, mutant.right);
    }
}

#[test]
#[ignore = "each mutant is built: make mutants"]
fn each_is_seen_by_the_simulation() {
    let bench = Bench::new();
    // A part of a rule's words picks one.
    let wanted = std::env::var("VMSNAP_MUTANT").unwrap_or_default();
    let mutants: Vec<&Mutant> = MUTANTS.iter().filter(|mutant| mutant.rule.contains(&wanted)).collect();
    let right = bench.simulate("20");
    assert!(right.status.success(), "what is right is not let through:\n{}", words(&right));
    let unseen: Vec<&str> =
        mutants.iter().filter(|mutant| !bench.is_seen(mutant)).map(|mutant| mutant.rule).collect();
    assert!(unseen.is_empty(), "nobody saw that these were broken: {unseen:#?}");
}

/// A copy of the sources, and where it is built: beside the others, so that what all use is built once.
struct Bench {
    sources: PathBuf,
    target: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        // target/PROFILE/deps/mutants-HASH
        let own = std::env::current_exe().unwrap();
        let target = own.ancestors().nth(3).unwrap().to_owned();
        let sources = target.join("mutants");
        if sources.exists() {
            fs::remove_dir_all(&sources).unwrap();
        }
        for part in ["src", "proto", "tests/simulation", "tests/simulated", "build.rs", "Cargo.lock"] {
            copy(&package.join(part), &sources.join(part));
        }
        let manifest = fs::read_to_string(package.join("Cargo.toml")).unwrap();
        fs::write(sources.join("Cargo.toml"), without_programs(&manifest)).unwrap();
        Self { sources, target }
    }

    fn is_seen(&self, mutant: &Mutant) -> bool {
        let (path, text) = (self.sources.join(mutant.file), self.text(mutant));
        fs::write(&path, text.replace(mutant.right, mutant.wrong)).unwrap();
        let output = self.simulate(SEEDS);
        fs::write(&path, text).unwrap();
        let words = words(&output);
        // One that cannot be built is none.
        let is_built = words.contains("running 1 test");
        assert!(is_built, "{} is no mutant:\n{words}", mutant.rule);
        let is_seen = !output.status.success();
        let how = words.lines().find(|line| line.starts_with("seed ")).unwrap_or("nobody saw it");
        println!("{}\n    {}", mutant.rule, how.chars().take(300).collect::<String>());
        is_seen
    }

    fn text(&self, mutant: &Mutant) -> String {
        fs::read_to_string(self.sources.join(mutant.file)).unwrap()
    }

    fn simulate(&self, seeds: &str) -> Output {
        Command::new(env!("CARGO"))
            .args(["test", "--test", "simulation", "seeds"])
            .current_dir(&self.sources)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("VMSNAP_SEEDS", seeds)
            .env("RUST_BACKTRACE", "0")
            .env_remove("VMSNAP_SEED")
            .output()
            .unwrap()
    }
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The manifest of a package that has a library and tests. It has a name of its own: cargo tells packages apart by that, not
/// by where their workspace is, and would take what is built of one for the other.
fn without_programs(manifest: &str) -> String {
    let mut manifest: toml::Table = manifest.parse().unwrap();
    for part in ["bin", "bench"] {
        manifest.remove(part);
    }
    let package = manifest["package"].as_table_mut().unwrap();
    package.insert("autobins".to_owned(), false.into());
    package.insert("name".to_owned(), "vmsnap-mutants".into());
    manifest.to_string()
}

/// With all that is in it, if it is a directory.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}
