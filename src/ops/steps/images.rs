//! Steps on files: overlays, memory images, removals.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::host::{HostError, Result};
use crate::model::step::{DoomedImage, NewOverlay};
use crate::model::vm::{Format, MemoryFormat};

use super::super::OpsError;
use super::super::readers::Readers;
use super::{Context, Performed, make_so};

/// Storage that takes longer has more to do than can be done ahead.
const FLUSHED_WITHIN: Duration = Duration::from_secs(10);

/// The overlay stands, and is the one that was meant.
pub(super) async fn create_overlay(context: &Context<'_>, overlay: &NewOverlay) -> Performed {
    let images = &context.host.images;
    if !context.is_fresh && matches!(stands(context, overlay).await, Err(HostError::BadImage { .. })) {
        // What an earlier life has left half made: nobody reads it yet, and the program that made it has died with it.
        let removed = remove_unused(context, &overlay.path).await;
        if !removed.is_done() {
            return removed;
        }
    }
    make_so(|| stands(context, overlay), || images.create_overlay(overlay)).await
}

async fn stands(context: &Context<'_>, overlay: &NewOverlay) -> Result<bool> {
    let facts = match context.host.images.inspect(&overlay.path, Format::Qcow2).await {
        Ok(facts) => facts,
        Err(HostError::NoSuchImage(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    let backing = facts.backing.as_ref().map(|backing| (backing.path.as_path(), backing.format));
    let problem = if facts.virtual_size != overlay.virtual_size {
        format!("it has {} bytes, not {}", facts.virtual_size, overlay.virtual_size)
    } else if backing != Some((overlay.backing_path.as_path(), Some(overlay.backing_format))) {
        format!("it does not lie on {}", overlay.backing_path.display())
    } else {
        return Ok(true);
    };
    Err(HostError::BadImage { path: overlay.path.clone(), problem })
}

/// What was written to the images is on the disk, as far as that goes. What cannot be written is for QEMU to tell: a failure that
/// one file descriptor is told of is told to the others, too (Linux, `errseq_t`).
pub(super) async fn flush(context: &Context<'_>, images: &[PathBuf]) -> Performed {
    let (engine, vm, images) = (context.engine.clone(), context.vm(), images.to_vec());
    let is_over = CancellationToken::new();
    let nobody_waits = is_over.clone().drop_guard();
    // A task of its own: what has begun keeps its turn until it ends, whether anybody waits for it or not.
    let flushed = context.engine.0.tasks.spawn(async move {
        let Ok(_turn) = engine.0.limits.flushes.acquire().await else { return };
        for image in images {
            if is_over.is_cancelled() {
                return;
            }
            let synced = tokio::select! {
                biased;
                () = engine.0.stopping.cancelled() => return,
                synced = engine.0.host.images.sync(&image) => synced,
            };
            if let Err(error) = synced {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(%vm, error, "an image was not flushed before its guest stands still");
            }
        }
    });
    tokio::select! {
        biased;
        _ = flushed => {}
        () = context.cancelled.cancelled() => {}
        () = context.stopping.cancelled() => {}
        () = tokio::time::sleep(FLUSHED_WITHIN) => {}
    }
    drop(nobody_waits);
    Performed::done()
}

/// Nothing stands where memory will be captured.
pub(super) async fn prepare_memory(context: &Context<'_>, path: &Path) -> Performed {
    remove_unused(context, path).await
}

/// The memory image is complete and as long as it was, and can be read here: once the VM is stopped it is too late.
pub(super) async fn check_memory(context: &Context<'_>, path: &Path, bytes: u64) -> Performed {
    match context.host.images.memory_image(path).await {
        Ok(Some(actual)) if actual == bytes => check_readable(context, path).await,
        Ok(Some(actual)) => Performed::not_applied(HostError::BadImage {
            path: path.to_owned(),
            problem: format!("it has {actual} bytes, not {bytes}"),
        }),
        Ok(None) => Performed::not_applied(HostError::NoSuchImage(path.to_owned())),
        Err(error) => Performed::unknown(error),
    }
}

/// It may have been compressed on another node, or before a program was removed.
async fn check_readable(context: &Context<'_>, path: &Path) -> Performed {
    match context.host.images.memory_format(path).await {
        Ok(MemoryFormat::Raw) => return Performed::done(),
        Ok(MemoryFormat::Zstd) => {}
        Err(error) => return Performed::unknown(error),
    }
    match context.host.hypervisor.compression_blocker().await {
        Ok(None) => Performed::done(),
        Ok(Some(blocker)) => Performed::not_applied(HostError::Refused {
            call: "read compressed memory",
            cause: blocker.into(),
        }),
        Err(error) => Performed::unknown(error),
    }
}

/// A file of ours that never came into use is gone.
pub(super) async fn remove_unused(context: &Context<'_>, path: &Path) -> Performed {
    remove(context, &[DoomedImage { path: path.to_owned(), identity: None }]).await
}

/// The files are gone. One that the VM still reads, or whose definition names it, stays: whoever planned this was
/// wrong then.
pub(super) async fn remove(context: &Context<'_>, images: &[DoomedImage]) -> Performed {
    let paths: Vec<&Path> = images.iter().map(|image| image.path.as_path()).collect();
    if let Err(error) = context.check_not_elsewhere(&paths).await {
        return Performed::unknown(error);
    }
    // Also of one that went to another node: what it does not have there either can go.
    match context.engine.look_at_vm(context.vm()).await {
        Ok(view) => {
            let in_use = images.iter().find(|image| {
                view.disks.iter().any(|disk| {
                    disk.uses(&image.path) || disk.defined_with().any(|named| *named == image.path)
                }) || view.other_files.contains(&image.path)
            });
            if let Some(image) = in_use {
                return Performed::unknown(HostError::ImageInUse(image.path.clone()));
            }
        }
        Err(HostError::NoSuchVm(_)) => {}
        Err(error) => return Performed::unknown(error),
    }
    // Layers have an identity. What never came into use has none, and no other VM.
    let layers: Vec<&Path> =
        images.iter().filter(|image| image.identity.is_some()).map(|image| image.path.as_path()).collect();
    if let Err(error) = context.check_not_beside(&layers).await {
        return Performed::unknown(error);
    }
    for image in images {
        if let Err(error) = context.host.images.remove(image).await {
            return Performed::unknown(error);
        }
    }
    Performed::done()
}

/// A file that nothing needed when this was planned is gone. Meanwhile somebody may have come to need it.
pub(super) async fn remove_orphan(context: &Context<'_>, file: &DoomedImage) -> Performed {
    match context.store.with_layers_at(vec![file.path.clone()]).await {
        Ok(known) if known.is_empty() => {}
        Ok(_) => return Performed::not_applied(HostError::ImageInUse(file.path.clone())),
        Err(error) => return Performed::unknown(error),
    }
    let images = &context.host.images;
    let is_gone = || async {
        match images.inspect(&file.path, Format::Raw).await {
            Ok(_) => Ok(false),
            Err(HostError::NoSuchImage(_)) => Ok(true),
            Err(error) => Err(error),
        }
    };
    make_so(is_gone, || async {
        check_unneeded(context, file).await?;
        images.remove(file).await
    })
    .await
}

/// No VM has the file, no process has it open, no image lies on it, and nobody may do so who cannot be looked at.
async fn check_unneeded(context: &Context<'_>, file: &DoomedImage) -> Result<()> {
    let path = &file.path;
    let readers = Readers::look(context.host, context.store, context.places).await;
    let readers = readers.map_err(|error| match error {
        OpsError::Host(error) => error,
        error => HostError::Needed { path: path.clone(), why: error.to_string() },
    })?;
    if let Some(reader) = readers.of(path, file.identity) {
        return Err(HostError::Needed { path: path.clone(), why: reader.to_string() });
    }
    if context.host.images.is_in_use(path, Format::Raw).await? {
        return Err(HostError::ImageInUse(path.clone()));
    }
    Ok(())
}
