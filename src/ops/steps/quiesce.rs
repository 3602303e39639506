//! Steps on the guest's file systems: freeze, thaw, and the proof of both.
//!
//! A lease is durable and the dead-man armed before the guest is asked to freeze. A thaw follows every *attempt*, for
//! a freeze that seems to have failed may have happened. A guest that somebody else froze is never thawed by us.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::host::{Host, HostError, Result as HostResult};
use crate::model::operation::Reason;
use crate::model::step::Freeze;
use crate::model::vm::RunState;
use crate::model::{Consistency, Failure, Finding, VmId, VmView};
use crate::store::{GuestLease, Standstill, Store};

use super::pause::prove_resume;
use super::{Context, Performed, position};

/// The agent is asked a short question: it answers at once, or it does not answer.
const QUESTION_DEADLINE: Duration = Duration::from_secs(5);

/// So often one thaw is tried before somebody else goes on with it.
const THAW_ATTEMPTS: u32 = 3;

/// The file systems are frozen, or it is known why not and nobody minds.
pub(super) async fn freeze(context: &Context<'_>, freeze: &Freeze) -> Performed {
    if let Some(reason) = &context.operation.findings.crash_reason {
        // An earlier life froze, died, and thawed at the start of this one.
        return cannot_freeze(freeze, reason.clone());
    }
    match context.host.agent.is_frozen(context.vm(), QUESTION_DEADLINE).await {
        Ok(false) => {}
        Ok(true) => return cannot_freeze(freeze, "somebody else has frozen the guest".to_owned()),
        Err(error) => return cannot_freeze(freeze, tell(&error)),
    }
    let (timeout, began) = (Duration::from_millis(freeze.timeout_ms), Instant::now());
    if let Err(error) = take_lease(context, Standstill::Frozen, timeout).await {
        return Performed::not_applied(error);
    }
    let frozen = freeze_and_look(context, freeze, timeout).await;
    // Its time may have come while this waited for its turn, before there was anything to end: whatever was told, somebody ends it.
    let left = timeout.saturating_sub(began.elapsed());
    context.dead_man.arm(context.vm(), context.operation.id, Standstill::Frozen, left);
    let reason = match frozen {
        Ok(count) if is_enough(freeze, count) => {
            return Performed::learned(vec![Finding::Frozen { file_systems: count }]);
        }
        Ok(count) => format!("the guest agent froze {count} file systems, {} were asked for", asked(freeze)),
        Err(error) => tell(&error),
    };
    give_back_lease(context).await;
    cannot_freeze(freeze, reason)
}

/// The guest is being frozen, and meanwhile it is looked at what its disks write to. It does not wait for that look.
async fn freeze_and_look(context: &Context<'_>, freeze: &Freeze, timeout: Duration) -> HostResult<u32> {
    let mut freezing = context.host.agent.freeze(context.vm(), &freeze.mount_points, timeout);
    tokio::select! {
        biased;
        frozen = &mut freezing => frozen,
        () = position::look_ahead(context) => freezing.await,
    }
}

fn is_enough(freeze: &Freeze, count: u32) -> bool {
    count > 0 && usize::try_from(count).is_ok_and(|count| count >= freeze.mount_points.len())
}

fn asked(freeze: &Freeze) -> String {
    if freeze.mount_points.is_empty() { "all".to_owned() } else { freeze.mount_points.len().to_string() }
}

/// An error and its causes, in one line.
fn tell(error: &HostError) -> String {
    let failure = Failure::new(Reason::QuiesceFailed, error);
    std::iter::once(failure.message).chain(failure.causes).collect::<Vec<_>>().join(": ")
}

fn cannot_freeze(freeze: &Freeze, reason: String) -> Performed {
    if freeze.required {
        return Performed::not_applied(quiesce_failure(reason));
    }
    Performed::learned(vec![Finding::NotFrozen { reason }])
}

fn quiesce_failure(reason: String) -> Failure {
    Failure {
        reason: Reason::QuiesceFailed,
        message: "the guest's file systems were not frozen".to_owned(),
        causes: vec![reason],
    }
}

/// Before the guest is made to stand still.
pub(super) async fn take_lease(
    context: &Context<'_>,
    standstill: Standstill,
    timeout: Duration,
) -> std::result::Result<(), Failure> {
    settle_earlier(context).await?;
    let now = Timestamp::now().as_millisecond();
    let deadline = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
    let lease = GuestLease {
        vm: context.vm(),
        operation: context.operation.id,
        standstill,
        boot_id: context.limits.boot_id.clone(),
        since_ms: now,
        deadline_ms: now.saturating_add(deadline),
        is_thawed: false,
    };
    context.store.put_lease(lease).await?;
    context.dead_man.arm(context.vm(), context.operation.id, standstill, timeout);
    Ok(())
}

/// The lease of an operation that a person has given up while its guest gave no proof: whoever put another in its place would
/// take that guest's thaw away.
async fn settle_earlier(context: &Context<'_>) -> std::result::Result<(), Failure> {
    let is_earlier = |lease: &GuestLease| lease.operation != context.operation.id && !lease.is_thawed;
    let Some(earlier) = context.store.lease(context.vm()).await?.filter(is_earlier) else { return Ok(()) };
    if let Ok(Thawed::Proven { .. }) = prove(context.host, context.store, &earlier).await {
        context.store.clear_lease(earlier.vm, earlier.operation).await?;
        context.dead_man.disarm(earlier.vm, earlier.operation);
        return Ok(());
    }
    let cause = format!(
        "it may still stand still because of operation {}, and gives no proof that it does not",
        earlier.operation
    );
    Err(HostError::Refused { call: "let the guest stand still", cause: cause.into() }.into())
}

/// After an attempt to freeze that came to nothing. What cannot be proven now stays with the dead-man.
async fn give_back_lease(context: &Context<'_>) {
    if let Ok(Thawed::Proven { .. }) = prove_thaw(context.host, context.store, context.vm()).await
        && context.store.clear_lease(context.vm(), context.operation.id).await.is_ok()
    {
        context.dead_man.disarm(context.vm(), context.operation.id);
    }
}

/// What a thaw came to.
pub(in crate::ops) enum Thawed {
    /// The guest goes on, as it says or as it is seen; or it runs no more.
    Proven {
        /// So many file systems were frozen until now.
        file_systems: u32,
    },
    /// It does not say so.
    Unproven,
}

/// Lets a guest go on until it is seen to. Gives up after a few attempts.
pub(in crate::ops) async fn prove(
    host: &Host,
    store: &Store,
    lease: &GuestLease,
) -> crate::host::Result<Thawed> {
    match lease.standstill {
        Standstill::Frozen => prove_thaw(host, store, lease.vm).await,
        Standstill::Paused => prove_resume(host, store, lease.vm).await,
    }
}

/// Thaws until the guest says that it is thawed. Gives up after a few attempts.
async fn prove_thaw(host: &Host, store: &Store, vm: VmId) -> crate::host::Result<Thawed> {
    let mut file_systems = 0;
    let mut last = Ok(Thawed::Unproven);
    for _ in 0..THAW_ATTEMPTS {
        // What it answers is not what counts: the question after it does.
        if let Ok(count) = host.agent.thaw(vm, QUESTION_DEADLINE).await {
            file_systems = file_systems.max(count);
        }
        match host.agent.is_frozen(vm, QUESTION_DEADLINE).await {
            Ok(false) => return Ok(Thawed::Proven { file_systems }),
            Ok(true) => last = Ok(Thawed::Unproven),
            Err(error) => last = Err(error),
        }
        match host.hypervisor.observe(vm).await {
            // Its guest went with it as it was.
            Ok(view) if !view.run_state.is_live() && has_migrated(store, &view).await => {
                last = Err(HostError::Migrated);
            }
            Ok(view) if !view.run_state.is_live() => return Ok(Thawed::Proven { file_systems }),
            Err(HostError::NoSuchVm(_)) => return Ok(Thawed::Proven { file_systems }),
            Ok(_) => {}
            Err(error) => last = Err(error),
        }
    }
    last
}

/// Whether a VM without a process went to another node. libvirt forgets that when it starts anew, the catalog does not.
async fn has_migrated(store: &Store, view: &VmView) -> bool {
    let is_noted =
        || async { store.departures().await.is_ok_and(|all| all.iter().any(|it| it.vm == view.id)) };
    view.run_state == RunState::Migrated || is_noted().await
}

/// The guest is thawed, proven; or it was never frozen by us.
pub(super) async fn thaw(context: &Context<'_>) -> Performed {
    let_go_on(context, Standstill::Frozen).await.0
}

/// The guest goes on, proven; or it does not stand still because of this operation. With the milliseconds for which it did.
pub(super) async fn let_go_on(context: &Context<'_>, standstill: Standstill) -> (Performed, Option<f64>) {
    let lease = match context.store.lease(context.vm()).await {
        Ok(Some(lease)) if lease.operation == context.operation.id && lease.standstill == standstill => lease,
        Ok(_) => return (Performed::done(), None),
        Err(error) => return (Performed::unknown(error), None),
    };
    // Somebody else has let it go on: whoever stops it since is not us.
    if lease.is_thawed || !context.dead_man.watches(context.vm(), context.operation.id) {
        return match context.store.clear_lease(context.vm(), context.operation.id).await {
            // At most so long.
            Ok(()) => (Performed::learned(lost(standstill)), Some(since(&lease))),
            Err(error) => (Performed::unknown(error), None),
        };
    }
    let file_systems = match prove(context.host, context.store, &lease).await {
        Ok(Thawed::Proven { file_systems }) => file_systems,
        Ok(Thawed::Unproven) => {
            let failure = quiesce_failure("the guest does not say that it goes on".to_owned());
            return (Performed::unknown(failure), None);
        }
        Err(error) => return (Performed::unknown(error), None),
    };
    let after_ms = since(&lease);
    if let Err(error) = context.store.clear_lease(context.vm(), context.operation.id).await {
        return (Performed::unknown(error), None);
    }
    context.dead_man.disarm(context.vm(), context.operation.id);
    (Performed::learned(vec![Finding::Thawed { file_systems, after_ms }]), Some(after_ms))
}

/// What it means that somebody else has let the guest go on.
fn lost(standstill: Standstill) -> Vec<Finding> {
    match standstill {
        Standstill::Frozen => vec![Finding::FreezeLost {
            reason: "the guest was thawed before the switch was known to be over: it took too long"
                .to_owned(),
        }],
        Standstill::Paused => Vec::new(),
    }
}

/// Milliseconds.
#[allow(clippy::cast_precision_loss, reason = "milliseconds of a standstill are few")]
fn since(lease: &GuestLease) -> f64 {
    Timestamp::now().as_millisecond().saturating_sub(lease.since_ms).max(0) as f64
}

/// The file systems stood still until the thaw.
pub(super) fn confirm(context: &Context<'_>) -> Performed {
    match context.operation.findings.disk_consistency() {
        Consistency::FileSystem => Performed::done(),
        Consistency::Crash(reason) => Performed::not_applied(quiesce_failure(reason)),
        Consistency::Memory | Consistency::Off => {
            Performed::not_applied(quiesce_failure("nothing was frozen".to_owned()))
        }
    }
}
