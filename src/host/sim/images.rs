//! The image files of the simulated node.
//!
//! Decides what each call leaves in a file, all of it or half of it, and notices a rebase that changes what an image
//! reads and a removal of what somebody needs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::super::{ByteProgress, Definition, HostError, Images, Result, unfinished};
use super::SimHost;
use super::fault::{Extent, Method};
use super::files::{BLOCK, FileKind, GARBAGE, HEADER, Image, bad};
use super::world::World;
use crate::model::step::{DoomedImage, ImageRef, NewCopy, NewOverlay};
use crate::model::vm::{Format, LastWritten, MemoryFormat};
use crate::model::{ImageFacts, Space};

impl World {
    /// Half of it: the file stands there, and nothing is in it.
    fn create_overlay(&mut self, overlay: &NewOverlay, extent: Extent) -> Result<()> {
        let image = Image {
            format: Format::Qcow2,
            virtual_size: overlay.virtual_size,
            blocks: super::Content::new(),
            backing: Some(ImageRef { path: overlay.backing_path.clone(), format: overlay.backing_format }),
            is_template: false,
        };
        let kind = match extent {
            Extent::Whole => FileKind::Image(image),
            Extent::Half => FileKind::Blank,
        };
        self.files.create(&overlay.path, kind)
    }

    /// Half of it: half of the blocks are in the base.
    fn commit(&mut self, layers: &[ImageRef], progress: &ByteProgress, extent: Extent) -> Result<()> {
        let [top, .., base] = layers else { return Ok(()) };
        for (image, below) in layers.iter().zip(layers.iter().skip(1)) {
            self.check_lies_on(image, below)?;
        }
        if let Some(image) = layers.iter().find(|image| self.is_open(&image.path)) {
            return Err(HostError::ImageInUse(image.path.clone()));
        }
        self.note_write(&base.path);
        let mut blocks = super::Content::new();
        // From the lowest up: what is higher counts.
        for image in layers.iter().rev().skip(1) {
            blocks.extend(self.files.image(&image.path)?.blocks.clone());
        }
        let virtual_size = self.files.image(&top.path)?.virtual_size;
        let total = blocks.len() as u64 * BLOCK;
        progress.send_replace((0, total));
        let half = blocks.len().div_ceil(2);
        let copied = if extent == Extent::Whole { blocks.len() } else { half };
        for (done, (block, value)) in blocks.into_iter().take(copied).enumerate() {
            self.files.write(&base.path, block, value)?;
            progress.send_replace(((done as u64 + 1) * BLOCK, total));
        }
        let grown = self.files.image_mut(&base.path)?;
        grown.virtual_size = grown.virtual_size.max(virtual_size);
        Ok(())
    }

    /// What is zero in a layer hides what lies below it, and takes no room of its own.
    fn measure(&self, layers: &[ImageRef]) -> Result<u64> {
        let blocks = layers.iter().rev().try_fold(super::Content::new(), |mut blocks, image| {
            blocks.extend(&self.files.image(&image.path)?.blocks);
            Ok::<_, HostError>(blocks)
        })?;
        Ok(HEADER + BLOCK * blocks.values().filter(|value| **value != 0).count() as u64)
    }

    fn check_lies_on(&self, top: &ImageRef, base: &ImageRef) -> Result<()> {
        let below = self.files.header(top)?;
        if below != Some(base) {
            return Err(bad(&top.path, format!("its header does not name {}", base.path.display())));
        }
        self.files.image(&base.path).map(|_| ())
    }

    fn last_written(&self, image: &ImageRef) -> Result<LastWritten> {
        let file = self.files.get(&image.path)?;
        if image.format == Format::Qcow2 && self.files.image(&image.path)?.blocks.is_empty() {
            return Ok(LastWritten::Never);
        }
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(file.written_at);
        Ok(LastWritten::At { device: file.identity.device, time })
    }

    fn reads_same(&self, one: &ImageRef, other: &ImageRef) -> Result<bool> {
        if let Some(image) = [one, other].into_iter().find(|image| self.is_written(&image.path)) {
            return Err(HostError::ImageInUse(image.path.clone()));
        }
        let reading = |image: &ImageRef| {
            let size = self.files.image(&image.path)?.virtual_size;
            let mut content = self.files.content(&self.files.chain(image)?);
            content.retain(|_, value| *value != 0);
            Ok::<_, HostError>((size, content))
        };
        Ok(reading(one)? == reading(other)?)
    }

    fn rebase(&mut self, image: &ImageRef, base: &ImageRef) -> Result<()> {
        if self.files.image(&image.path)?.format != Format::Qcow2 {
            return Err(bad(&image.path, "it is not a qcow2 image"));
        }
        if self.is_open(&image.path) {
            return Err(HostError::ImageInUse(image.path.clone()));
        }
        self.note_change(&image.path);
        let before = self.files.chain(image).map(|chain| self.files.content(&chain));
        self.files.image_mut(&image.path)?.backing = Some(base.clone());
        let after = self.files.chain(image).map(|chain| self.files.content(&chain));
        if let Ok(before) = before
            && after.as_ref().ok() != Some(&before)
        {
            self.violate(format!("a rebase changes what {} reads", image.path.display()));
        }
        self.check_lies_on(image, base)
    }

    /// Half of it: half of the blocks are in a file.
    fn copy(&mut self, copy: &NewCopy, progress: &ByteProgress, extent: Extent) -> Result<()> {
        let chain = self.files.chain(&copy.source)?;
        if let Some(written) = chain.iter().find(|image| self.is_written(&image.path)) {
            return Err(HostError::ImageInUse(written.path.clone()));
        }
        let mut blocks = self.files.content(&chain);
        let total = blocks.len() as u64 * BLOCK;
        progress.send_replace((total / 2, total));
        if extent == Extent::Half {
            let half = blocks.len() / 2;
            blocks = blocks.into_iter().take(half).collect();
        }
        let image = Image {
            format: Format::Qcow2,
            virtual_size: self.files.image(&copy.source.path)?.virtual_size,
            blocks,
            backing: None,
            is_template: false,
        };
        self.files.create(&copy.path, FileKind::Image(image))
    }

    fn publish(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.files.get(from)?;
        if let Some(need) = self.needs(from).first() {
            self.violate(format!("{} is renamed, but {need}", from.display()));
        }
        self.files.rename(from, to)
    }

    fn hard_link(&mut self, from: &Path, to: &Path) -> Result<()> {
        if self.is_written(from) {
            self.violate(format!("{} gets a second name, but a VM writes to it", from.display()));
        }
        self.files.hard_link(from, to)
    }

    /// Whoever has the one open that loses its name goes on with what nobody will find again.
    fn replace(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.note_change(to);
        if self.is_open(to) {
            self.violate(format!("{} is replaced, but a VM has it open", to.display()));
        }
        if let Ok(Image { is_template: true, .. }) = self.files.image(to) {
            self.violate(format!("the template {} is replaced", to.display()));
        }
        self.files.replace(from, to)
    }

    /// Half of it: what stands there makes no sense.
    fn copy_bytes(&mut self, from: &Path, to: &Path, extent: Extent) -> Result<()> {
        self.note_change(to);
        let source = self.files.image(from)?;
        let blocks = match extent {
            Extent::Whole => source.blocks.clone(),
            Extent::Half => super::Content::from([(0, GARBAGE)]),
        };
        let (format, virtual_size) = (source.format, source.virtual_size);
        if self.is_open(to) {
            self.violate(format!("{} is written to, but a VM has it open", to.display()));
        }
        if let Ok(there) = self.files.image_mut(to) {
            (there.blocks, there.virtual_size) = (blocks, virtual_size);
            return Ok(());
        }
        let image = Image { format, virtual_size, blocks, backing: None, is_template: false };
        self.files.create(to, FileKind::Image(image))
    }

    /// Half of it: half of what is read from below is copied, and it lies where it lay.
    fn pull(
        &mut self,
        image: &ImageRef,
        below: Option<&ImageRef>,
        progress: &ByteProgress,
        extent: Extent,
    ) -> Result<()> {
        if self.is_open(&image.path) {
            return Err(HostError::ImageInUse(image.path.clone()));
        }
        self.note_change(&image.path);
        let chain = self.files.chain(image)?;
        if below.is_some_and(|below| !chain[1..].contains(below)) {
            return Err(bad(&image.path, "it does not read what it is to lie on"));
        }
        let pulled: Vec<ImageRef> = chain.into_iter().take_while(|image| Some(image) != below).collect();
        // A block of zeros hides what lies below.
        let mut content = super::Content::new();
        for image in pulled.iter().rev() {
            content.extend(&self.files.image(&image.path)?.blocks);
        }
        let total = content.len() as u64 * BLOCK;
        progress.send_replace((total / 2, total));
        let copied = if extent == Extent::Whole { content.len() } else { content.len() / 2 };
        for (block, value) in content.into_iter().take(copied) {
            self.files.write(&image.path, block, value)?;
        }
        if extent == Extent::Whole {
            self.files.image_mut(&image.path)?.backing = below.cloned();
        }
        Ok(())
    }

    /// Half of it: half of the bytes stand where it is written before it has its name.
    fn write_file(&mut self, path: &Path, content: &[u8], extent: Extent) -> Result<()> {
        let made = unfinished(path);
        self.files.remove(&made);
        let written = if extent == Extent::Whole { content } else { &content[..content.len() / 2] };
        self.files.create(&made, FileKind::Small(written.to_vec()))?;
        if extent == Extent::Whole {
            if self.files.get(path).is_ok_and(|file| !matches!(file.kind, FileKind::Small(_))) {
                self.violate(format!("{} is overwritten", path.display()));
            }
            self.files.remove(path);
            self.files.rename(&made, path)?;
        }
        Ok(())
    }

    fn read_file(&self, path: &Path, limit: usize) -> Result<Vec<u8>> {
        match &self.files.get(path)?.kind {
            FileKind::Small(content) if content.len() <= limit => Ok(content.clone()),
            _ => Err(bad(path, format!("it has more than {limit} bytes"))),
        }
    }

    fn remove(&mut self, image: &DoomedImage) -> Result<()> {
        let path = &image.path;
        let Ok(file) = self.files.get(path) else { return Ok(()) };
        if image.identity.is_some_and(|meant| meant != file.identity) {
            return Err(bad(path, "another file stands there now"));
        }
        if let FileKind::Image(Image { is_template: true, .. }) = file.kind {
            self.violate(format!("the template {} is removed", path.display()));
        }
        for need in self.needs(path) {
            self.violate(format!("{} is removed, but {need}", path.display()));
        }
        self.files.remove(path);
        Ok(())
    }

    fn is_in_use(&self, path: &Path) -> Result<bool> {
        self.files.get(path)?;
        Ok(self.is_open(path))
    }

    fn memory_image(&self, path: &Path) -> Result<Option<u64>> {
        match self.files.get(path).map(|file| &file.kind) {
            Err(_) | Ok(FileKind::MemoryHeader(_) | FileKind::Blank) => Ok(None),
            Ok(FileKind::Memory(memory)) => Ok(memory.is_complete.then_some(memory.bytes)),
            Ok(FileKind::Image(_) | FileKind::Small(_)) => Err(bad(path, "it is not a memory image")),
        }
    }
}

#[async_trait]
impl Images for SimHost {
    async fn create_overlay(&self, overlay: &NewOverlay) -> Result<()> {
        self.call(Method::CreateOverlay, |world, extent| world.create_overlay(overlay, extent)).await
    }

    async fn inspect(&self, path: &Path, format: Format) -> Result<ImageFacts> {
        self.call(Method::Inspect, |world, _| world.files.facts(path, format)).await
    }

    async fn lies_on(&self, path: &Path) -> Result<Option<PathBuf>> {
        self.call(Method::LiesOn, |world, _| world.files.lies_on(path)).await
    }

    async fn commit(&self, layers: &[ImageRef], progress: &ByteProgress) -> Result<()> {
        self.call(Method::Commit, |world, extent| world.commit(layers, progress, extent)).await
    }

    async fn reads_same(&self, one: &ImageRef, other: &ImageRef) -> Result<bool> {
        self.call(Method::ReadsSame, |world, _| world.reads_same(one, other)).await
    }

    async fn last_written(&self, image: &ImageRef) -> Result<LastWritten> {
        self.call(Method::LastWritten, |world, _| world.last_written(image)).await
    }

    async fn rebase(&self, image: &ImageRef, base: &ImageRef) -> Result<()> {
        self.call(Method::Rebase, |world, _| world.rebase(image, base)).await
    }

    async fn copy(&self, copy: &NewCopy, progress: &ByteProgress) -> Result<()> {
        self.call(Method::Copy, |world, extent| world.copy(copy, progress, extent)).await
    }

    async fn publish(&self, from: &Path, to: &Path) -> Result<()> {
        self.call(Method::Publish, |world, _| world.publish(from, to)).await
    }

    async fn hard_link(&self, from: &Path, to: &Path) -> Result<()> {
        self.call(Method::HardLink, |world, _| world.hard_link(from, to)).await
    }

    async fn replace(&self, from: &Path, to: &Path) -> Result<()> {
        self.call(Method::Replace, |world, _| world.replace(from, to)).await
    }

    async fn list(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        self.call(Method::List, |world, _| {
            let lies_in = |path: &PathBuf| path.parent() == Some(directory);
            Ok(world.files.paths().into_iter().filter(lies_in).collect())
        })
        .await
    }

    async fn copy_bytes(&self, from: &Path, to: &Path) -> Result<()> {
        self.call(Method::CopyBytes, |world, extent| world.copy_bytes(from, to, extent)).await
    }

    async fn pull(&self, image: &ImageRef, below: Option<&ImageRef>, progress: &ByteProgress) -> Result<()> {
        self.call(Method::Pull, |world, extent| world.pull(image, below, progress, extent)).await
    }

    async fn write_file(&self, path: &Path, content: &[u8]) -> Result<()> {
        self.call(Method::WriteFile, |world, extent| world.write_file(path, content, extent)).await
    }

    async fn read_file(&self, path: &Path, limit: usize) -> Result<Vec<u8>> {
        self.call(Method::ReadFile, |world, _| world.read_file(path, limit)).await
    }

    async fn remove(&self, image: &DoomedImage) -> Result<()> {
        self.call(Method::Remove, |world, _| world.remove(image)).await
    }

    async fn is_in_use(&self, path: &Path, _format: Format) -> Result<bool> {
        self.call(Method::IsInUse, |world, _| world.is_in_use(path)).await
    }

    async fn is_written(&self, path: &Path) -> Result<bool> {
        self.call(Method::IsWritten, |world, _| {
            world.files.get(path).map(|_| ()).map(|()| world.is_written(path))
        })
        .await
    }

    async fn free_space(&self, _directory: &Path) -> Result<Space> {
        self.call(Method::FreeSpace, |world, _| Ok(world.files.space())).await
    }

    async fn measure(&self, layers: &[ImageRef]) -> Result<u64> {
        self.call(Method::Measure, |world, _| world.measure(layers)).await
    }

    async fn memory_image(&self, path: &Path) -> Result<Option<u64>> {
        self.call(Method::MemoryImage, |world, _| world.memory_image(path)).await
    }

    async fn memory_format(&self, path: &Path) -> Result<MemoryFormat> {
        self.call(Method::MemoryFormat, |world, _| world.files.memory(path).map(|memory| memory.format)).await
    }

    async fn begin_memory_image(&self, path: &Path, _: &Definition, format: MemoryFormat) -> Result<()> {
        let begin = |world: &mut World, extent| {
            let kind = if extent == Extent::Whole { FileKind::MemoryHeader(format) } else { FileKind::Blank };
            world.files.create(path, kind)
        };
        self.call(Method::BeginMemoryImage, begin).await
    }

    async fn finish_memory_image(&self, path: &Path) -> Result<u64> {
        self.call(Method::FinishMemoryImage, |world, _| world.files.finish_memory(path)).await
    }

    async fn write_behind(&self, path: &Path) -> Result<()> {
        self.call(Method::WriteBehind, |world, _| world.files.get(path).map(|_| ())).await
    }

    async fn sync(&self, path: &Path) -> Result<()> {
        self.call(Method::Sync, |world, _| world.files.get(path).map(|_| ())).await
    }
}

/// Paths of all files, in order.
impl SimHost {
    /// What a small file of the daemon's holds.
    #[must_use]
    pub fn small_file(&self, path: &Path) -> Option<Vec<u8>> {
        self.world().read_file(path, usize::MAX).ok()
    }

    /// All files of the node.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.world().files.paths().into_iter().collect()
    }
}
