//! Image files: made, looked at, removed.

use super::*;
use crate::model::vm::{Backing, FileIdentity};

#[tokio::test]
async fn an_overlay_is_what_was_asked_for() {
    let bed = Bed::off();
    bed.sim.create_overlay(&overlay("/a", VDA, 7 * BLOCK)).await.unwrap();
    let facts = bed.sim.inspect(Path::new("/a"), Format::Qcow2).await.unwrap();
    assert_eq!(facts.virtual_size, 7 * BLOCK);
    assert_eq!(facts.backing, Some(Backing { path: VDA.into(), format: Some(Format::Qcow2) }));
    let below = bed.sim.inspect(Path::new(VDA), Format::Qcow2).await.unwrap();
    assert_eq!(below.backing, None);
    assert_ne!(below.identity, facts.identity);
    let again = bed.sim.create_overlay(&overlay("/a", VDA, BLOCK)).await;
    assert!(
        matches!(&again, Err(HostError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::AlreadyExists),
        "{again:?}"
    );
    assert_eq!(kind(&bed.sim.create_overlay(&overlay("relative", VDA, BLOCK)).await), "bad image");
    bed.sim.set_free_space(0);
    assert_eq!(kind(&bed.sim.create_overlay(&overlay("/b", VDA, BLOCK)).await), "no space");
}

#[tokio::test]
async fn what_an_image_is_read_as() {
    let bed = Bed::running();
    bed.sim.put_image(Path::new("/raw"), Format::Raw, 5 * BLOCK, false).unwrap();
    bed.snapshot(&[], Some("/memory")).await;
    let check = async |path: &str, format, expected: &str| {
        assert_eq!(kind(&bed.sim.inspect(Path::new(path), format).await), expected, "{path}");
    };
    check("/raw", Format::Raw, "ok").await;
    check("/raw", Format::Qcow2, "bad image").await;
    check(VDA, Format::Raw, "ok").await;
    check("/memory", Format::Qcow2, "bad image").await;
    check("/missing", Format::Raw, "no such image").await;
    assert_eq!(bed.sim.inspect(Path::new("/raw"), Format::Raw).await.unwrap().virtual_size, 5 * BLOCK);
    assert_eq!(kind(&bed.sim.memory_image(Path::new("/raw")).await), "bad image");
    assert_eq!(bed.sim.memory_image(Path::new("/missing")).await.unwrap(), None);
    assert_eq!(kind(&bed.sim.sync(Path::new("/missing")).await), "no such image");
    assert_eq!(kind(&bed.sim.sync(Path::new("/memory")).await), "ok");
}

#[tokio::test]
async fn a_removal_is_of_the_file_that_was_meant() {
    let bed = Bed::off();
    bed.overlay("/a", VDA).await;
    let identity = bed.sim.inspect(Path::new("/a"), Format::Qcow2).await.unwrap().identity;
    let remove = async |identity| {
        kind(&bed.sim.remove(&DoomedImage { path: "/a".into(), identity: Some(identity) }).await)
    };
    assert_eq!(remove(FileIdentity { inode: identity.inode + 1, ..identity }).await, "bad image");
    assert_eq!(remove(identity).await, "ok");
    assert_eq!(remove(identity).await, "ok", "what is gone is gone");
    bed.overlay("/a", VDA).await;
    assert_eq!(remove(identity).await, "bad image", "another file under the same name");
    bed.check_violations(&[]);
}

async fn check_removal(path: &str, violations: &[&str]) {
    let bed = Bed::running();
    bed.snapshot(&[("vda", "/1")], None).await;
    bed.overlay("/dead", VDA).await;
    bed.remove(path).await.unwrap();
    bed.check_violations(violations);
}

#[tokio::test]
async fn a_removal_of_what_somebody_needs_is_noticed() {
    check_removal("/dead", &[]).await;
    let in_use =
        ["/1 is removed, but VM web has it open", "/1 is removed, but the definition of VM web names it"];
    check_removal("/1", &in_use).await;
    let below = [
        "/images/web-vda is removed, but /1 lies on it",
        "/images/web-vda is removed, but /dead lies on it",
        "/images/web-vda is removed, but VM web has it open",
    ];
    check_removal(VDA, &below).await;
}

#[tokio::test]
async fn images_in_use() {
    let bed = Bed::running();
    bed.snapshot(&[("vda", "/1")], None).await;
    bed.overlay("/dead", VDA).await;
    let check = async |path: &str, expected| {
        let is_in_use = bed.sim.is_in_use(Path::new(path), Format::Qcow2).await;
        assert_eq!(is_in_use.unwrap(), expected, "{path}");
    };
    check("/1", true).await;
    check(VDA, true).await;
    check("/dead", false).await;
    assert_eq!(kind(&bed.sim.is_in_use(Path::new("/missing"), Format::Raw).await), "no such image");
    bed.sim.someone_stops(bed.vm);
    check("/1", false).await;
}

#[tokio::test]
async fn a_header_that_disagrees_with_the_process() {
    let bed = Bed::running();
    bed.snapshot(&[("vda", "/1")], None).await;
    bed.sim.world().files.image_mut(Path::new("/1")).unwrap().backing = None;
    assert_eq!(kind(&bed.sim.observe(bed.vm).await), "bad image");
    bed.sim.someone_removes(Path::new(VDA));
    bed.sim.world().files.image_mut(Path::new("/1")).unwrap().backing = Some(qcow2(VDA));
    bed.sim.someone_stops(bed.vm);
    assert_eq!(kind(&bed.sim.observe(bed.vm).await), "no such image");
}
