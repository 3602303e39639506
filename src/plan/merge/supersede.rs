//! The next move of a merge into a base that takes the child's name. Until it has the name, what stands under that is the
//! child, and reads right; from then on it is the base. What it lies on tells which of the two it is.

use super::{Next, Seen};
use crate::model::step::{ImageRef, Merge};

/// The next move; `below` is what the base lies on.
pub(super) fn next(merge: &Merge, below: Option<&ImageRef>, seen: &Seen) -> Next {
    if seen.is_live || seen.job.is_some() {
        return Next::Contradiction("a VM has it".to_owned());
    }
    let lies_on = seen.backings.first().and_then(|backing| backing.as_deref());
    if lies_on == below.map(|below| &*below.path) {
        return Next::Done;
    }
    let upper = merge.between.first().unwrap_or(&merge.base);
    match lies_on {
        Some(image) if image == upper.path && seen.committed_offline => Next::TakeName,
        Some(image) if image == upper.path => Next::CommitOffline,
        Some(image) => {
            Next::Contradiction(format!("it lies on {}, which is not to be merged", image.display()))
        }
        None => Next::Contradiction("it lies on nothing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::tests::{job, seen};
    use super::*;
    use crate::model::step::How;
    use crate::model::vm::{BlockJobKind, Format};

    fn image(path: &str) -> ImageRef {
        ImageRef { path: path.into(), format: Format::Qcow2 }
    }

    fn check(below: Option<&str>, between: &[&str], seen: &Seen, expected: &Next) {
        let below = below.map(image);
        let merge = Merge {
            target: "disk".parse().unwrap(),
            base: image("/base"),
            between: between.iter().map(|path| image(path)).collect(),
            child: image("/child"),
            how: How::Supersede { below: below.clone() },
        };
        assert_eq!(super::super::next(&merge, seen), *expected, "{below:?} {seen:?}");
    }

    fn lies_on(backing: Option<&str>, committed_offline: bool) -> Seen {
        Seen { backings: vec![backing.map(PathBuf::from)], committed_offline, ..seen(false, &[]) }
    }

    #[test]
    fn committed_then_renamed() {
        for below in [None, Some("/template")] {
            check(below, &[], &lies_on(Some("/base"), false), &Next::CommitOffline);
            check(below, &[], &lies_on(Some("/base"), true), &Next::TakeName);
            check(below, &[], &lies_on(below, true), &Next::Done);
            // Another life finds it so.
            check(below, &[], &lies_on(below, false), &Next::Done);
            check(below, &["/between"], &lies_on(Some("/between"), false), &Next::CommitOffline);
            check(below, &["/between"], &lies_on(Some("/between"), true), &Next::TakeName);
        }
    }

    #[test]
    fn what_is_not_this_merge() {
        let elsewhere = Next::Contradiction("it lies on /other, which is not to be merged".to_owned());
        check(None, &[], &lies_on(Some("/other"), true), &elsewhere);
        let on_nothing = Next::Contradiction("it lies on nothing".to_owned());
        check(Some("/template"), &[], &lies_on(None, true), &on_nothing);
        let has_vm = Next::Contradiction("a VM has it".to_owned());
        let live = Seen { is_live: true, ..lies_on(Some("/base"), false) };
        check(None, &[], &live, &has_vm);
        let at_work = Seen { job: Some(job(BlockJobKind::Commit, false)), ..lies_on(Some("/base"), false) };
        check(None, &[], &at_work, &has_vm);
    }
}
