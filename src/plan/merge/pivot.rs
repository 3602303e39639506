//! The next move of a merge whose VM was asked to write to the base, and whose process has ended since.
//!
//! ```text
//!   asked ---> the process writes to the base -------> base newer, child as it was
//!         `--> it goes on with the child ------------> child newer, base behind by what was not copied yet
//! ```
//! Neither file says which it was, and what is newer differs where the guest has written last. So: a definition that names
//! the base was changed by the hypervisor, which has seen it, or by a person, who has decided. Two images that read the
//! same are the same truth. Anything else is left to a person: the child is never merged into a base that may be newer.

use std::path::Path;

use super::{How, Merge, Next, Seen, unmoved};

/// What is known of a pivot that was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pivot {
    /// All: none was asked for, or the process that was asked is there and tells what it writes to.
    #[default]
    Seen,
    /// The process that was asked has ended since.
    Unseen {
        /// Whether the child and the base read the same; None before they were compared.
        reads_same: Option<bool>,
    },
}

/// The next move, if this has a say in it.
pub(super) fn next(merge: &Merge, seen: &Seen) -> Option<Next> {
    let Pivot::Unseen { reads_same } = seen.pivot else { return None };
    let reads = |path: &Path| seen.chain.iter().any(|image| image == path);
    if reads(&merge.base.path) && !reads(&merge.child.path) {
        return None;
    }
    let is_commit = matches!(merge.how, How::Commit { .. });
    let is_at_rest = !seen.is_live && seen.chain.first() == Some(&merge.child.path);
    match reads_same {
        None if is_commit && is_at_rest => Some(Next::Compare),
        Some(true) if is_commit && is_at_rest => {
            let unmoved = unmoved(merge, seen);
            Some(if unmoved.is_empty() { Next::PointAtBase } else { Next::Rebase(unmoved) })
        }
        None | Some(_) => Some(Next::Undecided(words(merge))),
    }
}

fn words(merge: &Merge) -> String {
    let (child, base) = (merge.child.path.display(), merge.base.path.display());
    format!(
        "the VM was asked to write to {base} instead of {child}, and has ended before it was seen whether it did: either \
         may hold what its guest wrote last. If that is {child}: 'virsh blockcommit' with --base {base} --active --pivot \
         while the VM runs, or 'qemu-img commit' while it is off. If it is {base}: with the VM off, nothing. Then let the \
         definition name {base}, and the operation try again"
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::tests::{merge_by, seen};
    use super::super::{Next, next};
    use super::*;
    use crate::model::step::ImageRef;
    use crate::model::vm::Format;

    #[test]
    fn a_process_that_ended_after_it_was_asked() {
        let commit = || merge_by(How::Commit { grandchildren: Vec::new() });
        let undecided = Next::Undecided(words(&commit()));
        let cases: &[(bool, &[&str], Option<bool>, &Next)] = &[
            (false, &["/child", "/base"], None, &Next::Compare),
            (false, &["/child", "/base"], Some(true), &Next::PointAtBase),
            (false, &["/child", "/base"], Some(false), &undecided),
            // It was noted, or a person has decided.
            (false, &["/base"], None, &Next::Done),
            (true, &["/base"], None, &Next::Done),
            // Somebody has started it on what may be the older one; what it writes now says nothing of what was before.
            (true, &["/child", "/base"], None, &undecided),
            (true, &["/child", "/base"], Some(true), &undecided),
            (false, &["/top", "/child", "/base"], None, &undecided),
            (false, &["/elsewhere"], None, &undecided),
        ];
        for (is_live, chain, reads_same, expected) in cases {
            let pivot = Pivot::Unseen { reads_same: *reads_same };
            let seen = Seen { pivot, ..seen(*is_live, chain) };
            assert_eq!(next(&commit(), &seen), **expected, "{seen:?}");
        }
    }

    #[test]
    fn what_lies_on_a_child_that_reads_the_same_goes_first() {
        let image = ImageRef { path: "/dead".into(), format: Format::Qcow2 };
        let merge = merge_by(How::Commit { grandchildren: vec![image] });
        let pivot = Pivot::Unseen { reads_same: Some(true) };
        let backings = vec![Some(PathBuf::from("/child"))];
        let seen = Seen { backings, pivot, ..seen(false, &["/child", "/base"]) };
        assert_eq!(next(&merge, &seen), Next::Rebase(vec![0]));
    }

    /// What is pulled into the child may be newer than what it hides.
    #[test]
    fn nothing_is_pulled_either() {
        let merge = merge_by(How::Pull { below: None });
        let pivot = Pivot::Unseen { reads_same: None };
        let seen = Seen { pivot, ..seen(false, &["/child", "/base"]) };
        assert_eq!(next(&merge, &seen), Next::Undecided(words(&merge)));
    }
}
