//! Keeps an eye on one merge under way: whether it gains on the guest's writes, and how long the guest waits for it; what is
//! told of that, and what is done.
//!
//! Decides nothing of that: `model::convergence` judges, `plan::convergence` says what to do; `plan::speed`, how fast it may
//! copy. Leaves how a guest is slowed to `throttle`.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::model::convergence::{Sample, Tracker, Trend};
use crate::model::event::{MergeNews, of_merge};
use crate::model::step::Merge;
use crate::model::{BlockJob, Failure, Reason};
use crate::ops::OpsError;
use crate::plan::MergePolicy;
use crate::plan::convergence::{Move, Writes, next};
use crate::plan::speed::{Glance, Speed};

use super::super::board::{Course, Phase};
use super::super::throttle::LATE;
use super::Context;

/// The eye on one merge.
pub(super) struct Watch<'a> {
    context: &'a Context<'a>,
    merge: &'a Merge,
    policy: MergePolicy,
    since: Instant,
    tracker: Tracker,
    speed: Speed,
    writes: Writes,
    /// It was tried to slow the guest: that may have happened even if it failed.
    may_have_slowed: bool,
    /// It is not tried before this time has passed.
    not_before: Duration,
    /// It is not tried to end the job before this time has passed.
    not_ended_before: Duration,
    given: Given,
    /// It is not tried to give it another before this time has passed.
    not_limited_before: Duration,
    /// Why the guest could not be slowed.
    not_slowed: Option<OpsError>,
    /// It was told that there is no headway.
    is_told: bool,
}

/// The limit that the block job is known to have had from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// It was not seen yet, or could not be changed for certain.
    Nothing,
    /// So many bytes per second, or as many as there can be.
    Limit {
        /// What it has.
        to: Option<u64>,
        /// What was asked for; it is held back below that for the guest.
        asked: Option<u64>,
    },
}

/// Why a merge was ended.
#[derive(Debug, thiserror::Error)]
enum NoHeadway {
    /// The guest writes too much.
    #[error(
        "disk {disk} is not merged: the guest writes {written} bytes/s and {copied} bytes/s are copied, \
         for {seconds} s without headway"
    )]
    Outrun {
        disk: String,
        written: u64,
        copied: u64,
        seconds: u64,
        #[source]
        cause: Option<OpsError>,
    },
    /// Nothing is copied.
    #[error("disk {disk} is not merged: the block job stands still, for {seconds} s without headway")]
    Still {
        disk: String,
        seconds: u64,
        #[source]
        cause: Option<OpsError>,
    },
}

impl<'a> Watch<'a> {
    pub(super) fn new(context: &'a Context<'a>, merge: &'a Merge) -> Self {
        let configured = context.limits.merge_policy;
        let deadline = context.operation.request.merge_deadline().unwrap_or(configured.deadline);
        let policy = MergePolicy { deadline, ..configured };
        Self {
            context,
            merge,
            policy,
            since: Instant::now(),
            tracker: Tracker::new(policy.window(context.bandwidth())),
            speed: Speed::new(context.limits.speed_policy),
            writes: Writes::Free,
            may_have_slowed: false,
            not_before: Duration::ZERO,
            not_ended_before: Duration::ZERO,
            given: Given::Nothing,
            not_limited_before: Duration::ZERO,
            not_slowed: None,
            is_told: false,
        }
    }

    /// Takes in what is seen of the block job, tells of it, and does what has to be done. An error if the job was ended,
    /// because it never would have by itself.
    pub(super) async fn look(&mut self, job: &BlockJob) -> Result<(), Failure> {
        self.glance(job).await;
        self.limit(job).await;
        self.tracker.take(Sample { at: self.since.elapsed(), done: job.done, total: job.total });
        if self.tracker.trend() == Trend::Behind && self.speed.limit().is_some() {
            // It is for us to give way first. How it goes then is another matter.
            self.speed.rest(self.since.elapsed());
            self.tracker.restart();
        }
        self.show(job);
        self.tell_trend().await;
        if job.ready {
            // All is copied: it is let end as it should, however long it took.
            return Ok(());
        }
        match next(&self.policy, &self.tracker, self.writes) {
            Move::GoOn => Ok(()),
            // After a failure that may pass it is tried again, but not at every look.
            Move::Slow(_) if self.since.elapsed() < self.not_before => Ok(()),
            Move::Slow(limit) => {
                self.slow(limit).await;
                Ok(())
            }
            Move::End if self.since.elapsed() < self.not_ended_before => Ok(()),
            Move::End => self.end().await,
        }
    }

    /// Whether the guest's writes may be slowed now.
    pub(super) fn may_have_slowed(&self) -> bool {
        self.may_have_slowed
    }

    /// How fast the job may copy, in bytes per second: what was asked for, and what the guest does not notice.
    pub(super) fn bandwidth(&self) -> Option<u64> {
        [self.context.bandwidth(), self.speed.limit()].into_iter().flatten().min()
    }

    /// How long the guest waits for the disk, as often as that tells anything. Where that cannot be said nobody is held back.
    async fn glance(&mut self, job: &BlockJob) {
        let at = self.since.elapsed();
        // QEMU may not know yet how much there is to copy.
        if job.ready || job.total <= 1 || !self.speed.wants(at) {
            return;
        }
        if self.writes != Writes::Free {
            // What it waits for is our limit on its writes.
            return self.speed.rest(at);
        }
        let (hypervisor, disk) = (&self.context.host.hypervisor, &self.merge.target);
        match hypervisor.served(self.context.vm(), disk).await {
            Ok(Some(served)) => {
                let glance = Glance { at, done: job.done, total: job.total, served };
                self.speed.take(glance);
            }
            Ok(None) => self.speed.rest(at),
            Err(error) => {
                self.speed.rest(at);
                let error: &dyn std::error::Error = &error;
                tracing::debug!(operation = %self.context.operation.id, %disk, error, "how long the guest waits is not known");
            }
        }
    }

    /// The job copies as fast as it may: the guest waits too long for it, or no more; somebody has set another limit meanwhile,
    /// or did in a life that ended before the job had it. What a person has given the job by hand since then it keeps.
    async fn limit(&mut self, job: &BlockJob) {
        let (asked, to) = (self.context.bandwidth(), self.bandwidth());
        let given = Given::Limit { to, asked };
        let is_as_asked = matches!(self.given, Given::Limit { asked: before, .. } if before == asked);
        if self.speed.is_let_alone() && is_as_asked {
            return;
        }
        match self.given {
            Given::Limit { to: before, .. } if is_as_asked && job.bandwidth != before => {
                return self.speed.let_alone();
            }
            before if before == given || self.since.elapsed() < self.not_limited_before => return,
            _ if job.bandwidth == to => {
                self.given = given;
                return;
            }
            Given::Nothing | Given::Limit { .. } => {}
        }
        let (hypervisor, disk) = (&self.context.host.hypervisor, &self.merge.target);
        match hypervisor.limit_block_job(self.context.vm(), disk, to).await {
            Ok(()) => {
                // How it goes at the old rate says nothing of the new one. Held back for the guest it is judged on: it was not
                // held below what the guest writes, and a limit of each second would put off each judgement.
                if !is_as_asked {
                    self.tracker.restart_with(self.policy.window(asked));
                }
                self.given = given;
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(operation = %self.context.operation.id, %disk, error, "the block job keeps its limit");
                // It may come into force yet: that would be no limit of somebody else.
                self.given = Given::Nothing;
                self.not_limited_before = self.since.elapsed() + self.policy.patience.max(LATE);
            }
        }
    }

    fn show(&self, job: &BlockJob) {
        let (trend, pace) = (self.tracker.trend(), self.tracker.pace());
        self.context.reporter.progress(Phase::Merge, Some(&self.merge.target), job.done, job.total);
        let slowed_to = match self.writes {
            Writes::AtMost(limit) => Some(limit),
            Writes::Free | Writes::NotToBeSlowed => None,
        };
        let is_the_least = |held: &u64| self.context.bandwidth().is_none_or(|asked| *held < asked);
        let (held_to, wait) = (self.speed.held().filter(is_the_least), self.speed.wait());
        self.context.reporter.converges(&self.merge.target, Course { trend, pace, slowed_to, held_to, wait });
    }

    async fn tell_trend(&mut self) {
        let news = match self.tracker.trend() {
            Trend::Behind if !self.is_told => MergeNews::Outrun,
            Trend::Still if !self.is_told => MergeNews::Still,
            // A moment's rest of the guest is not told: it is over when less is left than ever.
            Trend::Gaining { .. } if self.is_told && self.tracker.lost().is_zero() => MergeNews::Gaining,
            Trend::Unknown | Trend::Behind | Trend::Still | Trend::Gaining { .. } => return,
        };
        self.is_told = news != MergeNews::Gaining;
        self.tell(news).await;
    }

    async fn tell(&self, news: MergeNews) {
        let Context { operation, store, .. } = self.context;
        let event = of_merge(operation, &self.merge.target, news, self.tracker.pace(), Timestamp::now());
        crate::ops::events::tell(store, event).await;
    }

    async fn slow(&mut self, limit: u64) {
        let Context { host, store, limits, operation, .. } = self.context;
        let disk = (self.context.vm(), &self.merge.target);
        self.may_have_slowed = true;
        match limits.throttles.slow((host, store), disk, operation.id, limit).await {
            Ok(limit) => {
                self.writes = Writes::AtMost(limit);
                self.not_slowed = None;
                self.tell(MergeNews::Slowed { limit }).await;
                // What it brings is seen after a window of its own.
                self.tracker.restart();
            }
            Err(error) => {
                let told: &dyn std::error::Error = &error;
                tracing::warn!(operation = %operation.id, disk = %disk.1, error = told, "the guest's writes cannot be slowed");
                if passes(&error) {
                    self.not_before = self.since.elapsed() + self.policy.patience;
                } else {
                    self.writes = Writes::NotToBeSlowed;
                }
                self.not_slowed = Some(error);
            }
        }
    }

    /// The job ends where it stands, and the VM goes on with the layers that it has. As long as it is not seen that it has
    /// ended, it is followed on, and this is tried again.
    async fn end(&mut self) -> Result<(), Failure> {
        let (hypervisor, vm) = (&self.context.host.hypervisor, self.context.vm());
        let aborted = hypervisor.abort_block_job(vm, &self.merge.target).await;
        let jobs = hypervisor.block_jobs(vm).await;
        let is_gone = jobs.is_ok_and(|jobs| jobs.iter().all(|(disk, _)| *disk != self.merge.target));
        if !is_gone {
            tracing::warn!(operation = %self.context.operation.id, disk = %self.merge.target, ?aborted, "the block job does not end");
            self.not_ended_before = self.since.elapsed() + self.policy.patience;
            return Ok(());
        }
        Err(self.no_headway())
    }

    fn no_headway(&mut self) -> Failure {
        let cause = self.not_slowed.take();
        let (disk, seconds) = (self.merge.target.to_string(), self.tracker.lost().as_secs());
        let pace = self.tracker.pace();
        let error = if self.tracker.trend() == Trend::Still {
            NoHeadway::Still { disk, seconds, cause }
        } else {
            NoHeadway::Outrun { disk, written: pace.written, copied: pace.copied, seconds, cause }
        };
        Failure::new(Reason::MergeNotConverging, &error)
    }
}

/// Whether the same may succeed later.
fn passes(error: &OpsError) -> bool {
    match error {
        OpsError::Host(error) => error.is_retryable(),
        OpsError::Store(_) => true,
        _ => false,
    }
}

/// Lets the guest write to the disk of a merge as before, whoever slowed it.
pub(super) async fn free(context: &Context<'_>, merge: &Merge) -> Result<(), OpsError> {
    if context.operation.of_vm().is_none() {
        return Ok(());
    }
    let disk = (context.vm(), &merge.target);
    context.limits.throttles.free((context.host, context.store), disk).await
}
