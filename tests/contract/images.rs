//! Image files: made, looked at, removed.

use vmsnap::host::HostError;
use vmsnap::model::step::{DoomedImage, ImageRef, NewCopy, NewOverlay};
use vmsnap::model::vm::{Backing, FileIdentity, Format};

use crate::node::{BLOCK, DISK, Node, expect, switch};
use crate::over_both_nodes;

async fn overlays(node: &dyn Node) {
    let base = node.image("base", Format::Raw);
    let new = NewOverlay { virtual_size: 7 * BLOCK, ..node.new_overlay("over", &base) };
    node.images().create_overlay(&new).await.unwrap();
    let facts = node.images().inspect(&new.path, Format::Qcow2).await.unwrap();
    assert_eq!((facts.format, facts.virtual_size), (Format::Qcow2, 7 * BLOCK));
    assert_eq!(facts.backing, Some(Backing { path: base.path.clone(), format: Some(Format::Raw) }));
    let below = node.images().inspect(&base.path, Format::Raw).await.unwrap();
    assert_eq!((below.virtual_size, below.backing), (DISK, None));
    assert_ne!(below.identity, facts.identity);

    let again = node.images().create_overlay(&new).await;
    assert!(
        matches!(&again, Err(HostError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::AlreadyExists),
        "{again:?}"
    );
    let relative = NewOverlay { path: "relative".into(), ..new.clone() };
    expect(&node.images().create_overlay(&relative).await, "bad image");
    // The backing file is not opened.
    let over_nothing = NewOverlay { path: node.path("o"), backing_path: node.path("missing"), ..new };
    expect(&node.images().create_overlay(&over_nothing).await, "ok");
}

async fn what_an_image_is_read_as(node: &dyn Node) {
    let (raw, qcow2) = (node.image("raw", Format::Raw), node.image("qcow2", Format::Qcow2));
    let check = async |path: &std::path::Path, format, expected| {
        expect(&node.images().inspect(path, format).await, expected);
    };
    check(&raw.path, Format::Raw, "ok").await;
    check(&raw.path, Format::Qcow2, "bad image").await;
    check(&qcow2.path, Format::Qcow2, "ok").await;
    check(&qcow2.path, Format::Raw, "ok").await;
    check(&node.path("missing"), Format::Raw, "no such image").await;
    check(&node.path("missing"), Format::Qcow2, "no such image").await;
    let as_raw = node.images().inspect(&qcow2.path, Format::Raw).await.unwrap();
    assert_eq!(as_raw.backing, None);
    assert_ne!(as_raw.virtual_size, DISK);
    expect(&node.images().memory_image(&raw.path).await, "bad image");
    assert_eq!(node.images().memory_image(&node.path("missing")).await.unwrap(), None);
    expect(&node.images().sync(&node.path("missing")).await, "no such image");
    expect(&node.images().sync(&raw.path).await, "ok");
    expect(&node.images().is_in_use(&node.path("missing"), Format::Raw).await, "no such image");
    assert!(node.images().free_space(raw.path.parent().unwrap()).await.unwrap().free > 0);
}

/// What layers take as one image: what is in several counts once, what lies below the last does not count.
async fn measured(node: &dyn Node) {
    let layers = node.layers(&["root", "base", "middle", "top"]).await;
    let [root, base, middle, top] = &layers[..] else { unreachable!("there are four") };
    let vm = node.running(top).await;
    let measure = async |layers: &[&ImageRef]| {
        let layers: Vec<ImageRef> = layers.iter().map(|layer| (*layer).clone()).collect();
        node.images().measure(&layers).await
    };
    // Each has block 0, and one of its own.
    let alone = measure(&[base]).await.unwrap();
    assert_eq!(measure(&[root]).await.unwrap() + BLOCK, alone, "the root has only block 0");
    assert_eq!(measure(&[top, middle, base]).await.unwrap(), alone + 2 * BLOCK);
    assert_eq!(measure(&[base, top, middle]).await.unwrap(), alone + 2 * BLOCK, "whatever the headers say");
    // While the VM writes.
    node.write_disk(vm, "vda", 9, 9);
    node.write_disk(vm, "vda", 2, 9);
    assert_eq!(measure(&[top, middle, base]).await.unwrap(), alone + 3 * BLOCK);
    // What is zeroed above takes no room, and hides what is below.
    node.write_disk(vm, "vda", 1, 0);
    let zeroed = measure(&[top, middle, base]).await.unwrap();
    assert!(zeroed == alone + 2 * BLOCK || zeroed == alone + 3 * BLOCK, "zeros as a mark, or as data");
    let raw = node.image("raw", Format::Raw);
    expect(&measure(&[top, &raw]).await, "ok");
    let missing = ImageRef { path: node.path("missing"), format: Format::Qcow2 };
    expect(&measure(&[top, &missing]).await, "no such image");
    node.check_violations(0);
}

async fn small_files(node: &dyn Node) {
    let (from, to) = (node.image("from", Format::Raw), node.path("to"));
    let copied = ImageRef { path: to.clone(), format: Format::Raw };
    let copy = async |from: &std::path::Path, expected| {
        expect(&node.images().copy_bytes(from, &to).await, expected);
    };
    copy(&node.path("missing"), "no such image").await;
    expect(&node.images().inspect(&to, Format::Raw).await, "no such image");
    node.write_image(&from, 1, 7);
    copy(&from.path, "ok").await;
    assert_eq!(node.read_image(&copied), node.read_image(&from));
    let made = node.images().inspect(&to, Format::Raw).await.unwrap();
    // What is there is overwritten, and is the same file still.
    node.write_image(&from, 1, 0);
    node.write_image(&from, 2, 9);
    copy(&from.path, "ok").await;
    assert_eq!(node.read_image(&copied), node.read_image(&from));
    assert_eq!(node.images().inspect(&to, Format::Raw).await.unwrap().identity, made.identity);
    copy(&to, "ok").await;
    assert_eq!(node.read_image(&copied), node.read_image(&from), "onto itself");
    node.check_violations(0);
}

async fn files_of_our_own(node: &dyn Node) {
    let (path, images) = (node.path("small"), node.images());
    expect(&images.read_file(&path, 100).await, "no such image");
    for content in [&b"first"[..], b"", b"second, and longer"] {
        images.write_file(&path, content).await.unwrap();
        assert_eq!(images.read_file(&path, 100).await.unwrap(), content);
    }
    assert_eq!(images.read_file(&path, 18).await.unwrap().len(), 18);
    expect(&images.read_file(&path, 17).await, "bad image");
    expect(&images.write_file("relative".as_ref(), b"").await, "bad image");
    let listed = images.list(path.parent().unwrap()).await.unwrap();
    let ours: Vec<_> = listed.iter().filter(|file| file.to_string_lossy().contains("small")).collect();
    assert_eq!(ours, [&path], "nothing is left beside it");
    images.remove(&DoomedImage { path: path.clone(), identity: None }).await.unwrap();
    expect(&images.read_file(&path, 100).await, "no such image");
}

async fn removal(node: &dyn Node) {
    let base = node.image("base", Format::Qcow2);
    let over = node.overlay("over", &base).await;
    let identity = node.images().inspect(&over.path, Format::Qcow2).await.unwrap().identity;
    let remove = async |identity, expected| {
        let doomed = DoomedImage { path: over.path.clone(), identity };
        expect(&node.images().remove(&doomed).await, expected);
    };
    let another = FileIdentity { inode: identity.inode + 1, ..identity };
    remove(Some(another), "bad image").await;
    expect(&node.images().inspect(&over.path, Format::Qcow2).await, "ok");
    remove(Some(identity), "ok").await;
    expect(&node.images().inspect(&over.path, Format::Qcow2).await, "no such image");
    remove(Some(identity), "ok").await;
    remove(None, "ok").await;
    node.check_violations(0);
}

/// Readers share, a writer does not.
async fn who_has_an_image_open(node: &dyn Node) {
    let base = node.image("base", Format::Qcow2);
    let (one, two) = (node.overlay("one", &base).await, node.overlay("two", &base).await);
    let (first, second) = (node.running(&one).await, node.running(&two).await);
    for image in [&base, &one, &two] {
        assert!(node.images().is_in_use(&image.path, image.format).await.unwrap());
        assert_eq!(node.images().is_written(&image.path).await.unwrap(), image != &base);
    }
    let over_active = node.overlay("over-active", &one).await;
    let third = node.define(&[("vda", &over_active)]);
    let start = async |vm| node.hypervisor().start(vm, &vmsnap::host::StartFrom::Disks, false).await;
    expect(&start(third).await, "refused");
    let same = node.define(&[("vda", &one)]);
    expect(&start(same).await, "refused");
    node.hypervisor().stop(first).await.unwrap();
    expect(&start(third).await, "ok");
    // What one reads, no other may write to.
    expect(&start(same).await, "refused");
    node.hypervisor().stop(second).await.unwrap();
    assert!(!node.images().is_in_use(&two.path, two.format).await.unwrap());
}

/// Nobody stops a removal of what is in use. The simulation says that it is wrong.
async fn a_removal_of_what_is_open(node: &dyn Node) {
    let base = node.image("base", Format::Qcow2);
    let vm = node.running(&base).await;
    let over = node.overlay("over", &base).await;
    node.hypervisor().switch_disks(vm, &switch(&[("vda", &over)], &[], None)).await.unwrap();
    node.remove(&base.path).await;
    expect(&node.hypervisor().observe(vm).await, "no such image");
    node.check_violations(2);
}

async fn copies(node: &dyn Node) {
    let base = node.image("base", Format::Raw);
    let over = node.overlay("over", &base).await;
    let progress = tokio::sync::watch::channel((0, 0)).0;
    let copy = NewCopy {
        target: "vda".parse().unwrap(),
        source: over.clone(),
        path: node.path("copy"),
        virtual_size: DISK,
        bandwidth: None,
    };
    node.images().copy(&copy, &progress).await.unwrap();
    let facts = node.images().inspect(&copy.path, Format::Qcow2).await.unwrap();
    assert_eq!((facts.virtual_size, facts.backing), (DISK, None));
    let (done, total) = *progress.borrow();
    assert!(done <= total, "{done} of {total}");
    let again = node.images().copy(&copy, &progress).await;
    assert!(
        matches!(&again, Err(HostError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::AlreadyExists),
        "{again:?}"
    );
    let vm = node.running(&over).await;
    let of_active = NewCopy { path: node.path("of-active"), ..copy };
    expect(&node.images().copy(&of_active, &progress).await, "image in use");
    node.hypervisor().stop(vm).await.unwrap();
    node.check_violations(0);
}

async fn names(node: &dyn Node) {
    let (one, two) = (node.image("one", Format::Qcow2), node.image("two", Format::Qcow2));
    let taken = node.images().publish(&one.path, &two.path).await;
    assert!(
        matches!(&taken, Err(HostError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::AlreadyExists),
        "{taken:?}"
    );
    expect(&node.images().inspect(&one.path, Format::Qcow2).await, "ok");
    expect(&node.images().publish(&one.path, &node.path("three")).await, "ok");
    expect(&node.images().inspect(&one.path, Format::Qcow2).await, "no such image");
    expect(&node.images().inspect(&node.path("three"), Format::Qcow2).await, "ok");
    expect(&node.images().publish(&one.path, &node.path("four")).await, "no such image");
    node.check_violations(0);
}

async fn second_names(node: &dyn Node) {
    let (one, two) = (node.image("one", Format::Qcow2), node.image("two", Format::Qcow2));
    let kept = node.path("kept");
    node.write_image(&one, 1, 7);
    let identity = async |path: &std::path::Path| {
        node.images().inspect(path, Format::Qcow2).await.map(|facts| facts.identity)
    };
    let (first, second) = (identity(&one.path).await.unwrap(), identity(&two.path).await.unwrap());
    let taken = node.images().hard_link(&one.path, &two.path).await;
    assert!(
        matches!(&taken, Err(HostError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::AlreadyExists),
        "{taken:?}"
    );
    expect(&node.images().hard_link(&node.path("missing"), &kept).await, "no such image");
    node.images().hard_link(&one.path, &kept).await.unwrap();
    assert_eq!(identity(&kept).await.unwrap(), first, "two names, one file");
    assert_eq!(identity(&one.path).await.unwrap(), first);

    // Another file takes the name; the content is found under the other one.
    expect(&node.images().replace(&two.path, &node.path("missing")).await, "no such image");
    expect(&node.images().replace(&node.path("missing"), &two.path).await, "no such image");
    node.images().replace(&two.path, &one.path).await.unwrap();
    assert_eq!(identity(&one.path).await.unwrap(), second);
    expect(&identity(&two.path).await, "no such image");
    let kept = ImageRef { path: kept, format: Format::Qcow2 };
    assert_eq!((node.read_image(&kept)[1], node.read_image(&one)[1]), (7, 0));
    let directory = one.path.parent().unwrap();
    let listed = node.images().list(directory).await.unwrap();
    assert!(listed.contains(&one.path) && listed.contains(&kept.path), "{listed:?}");
    assert!(!listed.contains(&two.path) && listed.is_sorted(), "{listed:?}");
    node.check_violations(0);
}

async fn flattening(node: &dyn Node) {
    let base = node.image("base", Format::Qcow2);
    let over = node.overlay("over", &base).await;
    let progress = tokio::sync::watch::channel((0, 0)).0;
    let vm = node.running(&over).await;
    expect(&node.images().pull(&over, None, &progress).await, "image in use");
    node.hypervisor().stop(vm).await.unwrap();
    node.images().pull(&over, None, &progress).await.unwrap();
    let facts = node.images().inspect(&over.path, Format::Qcow2).await.unwrap();
    assert_eq!((facts.virtual_size, facts.backing), (DISK, None));
    expect(&node.images().pull(&over, None, &progress).await, "ok");
    node.check_violations(0);
}

over_both_nodes! {
    measured
    copies
    names
    second_names
    flattening
    overlays
    what_an_image_is_read_as
    small_files
    files_of_our_own
    removal
    who_has_an_image_open
    a_removal_of_what_is_open
}
