//! A real guest whose disks change between a snapshot and the way back to it: resized, removed, replaced under the same
//! name. What goes back is told in the plan before.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

#[path = "bed/mod.rs"]
mod bed;

use std::path::Path;

use bed::{Daemon, Format, Guest, Spec, images};

fn write(guest: &Guest, name: &str) {
    for disk in ["vda", "vdb"] {
        guest.write_file(&format!("/mnt/{disk}/{name}"), name.as_bytes());
    }
}

/// Plugs a disk into the stored definition, or out of it.
fn change_definition(guest: &Guest, verb: &str, target: &str, image: &Path) {
    let (path, driver) = (image.display(), "<driver name='qemu' type='qcow2'/>");
    let xml = format!(
        "<disk type='file' device='disk'>{driver}<source file='{path}'/><target dev='{target}' bus='virtio'/></disk>"
    );
    let file = guest.directory().join("device.xml");
    std::fs::write(&file, xml).unwrap();
    guest.virsh(verb, &[&file.display().to_string(), "--config"]);
}

#[test]
fn disks_that_were_resized_removed_and_replaced() {
    let guest = Guest::boot(&Spec::default());
    let daemon = Daemon::start();
    let (client, vm) = (daemon.client(), guest.name());
    write(&guest, "first");
    let taken = client.json(&["snapshot", "create", vm, "one", "--quiesce", "required"]);
    let size = taken["snapshot"]["disks"][0]["virtual_size_bytes"].as_str().unwrap().parse::<u64>().unwrap();
    let snapshot = format!("{vm}/one");

    // A running guest's disk grows, and one of another kind is plugged in.
    guest.virsh("blockresize", &["vda", &format!("{}b", 2 * size)]);
    assert_eq!(images::virtual_size(&guest.image("vda"), Format::Qcow2), 2 * size);
    let extra = guest.directory().join("extra.qcow2");
    images::create(&extra, Format::Qcow2, 8);
    guest.attach("vdc", &extra, Format::Qcow2);
    write(&guest, "second");
    let extra_digest = images::digest(&extra, Format::Qcow2);

    // Off, vdb goes, and another disk takes its name.
    guest.shutdown();
    let overlay = guest.image("vdb");
    guest.virsh("detach-disk", &["vdb", "--config"]);
    change_definition(&guest, "attach-device", "vdb", &extra);
    let plan = client.json(&["snapshot", "revert", &snapshot, "--dry-run"]);
    let warnings = plan["plan"]["warnings"].to_string();
    assert!(warnings.contains("disk vdb of the snapshot was removed"), "{warnings}");
    assert!(warnings.contains("disk vdb is not in the snapshot"), "{warnings}");
    client.json(&["snapshot", "revert", &snapshot, "--yes"]);
    assert_eq!(
        images::virtual_size(&guest.image("vda"), Format::Qcow2),
        size,
        "as large as it was in the snapshot"
    );
    assert_eq!(guest.image("vdb"), extra, "the disk of the same name is another one");
    assert_eq!(images::digest(&extra, Format::Qcow2), extra_digest);
    let file = |image: &Path, name: &str| images::read_file(image, Format::Qcow2, name).is_some();
    assert!(file(&guest.image("vda"), "first") && !file(&guest.image("vda"), "second"));
    assert!(file(&overlay, "second"), "what was removed is left alone");

    // Plugged in again elsewhere, the volume is known, and goes back too.
    guest.virsh("detach-disk", &["vdb", "--config"]);
    change_definition(&guest, "attach-device", "vdb", &overlay);
    client.json(&["snapshot", "revert", &snapshot, "--yes"]);
    guest.start();
    for disk in ["vda", "vdb"] {
        assert!(guest.has_file(&format!("/mnt/{disk}/first")), "{disk}");
        assert!(!guest.has_file(&format!("/mnt/{disk}/second")), "{disk}");
    }
    client.json(&["snapshot", "delete", &snapshot, "--yes"]);
    assert_eq!(client.json(&["vm", "show", vm])["vm"]["merge_debt"]["layers"].as_u64(), Some(0));
}
