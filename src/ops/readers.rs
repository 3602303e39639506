//! Who reads which files: VMs, because a definition names them; images, because their headers do, whoever made them and
//! whatever they are called.
//!
//! Decides where to look, and that what cannot be looked at may read anything. Leaves what becomes of a file to whoever asks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Result;
use crate::host::{Host, HostError, Images};
use crate::model::operation::causes;
use crate::model::vm::{DiskView, FileIdentity, Format};
use crate::model::{LayerTree, VmView};
use crate::plan::{FileReader, Places};
use crate::store::Store;

/// What images lie on.
#[derive(Default)]
pub(super) struct Headers {
    /// By image, the file right below it.
    pub(super) below: BTreeMap<PathBuf, PathBuf>,
    /// Images and directories that cannot be looked at, and why.
    pub(super) unreadable: BTreeMap<PathBuf, String>,
}

impl Headers {
    /// Follows the headers of these images down to where they end. `raw` are known to be read as they are: what a guest has
    /// written into one is no header.
    pub(super) async fn follow(
        images: &dyn Images,
        starts: BTreeSet<PathBuf>,
        raw: &BTreeSet<PathBuf>,
    ) -> Self {
        let mut headers = Self::default();
        let mut looked_at = raw.clone();
        let mut next: Vec<PathBuf> = starts.into_iter().collect();
        while let Some(path) = next.pop() {
            if !looked_at.insert(path.clone()) {
                continue;
            }
            match images.lies_on(&path).await {
                Ok(Some(below)) => {
                    next.push(below.clone());
                    headers.below.insert(path, below);
                }
                // It went meanwhile, or is only named: a file that is not there reads nothing.
                Ok(None) | Err(HostError::NoSuchImage(_)) => {}
                Err(error) => headers.note_unreadable(path, &error),
            }
        }
        headers
    }

    /// An image and all that it lies on.
    pub(super) fn chain<'a>(&'a self, start: &'a Path) -> impl Iterator<Item = &'a Path> {
        // One that goes round in circles comes to an end, too.
        let chain = std::iter::successors(Some(start), |path| Some(self.below.get(*path)?.as_path()));
        chain.take(self.below.len() + 1)
    }

    fn note_unreadable(&mut self, path: PathBuf, error: &HostError) {
        let mut words = vec![error.to_string()];
        words.extend(causes(error));
        self.unreadable.insert(path, words.join(": "));
    }
}

/// All who read a file, or may.
pub(super) struct Readers {
    /// What VMs have, and the VM.
    named: BTreeMap<PathBuf, String>,
    headers: Headers,
    /// Of what VMs have and images lie on: a file may have several names.
    identities: BTreeMap<PathBuf, FileIdentity>,
    /// VMs that may have any file, in words.
    vague: Vec<String>,
}

impl Readers {
    /// Looks at all VMs and at all images where there may be some. An error if a VM cannot be looked at: it may
    /// have any file.
    pub(super) async fn look(host: &Host, store: &Store, places: &Places) -> Result<Self> {
        let (mut named, mut vague, mut raw) = (BTreeMap::new(), Vec::new(), raw_layers(store).await?);
        for vm in host.hypervisor.vms().await? {
            let view = match host.hypervisor.observe(vm.id).await {
                Err(HostError::NoSuchVm(_)) => continue,
                view => view?,
            };
            named.extend(view.files().map(|path| (path.clone(), view.name.clone())));
            vague.extend(vagueness(&view));
            raw.extend(raw_images(&view));
        }
        let mut directories = directories(store, places).await?;
        directories.extend(named.keys().filter_map(|path| Some(path.parent()?.to_owned())));
        let (mut starts, unlisted) = list(&*host.images, &directories).await;
        starts.extend(named.keys().cloned());
        let mut headers = Headers::follow(&*host.images, starts, &raw).await;
        for (directory, error) in unlisted {
            headers.note_unreadable(directory, &error);
        }
        let others = named.keys().chain(headers.below.values()).cloned().collect();
        let identities = identities(&*host.images, others).await;
        Ok(Self { named, headers, identities, vague })
    }

    /// Somebody who reads a file, or may. `identity` is that of the file, if it is there.
    pub(super) fn of(&self, path: &Path, identity: Option<FileIdentity>) -> Option<FileReader> {
        let is_it = |name: &Path| {
            name == path || (identity.is_some() && self.identities.get(name).copied() == identity)
        };
        if let Some((_, vm)) = self.named.iter().find(|(name, _)| is_it(name)) {
            return Some(FileReader::Vm(vm.clone()));
        }
        if let Some((image, _)) =
            self.headers.below.iter().find(|(image, below)| *image != path && is_it(below))
        {
            return Some(FileReader::Image(image.clone()));
        }
        // What cannot be read does not lie on itself.
        let mut unreadable = self.headers.unreadable.iter().filter(|(image, _)| *image != path);
        let why = unreadable.next().map(|(_, why)| why).or_else(|| self.vague.first())?;
        Some(FileReader::Unknown(why.clone()))
    }
}

/// Why a VM that is seen may have files that are not.
fn vagueness(view: &VmView) -> impl Iterator<Item = String> {
    let name = &view.name;
    let unnamed = view.unnamed_disks.iter();
    let unnamed = unnamed
        .map(move |disk| format!("disk {disk} of VM {name} is a volume of a pool, which is not looked at"));
    let saved = view.has_managed_save.then(|| {
        format!("VM {name} is saved with its memory, and goes on with the disks that it had then, which cannot be seen")
    });
    unnamed.chain(saved)
}

/// Images of a VM that are read as they are.
pub(super) fn raw_images(view: &VmView) -> impl Iterator<Item = PathBuf> {
    let images = view.disks.iter().flat_map(DiskView::chain);
    images.filter(|image| image.format == Format::Raw).map(|image| image.path.clone())
}

/// Layers that are read as they are.
pub(super) async fn raw_layers(store: &Store) -> Result<BTreeSet<PathBuf>> {
    let mut raw = BTreeSet::new();
    for vm in store.vms().await? {
        let tree = store.tree(vm).await?;
        let layers = tree.layers.into_values().filter(|layer| layer.format == Format::Raw);
        raw.extend(layers.map(|layer| layer.path));
    }
    Ok(raw)
}

/// The files in these directories, and which cannot be listed.
pub(super) async fn list(
    images: &dyn Images,
    directories: &BTreeSet<PathBuf>,
) -> (BTreeSet<PathBuf>, Vec<(PathBuf, HostError)>) {
    let (mut files, mut unlisted) = (BTreeSet::new(), Vec::new());
    for directory in directories {
        match images.list(directory).await {
            Ok(found) => files.extend(found),
            Err(HostError::NoSuchImage(_)) => {}
            Err(error) => unlisted.push((directory.clone(), error)),
        }
    }
    (files, unlisted)
}

/// Which files these are. One that cannot be looked at is none.
pub(super) async fn identities(
    images: &dyn Images,
    paths: BTreeSet<PathBuf>,
) -> BTreeMap<PathBuf, FileIdentity> {
    let mut identities = BTreeMap::new();
    for path in paths {
        if let Ok(facts) = images.inspect(&path, Format::Raw).await {
            identities.insert(path, facts.identity);
        }
    }
    identities
}

/// Where files of ours may be.
pub(super) async fn directories(store: &Store, places: &Places) -> Result<BTreeSet<PathBuf>> {
    let mut directories: BTreeSet<PathBuf> = places.images.iter().cloned().collect();
    directories.insert(places.memory.clone());
    directories.extend(places.overlays.clone());
    for vm in store.vms().await? {
        directories.extend(directories_of(&store.tree(vm).await?));
    }
    Ok(directories)
}

/// Where the layers of a tree are.
fn directories_of(tree: &LayerTree) -> impl Iterator<Item = PathBuf> {
    tree.layers.values().filter_map(|layer| Some(layer.path.parent()?.to_owned()))
}
