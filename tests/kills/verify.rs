//! Whether everything is as it must be, seen from inside the guests and from outside; the daemon is only asked where its
//! files are, and whether it has found anything itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bed::images::{self, Content as Image};
use crate::bed::{Client, Format};
use crate::care::Weather;
use crate::truth::{self, Content, FILES};
use crate::work::Worker;

const JOBS: &str = r#"{"execute":"query-block-jobs"}"#;

/// Looks at a guest, its snapshots and its clones. Gives the files of ours that something of it needs.
pub fn verify(worker: &mut Worker, client: &Client) -> BTreeSet<PathBuf> {
    assert_runs_well(worker);
    let mut needed = BTreeSet::new();
    let mut images: Vec<PathBuf> = worker.guest.disks().into_iter().map(|(_, image)| image).collect();
    images.extend(verify_snapshots(worker, client));
    images.extend(verify_clones(worker));
    for image in images {
        needed.extend(images::chain(&image, format(&image)));
    }
    needed
}

fn assert_runs_well(worker: &Worker) {
    let (guest, name) = (&worker.guest, worker.guest.name());
    assert_eq!(guest.state(), "running", "{name}");
    assert!(!guest.is_frozen(), "{name} is frozen");
    let jobs = guest.virsh("qemu-monitor-command", &[JOBS]);
    let jobs: Value = serde_json::from_str(&jobs).expect("QEMU answers in JSON");
    assert_eq!(jobs["return"], Value::Array(Vec::new()), "{name}: a block job is left");
    for disk in truth::DISKS {
        let ring = guest.ring(disk);
        assert_eq!(ring.bad, 0, "{name}/{disk}: {ring:?}");
        let before = worker.content().written.get(disk).copied().unwrap_or(0);
        assert!(ring.last >= before, "{name}/{disk}: {before} had been written, {ring:?} is there");
    }
    let script = "echo 3 > /proc/sys/vm/drop_caches; cd /mnt; for f in */f*; do sha256sum $f; done";
    let found = worker.in_guest(script, &Weather::default());
    let found: BTreeMap<&str, &str> =
        found.lines().filter_map(|line| line.split_once("  ").map(|(digest, path)| (path, digest))).collect();
    for ((disk, file), version) in &worker.content().files {
        let expected = truth::digest(name, disk, *file, *version);
        let path = truth::path(disk, *file);
        assert_eq!(
            found.get(path.as_str()),
            Some(&expected.as_str()),
            "{name}: {path} is not version {version}"
        );
    }
    assert_eq!(found.len(), worker.content().files.len(), "{name}: there are other files: {found:?}");
}

fn verify_snapshots(worker: &mut Worker, client: &Client) -> Vec<PathBuf> {
    let vm = worker.guest.name().to_owned();
    let list = client.json(&["snapshot", "list", &vm]);
    let listed = list["snapshots"].as_array().expect("a list");
    let names: BTreeSet<&str> = listed.iter().filter_map(|snapshot| snapshot["name"].as_str()).collect();
    let expected: BTreeSet<&str> = worker.truth.snapshots.keys().map(String::as_str).collect();
    assert_eq!(names, expected, "{vm}: snapshots");
    let mut images = Vec::new();
    for snapshot in listed {
        let name = snapshot["name"].as_str().expect("a name");
        assert_eq!(snapshot["state"], "SNAPSHOT_STATE_READY", "{vm}/{name}: {snapshot}");
        let held = worker.truth.snapshots.get_mut(name).expect("the names are the same");
        let disks = snapshot["disks"].as_array().expect("a list");
        assert_eq!(disks.len(), held.disks.len(), "{vm}/{name}: {snapshot}");
        for disk in held.disks.clone() {
            let found = disks.iter().find(|found| found["target"] == disk);
            let path = found.and_then(|found| found["path"].as_str());
            let path = PathBuf::from(path.unwrap_or_else(|| panic!("{vm}/{name} has no {disk}: {snapshot}")));
            let whose = format!("{vm}/{name}/{disk}");
            let content = held.content.of_disk(disk);
            let digest = verify_image(&whose, &vm, &path, held.digests.get(disk), &content);
            held.digests.insert(disk, digest);
            images.push(path);
        }
    }
    images
}

fn verify_clones(worker: &mut Worker) -> Vec<PathBuf> {
    let vm = worker.guest.name().to_owned();
    let clones = worker.truth.clones.values_mut();
    let verified = clones.map(|clone| {
        let whose = clone.path.display().to_string();
        let digest = verify_image(&whose, &vm, &clone.path, clone.digest.as_ref(), &clone.content);
        clone.digest = Some(digest);
        clone.path.clone()
    });
    verified.collect()
}

/// What an image reads is what it read; if it was never read before, it holds the files that it must. Gives its digest.
fn verify_image(whose: &str, vm: &str, path: &Path, before: Option<&String>, content: &Content) -> String {
    let image = Image::of(path, format(path));
    let digest = image.digest();
    match before {
        Some(before) => assert_eq!(&digest, before, "{whose} reads something else: {}", path.display()),
        None => verify_files(whose, vm, &image, content),
    }
    digest
}

fn verify_files(whose: &str, vm: &str, image: &Image, content: &Content) {
    image.replay_journal();
    for ((disk, file), version) in &content.files {
        let found = image.file(&format!("/f{file}")).map(|bytes| truth::hex(&bytes));
        let expected = truth::digest(vm, disk, *file, *version);
        assert_eq!(found.as_ref(), Some(&expected), "{whose}: f{file} is not version {version}");
    }
    let held: BTreeSet<usize> = content.files.keys().map(|(_, file)| *file).collect();
    for file in (0..FILES).filter(|file| !held.contains(file)) {
        assert!(image.file(&format!("/f{file}")).is_none(), "{whose}: f{file} is of another time");
    }
}

fn format(image: &Path) -> Format {
    if image.extension().is_some_and(|extension| extension == "raw") { Format::Raw } else { Format::Qcow2 }
}

/// Memory images hold what they held.
pub fn verify_memories(worker: &mut Worker, directory: &Path) {
    let vm = worker.guest.name().to_owned();
    for (name, held) in worker.truth.snapshots.iter_mut().filter(|(_, held)| held.token.is_some()) {
        let is_its = |file: &PathBuf| file.to_string_lossy().contains(&held.id);
        let image = ours(directory).into_iter().find(is_its);
        let image = image.unwrap_or_else(|| panic!("{vm}/{name} has no memory image"));
        let digest = images::digest_of_file(&image);
        if let Some(before) = held.memory.replace(digest.clone()) {
            assert_eq!(digest, before, "{vm}/{name} remembers something else: {}", image.display());
        }
    }
}

/// Every file of ours in these directories is needed; there are as many manifests as snapshots and clones, and as many
/// memory images as snapshots with memory.
pub fn assert_no_orphans(
    directories: &[PathBuf],
    needed: &BTreeSet<PathBuf>,
    manifests: usize,
    (memory, memories): (&Path, usize),
) {
    let is_manifest = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "manifest");
    let files = directories.iter().flat_map(|directory| ours(directory));
    let (told, images): (Vec<PathBuf>, Vec<PathBuf>) = files.partition(is_manifest);
    assert_eq!(told.len(), manifests, "manifests: {told:?}");
    for image in images {
        assert!(needed.contains(&image), "nothing needs {}", image.display());
    }
    let kept = ours(memory);
    assert_eq!(kept.len(), memories, "memory images: {kept:?}");
}

/// Files that the daemon made, by their names.
pub fn ours(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let files = entries.map(|entry| entry.expect("a directory can be read").path());
    let is_ours = |name: &OsStr| name.to_string_lossy().starts_with("vmsnap-");
    files.filter(|file| file.is_file() && file.file_name().is_some_and(is_ours)).collect()
}
