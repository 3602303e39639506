//! Nothing is lost, whoever is killed: random work on real guests while vmsnapd, libvirtd and QEMU are killed at random and
//! at each journaled step, while file systems are full, and while guest agents stand still.
//!
//! A round: every guest is worked with by a thread of its own; something is done to the node; then the work comes to its
//! end, and everything is looked at, from inside the guests and from outside. `cargo test` has a few rounds;
//! `make kills` goes on for as long as it is told, and prints what it saw.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![allow(clippy::disallowed_methods, reason = "tests run programs and wait: they are the outside")]

#[path = "../bed/mod.rs"]
mod bed;
mod care;
mod faults;
mod figures;
mod line;
mod person;
mod thaw;
mod truth;
mod verify;
mod watch;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tonic_health::pb::health_check_response::ServingStatus;
use vmsnap::proto::v1;

use bed::{Client, Daemon, Dice, Disk, Format, Guest, Node, Setup, Spec, wait_until};
use care::Weather;
use faults::{Fault, Places, Stage};
use figures::{Figures, Hit};
use line::Line;
use work::Worker;

/// What the daemon promises: an operation that was under way goes on and ends within this after a restart, or says what it
/// needs from a person...
const RECOVERED: Duration = Duration::from_secs(30);
/// ...and no guest stays frozen for longer than this.
const THAWED: Duration = Duration::from_secs(5);
/// Only what is broken takes so long.
const SETTLED: Duration = Duration::from_secs(120);

/// How long, with how many, and with which dice.
struct Settings {
    /// None: as few rounds as a test run has time for.
    minutes: Option<u64>,
    guests: usize,
    seed: u64,
}

impl Settings {
    fn from_environment() -> Self {
        let value = |key: &str| std::env::var(key).ok().map(|text| text.parse().expect("it is a number"));
        Self {
            minutes: value("VMSNAP_KILLS_MINUTES"),
            guests: value("VMSNAP_KILLS_GUESTS").map_or(2, |count| usize::try_from(count).unwrap()),
            seed: value("VMSNAP_KILLS_SEED").unwrap_or(2026),
        }
    }
}

#[test]
fn nothing_is_lost_whoever_is_killed() {
    let settings = Settings::from_environment();
    let summary = Node::within(|node| run(node, &settings));
    #[allow(clippy::print_stdout, reason = "it is what `make kills` is for")]
    {
        println!("{summary}");
    }
}

fn run(node: &mut Node, settings: &Settings) -> String {
    let mut field = Field::prepare(node, settings);
    let Some(minutes) = settings.minutes else {
        for fault in faults::SOME {
            field.round(fault, fault.times(false));
        }
        return field.end();
    };
    let long = Duration::from_secs(60 * minutes);
    // In the second half vmsnapd lives on: what it takes has time to grow.
    for (kinds, until) in [(faults::ALL.as_slice(), long / 2), (faults::SPARING, long)] {
        for fault in kinds.iter().copied().cycle() {
            if field.figures.elapsed() >= until {
                break;
            }
            field.round(fault, fault.times(true));
        }
    }
    field.end()
}

/// The node and those who work on it.
struct Field<'a> {
    stage: Stage<'a>,
    workers: Vec<Worker>,
    figures: Figures,
    clones: PathBuf,
    first_images: Vec<Vec<(String, PathBuf)>>,
}

impl<'a> Field<'a> {
    fn prepare(node: &'a mut Node, settings: &Settings) -> Self {
        let mut dice = Dice::new(settings.seed);
        let guests = u64::try_from(settings.guests).unwrap();
        node.limit_images(512 + 384 * guests);
        let memory = node.file_system("memory", 256 + 640 * guests);
        let state = node.file_system("state", 64);
        let clones = node.directory("clones");
        let configuration = format!(
            "memory_directory = '{}'\nimage_directories = ['{}']\nreserve_bytes = {}\n",
            memory.display(),
            clones.display(),
            1 << 20
        );
        let daemon = Daemon::start_with(Setup {
            configuration,
            state_directory: Some(state.clone()),
            ..Setup::default()
        });
        let small = |format| Disk { format, size_mib: 24 };
        let disks = vec![small(Format::Qcow2), small(Format::Raw)];
        let spec = Spec { disks, writers: true, ..Spec::default() };
        // All of them take the turn of one: they are what this test is about.
        let first = Guest::boot(&spec);
        let mut all = vec![first];
        while all.len() < settings.guests {
            let next = all[0].define_beside(&spec);
            next.start();
            all.push(next);
        }
        let vms = all.iter().map(|guest| guest.name().to_owned()).collect();
        let first_images = all.iter().map(Guest::disks).collect();
        let images = all[0].directory().to_owned();
        let socket = daemon.socket();
        let workers =
            all.into_iter().map(|guest| Worker::new(guest, dice.split(), &socket, &clones)).collect();
        let scene = Stage {
            node,
            watch: watch::Watch::follow(state.join("catalog.db"), dice.split()),
            daemon,
            thaws: thaw::ThawWatch::default(),
            vms,
            places: Places { images, memory, state },
            dice: dice.split(),
            life: 1,
            thawed_by_unit: 0,
        };
        Self {
            stage: scene,
            workers,
            figures: Figures::new(settings.seed, settings.guests),
            clones,
            first_images,
        }
    }

    fn round(&mut self, fault: Fault, times: usize) {
        let begun = Instant::now();
        let weather = fault.weather();
        let (stage, workers) = (&mut self.stage, &mut self.workers);
        let hits = thread::scope(|scope| {
            let _end_of_work = EndOfWork(&weather.is_over);
            for worker in workers.iter_mut() {
                let weather = &weather;
                scope.spawn(move || match fault {
                    Fault::GuestAgent => worker.work_without_agent(weather),
                    _ => worker.work(weather),
                });
            }
            stage.inject(fault, times, &weather)
        });
        let worked = begun.elapsed();
        self.settle(&weather, &hits);
        self.verify();
        *self.figures.rounds.entry(fault.name()).or_default() += 1;
        self.figures.thawed_by_unit = self.stage.thawed_by_unit;
        let process = self.stage.daemon.process_id().expect("the daemon runs");
        self.figures.sample(self.stage.life, process);
        #[allow(clippy::print_stdout, reason = "who waits for an hour wants to see that it goes on")]
        {
            println!(
                "{:5.1} min  {}: {} hits in {:.0} s, looked at in {:.0} s",
                self.figures.elapsed().as_secs_f64() / 60.0,
                fault.name(),
                hits.len(),
                worked.as_secs_f64(),
                begun.elapsed().saturating_sub(worked).as_secs_f64()
            );
        }
    }

    /// Waits until the daemon is at rest, and has found nothing wrong.
    fn settle(&mut self, weather: &Weather, hits: &[Hit]) {
        let daemon = &mut self.stage.daemon;
        daemon.wait_until_it_serves();
        daemon.wait_for_health("libvirt", ServingStatus::Serving);
        let (client, line) = (daemon.client(), Line::to(&daemon.socket()));
        wait_until("all operations have ended", SETTLED, || {
            let open = client.json(&["op", "list", "--open"]);
            let open = open["operations"].as_array().unwrap();
            for stuck in open.iter().filter(|open| open["state"] == "OPERATION_STATE_STUCK") {
                let stuck = line.operation(stuck["id"].as_str().unwrap()).unwrap();
                person::see_to(&stuck, weather);
                line.retry(&stuck);
            }
            open.is_empty()
        });
        for worker in &self.workers {
            worker.attend(weather);
        }
        let struck: BTreeSet<&String> = hits.iter().flat_map(|hit| &hit.open).map(|open| &open.id).collect();
        let ended: BTreeMap<String, v1::Operation> = struck
            .into_iter()
            .map(|id| (id.clone(), line.operation(id).expect("the daemon answers")))
            .collect();
        let needed = weather.needed_a_person.lock().unwrap().clone();
        let recovery = self.figures.add(hits, &ended, &needed);
        assert!(
            recovery <= RECOVERED,
            "an operation took {recovery:?} after what was hit was back: {ended:#?}"
        );
        let frozen = self.stage.thaws.take();
        let late = frozen.iter().find(|frozen| frozen.lasted > THAWED);
        assert!(late.is_none(), "after a restart of vmsnapd a guest stayed frozen: {late:?}");
        self.figures.add_frozen(frozen);
        assert_agrees(&client);
        assert!(!self.stage.daemon.log().contains("panicked"), "vmsnapd has panicked");
    }

    fn verify(&mut self) {
        let client = self.stage.daemon.client();
        let needed: Vec<BTreeSet<PathBuf>> = thread::scope(|scope| {
            let looks: Vec<_> = self
                .workers
                .iter_mut()
                .map(|worker| {
                    let client = &client;
                    scope.spawn(move || verify::verify(worker, client))
                })
                .collect();
            looks.into_iter().map(|look| look.join().expect("what was found is told above")).collect()
        });
        let needed: BTreeSet<PathBuf> = needed.into_iter().flatten().collect();
        let held = self.workers.iter().flat_map(|worker| worker.truth.snapshots.values());
        let memories = held.filter(|held| held.token.is_some()).count();
        for worker in &mut self.workers {
            verify::verify_memories(worker, &self.stage.places.memory);
        }
        let truths = self.workers.iter().map(|worker| &worker.truth);
        let manifests = truths.map(|truth| truth.snapshots.len() + truth.clones.len()).sum();
        let memory = (self.stage.places.memory.as_path(), memories);
        verify::assert_no_orphans(&self.directories(), &needed, manifests, memory);
        self.figures.images_read += self.workers.iter().map(Worker::images).sum::<usize>();
    }

    fn directories(&self) -> Vec<PathBuf> {
        let guests = self.workers.iter().map(|worker| worker.guest.directory().to_owned());
        guests.chain([self.clones.clone()]).collect()
    }

    /// With the last snapshot and clone every file goes but the first images. Gives the summary.
    fn end(mut self) -> String {
        for worker in &mut self.workers {
            worker.clear();
        }
        let client = self.stage.daemon.client();
        assert_agrees(&client);
        for (worker, first) in self.workers.iter().zip(&self.first_images) {
            let vm = worker.guest.name();
            wait_until(&format!("{vm} is back on its first images"), SETTLED, || {
                worker.guest.disks() == *first
            });
            wait_until(&format!("{vm}: nothing waits to be merged"), SETTLED, || {
                client.json(&["vm", "show", vm])["vm"]["merge_debt"]["layers"].as_u64() == Some(0)
            });
        }
        self.verify();
        let left: Vec<PathBuf> =
            self.directories().iter().flat_map(|directory| verify::ours(directory)).collect();
        assert!(left.is_empty(), "nothing needs these: {left:?}");
        self.figures.assert_flat();
        self.figures.summary(&self.outcomes(), true)
    }

    /// By what was asked for and how it ended.
    fn outcomes(&self) -> BTreeMap<(String, String), u32> {
        let mut outcomes = BTreeMap::new();
        for (key, count) in self.workers.iter().flat_map(|worker| worker.outcomes.clone()) {
            *outcomes.entry(key).or_default() += count;
        }
        outcomes
    }
}

impl Drop for Field<'_> {
    /// What a failure is understood by goes with the node otherwise.
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kills");
        let state = &self.stage.places.state;
        let files = [
            self.stage.daemon.directory().join("vmsnapd.log"),
            state.join("catalog.db"),
            state.join("catalog.db-wal"),
            PathBuf::from("/var/log/libvirt/libvirtd.log"),
        ];
        let _ = std::fs::create_dir_all(&kept);
        for file in &files {
            let _ = std::fs::copy(file, kept.join(file.file_name().unwrap_or_default()));
        }
        let summary = self.figures.summary(&self.outcomes(), false);
        #[allow(clippy::print_stderr, reason = "it is what is left of a run that failed")]
        {
            eprintln!("until then:\n{summary}\nlogs and the catalog are kept in {}", kept.display());
        }
    }
}

/// The daemon's own check of the node finds nothing.
fn assert_agrees(client: &Client) {
    let begun = Instant::now();
    loop {
        let reply = client.run(&["--output", "json", "node", "check"]);
        let found: Value = serde_json::from_str(&reply.stdout).unwrap_or_default();
        if reply.code == 0 {
            return;
        }
        // What an operation of the daemon's own holds is left out: it is asked again.
        assert!(begun.elapsed() < SETTLED, "node check: {}: {found:#} {}", reply.code, reply.stderr);
        thread::sleep(Duration::from_millis(200));
    }
}

/// Whatever happens, those who work come to an end.
struct EndOfWork<'a>(&'a AtomicBool);

impl Drop for EndOfWork<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
