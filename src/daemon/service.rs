//! systemd: what it is told (that we are ready, how we are, that we move), and the socket that it may hand over.
//!
//! Decides what is worth a line of `systemctl status`. Without systemd there is nobody to tell, and nothing is handed over.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::sync::watch;

use super::controller::Reporting;
use crate::host::Link;
use crate::model::operation::OperationState;
use crate::ops::{Engine, OperationView};

/// The status changes at most so often: it is read by people.
const PACE: Duration = Duration::from_secs(1);

/// Without systemd there is nobody to tell.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// The configuration is read again, until it is told that we are ready (`RELOADING=1`).
pub(super) fn tell_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The socket that systemd listens on for us, if it does (`vmsnapd.socket`). To be asked once: it is gone after that.
pub(super) fn handed_over() -> std::io::Result<Option<UnixListener>> {
    ListenFd::from_env().take_unix_listener(0)
}

/// Feeds the watchdog, if there is one, for as long as the runtime and the catalog's thread get work done. A catalog that
/// cannot be written is told by its health; one that does not answer at all is what a start may mend.
pub(super) fn feed_watchdog(engine: Engine) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    tokio::spawn(async move {
        // sd_watchdog_enabled(3) advises half of it; a third leaves room for one that is late.
        let mut meals = tokio::time::interval(patience / 3);
        loop {
            meals.tick().await;
            // Whatever it answers: it does.
            let _ = engine.store().outbox().await;
            tell(&[NotifyState::Watchdog]);
        }
    });
}

/// Keeps the status line true until the engine drains.
pub(super) fn keep_status(engine: Engine, mut reporting: Option<watch::Receiver<Reporting>>) {
    tokio::spawn(async move {
        let (mut link, mut moves) = (engine.host().hypervisor.link(), engine.moves());
        let stopping = engine.draining();
        let mut shown = String::new();
        loop {
            let controller = reporting.as_mut().map(|reporting| reporting.borrow_and_update().clone());
            moves.mark_unchanged();
            let words = status(&engine.under_way_now(), &link.borrow_and_update(), controller.as_ref());
            if words != shown {
                tell(&[NotifyState::Status(&words)]);
                shown = words;
            }
            tokio::select! {
                _ = link.changed() => {}
                _ = moves.changed() => {}
                () = changed(reporting.as_mut()) => {}
                () = stopping.cancelled() => return,
            }
            tokio::time::sleep(PACE).await;
        }
    });
}

async fn changed(reporting: Option<&mut watch::Receiver<Reporting>>) {
    let has_changed = match reporting {
        Some(reporting) => reporting.changed().await.is_ok(),
        None => false,
    };
    if !has_changed {
        // Nobody tells any more.
        std::future::pending::<()>().await;
    }
}

/// What an operator should know at a glance.
fn status(operations: &[OperationView], link: &Link, controller: Option<&Reporting>) -> String {
    let is_stuck =
        |view: &&OperationView| matches!(view.operation.cursor.state, OperationState::Stuck { .. });
    let moving = operations.iter().filter(|view| !view.operation.cursor.has_ended());
    let (stuck, moving): (Vec<_>, Vec<_>) = moving.partition(is_stuck);
    let mut parts = vec![match moving.len() {
        1 => "1 operation under way".to_owned(),
        count => format!("{count} operations under way"),
    }];
    if !stuck.is_empty() {
        parts.push(format!("{} stuck: see 'vmsnap op list --open'", stuck.len()));
    }
    parts.push(match link {
        Link::Up => "libvirt is up".to_owned(),
        Link::Down(reason) => format!("libvirt is down: {reason}"),
    });
    match controller {
        Some(Ok(())) => parts.push("the controller is told".to_owned()),
        Some(Err(reason)) => parts.push(format!("the controller is not told: {reason}")),
        None => {}
    }
    // A line is a line.
    parts.join("; ").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cursor::Direction;
    use crate::store::tests::operation;

    #[test]
    fn status_lines() {
        let view = |number, state| {
            let mut operation = operation(number);
            operation.cursor.state = state;
            OperationView::of(operation)
        };
        let running = view(1, OperationState::Running { at: 0 });
        let ended = view(2, OperationState::Succeeded);
        let stuck = view(3, OperationState::Stuck { at: 0, direction: Direction::Forward });
        assert_eq!(status(&[], &Link::Up, None), "0 operations under way; libvirt is up");
        assert_eq!(
            status(&[running.clone(), ended], &Link::Up, Some(&Ok(()))),
            "1 operation under way; libvirt is up; the controller is told"
        );
        let (down, refused) = (Link::Down("it\nhas gone".to_owned()), Err("cannot connect".to_owned()));
        assert_eq!(
            status(&[running, stuck], &down, Some(&refused)),
            "1 operation under way; 1 stuck: see 'vmsnap op list --open'; libvirt is down: it has gone; the controller is not \
             told: cannot connect"
        );
    }
}
