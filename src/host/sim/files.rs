//! Files of the simulated node: images with contents and headers, and memory images.
//!
//! Decides what an image reads through a chain, and what a header says. Leaves who has a file open to `world`.
//! Must never know a VM.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::super::{HostError, Result};
use super::machine::GuestMemory;
use crate::model::step::ImageRef;
use crate::model::vm::{Backing, FileIdentity, Format, ImageFacts, MemoryFormat};
use crate::model::{DiskTarget, Space, VmId};

/// Bytes of a block: a cluster of qcow2.
pub const BLOCK: u64 = 64 << 10;

/// The value of each block that is not zero.
pub type Content = BTreeMap<u64, u64>;

/// What a qcow2 image read as raw shows: its metadata, which no guest wrote.
pub const GARBAGE: u64 = u64::MAX;

/// What an empty qcow2 image takes on the host, in bytes.
pub(super) const HEADER: u64 = 3 * BLOCK;

/// Most images of one chain. A longer one goes round in circles.
const DEEPEST: usize = 256;

/// All files, and the room there is for them.
#[derive(Debug, Clone)]
pub(super) struct Files {
    by_path: BTreeMap<PathBuf, File>,
    next_inode: u64,
    /// Goes on with each write.
    clock: u64,
    capacity: u64,
}

#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) identity: FileIdentity,
    pub(super) is_link: bool,
    /// By the clock of the files.
    pub(super) written_at: u64,
    pub(super) kind: FileKind,
}

#[derive(Debug, Clone)]
pub(super) enum FileKind {
    Image(Image),
    Memory(MemoryFile),
    /// A memory image that has everything but the memory, and says how that will stand in it.
    MemoryHeader(MemoryFormat),
    /// Bytes of ours.
    Small(Vec<u8>),
    /// Made, and nothing is written to it yet.
    Blank,
}

#[derive(Debug, Clone)]
pub(super) struct Image {
    pub(super) format: Format,
    pub(super) virtual_size: u64,
    /// A block that is here hides the one below, even if it is zero.
    pub(super) blocks: Content,
    pub(super) backing: Option<ImageRef>,
    /// Others use it: nobody may write to it.
    pub(super) is_template: bool,
}

/// Captured memory, and what the disks read at that moment.
#[derive(Debug, Clone)]
pub(super) struct MemoryFile {
    pub(super) vm: VmId,
    /// All of it is there, whatever the header says.
    pub(super) is_written: bool,
    pub(super) is_complete: bool,
    pub(super) bytes: u64,
    pub(super) format: MemoryFormat,
    pub(super) memory: GuestMemory,
    /// The images of then.
    pub(super) sources: BTreeMap<DiskTarget, ImageRef>,
    /// What they read.
    pub(super) disks: BTreeMap<DiskTarget, Content>,
}

impl Files {
    pub(super) fn new() -> Self {
        Self { by_path: BTreeMap::new(), next_inode: 1, clock: 0, capacity: 1 << 40 }
    }

    pub(super) fn get(&self, path: &Path) -> Result<&File> {
        self.by_path.get(path).ok_or_else(|| HostError::NoSuchImage(path.to_owned()))
    }

    /// An image. A file of another kind is no image, whatever it is read as.
    pub(super) fn image(&self, path: &Path) -> Result<&Image> {
        match &self.get(path)?.kind {
            FileKind::Image(image) => Ok(image),
            FileKind::Memory(_) | FileKind::MemoryHeader(_) | FileKind::Small(_) | FileKind::Blank => {
                Err(bad(path, "it is not an image"))
            }
        }
    }

    pub(super) fn image_mut(&mut self, path: &Path) -> Result<&mut Image> {
        let file = self.by_path.get_mut(path).ok_or_else(|| HostError::NoSuchImage(path.to_owned()))?;
        self.clock += 1;
        file.written_at = self.clock;
        match &mut file.kind {
            FileKind::Image(image) => Ok(image),
            FileKind::Memory(_) | FileKind::MemoryHeader(_) | FileKind::Small(_) | FileKind::Blank => {
                Err(bad(path, "it is not an image"))
            }
        }
    }

    /// Captured memory, complete or not.
    pub(super) fn memory(&self, path: &Path) -> Result<&MemoryFile> {
        match &self.get(path)?.kind {
            FileKind::Memory(memory) => Ok(memory),
            FileKind::Image(_) | FileKind::MemoryHeader(_) | FileKind::Small(_) | FileKind::Blank => {
                Err(bad(path, "it is not a memory image"))
            }
        }
    }

    /// Whether a file is there that is more than the beginning of one.
    pub(super) fn holds_something(&self, path: &Path) -> bool {
        match self.by_path.get(path).map(|file| &file.kind) {
            Some(FileKind::Image(_) | FileKind::Small(_)) => true,
            Some(FileKind::Memory(memory)) => memory.is_complete,
            Some(FileKind::MemoryHeader(_) | FileKind::Blank) | None => false,
        }
    }

    /// All of the memory is in the image.
    pub(super) fn complete_memory(&mut self, path: &Path) {
        if let Some(File { kind: FileKind::Memory(memory), .. }) = self.by_path.get_mut(path) {
            memory.is_written = true;
            memory.is_complete = true;
        }
    }

    /// What stands behind the header of a memory image.
    pub(super) fn put_memory(&mut self, path: &Path, memory: MemoryFile) -> Result<()> {
        let file = self.by_path.get_mut(path).ok_or_else(|| HostError::NoSuchImage(path.to_owned()))?;
        file.kind = FileKind::Memory(memory);
        Ok(())
    }

    /// See [`crate::host::Images::finish_memory_image`].
    pub(super) fn finish_memory(&mut self, path: &Path) -> Result<u64> {
        let memory = self.memory(path)?;
        if !memory.is_written {
            return Err(bad(path, "no memory was written to it"));
        }
        let bytes = memory.bytes;
        self.complete_memory(path);
        Ok(bytes)
    }

    /// All of the memory stands behind the header.
    pub(super) fn memory_is_written(&mut self, path: &Path) {
        if let Some(File { kind: FileKind::Memory(memory), .. }) = self.by_path.get_mut(path) {
            memory.is_written = true;
        }
    }

    /// Makes a file. One that stands there is an error.
    pub(super) fn create(&mut self, path: &Path, kind: FileKind) -> Result<()> {
        if !path.is_absolute() {
            return Err(bad(path, "its path is not absolute"));
        }
        if self.by_path.contains_key(path) {
            let cause = io::ErrorKind::AlreadyExists.into();
            return Err(HostError::Io { action: "create", path: path.to_owned(), cause });
        }
        if self.free() < size_of(&kind) {
            return Err(HostError::NoSpace(path.to_owned()));
        }
        let identity = FileIdentity { device: 1, inode: self.next_inode };
        self.next_inode += 1;
        self.clock += 1;
        let file = File { identity, is_link: false, written_at: self.clock, kind };
        self.by_path.insert(path.to_owned(), file);
        Ok(())
    }

    /// Gives a file another name. One that stands there is an error.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        if self.by_path.contains_key(to) {
            let cause = io::ErrorKind::AlreadyExists.into();
            return Err(HostError::Io { action: "give a file the name", path: to.to_owned(), cause });
        }
        let file = self.by_path.remove(from).ok_or_else(|| HostError::NoSuchImage(from.to_owned()))?;
        self.by_path.insert(to.to_owned(), file);
        Ok(())
    }

    /// Gives a file a second name. One that stands there is an error.
    ///
    /// The two part when one of them is written to: nobody writes to a file that has two.
    pub(super) fn hard_link(&mut self, from: &Path, to: &Path) -> Result<()> {
        let file = self.get(from)?.clone();
        if self.by_path.contains_key(to) {
            let cause = io::ErrorKind::AlreadyExists.into();
            return Err(HostError::Io { action: "give a file the name", path: to.to_owned(), cause });
        }
        self.by_path.insert(to.to_owned(), file);
        Ok(())
    }

    /// Somebody copies a file elsewhere and back: the same content is in another file.
    pub(super) fn renew(&mut self, path: &Path) {
        if let Some(file) = self.by_path.get_mut(path) {
            file.identity.inode = self.next_inode;
            self.next_inode += 1;
        }
    }

    /// Somebody cuts a file off to nothing.
    pub(super) fn blank(&mut self, path: &Path) {
        if let Some(file) = self.by_path.get_mut(path) {
            file.kind = FileKind::Blank;
        }
    }

    /// Somebody moves a file elsewhere and puts a link in its place.
    pub(super) fn make_link(&mut self, path: &Path) {
        if let Some(file) = self.by_path.get_mut(path) {
            file.is_link = true;
        }
    }

    /// Lets a file take the name of another one.
    pub(super) fn replace(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.get(to)?;
        let file = self.by_path.remove(from).ok_or_else(|| HostError::NoSuchImage(from.to_owned()))?;
        self.by_path.insert(to.to_owned(), file);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.by_path.remove(path);
    }

    /// Writes one block. Only a block that was not there needs room.
    pub(super) fn write(&mut self, path: &Path, block: u64, value: u64) -> Result<()> {
        let is_full = self.free() < BLOCK;
        let image = self.image_mut(path)?;
        if is_full && !image.blocks.contains_key(&block) {
            return Err(HostError::NoSpace(path.to_owned()));
        }
        image.blocks.insert(block, value);
        Ok(())
    }

    /// The chain below `active`, as the headers say, `active` first.
    pub(super) fn chain(&self, active: &ImageRef) -> Result<Vec<ImageRef>> {
        let mut chain = Vec::new();
        let mut next = Some(active.clone());
        while let Some(image) = next {
            if chain.len() >= DEEPEST {
                return Err(bad(&image.path, "its chain is too long"));
            }
            next = self.header(&image)?.cloned();
            chain.push(image);
        }
        Ok(chain)
    }

    /// The backing file that the header of an image names. One that is read as raw has no header.
    pub(super) fn header(&self, image: &ImageRef) -> Result<Option<&ImageRef>> {
        let found = self.image(&image.path)?;
        match (image.format, found.format) {
            (Format::Raw, _) => Ok(None),
            (Format::Qcow2, Format::Qcow2) => Ok(found.backing.as_ref()),
            (Format::Qcow2, Format::Raw) => Err(bad(&image.path, "it is not a qcow2 image")),
        }
    }

    /// What a chain reads, `chain` being in the order of reading. Headers are not asked.
    pub(super) fn content(&self, chain: &[ImageRef]) -> Content {
        let mut content = Content::new();
        for image in chain.iter().rev() {
            let Ok(found) = self.image(&image.path) else { continue };
            if found.format == image.format {
                content.extend(&found.blocks);
            } else {
                content.insert(0, GARBAGE);
            }
        }
        content.retain(|_, value| *value != 0);
        content
    }

    /// The images that lie directly on this one.
    pub(super) fn overlays_on(&self, path: &Path) -> impl Iterator<Item = &Path> {
        self.by_path.iter().filter_map(move |(overlay, file)| match &file.kind {
            FileKind::Image(image) if image.backing.as_ref().is_some_and(|backing| backing.path == path) => {
                Some(overlay.as_path())
            }
            FileKind::Image(_)
            | FileKind::Memory(_)
            | FileKind::MemoryHeader(_)
            | FileKind::Small(_)
            | FileKind::Blank => None,
        })
    }

    /// See [`crate::host::Images::lies_on`].
    pub(super) fn lies_on(&self, path: &Path) -> Result<Option<PathBuf>> {
        match &self.get(path)?.kind {
            FileKind::Image(image) if image.format == Format::Qcow2 => {
                Ok(image.backing.as_ref().map(|backing| backing.path.clone()))
            }
            FileKind::Image(_) if path.extension().is_some_and(|ending| ending == "qcow2") => {
                Err(bad(path, "it is not a qcow2 image"))
            }
            FileKind::Image(_)
            | FileKind::Memory(_)
            | FileKind::MemoryHeader(_)
            | FileKind::Small(_)
            | FileKind::Blank => Ok(None),
        }
    }

    /// What an image says of itself when it is read as `format`.
    pub(super) fn facts(&self, path: &Path, format: Format) -> Result<ImageFacts> {
        let file = self.get(path)?;
        let allocated = size_of(&file.kind);
        let (virtual_size, backing) = match (format, &file.kind) {
            (Format::Qcow2, FileKind::Image(image)) if image.format == Format::Qcow2 => {
                let backing = image.backing.clone();
                let backing =
                    backing.map(|backing| Backing { path: backing.path, format: Some(backing.format) });
                (image.virtual_size, backing)
            }
            (Format::Qcow2, _) => return Err(bad(path, "it is not a qcow2 image")),
            (Format::Raw, FileKind::Image(image)) if image.format == Format::Raw => {
                (image.virtual_size, None)
            }
            (Format::Raw, _) => (allocated, None),
        };
        let (identity, is_link) = (file.identity, file.is_link);
        Ok(ImageFacts {
            format,
            virtual_size,
            allocated,
            backing,
            identity,
            length: allocated,
            is_link,
            pieces: None,
        })
    }

    /// All files are in one file system.
    pub(super) fn space(&self) -> Space {
        Space { file_system: 1, total: self.capacity, free: self.free() }
    }

    /// Bytes that are free.
    pub(super) fn free(&self) -> u64 {
        let used: u64 = self.by_path.values().map(|file| size_of(&file.kind)).sum();
        self.capacity.saturating_sub(used)
    }

    /// From now on so many bytes are free.
    pub(super) fn set_free(&mut self, bytes: u64) {
        let used: u64 = self.by_path.values().map(|file| size_of(&file.kind)).sum();
        self.capacity = used + bytes;
    }

    /// All paths.
    pub(super) fn paths(&self) -> BTreeSet<PathBuf> {
        self.by_path.keys().cloned().collect()
    }
}

fn size_of(kind: &FileKind) -> u64 {
    match kind {
        FileKind::Image(image) => {
            let header = if image.format == Format::Qcow2 { HEADER } else { 0 };
            header + BLOCK * image.blocks.len() as u64
        }
        FileKind::Memory(memory) => memory.bytes,
        FileKind::Small(bytes) => bytes.len() as u64,
        FileKind::MemoryHeader(_) | FileKind::Blank => 0,
    }
}

/// An image that cannot be used.
pub(super) fn bad(path: &Path, problem: impl Into<String>) -> HostError {
    HostError::BadImage { path: path.to_owned(), problem: problem.into() }
}
