//! Waiting for an operation: followed over dropped connections and restarts of the daemon, with bars on a terminal and
//! plain lines elsewhere. Leaving never stops the work.

use std::collections::HashMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio_stream::StreamExt;
use tonic::Code;

use super::failure::{Failure, exit};
use super::{Session, output, words};
use crate::proto::v1;
use crate::proto::v1::watch_operation_response::Update;

/// Without a word from the daemon for so long, the connection is taken for dead.
const SILENCE: Duration = Duration::from_secs(30);

/// So long a daemon that is away is waited for. An upgrade is over by then.
pub(super) const ABSENCE: Duration = Duration::from_secs(120);

/// Waits for the end of an operation.
pub(super) async fn wait(
    session: &Session,
    id: &str,
    timeout: Option<Duration>,
) -> Result<v1::Operation, Failure> {
    let leave = |code, why: &str| {
        Failure::new(
            code,
            format!("{why}; the work goes on"),
            format!("follow it with 'vmsnap op watch {id}'"),
        )
    };
    let mut display = Display::new(session.global.quiet);
    let deadline = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = follow(session, id, &mut display) => result,
        () = deadline => Err(leave(exit::TIMED_OUT, "it takes longer than that")),
        _ = tokio::signal::ctrl_c() => Err(leave(exit::INTERRUPTED, "interrupted")),
    }
}

async fn follow(session: &Session, id: &str, display: &mut Display) -> Result<v1::Operation, Failure> {
    let mut token = String::new();
    let mut away = Duration::ZERO;
    let mut pause = Duration::from_millis(100);
    loop {
        match follow_once(session, id, &mut token, display).await {
            Ok(Some(operation)) => {
                display.end();
                return Ok(operation);
            }
            Ok(None) => (away, pause) = (Duration::ZERO, Duration::from_millis(100)),
            Err(failure) if failure.code != exit::UNAVAILABLE || away >= ABSENCE => {
                display.end();
                return Err(failure);
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        away += pause;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// One connection. None if it broke before the end.
async fn follow_once(
    session: &Session,
    id: &str,
    token: &mut String,
    display: &mut Display,
) -> Result<Option<v1::Operation>, Failure> {
    let request = v1::WatchOperationRequest {
        operation_id: id.to_owned(),
        resume_token: token.clone(),
        ..v1::WatchOperationRequest::default()
    };
    let mut stream = session.daemon.operations().watch_operation(request).await?.into_inner();
    while let Ok(Some(message)) = tokio::time::timeout(SILENCE, stream.next()).await {
        let message = match message {
            Ok(message) => message,
            Err(status)
                if matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
                ) =>
            {
                return Ok(None);
            }
            Err(status) => return Err(status.into()),
        };
        if !message.resume_token.is_empty() {
            token.clone_from(&message.resume_token);
        }
        match message.update {
            Some(Update::Operation(operation)) => {
                display.show(&operation);
                if is_over(&operation) {
                    return Ok(Some(operation));
                }
            }
            Some(Update::Draining(_)) => return Ok(None),
            Some(Update::Heartbeat(_)) | None => {}
        }
    }
    Ok(None)
}

/// A stuck operation does not move until a person acts: whoever waits is told.
fn is_over(operation: &v1::Operation) -> bool {
    matches!(
        operation.state(),
        v1::OperationState::Succeeded | v1::OperationState::Failed | v1::OperationState::Stuck
    )
}

/// What one sees while waiting.
struct Display {
    mode: Mode,
    shown: Option<Shown>,
}

/// What was shown last, as far as another one is worth a line of its own.
#[derive(PartialEq, Eq)]
struct Shown {
    step: u32,
    state: v1::OperationState,
    /// How merges stand that do not go as they should, what the guest's writes are slowed to, and whether they are held back.
    merges: Vec<(v1::Convergence, u64, bool)>,
}

enum Mode {
    Quiet,
    Lines,
    Bars { all: MultiProgress, step: ProgressBar, bars: HashMap<String, ProgressBar> },
}

impl Display {
    fn new(quiet: bool) -> Self {
        let mode = if quiet {
            Mode::Quiet
        } else if output::is_watched() {
            let all = MultiProgress::new();
            let step = all.add(ProgressBar::new_spinner());
            step.enable_steady_tick(Duration::from_millis(120));
            Mode::Bars { all, step, bars: HashMap::new() }
        } else {
            Mode::Lines
        };
        Self { mode, shown: None }
    }

    fn show(&mut self, operation: &v1::Operation) {
        let slow = operation.progress.iter().filter(|progress| words::convergence(progress).is_some());
        let now = Shown {
            step: operation.current_step,
            state: operation.state(),
            merges: slow
                .map(|progress| {
                    let is_held = progress.held_to_bytes_per_second > 0;
                    (progress.convergence(), progress.writes_limited_to_bytes_per_second, is_held)
                })
                .collect(),
        };
        let is_new = self.shown.as_ref() != Some(&now);
        self.shown = Some(now);
        let text = describe(operation);
        match &mut self.mode {
            Mode::Quiet => {}
            Mode::Lines => {
                if is_new {
                    output::complaint(&text);
                }
            }
            Mode::Bars { all, step, bars } => {
                step.set_message(text);
                for progress in &operation.progress {
                    let bar = bars.entry(label(progress)).or_insert_with(|| all.add(new_bar(progress)));
                    bar.set_length(progress.bytes_total);
                    bar.set_position(progress.bytes_done);
                }
            }
        }
    }

    fn end(&mut self) {
        if let Mode::Bars { all, .. } = &self.mode {
            // What was moving is over; the result stands on stdout. A terminal that is gone is no error.
            let _ = all.clear();
        }
    }
}

fn describe(operation: &v1::Operation) -> String {
    let step = usize::try_from(operation.current_step).ok().and_then(|index| operation.steps.get(index));
    let step = step.map(|step| step.description.as_str()).unwrap_or_default();
    match operation.state() {
        v1::OperationState::Running => {
            let step = format!("{}/{} {step}", operation.current_step + 1, operation.steps.len());
            let slow = operation.progress.iter().filter_map(words::convergence);
            std::iter::once(step).chain(slow).collect::<Vec<_>>().join("; ")
        }
        v1::OperationState::Undoing => format!("undoing: {step}"),
        state @ (v1::OperationState::Unspecified
        | v1::OperationState::Succeeded
        | v1::OperationState::Failed
        | v1::OperationState::Stuck) => words::operation_state(state).to_lowercase(),
    }
}

fn label(progress: &v1::Progress) -> String {
    if progress.disk.is_empty() { "memory".to_owned() } else { progress.disk.clone() }
}

fn new_bar(progress: &v1::Progress) -> ProgressBar {
    let template = "  {prefix:8} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(progress.bytes_total).with_style(style).with_prefix(label(progress))
}
