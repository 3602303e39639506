//! A plan in words, for people who look before they say yes. Decides only the words.

use crate::model::Step;
use crate::model::step::{CatalogChange, How, Merge};
use crate::model::vm::MemoryFormat;

/// One step in words: the imperative, one line.
#[must_use]
pub fn describe(step: &Step) -> String {
    match step {
        Step::ReserveSnapshot { .. } => "enter the snapshot into the catalog".to_owned(),
        Step::CreateOverlay(overlay) => {
            format!("make overlay {} for disk {}", overlay.path.display(), overlay.target)
        }
        Step::PrepareMemoryImage { path } => format!("make room for memory image {}", path.display()),
        Step::BeginMemoryImage { path, format, .. } => {
            format!("begin memory image {}{}", path.display(), describe_format(*format))
        }
        Step::PrepareCapture { .. } => "give QEMU the memory image".to_owned(),
        Step::PauseVm { .. } => "pause the VM".to_owned(),
        Step::CaptureMemory { .. } => "begin to capture memory, as it is now".to_owned(),
        Step::ProveCapture { .. } => "keep apart what the guest changes from now on".to_owned(),
        Step::ResumeVm => "resume the VM".to_owned(),
        Step::AwaitMemory { .. } => "write the memory while the VM runs".to_owned(),
        Step::FinishMemoryImage { path } => format!("complete memory image {}", path.display()),
        Step::CopyVariables { from, to } => {
            format!("copy UEFI variables {} to {}", from.display(), to.display())
        }
        Step::RestoreVariables { from, to, .. } => {
            format!("bring back UEFI variables {} from {}", to.display(), from.display())
        }
        Step::FlushImages { .. } => "write out what the guest has written so far".to_owned(),
        Step::Freeze(freeze) => match freeze.mount_points.as_slice() {
            [] => "freeze the guest's file systems".to_owned(),
            mount_points => format!("freeze {} in the guest", mount_points.join(", ")),
        },
        Step::SwitchDisks(switch) => {
            let disks: Vec<&str> = switch.disks.iter().map(|disk| disk.target.as_str()).collect();
            let memory = if switch.memory.is_some() { "capture memory and " } else { "" };
            format!("{memory}switch {} to the overlays, all at once", disks.join(", "))
        }
        Step::Thaw => "thaw the guest".to_owned(),
        Step::ConfirmQuiesce => "confirm that the guest stood still during the switch".to_owned(),
        Step::MarkDeleting { .. } => "mark the snapshot as being deleted".to_owned(),
        Step::Merge(merge) => {
            let merges: Vec<String> = merge.merges.iter().map(describe_merge).collect();
            merges.join(", ")
        }
        Step::RemoveImages { images } => {
            let paths: Vec<String> = images.iter().map(|image| image.path.display().to_string()).collect();
            format!("remove {}", paths.join(", "))
        }
        Step::RemoveOrphan { file } => {
            format!("remove {}, if nobody has come to need it", file.path.display())
        }
        Step::MarkReverting { .. } => "mark the snapshot as being reverted to".to_owned(),
        Step::CheckMemoryImage { path, .. } => format!("check memory image {}", path.display()),
        Step::Stop { .. } => "stop the VM".to_owned(),
        Step::PointDisks { disks } => {
            let disks: Vec<&str> = disks.iter().map(|disk| disk.target.as_str()).collect();
            format!("let the VM's definition name the overlays of {}", disks.join(", "))
        }
        Step::Start(start) => {
            let from = if start.from_memory.is_some() { "from its memory image" } else { "from its disks" };
            let paused = if start.paused { ", paused" } else { "" };
            format!("start the VM {from}{paused}")
        }
        Step::ReserveClones { clones } => format!("enter {} volumes into the catalog", clones.len()),
        Step::CopyImage(copy) => {
            format!("copy {} to {} for disk {}", copy.source.path.display(), copy.path.display(), copy.target)
        }
        Step::PublishImage { from, to } => format!("rename {} to {}", from.display(), to.display()),
        Step::LinkImage { from, to } => format!("let {} be known as {}, too", from.display(), to.display()),
        Step::ReplaceImage { from, to } => {
            format!("let {} take the place of {}", from.display(), to.display())
        }
        Step::CheckUnwritten { image } => format!("check that nobody writes to {}", image.path.display()),
        Step::CheckUnused { image } => format!("check that nobody has {} open", image.path.display()),
        Step::FlattenImage { image } => {
            format!("copy into {} all that it reads from others", image.path.display())
        }
        Step::DefineVm(new) => format!("define VM {}", new.name),
        Step::StartNewVm { paused, .. } => {
            let paused = if *paused { ", paused" } else { "" };
            format!("start the new VM{paused}")
        }
        Step::Record(CatalogChange::ClonesMade { .. }) => "record the volumes as complete".to_owned(),
        Step::Record(CatalogChange::CloneFlattened { .. }) => {
            "record that the volume stands alone".to_owned()
        }
        Step::Record(CatalogChange::CloneDeleted { .. }) => "record that the volume is gone".to_owned(),
        Step::Record(CatalogChange::SnapshotTaken { .. }) => "record the snapshot as READY".to_owned(),
        Step::Record(CatalogChange::SnapshotReverted { .. }) => "record the revert".to_owned(),
        Step::Record(CatalogChange::ChainAdopted { volumes, .. }) => {
            let targets: Vec<&str> = volumes.iter().map(|volume| volume.target.as_str()).collect();
            format!("record what {} reads through", targets.join(", "))
        }
        Step::Record(CatalogChange::SnapshotsLost { snapshots, .. }) => {
            format!("record {} snapshots as LOST", snapshots.len())
        }
        Step::Record(CatalogChange::FileAdopted { .. }) => "record which file it is".to_owned(),
        Step::Record(CatalogChange::DiskSetAside { .. }) => "record that the disk was taken away".to_owned(),
        Step::Record(CatalogChange::LayersMerged { .. }) => "record the merge".to_owned(),
        Step::Record(CatalogChange::SnapshotsDeleted { snapshots, .. }) if snapshots.is_empty() => {
            "record the removal".to_owned()
        }
        Step::Record(CatalogChange::SnapshotsDeleted { .. }) => "record the deletion".to_owned(),
    }
}

fn describe_format(format: MemoryFormat) -> &'static str {
    match format {
        MemoryFormat::Raw => "",
        MemoryFormat::Zstd => ", compressed with zstd",
    }
}

fn describe_merge(merge: &Merge) -> String {
    let between = match merge.between.len() {
        0 => String::new(),
        1 => " and the layer below it".to_owned(),
        several => format!(" and the {several} layers below it"),
    };
    let (child, base) = (merge.child.path.display(), merge.base.path.display());
    match merge.how {
        How::Commit { .. } => format!("merge {child}{between} into {base} (disk {})", merge.target),
        How::Supersede { .. } => {
            format!("merge {child}{between} into {base}, which takes its place")
        }
        How::Pull { .. } => {
            let between = between.replace("below", "above");
            format!("pull {base}{between} up into {child} (disk {})", merge.target)
        }
    }
}
