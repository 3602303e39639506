//! Single volumes: taken, put back, cloned; and VMs made of clones.

use super::*;
use crate::model::vm::Uncovered;

#[test]
fn one_volume_goes_back() {
    let mut paper = Paper::new();
    paper.create("one");
    let vdb = paper.snapshot("one").disks[1].volume;
    let plan = |paper: &mut Paper, stop, active| {
        let snapshot = paper.snapshot("one").clone();
        let request = RevertVolume { volume: vdb, snapshot: snapshot.id, stop, active };
        let mut ids = paper.ids();
        revert_volume(&paper.world, &snapshot, &request, &mut ids)
    };
    check(plan(&mut paper, false, None), Err("VM web is using the volume"));
    check(plan(&mut paper, true, None), Ok("reverting overlay stop point start! record remove"));
    let stale = Some(paper.snapshot("one").disks[1].layer);
    check(
        plan(&mut paper, true, stale),
        Err("the volume was changed since: its disk writes to another image now"),
    );
    paper.world.vm.run_state = RunState::Off;
    let done = plan(&mut paper, false, None).unwrap();
    assert_eq!(outline(&done), "reverting overlay point! record remove");
    let current = paper.world.tree.current;
    paper.carry_out(&done);
    assert_eq!(paper.world.tree.current, current, "the VM as a whole has not gone anywhere");
}

#[test]
fn a_volume_is_taken_out_of_a_snapshot() {
    let mut paper = Paper::new();
    paper.create("one");
    let plan = |paper: &mut Paper, disk: Option<&str>| {
        let source = paper.snapshot("one").clone();
        let disk = disk.map(|disk| disk.parse().unwrap());
        let request = TakeFromSnapshot { snapshot: source.id, disk, label: named("taken").label };
        let mut ids = paper.ids();
        take_from_snapshot(&paper.world, &source, &request, OperationId::new(), "test", &mut ids)
    };
    check(plan(&mut paper, None), Err("the snapshot holds several disks (vda, vdb): one must be named"));
    check(plan(&mut paper, Some("vdz")), Err("snapshot one does not hold disk vdz"));
    let taken = plan(&mut paper, Some("vdb")).unwrap();
    assert_eq!(outline(&taken), "reserve record!");
    paper.carry_out(&taken);
    assert_eq!(paper.snapshot("taken").consistency, paper.snapshot("one").consistency);
    let gone = paper.plan_delete("one").unwrap();
    paper.carry_out(&gone);
    let layer = paper.snapshot("taken").disks[0].layer;
    assert!(paper.world.tree.layers.contains_key(&layer), "it stays whole without the other");
    assert_eq!(paper.world.images.len(), 3, "vda is one image again, vdb is two");
    check(
        paper.plan_revert("taken", RunStateAfter::AsItWas),
        Err("the snapshot is of a volume, not of the VM"),
    );
}

fn clone_of(snapshot: SnapshotId, path: &str, mode: CloneMode) -> CloneVolume {
    CloneVolume {
        snapshot,
        disk: Some("vda".parse().unwrap()),
        path: path.into(),
        name: "copy".parse().unwrap(),
        mode,
        bandwidth: None,
        owner: Owner::default(),
        properties: BTreeMap::new(),
    }
}

/// What can be made out of each snapshot once somebody has meddled with the chain of vda, and nobody has settled it. No file
/// is longer or shorter than it was.
fn check_meddled(
    meddle: impl FnOnce(&mut Paper, [PathBuf; 3]),
    one: Result<(), &str>,
    two: Result<(), &str>,
) {
    let mut paper = Paper::new();
    paper.create("one");
    paper.create("two");
    let layer = |paper: &Paper, name| paper.snapshot(name).disks[0].layer;
    let path = |paper: &Paper, name| paper.world.tree.layers[&layer(paper, name)].path.clone();
    let active = paper.disk("vda").active().unwrap().path.clone();
    let files = [path(&paper, "one"), path(&paper, "two"), active];
    meddle(&mut paper, files);
    for (name, expected) in [("one", one), ("two", two)] {
        let snapshot = paper.snapshot(name);
        let on = |paper: &mut Paper, disk: &str| {
            let mut ids = paper.ids();
            let disk: DiskTarget = disk.parse().unwrap();
            let label = named("taken").label;
            let take = TakeFromSnapshot { snapshot: snapshot.id, disk: Some(disk.clone()), label };
            let copy = |mode| CloneVolume {
                disk: Some(disk.clone()),
                ..clone_of(snapshot.id, "/images/copy", mode)
            };
            let world = &paper.world;
            [
                take_from_snapshot(world, &snapshot, &take, OperationId::new(), "test", &mut ids),
                clone_volume(world, &snapshot, &copy(CloneMode::Linked), &mut ids),
                clone_volume(world, &snapshot, &copy(CloneMode::Full), &mut ids),
            ]
        };
        let deploy = DeployVm {
            snapshot: snapshot.id,
            name: "new".parse().unwrap(),
            mode: CloneMode::Linked,
            then: NewVmState::Off,
            new_serials: false,
            bandwidth: None,
        };
        let mut plans = Vec::from(on(&mut paper, "vda"));
        let mut ids = paper.ids();
        plans.push(deploy_vm(&paper.world, &snapshot, &deploy, &mut ids));
        for plan in plans {
            let came = plan.map(drop).map_err(|refusal| refusal.to_string());
            assert_eq!(came, expected.map_err(str::to_owned), "{name}");
        }
        assert!(on(&mut paper, "vdb").into_iter().all(|plan| plan.is_ok()), "the other disk is as it was");
    }
}

#[test]
fn nothing_is_made_of_what_somebody_merged() {
    let merged =
        "somebody has merged layers of disk vda, or lets the VM write to one: the snapshot reads a mixture";
    let lies_on = |paper: &mut Paper, top: &Path, base: &Path| {
        let facts = paper.world.images.get_mut(top).unwrap();
        facts.backing = Some(Backing { path: base.to_owned(), format: Some(Format::Qcow2) });
    };
    check_meddled(|_, _| {}, Ok(()), Ok(()));
    // What went into `one` is what `two` reads, still.
    let into_one = |paper: &mut Paper, [one, _, active]: [PathBuf; 3]| {
        lies_on(paper, &active, &one);
        paper.point("vda", &active);
    };
    check_meddled(into_one, Err(merged), Ok(()));
    check_meddled(|paper, [_, two, _]| paper.point("vda", &two), Ok(()), Err(merged));
    check_meddled(|paper, [one, ..]| paper.point("vda", &one), Err(merged), Err(merged));
    let under_an_overlay = |paper: &mut Paper, [one, _, active]: [PathBuf; 3]| {
        lies_on(paper, &active, &one);
        paper.add_image(Path::new("/images/by-hand"), Some(active));
        paper.point("vda", Path::new("/images/by-hand"));
    };
    check_meddled(under_an_overlay, Err(merged), Ok(()));
    let only_an_overlay = |paper: &mut Paper, [_, _, active]: [PathBuf; 3]| {
        paper.add_image(Path::new("/images/by-hand"), Some(active));
        paper.point("vda", Path::new("/images/by-hand"));
    };
    check_meddled(only_an_overlay, Ok(()), Ok(()));
    // What is pulled up leaves all below as it was.
    let pulled = |paper: &mut Paper, [_, _, active]: [PathBuf; 3]| {
        paper.world.images.get_mut(&active).unwrap().backing = None;
        paper.point("vda", &active);
    };
    check_meddled(pulled, Ok(()), Ok(()));
}

#[test]
fn nothing_is_made_of_what_somebody_is_merging() {
    let job = |kind| {
        move |paper: &mut Paper, _: [PathBuf; 3]| {
            paper.disk("vda").block_job =
                Some(BlockJob { kind, done: 0, total: 1, ready: false, bandwidth: None });
        }
    };
    let busy = "a block job is running on disk vda";
    check_meddled(job(BlockJobKind::Commit), Err(busy), Err(busy));
    check_meddled(job(BlockJobKind::ActiveCommit), Err(busy), Err(busy));
    check_meddled(job(BlockJobKind::Pull), Ok(()), Ok(()));
    check_meddled(job(BlockJobKind::Other), Ok(()), Ok(()));
}

#[test]
fn clones() {
    let mut paper = Paper::new();
    paper.create("one");
    let plan = |paper: &mut Paper, path: &str, mode| {
        let snapshot = paper.snapshot("one");
        let mut ids = paper.ids();
        clone_volume(&paper.world, &snapshot, &clone_of(snapshot.id, path, mode), &mut ids)
    };
    let linked = plan(&mut paper, "/images/copy", CloneMode::Linked);
    check(linked.clone(), Ok("reserve overlay publish record!"));
    check(plan(&mut paper, "/images/copy", CloneMode::Full), Ok("reserve copy publish record!"));
    let elsewhere = "/etc/copy may not be made; only /images may hold clones";
    check(plan(&mut paper, "/etc/copy", CloneMode::Full), Err(elsewhere));
    let climbing = "/images/../etc/copy may not be made; only /images may hold clones";
    check(plan(&mut paper, "/images/../etc/copy", CloneMode::Full), Err(climbing));
    let taken = "there is a file /images/vda.qcow2 already";
    check(plan(&mut paper, "/images/vda.qcow2", CloneMode::Full), Err(taken));
    paper.carry_out(&linked.unwrap());
    let base = paper.snapshot("one").disks[0].layer;
    assert!(paper.world.tree.is_cloned(base));

    // The snapshot goes, and the layer stays.
    let gone = paper.plan_delete("one").unwrap();
    paper.carry_out(&gone);
    assert!(paper.world.tree.layers.contains_key(&base), "a clone reads it");
    check(collapse(&paper.world), Err("nothing can be merged or removed now"));
    let clone = paper.world.tree.clones[0].clone();
    let flatten = flatten_volume(
        &paper.world,
        &clone,
        &FlattenVolume { volume: clone.id, bandwidth: None, merge_deadline_ms: None, generation: None },
    );
    check(flatten.clone(), Ok("unused flatten! record"));
    paper.carry_out(&flatten.unwrap());
    check(collapse(&paper.world), Ok("merge! record record remove"));
    let alone = paper.world.tree.clones[0].clone();
    let again = flatten_volume(
        &paper.world,
        &alone,
        &FlattenVolume { volume: alone.id, bandwidth: None, merge_deadline_ms: None, generation: None },
    );
    check(again, Err("volume copy stands alone already"));
    let request = DeleteVolume { volume: alone.id, generation: Some(1) };
    check(
        delete_volume(&paper.world, &alone, &request),
        Err("the volume was changed since: its disk writes to another image now"),
    );
    let request = DeleteVolume { volume: alone.id, generation: None };
    check(delete_volume(&paper.world, &alone, &request), Ok("unused record! remove"));
    paper.world.users = vec![VolumeUser { name: "db".to_owned(), run_state: RunState::Off }];
    check(delete_volume(&paper.world, &alone, &request), Err("VM db is using the volume"));
}

#[test]
fn what_a_clone_reads_through_is_not_merged_away() {
    let mut paper = Paper::new();
    for name in ["one", "two"] {
        paper.create(name);
    }
    let two = paper.snapshot("two");
    let mut ids = paper.ids();
    let clone =
        clone_volume(&paper.world, &two, &clone_of(two.id, "/images/copy", CloneMode::Linked), &mut ids);
    paper.carry_out(&clone.unwrap());
    let gone = paper.plan_delete("one").unwrap();
    // vdb is free to go; vda's layers are below the clone.
    assert_eq!(outline(&gone), "deleting merge! record record remove");
    paper.carry_out(&gone);
    assert_eq!(paper.world.tree.pending().count(), 1, "it waits for the clone");
}

#[test]
fn new_vms() {
    let mut paper = Paper::new();
    paper.create("one");
    let plan = |paper: &mut Paper, mode, then| {
        let snapshot = paper.snapshot("one");
        let request = DeployVm {
            snapshot: snapshot.id,
            name: "copy".parse().unwrap(),
            mode,
            then,
            new_serials: false,
            bandwidth: None,
        };
        let mut ids = paper.ids();
        deploy_vm(&paper.world, &snapshot, &request, &mut ids)
    };
    check(plan(&mut paper, CloneMode::Linked, NewVmState::Off), Ok("reserve overlay overlay define! record"));
    check(
        plan(&mut paper, CloneMode::Full, NewVmState::Running),
        Ok("reserve copy copy define start! record"),
    );
}

/// Disks that came, went or moved since: each is known by what it writes to.
#[test]
fn a_revert_of_a_vm_whose_disks_are_others_now() {
    let mut paper = Paper::new();
    paper.create("one");
    paper.add_disk("vdc", &["/images/vdc.qcow2"]);
    let vdb = paper.world.vm.disks.remove(1);
    let plan = paper.plan_revert("one", RunStateAfter::AsItWas).unwrap();
    assert_eq!(outline(&plan), "reverting overlay stop point start! record remove", "vda alone goes back");
    assert_eq!(
        plan.warnings,
        [
            "disk vdb of the snapshot was removed from the VM: it stays removed, its content stays kept",
            "disk vdc is not in the snapshot and stays as it is",
        ]
    );
    // The same volume in another place, another volume in its old place.
    let mut moved = vdb;
    moved.target = "vdc".parse().unwrap();
    paper.disk("vdc").target = "vdb".parse().unwrap();
    paper.world.vm.disks.push(moved);
    let plan = paper.plan_revert("one", RunStateAfter::AsItWas).unwrap();
    assert_eq!(outline(&plan), "reverting overlay overlay stop point start! record remove");
    assert_eq!(plan.warnings, ["disk vdb is not in the snapshot and stays as it is"]);
    paper.carry_out(&plan);
    let volumes = &paper.world.tree.volumes;
    assert!(volumes.iter().any(|volume| volume.target.as_str() == "vdc"), "{volumes:?}");
}

#[test]
fn a_revert_without_a_disk_to_go_back() {
    let mut paper = Paper::new();
    paper.create("one");
    paper.world.vm.disks.clear();
    check(
        paper.plan_revert("one", RunStateAfter::AsItWas),
        Err("the VM no longer has disk vda of the snapshot"),
    );
}

/// What is in no disk is named: it is not in a snapshot of disks, and stays as it is on the way back.
#[test]
fn what_a_snapshot_does_not_hold_is_told() {
    let mut paper = Paper::new();
    paper.world.vm.uncovered =
        vec![Uncovered::UefiVariables("on a block device".to_owned()), Uncovered::Tpm("tpm-crb".to_owned())];
    let plan = paper.plan_create(&named("one")).unwrap();
    assert_eq!(
        plan.warnings,
        [
            "not in the snapshot: the UEFI variables (on a block device)",
            "not in the snapshot: the state of its TPM (tpm-crb)"
        ]
    );
    paper.world.background_blocker = None;
    let with_memory = CreateSnapshot { kind: SnapshotKind::VmDisksAndMemory, ..named("two") };
    let with_memory = CreateSnapshot { quiesce: Quiesce::Off, ..with_memory };
    assert_eq!(paper.plan_create(&with_memory).unwrap().warnings, Vec::<String>::new());
    paper.create("one");
    let plan = paper.plan_revert("one", RunStateAfter::AsItWas).unwrap();
    assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
}

/// A VM that runs copies itself, into what it writes to.
#[test]
fn a_clone_is_flattened_under_a_running_vm() {
    let mut paper = Paper::new();
    let chain = ["/images/copy", "/images/layer", "/images/root"];
    paper.add_disk("vdc", &chain);
    paper.create("one");
    let one = paper.snapshot("one");
    let mut ids = paper.ids();
    let request = clone_of(one.id, "/images/copy2", CloneMode::Linked);
    let plan = clone_volume(&paper.world, &one, &request, &mut ids).unwrap();
    let mut clone = plan.clones[0].clone();
    clone.state = crate::model::CloneState::Available;
    let flatten = |paper: &Paper, clone: &ClonedVolume| {
        let request =
            FlattenVolume { volume: clone.id, bandwidth: Some(5), merge_deadline_ms: None, generation: None };
        flatten_volume(&paper.world, clone, &request)
    };
    assert_eq!(flatten(&paper, &clone).unwrap().warnings.len(), 1, "nobody can keep to the limit");
    paper.world.users = vec![VolumeUser { name: "web".to_owned(), run_state: RunState::Running }];
    check(flatten(&paper, &clone), Err("VM web is using the volume"));
    clone.path = paper.disk("vdc").active().unwrap().path.clone();
    let plan = flatten(&paper, &clone).unwrap();
    assert_eq!(outline(&plan), "merge! record");
    assert_eq!(plan.warnings, Vec::<String>::new());
    let Step::Merge(layers) = &plan.steps[0] else { unreachable!("it is a merge") };
    assert_eq!(layers.bandwidth, Some(5));
    assert_eq!(layers.merges[0].survivor().path, clone.path);
    assert_eq!(layers.merges[0].gone().last().unwrap().path, Path::new("/images/root"));
}
