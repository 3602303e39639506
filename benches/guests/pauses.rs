//! How long a guest's processors stand still, by the clock of its QEMU: between its events `STOP` and `RESUME`.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use super::bed::{Guest, eventually};

/// Events come within milliseconds.
const COME: Duration = Duration::from_secs(30);

/// All that have happened have come after so long.
const ON_THEIR_WAY: Duration = Duration::from_millis(300);

/// An event and when it was, in seconds.
type Event = (Kind, f64);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Stop,
    Resume,
}

/// Listens to the pauses of a guest.
pub struct Pauses<'a> {
    guest: &'a Guest,
    virsh: Child,
    events: Arc<Mutex<Vec<Event>>>,
}

impl<'a> Pauses<'a> {
    pub fn listen(guest: &'a Guest) -> Self {
        let mut listen = Command::new("stdbuf");
        listen.args([
            "-oL",
            "virsh",
            "--quiet",
            "--connect",
            "qemu:///system",
            "qemu-monitor-event",
            "--loop",
        ]);
        let mut virsh = listen.arg(guest.name()).stdout(Stdio::piped()).spawn().unwrap();
        let (events, stdout) = (Arc::default(), virsh.stdout.take().unwrap());
        let kept = Arc::clone(&events);
        std::thread::spawn(move || read(stdout, &kept));
        let pauses = Self { guest, virsh, events };
        // It does not say when it has begun to listen: to the second half of a pause, maybe.
        eventually("an event of QEMU", COME, || {
            pauses.guest.virsh("suspend", &[]);
            pauses.guest.virsh("resume", &[]);
            sleep(ON_THEIR_WAY);
            pauses.events().last().copied().filter(|(kind, _)| *kind == Kind::Resume)
        });
        pauses
    }

    /// Milliseconds that the processors stood still while this was done.
    pub fn of(&self, what: impl FnOnce()) -> f64 {
        let before = self.events().len();
        what();
        eventually("a pause", COME, || self.since(before))
    }

    /// Milliseconds of all pauses since so many events; None while there was none, or one has not ended.
    fn since(&self, before: usize) -> Option<f64> {
        let events = self.events();
        let pairs = events.get(before..)?.chunks(2);
        let pauses = pairs.map(|pair| match pair {
            [(Kind::Stop, from), (Kind::Resume, until)] => Some((until - from) * 1e3),
            _ => None,
        });
        let pauses: Vec<f64> = pauses.collect::<Option<_>>()?;
        (!pauses.is_empty()).then(|| pauses.iter().sum())
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Pauses<'_> {
    fn drop(&mut self) {
        self.virsh.kill().unwrap();
        self.virsh.wait().unwrap();
    }
}

fn read(stdout: ChildStdout, events: &Mutex<Vec<Event>>) {
    let lines = BufReader::new(stdout).lines().map_while(Result::ok);
    for event in lines.filter_map(|line| parse(&line)) {
        events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

/// `event STOP at 1764212345.123456 for domain 'one': <null>`
fn parse(line: &str) -> Option<Event> {
    let mut words = line.strip_prefix("event ")?.split(' ');
    let kind = match words.next()? {
        "STOP" => Kind::Stop,
        "RESUME" => Kind::Resume,
        _ => return None,
    };
    Some((kind, words.nth(1)?.parse().ok()?))
}
