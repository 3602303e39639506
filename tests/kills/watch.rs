//! Follows the daemon's journal, and strikes at a step: the journal has a step before it is carried out, and what it says
//! when the daemon is dead is where the daemon was. While a guest stands still it says the last step of that, and nothing is
//! written until the guest goes on: what is struck there is struck at any moment of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::bed::{Dice, Node, end};

/// After so long without the step that was hit least, any will do.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks: SQLite has no event for another process. A look that finds nothing new reads one counter.
const LOOK: Duration = Duration::from_millis(1);
/// While nobody aims.
const IDLE: Duration = Duration::from_millis(20);
/// The last steps of what is done while a guest stands still.
const STANDING_STILL: [&str; 2] = ["switch disks", "prove capture"];
/// So long, in milliseconds, a guest stands still here, more or less.
const STANDS_STILL: usize = 300;

/// What an operation is at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Phase {
    pub kind: String,
    pub step: String,
}

/// An operation that has not ended.
#[derive(Debug, Clone)]
pub struct Open {
    pub id: String,
    pub vm: String,
    pub phase: Phase,
}

/// What is struck at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    Process(u32),
    /// That of the operation's VM.
    Qemu,
    /// No process: whoever waits for the step does something else.
    Nobody,
}

#[derive(Default)]
struct Board {
    known: BTreeSet<Phase>,
    hits: BTreeMap<(&'static str, Phase), u32>,
    aim: Option<Aim>,
    struck: Option<Vec<Open>>,
}

struct Aim {
    /// Only there, if at any.
    step: Option<&'static str>,
    fault: &'static str,
    victim: Victim,
    since: Instant,
}

/// A follower of a journal, over the lives of its daemon.
pub struct Watch {
    catalog: PathBuf,
    board: Arc<Mutex<Board>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn follow(catalog: PathBuf, dice: Dice) -> Self {
        let (board, stop): (Arc<Mutex<Board>>, Arc<AtomicBool>) = (Arc::default(), Arc::default());
        let thread = {
            let (catalog, board, stop) = (catalog.clone(), Arc::clone(&board), Arc::clone(&stop));
            std::thread::spawn(move || follow(&catalog, &board, dice, &stop))
        };
        Self { catalog, board, stop, thread: Some(thread) }
    }

    /// What is under way, as the journal says.
    pub fn open(&self) -> Vec<Open> {
        read(&connect(&self.catalog).expect("the catalog is there")).expect("the journal can be read")
    }

    /// The next operation that comes to a step which this fault has hit least is struck there.
    pub fn aim(&self, fault: &'static str, victim: Victim) {
        self.take_aim(Aim { step: None, fault, victim, since: Instant::now() });
    }

    /// The next operation that comes to this step is struck there.
    pub fn aim_at(&self, step: &'static str, fault: &'static str, victim: Victim) {
        self.take_aim(Aim { step: Some(step), fault, victim, since: Instant::now() });
    }

    fn take_aim(&self, aim: Aim) {
        let mut board = self.lock();
        board.struck = None;
        board.aim = Some(aim);
    }

    /// What was under way when something was struck. Calls the aim off if nothing was within this time.
    pub fn struck(&self, within: Duration) -> Option<Vec<Open>> {
        let begun = Instant::now();
        loop {
            let mut board = self.lock();
            if let Some(open) = board.struck.take() {
                return Some(open);
            }
            if begun.elapsed() >= within {
                board.aim = None;
                return None;
            }
            drop(board);
            sleep(Duration::from_millis(5));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn connect(catalog: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(catalog, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn read(catalog: &Connection) -> rusqlite::Result<Vec<Open>> {
    let mut statement = catalog.prepare_cached("SELECT body FROM operation WHERE is_open = 1 ORDER BY id")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|row| Ok(open(&serde_json::from_str(&row?).expect("the journal is JSON")))).collect()
}

fn follow(catalog: &Path, board: &Mutex<Board>, mut dice: Dice, stop: &AtomicBool) {
    let catalog = connect(catalog).expect("the catalog is there");
    let mut seen = 0;
    while !stop.load(Ordering::Relaxed) {
        // Another connection may be writing, or recovering what a dead one left: then there is something to see later.
        let version = catalog.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0));
        let is_aimed = board.lock().unwrap_or_else(PoisonError::into_inner).aim.is_some();
        match version {
            Ok(version) if version != seen => {
                if let Ok(open) = read(&catalog) {
                    seen = version;
                    board.lock().unwrap_or_else(PoisonError::into_inner).see(&open, &mut dice);
                }
            }
            Ok(_) | Err(_) => sleep(if is_aimed { LOOK } else { IDLE }),
        }
    }
}

impl Board {
    fn see(&mut self, all: &[Open], dice: &mut Dice) {
        self.known.extend(all.iter().map(|open| open.phase.clone()));
        let Some(aim) = &self.aim else { return };
        let hits = |phase: &Phase| self.hits.get(&(aim.fault, phase.clone())).copied().unwrap_or(0);
        let least = self.known.iter().map(hits).min().unwrap_or(0);
        let is_worth_it = |open: &&Open| match aim.step {
            Some(step) => open.phase.step == step,
            None => hits(&open.phase) <= least || aim.since.elapsed() >= PATIENCE,
        };
        let Some(open) = all.iter().find(is_worth_it) else { return };
        if aim.victim != Victim::Nobody && STANDING_STILL.contains(&open.phase.step.as_str()) {
            let moment = u64::try_from(dice.roll(STANDS_STILL)).expect("it fits");
            sleep(Duration::from_millis(moment));
        }
        match aim.victim {
            Victim::Process(process) => end(process),
            Victim::Qemu => match Node::qemu(&open.vm) {
                Some(process) => end(process),
                // A VM that is off has none: another operation, then.
                None => return,
            },
            Victim::Nobody => {}
        }
        *self.hits.entry((aim.fault, open.phase.clone())).or_default() += 1;
        self.aim = None;
        self.struck = Some(all.to_vec());
    }
}

fn open(operation: &Value) -> Open {
    let text = |value: &Value| value.as_str().unwrap_or_default().replace('_', " ");
    let state = &operation["cursor"]["state"];
    let at = state["at"].as_u64().and_then(|at| usize::try_from(at).ok());
    let step = at.map(|at| text(&operation["steps"][at]["step"])).unwrap_or_default();
    let step = match text(&state["state"]).as_str() {
        "running" => step,
        "undoing" => format!("undo: {step}"),
        "stuck" => format!("stuck: {step}"),
        ended => ended.to_owned(),
    };
    Open {
        id: operation["id"].as_str().unwrap_or_default().to_owned(),
        vm: operation["vm_name"].as_str().unwrap_or_default().to_owned(),
        phase: Phase { kind: text(&operation["request"]["request"]), step },
    }
}
