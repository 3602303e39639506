//! What is done to the node while its guests are worked with.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use crate::bed::{Daemon, Dice, Filler, Node, end};
use crate::care::Weather;
use crate::figures::Hit;
use crate::thaw::{self, ThawWatch};
use crate::watch::{Open, Victim, Watch};

/// What a step of a create is called.
const SWITCH: &str = "switch disks";
/// Without anything at a step for so long, the round is over.
const STEP: Duration = Duration::from_secs(10);
/// How long a file system stays full, and how long a round without faults works.
const HOLD: Duration = Duration::from_secs(4);

/// A kind of round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done.
    None,
    /// vmsnapd is killed, again and again, also while it starts.
    Daemon,
    DaemonAtStep,
    Libvirtd,
    LibvirtdAtStep,
    Qemu,
    QemuAtStep,
    /// libvirtd in a switch, and QEMU before anybody sees whether it has switched.
    LibvirtdThenQemu,
    /// vmsnapd and libvirtd at once.
    Both,
    /// All that runs, and what libvirt keeps of it while the node is up: it boots again.
    Machine,
    ImagesFull,
    MemoryFull,
    StateFull,
    /// The guests' agents stand still.
    GuestAgent,
}

/// Every kind of round once. Those that leave vmsnapd alone stand together: its life is to be a long one.
pub const ALL: [Fault; 14] = [
    Fault::Daemon,
    Fault::DaemonAtStep,
    Fault::Both,
    Fault::Machine,
    Fault::None,
    Fault::LibvirtdAtStep,
    Fault::LibvirtdThenQemu,
    Fault::QemuAtStep,
    Fault::ImagesFull,
    Fault::Libvirtd,
    Fault::MemoryFull,
    Fault::Qemu,
    Fault::StateFull,
    Fault::GuestAgent,
];

/// Those that leave vmsnapd alone.
pub const SPARING: &[Fault] = ALL.split_at(4).1;

/// What a test run has time for.
pub const SOME: [Fault; 4] =
    [Fault::DaemonAtStep, Fault::LibvirtdThenQemu, Fault::ImagesFull, Fault::GuestAgent];

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no fault",
            Self::Daemon => "vmsnapd killed at random",
            Self::DaemonAtStep => "vmsnapd killed at a step",
            Self::Libvirtd => "libvirtd killed at random",
            Self::LibvirtdAtStep => "libvirtd killed at a step",
            Self::LibvirtdThenQemu => "libvirtd killed in a switch, then QEMU",
            Self::Qemu => "QEMU killed at random",
            Self::QemuAtStep => "QEMU killed at a step",
            Self::Both => "vmsnapd and libvirtd killed",
            Self::Machine => "vmsnapd, libvirtd and all of QEMU killed",
            Self::ImagesFull => "no room for images",
            Self::MemoryFull => "no room for memory",
            Self::StateFull => "no room for state",
            Self::GuestAgent => "guest agents stand still",
        }
    }

    /// How often it is done in a round of a long run, and of a short one: the more it takes the less.
    pub fn times(self, is_long: bool) -> usize {
        let (long, short) = match self {
            Self::None | Self::GuestAgent => (0, 0),
            Self::Daemon | Self::DaemonAtStep => (12, 3),
            Self::LibvirtdAtStep | Self::LibvirtdThenQemu | Self::QemuAtStep => (8, 2),
            Self::Libvirtd | Self::Qemu | Self::Both | Self::Machine => (5, 2),
            Self::ImagesFull | Self::MemoryFull | Self::StateFull => (3, 1),
        };
        if is_long { long } else { short }
    }

    /// What it means for those who work with the guests.
    pub fn weather(self) -> Weather {
        let weather = Weather::default();
        let is_full = matches!(self, Self::ImagesFull | Self::MemoryFull | Self::StateFull);
        let kills_qemu =
            matches!(self, Self::Qemu | Self::QemuAtStep | Self::LibvirtdThenQemu | Self::Machine);
        weather.vms_die.store(kills_qemu, Ordering::SeqCst);
        // A node that boots again has no VM that runs, and so none that libvirt could know wrongly.
        let forgets =
            matches!(self, Self::Libvirtd | Self::LibvirtdAtStep | Self::LibvirtdThenQemu | Self::Both);
        weather.forgets.store(forgets, Ordering::SeqCst);
        weather.may_stick.store(is_full, Ordering::SeqCst);
        weather.prefers_memory.store(self == Self::MemoryFull, Ordering::SeqCst);
        weather
    }
}

/// File systems of their own.
pub struct Places {
    pub images: PathBuf,
    pub memory: PathBuf,
    pub state: PathBuf,
}

/// The node, the daemon on it, and who looks at them.
pub struct Stage<'a> {
    pub node: &'a mut Node,
    pub daemon: Daemon,
    pub watch: Watch,
    pub thaws: ThawWatch,
    pub vms: Vec<String>,
    pub places: Places,
    pub dice: Dice,
    /// Counts the daemon's lives.
    pub life: u32,
    /// Counts guests that `vmsnapd thaw` has thawed.
    pub thawed_by_unit: u32,
}

impl Stage<'_> {
    /// Does it, so many times. When it returns, whatever was hit has been started again.
    pub fn inject(&mut self, fault: Fault, times: usize, weather: &Weather) -> Vec<Hit> {
        if matches!(fault, Fault::None | Fault::GuestAgent) {
            if fault == Fault::None {
                sleep(HOLD);
            }
            return Vec::new();
        }
        let mut hits = Vec::new();
        for _ in 0..times {
            if let Some(open) = self.strike(fault, weather) {
                hits.push(Hit { fault: fault.name(), open, over: SystemTime::now() });
            }
        }
        hits
    }

    /// Hits once and lets what was hit come back. Gives what was under way; None if there was nothing to hit.
    fn strike(&mut self, fault: Fault, weather: &Weather) -> Option<Vec<Open>> {
        match fault {
            Fault::None | Fault::GuestAgent => None,
            Fault::Daemon => {
                self.pause(100, 900);
                let open = self.kill_daemon();
                self.thaw_as_the_unit_does();
                self.pause(0, 300);
                self.start_daemon();
                Some(open)
            }
            Fault::DaemonAtStep => {
                let process = self.daemon.process_id().expect("the daemon was started");
                self.watch.aim(fault.name(), Victim::Process(process));
                let open = self.watch.struck(STEP)?;
                self.thaws.leave();
                self.daemon.wait();
                self.thaw_as_the_unit_does();
                self.pause(0, 300);
                self.start_daemon();
                Some(open)
            }
            Fault::Libvirtd => {
                self.pause(100, 3000);
                let open = self.watch.open();
                self.node.kill_libvirtd();
                self.pause(0, 2000);
                self.node.start_libvirtd();
                Some(open)
            }
            Fault::LibvirtdAtStep => {
                let process = self.node.libvirtd().expect("it runs");
                self.watch.aim(fault.name(), Victim::Process(process));
                let open = self.watch.struck(STEP)?;
                self.node.wait_for_libvirtd();
                self.pause(0, 2000);
                self.node.start_libvirtd();
                Some(open)
            }
            Fault::LibvirtdThenQemu => {
                self.watch.aim_at(SWITCH, fault.name(), Victim::Nobody);
                let open = self.watch.struck(STEP)?;
                // QEMU switches meanwhile, or does not.
                self.pause(0, 200);
                self.node.kill_libvirtd();
                // The guest writes to what it was switched to.
                self.pause(0, 1500);
                for switched in open.iter().filter(|open| open.phase.step == SWITCH) {
                    Node::qemu(&switched.vm).into_iter().for_each(end);
                }
                self.pause(0, 1000);
                self.node.start_libvirtd();
                Some(open)
            }
            Fault::Qemu => {
                self.pause(100, 3000);
                let vm = self.dice.pick(&self.vms);
                let process = Node::qemu(&vm)?;
                let open = self.watch.open();
                end(process);
                Some(open.into_iter().filter(|open| open.vm == vm).collect())
            }
            Fault::QemuAtStep => {
                self.watch.aim(fault.name(), Victim::Qemu);
                self.watch.struck(STEP)
            }
            Fault::Both | Fault::Machine => {
                self.pause(100, 2000);
                let open = self.kill_daemon();
                self.node.kill_libvirtd();
                if fault == Fault::Machine {
                    Node::end_all(&self.vms);
                }
                // Who starts a VM before the daemon has looked may start it on what libvirt had not noted.
                if fault == Fault::Both && self.dice.roll(2) == 0 {
                    self.node.start_libvirtd();
                    self.start_daemon();
                } else {
                    self.start_daemon();
                    self.pause(0, 2000);
                    self.node.start_libvirtd();
                }
                Some(open)
            }
            Fault::ImagesFull | Fault::MemoryFull | Fault::StateFull => {
                let place = match fault {
                    Fault::ImagesFull => &self.places.images,
                    Fault::MemoryFull => &self.places.memory,
                    _ => &self.places.state,
                };
                self.watch.aim(fault.name(), Victim::Nobody);
                let open = self.watch.struck(STEP)?;
                weather.is_full.store(true, Ordering::SeqCst);
                let filler = Filler::fill(place);
                sleep(HOLD);
                drop(filler);
                weather.is_full.store(false, Ordering::SeqCst);
                Some(open)
            }
        }
    }

    /// The daemon is started before the one before it is missed.
    fn start_daemon(&mut self) {
        self.daemon.spawn();
        self.life += 1;
        self.thaws.look(&self.vms);
    }

    /// Half the time the unit's `ExecStopPost=` comes before the next start, as it always does under systemd.
    fn thaw_as_the_unit_does(&mut self) {
        if self.dice.roll(2) == 0 {
            return;
        }
        let frozen = thaw::frozen(&self.vms);
        let status = self.daemon.run_verb("thaw");
        if status.success() {
            let left = thaw::frozen(&self.vms);
            assert!(left.is_empty(), "vmsnapd thaw says that all is well, and these are frozen: {left:?}");
            self.thawed_by_unit += u32::try_from(frozen.len()).expect("guests are few");
        }
    }

    fn kill_daemon(&mut self) -> Vec<Open> {
        assert!(self.daemon.is_running(), "vmsnapd has ended by itself");
        self.thaws.leave();
        self.daemon.kill();
        self.watch.open()
    }

    /// Some time between these, in milliseconds.
    fn pause(&mut self, least: usize, most: usize) {
        let milliseconds = least + self.dice.roll(most - least);
        sleep(Duration::from_millis(u64::try_from(milliseconds).expect("it is small")));
    }
}
