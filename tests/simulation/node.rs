//! A node and its lives: what happens when. Decides, by its dice, whose turn it is. Leaves what must hold to the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use jiff::SignedDuration;
use tokio::runtime::{Builder, Runtime};
use vmsnap::host::sim::{Hold, Method, SimHost, Trigger};
use vmsnap::host::{self, EmergencyThaw, Host, Link};
use vmsnap::model::step::ImageRef;
use vmsnap::model::vm::Format;
use vmsnap::model::{DiskTarget, OperationId, VmId};
use vmsnap::ops::{Engine, OpsError, end_captures, thaw_guests};
use vmsnap::plan::MemoryCompression;
use vmsnap::store::Store;

use crate::mishaps::Strike;
use crate::oracle::Oracle;
use crate::simulated::{BOOT, Disks, pass_time, settings};
use crate::tally::Tally;
use crate::wishes::Wish;

/// Everything.
pub struct Node {
    pub seed: u64,
    pub dice: Rng,
    pub sim: SimHost,
    pub store: Store,
    pub vms: Vec<VmId>,
    pub oracle: Oracle,
    pub wishes: Vec<Wish>,
    /// Faults that stop or pause a VM, and have not struck yet.
    pub strikes: Vec<Strike>,
    /// Calls that are held until this turn.
    pub held: Vec<(u32, Hold)>,
    /// QEMU dies after its next pivot or switch, before libvirt, which died before it, has noted that.
    pub dies_unnoted: bool,
    /// Disks whose process ended so.
    pub unseen_pivots: Vec<UnseenPivot>,
    /// What each new VM reads, once whoever asked for it has heard that it is there; the names of all that were asked for.
    pub deployed: BTreeMap<VmId, Disks>,
    pub new_vms: Vec<String>,
    /// Overlays that somebody has made by hand.
    pub by_hand: BTreeSet<PathBuf>,
    /// The call at which the daemon dies.
    pub death: Option<Trigger>,
    /// Methods that fail more often than others.
    pub weaknesses: Vec<Method>,
    pub turn: u32,
    pub names: u32,
    /// So many calls are in the trace.
    noted_calls: usize,
    pub tally: Tally,
    /// What happened, in words: the same for the same seed.
    pub trace: Vec<String>,
}

/// A process that has ended after a pivot that nobody has noted.
pub struct UnseenPivot {
    pub vm: VmId,
    pub disk: DiskTarget,
    /// What the definition names.
    pub older: Option<PathBuf>,
    /// What its guest wrote to last.
    pub newer: ImageRef,
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// At any turn.
    Crash,
    /// In the middle of a call, or just before or after its effect.
    CrashInCall,
    /// As systemd would end it.
    Drain,
}

/// The dead-man's thread keeps time by a clock of its own: it has tests of its own.
struct NoDeadMan;

impl EmergencyThaw for NoDeadMan {
    fn thaw_now(&self, _: VmId, _: Duration) -> host::Result<bool> {
        Ok(false)
    }

    fn resume_now(&self, _: VmId, _: Duration) -> host::Result<bool> {
        Ok(false)
    }
}

impl Node {
    pub fn new(seed: u64) -> Self {
        let mut dice = Rng::with_seed(seed);
        let sim = SimHost::new();
        sim.set_job_notches(dice.u32(1..6));
        sim.set_pace((0..31).map(|_| dice.u8(0..4)).collect());
        let weaknesses = weaknesses(&mut dice);
        let notches = dice.u32(0..8);
        let mail = sim.vm("mail").captures_behind_its_back(notches).slow_capture(notches);
        let mail = mail.disk_over("vda", "/images/template");
        let mail = if dice.bool() { mail.disk("vdb", Format::Qcow2) } else { mail };
        let vms = vec![
            sim.vm("web").disks(2).uefi().slow_capture(dice.u32(0..4)).build(),
            sim.vm("db").disk_over("vda", "/images/template").build(),
            mail.build(),
        ];
        let oracle = Oracle::new(&sim, &vms);
        let store = Store::in_memory().unwrap();
        Self {
            seed,
            dice,
            sim,
            store,
            vms,
            oracle,
            wishes: Vec::new(),
            strikes: Vec::new(),
            held: Vec::new(),
            dies_unnoted: false,
            unseen_pivots: Vec::new(),
            deployed: BTreeMap::new(),
            new_vms: Vec::new(),
            by_hand: BTreeSet::new(),
            death: None,
            weaknesses,
            turn: 0,
            names: 0,
            noted_calls: 0,
            tally: Tally::default(),
            trace: Vec::new(),
        }
    }

    /// Some lives, a rest in which everything is looked at, and so on. What went wrong is told with the seed.
    pub fn run(&mut self) -> Result<Tally, String> {
        let result = (0..2).try_for_each(|_| {
            for _ in 0..self.dice.u32(1..4) {
                self.live()?;
            }
            self.rest()
        });
        result.map_err(|problem| {
            let last = self.trace.iter().rev().take(60).rev().cloned().collect::<Vec<_>>().join("\n  ");
            let operations = self.describe_operations();
            format!("seed {}, turn {}: {problem}\n  {last}\n{operations}", self.seed, self.turn)
        })?;
        self.tally.turns = u64::from(self.turn);
        Ok(self.tally)
    }

    /// The outside world as an engine sees it.
    pub fn host(&self) -> Host {
        Host { emergency: Arc::new(NoDeadMan), ..self.sim.host() }
    }

    /// The daemon's. On every other node memory is compressed: that goes with the daemon.
    pub fn engine(&self) -> Engine {
        let compression =
            if self.seed.is_multiple_of(2) { MemoryCompression::Zstd } else { MemoryCompression::None };
        Engine::new(self.host(), self.store.clone(), settings(compression)).unwrap()
    }

    /// One life of the daemon.
    fn live(&mut self) -> Result<(), String> {
        self.tally.lives += 1;
        let end = [End::Crash, End::CrashInCall, End::Drain][self.dice.choose_weighted(&[5, 4, 1])];
        let turns = self.dice.u32(20..200);
        let runtime = runtime();
        let lived = runtime.block_on(async {
            let engine = self.engine();
            let recovering = tokio::spawn({
                let engine = engine.clone();
                async move { engine.recover().await }
            });
            let mut is_up = false;
            for turn in 0..turns {
                if end == End::CrashInCall && turn == turns / 2 {
                    self.die_in_a_call();
                }
                if self.is_dead() {
                    self.tally.crashes_in_calls += 1;
                    return Ok(());
                }
                if !is_up && recovering.is_finished() {
                    engine.attend(SignedDuration::from_hours(24));
                    is_up = true;
                }
                self.take_turn(&engine, is_up).await?;
            }
            if end == End::Drain {
                self.tally.drains += 1;
                self.drain(&engine).await?;
            }
            Ok::<(), String>(())
        });
        drop(runtime);
        self.tally.crashes += u64::from(end != End::Drain);
        self.trace.push(format!("the daemon is gone: {end:?}"));
        self.forget_life();
        lived?;
        self.look(true)?;
        if self.dice.bool() {
            self.thaw_as_systemd_does();
            self.look(true)?;
        }
        Ok(())
    }

    /// One turn of everybody.
    pub async fn take_turn(&mut self, engine: &Engine, may_ask: bool) -> Result<(), String> {
        self.turn += 1;
        match self.dice.u32(0..100) {
            0..=29 => self.guest_writes(),
            30..=44 if may_ask => self.make_wish()?,
            45..=50 => self.something_goes_wrong(),
            51..=54 => self.somebody_meddles(engine, may_ask),
            _ => {}
        }
        self.undo_mishaps();
        if may_ask {
            self.ask(engine);
        }
        pass_time().await;
        self.note_strikes();
        let has_acted = self.note_calls();
        self.qemu_dies_unnoted()?;
        self.hear(engine)?;
        let is_whole = self.dice.u32(0..6) == 0;
        self.look(is_whole || has_acted)?;
        self.drop_excuses()
    }

    /// As SIGTERM does it. What holds a call is let go: a call has a deadline.
    async fn drain(&mut self, engine: &Engine) -> Result<(), String> {
        let draining = tokio::spawn({
            let engine = engine.clone();
            async move { engine.drain().await }
        });
        for _ in 0..2000 {
            if draining.is_finished() {
                return Ok(());
            }
            self.turn += 1;
            self.sim.set_link(Link::Up);
            self.held.drain(..).for_each(|(_, hold)| hold.release());
            pass_time().await;
            self.look(false)?;
        }
        Err("it does not drain".to_owned())
    }

    /// Whatever waited for an answer waits no more.
    pub fn forget_life(&mut self) {
        self.death = None;
        self.dies_unnoted = false;
        self.note_strikes();
        self.strikes.clear();
        self.note_calls();
        self.tally.calls += self.sim.call_count() as u64;
        self.noted_calls = 0;
        self.sim.reset_script();
        self.held.clear();
        for wish in &mut self.wishes {
            wish.forget_life();
        }
    }

    /// What the daemon has called since. Gives whether anything may have changed by it.
    pub fn note_calls(&mut self) -> bool {
        let calls = self.sim.calls_after(self.noted_calls);
        self.noted_calls += calls.len();
        if !calls.is_empty() {
            let words: Vec<String> = calls.iter().map(ToString::to_string).collect();
            self.trace.push(format!("turn {}: {}", self.turn, words.join(" ")));
        }
        calls.iter().any(|call| !call.method.is_look())
    }

    /// `vmsnapd thaw`.
    fn thaw_as_systemd_does(&mut self) {
        let runtime = runtime();
        let (host, store) = (self.host(), self.store.clone());
        let thawing = runtime.spawn(async move {
            let left = end_captures(&host, &store).await?.len();
            Ok::<_, OpsError>(left + thaw_guests(&host, &store, BOOT).await?.len())
        });
        let thawed = runtime.block_on(async {
            while !thawing.is_finished() {
                pass_time().await;
            }
            thawing.await.unwrap()
        });
        self.trace.push(format!("thawed as after the end of the unit: {:?}", thawed.ok()));
    }

    /// Makes a name that nobody has.
    pub fn new_name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { Some(&of[self.dice.usize(..of.len())]) }
    }

    fn is_dead(&self) -> bool {
        match self.death {
            None => false,
            Some(Trigger::Number(number)) => self.sim.call_count() >= number,
            Some(Trigger::Call(call)) => self.sim.next_call(call.method).occurrence > call.occurrence,
            Some(Trigger::Each(_)) => unreachable!("nobody dies at each call"),
        }
    }

    /// What is known of operations that have not ended, for people.
    fn describe_operations(&self) -> String {
        let open = at_once(self.store.open_operations()).unwrap_or_default();
        let states: BTreeMap<OperationId, String> = open
            .iter()
            .map(|operation| {
                let words = format!(
                    "{} of {} {:?} {:?} {:?} {:?}",
                    operation.request.name(),
                    operation.vm_name,
                    operation.cursor.state,
                    operation.steps,
                    operation.failure,
                    operation.later_failure
                );
                (operation.id, words)
            })
            .collect();
        format!("open: {states:#?}")
    }
}

/// What something is lost by if it is mistaken for done, or for not done.
const PERILOUS: [Method; 14] = [
    Method::SwitchDisks,
    Method::PointDisks,
    Method::Start,
    Method::Stop,
    Method::Pause,
    Method::Resume,
    Method::StartCommit,
    Method::StartPull,
    Method::Pivot,
    Method::Commit,
    Method::Rebase,
    Method::Replace,
    Method::Remove,
    Method::FinishMemoryImage,
];

/// None in half of the nodes, two in the others.
fn weaknesses(dice: &mut Rng) -> Vec<Method> {
    let count = if dice.bool() { 2 } else { 0 };
    (0..count).map(|_| PERILOUS[dice.usize(..PERILOUS.len())]).collect()
}

/// A runtime whose clock stands still.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// What something comes to that waits for nobody: the others do not get a turn.
pub fn at_once<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

/// An index, by weights.
pub trait ChooseWeighted {
    fn choose_weighted(&mut self, weights: &[u32]) -> usize;
}

impl ChooseWeighted for Rng {
    fn choose_weighted(&mut self, weights: &[u32]) -> usize {
        let sum: u32 = weights.iter().sum();
        let mut roll = self.u32(..sum);
        weights
            .iter()
            .position(|weight| {
                let is_it = roll < *weight;
                roll = roll.saturating_sub(*weight);
                is_it
            })
            .unwrap()
    }
}
