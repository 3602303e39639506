//! Image files and the directories they are in.
//!
//! Decides how each thing is done so that it is durable, confined to the file meant, and bounded in time. Leaves which
//! file to make, merge or remove to `plan`. Must never know a VM.
//!
//! Headers are read by [`qcow2`]; what rewrites an image is done by `qemu-img`, always with every format spelled out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::workers::Workers;
use super::{ByteProgress, Definition, HostError, Images, Result};
use crate::model::step::{DoomedImage, ImageRef, NewCopy, NewOverlay};
use crate::model::vm::{Format, LastWritten, MemoryFormat};
use crate::model::{ImageFacts, Space};

mod below;
mod bytes;
mod compression;
mod files;
mod measure;
mod memory;
mod names;
mod overlay;
mod program;
pub mod qcow2;
mod qemu_img;
mod small;
mod users;

pub(super) use compression::{Compressed, Compression};
pub use files::open_image;
pub(super) use files::open_ours;
pub(super) use memory::{MemoryPlace, where_memory_goes};
pub(super) use program::find as find_program;
pub use qcow2::Geometry;

use qemu_img::QemuImg;

/// How many calls on files run at once. A dead file server can hold this many threads, and no others.
const FILE_THREADS: usize = 4;

/// How long to wait for files and for `qemu-img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDeadlines {
    /// One look at a file, or a removal, or a sync.
    pub file: Duration,
    /// A `qemu-img` that only writes a header.
    pub header: Duration,
    /// A `qemu-img` that reads tables and no data.
    pub measure: Duration,
    /// A merge of two images, a copy of one, or the sync of one that was just written.
    pub commit: Duration,
}

impl Default for ImageDeadlines {
    fn default() -> Self {
        Self {
            file: Duration::from_secs(60),
            header: Duration::from_secs(60),
            measure: Duration::from_secs(120),
            commit: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// The images of this node.
#[derive(Debug)]
pub struct HostImages {
    workers: Workers,
    /// For what nothing waits for, and what may take as long as it likes.
    behind: Workers,
    qemu_img: QemuImg,
    deadlines: ImageDeadlines,
    overlays: Geometry,
}

impl HostImages {
    /// Looks up `qemu-img` once, at its fixed places. An error names the program that is missing.
    pub fn new(deadlines: ImageDeadlines, overlays: Geometry) -> Result<Arc<Self>> {
        let workers = Workers::start("image-files", FILE_THREADS);
        let behind = Workers::start("image-behind", 1);
        Ok(Arc::new(Self { workers, behind, qemu_img: QemuImg::find()?, deadlines, overlays }))
    }

    async fn on_files<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.workers.run(call, self.deadlines.file, work).await
    }

    async fn on_path<T: Send + 'static>(
        &self,
        call: &'static str,
        path: &Path,
        work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = path.to_owned();
        self.on_files(call, move || work(&path)).await
    }
}

#[async_trait]
impl Images for HostImages {
    async fn create_overlay(&self, overlay: &NewOverlay) -> Result<()> {
        let (overlay, geometry) = (overlay.clone(), self.overlays);
        self.on_files("the creation of an overlay", move || overlay::make(&overlay, geometry)).await
    }

    async fn inspect(&self, path: &Path, format: Format) -> Result<ImageFacts> {
        self.on_path("a look at an image", path, move |path| files::inspect(path, format)).await
    }

    async fn lies_on(&self, path: &Path) -> Result<Option<PathBuf>> {
        self.on_path("a look at an image", path, below::lies_on).await
    }

    async fn commit(&self, layers: &[ImageRef], progress: &ByteProgress) -> Result<()> {
        let [top, .., base] = layers else { return Ok(()) };
        let checked = layers.to_vec();
        let check = move || {
            let links = checked.iter().zip(checked.iter().skip(1));
            links.map(|(image, below)| overlay::check_lies_on(image, below)).sum::<Result<u64>>()
        };
        let bytes = self.on_files("a look at an image", check).await?;
        progress.send_replace((0, bytes));
        let merged =
            self.qemu_img.commit(&self.workers, top, base, (progress, bytes), self.deadlines.commit).await;
        self.explain(merged, [top, base]).await?;
        self.sync(&base.path).await?;
        progress.send_replace((bytes, bytes));
        Ok(())
    }

    async fn reads_same(&self, one: &ImageRef, other: &ImageRef) -> Result<bool> {
        let pair = [one.clone(), other.clone()];
        let look = move || {
            let sizes = pair.iter().map(|image| files::inspect(&image.path, image.format));
            sizes.map(|facts| Ok(facts?.virtual_size)).collect::<Result<Vec<_>>>()
        };
        let sizes = self.on_files("a look at an image", look).await?;
        if sizes[0] != sizes[1] {
            return Ok(false);
        }
        self.qemu_img.compare(&self.workers, one, other, self.deadlines.commit).await
    }

    async fn last_written(&self, image: &ImageRef) -> Result<LastWritten> {
        let format = image.format;
        self.on_path("a look at an image", &image.path, move |path| files::last_written(path, format)).await
    }

    async fn rebase(&self, image: &ImageRef, base: &ImageRef) -> Result<()> {
        let written = self.qemu_img.rebase(&self.workers, image, base, self.deadlines.header).await;
        self.explain(written, [image, image]).await?;
        let (checked_image, checked_base) = (image.clone(), base.clone());
        let check = move || overlay::check_lies_on(&checked_image, &checked_base).map(|_| ());
        self.on_files("a look at an image", check).await?;
        self.sync(&image.path).await
    }

    async fn copy(&self, copy: &NewCopy, progress: &ByteProgress) -> Result<()> {
        let create = |path: &Path| files::create_new(path).map(|_| ());
        self.on_path("the creation of a file", &copy.path, create).await?;
        let source = copy.source.clone();
        let look = move || files::inspect(&source.path, source.format).map(|facts| facts.virtual_size);
        let bytes = self.on_files("a look at an image", look).await?;
        progress.send_replace((0, bytes));
        let copied =
            self.qemu_img.convert(&self.workers, copy, (progress, bytes), self.deadlines.commit).await;
        self.explain(copied, [&copy.source, &copy.source]).await?;
        let made = copy.clone();
        self.on_files("the check of a copy", move || {
            overlay::check_stands_alone(&made.path, made.virtual_size)
        })
        .await?;
        self.sync(&copy.path).await?;
        progress.send_replace((bytes, bytes));
        Ok(())
    }

    async fn publish(&self, from: &Path, to: &Path) -> Result<()> {
        let to = to.to_owned();
        self.on_path("the naming of a file", from, move |from| names::publish(from, &to)).await
    }

    async fn hard_link(&self, from: &Path, to: &Path) -> Result<()> {
        let to = to.to_owned();
        self.on_path("the naming of a file", from, move |from| names::hard_link(from, &to)).await
    }

    async fn replace(&self, from: &Path, to: &Path) -> Result<()> {
        let to = to.to_owned();
        self.on_path("the naming of a file", from, move |from| names::replace(from, &to)).await
    }

    async fn list(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        self.on_path("a look at a directory", directory, names::list).await
    }

    async fn copy_bytes(&self, from: &Path, to: &Path) -> Result<()> {
        let to = to.to_owned();
        self.on_path("the copy of a file", from, move |from| bytes::copy(from, &to)).await
    }

    async fn pull(&self, image: &ImageRef, below: Option<&ImageRef>, progress: &ByteProgress) -> Result<()> {
        let looked_at = image.clone();
        let look = move || files::inspect(&looked_at.path, looked_at.format).map(|facts| facts.virtual_size);
        let bytes = self.on_files("a look at an image", look).await?;
        progress.send_replace((0, bytes));
        let pulled =
            self.qemu_img.pull(&self.workers, image, below, (progress, bytes), self.deadlines.commit).await;
        self.explain(pulled, [image, image]).await?;
        let (made, below) = (image.clone(), below.cloned());
        self.on_files("the check of a copy", move || match below {
            Some(below) => overlay::check_lies_on(&made, &below).map(|_| ()),
            None => overlay::check_stands_alone(&made.path, bytes),
        })
        .await?;
        self.sync(&image.path).await?;
        progress.send_replace((bytes, bytes));
        Ok(())
    }

    async fn write_file(&self, path: &Path, content: &[u8]) -> Result<()> {
        let (content, wanted) = (content.to_owned(), Arc::new(()));
        // Gone as soon as nobody waits any more.
        let waiting = Arc::downgrade(&wanted);
        let write = move |path: &Path| small::write(path, &content, || waiting.strong_count() > 0);
        let written = self.on_path("the writing of a file", path, write).await;
        drop(wanted);
        written
    }

    async fn read_file(&self, path: &Path, limit: usize) -> Result<Vec<u8>> {
        self.on_path("the reading of a file", path, move |path| small::read(path, limit)).await
    }

    async fn remove(&self, image: &DoomedImage) -> Result<()> {
        let image = image.clone();
        self.on_files("the removal of a file", move || files::remove(&image)).await
    }

    async fn is_in_use(&self, path: &Path, _format: Format) -> Result<bool> {
        self.on_path("a look for users", path, |path| users::is_used(path, users::Use::Any)).await
    }

    async fn is_written(&self, path: &Path) -> Result<bool> {
        self.on_path("a look for writers", path, |path| users::is_used(path, users::Use::Writing)).await
    }

    async fn free_space(&self, directory: &Path) -> Result<Space> {
        self.on_path("a look for free space", directory, files::free_space).await
    }

    async fn measure(&self, layers: &[ImageRef]) -> Result<u64> {
        let Some(top) = layers.first() else { return Ok(0) };
        let looked_at = layers.to_vec();
        let chain = self.on_files("a look at images", move || measure::chain(&looked_at)).await?;
        self.qemu_img.measure(&self.workers, &chain, &top.path, self.deadlines.measure).await
    }

    async fn memory_image(&self, path: &Path) -> Result<Option<u64>> {
        self.on_path("a look at a memory image", path, memory::complete_bytes).await
    }

    async fn memory_format(&self, path: &Path) -> Result<MemoryFormat> {
        self.on_path("a look at a memory image", path, memory::format).await
    }

    async fn begin_memory_image(
        &self,
        path: &Path,
        definition: &Definition,
        format: MemoryFormat,
    ) -> Result<()> {
        let definition = definition.clone();
        let begin = move |path: &Path| memory::begin(path, &definition.0, format);
        self.on_path("the beginning of a memory image", path, begin).await
    }

    async fn finish_memory_image(&self, path: &Path) -> Result<u64> {
        let path = path.to_owned();
        // It is synced, and may be as large as the memory of the node.
        let finish = move || memory::finish(&path);
        self.workers.run("the end of a memory image", self.deadlines.commit, finish).await
    }

    async fn write_behind(&self, path: &Path) -> Result<()> {
        let path = path.to_owned();
        let write = move || files::write_behind(&path);
        self.behind.run("the writing of a file to the disk", self.deadlines.commit, write).await
    }

    async fn sync(&self, path: &Path) -> Result<()> {
        self.on_path("the sync of a file", path, files::sync).await
    }
}

impl HostImages {
    /// `qemu-img` only has words for a lock that it did not get. The locks themselves tell for certain.
    async fn explain(&self, outcome: Result<()>, images: [&ImageRef; 2]) -> Result<()> {
        let Err(HostError::Program { .. }) = &outcome else { return outcome };
        for image in images {
            if self.is_in_use(&image.path, image.format).await.unwrap_or(false) {
                tracing::debug!(error = ?outcome, "qemu-img failed on an image in use");
                return Err(HostError::ImageInUse(image.path.clone()));
            }
        }
        outcome
    }
}
