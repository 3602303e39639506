//! Plans as data: a world, a request, the steps or the refusal.

use crate::model::step::How;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::model::request::NewVmState;
use crate::model::snapshot::Owner;
use crate::model::vm::{
    AgentChannel, Attachment, Backing, BlockJob, BlockJobKind, ChainImage, ExcludedDisk, FileIdentity,
    Format, ImageFacts, MemoryFormat, PauseReason, RefusedDisk,
};
use crate::model::{
    CloneMode, CloneVolume, CreateSnapshot, DeleteSnapshots, DeleteVolume, DeletionReason, DeployVm,
    DiskTarget, Findings, FlattenVolume, Label, LayerId, OperationId, Quiesce, RevertSnapshot, RevertVolume,
    RunStateAfter, SnapshotId, SnapshotKind, TakeFromSnapshot, VmId,
};

mod detached;
mod directions;
mod limits;
mod memory;
mod space;
mod variables;
mod volumes;

/// A world that plans are carried out in, on paper.
struct Paper {
    world: World,
    next_id: u128,
}

impl Paper {
    /// A running VM with an agent and two disks.
    fn new() -> Self {
        let vm = VmView {
            id: VmId(Uuid::from_u128(1)),
            attachment: Attachment::Attached,
            name: "web".to_owned(),
            run_state: RunState::Running,
            full_disks: Vec::new(),
            persistent: true,
            has_managed_save: false,
            agent: AgentChannel::Connected,
            memory_bytes: 1 << 30,
            memory_blocker: None,
            pull_blocker: None,
            variables: None,
            uncovered: Vec::new(),
            snapshots_elsewhere: Vec::new(),
            other_files: Vec::new(),
            unnamed_disks: Vec::new(),
            disks: Vec::new(),
        };
        let world = World {
            tree: LayerTree::empty(vm.id),
            vm,
            images: HashMap::new(),
            damaged: BTreeMap::new(),
            volumes: HashMap::new(),
            users: Vec::new(),
            clone_tree: None,
            memory_images: HashMap::new(),
            variables: HashMap::new(),
            free_space: HashMap::new(),
            measured: HashMap::new(),
            places: Places {
                memory: "/memory".into(),
                images: vec!["/images".into()],
                overlays: None,
                reserve: 0,
                low_space: 0,
            },
            background_blocker: Some("its QEMU is too old".to_owned()),
            memory_compression: MemoryCompression::None,
            compression_blocker: None,
            live_pulls: LivePulls::WhenSafe,
            now: Timestamp::UNIX_EPOCH,
        };
        let mut paper = Self { world, next_id: 100 };
        for target in ["vda", "vdb"] {
            paper.add_disk(target, &[&format!("/images/{target}.qcow2")]);
        }
        paper
    }

    fn add_disk(&mut self, target: &str, chain: &[&str]) {
        for (depth, path) in chain.iter().enumerate() {
            let backing = chain.get(depth + 1).copied();
            self.add_image(Path::new(path), backing.map(PathBuf::from));
        }
        let images = chain.iter().map(|path| image(Path::new(path))).collect();
        self.world.vm.disks.push(DiskView {
            target: target.parse().unwrap(),
            source: DiskSource::Chain {
                images,
                persistent: Some(chain[0].into()),
                persistent_below: Vec::new(),
            },
            block_job: None,
        });
    }

    fn add_image(&mut self, path: &Path, backing: Option<PathBuf>) {
        let backing = backing.map(|path| Backing { path, format: Some(Format::Qcow2) });
        let identity = FileIdentity { device: 1, inode: u64::try_from(self.world.images.len()).unwrap() };
        let facts = ImageFacts {
            format: Format::Qcow2,
            virtual_size: 10 << 20,
            allocated: 1 << 20,
            backing,
            identity,
            length: 1 << 20,
            is_link: false,
            pieces: None,
        };
        self.world.images.insert(path.to_owned(), facts);
    }

    fn disk(&mut self, target: &str) -> &mut DiskView {
        self.world.vm.disks.iter_mut().find(|disk| disk.target.as_str() == target).unwrap()
    }

    /// Ids that no other plan has been given.
    fn ids(&mut self) -> impl FnMut() -> Uuid + use<> {
        self.next_id += 1000;
        let mut next = self.next_id;
        move || {
            next += 1;
            Uuid::from_u128(next)
        }
    }

    fn plan_create(&mut self, request: &CreateSnapshot) -> Result<Plan, Refusal> {
        let mut ids = self.ids();
        create(&self.world, request, OperationId(Uuid::from_u128(2)), "test", &mut ids)
    }

    fn plan_revert(&mut self, name: &str, after: RunStateAfter) -> Result<Plan, Refusal> {
        let snapshot = self.snapshot(name);
        let request = RevertSnapshot { snapshot: snapshot.id, run_state_after: after, generation: None };
        let mut ids = self.ids();
        revert(&self.world, &snapshot, &request, &mut ids)
    }

    fn plan_delete(&self, name: &str) -> Result<Plan, Refusal> {
        let request = DeleteSnapshots {
            snapshots: vec![self.id(name)],
            with_children: false,
            bandwidth: None,
            merge_deadline_ms: None,
            generation: None,
            reason: DeletionReason::Asked,
        };
        delete(&self.world, &request)
    }

    fn snapshot(&self, name: &str) -> Snapshot {
        self.world.tree.snapshots.iter().find(|snapshot| snapshot.name.as_str() == name).unwrap().clone()
    }

    fn id(&self, name: &str) -> SnapshotId {
        self.snapshot(name).id
    }

    /// Lets the steps be so, on paper.
    fn carry_out(&mut self, plan: &Plan) {
        self.world.tree.snapshots.extend(plan.reservation.clone());
        self.world.tree.clones.extend(plan.clones.clone());
        let findings = Findings { memory_bytes: Some(5), ..Findings::default() };
        for step in &plan.steps {
            match step {
                Step::CreateOverlay(overlay) => {
                    self.add_image(&overlay.path, Some(overlay.backing_path.clone()));
                }
                Step::SwitchDisks(switch) => {
                    for disk in &switch.disks {
                        self.point(disk.target.as_str(), &disk.to.path);
                    }
                    if let Some(path) = &switch.memory {
                        self.world.memory_images.insert(path.clone(), 5);
                    }
                }
                Step::LinkImage { from, to } => {
                    let facts = self.world.images[from].clone();
                    self.world.images.insert(to.clone(), facts);
                }
                Step::ReplaceImage { from, to } => {
                    let facts = self.world.images.remove(from).unwrap();
                    self.world.images.insert(to.clone(), facts);
                    self.point(DiskTarget::of_detached().as_str(), to);
                }
                Step::PublishImage { from, to } => {
                    let facts = self.world.images.remove(from).unwrap();
                    self.world.images.insert(to.clone(), facts);
                }
                Step::CopyVariables { from, to } | Step::RestoreVariables { from, to, .. } => {
                    let bytes = self.world.variables[from];
                    self.world.variables.insert(to.clone(), bytes);
                }
                Step::CopyImage(copy) => self.add_image(&copy.path, None),
                Step::FlattenImage { image } => {
                    self.world.images.get_mut(&image.path).unwrap().backing = None;
                }
                Step::PointDisks { disks } => {
                    for disk in disks {
                        self.point(disk.target.as_str(), &disk.to.path);
                    }
                }
                Step::Merge(layers) => {
                    for merge in &layers.merges {
                        let lies_on = match &merge.how {
                            How::Commit { .. } => Some(&merge.base),
                            How::Pull { below } | How::Supersede { below } => below.as_ref(),
                        };
                        for image in merge.headers() {
                            let backing = lies_on.map(|below| Backing {
                                path: below.path.clone(),
                                format: Some(below.format),
                            });
                            self.world.images.get_mut(&image.path).unwrap().backing = backing;
                        }
                        let active = self.disk(merge.target.as_str()).active().unwrap().path.clone();
                        let is_child = active == merge.child.path;
                        let active = match merge.how {
                            How::Commit { .. } if is_child => merge.base.path.clone(),
                            _ => active,
                        };
                        if matches!(merge.how, How::Supersede { .. }) {
                            self.world.images.remove(&merge.base.path);
                        }
                        self.point(merge.target.as_str(), &active);
                    }
                }
                Step::RemoveImages { images } => {
                    for image in images {
                        self.world.images.remove(&image.path);
                    }
                }
                Step::Record(change) => self.world.tree.apply(change, &findings),
                _ => {}
            }
        }
    }

    /// Lets a disk read through `active` and all below it.
    fn point(&mut self, target: &str, active: &Path) {
        let mut images = vec![image(active)];
        while let Some(backing) = &self.world.images[&images.last().unwrap().path].backing {
            images.push(image(&backing.path));
        }
        self.disk(target).source =
            DiskSource::Chain { images, persistent: Some(active.to_owned()), persistent_below: Vec::new() };
    }

    fn create(&mut self, name: &str) {
        let plan = self.plan_create(&named(name)).unwrap();
        self.carry_out(&plan);
    }

    fn revert(&mut self, name: &str) {
        let plan = self.plan_revert(name, RunStateAfter::AsItWas).unwrap();
        self.carry_out(&plan);
    }
}

fn image(path: &Path) -> ChainImage {
    ChainImage { path: path.to_owned(), format: Format::Qcow2, is_block_device: false }
}

fn named(name: &str) -> CreateSnapshot {
    CreateSnapshot {
        vm: VmId(Uuid::from_u128(1)),
        image: None,
        kind: SnapshotKind::VmDisks,
        label: Label { name: Some(name.parse().unwrap()), ..Label::default() },
        quiesce: Quiesce::Auto,
        mount_points: Vec::new(),
        freeze_timeout_ms: 10_000,
        max_pause_ms: None,
        disks: BTreeSet::new(),
    }
}

/// The steps by name, the commit point marked.
fn outline(plan: &Plan) -> String {
    let name = |step: &Step| match step {
        Step::ReserveSnapshot { .. } | Step::ReserveClones { .. } => "reserve",
        Step::CreateOverlay(_) => "overlay",
        Step::PrepareMemoryImage { .. } => "memory",
        Step::BeginMemoryImage { .. } => "begin-memory",
        Step::PrepareCapture { .. } => "prepare",
        Step::PauseVm { .. } => "pause",
        Step::CaptureMemory { .. } => "capture",
        Step::ProveCapture { .. } => "prove",
        Step::ResumeVm => "resume",
        Step::AwaitMemory { .. } => "await",
        Step::FinishMemoryImage { .. } => "finish",
        Step::CopyVariables { .. } => "copy-variables",
        Step::RestoreVariables { .. } => "restore-variables",
        Step::FlushImages { .. } => "flush",
        Step::Freeze(_) => "freeze",
        Step::SwitchDisks(_) => "switch",
        Step::Thaw => "thaw",
        Step::ConfirmQuiesce => "confirm",
        Step::MarkDeleting { .. } => "deleting",
        Step::Merge(_) => "merge",
        Step::RemoveImages { .. } | Step::RemoveOrphan { .. } => "remove",
        Step::MarkReverting { .. } => "reverting",
        Step::CheckMemoryImage { .. } => "check",
        Step::Stop { .. } => "stop",
        Step::PointDisks { .. } => "point",
        Step::Start(_) | Step::StartNewVm { .. } => "start",
        Step::CopyImage(_) => "copy",
        Step::PublishImage { .. } => "publish",
        Step::LinkImage { .. } => "link",
        Step::ReplaceImage { .. } => "replace",
        Step::CheckUnused { .. } => "unused",
        Step::CheckUnwritten { .. } => "unwritten",
        Step::FlattenImage { .. } => "flatten",
        Step::DefineVm(_) => "define",
        Step::Record(_) => "record",
    };
    let mark = |index| if index == plan.commit_point { "!" } else { "" };
    let names: Vec<String> =
        plan.steps.iter().enumerate().map(|(index, step)| format!("{}{}", name(step), mark(index))).collect();
    names.join(" ")
}

#[allow(clippy::needless_pass_by_value, reason = "cases read better by value")]
fn check(plan: Result<Plan, Refusal>, expected: Result<&str, &str>) {
    let actual = plan.as_ref().map(outline).map_err(ToString::to_string);
    assert_eq!(actual.as_deref().map_err(String::as_str), expected);
}

fn check_create(
    prepare: impl FnOnce(&mut Paper),
    ask: impl FnOnce(&mut CreateSnapshot),
    expected: Result<&str, &str>,
) {
    let mut paper = Paper::new();
    prepare(&mut paper);
    let mut request = named("one");
    ask(&mut request);
    check(paper.plan_create(&request), expected);
}

#[test]
fn a_create_in_its_kinds() {
    let auto = "reserve overlay overlay flush freeze switch! thaw record";
    check_create(|_| {}, |_| {}, Ok(auto));
    check_create(
        |_| {},
        |request| request.quiesce = Quiesce::Required,
        Ok("reserve overlay overlay flush freeze switch thaw confirm! record"),
    );
    let plain = "reserve overlay overlay switch! record";
    check_create(|_| {}, |request| request.quiesce = Quiesce::Off, Ok(plain));
    let off = "reserve overlay overlay unwritten unwritten switch! record";
    check_create(|paper| paper.world.vm.run_state = RunState::Off, |_| {}, Ok(off));
    check_create(|paper| paper.world.vm.agent = AgentChannel::Absent, |_| {}, Ok(plain));
    check_create(|paper| paper.world.vm.run_state = RunState::Paused(PauseReason::User), |_| {}, Ok(plain));
    let one = |request: &mut CreateSnapshot| request.disks = BTreeSet::from(["vdb".parse().unwrap()]);
    check_create(|_| {}, one, Ok("reserve overlay flush freeze switch! thaw record"));
    let cdrom = |paper: &mut Paper| paper.disk("vdb").source = DiskSource::Excluded(ExcludedDisk::Cdrom);
    check_create(cdrom, |_| {}, Ok("reserve overlay flush freeze switch! thaw record"));
}

#[test]
fn a_create_that_is_refused() {
    let refuse = |prepare: fn(&mut Paper), ask: fn(&mut CreateSnapshot), words| {
        check_create(prepare, ask, Err(words));
    };
    refuse(
        |paper| paper.world.vm.run_state = RunState::Unsettled,
        |_| {},
        "the VM is between two states, or in one that only its owner may end",
    );
    refuse(
        |paper| paper.world.vm.has_managed_save = true,
        |_| {},
        "the VM has a saved memory image that its next start would resume on changed disks",
    );
    refuse(
        |paper| paper.disk("vdb").source = DiskSource::Refused(RefusedDisk::Network("rbd".to_owned())),
        |_| {},
        "disk vdb is a network disk (rbd)",
    );
    refuse(
        |_| {},
        |request| request.disks = BTreeSet::from(["vdz".parse().unwrap()]),
        "the VM has no disk vdz",
    );
    refuse(
        |paper| paper.disk("vda").source = DiskSource::Excluded(ExcludedDisk::Cdrom),
        |request| request.disks = BTreeSet::from(["vda".parse().unwrap()]),
        "disk vda is a CD-ROM drive: there is nothing to snapshot",
    );
    refuse(
        |paper| {
            let job =
                BlockJob { kind: BlockJobKind::Other, done: 0, total: 1, ready: false, bandwidth: None };
            paper.disk("vda").block_job = Some(job);
        },
        |_| {},
        "a block job is running on disk vda",
    );
    refuse(
        |paper| paper.world.vm.agent = AgentChannel::Disconnected,
        |request| request.quiesce = Quiesce::Required,
        "the guest agent is not connected",
    );
    refuse(
        |paper| paper.world.vm.run_state = RunState::Off,
        |request| request.kind = SnapshotKind::VmDisksAndMemory,
        "the VM is off: it has no memory to capture",
    );
    refuse(
        |paper| paper.world.vm.memory_blocker = Some("the VM has a passed-through device".to_owned()),
        |request| request.kind = SnapshotKind::VmDisksAndMemory,
        "memory cannot be captured: the VM has a passed-through device",
    );
    refuse(
        |paper| paper.world.free_space = HashMap::from([("/memory".into(), space::of(1 << 20))]),
        |request| request.kind = SnapshotKind::VmDisksAndMemory,
        "/memory has 1048576 bytes free, 1073741824 are needed",
    );
    refuse(
        |paper| drop(paper.world.images.remove(Path::new("/images/vda.qcow2"))),
        |_| {},
        "there is no image /images/vda.qcow2",
    );
    refuse(|paper| paper.create("one"), |_| {}, "the VM has a snapshot one already");
}

#[test]
fn changes_behind_our_back_are_refused() {
    let mut paper = Paper::new();
    paper.create("one");
    let active = paper.disk("vda").active().unwrap().path.clone();
    paper.add_image(Path::new("/images/stranger.qcow2"), Some(active.clone()));
    paper.point("vda", Path::new("/images/stranger.qcow2"));
    let words = format!(
        "disk vda writes to /images/stranger.qcow2, which is not ours, over {}, which is",
        active.display()
    );
    check(paper.plan_create(&named("two")), Err(&words));
    check(paper.plan_revert("one", RunStateAfter::AsItWas), Err(&words));

    let mut paper = Paper::new();
    paper.create("one");
    paper.disk("vda").source = DiskSource::Chain {
        images: paper.disk("vda").chain().to_vec(),
        persistent: Some("/images/vda.qcow2".into()),
        persistent_below: Vec::new(),
    };
    assert!(matches!(paper.plan_create(&named("two")), Err(Refusal::DefinitionsDiffer { .. })));
}

#[test]
fn reverts() {
    let mut paper = Paper::new();
    paper.create("one");
    let boot = "reverting overlay overlay stop point start! record remove";
    check(paper.plan_revert("one", RunStateAfter::AsItWas), Ok(boot));
    check(
        paper.plan_revert("one", RunStateAfter::Off),
        Ok("reverting overlay overlay stop point! record remove"),
    );
    paper.world.vm.run_state = RunState::Off;
    check(
        paper.plan_revert("one", RunStateAfter::AsItWas),
        Ok("reverting overlay overlay point! record remove"),
    );
    check(
        paper.plan_revert("one", RunStateAfter::Running),
        Ok("reverting overlay overlay point start! record remove"),
    );
    paper.world.vm.run_state = RunState::Running;
    let plan =
        paper.plan_create(&CreateSnapshot { kind: SnapshotKind::VmDisksAndMemory, ..named("two") }).unwrap();
    paper.carry_out(&plan);
    check(
        paper.plan_revert("two", RunStateAfter::AsItWas),
        Ok("reverting overlay overlay check stop point start! record remove"),
    );
    paper.world.memory_images.clear();
    assert!(matches!(paper.plan_revert("two", RunStateAfter::AsItWas), Err(Refusal::ImageMissing(_))));
    check(
        paper.plan_revert("two", RunStateAfter::Off),
        Ok("reverting overlay overlay stop point! record remove"),
    );
}

#[test]
fn a_revert_to_an_image_that_was_changed_is_refused() {
    let mut paper = Paper::new();
    paper.create("one");
    paper.create("two");
    let frozen = paper.snapshot("two").disks[0].layer;
    let path = paper.world.tree.layers[&frozen].path.clone();
    paper.revert("one");
    paper.world.images.get_mut(&path).unwrap().backing = None;
    assert!(matches!(paper.plan_revert("two", RunStateAfter::AsItWas), Err(Refusal::ImageChanged { .. })));
}

#[test]
fn deletes_of_a_linear_chain() {
    for name in ["one", "two", "three"] {
        let mut paper = Paper::new();
        for name in ["one", "two", "three"] {
            paper.create(name);
        }
        let plan = paper.plan_delete(name).unwrap();
        assert_eq!(outline(&plan), "deleting merge! record record remove");
        paper.carry_out(&plan);
        assert_eq!(paper.world.tree.snapshots.len(), 2);
        assert_eq!(paper.world.images.len(), 2 * 3, "one layer per disk went");
        for name in ["one", "two", "three"].into_iter().filter(|other| *other != name) {
            let plan = paper.plan_delete(name).unwrap();
            paper.carry_out(&plan);
        }
        assert_eq!(paper.world.images.len(), 2, "only the first images are left");
        assert_eq!(paper.disk("vda").active().unwrap().path, Path::new("/images/vda.qcow2"));
        assert_eq!(paper.world.tree.current, None);
    }
}

#[test]
fn a_branch_point_waits_until_one_branch_is_left() {
    let mut paper = Paper::new();
    paper.create("root");
    paper.create("leaf");
    paper.revert("root");
    let plan = paper.plan_delete("root").unwrap();
    assert_eq!(outline(&plan), "deleting record!");
    assert!(plan.warnings[0].starts_with("2 layers with"), "{:?}", plan.warnings);
    paper.carry_out(&plan);
    assert_eq!(paper.world.tree.pending().count(), 2, "one layer of each disk waits");
    assert!(matches!(collapse(&paper.world), Err(Refusal::NothingToCollapse)));
    let plan = paper.plan_delete("leaf").unwrap();
    assert_eq!(outline(&plan), "deleting merge! record record remove");
    paper.carry_out(&plan);
    assert_eq!(paper.world.images.len(), 2, "only the first images are left");
    assert_eq!(paper.world.tree.layers.len(), 2);
}

#[test]
fn a_template_is_never_written() {
    let mut paper = Paper::new();
    paper.world.vm.disks.clear();
    paper.add_disk("vda", &["/images/vda.qcow2", "/templates/debian.qcow2"]);
    paper.create("one");
    let plan = paper.plan_delete("one").unwrap();
    let Some(Step::Merge(layers)) = plan.steps.iter().find(|step| matches!(step, Step::Merge(_))) else {
        panic!("there is a merge")
    };
    assert_eq!(layers.merges[0].base.path, Path::new("/images/vda.qcow2"));
}

#[test]
fn applying_a_change_twice_is_applying_it_once() {
    let mut paper = Paper::new();
    for name in ["one", "two"] {
        paper.create(name);
    }
    let plans = [
        paper.plan_create(&named("three")).unwrap(),
        paper.plan_revert("one", RunStateAfter::AsItWas).unwrap(),
        paper.plan_delete("one").unwrap(),
    ];
    for plan in plans {
        let mut tree = paper.world.tree.clone();
        tree.snapshots.extend(plan.reservation.clone());
        let change = plan.steps.iter().find_map(|step| match step {
            Step::Record(change) => Some(change),
            _ => None,
        });
        tree.apply(change.unwrap(), &Findings::default());
        let mut again = tree.clone();
        again.apply(change.unwrap(), &Findings::default());
        for snapshot in tree.snapshots.iter_mut().chain(&mut again.snapshots) {
            snapshot.generation = 0;
        }
        assert_eq!(tree, again);
    }
}
