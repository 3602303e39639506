//! What is done to a guest, by whom: `virsh` as a user types it, and the strongest script of it.
//!
//! Each gives the guest back as it was. Knows nothing of time.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::bed::{Guest, images, virsh};

/// The arms, as they are named everywhere.
pub const OURS: &str = "vmsnap";
/// The same once more: what differs between the two is noise.
pub const OURS_AGAIN: &str = "vmsnap again";
pub const VIRSH: &str = "virsh";
pub const SCRIPT: &str = "script";
pub const FLOOR: &str = "freeze, thaw";

/// The clusters of an overlay if nobody says otherwise.
pub const DEFAULT: &str = "cluster_size=64k";

/// The overlays that a tool is to switch a guest to.
pub struct Overlays {
    /// Target, active image, overlay.
    disks: Vec<(String, PathBuf, PathBuf)>,
}

impl Overlays {
    pub fn of(guest: &Guest) -> Self {
        Self::named(guest, "overlay")
    }

    /// Whose files end in something else.
    pub fn named(guest: &Guest, ending: &str) -> Self {
        let overlay = |target: &str| guest.directory().join(format!("{target}.{ending}"));
        let disks = guest.disks().into_iter();
        Self { disks: disks.map(|(target, image)| (target.clone(), image, overlay(&target))).collect() }
    }

    /// What the strongest script does ahead.
    pub fn prepare(&self) {
        self.prepare_as(DEFAULT);
    }

    /// The same with other options of `qemu-img create`.
    pub fn prepare_as(&self, options: &str) {
        for (_, image, overlay) in &self.disks {
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-f", "qcow2", "-o", options, "-F", "qcow2", "-b"]);
            images::run(create.arg(image).arg(overlay));
        }
    }

    /// For `virsh snapshot-create-as`.
    pub fn options(&self) -> Vec<String> {
        let option = |(target, _, overlay): &(String, PathBuf, PathBuf)| {
            format!("--diskspec {target},snapshot=external,file={}", overlay.display())
        };
        self.disks.iter().map(option).collect()
    }

    /// A definition of the guest as it was before, with them in the place of its images.
    pub fn put_into(&self, definition: &str) -> String {
        let source = |path: &PathBuf| format!("<source file='{}'", path.display());
        let put = |definition: String, (_, image, overlay): &(String, PathBuf, PathBuf)| {
            assert!(definition.contains(&source(image)), "{definition}");
            definition.replace(&source(image), &source(overlay))
        };
        // It says of the images that nothing is under them.
        let definition = definition.replace("<backingStore/>", "");
        assert!(!definition.contains("<backingStore"), "{definition}");
        self.disks.iter().fold(definition, put)
    }

    /// Merges them back, one after the other.
    pub fn merge(&self, guest: &Guest) {
        for (target, image, overlay) in &self.disks {
            let base = image.display().to_string();
            guest.virsh("blockcommit", &[target, "--base", &base, "--active", "--pivot", "--wait"]);
            fs::remove_file(overlay).unwrap();
        }
    }
}

/// One process and one connection for several commands, as the quickest user types them.
pub fn at_once(commands: &[String]) {
    virsh::run(&[&commands.join("; ")]);
}

/// A snapshot of the disks, quiesced.
pub fn virsh_quiesced(guest: &Guest, overlays: &Overlays) {
    let options = overlays.options().join(" ");
    let name = guest.name();
    at_once(&[format!("snapshot-create-as {name} --disk-only --quiesce --atomic --no-metadata {options}")]);
}

/// The same: overlays that are there, and no word more than needed while the guest is frozen.
pub fn script_quiesced(guest: &Guest, overlays: &Overlays) {
    let name = guest.name();
    at_once(&[format!("domfsfreeze {name}"), to_prepared(guest, overlays), format!("domfsthaw {name}")]);
}

/// Switches a guest to overlays that are there, and leaves its file systems alone.
pub fn switch(guest: &Guest, overlays: &Overlays) {
    at_once(&[to_prepared(guest, overlays)]);
}

fn to_prepared(guest: &Guest, overlays: &Overlays) -> String {
    let options = overlays.options().join(" ");
    let name = guest.name();
    format!("snapshot-create-as {name} --disk-only --atomic --no-metadata --reuse-external {options}")
}

/// What no quiesced snapshot is without.
pub fn freeze_and_thaw(guest: &Guest) {
    let name = guest.name();
    at_once(&[format!("domfsfreeze {name}"), format!("domfsthaw {name}")]);
}
