//! Looking at images from outside the guest, formats always stated.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::definition::Format;
use super::scratch::Scratch;

/// Runs a program; panics with its stderr if it fails. Gives its stdout.
#[track_caller]
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Makes an empty image.
#[track_caller]
pub fn create(image: &Path, format: Format, size_mib: u64) {
    let size = format!("{size_mib}M");
    run(Command::new("qemu-img").args(["create", "-q", "-f", format.name()]).arg(image).arg(size));
}

/// Whether a qcow2 image has clusters of its own, whoever has it open.
#[track_caller]
pub fn has_data_of_its_own(image: &Path) -> bool {
    let map = run(Command::new("qemu-img").args(["map", "-U", "-f", "qcow2", "--output=json"]).arg(image));
    let map: Value = serde_json::from_slice(&map).expect("qemu-img gives JSON");
    map.as_array()
        .expect("a list of extents")
        .iter()
        .any(|extent| extent["depth"] == 0 && extent["present"] == true)
}

/// Fills the first MiB of a qcow2 image that no VM has open.
#[track_caller]
pub fn fill(image: &Path, byte: u8) {
    run(Command::new("qemu-io").args(["-f", "qcow2", "-c", &format!("write -P {byte} 0 1M")]).arg(image));
}

/// Makes an overlay in the place of an image.
#[track_caller]
pub fn cover(image: &Path, base: &Path, base_format: Format) {
    fs::remove_file(image).expect("the image is ours");
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", base_format.name(), "-b"]).arg(base).arg(image);
    run(&mut command);
}

/// The chain of an image, the image first. Works while a VM has it open.
pub fn chain(image: &Path, format: Format) -> Vec<PathBuf> {
    let mut command = Command::new("qemu-img");
    command.args(["info", "-U", "--backing-chain", "--output", "json", "-f", format.name()]).arg(image);
    let layers: Vec<Value> = serde_json::from_slice(&run(&mut command)).expect("qemu-img writes JSON");
    let name = |layer: &Value| layer["filename"].as_str().map(PathBuf::from);
    layers.iter().map(|layer| name(layer).expect("a layer has a file name")).collect()
}

/// How large a guest sees an image, in bytes. Works while a VM has it open.
pub fn virtual_size(image: &Path, format: Format) -> u64 {
    let mut command = Command::new("qemu-img");
    command.args(["info", "-U", "--output", "json", "-f", format.name()]).arg(image);
    let info: Value = serde_json::from_slice(&run(&mut command)).expect("qemu-img writes JSON");
    info["virtual-size"].as_u64().expect("an image has a size")
}

/// SHA-256 of what a VM would read from an image with all that is under it. The image must not be written meanwhile:
/// it is frozen, or its VM is off or paused.
pub fn digest(image: &Path, format: Format) -> String {
    Content::of(image, format).digest()
}

/// SHA-256 of the bytes of a file.
pub fn digest_of_file(file: &Path) -> String {
    let line = run(Command::new("sha256sum").arg(file));
    let line = String::from_utf8(line).expect("sha256sum writes plain text");
    line.split_whitespace().next().expect("a digest and a name").to_owned()
}

/// A file of the ext4 filesystem that an image holds; None if it is not there. Same condition as for [`digest`].
pub fn read_file(image: &Path, format: Format, path: &str) -> Option<Vec<u8>> {
    Content::of(image, format).file(path)
}

/// The image and all that is under it as one raw file, which goes with the value.
pub struct Content {
    scratch: Scratch,
    raw: PathBuf,
}

impl Content {
    /// A copy of what is read now. Same condition as for [`digest`].
    pub fn of(image: &Path, format: Format) -> Self {
        let scratch = Scratch::new();
        let raw = scratch.join("content.raw");
        let mut command = Command::new("qemu-img");
        run(command.args(["convert", "-U", "-f", format.name(), "-O", "raw"]).args([image, &raw]));
        Self { scratch, raw }
    }

    /// Its SHA-256.
    pub fn digest(&self) -> String {
        digest_of_file(&self.raw)
    }

    /// A file of the ext4 filesystem; None if it is not there.
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        let copy = self.scratch.join("file");
        // What the file before has left.
        let _ = fs::remove_file(&copy);
        run(Command::new("debugfs").arg("-R").arg(format!("dump {path} {}", copy.display())).arg(&self.raw));
        fs::read(copy).ok()
    }

    /// Brings the copy's filesystem in order, as the next mount would: the journal is replayed. Panics if more than that
    /// is wrong with it.
    #[track_caller]
    pub fn replay_journal(&self) {
        // Of a disk that was being written to, counts are put right, too: exit code 1. 4 and above: damage is left.
        let output = Command::new("e2fsck").args(["-f", "-p"]).arg(&self.raw).output().expect("e2fsck runs");
        let code = output.status.code();
        let words = String::from_utf8_lossy(&output.stdout);
        assert!(code.is_some_and(|code| code < 4), "the filesystem is damaged: {code:?} {words}");
    }
}
