//! Merges: block jobs on a running VM, `qemu-img` on one that is off.

use super::*;
use crate::model::vm::BlockJobKind;

/// base <- /1 <- /2 (active), each with a block of its own and one in common.
async fn three_layers(is_off: bool) -> Bed {
    let bed = Bed::running();
    for (layer, overlay) in [(1, Some("/1")), (2, Some("/2")), (3, None)] {
        bed.write("vda", 0, layer);
        bed.write("vda", layer, layer);
        if let Some(overlay) = overlay {
            bed.snapshot(&[("vda", overlay)], None).await;
        }
    }
    if is_off {
        bed.sim.someone_stops(bed.vm);
    }
    bed
}

const CONTENT: [u64; 4] = [3, 1, 2, 3];

async fn job(bed: &Bed) -> Option<(BlockJobKind, u64, u64, bool)> {
    let jobs = bed.sim.block_jobs(bed.vm).await.unwrap();
    jobs.first().map(|(_, job)| (job.kind, job.done / BLOCK, job.total / BLOCK, job.ready))
}

#[tokio::test]
async fn an_active_commit() {
    let bed = three_layers(false).await;
    bed.start_commit("/2", "/1", true).await.unwrap();
    let kind_of_job = BlockJobKind::ActiveCommit;
    assert_eq!(job(&bed).await, Some((kind_of_job, 0, 2, false)));
    assert_eq!(kind(&bed.sim.pivot(bed.vm, &target("vda")).await), "not ready");
    assert_eq!(bed.image("/1"), [3, 1, 2, 0], "the base is a mixture");
    assert_eq!(bed.reads("vda"), CONTENT);
    // A block that was copied is written again.
    bed.write("vda", 0, 9);
    assert_eq!(job(&bed).await, Some((kind_of_job, 1, 3, false)));
    assert_eq!(job(&bed).await, Some((kind_of_job, 2, 3, false)));
    assert_eq!(job(&bed).await, Some((kind_of_job, 3, 3, false)), "all is copied, and it is not ready");
    assert_eq!(job(&bed).await, Some((kind_of_job, 3, 3, true)));
    // From now on both get what the guest writes.
    bed.write("vda", 1, 8);
    assert_eq!(bed.image("/1"), [9, 8, 2, 3]);
    bed.sim.pivot(bed.vm, &target("vda")).await.unwrap();
    assert_eq!(job(&bed).await, None);
    assert_eq!(bed.chain("vda").await, paths(&["/1", VDA]));
    assert_eq!(bed.stored("vda").await, Some("/1".into()));
    assert_eq!(bed.reads("vda"), [9, 8, 2, 3]);
    bed.remove("/2").await.unwrap();
    bed.check_violations(&[]);
}

#[tokio::test]
async fn an_intermediate_commit() {
    let bed = three_layers(false).await;
    bed.start_commit("/1", VDA, false).await.unwrap();
    let mut looks = 0;
    while let Some((kind, .., ready)) = job(&bed).await {
        assert_eq!((kind, ready), (BlockJobKind::Commit, false));
        assert_eq!(bed.reads("vda"), CONTENT);
        assert_eq!(kind_of_pivot(&bed).await, "refused");
        looks += 1;
    }
    assert_eq!(looks, 3, "nothing copied, half, all");
    assert_eq!(bed.chain("vda").await, paths(&["/2", VDA]));
    assert_eq!(bed.stored("vda").await, Some("/2".into()));
    assert_eq!(bed.image(VDA), [2, 1, 2, 0]);
    assert_eq!(bed.image("/2"), CONTENT);
    bed.remove("/1").await.unwrap();
    bed.check_violations(&[]);
}

async fn kind_of_pivot(bed: &Bed) -> &'static str {
    kind(&bed.sim.pivot(bed.vm, &target("vda")).await)
}

#[tokio::test]
async fn a_commit_of_nothing_is_not_ready_at_once() {
    let bed = Bed::running();
    bed.snapshot(&[("vda", "/1")], None).await;
    bed.start_commit("/1", VDA, true).await.unwrap();
    assert_eq!(job(&bed).await, Some((BlockJobKind::ActiveCommit, 0, 0, false)));
    assert_eq!(job(&bed).await, Some((BlockJobKind::ActiveCommit, 0, 0, true)));
}

#[tokio::test]
async fn a_job_that_vanishes_leaves_a_mixture() {
    let check = async |vanish: fn(&Bed)| {
        let bed = three_layers(false).await;
        bed.start_commit("/2", "/1", true).await.unwrap();
        job(&bed).await;
        vanish(&bed);
        assert_eq!(job(&bed).await, None);
        assert_eq!(bed.image("/1"), [3, 1, 2, 0]);
        assert_eq!(bed.reads("vda"), CONTENT);
        assert_eq!(bed.chain("vda").await, paths(&["/2", "/1", VDA]));
    };
    check(|bed| bed.sim.someone_stops(bed.vm)).await;
    check(|bed| bed.sim.someone_aborts_block_job(bed.vm, &target("vda"))).await;
    check(|bed| {
        bed.sim.set_free_space(0);
        bed.sim.tick();
    })
    .await;
}

/// A commit that is refused changes nothing.
async fn check_refused(top: &str, base: &str, is_active: bool) {
    let bed = three_layers(false).await;
    assert_eq!(kind(&bed.start_commit(top, base, is_active).await), "refused", "{top} {base} {is_active}");
    assert_eq!(job(&bed).await, None);
}

#[tokio::test]
async fn commits_that_are_refused() {
    check_refused("/2", "/1", false).await;
    check_refused("/1", VDA, true).await;
    check_refused("/1", "/2", false).await;
    check_refused("/missing", VDA, false).await;
    check_refused("/1", "/missing", false).await;
    let bed = three_layers(false).await;
    bed.start_commit("/2", "/1", true).await.unwrap();
    assert_eq!(kind(&bed.start_commit("/1", VDA, false).await), "refused");
    let overlay = bed.overlay("/3", "/2").await;
    let mut switch = switch(&[("vda", overlay)], None);
    switch.others.push(target("vdb"));
    assert_eq!(kind(&bed.sim.switch_disks(bed.vm, &switch).await), "refused");
    assert_eq!(kind_of_pivot(&Bed::running()).await, "refused");
    assert_eq!(kind(&three_layers(true).await.start_commit("/2", "/1", true).await), "refused");
}

async fn commit_offline(bed: &Bed, top: &str, base: &str) -> Result<(u64, u64)> {
    let (progress, seen) = tokio::sync::watch::channel((0, 0));
    bed.sim.commit(&[qcow2(top), qcow2(base)], &progress).await?;
    let (done, total) = *seen.borrow();
    Ok((done / BLOCK, total / BLOCK))
}

#[tokio::test]
async fn an_offline_commit() {
    let bed = three_layers(true).await;
    assert_eq!(commit_offline(&bed, "/1", VDA).await.unwrap(), (2, 2));
    assert_eq!(bed.image(VDA), [2, 1, 2, 0]);
    assert_eq!(bed.reads("vda"), CONTENT);
    bed.sim.rebase(&qcow2("/2"), &qcow2(VDA)).await.unwrap();
    assert_eq!(bed.chain("vda").await, paths(&["/2", VDA]));
    assert_eq!(bed.reads("vda"), CONTENT);
    bed.remove("/1").await.unwrap();
    bed.check_violations(&[]);
}

#[tokio::test]
async fn offline_work_that_is_refused() {
    let bed = three_layers(false).await;
    let on_base = async |top: &str| kind(&commit_offline(&bed, top, VDA).await);
    assert_eq!(on_base("/1").await, "image in use");
    assert_eq!(on_base("/2").await, "bad image", "it does not lie on that base");
    assert_eq!(on_base("/missing").await, "no such image");
    assert_eq!(kind(&bed.sim.rebase(&qcow2("/2"), &qcow2(VDA)).await), "image in use");
    assert_eq!(bed.reads("vda"), CONTENT);
}

#[tokio::test]
async fn a_wrong_rebase_shows() {
    let bed = three_layers(true).await;
    bed.sim.rebase(&qcow2("/2"), &qcow2(VDA)).await.unwrap();
    assert_eq!(bed.reads("vda"), [3, 1, 0, 3]);
    let missing = bed.sim.rebase(&qcow2("/1"), &qcow2("/missing")).await;
    assert_eq!(kind(&missing), "no such image");
    bed.check_violations(&["a rebase changes what /2 reads", "a rebase changes what /1 reads"]);
}

#[tokio::test]
async fn a_template_is_not_written_to() {
    let sim = SimHost::new();
    let vm = sim.vm("web").disk_over("vda", "/golden").build();
    let other = sim.vm("other").disk_over("vda", "/golden").off().build();
    let bed = Bed { sim, vm };
    bed.write("vda", 0, 1);
    bed.start_commit(VDA, "/golden", true).await.unwrap();
    bed.check_violations(&["the template /golden is written to"]);
    bed.sim.tick();
    bed.sim.tick();
    assert_eq!(bed.sim.guest_read(other, &target("vda"), 0), Ok(1), "and the other VM sees it");
}
