//! What is done to a guest and in it: files are written, scripts run, and a VM that was hit is brought up again, as its
//! operator would.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use vmsnap::proto::v1;

use crate::bed::virsh;
use crate::line::{Ending, Line};
use crate::truth::{self, DISKS, FILES};
use crate::work::Worker;

/// A guest boots in about three seconds; this is for a machine that is busy with other things.
const UP: Duration = Duration::from_secs(180);
pub const LOOK: Duration = Duration::from_millis(100);
/// How long the guest's agent stands still in a round of that.
const STANDSTILL: Duration = Duration::from_secs(45);
/// By the guest's clock it may go on that much earlier.
const CLOCKS: Duration = Duration::from_secs(2);

/// Whose turn it is to ask for what.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// What is done to the node meanwhile, as far as it concerns who works with a guest.
#[derive(Debug, Default)]
pub struct Weather {
    /// No new work.
    pub is_over: AtomicBool,
    /// VMs lose their processes: whoever finds one off starts it.
    pub vms_die: AtomicBool,
    /// There is no room: VMs that stop at a write have to wait.
    pub is_full: AtomicBool,
    /// libvirt may forget what QEMU has done. It believes something wrong of the VM then, until that is ended.
    pub forgets: AtomicBool,
    /// Operations may get stuck for it: whoever finds one lets it try again once there is room.
    pub may_stick: AtomicBool,
    /// Takes of memory are wanted.
    pub prefers_memory: AtomicBool,
    /// The operations that had to be decided by a person, and since when they said so.
    pub needed_a_person: Mutex<BTreeMap<String, SystemTime>>,
}

impl Weather {
    /// An operation is stuck, and has said what it needs.
    pub fn needs_a_person(&self, stuck: &v1::Operation) {
        let since = stuck.update_time.and_then(|time| time.try_into().ok());
        let since = since.unwrap_or_else(SystemTime::now);
        let mut needed = self.needed_a_person.lock().unwrap();
        // Whoever lets it try again too early is told once more.
        needed.entry(stuck.id.clone()).or_insert(since);
    }
}

pub fn is(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}

impl Worker {
    /// Writes other versions of some files and brings them to the disk.
    pub fn write(&mut self, weather: &Weather) {
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
        // Also what was written in an operation that was struck is there.
        for disk in DISKS {
            if let Some(told) = self.progress.last_since(disk, self.onward_since) {
                let known = self.truth.now.written.entry(disk).or_default();
                *known = told.max(*known);
            }
        }
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

    pub fn token(&self, weather: &Weather) -> String {
        let answer = self.in_guest("counter", weather);
        answer.split(' ').next().expect("the counter answers TOKEN NUMBER").to_owned()
    }

    /// Takes a snapshot while the guest's agent stands still: where it is needed nothing may come about, else the snapshot
    /// says what it is. One worker asks for the one, the next for the other.
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
        let asks_for_it = TURN.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        let quiesce = if asks_for_it { v1::Quiesce::Required } else { v1::Quiesce::Auto };
        let ending = self.create_so(&line, (quiesce, false), None, None, weather);
        assert!(begun.elapsed() + CLOCKS < STANDSTILL, "{}: its agent may have gone on", self.guest.name());
        let outcome = ending.to_string();
        *self.outcomes.entry((format!("{quiesce:?} without its agent"), outcome.clone())).or_default() += 1;
        match ending {
            Ending::Ended(operation) => {
                let has_come_about = operation.state() == v1::OperationState::Succeeded;
                assert_ne!(has_come_about, asks_for_it, "{operation:#?}");
                let consistency = operation.findings.map(|findings| findings.consistency());
                assert!(!has_come_about || consistency == Some(v1::Consistency::Crash), "{consistency:?}");
            }
            Ending::Refused(_) => assert!(asks_for_it, "{outcome}"),
        }
        self.attend(weather);
    }
}
