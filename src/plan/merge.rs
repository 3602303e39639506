//! The next move of a merge, from what is seen of it: the same whether it begins, goes on, or is found again after a
//! crash; whether the VM runs, is off, or changed from one to the other half way.
//!
//! A commit only rolls forward. While the child is anybody's backing file or a VM writes to it, the child is the truth
//! and the base alone is a mixture. "The block job is gone" says nothing: only the chains do.
//!
//! Once a VM has been asked to write to the base, only its process knows which of the two is newer. If it ends before
//! anybody has seen that, and the definition does not name the base, nothing that is left behind tells: see `pivot`.

use std::path::{Path, PathBuf};

use crate::model::step::{How, ImageRef, Merge};
use crate::model::vm::{BlockJob, BlockJobKind};

mod pivot;
mod pull;
mod supersede;

pub use pivot::Pivot;

/// What is seen of a merge. By default: no VM has the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether the VM has a process.
    pub is_live: bool,
    /// The images that the disk reads through, active first; of an off VM, as its definition says.
    pub chain: Vec<PathBuf>,
    /// The image that the stored definition names, if there is one.
    pub stored: Option<PathBuf>,
    /// Whether the VM has a saved state, which its next start goes on with, on the images of then.
    pub is_saved: bool,
    /// The images that the stored definition lists below that one.
    pub stored_below: Vec<PathBuf>,
    /// The block job on the disk.
    pub job: Option<BlockJob>,
    /// The backing file that each of [`Merge::headers`] names, in their order.
    pub backings: Vec<Option<PathBuf>>,
    /// Whether this very attempt has already seen an offline commit through.
    pub committed_offline: bool,
    /// What is known of a pivot that was asked for.
    pub pivot: Pivot,
    /// The active layer of a VM that is off, if its definition tells something else of what lies below it than the headers
    /// do. Nothing else is seen of the VM then.
    pub outdated: Option<PathBuf>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Start a block commit on the running VM.
    StartCommit {
        /// Whether the child is the active layer.
        is_active: bool,
    },
    /// A block commit is at work.
    Wait,
    /// Let the VM write to the base.
    Pivot,
    /// Nobody has the child open: copy it into the base.
    CommitOffline,
    /// Start to copy into the child, the active layer of the running VM.
    StartPull {
        /// What the child is to lie on; None for nothing.
        below: Option<ImageRef>,
    },
    /// Nobody has the child open: copy into it what it reads from the others.
    PullOffline {
        /// What the child is to lie on; None for nothing.
        below: Option<ImageRef>,
    },
    /// The base reads what the child reads: let it take the child's name.
    TakeName,
    /// Let these grandchildren (by index) lie on the base.
    Rebase(Vec<usize>),
    /// Let the stored definition name the base.
    PointAtBase,
    /// Let the stored definition name the child again: it was changed while somebody started the VM.
    PointAtChild,
    /// Nothing: a saved state of the VM goes on with the child.
    Saved,
    /// Let the stored definition name the active layer that it names, and forget what it tells of the layers below.
    PointAtActive(PathBuf),
    /// The base may be newer than the child, or older: look whether they read the same.
    Compare,
    /// The base may be newer than the child, or older, and nobody can tell. Why, in words.
    Undecided(String),
    /// Nothing refers to the child.
    Done,
    /// What is seen fits no stage of this merge.
    Contradiction(String),
}

/// The next move.
#[must_use]
pub fn next(merge: &Merge, seen: &Seen) -> Next {
    if let Some(active) = &seen.outdated {
        return next_of_outdated(merge, seen, active);
    }
    if seen.is_saved && !seen.is_live && seen.chain.contains(&merge.child.path) {
        return Next::Saved;
    }
    if let Some(next) = pivot::next(merge, seen) {
        return next;
    }
    let next = match &merge.how {
        How::Commit { .. } => next_of_commit(merge, seen),
        How::Pull { below } => pull::next(merge, below.as_ref(), seen),
        How::Supersede { below } => supersede::next(merge, below.as_ref(), seen),
    };
    match (next, &seen.stored) {
        (Next::Done, Some(stored)) if lists_what_goes(merge, seen) => Next::PointAtActive(stored.clone()),
        (next, _) => next,
    }
}

/// libvirt may die between its two notes of the end of a job: it knows of it as long as the process runs, and the next cold
/// start would look for the layers that are gone by then.
fn lists_what_goes(merge: &Merge, seen: &Seen) -> bool {
    merge.gone().any(|layer| seen.stored_below.contains(&layer.path))
}

/// libvirt may die before it notes that a job of QEMU has ended. What its definition tells of the chain is then from
/// before that; the headers, which QEMU writes at the end of a job, are the proof.
fn next_of_outdated(merge: &Merge, seen: &Seen, active: &Path) -> Next {
    let has_ended = match &merge.how {
        How::Commit { .. } => has_moved(merge, seen),
        How::Pull { below } => {
            let lies_on = seen.backings.first().and_then(Option::as_deref);
            lies_on == below.as_ref().map(|below| below.path.as_path())
        }
        How::Supersede { .. } => false,
    };
    if has_ended {
        return Next::PointAtActive(active.to_owned());
    }
    Next::Contradiction(format!(
        "the definition tells another chain below {} than the headers",
        active.display()
    ))
}

fn next_of_commit(merge: &Merge, seen: &Seen) -> Next {
    let reads = |path: &Path| seen.chain.iter().any(|image| image == path);
    if seen.is_live && reads(&merge.child.path) {
        return next_of_block_job(merge, seen);
    }
    if let Some(job) = seen.job {
        // The chain has changed already, the job is being wound up; or it was never ours.
        return match job.kind {
            BlockJobKind::ActiveCommit | BlockJobKind::Commit => Next::Wait,
            BlockJobKind::Pull | BlockJobKind::Other => {
                Next::Contradiction("another block job runs on the disk".to_owned())
            }
        };
    }
    let unmoved = unmoved(merge, seen);
    if seen.is_live && reads(&merge.base.path) {
        // The VM went past the child: the commit is complete.
        return match &seen.stored {
            Some(stored) if *stored == merge.child.path => Next::PointAtBase,
            Some(_) | None if unmoved.is_empty() => Next::Done,
            Some(_) | None => Next::Rebase(unmoved),
        };
    }
    next_offline(merge, seen, unmoved)
}

fn next_of_block_job(merge: &Merge, seen: &Seen) -> Next {
    let is_active = seen.chain.first() == Some(&merge.child.path);
    match seen.job {
        // If it ended as it is, the base would be taken for the newer one.
        None if is_active && seen.stored.as_ref() == Some(&merge.base.path) => Next::PointAtChild,
        None => Next::StartCommit { is_active },
        Some(BlockJob { kind: BlockJobKind::Pull | BlockJobKind::Other, .. }) => {
            Next::Contradiction("another block job runs on the disk".to_owned())
        }
        Some(BlockJob { kind: BlockJobKind::ActiveCommit, ready: true, .. }) => Next::Pivot,
        Some(BlockJob { kind: BlockJobKind::ActiveCommit | BlockJobKind::Commit, .. }) => Next::Wait,
    }
}

/// The VM is off, or the merge is on a branch that it does not read.
fn next_offline(merge: &Merge, seen: &Seen, unmoved: Vec<usize>) -> Next {
    let writes_to = |path: &Path| !seen.is_live && seen.chain.first().is_some_and(|image| image == path);
    if writes_to(&merge.base.path) {
        return if unmoved.is_empty() { Next::Done } else { Next::Rebase(unmoved) };
    }
    if !seen.committed_offline && !has_moved(merge, seen) {
        return Next::CommitOffline;
    }
    if !unmoved.is_empty() {
        return Next::Rebase(unmoved);
    }
    if writes_to(&merge.child.path) { Next::PointAtBase } else { Next::Done }
}

/// A grandchild is moved only once the commit is complete: one that lies on the base is the proof.
fn has_moved(merge: &Merge, seen: &Seen) -> bool {
    seen.backings.iter().any(|backing| backing.as_deref() == Some(&*merge.base.path))
}

fn unmoved(merge: &Merge, seen: &Seen) -> Vec<usize> {
    let lies_on_child = |backing: &Option<PathBuf>| backing.as_deref() == Some(&*merge.child.path);
    seen.backings
        .iter()
        .enumerate()
        .filter(|(_, backing)| lies_on_child(backing))
        .map(|(index, _)| index)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vm::Format;

    fn image(path: &str) -> ImageRef {
        ImageRef { path: path.into(), format: Format::Qcow2 }
    }

    pub(super) fn merge_by(how: How) -> Merge {
        let target = "vda".parse().unwrap();
        Merge { target, base: image("/base"), between: Vec::new(), child: image("/child"), how }
    }

    fn merge(grandchildren: &[&str]) -> Merge {
        merge_by(How::Commit { grandchildren: grandchildren.iter().map(|path| image(path)).collect() })
    }

    pub(super) fn seen(is_live: bool, chain: &[&str]) -> Seen {
        Seen {
            is_live,
            chain: chain.iter().map(PathBuf::from).collect(),
            stored: chain.first().map(PathBuf::from),
            job: None,
            ..Seen::default()
        }
    }

    pub(super) fn job(kind: BlockJobKind, ready: bool) -> BlockJob {
        BlockJob { kind, done: 5, total: 5, ready, bandwidth: None }
    }

    #[allow(clippy::needless_pass_by_value, reason = "cases read better by value")]
    fn check(grandchildren: &[(&str, &str)], seen: Seen, expected: &Next) {
        let names: Vec<&str> = grandchildren.iter().map(|(name, _)| *name).collect();
        let backings = grandchildren.iter().map(|(_, backing)| Some(PathBuf::from(backing))).collect();
        assert_eq!(next(&merge(&names), &Seen { backings, ..seen.clone() }), *expected, "{seen:?}");
    }

    #[test]
    fn a_definition_from_before_the_end_of_a_job() {
        let outdated = Seen { outdated: Some("/top".into()), ..Seen::default() };
        check(&[("/top", "/base")], outdated.clone(), &Next::PointAtActive("/top".into()));
        let words = "the definition tells another chain below /top than the headers".to_owned();
        check(&[("/top", "/child")], outdated, &Next::Contradiction(words));
    }

    #[test]
    fn a_definition_that_lists_what_goes() {
        let lists = |below: &[&str], seen: Seen| {
            let stored_below = below.iter().map(PathBuf::from).collect();
            Seen { stored_below, ..seen }
        };
        let merged = || seen(true, &["/top", "/base"]);
        let moved = [("/top", "/base")];
        check(&moved, lists(&["/child", "/base"], merged()), &Next::PointAtActive("/top".into()));
        check(&moved, lists(&["/base"], merged()), &Next::Done);
        check(&moved, lists(&[], merged()), &Next::Done);
        // Before, there is nothing to mend.
        let unmerged = seen(true, &["/top", "/child", "/base"]);
        let start = Next::StartCommit { is_active: false };
        check(&[("/top", "/child")], lists(&["/child", "/base"], unmerged), &start);
    }

    #[test]
    fn an_active_layer_of_a_running_vm() {
        let chain = &["/child", "/base"];
        check(&[], seen(true, chain), &Next::StartCommit { is_active: true });
        let with = |job| Seen { job: Some(job), ..seen(true, chain) };
        check(&[], with(job(BlockJobKind::ActiveCommit, false)), &Next::Wait);
        check(&[], with(job(BlockJobKind::ActiveCommit, true)), &Next::Pivot);
        check(
            &[],
            with(job(BlockJobKind::Other, true)),
            &Next::Contradiction("another block job runs on the disk".to_owned()),
        );
        check(&[], seen(true, &["/base"]), &Next::Done);
        check(
            &[],
            Seen { job: Some(job(BlockJobKind::ActiveCommit, true)), ..seen(true, &["/base"]) },
            &Next::Wait,
        );
        check(&[], Seen { stored: Some("/child".into()), ..seen(true, &["/base"]) }, &Next::PointAtBase);
    }

    /// Somebody has started it between the last look and the change of the definition.
    #[test]
    fn a_vm_that_was_started_meanwhile() {
        let started = Seen { stored: Some("/base".into()), ..seen(true, &["/child", "/base"]) };
        check(&[], started.clone(), &Next::PointAtChild);
        // Another image is nobody's mistake of ours.
        check(
            &[],
            Seen { stored: Some("/other".into()), ..started.clone() },
            &Next::StartCommit { is_active: true },
        );
        check(&[], Seen { stored: None, ..started }, &Next::StartCommit { is_active: true });
    }

    #[test]
    fn a_vm_that_is_saved() {
        let saved = |chain| Seen { is_saved: true, ..seen(false, chain) };
        check(&[], saved(&["/child", "/base"]), &Next::Saved);
        check(&[], Seen { committed_offline: true, ..saved(&["/child", "/base"]) }, &Next::Saved);
        check(&[("/top", "/child")], saved(&["/top", "/child", "/base"]), &Next::Saved);
        check(&[], saved(&["/base"]), &Next::Done);
        let pivot = Pivot::Unseen { reads_same: Some(true) };
        check(&[], Seen { pivot, ..saved(&["/child", "/base"]) }, &Next::Saved);
        // It does not read that branch.
        check(&[("/dead", "/child")], saved(&["/live", "/root"]), &Next::CommitOffline);
        let pull = merge_by(How::Pull { below: None });
        let backings = vec![Some("/base".into())];
        assert_eq!(next(&pull, &Seen { backings, ..saved(&["/child", "/base"]) }), Next::Saved);
    }

    #[test]
    fn a_frozen_layer_of_a_running_vm() {
        let chain = &["/top", "/child", "/base"];
        check(&[("/top", "/child")], seen(true, chain), &Next::StartCommit { is_active: false });
        check(
            &[("/top", "/child")],
            Seen { job: Some(job(BlockJobKind::Commit, false)), ..seen(true, chain) },
            &Next::Wait,
        );
        check(&[("/top", "/base")], seen(true, &["/top", "/base"]), &Next::Done);
        let dead = [("/top", "/base"), ("/dead", "/child")];
        check(&dead, seen(true, &["/top", "/base"]), &Next::Rebase(vec![1]));
    }

    #[test]
    fn a_vm_that_is_off() {
        check(&[], seen(false, &["/child", "/base"]), &Next::CommitOffline);
        let committed = Seen { committed_offline: true, ..seen(false, &["/child", "/base"]) };
        check(&[], committed, &Next::PointAtBase);
        check(&[], seen(false, &["/base"]), &Next::Done);
        check(&[("/top", "/child")], seen(false, &["/top", "/child", "/base"]), &Next::CommitOffline);
        let committed = Seen { committed_offline: true, ..seen(false, &["/top", "/child", "/base"]) };
        check(&[("/top", "/child")], committed, &Next::Rebase(vec![0]));
        check(&[("/top", "/base")], seen(false, &["/top", "/base"]), &Next::Done);
        let half = [("/top", "/base"), ("/dead", "/child")];
        check(&half, seen(false, &["/top", "/base"]), &Next::Rebase(vec![1]));
    }

    #[test]
    fn a_branch_that_the_running_vm_does_not_read() {
        check(&[("/dead", "/child")], seen(true, &["/live", "/root"]), &Next::CommitOffline);
        check(&[("/dead", "/base")], seen(true, &["/live", "/root"]), &Next::Done);
        check(&[], seen(true, &["/live", "/root"]), &Next::CommitOffline);
        check(&[], Seen { committed_offline: true, ..seen(true, &["/live", "/root"]) }, &Next::Done);
    }
}
