//! The lines to libvirtd: opening them, noticing that they are cut, opening them again.
//!
//! Decides when a line counts as lost and when to try again. Leaves what is called over them to the rest of this
//! folder. Must never know a VM.
//!
//! ```text
//!                 opened, events registered
//!        DOWN --------------------------------> UP
//!         ^                                      |
//!         +--------------------------------------+
//!           close callback, or a call that found the line dead
//! ```
//!
//! One thread watches all lines. A callback only sets a flag and wakes it: callbacks run on the event loop's thread,
//! where a call to libvirt would wait for itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};

use super::ffi::{self, Subscription};
use super::refusal::LibvirtSays;
use super::told::{CloseReason, EventKind};
use crate::host::{HostError, HostEvent, Link, Result};
use crate::model::VmId;

/// First and longest pause between two attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Seconds between keepalive messages, and how many may go unanswered: a dead daemon is noticed after 20 s.
const KEEPALIVE: (i32, u32) = (5, 3);

/// How long the event loop pauses after it failed, so that a lasting failure does not eat a processor.
const EVENT_LOOP_PAUSE: Duration = Duration::from_millis(200);

/// An open connection, closed when the last user lets go of it.
#[derive(Debug)]
pub(super) struct Connection {
    connect: Connect,
    events: Vec<Subscription>,
    has_close_callback: bool,
    loss: Arc<OnceLock<String>>,
}

impl Connection {
    /// The handle for calls.
    pub(super) fn connect(&self) -> &Connect {
        &self.connect
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Each registration holds a reference to the connection: closing it would leave it open.
        for subscription in &self.events {
            ffi::deregister_event(&self.connect, subscription);
        }
        if self.has_close_callback {
            ffi::deregister_close(&self.connect);
        }
        if let Err(error) = self.connect.close() {
            tracing::debug!(%error, "a connection to libvirt did not close cleanly");
        }
    }
}

/// One line: the connection while there is one, the reason while there is none.
#[derive(Debug)]
pub(super) struct Line {
    purpose: &'static str,
    has_events: bool,
    state: Mutex<LineState>,
    watcher: Arc<Watcher>,
}

#[derive(Debug)]
enum LineState {
    Up(Arc<Connection>),
    Down(String),
}

impl Line {
    /// The connection. Fails at once if there is none.
    pub(super) fn connection(&self) -> Result<Arc<Connection>> {
        match &*self.lock() {
            LineState::Up(connection) => match connection.loss.get() {
                None => Ok(Arc::clone(connection)),
                Some(why) => Err(unreachable(why)),
            },
            LineState::Down(why) => Err(unreachable(why)),
        }
    }

    /// A call failed on the line itself: finds out whether the line is dead, and if so starts to open another.
    pub(super) fn suspect(&self, connection: &Connection, error: &HostError) {
        if connection.connect.is_alive().unwrap_or(false) {
            return;
        }
        let why = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
        self.watcher.lost(&connection.loss, &why);
    }

    /// Whether another connection is to be opened. Lets go of a dead one.
    fn needs_opening(&self) -> bool {
        let mut state = self.lock();
        let why = match &*state {
            LineState::Down(_) => return true,
            LineState::Up(connection) => match connection.loss.get() {
                None => return false,
                Some(why) => why.clone(),
            },
        };
        tracing::warn!(line = self.purpose, why, "a line to libvirt was lost");
        let dead = std::mem::replace(&mut *state, LineState::Down(why));
        drop(state);
        // Closes the connection, which may take a moment, unless a call still uses it.
        drop(dead);
        true
    }

    fn set(&self, to: LineState) {
        *self.lock() = to;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreachable(why: &str) -> HostError {
    HostError::Unreachable(Some(LibvirtSays::new(why).into()))
}

/// Lines that are down, and the thread that opens them. `purposes` names each line; the first one carries events.
pub(super) fn start_lines<const COUNT: usize>(
    uri: &str,
    purposes: [&'static str; COUNT],
    events: broadcast::Sender<HostEvent>,
    link: watch::Sender<Link>,
) -> ([Arc<Line>; COUNT], Watch) {
    start_event_loop();
    let (wake, woken) = mpsc::sync_channel(1);
    let watcher = Arc::new(Watcher { link, wake, stopped: AtomicBool::new(false) });
    let mut has_events = true;
    let lines = purposes.map(|purpose| {
        Arc::new(Line {
            purpose,
            has_events: std::mem::take(&mut has_events),
            state: Mutex::new(LineState::Down("not connected yet".to_owned())),
            watcher: Arc::clone(&watcher),
        })
    });
    let opener = Opener { uri: uri.to_owned(), watcher: Arc::clone(&watcher), events, lines: lines.to_vec() };
    thread::Builder::new()
        .name("libvirt-link".to_owned())
        .spawn(move || opener.keep_open(&woken))
        .expect("the system can start a thread while the agent starts");
    (lines, Watch(watcher))
}

/// Opens lines, on a thread of its own.
#[derive(Debug)]
struct Opener {
    uri: String,
    watcher: Arc<Watcher>,
    events: broadcast::Sender<HostEvent>,
    lines: Vec<Arc<Line>>,
}

/// What wakes the thread that opens lines.
#[derive(Debug)]
pub(super) struct Watcher {
    link: watch::Sender<Link>,
    wake: SyncSender<()>,
    stopped: AtomicBool,
}

impl Watcher {
    /// Marks a connection lost, once. Never blocks and calls nothing: runs on the event loop's thread too.
    fn lost(&self, loss: &OnceLock<String>, why: &str) {
        if loss.set(why.to_owned()).is_err() {
            return;
        }
        self.link.send_replace(Link::Down(why.to_owned()));
        self.wake();
    }

    fn wake(&self) {
        // Full: the thread has been woken already. Disconnected: it has ended, and nothing is to be opened.
        let _ = self.wake.try_send(());
    }
}

/// Ends the thread that opens lines when the last user of them is gone.
#[derive(Debug)]
pub(super) struct Watch(Arc<Watcher>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.wake();
    }
}

impl Opener {
    /// Opens what is down, for ever.
    fn keep_open(&self, woken: &Receiver<()>) {
        let mut pause = BACKOFF.0;
        while !self.watcher.stopped.load(Ordering::Acquire) {
            match self.open_all() {
                Ok(()) => {
                    pause = BACKOFF.0;
                    self.tell(Link::Up);
                    // Ends by a wake only: the sender lives in the watcher that we hold ourselves.
                    let _ = woken.recv();
                }
                Err(why) => {
                    self.tell(Link::Down(LibvirtSays::new(why).to_string()));
                    let _ = woken.recv_timeout(pause);
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    fn open_all(&self) -> std::result::Result<(), String> {
        for line in self.lines.iter().filter(|line| line.needs_opening()) {
            match self.open(line) {
                Ok(connection) => line.set(LineState::Up(Arc::new(connection))),
                Err(error) => {
                    line.set(LineState::Down(error.message().to_owned()));
                    return Err(error.message().to_owned());
                }
            }
        }
        // One may have been lost while the others were opened.
        match self.lines.iter().find_map(|line| line.connection().err()) {
            None => Ok(()),
            Some(error) => Err(error.to_string()),
        }
    }

    fn open(&self, line: &Line) -> std::result::Result<Connection, Error> {
        let loss = Arc::new(OnceLock::new());
        let mut connection = Connection {
            connect: Connect::open(Some(&self.uri))?,
            events: Vec::new(),
            has_close_callback: false,
            loss: Arc::clone(&loss),
        };
        let watcher = Arc::clone(&self.watcher);
        let purpose = line.purpose;
        let told = ffi::register_close(
            &connection.connect,
            Box::new(move |reason| {
                if reason != CloseReason::Client {
                    watcher.lost(&loss, &format!("the connection for {purpose} was lost ({reason:?})"));
                }
            }),
        );
        connection.has_close_callback = if_supported(told)?.is_some();
        if_supported(connection.connect.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1))?;
        if line.has_events {
            let kinds =
                [EventKind::Lifecycle, EventKind::DeviceRemoved, EventKind::BlockJob, EventKind::Agent];
            for kind in kinds {
                let registered = self.register(&connection.connect, kind)?;
                connection.events.push(registered);
            }
            let welcome = [
                // libvirt before 3.2. Nothing but warnings is missing.
                (EventKind::Threshold, "libvirt does not tell when images grow"),
                // Its drivers for other hypervisors. It is looked at again all the same.
                (EventKind::Migration, "libvirt does not tell what QEMU does"),
            ];
            for (kind, missing) in welcome {
                match self.register(&connection.connect, kind) {
                    Ok(registered) => connection.events.push(registered),
                    Err(error) => tracing::warn!(%error, "{missing}"),
                }
            }
        }
        Ok(connection)
    }

    fn register(&self, connect: &Connect, kind: EventKind) -> std::result::Result<Subscription, Error> {
        let events = self.events.clone();
        ffi::register_event(connect, kind, Box::new(move |kind, vm| publish(&events, kind, VmId(vm))))
    }

    fn tell(&self, link: Link) {
        let changed = self.watcher.link.send_if_modified(|now| {
            let changes = *now != link;
            now.clone_from(&link);
            changes
        });
        if !changed {
            return;
        }
        match link {
            Link::Up => tracing::info!(uri = self.uri, "connected to libvirt"),
            Link::Down(why) => tracing::warn!(uri = self.uri, why, "libvirt cannot be reached"),
        }
    }
}

/// The channel is bounded and sending to it never blocks: a slow reader is told how many events it missed.
fn publish(events: &broadcast::Sender<HostEvent>, kind: EventKind, vm: VmId) {
    if kind == EventKind::Migrated {
        // An error means that nobody listens.
        let _ = events.send(HostEvent::VmMigrated(vm));
    }
    let event = match kind {
        EventKind::Lifecycle | EventKind::Migrated | EventKind::DeviceRemoved => HostEvent::VmChanged(vm),
        EventKind::BlockJob => HostEvent::BlockJobChanged(vm),
        EventKind::Agent => HostEvent::AgentChanged(vm),
        EventKind::Threshold => HostEvent::ThresholdCrossed(vm),
        EventKind::Migration => HostEvent::CaptureMoved(vm),
    };
    // An error means that nobody listens.
    let _ = events.send(event);
}

/// Drivers that run inside this process have no line that could be lost.
fn if_supported<T>(result: std::result::Result<T, Error>) -> std::result::Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code() == ErrorNumber::NoSupport => Ok(None),
        Err(error) => Err(error),
    }
}

/// Starts libvirt's event loop on a thread of its own, once per process and before any connection is opened: libvirt
/// demands both, and never lets go of it.
fn start_event_loop() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // Else libvirt prints every error to the standard error output.
        virt::error::clear_error_callback();
        if let Err(error) = virt::event::event_register_default_impl() {
            tracing::error!(%error, "libvirt's event loop cannot be registered: there will be no events");
            return;
        }
        thread::Builder::new()
            .name("libvirt-events".to_owned())
            .spawn(|| {
                loop {
                    if let Err(error) = virt::event::event_run_default_impl() {
                        tracing::error!(%error, "libvirt's event loop failed");
                        thread::sleep(EVENT_LOOP_PAUSE);
                    }
                }
            })
            .expect("the system can start a thread while the agent starts");
    });
}
