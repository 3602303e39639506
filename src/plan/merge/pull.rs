//! The next move of a merge upwards: the child takes in what lies below it. It reads the same at each moment, and so
//! does everything on it: an attempt that was cut off costs time and nothing else.

use std::path::Path;

use super::{Next, Seen};
use crate::model::step::{ImageRef, Merge};
use crate::model::vm::BlockJobKind;

/// The next move; `below` is what the child is to lie on.
pub(super) fn next(merge: &Merge, below: Option<&ImageRef>, seen: &Seen) -> Next {
    let is_read = seen.is_live && seen.chain.contains(&merge.child.path);
    match seen.job.map(|job| job.kind) {
        Some(BlockJobKind::Pull) => return Next::Wait,
        Some(BlockJobKind::ActiveCommit | BlockJobKind::Commit | BlockJobKind::Other) => {
            return Next::Contradiction("another block job runs on the disk".to_owned());
        }
        None => {}
    }
    // The headers follow the process at the end of a job; what a process has open is the truth until then.
    let lies_on = if is_read {
        let above = seen.chain.iter().position(|image| *image == merge.child.path);
        above.and_then(|above| seen.chain.get(above + 1)).map(|image| &**image)
    } else {
        seen.backings.first().and_then(|backing| backing.as_deref())
    };
    let wanted = below.map(|below| &*below.path);
    let pulled =
        |image: &Path| merge.base.path == image || merge.between.iter().any(|layer| layer.path == image);
    match lies_on {
        lies_on if lies_on == wanted => Next::Done,
        Some(image) if !pulled(image) => {
            Next::Contradiction(format!("it lies on {}, which is not to be merged", image.display()))
        }
        None => Next::Contradiction("it lies on nothing".to_owned()),
        Some(_) if !is_read => Next::PullOffline { below: below.cloned() },
        Some(_) if seen.chain.first() == Some(&merge.child.path) => Next::StartPull { below: below.cloned() },
        // libvirt pulls into the active layer only (qemuDomainBlockPullCommon). It was, when this was planned.
        Some(_) => Next::Contradiction("the VM does not write to it any more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::tests::{job, seen};
    use super::*;
    use crate::model::step::How;
    use crate::model::vm::Format;

    fn image(path: &str) -> ImageRef {
        ImageRef { path: path.into(), format: Format::Qcow2 }
    }

    fn check(below: Option<&str>, seen: &Seen, expected: &Next) {
        let below = below.map(image);
        let merge = Merge {
            target: "vda".parse().unwrap(),
            base: image("/base"),
            between: vec![image("/between")],
            child: image("/child"),
            how: How::Pull { below: below.clone() },
        };
        assert_eq!(super::super::next(&merge, seen), *expected, "{below:?} {seen:?}");
    }

    fn headers(seen: Seen, backing: Option<&str>) -> Seen {
        Seen { backings: vec![backing.map(PathBuf::from)], ..seen }
    }

    fn foreign() -> Next {
        Next::Contradiction("another block job runs on the disk".to_owned())
    }

    #[test]
    fn the_active_layer_of_a_running_vm() {
        let whole = &["/child", "/between", "/base", "/template"];
        let start = |below: Option<&str>| Next::StartPull { below: below.map(image) };
        check(Some("/template"), &headers(seen(true, whole), Some("/between")), &start(Some("/template")));
        let with = |kind| Seen { job: Some(job(kind, false)), ..seen(true, whole) };
        check(Some("/template"), &with(BlockJobKind::Pull), &Next::Wait);
        check(Some("/template"), &with(BlockJobKind::ActiveCommit), &foreign());
        check(Some("/template"), &with(BlockJobKind::Other), &foreign());
        let pulled = headers(seen(true, &["/child", "/template"]), Some("/template"));
        check(Some("/template"), &pulled, &Next::Done);
        check(None, &headers(seen(true, &["/child", "/between", "/base"]), Some("/between")), &start(None));
        check(None, &headers(seen(true, &["/child"]), None), &Next::Done);
        let moved_on = headers(seen(true, &["/top", "/child", "/between", "/base"]), Some("/between"));
        check(None, &moved_on, &Next::Contradiction("the VM does not write to it any more".to_owned()));
    }

    #[test]
    fn nobody_has_it_open() {
        for (is_live, chain) in [(false, vec!["/child", "/between", "/base"]), (true, vec!["/live", "/root"])]
        {
            let now = |backing| headers(seen(is_live, &chain), backing);
            let below = Some(image("/template"));
            check(Some("/template"), &now(Some("/between")), &Next::PullOffline { below });
            check(Some("/template"), &now(Some("/template")), &Next::Done);
            check(None, &now(Some("/between")), &Next::PullOffline { below: None });
            check(None, &now(None), &Next::Done);
            check(Some("/template"), &now(None), &Next::Contradiction("it lies on nothing".to_owned()));
            let elsewhere = Next::Contradiction("it lies on /other, which is not to be merged".to_owned());
            check(Some("/template"), &now(Some("/other")), &elsewhere);
        }
    }
}
