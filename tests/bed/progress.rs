//! The writers' reports, stamped with the host's clock: a guest's own clock stands still while it is paused.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::eventually;
use super::guest::Guest;

const LOOK: Duration = Duration::from_millis(20);
const NEXT: Duration = Duration::from_secs(60);

/// One completed write.
#[derive(Debug, Clone)]
struct Report {
    at: Instant,
    target: String,
    number: u64,
    /// Which run of QEMU it came from: a revert starts another one, and there the numbers may have gone back.
    session: u32,
}

/// Listens to a guest's writers, over restarts of the VM.
pub struct Progress {
    reports: Arc<Mutex<Vec<Report>>>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins to listen.
    pub fn listen(guest: &Guest) -> Self {
        let reports = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let listener = {
            let (socket, reports, stop) = (guest.progress_socket(), Arc::clone(&reports), Arc::clone(&stop));
            std::thread::spawn(move || listen(&socket, &reports, &stop))
        };
        Self { reports, stop, listener: Some(listener) }
    }

    /// Waits until a writer has completed one more write, begun after now; gives its number.
    #[track_caller]
    pub fn wait_for_next(&self, target: &str) -> u64 {
        // The first report after now may tell of a write before it.
        let now = Instant::now();
        eventually(&format!("a write on {target}"), NEXT, || {
            self.of(target).iter().filter(|report| report.at > now).nth(1).map(|report| report.number)
        })
    }

    /// The number last reported; 0 if there is none.
    pub fn last(&self, target: &str) -> u64 {
        self.of(target).last().map_or(0, |report| report.number)
    }

    /// The number first reported after this moment.
    pub fn first_since(&self, target: &str, moment: Instant) -> Option<u64> {
        self.of(target).into_iter().find(|report| report.at > moment).map(|report| report.number)
    }

    /// The number last reported after this moment.
    pub fn last_since(&self, target: &str, moment: Instant) -> Option<u64> {
        self.of(target).last().filter(|report| report.at > moment).map(|report| report.number)
    }

    /// How many writes were reported in a span of time.
    pub fn writes(&self, target: &str, from: Instant, until: Instant) -> usize {
        self.of(target).iter().filter(|report| from <= report.at && report.at <= until).count()
    }

    /// The longest time within a span in which a filesystem made no progress.
    pub fn longest_stall(&self, target: &str, from: Instant, until: Instant) -> Duration {
        let within =
            self.of(target).into_iter().map(|report| report.at).filter(|at| from < *at && *at < until);
        let ends: Vec<Instant> = std::iter::once(from).chain(within).chain([until]).collect();
        ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Panics if the numbers of a filesystem ever went back within one run of the VM.
    #[track_caller]
    pub fn assert_monotonic(&self, target: &str) {
        for pair in self.of(target).windows(2) {
            let goes_on = pair[0].session != pair[1].session || pair[0].number < pair[1].number;
            assert!(goes_on, "{target} went back: {:?} then {:?}", pair[0], pair[1]);
        }
    }

    fn of(&self, target: &str) -> Vec<Report> {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.iter().filter(|report| report.target == target).cloned().collect()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// Connects, reads to the end, connects again.
fn listen(socket: &PathBuf, reports: &Mutex<Vec<Report>>, stop: &AtomicBool) {
    let mut session = 0;
    while !stop.load(Ordering::Relaxed) {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                session += 1;
                read(stream, session, reports, stop);
            }
            // The VM is off.
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

fn read(stream: UnixStream, session: u32, reports: &Mutex<Vec<Report>>, stop: &AtomicBool) {
    stream.set_read_timeout(Some(LOOK)).expect("a timeout that is not zero is taken");
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        match stream.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) => {
                let at = Instant::now();
                if let Some((target, number)) = parse(&line) {
                    let report = Report { at, target, number, session };
                    reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                }
                line.clear();
            }
            // A part of a line stays in `line`.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// The first line after a connection may be the rest of one.
fn parse(line: &str) -> Option<(String, u64)> {
    let (target, number) = line.trim_end().split_once(' ')?;
    Some((target.to_owned(), number.parse().ok()?))
}
