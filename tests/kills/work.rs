//! What a guest's worker does: it writes files, takes snapshots, goes back, deletes, clones; one thing after the other,
//! chosen by its dice; and keeps the truth.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use vmsnap::proto::v1;
use vmsnap::proto::v1::create_volume_snapshot_request::Source;

use crate::bed::{Dice, Guest, virsh};
use crate::line::{Ending, Line, Request};
use crate::truth::{self, Content, Copied, DISKS, FILES, Held, Truth};

/// With more a look at all of them takes too long.
const MOST_SNAPSHOTS: usize = 5;
const MOST_CLONES: usize = 2;
/// A guest boots in about three seconds; this is for a machine that is busy with other things.
const UP: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(100);
/// How long the guest's agent stands still in a round of that.
const STANDSTILL: Duration = Duration::from_secs(25);

/// What is done to the node meanwhile, as far as it concerns who works with a guest.
#[derive(Debug, Default)]
pub struct Weather {
    /// No new work.
    pub is_over: AtomicBool,
    /// VMs lose their processes: whoever finds one off starts it.
    pub vms_die: AtomicBool,
    /// There is no room: VMs that stop at a write have to wait.
    pub is_full: AtomicBool,
    /// Operations may get stuck for it: whoever finds one lets it try again once there is room.
    pub may_stick: AtomicBool,
    /// Takes of memory are wanted.
    pub prefers_memory: AtomicBool,
}

fn is(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}

/// A guest and who works with it.
pub struct Worker {
    pub guest: Guest,
    pub truth: Truth,
    dice: Dice,
    socket: PathBuf,
    clones: PathBuf,
    /// By what was asked for and how it ended.
    pub outcomes: BTreeMap<(String, String), u32>,
}

impl Worker {
    pub fn new(guest: Guest, dice: Dice, socket: &Path, clones: &Path) -> Self {
        let (socket, clones) = (socket.to_owned(), clones.to_owned());
        Self { guest, truth: Truth::default(), dice, socket, clones, outcomes: BTreeMap::new() }
    }

    /// Works until it is over.
    pub fn work(&mut self, weather: &Weather) {
        let line = Line::to(&self.socket);
        while !is(&weather.is_over) {
            self.turn(&line, weather);
        }
        self.attend(weather);
    }

    /// Gives up all snapshots and clones.
    pub fn clear(&mut self) {
        let (line, weather) = (Line::to(&self.socket), Weather::default());
        while let Some(name) = self.truth.clones.keys().next().cloned() {
            self.delete_clone(&line, &name, &weather);
        }
        while !self.truth.snapshots.is_empty() {
            let all: Vec<String> = self.truth.snapshots.keys().cloned().collect();
            self.delete(&line, &all, &weather);
        }
        self.attend(&weather);
    }

    fn turn(&mut self, line: &Line, weather: &Weather) {
        self.write(weather);
        let back: Vec<String> = self
            .truth
            .snapshots
            .iter()
            .filter(|(_, held)| !held.is_of_volume)
            .map(|(n, _)| n.clone())
            .collect();
        let names: Vec<String> = self.truth.snapshots.keys().cloned().collect();
        let clones: Vec<String> = self.truth.clones.keys().cloned().collect();
        let wants_memory = is(&weather.prefers_memory) && self.dice.roll(2) == 0;
        match self.dice.roll(12) {
            _ if names.is_empty() || wants_memory && names.len() < MOST_SNAPSHOTS => {
                self.create(line, weather);
            }
            _ if names.len() >= MOST_SNAPSHOTS => self.delete_some(line, &names, weather),
            0..=3 => self.create(line, weather),
            4 | 5 if !back.is_empty() => {
                let name = self.dice.pick(&back);
                self.revert(line, &name, weather);
            }
            6 | 7 => self.delete_some(line, &names, weather),
            8 => self.take_volume(line, &names, weather),
            9 | 10 if clones.len() < MOST_CLONES => {
                let name = self.dice.pick(&names);
                self.clone_disk(line, &name, weather);
            }
            _ if clones.is_empty() => self.create(line, weather),
            10 => self.flatten(line, &clones[0], weather),
            _ => {
                let name = self.dice.pick(&clones);
                self.delete_clone(line, &name, weather);
            }
        }
    }

    /// Writes other versions of some files and brings them to the disk.
    fn write(&mut self, weather: &Weather) {
        let mut script = String::from("set -e\n");
        let mut written = BTreeMap::new();
        for disk in DISKS {
            let file = self.dice.roll(FILES);
            self.truth.versions += 1;
            script += &truth::script(self.guest.name(), disk, file, self.truth.versions);
            script += "\n";
            written.insert((disk, file), self.truth.versions);
        }
        script += "sync\nwriter check vda\nwriter check vdb\n";
        // It may be carried out twice, and is then the same.
        let answer = self.in_guest(&script, weather);
        self.truth.now.files.extend(written);
        for line in answer.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let disk = DISKS.into_iter().find(|disk| *disk == words[0]).expect("a writer names its disk");
            assert_eq!(words[6], "0", "{}: what was written is lost: {answer}", self.guest.name());
            let number: u64 = words[2].parse().expect("a number");
            let before = self.truth.now.written.insert(disk, number).unwrap_or(0);
            assert!(
                number >= before,
                "{}/{disk}: {before} had been written, {number} is there",
                self.guest.name()
            );
        }
    }

    fn create(&mut self, line: &Line, weather: &Weather) {
        let memory = self.dice.roll(5) == 0 || is(&weather.prefers_memory);
        let quiesce = self.dice.pick(&[v1::Quiesce::Required, v1::Quiesce::Auto, v1::Quiesce::Off]);
        let token = memory.then(|| self.token(weather));
        self.create_so(line, quiesce, memory, token, weather);
    }

    /// Takes one and enters it if there is one. Gives how it ended.
    fn create_so(
        &mut self,
        line: &Line,
        quiesce: v1::Quiesce,
        memory: bool,
        token: Option<String>,
        weather: &Weather,
    ) -> Ending {
        let name = self.truth.next_name("s");
        let vm = self.guest.name().to_owned();
        let quiesce = if memory { v1::Quiesce::Unspecified } else { quiesce };
        let ending = see_through(line, &Request::Create { vm, name: name.clone(), quiesce, memory }, weather);
        let what = match (memory, quiesce) {
            (true, _) => "create with memory",
            (false, v1::Quiesce::Required) => "create, quiesce required",
            (false, v1::Quiesce::Off) => "create, quiesce off",
            (false, _) => "create, quiesce auto",
        };
        if let Some(operation) = self.done(what, &ending) {
            let content = self.truth.now.clone();
            let (id, disks, digests) = (operation.snapshot_id.clone(), DISKS.to_vec(), BTreeMap::new());
            let held = Held { id, disks, content, token, digests, is_of_volume: false };
            self.truth.snapshots.insert(name, held);
        }
        ending
    }

    fn revert(&mut self, line: &Line, name: &str, weather: &Weather) {
        let held = self.truth.snapshots[name].clone();
        let ending = see_through(line, &Request::Revert { id: held.id }, weather);
        let what = if held.token.is_some() { "revert with memory" } else { "revert" };
        if self.done(what, &ending).is_none() {
            return;
        }
        self.truth.now = held.content;
        if let Some(token) = held.token {
            // A VM that was killed since has been booted, and has another one.
            let may_differ = is(&weather.vms_die);
            let now = self.token(weather);
            assert!(now == token || may_differ, "{name}: it is not the memory of then: {now}, not {token}");
        }
    }

    fn delete_some(&mut self, line: &Line, names: &[String], weather: &Weather) {
        let mut doomed = vec![self.dice.pick(names)];
        if self.dice.roll(3) == 0 {
            doomed.push(self.dice.pick(names));
            doomed.sort();
            doomed.dedup();
        }
        self.delete(line, &doomed, weather);
    }

    fn delete(&mut self, line: &Line, doomed: &[String], weather: &Weather) {
        let ids = doomed.iter().map(|name| self.truth.snapshots[name].id.clone()).collect();
        let ending = see_through(line, &Request::Delete { ids }, weather);
        let what = if doomed.len() == 1 { "delete" } else { "delete several" };
        if self.done(what, &ending).is_some() {
            self.truth.snapshots.retain(|name, _| !doomed.contains(name));
        }
    }

    /// A snapshot of one disk: as it is now, or out of a snapshot.
    fn take_volume(&mut self, line: &Line, names: &[String], weather: &Weather) {
        let name = self.truth.next_name("v");
        let held = self.truth.snapshots[&self.dice.pick(names)].clone();
        let (from, held, what) = if self.dice.roll(2) == 0 {
            let disk = self.dice.pick(&held.disks);
            let from = v1::SnapshotDiskReference {
                snapshot: held.id.clone(),
                disk: disk.to_owned(),
                ..Default::default()
            };
            let digests = held.digests.get_key_value(disk).map(|(disk, digest)| (*disk, digest.clone()));
            let (content, digests) = (held.content.of_disk(disk), digests.into_iter().collect());
            let held = Held { content, disks: vec![disk], token: None, digests, is_of_volume: true, ..held };
            (Source::SnapshotDisk(from), held, "volume snapshot out of a snapshot")
        } else {
            let disk = self.dice.pick(&DISKS);
            let content = self.truth.now.of_disk(disk);
            let digests = BTreeMap::new();
            let held = Held { content, disks: vec![disk], token: None, digests, is_of_volume: true, ..held };
            (Source::Volume(format!("{}/{disk}", self.guest.name())), held, "volume snapshot")
        };
        let ending = see_through(line, &Request::TakeVolume { name: name.clone(), from }, weather);
        if let Some(operation) = self.done(what, &ending) {
            let id = operation.snapshot_id.clone();
            self.truth.snapshots.insert(name, Held { id, ..held });
        }
    }

    fn clone_disk(&mut self, line: &Line, snapshot: &str, weather: &Weather) {
        let held = self.truth.snapshots[snapshot].clone();
        let disk = self.dice.pick(&held.disks);
        let mode = self.dice.pick(&[v1::CloneMode::Linked, v1::CloneMode::Linked, v1::CloneMode::Full]);
        let name = format!("{}-{}", self.guest.name(), self.truth.next_name("c"));
        let path = self.clones.join(format!("{name}.qcow2"));
        let request = Request::Clone {
            id: held.id.clone(),
            disk: disk.to_owned(),
            path: path.display().to_string(),
            name: name.clone(),
            mode,
        };
        let ending = see_through(line, &request, weather);
        let what = if mode == v1::CloneMode::Full { "clone, full" } else { "clone, linked" };
        if self.done(what, &ending).is_some() {
            let digest = held.digests.get(disk).cloned();
            let copied = Copied { path, content: held.content.of_disk(disk), digest };
            self.truth.clones.insert(name, copied);
        }
    }

    fn flatten(&mut self, line: &Line, clone: &str, weather: &Weather) {
        let ending = see_through(line, &Request::Flatten { volume: clone.to_owned() }, weather);
        self.done("flatten", &ending);
    }

    fn delete_clone(&mut self, line: &Line, clone: &str, weather: &Weather) {
        let ending = see_through(line, &Request::DeleteVolume { volume: clone.to_owned() }, weather);
        if self.done("delete a clone", &ending).is_some() {
            self.truth.clones.remove(clone);
        }
    }

    /// Notes how something ended. Gives the operation if it has come about.
    fn done<'a>(&mut self, what: &str, ending: &'a Ending) -> Option<&'a v1::Operation> {
        *self.outcomes.entry((what.to_owned(), ending.to_string())).or_default() += 1;
        match ending {
            Ending::Ended(operation) if operation.state() == v1::OperationState::Succeeded => Some(operation),
            Ending::Ended(_) | Ending::Refused(_) => None,
        }
    }

    fn token(&self, weather: &Weather) -> String {
        let answer = self.in_guest("counter", weather);
        answer.split(' ').next().expect("the counter answers TOKEN NUMBER").to_owned()
    }

    /// Runs a script in the guest until it has run to its end there. It may be begun several times.
    pub fn in_guest(&self, script: &str, weather: &Weather) -> String {
        let begun = Instant::now();
        loop {
            self.attend(weather);
            let failure = match self.guest.attempt(script, &[]) {
                Ok(ended) if ended.code == Some(0) => {
                    return String::from_utf8_lossy(&ended.stdout).trim_end().to_owned();
                }
                Ok(ended) => format!("{ended:?}"),
                Err(error) => error,
            };
            assert!(begun.elapsed() < UP, "{}: {script}: {failure}", self.guest.name());
            sleep(LOOK);
        }
    }

    /// Sees to it that the guest is up, as its operator would.
    pub fn attend(&self, weather: &Weather) {
        let name = self.guest.name();
        let begun = Instant::now();
        while !self.guest.agent_answers() {
            // libvirt may be away: then nothing can be said.
            let state = virsh::try_run(&["domstate", name, "--reason"]).unwrap_or_default();
            if state.starts_with("shut off") {
                assert!(is(&weather.vms_die), "{name} is off, and nobody has ended it: {state}");
                // What a merge has open cannot be started yet.
                let _ = virsh::try_run(&["start", name]);
            }
            if state.contains("I/O error") && !is(&weather.is_full) {
                let _ = virsh::try_run(&["resume", name]);
            }
            assert!(begun.elapsed() < UP, "{name} does not come up: {state}:\n{}", self.guest.console());
            sleep(LOOK);
        }
    }

    /// Takes snapshots while the guest's agent stands still: where it is needed nothing may come about, else the snapshot
    /// says what it is.
    pub fn work_without_agent(&mut self, weather: &Weather) {
        let line = Line::to(&self.socket);
        self.write(weather);
        self.make_room(&line, weather);
        let script = format!(
            "(sleep 0.2; pid=$(pidof qemu-ga); kill -STOP $pid; sleep {}; kill -CONT $pid) </dev/null >/dev/null 2>&1 &",
            STANDSTILL.as_secs()
        );
        self.in_guest(&script, weather);
        let begun = Instant::now();
        while self.guest.agent_answers() {
            assert!(begun.elapsed() < STANDSTILL, "{}: the agent answers all the time", self.guest.name());
        }
        for (quiesce, may_come_about) in [(v1::Quiesce::Required, false), (v1::Quiesce::Auto, true)] {
            let ending = self.create_so(&line, quiesce, false, None, weather);
            // By the guest's clock it may have gone on since.
            if begun.elapsed() + Duration::from_secs(2) > STANDSTILL {
                continue;
            }
            let outcome = ending.to_string();
            *self.outcomes.entry((format!("{quiesce:?} without its agent"), outcome.clone())).or_default() +=
                1;
            let Ending::Ended(operation) = ending else {
                assert!(!may_come_about, "{outcome}");
                continue;
            };
            let has_come_about = operation.state() == v1::OperationState::Succeeded;
            assert_eq!(has_come_about, may_come_about, "{operation:#?}");
            let consistency = operation.findings.map(|findings| findings.consistency());
            assert!(!has_come_about || consistency == Some(v1::Consistency::Crash), "{consistency:?}");
        }
        self.attend(weather);
    }

    fn make_room(&mut self, line: &Line, weather: &Weather) {
        let names: Vec<String> = self.truth.snapshots.keys().cloned().collect();
        if names.len() >= MOST_SNAPSHOTS {
            self.delete_some(line, &names, weather);
        }
    }

    /// How many images are read in a look at all of it.
    pub fn images(&self) -> usize {
        self.truth.snapshots.values().map(|held| held.disks.len()).sum::<usize>() + self.truth.clones.len()
    }

    /// What the guest's disks must hold.
    pub fn content(&self) -> &Content {
        &self.truth.now
    }
}

/// Asks and waits for the end. Where operations may get stuck, this is the person that they need.
fn see_through(line: &Line, request: &Request, weather: &Weather) -> Ending {
    let mut ending = line.see_through(request);
    while let Ending::Ended(operation) = &ending {
        if operation.state() != v1::OperationState::Stuck {
            break;
        }
        assert!(is(&weather.may_stick), "it is stuck: {operation:#?}");
        while is(&weather.is_full) {
            sleep(LOOK);
        }
        ending = Ending::Ended(Box::new(line.retry(operation)));
    }
    ending
}
