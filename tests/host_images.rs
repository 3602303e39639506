//! Image files, with the real `qemu-img`.

#![allow(clippy::disallowed_methods, reason = "tests run programs and wait: they are the outside")]
#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use vmsnap::host::images::{Geometry, HostImages, ImageDeadlines};
use vmsnap::host::{HostError, Images};
use vmsnap::model::step::{DoomedImage, ImageRef, NewOverlay};
use vmsnap::model::vm::{Backing, FileIdentity, Format, LastWritten};

const SIZE: u64 = 64 << 20;

struct Bed {
    images: Arc<HostImages>,
    directory: TempDir,
}

impl Bed {
    fn new() -> Self {
        let images = HostImages::new(ImageDeadlines::default(), Geometry::default()).unwrap();
        Self { images, directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn image(&self, name: &str, format: Format) -> ImageRef {
        let path = self.path(name);
        run("qemu-img", &["create", "-q", "-f", format.as_str(), text(&path), &SIZE.to_string()]);
        ImageRef { path, format }
    }

    fn wanted(&self, name: &str, over: &ImageRef) -> NewOverlay {
        NewOverlay {
            target: "vda".parse().unwrap(),
            path: self.path(name),
            backing_path: over.path.clone(),
            backing_format: over.format,
            virtual_size: SIZE,
        }
    }

    async fn overlay(&self, name: &str, over: &ImageRef) -> ImageRef {
        self.images.create_overlay(&self.wanted(name, over)).await.unwrap();
        ImageRef { path: self.path(name), format: Format::Qcow2 }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

fn qemu_io(image: &ImageRef, command: &str) {
    let output = run("qemu-io", &["-f", image.format.as_str(), "-c", command, text(&image.path)]);
    assert!(!output.contains("failed"), "{command}: {output}");
}

fn identity(path: &Path) -> FileIdentity {
    let metadata = path.symlink_metadata().unwrap();
    FileIdentity { device: metadata.dev(), inode: metadata.ino() }
}

/// A process that has an image open, as a VM would.
struct Opener(Child);

impl Opener {
    fn open(image: &ImageRef, read_only: bool) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(["-f", image.format.as_str()]).args(read_only.then_some("-r")).arg(&image.path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It answers when it has opened the image.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
        assert!(answer.contains("64 MiB"), "{answer}");
        Self(child)
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn an_overlay() {
    let bed = Bed::new();
    for format in [Format::Raw, Format::Qcow2] {
        let base = bed.image(&format!("base, with \"all\" 'kinds' of={format}"), format);
        let overlay = bed.overlay(&format!("over-{format}"), &base).await;
        let facts = bed.images.inspect(&overlay.path, Format::Qcow2).await.unwrap();
        assert_eq!(facts.virtual_size, SIZE);
        assert_eq!(facts.backing, Some(Backing { path: base.path.clone(), format: Some(format) }));
        assert_eq!(facts.identity, identity(&overlay.path));
        assert!(facts.allocated > 0 && facts.allocated < 1 << 20, "{facts:?}");
        let metadata = overlay.path.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        // QEMU itself reads it the same way.
        let info = run("qemu-img", &["info", "-f", "qcow2", "--output=json", text(&overlay.path)]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], SIZE);
        assert_eq!(info["backing-filename"], text(&base.path));
        assert_eq!(info["backing-filename-format"], format.as_str());
    }
}

/// Our own overlays are to QEMU what its own are, of any size and in any geometry, before and after it has written to them.
#[tokio::test]
async fn overlays_that_qemu_checks_and_writes_to() {
    const KIB: u64 = 1 << 10;
    let told = |image: &Path| {
        let info = run("qemu-img", &["info", "-f", "qcow2", "--output=json", text(image)]);
        let mut info: serde_json::Value = serde_json::from_str(&info).unwrap();
        for other in ["filename", "actual-size", "children"] {
            info.as_object_mut().unwrap().remove(other);
        }
        info
    };
    let check = async |size: u64, cluster: u64, has_subclusters: bool| {
        let geometry = Geometry::new(cluster, has_subclusters).unwrap();
        let bed = Bed { images: HostImages::new(ImageDeadlines::default(), geometry).unwrap(), ..Bed::new() };
        let base = ImageRef { path: bed.path("base"), format: Format::Qcow2 };
        run("qemu-img", &["create", "-q", "-f", "qcow2", text(&base.path), &size.to_string()]);
        qemu_io(&base, "write -P 5 0 512");
        let wanted = NewOverlay { virtual_size: size, ..bed.wanted("ours", &base) };
        bed.images.create_overlay(&wanted).await.unwrap();
        let (ours, theirs) = (wanted.path, bed.path("theirs"));
        let subclusters = if has_subclusters { "on" } else { "off" };
        let options = format!("cluster_size={cluster},extended_l2={subclusters}");
        let over = ["-b", text(&base.path), "-F", "qcow2", "-o", &options];
        run("qemu-img", &[&["create", "-q", "-f", "qcow2"], &over[..], &[text(&theirs)]].concat());
        assert_eq!(told(&ours), told(&theirs));
        let is_whole = || run("qemu-img", &["check", "-f", "qcow2", text(&ours)]);
        let checked = is_whole();
        assert!(checked.contains("No errors were found"), "{size} {cluster}: {checked}");
        let ours = ImageRef { path: ours.clone(), format: Format::Qcow2 };
        qemu_io(&ours, "read -P 5 0 512");
        let last = size - 512;
        qemu_io(&ours, &format!("write -P 7 {last} 512"));
        qemu_io(&ours, &format!("read -P 7 {last} 512"));
        let checked = is_whole();
        assert!(checked.contains("No errors were found"), "{size} {cluster}, written: {checked}");
    };
    for (cluster, has_subclusters) in
        [(64 * KIB, false), (16 * KIB, true), (128 * KIB, true), (2048 * KIB, false)]
    {
        for size in [512, SIZE, (1 << 40) + 512, 32 << 40] {
            check(size, cluster, has_subclusters).await;
        }
    }
}

#[tokio::test]
async fn an_overlay_that_cannot_be_made_leaves_nothing() {
    let bed = Bed::new();
    let base = bed.image("base", Format::Raw);
    let taken = bed.wanted("taken", &base);
    std::fs::write(&taken.path, b"precious").unwrap();
    let error = bed.images.create_overlay(&taken).await.unwrap_err();
    assert!(
        matches!(&error, HostError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::AlreadyExists)
    );
    assert_eq!(std::fs::read(&taken.path).unwrap(), b"precious");

    let mut nowhere = bed.wanted("x", &base);
    nowhere.path = bed.path("no/such/directory");
    let error = bed.images.create_overlay(&nowhere).await.unwrap_err();
    assert!(matches!(error, HostError::NoSuchImage(_)), "{error:?}");

    // QEMU counts in sectors.
    let mut crooked = bed.wanted("crooked", &base);
    crooked.virtual_size = SIZE + 1;
    let error = bed.images.create_overlay(&crooked).await.unwrap_err();
    assert!(matches!(error, HostError::BadImage { .. }), "{error:?}");
    assert!(!crooked.path.exists());

    let mut relative = bed.wanted("relative", &base);
    relative.backing_path = "base".into();
    assert!(bed.images.create_overlay(&relative).await.is_err());
    assert!(!relative.path.exists());
}

#[tokio::test]
async fn a_look_at_images() {
    let bed = Bed::new();
    let check_bad = async |name: &str, part: &str| {
        let error = bed.images.inspect(&bed.path(name), Format::Qcow2).await.unwrap_err();
        let HostError::BadImage { path, problem } = error else { panic!("{error:?}") };
        assert_eq!(path, bed.path(name));
        assert!(problem.contains(part), "{problem}");
    };
    let raw = bed.image("raw", Format::Raw);
    let facts = bed.images.inspect(&raw.path, Format::Raw).await.unwrap();
    assert_eq!((facts.virtual_size, &facts.backing), (SIZE, &None));
    assert!(facts.allocated < 1 << 20, "{facts:?}");
    check_bad("raw", "not a qcow2 image").await;
    std::fs::create_dir(bed.path("directory")).unwrap();
    check_bad("directory", "neither a file nor a block device").await;
    // Opening one to read would wait for ever.
    nix::unistd::mkfifo(&bed.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    check_bad("fifo", "neither a file nor a block device").await;

    let create = |name: &str, options: &[&str]| {
        let path = bed.path(name);
        run("qemu-img", &[&["create", "-q", "-f", "qcow2"], options, &[text(&path), "64M"]].concat());
    };
    let data = format!("data_file={}", text(&bed.path("data")));
    create("split", &["-o", &data]);
    check_bad("split", "in an external file").await;
    create("protocol", &["-u", "-b", "nbd://localhost/x", "-F", "raw"]);
    check_bad("protocol", "the name of a protocol").await;
    create("json", &["-u", "-b", r#"json:{"driver":"file","filename":"/etc/passwd"}"#, "-F", "raw"]);
    check_bad("json", "a description in JSON").await;
    create("foreign", &["-u", "-b", "/x", "-F", "vmdk"]);
    check_bad("foreign", "format vmdk").await;
    create("relative", &["-u", "-b", "raw", "-F", "raw"]);
    let facts = bed.images.inspect(&bed.path("relative"), Format::Qcow2).await.unwrap();
    assert_eq!(facts.backing, Some(Backing { path: raw.path, format: Some(Format::Raw) }));

    let missing = bed.images.inspect(&bed.path("missing"), Format::Raw).await;
    assert!(matches!(missing, Err(HostError::NoSuchImage(path)) if path == bed.path("missing")));
    let relative = bed.images.inspect(Path::new("relative"), Format::Raw).await;
    assert!(matches!(relative, Err(HostError::BadImage { .. })));
}

#[tokio::test]
async fn a_merge() {
    let bed = Bed::new();
    let base = bed.image("base", Format::Raw);
    let middle = bed.overlay("middle", &base).await;
    qemu_io(&middle, "write -P 5 0 16M");
    let top = bed.overlay("top", &middle).await;
    qemu_io(&top, "write -P 6 8M 4M");

    let (progress, seen) = watch::channel((0, 0));
    bed.images.commit(&[middle.clone(), base.clone()], &progress).await.unwrap();
    let (done, total) = *seen.borrow();
    assert!(done == total && total >= 16 << 20, "{done} of {total}");
    qemu_io(&base, "read -P 5 0 16M");
    assert!(middle.path.exists(), "merging removes nothing");

    bed.images.rebase(&top, &base).await.unwrap();
    let facts = bed.images.inspect(&top.path, Format::Qcow2).await.unwrap();
    assert_eq!(facts.backing, Some(Backing { path: base.path.clone(), format: Some(Format::Raw) }));
    std::fs::remove_file(&middle.path).unwrap();
    qemu_io(&top, "read -P 5 0 8M");
    qemu_io(&top, "read -P 6 8M 4M");
    qemu_io(&top, "read -P 5 12M 4M");
}

#[tokio::test]
async fn a_merge_that_must_not_be() {
    let bed = Bed::new();
    let base = bed.image("base", Format::Qcow2);
    let middle = bed.overlay("middle", &base).await;
    let top = bed.overlay("top", &middle).await;
    qemu_io(&top, "write -P 6 0 4M");
    let (progress, _) = watch::channel((0, 0));

    // Not its direct backing file: what lies between would be garbage afterwards.
    let skipping = bed.images.commit(&[top.clone(), base.clone()], &progress).await;
    assert!(matches!(&skipping, Err(HostError::BadImage { path, .. }) if *path == top.path), "{skipping:?}");
    let raw = ImageRef { path: middle.path.clone(), format: Format::Raw };
    let misread = bed.images.commit(&[top.clone(), raw.clone()], &progress).await;
    assert!(matches!(misread, Err(HostError::BadImage { .. })), "{misread:?}");

    for opened in [&top, &middle] {
        let _vm = Opener::open(opened, false);
        let busy = bed.images.commit(&[top.clone(), middle.clone()], &progress).await;
        assert!(matches!(busy, Err(HostError::ImageInUse(_))), "{busy:?}");
    }
    let _vm = Opener::open(&top, false);
    let busy = bed.images.rebase(&top, &base).await;
    assert!(matches!(&busy, Err(HostError::ImageInUse(path)) if *path == top.path), "{busy:?}");
}

/// The program is gone when the call is: nothing writes on behind the back of whoever looks again.
#[tokio::test]
async fn a_merge_that_takes_too_long() {
    let bed = Bed::new();
    let base = bed.image("base", Format::Raw);
    let top = bed.overlay("top", &base).await;
    qemu_io(&top, "write -P 6 0 64M");
    let impatient =
        HostImages::new(ImageDeadlines { commit: Duration::ZERO, ..Default::default() }, Geometry::default())
            .unwrap();
    let (progress, _) = watch::channel((0, 0));
    let late = impatient.commit(&[top.clone(), base.clone()], &progress).await;
    assert!(matches!(late, Err(HostError::TimedOut { .. })), "{late:?}");
    assert!(!bed.images.is_in_use(&top.path, Format::Qcow2).await.unwrap());
    bed.images.commit(&[top.clone(), base.clone()], &progress).await.unwrap();
    qemu_io(&base, "read -P 6 0 64M");
}

#[tokio::test]
async fn images_in_use() {
    let bed = Bed::new();
    let base = bed.image("base", Format::Raw);
    let top = bed.overlay("top", &base).await;
    // Of both: who has it open, and who may write to it.
    let check = async |used: [bool; 2], written: [bool; 2]| {
        let mut found = [[false; 2]; 2];
        for (at, image) in [&top, &base].into_iter().enumerate() {
            found[0][at] = bed.images.is_in_use(&image.path, image.format).await.unwrap();
            found[1][at] = bed.images.is_written(&image.path).await.unwrap();
        }
        assert_eq!(found, [used, written]);
    };
    check([false, false], [false, false]).await;
    for read_only in [false, true] {
        let vm = Opener::open(&top, read_only);
        check([true, true], [!read_only, false]).await;
        drop(vm);
        check([false, false], [false, false]).await;
    }
    let vm = Opener::open(&base, true);
    check([false, true], [false, false]).await;
    drop(vm);
    let missing = bed.images.is_in_use(&bed.path("missing"), Format::Raw).await;
    assert!(matches!(missing, Err(HostError::NoSuchImage(_))));
}

#[tokio::test]
async fn removal() {
    let bed = Bed::new();
    let doomed = |name: &str, identity| DoomedImage { path: bed.path(name), identity };
    let write = |name: &str| std::fs::write(bed.path(name), name).unwrap();
    let refused = async |name: &str, identity| {
        let error = bed.images.remove(&doomed(name, identity)).await.unwrap_err();
        assert!(matches!(error, HostError::BadImage { .. }), "{error:?}");
        assert!(bed.path(name).symlink_metadata().is_ok());
    };
    write("one");
    bed.images.remove(&doomed("one", Some(identity(&bed.path("one"))))).await.unwrap();
    assert!(!bed.path("one").exists());
    bed.images.remove(&doomed("one", None)).await.unwrap();
    bed.images.remove(&doomed("no/directory", None)).await.unwrap();

    write("two");
    write("meant");
    refused("two", Some(identity(&bed.path("meant")))).await;
    bed.images.remove(&doomed("two", None)).await.unwrap();
    assert!(!bed.path("two").exists());

    std::os::unix::fs::symlink(bed.path("meant"), bed.path("link")).unwrap();
    refused("link", None).await;
    std::fs::create_dir(bed.path("directory")).unwrap();
    refused("directory", None).await;
    assert!(bed.path("meant").exists());
}

#[tokio::test]
async fn memory_images_and_space() {
    let bed = Bed::new();
    let check = async |name: &str, expected: Option<u64>| {
        assert_eq!(bed.images.memory_image(&bed.path(name)).await.unwrap(), expected, "{name}");
    };
    let write = |name: &str, magic: &[u8], bytes: usize| {
        let mut image = vec![0; bytes];
        image[..magic.len()].copy_from_slice(magic);
        image[16..20].copy_from_slice(&2_u32.to_ne_bytes());
        image[20..24].copy_from_slice(&1000_u32.to_ne_bytes());
        std::fs::write(bed.path(name), image).unwrap();
    };
    write("complete", b"LibvirtQemudSave", 5000);
    write("partial", b"LibvirtQemudPart", 5000);
    write("cut", b"LibvirtQemudSave", 500);
    write("foreign", b"something else", 5000);
    std::fs::write(bed.path("empty"), b"").unwrap();
    check("complete", Some(5000)).await;
    check("partial", None).await;
    check("cut", None).await;
    check("empty", None).await;
    check("missing", None).await;
    let foreign = bed.images.memory_image(&bed.path("foreign")).await;
    assert!(matches!(foreign, Err(HostError::BadImage { .. })));

    bed.images.sync(&bed.path("complete")).await.unwrap();
    assert!(matches!(bed.images.sync(&bed.path("missing")).await, Err(HostError::NoSuchImage(_))));
    assert!(bed.images.free_space(bed.directory.path()).await.unwrap().free > 0);
    let nowhere = bed.images.free_space(&bed.path("missing")).await;
    assert!(matches!(nowhere, Err(HostError::NoSuchImage(_))));
}

#[tokio::test]
async fn whether_two_images_read_the_same() {
    let bed = Bed::new();
    for format in [Format::Raw, Format::Qcow2] {
        let base = bed.image(&format!("base, {format}"), format);
        qemu_io(&base, "write -P 1 0 1M");
        let top = bed.overlay(&format!("top-{format}"), &base).await;
        assert!(bed.images.reads_same(&top, &base).await.unwrap(), "an empty overlay");
        qemu_io(&top, "write -P 1 0 64k");
        qemu_io(&top, "write -P 0 2M 64k");
        assert!(bed.images.reads_same(&top, &base).await.unwrap(), "it may be held elsewhere");
        qemu_io(&top, "write -P 2 1M 512");
        assert!(!bed.images.reads_same(&top, &base).await.unwrap());
        assert!(!bed.images.reads_same(&base, &top).await.unwrap());
        qemu_io(&base, "write -P 2 1M 512");
        assert!(bed.images.reads_same(&top, &base).await.unwrap());
        run("qemu-img", &["resize", "-q", "-f", "qcow2", text(&top.path), "128M"]);
        assert!(!bed.images.reads_same(&top, &base).await.unwrap(), "of another size");
    }
    let missing = ImageRef { path: bed.path("missing"), format: Format::Raw };
    let error = bed.images.reads_same(&missing, &missing).await.unwrap_err();
    assert!(matches!(error, HostError::NoSuchImage(_)), "{error:?}");
}

#[tokio::test]
async fn when_an_image_was_written_to_last() {
    let bed = Bed::new();
    let at = async |image: &ImageRef| match bed.images.last_written(image).await.unwrap() {
        LastWritten::At { device, time } => (device, time),
        told => panic!("{image:?} is {told:?}"),
    };
    for format in [Format::Raw, Format::Qcow2] {
        let base = bed.image(&format!("base, {format}"), format);
        qemu_io(&base, "write -P 1 0 1M");
        let top = bed.overlay(&format!("top-{format}"), &base).await;
        qemu_io(&top, "read 0 1M");
        let told = bed.images.last_written(&top).await.unwrap();
        assert_eq!(told, LastWritten::Never, "it was only read");
        qemu_io(&top, "discard 0 64k");
        qemu_io(&top, "write -P 1 1M 512");
        let written = at(&top).await;
        assert!(written >= at(&base).await);
        qemu_io(&base, "write -P 2 0 512");
        assert!(at(&base).await > written);
        assert_eq!(at(&top).await, written);
    }
    let missing = ImageRef { path: bed.path("missing"), format: Format::Qcow2 };
    let error = bed.images.last_written(&missing).await.unwrap_err();
    assert!(matches!(error, HostError::NoSuchImage(_)), "{error:?}");
}
