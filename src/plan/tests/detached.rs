//! Volumes that no VM has.

use super::*;
use crate::model::step::{CatalogChange, Merge};

const MIB: u64 = 1 << 20;

const IMAGE: &str = "/images/data.qcow2";

/// A volume over what it lies on, if over anything.
fn lying(below: &[&str]) -> Paper {
    let mut paper = Paper::new();
    paper.world.images.clear();
    let volume = VolumeId(Uuid::from_u128(7));
    let chain: Vec<&str> = [IMAGE].iter().chain(below).copied().collect();
    for (depth, path) in chain.iter().enumerate() {
        paper.add_image(Path::new(path), chain.get(depth + 1).map(PathBuf::from));
    }
    let images = chain.iter().map(|path| image(Path::new(path))).collect();
    paper.world.vm = VmView::of_detached(volume, "data.qcow2".to_owned(), images);
    paper.world.tree = LayerTree::empty(paper.world.vm.id);
    paper
}

fn plan_create(paper: &mut Paper, name: &str) -> Result<Plan, Refusal> {
    let vm = paper.world.vm.id;
    let request = CreateSnapshot { vm, image: Some(IMAGE.into()), kind: SnapshotKind::Volume, ..named(name) };
    paper.plan_create(&request)
}

fn take(paper: &mut Paper, name: &str) {
    let plan = plan_create(paper, name).unwrap();
    paper.carry_out(&plan);
}

fn plan_revert(paper: &mut Paper, name: &str, active: Option<LayerId>) -> Result<Plan, Refusal> {
    let snapshot = paper.snapshot(name);
    let volume = VolumeId(paper.world.vm.id.0);
    let request = RevertVolume { volume, snapshot: snapshot.id, stop: false, active };
    let mut ids = paper.ids();
    revert_volume(&paper.world, &snapshot, &request, &mut ids)
}

fn merges(plan: &Plan) -> Vec<Merge> {
    let merges = plan.steps.iter().filter_map(|step| match step {
        Step::Merge(layers) => Some(layers.merges.clone()),
        _ => None,
    });
    merges.flatten().collect()
}

/// The file that a snapshot's content is in.
fn kept(paper: &Paper, name: &str) -> PathBuf {
    paper.world.tree.layers[&paper.snapshot(name).disks[0].layer].path.clone()
}

#[test]
fn the_path_always_reads_the_newest_state() {
    let mut paper = lying(&["/images/template.qcow2"]);
    check(plan_create(&mut paper, "one"), Ok("reserve unused link overlay replace! record"));
    take(&mut paper, "one");
    assert_eq!(paper.snapshot("one").of_vm(), None);
    let tree = &paper.world.tree;
    let image = tree.detached_image().unwrap().clone();
    assert_eq!(image.path, Path::new(IMAGE));
    let chain: Vec<&Path> = tree.chain(image.id).iter().map(|layer| layer.path.as_path()).collect();
    assert_eq!(chain, [Path::new(IMAGE), &kept(&paper, "one"), Path::new("/images/template.qcow2")]);
    take(&mut paper, "two");
    assert_eq!(paper.world.tree.detached_image().unwrap().id, image.id, "it is the same layer all the time");

    check(plan_revert(&mut paper, "one", None), Ok("reverting unused overlay replace! record"));
    let plan = plan_revert(&mut paper, "one", None).unwrap();
    assert_eq!(plan.removals.len(), 1, "what was written since the last one goes");
    let state = paper.world.tree.detached_image().unwrap().parent;
    check(plan_revert(&mut paper, "one", state), Ok("reverting unused overlay replace! record"));
    paper.carry_out(&plan);
    check(
        plan_revert(&mut paper, "one", state),
        Err("the volume was changed since: its disk writes to another image now"),
    );
    assert_eq!(paper.world.images[Path::new(IMAGE)].backing.clone().unwrap().path, kept(&paper, "one"));
    assert!(paper.world.images.contains_key(&kept(&paper, "two")), "it stays");
}

#[test]
fn with_the_last_snapshot_all_is_forgotten_but_the_image() {
    for below in [&[][..], &["/images/template.qcow2"]] {
        for order in [["one", "two"], ["two", "one"]] {
            let mut paper = lying(below);
            take(&mut paper, "one");
            take(&mut paper, "two");
            for name in order {
                let plan = paper.plan_delete(name).unwrap();
                paper.carry_out(&plan);
            }
            let left: BTreeSet<&Path> = paper.world.images.keys().map(PathBuf::as_path).collect();
            let wanted: BTreeSet<&Path> = [IMAGE].iter().chain(below).map(Path::new).collect();
            assert_eq!(left, wanted, "{order:?}");
            assert_eq!(paper.world.tree, LayerTree::empty(paper.world.vm.id), "{order:?}");
            let backing = paper.world.images[Path::new(IMAGE)].backing.clone();
            assert_eq!(backing.map(|backing| backing.path), below.first().map(PathBuf::from), "{order:?}");
        }
    }
}

/// Allocated MiB of the snapshot's file and of the image; which of them stays, and how.
#[test]
fn fewer_bytes_move() {
    for (kept_mib, image_mib, supersedes) in [(50, 1, true), (1, 50, false)] {
        let mut paper = lying(&[]);
        take(&mut paper, "one");
        let kept = kept(&paper, "one");
        paper.world.images.get_mut(&kept).unwrap().allocated = kept_mib * MIB;
        paper.world.images.get_mut(Path::new(IMAGE)).unwrap().allocated = image_mib * MIB;
        let plan = paper.plan_delete("one").unwrap();
        let [merge] = merges(&plan).try_into().unwrap();
        let is_superseded = matches!(merge.how, How::Supersede { below: None });
        assert_eq!((is_superseded, plan.bytes_to_copy / MIB), (supersedes, 1));
        assert_eq!((merge.base.path, merge.child.path.as_path()), (kept, Path::new(IMAGE)));
    }
}

#[test]
fn what_somebody_has_is_left_alone() {
    let mut paper = lying(&[]);
    take(&mut paper, "one");
    paper.world.users = vec![VolumeUser { name: "web".to_owned(), run_state: RunState::Off }];
    let in_use = "VM web is using the volume";
    check(plan_create(&mut paper, "two"), Err(in_use));
    check(plan_revert(&mut paper, "one", None), Err(in_use));
    // Its snapshots go, but what the VM reads through waits.
    let image = paper.world.tree.detached_image().unwrap().id;
    paper.world.tree.read_elsewhere.insert(image);
    assert_eq!(merges(&paper.plan_delete("one").unwrap()), []);
}

#[test]
fn an_image_reads_nothing_outside_of_our_directories() {
    let mut paper = lying(&["/etc/shadow.qcow2"]);
    let refused = "/etc/shadow.qcow2 does not lie in a directory of images (/images)";
    check(plan_create(&mut paper, "one"), Err(refused));
    // A clone of ours lies where its snapshot lies.
    paper.world.volumes.insert(IMAGE.into(), VolumeId(Uuid::from_u128(7)));
    check(plan_create(&mut paper, "one"), Ok("reserve unused link overlay replace! record"));
}

/// A linked clone with snapshots of its own: the lowest of its layers is the one that lies on the source's.
#[test]
fn a_clone_with_snapshots_is_flattened_from_below() {
    let mut paper = lying(&["/images/source.qcow2"]);
    take(&mut paper, "one");
    take(&mut paper, "two");
    let clone = ClonedVolume {
        id: VolumeId(paper.world.vm.id.0),
        name: "data".parse().unwrap(),
        vm: VmId(Uuid::from_u128(9)),
        source: SnapshotId(Uuid::from_u128(9)),
        layer: Some(LayerId(Uuid::from_u128(9))),
        path: IMAGE.into(),
        virtual_size: 10 * MIB,
        state: crate::model::CloneState::Available,
        owner: Owner::default(),
        properties: BTreeMap::new(),
        created_at: Timestamp::UNIX_EPOCH,
        generation: 1,
    };
    let request =
        FlattenVolume { volume: clone.id, bandwidth: None, merge_deadline_ms: None, generation: None };
    paper.world.clone_tree = Some(paper.world.tree.clone());
    let plan = flatten_volume(&paper.world, &clone, &request).unwrap();
    let lowest = kept(&paper, "one");
    let flattened = plan.steps.iter().find_map(|step| match step {
        Step::FlattenImage { image } => Some(image.path.clone()),
        _ => None,
    });
    assert_eq!(flattened, Some(lowest.clone()));
    assert_eq!(plan.bytes_to_copy, MIB, "what the source holds");
    assert!(plan.steps.iter().any(
        |step| matches!(step, Step::Record(CatalogChange::CloneFlattened { path, .. }) if *path == lowest)
    ));
    paper.carry_out(&plan);
    let is_foreign = |layer: &crate::model::Layer| layer.ownership == crate::model::Ownership::Foreign;
    assert!(!paper.world.tree.layers.values().any(is_foreign), "it lies on nothing of others any more");
}
