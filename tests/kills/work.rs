//! What a guest's worker asks for: it takes snapshots, goes back, deletes, clones; one thing after the other, chosen by its
//! dice; and keeps the truth.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Instant;

use vmsnap::proto::v1;
use vmsnap::proto::v1::create_volume_snapshot_request::Source;

use crate::bed::{Dice, Guest, Progress};
use crate::care::{LOOK, Weather, is};
use crate::line::{Ending, Line, Request};
use crate::person;
use crate::truth::{Content, Copied, DISKS, Held, Truth};

/// With more a look at all of them takes too long.
const MOST_SNAPSHOTS: usize = 5;
const MOST_CLONES: usize = 2;

/// A guest and who works with it.
pub struct Worker {
    pub guest: Guest,
    /// What the guest's writers say that they have brought to the disk.
    pub progress: Progress,
    /// Since then nobody has let the guest go back.
    pub onward_since: Instant,
    pub truth: Truth,
    pub dice: Dice,
    pub socket: PathBuf,
    clones: PathBuf,
    /// By what was asked for and how it ended.
    pub outcomes: BTreeMap<(String, String), u32>,
}

impl Worker {
    pub fn new(guest: Guest, dice: Dice, socket: &Path, clones: &Path) -> Self {
        let (socket, clones) = (socket.to_owned(), clones.to_owned());
        let progress = Progress::listen(&guest);
        let (truth, outcomes) = (Truth::default(), BTreeMap::new());
        Self { guest, progress, onward_since: Instant::now(), truth, dice, socket, clones, outcomes }
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
        match self.dice.roll(13) {
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
            12 => {
                let name = self.dice.pick(&names);
                self.revert_volume(line, &name, weather);
            }
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

    fn create(&mut self, line: &Line, weather: &Weather) {
        let memory = self.dice.roll(5) == 0 || is(&weather.prefers_memory);
        let quiesce = self.dice.pick(&[v1::Quiesce::Required, v1::Quiesce::Auto, v1::Quiesce::Off]);
        let token = memory.then(|| self.token(weather));
        let cancelled_after = self.cancels();
        self.create_so(line, (quiesce, memory), token, cancelled_after, weather);
    }

    /// One request in eight is wanted no more, some looks after it was made.
    fn cancels(&mut self) -> Option<usize> {
        (self.dice.roll(8) == 0).then(|| self.dice.roll(12))
    }

    /// Takes one and enters it if there is one. Gives how it ended.
    pub fn create_so(
        &mut self,
        line: &Line,
        (quiesce, memory): (v1::Quiesce, bool),
        token: Option<String>,
        cancelled_after: Option<usize>,
        weather: &Weather,
    ) -> Ending {
        let name = self.truth.next_name("s");
        let vm = self.guest.name().to_owned();
        let quiesce = if memory { v1::Quiesce::Unspecified } else { quiesce };
        let request = Request::Create { vm, name: name.clone(), quiesce, memory };
        let ending = see_through(line, &request, cancelled_after, weather);
        let what = match (memory, quiesce) {
            (true, _) => "create with memory",
            (false, v1::Quiesce::Required) => "create, quiesce required",
            (false, v1::Quiesce::Off) => "create, quiesce off",
            (false, _) => "create, quiesce auto",
        };
        if let Some(operation) = self.done(what, &ending) {
            let content = self.truth.now.clone();
            let (id, disks, digests) = (operation.snapshot_id.clone(), DISKS.to_vec(), BTreeMap::new());
            let held = Held { id, disks, content, token, memory: None, digests, is_of_volume: false };
            self.truth.snapshots.insert(name, held);
        }
        ending
    }

    fn revert(&mut self, line: &Line, name: &str, weather: &Weather) {
        let held = self.truth.snapshots[name].clone();
        let cancelled_after = self.cancels();
        let ending = see_through(line, &Request::Revert { id: held.id }, cancelled_after, weather);
        self.onward_since = Instant::now();
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

    /// Takes one disk back, and lets the other be.
    fn revert_volume(&mut self, line: &Line, name: &str, weather: &Weather) {
        let held = self.truth.snapshots[name].clone();
        let disk = self.dice.pick(&held.disks);
        let volume = format!("{}/{disk}", self.guest.name());
        let cancelled_after = self.cancels();
        let request = Request::RevertVolume { volume, id: held.id };
        let ending = see_through(line, &request, cancelled_after, weather);
        self.onward_since = Instant::now();
        if self.done("revert of a volume", &ending).is_some() {
            self.truth.now.take_back(disk, &held.content);
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
        let cancelled_after = self.cancels();
        let ending = see_through(line, &Request::Delete { ids }, cancelled_after, weather);
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
            let disks = vec![disk];
            let held =
                Held { content, disks, token: None, memory: None, digests, is_of_volume: true, ..held };
            (Source::SnapshotDisk(from), held, "volume snapshot out of a snapshot")
        } else {
            let disk = self.dice.pick(&DISKS);
            let content = self.truth.now.of_disk(disk);
            let digests = BTreeMap::new();
            let disks = vec![disk];
            let held =
                Held { content, disks, token: None, memory: None, digests, is_of_volume: true, ..held };
            (Source::Volume(format!("{}/{disk}", self.guest.name())), held, "volume snapshot")
        };
        let cancelled_after = self.cancels();
        let request = Request::TakeVolume { name: name.clone(), from };
        let ending = see_through(line, &request, cancelled_after, weather);
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
        let cancelled_after = self.cancels();
        let ending = see_through(line, &request, cancelled_after, weather);
        let what = if mode == v1::CloneMode::Full { "clone, full" } else { "clone, linked" };
        if self.done(what, &ending).is_some() {
            let digest = held.digests.get(disk).cloned();
            let copied = Copied { path, content: held.content.of_disk(disk), digest };
            self.truth.clones.insert(name, copied);
        }
    }

    fn flatten(&mut self, line: &Line, clone: &str, weather: &Weather) {
        let cancelled_after = self.cancels();
        let request = Request::Flatten { volume: clone.to_owned() };
        let ending = see_through(line, &request, cancelled_after, weather);
        self.done("flatten", &ending);
    }

    fn delete_clone(&mut self, line: &Line, clone: &str, weather: &Weather) {
        let cancelled_after = self.cancels();
        let request = Request::DeleteVolume { volume: clone.to_owned() };
        let ending = see_through(line, &request, cancelled_after, weather);
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

    pub fn make_room(&mut self, line: &Line, weather: &Weather) {
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
fn see_through(line: &Line, request: &Request, cancelled_after: Option<usize>, weather: &Weather) -> Ending {
    let mut ending = line.see_through(request, cancelled_after);
    // By the daemon's own merging after what was asked for before.
    while matches!(&ending, Ending::Refused(reason) if reason == "VM_BUSY") {
        sleep(LOOK);
        ending = line.see_through(request, cancelled_after);
    }
    while let Ending::Ended(operation) = &ending {
        if operation.state() != v1::OperationState::Stuck {
            break;
        }
        person::see_to(operation, weather);
        while is(&weather.is_full) {
            sleep(LOOK);
        }
        ending = Ending::Ended(Box::new(line.retry(operation)));
    }
    ending
}
