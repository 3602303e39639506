//! Gathers what a lost catalog is made anew from: manifests, image headers, memory images, VMs. Decides nothing.
//!
//! What cannot be read is left out, or told with the reason: one bad file must not hide all others.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::Result;
use crate::host::{Host, HostError};
use crate::model::manifest::{self, Manifest};
use crate::model::operation::causes;
use crate::model::vm::{DiskView, Format};
use crate::plan::rebuild::Evidence;
use crate::plan::{Places, is_manifest};

/// All that can be found in the configured places, in `more`, beside the disks of VMs, and wherever that leads to.
pub async fn gather(host: &Host, places: &Places, more: &[PathBuf]) -> Result<Evidence> {
    let mut evidence = Evidence::default();
    look_at_vms(host, &mut evidence).await?;
    let of_vms = evidence.vms.iter().flat_map(|vm| &vm.disks).flat_map(DiskView::chain);
    let mut next: BTreeSet<PathBuf> = of_vms.filter_map(|image| directory(&image.path)).collect();
    next.extend(places.images.iter().chain(more).cloned());
    next.extend(places.overlays.iter().chain([&places.memory]).cloned());
    let mut searched = BTreeSet::new();
    while let Some(place) = next.pop_first() {
        if searched.insert(place.clone()) {
            next.extend(search(host, &place, &mut evidence).await);
        }
    }
    inspect_images(host, &mut evidence).await;
    measure(host, &mut evidence).await?;
    Ok(evidence)
}

async fn look_at_vms(host: &Host, evidence: &mut Evidence) -> Result<()> {
    for vm in host.hypervisor.vms().await? {
        match host.hypervisor.observe(vm.id).await {
            Ok(view) => evidence.vms.push(view),
            Err(HostError::NoSuchVm(_)) => {}
            Err(error @ HostError::Unreachable(_)) => return Err(error.into()),
            Err(error) => drop(evidence.unseen.insert(vm.id, words(&error))),
        }
    }
    Ok(())
}

/// Reads the manifests of a directory. Gives the directories that they lead to.
async fn search(host: &Host, place: &Path, evidence: &mut Evidence) -> BTreeSet<PathBuf> {
    let files = match host.images.list(place).await {
        Ok(files) => files,
        Err(HostError::NoSuchImage(_)) => Vec::new(),
        Err(error) => {
            evidence.rejected.push((place.to_owned(), words(&error)));
            Vec::new()
        }
    };
    let mut further = BTreeSet::new();
    for path in files.into_iter().filter(|path| is_manifest(path)) {
        let read = host.images.read_file(&path, manifest::LARGEST).await.map_err(|error| words(&error));
        let decoded = read.and_then(|bytes| Manifest::decode(&bytes).map_err(|error| words(&error)));
        match decoded {
            Ok(manifest) => {
                further.extend(images_of(&manifest).filter_map(|(path, _)| directory(path)));
                evidence.manifests.push((path, manifest));
            }
            Err(why) => evidence.rejected.push((path, why)),
        }
    }
    further
}

/// The images that a manifest names, and what each is to be read as.
fn images_of(manifest: &Manifest) -> Box<dyn Iterator<Item = (&PathBuf, Format)> + Send + '_> {
    let layers = manifest.layers().iter().map(|layer| (&layer.path, layer.format));
    match manifest {
        Manifest::Snapshot(of) => {
            let active = of.active.iter().map(|layer| (&layer.path, layer.format));
            Box::new(layers.chain(active).chain(of.image.iter().map(|path| (path, Format::Qcow2))))
        }
        Manifest::Clone(of) => Box::new(layers.chain([(&of.clone.path, Format::Qcow2)])),
    }
}

/// The images of manifests and of VMs, and all that they lie on.
async fn inspect_images(host: &Host, evidence: &mut Evidence) {
    let of_vms = evidence.vms.iter().flat_map(|vm| &vm.disks).flat_map(DiskView::chain);
    let mut wanted: HashMap<PathBuf, Format> =
        of_vms.map(|image| (image.path.clone(), image.format)).collect();
    let told = evidence.manifests.iter().flat_map(|(_, manifest)| images_of(manifest));
    wanted.extend(told.map(|(path, format)| (path.clone(), format)));
    let mut looked_at = BTreeSet::new();
    let mut next: Vec<(PathBuf, Format)> = wanted.into_iter().collect();
    while let Some((path, format)) = next.pop() {
        if !looked_at.insert(path.clone()) {
            continue;
        }
        match host.images.inspect(&path, format).await {
            Ok(facts) => {
                let below = facts.backing.clone();
                next.extend(below.map(|below| (below.path, below.format.unwrap_or(Format::Raw))));
                evidence.images.insert(path, facts);
            }
            Err(HostError::NoSuchImage(_)) => {}
            Err(error) => evidence.rejected.push((path, words(&error))),
        }
    }
}

/// What else belongs to snapshots.
async fn measure(host: &Host, evidence: &mut Evidence) -> Result<()> {
    for (_, manifest) in &evidence.manifests {
        let Manifest::Snapshot(of) = manifest else { continue };
        if let Some(memory) = &of.snapshot.memory
            && let Ok(Some(bytes)) = host.images.memory_image(&memory.path).await
        {
            evidence.memory_images.insert(memory.path.clone(), bytes);
        }
        if let Some(kept) = &of.snapshot.variables
            && let Ok(facts) = host.images.inspect(&kept.path, Format::Raw).await
        {
            evidence.variables.insert(kept.path.clone(), facts.virtual_size);
        }
    }
    Ok(())
}

/// Where a file lies. Nothing is searched for among devices.
fn directory(path: &Path) -> Option<PathBuf> {
    path.parent().filter(|directory| !directory.starts_with("/dev")).map(Path::to_owned)
}

fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = causes(error);
    words.insert(0, error.to_string());
    words.join(": ")
}
