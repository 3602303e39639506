//! Merges: all disks side by side, each by the moves that `plan::merge` gives for what is seen of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{broadcast, watch};

use crate::host::{Commit, HostError, HostEvent, Pull, Result};
use crate::model::step::{How, ImageRef, Merge, MergeLayers};
use crate::model::vm::{BlockJobKind, DiskSource, Format, RunState};
use crate::model::{Failure, Request, VmId};
use crate::plan::merge::{Next, Seen, next};

use super::super::board::Phase;
use super::convergence::{self, Watch};
use super::pivot::Asked;
use super::power::{COMES_UP, settle};
use super::{Context, OpsError, Performed, told};

/// The hypervisor tells when a job is ready or gone, but not how far it is: asked so often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// What came of one merge.
enum Merged {
    /// It is complete.
    Complete,
    /// It was refused before anything began.
    Untouched(Failure),
    /// It is somewhere on the way.
    Halfway(Failure),
    /// It was ended on the way: it makes no headway.
    GivenUp(Failure),
    /// It is somewhere on the way, and as good as never begun.
    Left(Failure),
    /// The daemon is going down.
    Interrupted,
}

/// The children are merged into their bases and nothing refers to them.
pub(super) async fn merge(context: &Context<'_>, layers: &MergeLayers) -> Performed {
    // An earlier attempt, or an earlier life, may have left the guest slowed.
    for merge in &layers.merges {
        if let Err(error) = convergence::free(context, merge).await {
            return Performed::unknown(error);
        }
    }
    let _slot = context.limits.merges.acquire().await;
    // What is merged into reads wrong from the first byte on, and is not as long as it was.
    let written = layers.merges.iter().flat_map(|merge| [&merge.base, &merge.child]);
    let written = written.map(|image| image.path.clone()).collect();
    let withdrawn = match context.store.forget_seen(written).await {
        Ok(()) => context.manifests.withdraw(context.vm()).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = withdrawn {
        let failure = Failure::new(error.reason(), &error);
        return if context.is_fresh { Performed::not_applied(failure) } else { Performed::unknown(failure) };
    }
    let all = join_all(layers.merges.iter().map(|merge| carry_out(context, merge))).await;
    let mut untouched = 0;
    let (mut failure, mut given_up) = (None, None);
    for merged in all {
        match merged {
            Merged::Complete => {}
            Merged::Untouched(error) => {
                untouched += 1;
                failure.get_or_insert(error);
            }
            Merged::Halfway(error) => failure = Some(error),
            Merged::GivenUp(error) => given_up = Some(error),
            Merged::Left(error) => return Performed::not_applied(error),
            Merged::Interrupted => return Performed::Interrupted,
        }
    }
    if let Some(error) = given_up {
        return Performed::gave_up(error);
    }
    match failure {
        None => Performed::done(),
        Some(error) if context.is_fresh && untouched == layers.merges.len() => Performed::not_applied(error),
        Some(error) => Performed::unknown(error),
    }
}

async fn carry_out(context: &Context<'_>, merge: &Merge) -> Merged {
    let _followed = context.limits.throttles.follow(context.vm(), &merge.target);
    let mut watch = Watch::new(context, merge);
    let merged = follow(context, merge, &mut watch).await;
    if !watch.may_have_slowed() {
        return merged;
    }
    match (convergence::free(context, merge).await, merged) {
        // It is over only when the guest writes as before.
        (Err(error), Merged::Complete | Merged::Untouched(_)) => Merged::Halfway(error.into()),
        (Ok(()) | Err(_), merged) => merged,
    }
}

async fn follow(context: &Context<'_>, merge: &Merge, watch: &mut Watch<'_>) -> Merged {
    let mut events = context.host.hypervisor.events();
    let mut course = match Asked::load(context, merge).await {
        Ok(asked) => Course { has_begun: asked.is_pending(), asked, ..Course::default() },
        Err(error) => return Merged::Untouched(error.into()),
    };
    // Since it was last seen, it was waited for that the VM comes to one state.
    let mut has_settled = false;
    loop {
        if context.stopping.is_cancelled() {
            return Merged::Interrupted;
        }
        let moved = match see(context, merge, &course).await {
            Ok(seen) => {
                has_settled = false;
                if seen.is_live && seen.chain.contains(&merge.child.path) {
                    // Whoever has it open writes to what was merged already.
                    course.committed_offline = false;
                }
                // Somebody else's job is none of ours to slow the guest for, or to end.
                if let Some(job) = seen.job.as_ref().filter(|job| job.kind != BlockJobKind::Other)
                    && let Err(failure) = watch.look(job).await
                {
                    let now = see(context, merge, &course).await;
                    if !now.is_ok_and(|now| next(merge, &now) == Next::Done) {
                        return Merged::GivenUp(failure);
                    }
                    // It came to its own end before it could be ended.
                    continue;
                }
                course.bandwidth = watch.bandwidth();
                match next(merge, &seen) {
                    Next::Undecided(problem) => return Merged::GivenUp(undecided(merge, problem)),
                    Next::Saved if course.has_begun || !context.is_fresh => {
                        return Merged::GivenUp(saved(merge));
                    }
                    Next::Saved => return Merged::Untouched(saved(merge)),
                    next => course.step(context, merge, (next, &seen), &mut events).await,
                }
            }
            Err(HostError::Busy(_)) if !has_settled && context.operation.of_vm().is_some() => {
                has_settled = true;
                settle(context, context.vm(), COMES_UP).await;
                continue;
            }
            // Whether it has ended, or went to another node and took its definition along, nobody can tell: nothing is done to
            // the image any more. It reads the same at each moment, and is left as far as it got.
            Err(error @ HostError::NoSuchVm(_)) if flattens(context) => return Merged::Left(error.into()),
            Err(error) => Err(error.into()),
        };
        match moved {
            Ok(true) => return Merged::Complete,
            Ok(false) => {}
            Err(error) if course.has_begun => return Merged::Halfway(error.into()),
            Err(error) => return Merged::Untouched(error.into()),
        }
    }
}

/// Whether all it does is to let one image stand alone.
fn flattens(context: &Context<'_>) -> bool {
    matches!(context.operation.request, Request::FlattenVolume(_))
}

/// Trying again finds the same, until a person has decided.
fn undecided(merge: &Merge, problem: String) -> Failure {
    HostError::BadImage { path: merge.child.path.clone(), problem }.into()
}

fn saved(merge: &Merge) -> Failure {
    let child = merge.child.path.display();
    let cause = format!(
        "the VM has a saved state, which goes on with {child}: start the VM, or remove the saved state with \
         'virsh managedsave-remove', and try again"
    );
    HostError::Refused { call: "merge", cause: cause.into() }.into()
}

/// What this attempt has done so far.
#[derive(Default)]
struct Course {
    /// A byte may be in the base.
    has_begun: bool,
    has_started_job: bool,
    /// What a job copies that is started now, at most, in bytes per second.
    bandwidth: Option<u64>,
    committed_offline: bool,
    /// The active layer that the definition names, and nothing below it any more.
    refreshed: Option<PathBuf>,
    /// The pivot that may have been asked for.
    asked: Asked,
}

impl Course {
    /// One move. True when there is nothing left to do.
    async fn step(
        &mut self,
        context: &Context<'_>,
        merge: &Merge,
        (next, seen): (Next, &Seen),
        events: &mut broadcast::Receiver<HostEvent>,
    ) -> std::result::Result<bool, OpsError> {
        match next {
            Next::Done => {
                self.asked.forget(context, merge).await?;
                return Ok(true);
            }
            Next::StartCommit { is_active } => {
                self.start_commit(context, merge, is_active, seen).await?;
            }
            Next::Wait => {
                self.has_begun = true;
                wait(context, events).await;
            }
            Next::Pivot => {
                self.has_begun = true;
                match self.asked.pivot(context, merge).await {
                    // READY may blink; the next look tells.
                    Err(OpsError::Host(HostError::NotReady(_))) => wait(context, events).await,
                    result => result?,
                }
            }
            Next::Compare => {
                let pair = [merge.child.clone(), merge.base.clone()];
                check_unused(context, &pair).await?;
                let [child, base] = &pair;
                self.asked.compared(context.host.images.reads_same(child, base).await?);
            }
            Next::CommitOffline => {
                commit_offline(context, merge, self).await?;
                self.committed_offline = true;
            }
            Next::StartPull { below } => {
                self.check_not_started(merge)?;
                let below = below.map(|below| below.path);
                let pull = Pull { disk: merge.target.clone(), below, bandwidth: self.bandwidth };
                let started = context.host.hypervisor.start_pull(context.vm(), &pull).await;
                self.take_in_start(context, merge, seen, started).await?;
            }
            Next::PullOffline { below } => pull_offline(context, merge, below.as_ref(), self).await?,
            Next::TakeName => {
                // Whoever has the child open would go on with a file that nobody finds again.
                check_unused(context, &[merge.child.clone(), merge.base.clone()]).await?;
                context.host.images.replace(&merge.base.path, &merge.child.path).await?;
            }
            Next::Rebase(grandchildren) => {
                self.has_begun = true;
                for index in grandchildren {
                    context.host.images.rebase(&merge.headers()[index], &merge.base).await?;
                }
            }
            Next::PointAtBase => {
                self.has_begun = true;
                let disks = [(merge.target.clone(), merge.base.clone())];
                context.host.hypervisor.point_disks(context.vm(), &disks).await?;
            }
            // Two looks of which one is from before a pivot, and one from after it, may look like that, too.
            Next::PointAtChild if self.asked.is_pending() => {
                return Err(HostError::Busy("its definition and its process do not agree".into()).into());
            }
            Next::PointAtChild => {
                self.has_begun = true;
                let disks = [(merge.target.clone(), merge.child.clone())];
                context.host.hypervisor.point_disks(context.vm(), &disks).await?;
            }
            Next::PointAtActive(active) if self.refreshed.as_ref() != Some(&active) => {
                self.has_begun = true;
                self.refreshed = Some(active.clone());
                refresh(context, merge, &active).await?;
            }
            Next::PointAtActive(path) => {
                let problem = "what lies below it cannot be told, whatever the definition says".to_owned();
                return Err(HostError::BadImage { path, problem }.into());
            }
            Next::Contradiction(problem) => {
                return Err(HostError::BadImage { path: merge.child.path.clone(), problem }.into());
            }
            Next::Undecided(_) | Next::Saved => unreachable!("whoever follows it ends there"),
        }
        Ok(false)
    }

    async fn start_commit(
        &mut self,
        context: &Context<'_>,
        merge: &Merge,
        is_active: bool,
        seen: &Seen,
    ) -> Result<()> {
        self.check_not_started(merge)?;
        let commit = Commit {
            disk: merge.target.clone(),
            top: merge.child.path.clone(),
            base: merge.base.path.clone(),
            is_active,
            bandwidth: self.bandwidth,
        };
        let started = context.host.hypervisor.start_commit(context.vm(), &commit).await;
        self.take_in_start(context, merge, seen, started).await
    }

    /// "The block job is gone" is never success: the disk still reads through the layers.
    fn check_not_started(&self, merge: &Merge) -> Result<()> {
        if !self.has_started_job {
            return Ok(());
        }
        Err(HostError::BadImage {
            path: merge.survivor().path.clone(),
            problem: "the block job ended before the layers were merged".to_owned(),
        })
    }

    /// Nothing began if it was refused and all is as it was `before`; anything less clear may have begun.
    async fn take_in_start(
        &mut self,
        context: &Context<'_>,
        merge: &Merge,
        before: &Seen,
        started: Result<()>,
    ) -> Result<()> {
        let Err(error) = started else {
            self.has_begun = true;
            self.has_started_job = true;
            return Ok(());
        };
        let is_refused = matches!(error, HostError::Refused { .. } | HostError::Busy(_));
        self.has_begun |= !is_refused || !self.is_as_before(context, merge, before).await;
        Err(error)
    }

    async fn is_as_before(&self, context: &Context<'_>, merge: &Merge, before: &Seen) -> bool {
        see(context, merge, self).await.is_ok_and(|now| now == *before)
    }
}

async fn commit_offline(context: &Context<'_>, merge: &Merge, course: &mut Course) -> Result<()> {
    let layers: Vec<ImageRef> = merge.gone().chain([&merge.base]).cloned().collect();
    check_unused(context, &layers).await?;
    course.has_begun = true;
    let (progress, seen) = watch::channel((0, 0));
    see_through(context, merge, seen, context.host.images.commit(&layers, &progress)).await
}

/// The definition names the image that it names, in the format that it says, and lists nothing below it.
async fn refresh(context: &Context<'_>, merge: &Merge, active: &Path) -> Result<()> {
    context.check_here().await?;
    let hypervisor = &context.host.hypervisor;
    match hypervisor.written_image(context.vm(), &merge.target).await?.stored {
        Some(stored) if stored.path == active => {
            hypervisor.point_disks(context.vm(), &[(merge.target.clone(), stored)]).await
        }
        Some(_) | None => Err(HostError::Malformed {
            what: "the definition of the VM",
            cause: format!("it does not name {} any more", active.display()).into(),
        }),
    }
}

async fn pull_offline(
    context: &Context<'_>,
    merge: &Merge,
    below: Option<&ImageRef>,
    course: &mut Course,
) -> Result<()> {
    check_unused(context, std::slice::from_ref(&merge.child)).await?;
    course.has_begun = true;
    let (progress, seen) = watch::channel((0, 0));
    see_through(context, merge, seen, context.host.images.pull(&merge.child, below, &progress)).await
}

async fn check_unused(context: &Context<'_>, images: &[ImageRef]) -> Result<()> {
    for image in images {
        if context.host.images.is_in_use(&image.path, image.format).await? {
            return Err(HostError::ImageInUse(image.path.clone()));
        }
    }
    Ok(())
}

async fn see_through(
    context: &Context<'_>,
    merge: &Merge,
    mut seen: watch::Receiver<(u64, u64)>,
    merging: impl Future<Output = Result<()>>,
) -> Result<()> {
    let mut merging = std::pin::pin!(merging);
    loop {
        tokio::select! {
            biased;
            result = &mut merging => return result,
            Ok(()) = seen.changed() => {
                let (done, total) = *seen.borrow_and_update();
                context.reporter.progress(Phase::Merge, Some(&merge.target), done, total);
            }
        }
    }
}

/// Until something happens to a block job of the VM, or it is time to show how far it is.
async fn wait(context: &Context<'_>, events: &mut broadcast::Receiver<HostEvent>) {
    let ours = [HostEvent::BlockJobChanged(context.vm()), HostEvent::VmChanged(context.vm())];
    tokio::select! {
        biased;
        () = told(events, &ours) => {}
        () = context.stopping.cancelled() => {}
        () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
    }
}

async fn see(context: &Context<'_>, merge: &Merge, course: &Course) -> Result<Seen> {
    let mut backings = Vec::with_capacity(merge.headers().len());
    let mut seen = if let Some(vm) = context.operation.of_vm() {
        see_disk(context, vm, merge).await?
    } else {
        // A VM may have come to have the volume, and gone since.
        context.check_not_elsewhere(&[&merge.base.path, &merge.child.path]).await?;
        Seen::default()
    };
    if let Some(job) = seen.job.as_mut().filter(|_| context.is_fresh && !course.has_started_job) {
        // Nobody has ever asked for one of ours.
        job.kind = BlockJobKind::Other;
    }
    for image in merge.headers() {
        let facts = context.host.images.inspect(&image.path, Format::Qcow2).await?;
        backings.push(facts.backing.map(|backing| backing.path));
    }
    // After the look at the VM: a process that has ended by now is the one that was seen, or none was.
    let pivot = course.asked.look(context, merge, seen.is_live).await?;
    Ok(Seen { backings, pivot, committed_offline: course.committed_offline, ..seen })
}

async fn see_disk(context: &Context<'_>, vm: VmId, merge: &Merge) -> Result<Seen> {
    let view = match context.look_at_vm().await {
        Err(error @ (HostError::Disagreement(_) | HostError::BadImage { .. })) => {
            return see_past_it(context, vm, merge, error).await;
        }
        view => view?,
    };
    if view.run_state == RunState::Unsettled {
        // It shows no jobs now, whatever there are.
        return Err(HostError::Busy("the VM is between two states".into()));
    }
    let disk = view.disk(&merge.target).ok_or_else(|| HostError::NoSuchDisk(merge.target.clone()))?;
    let (stored, stored_below) = match &disk.source {
        DiskSource::Chain { persistent, persistent_below, .. } => {
            (persistent.clone(), persistent_below.clone())
        }
        DiskSource::Excluded(_) | DiskSource::Refused(_) => (None, Vec::new()),
    };
    Ok(Seen {
        is_live: view.run_state.is_live(),
        is_saved: view.has_managed_save,
        chain: disk.chain().iter().map(|image| image.path.clone()).collect(),
        stored,
        stored_below,
        job: disk.block_job,
        ..Seen::default()
    })
}

/// libvirt may die between QEMU's pivot and its own note of it, and believes something wrong until the VM stops. That the
/// process writes to the base is the proof; what matters then is that the next cold start does so, too: it would boot the
/// child, which lacks what was written since, over a base that has it. Of a VM that is off, the definition may tell a chain
/// from before the end of a job.
async fn see_past_it(context: &Context<'_>, vm: VmId, merge: &Merge, error: HostError) -> Result<Seen> {
    let written = context.host.hypervisor.written_image(vm, &merge.target).await?;
    let stored = written.stored.map(|image| image.path);
    if written.process.is_none() && stored.is_some() {
        return Ok(Seen { outdated: stored, ..Seen::default() });
    }
    let is_base = written.live.as_ref() == Some(&merge.base.path);
    if !is_base || !matches!(merge.how, How::Commit { .. }) {
        return Err(error);
    }
    tracing::warn!(%vm, disk = %merge.target, "the VM writes to the base already, and libvirt does not know");
    Ok(Seen { is_live: true, chain: vec![merge.base.path.clone()], stored, ..Seen::default() })
}
