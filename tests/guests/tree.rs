//! Snapshot trees on a real guest: any snapshot is deleted while the guest runs, and every other one reads what it
//! read when it was taken. Digests are of the images, from outside; the daemon is never asked whether it was right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::bed::{Client, Daemon, Dice, Format, Guest, Setup, Spec, images};

const DISKS: [&str; 2] = ["vda", "vdb"];

/// A guest whose snapshots are known by what their disks read.
struct Tree {
    guest: Guest,
    client: Client,
    daemon: Daemon,
    /// Target and image of each disk before the first snapshot.
    first_images: Vec<(String, PathBuf)>,
    /// By name, a digest per disk.
    digests: BTreeMap<String, Vec<String>>,
}

impl Tree {
    fn plant() -> Self {
        Self::plant_with("")
    }

    /// With further lines of configuration.
    fn plant_with(configuration: &str) -> Self {
        let guest = Guest::boot(&Spec::default());
        let setup = Setup { configuration: configuration.to_owned(), ..Setup::default() };
        let daemon = Daemon::start_with(setup);
        let client = daemon.client();
        let first_images = guest.disks();
        Self { guest, client, daemon, first_images, digests: BTreeMap::new() }
    }

    /// Writes a file named after the snapshot on both disks, and takes it.
    fn take(&mut self, name: &str) {
        for disk in DISKS {
            self.guest.write_file(&format!("/mnt/{disk}/{name}"), name.as_bytes());
        }
        self.client.json(&["snapshot", "create", self.guest.name(), name, "--quiesce", "required"]);
        let digests = self.read(name);
        self.digests.insert(name.to_owned(), digests);
    }

    fn revert(&self, name: &str) {
        self.client.json(&["snapshot", "revert", &self.named(name), "--yes"]);
        self.guest.wait_until_up();
    }

    fn delete(&mut self, names: &[&str]) {
        let doomed: Vec<String> = names.iter().map(|name| self.named(name)).collect();
        let mut arguments = vec!["snapshot", "delete", "--yes"];
        arguments.extend(doomed.iter().map(String::as_str));
        self.client.json(&arguments);
        self.digests.retain(|name, _| !names.contains(&name.as_str()));
        self.verify();
    }

    fn named(&self, name: &str) -> String {
        format!("{}/{name}", self.guest.name())
    }

    /// What the disks of a snapshot read now.
    fn read(&self, name: &str) -> Vec<String> {
        let shown = self.client.json(&["snapshot", "show", &self.named(name)]);
        let disks = shown["snapshot"]["disks"].as_array().unwrap().iter();
        disks.map(|disk| digest(Path::new(disk["path"].as_str().unwrap()))).collect()
    }

    /// Every snapshot that is left reads what it read, and the guest runs on.
    fn verify(&self) {
        let list = self.client.json(&["snapshot", "list", self.guest.name()]);
        let snapshots = list["snapshots"].as_array().unwrap();
        assert_eq!(snapshots.len(), self.digests.len());
        for (name, digests) in &self.digests {
            assert_eq!(self.read(name), *digests, "{name} reads something else");
        }
        assert_eq!(self.guest.state(), "running");
        assert!(self.guest.agent_answers());
    }

    /// Layers that wait to be merged.
    fn debt(&self) -> u64 {
        let vm = self.client.json(&["vm", "show", self.guest.name()]);
        vm["vm"]["merge_debt"]["layers"].as_u64().unwrap()
    }

    fn has_file(&self, name: &str) -> bool {
        DISKS.iter().all(|disk| self.guest.has_file(&format!("/mnt/{disk}/{name}")))
    }

    /// With the last snapshot every file goes but the first images.
    fn assert_bare(&self) {
        assert_eq!(self.guest.disks(), self.first_images);
        assert_eq!(self.debt(), 0);
        let left = std::fs::read_dir(self.first_images[0].1.parent().unwrap()).unwrap();
        let is_overlay = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("vmsnap-");
        let overlays: Vec<PathBuf> = left.map(|entry| entry.unwrap().path()).filter(is_overlay).collect();
        assert_eq!(overlays, Vec::<PathBuf>::new(), "nothing needs these");
    }
}

#[test]
#[ignore = "long: make guests"]
fn a_branch_point_is_deleted_while_the_guest_runs() {
    let mut tree = Tree::plant();
    for name in ["root", "a", "b"] {
        tree.take(name);
    }
    tree.revert("a");
    for name in ["c", "d"] {
        tree.take(name);
    }
    // root <- a <- b
    //          \- c <- d <- the guest
    // What the guest's disks hold in each.
    let held: BTreeMap<&str, &[&str]> = [
        ("root", ["root"].as_slice()),
        ("b", &["root", "a", "b"]),
        ("c", &["root", "a", "c"]),
        ("d", &["root", "a", "c", "d"]),
    ]
    .into();
    for (doomed, debt, why) in [
        ("a", 2, "a's layer of each disk waits: b and c lie on it"),
        ("b", 0, "one branch was left, so it was merged"),
        ("c", 0, "d lies on root"),
    ] {
        tree.delete(&[doomed]);
        assert_eq!(tree.debt(), debt, "{why}");
        let left: Vec<String> = tree.digests.keys().cloned().collect();
        // In the order of their names: the guest ends at d, where it was.
        for name in left.iter().filter(|name| *name != "root").chain([&"root".to_owned(), &"d".to_owned()]) {
            tree.revert(name);
            tree.verify();
            for file in ["root", "a", "b", "c", "d"] {
                let is_held = held[name.as_str()].contains(&file);
                assert_eq!(tree.has_file(file), is_held, "{file} in {name}, without {doomed}");
            }
        }
        assert_eq!(tree.debt(), debt, "the reverts left nothing");
    }
    tree.delete(&["root", "d"]);
    assert!(["root", "a", "c", "d"].iter().all(|file| tree.has_file(file)), "the guest has its data");
    tree.assert_bare();
    assert!(tree.daemon.is_running());
}

fn digest(image: &Path) -> String {
    let is_raw = image.extension().is_some_and(|extension| extension == "raw");
    images::digest(image, if is_raw { Format::Raw } else { Format::Qcow2 })
}

#[test]
#[ignore = "long: make guests"]
fn a_tree_of_twelve_is_deleted_in_any_order() {
    let mut dice = Dice::new(2026);
    let mut tree = Tree::plant();
    for number in 0..12 {
        tree.take(&format!("s{number:02}"));
        if number % 3 == 2 {
            tree.revert(&format!("s{:02}", dice.roll(number + 1)));
        }
    }
    while !tree.digests.is_empty() {
        let names: Vec<String> = tree.digests.keys().cloned().collect();
        let mut doomed: Vec<&str> = vec![&names[dice.roll(names.len())]];
        if dice.roll(3) == 0 {
            doomed.push(&names[dice.roll(names.len())]);
            doomed.dedup();
        }
        tree.delete(&doomed);
    }
    tree.assert_bare();
}

/// The VM has written more since the newest snapshot than the snapshot's layer holds: that goes up, not all of it down.
#[test]
fn the_smaller_layer_moves() {
    // The QEMU of the bed may be one that must not be asked to by itself: nobody else asks it for anything here.
    let mut tree = Tree::plant_with("live_pulls = 'always'");
    tree.take("one");
    tree.take("two");
    tree.guest.exec("dd if=/dev/urandom of=/mnt/vda/bulk bs=1M count=24 && sync");
    let active = tree.guest.image("vda");
    let doomed = tree.named("two");
    let shown = tree.client.json(&["snapshot", "delete", &doomed, "--dry-run"]);
    let steps = shown["plan"]["steps"].to_string();
    assert!(steps.contains(&format!("up into {}", active.display())), "{steps}");
    let bytes: u64 = shown["plan"]["bytes_to_copy"].as_str().unwrap().parse().unwrap();
    assert!(bytes < 24 << 20, "{bytes} bytes would move");
    let before = tree.guest.exec("sha256sum /mnt/vda/bulk");
    let count = tree.guest.counter();
    tree.delete(&["two"]);
    assert_eq!(tree.guest.image("vda"), active, "the VM goes on with its image");
    assert_eq!(tree.guest.exec("echo 3 > /proc/sys/vm/drop_caches; sha256sum /mnt/vda/bulk"), before);
    assert_eq!(tree.guest.counter().token, count.token, "the guest was never stopped");
    assert_eq!(tree.debt(), 0);
    tree.guest.shutdown();
    tree.guest.start();
    assert_eq!(tree.guest.exec("sha256sum /mnt/vda/bulk"), before, "after a cold start, too");
    tree.revert("one");
    assert!(tree.has_file("one") && !tree.has_file("two"));
}
