//! Files that we made, by their names, and that nobody needs. They are told, and removed only when somebody asks.
//!
//! Decides where to look and who may need one. Must never take a file that is being made for one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Engine, OpsError, Result, detached, observe};
use crate::host::{HostError, unfinished};
use crate::model::vm::{DiskSource, DiskView, FileIdentity, Format};
use crate::model::{Difference, LayerTree, VmId, VmView, VolumeId};
use crate::plan::{self, World};

impl Engine {
    /// The orphans of the node.
    ///
    /// First the files, then whether anything is under way, then who needs them: a file that is seen is then in the catalog,
    /// or an operation that makes it is open, or it is nobody's.
    pub(super) async fn orphans(&self) -> Result<Vec<Difference>> {
        let mut all: BTreeSet<PathBuf> = BTreeSet::new();
        for directory in self.directories_of_files().await? {
            all.extend(self.0.host.images.list(&directory).await.unwrap_or_default());
        }
        let mut files: BTreeSet<&PathBuf> = all.iter().filter(|path| plan::is_named_by_us(path)).collect();
        if files.is_empty() || !self.0.store.open_operations().await?.is_empty() {
            return Ok(Vec::new());
        }
        let mut needed: BTreeSet<PathBuf> = BTreeSet::new();
        for vm in self.0.store.vms().await? {
            needed.extend(files_of(&self.0.store.tree(vm).await?));
        }
        needed.extend(self.0.store.clones().await?.into_iter().map(|clone| clone.path));
        for path in self.0.store.manifest_places().await? {
            needed.extend([unfinished(&path), path]);
        }
        for vm in self.vms().await? {
            // One that cannot be looked at may read anything: then nothing can be said.
            let Ok(view) = self.0.host.hypervisor.observe(vm.id).await else { return Ok(Vec::new()) };
            let named = view.disks.iter().filter_map(|disk| match &disk.source {
                DiskSource::Chain { persistent, .. } => persistent.as_ref(),
                DiskSource::Excluded(_) | DiskSource::Refused(_) => None,
            });
            let variables = view.variables.iter().map(|file| &file.path);
            let read = view.disks.iter().flat_map(DiskView::chain).map(|image| &image.path);
            needed.extend(named.chain(variables).chain(read).cloned());
        }
        files.retain(|path| !needed.contains(*path));
        if files.is_empty() {
            return Ok(Vec::new());
        }
        // A directory may have two names.
        let needed = self.identities(needed.iter()).await;
        let same = self.identities(files.iter().copied()).await;
        let known: BTreeSet<&FileIdentity> = needed.values().collect();
        files.retain(|path| same.get(*path).is_none_or(|identity| !known.contains(identity)));
        let readers = self.read_by_images(&all).await;
        // It may be from before a backup that the catalog was restored from, and tell of the others.
        let manifest = files.iter().find(|path| plan::is_manifest(path)).map(|path| path.as_path());
        Ok(files
            .iter()
            .map(|path| plan::orphan(path, readers.get(*path).map(PathBuf::as_path), manifest))
            .collect())
    }

    /// Which files these are. One that is not there is none.
    async fn identities<'a>(
        &self,
        paths: impl Iterator<Item = &'a PathBuf> + Send,
    ) -> BTreeMap<&'a PathBuf, FileIdentity> {
        let mut identities = BTreeMap::new();
        for path in paths {
            if let Ok(facts) = self.0.host.images.inspect(path, Format::Raw).await {
                identities.insert(path, facts.identity);
            }
        }
        identities
    }

    /// What images lie on, whoever made them, and one that lies on each.
    async fn read_by_images(&self, files: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, PathBuf> {
        let mut readers = BTreeMap::new();
        for path in files {
            // What is no image lies on nothing.
            if let Ok(facts) = self.0.host.images.inspect(path, Format::Qcow2).await
                && let Some(backing) = facts.backing
            {
                readers.insert(backing.path, path.clone());
            }
        }
        readers
    }

    /// An orphan, looked at as a volume that no VM has and that the catalog does not know; with all orphans there are.
    pub(super) async fn look_at_orphan(&self, path: &Path) -> Result<(World, Vec<Difference>)> {
        let found = self.orphans_or_busy().await?;
        let volume = VolumeId::of_image(path);
        let view = VmView::of_detached(volume, detached::name(path, None), Vec::new());
        let mut world = observe::unseen(self, view, LayerTree::empty(VmId::of_detached(volume)));
        match self.0.host.images.inspect(path, Format::Raw).await {
            Ok(facts) => drop(world.images.insert(path.to_owned(), facts)),
            Err(HostError::NoSuchImage(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok((world, found))
    }

    /// As long as anything is under way, nobody can tell which files are orphans.
    pub(super) async fn orphans_or_busy(&self) -> Result<Vec<Difference>> {
        match self.0.store.open_operations().await?.first() {
            Some(open) => Err(OpsError::VmBusy(open.id)),
            None => self.orphans().await,
        }
    }

    /// Where files of ours may be.
    pub(super) async fn directories_of_files(&self) -> Result<BTreeSet<PathBuf>> {
        let places = &self.0.places;
        let mut directories: BTreeSet<PathBuf> = places.images.iter().cloned().collect();
        directories.insert(places.memory.clone());
        directories.extend(places.overlays.clone());
        for vm in self.0.store.vms().await? {
            let tree = self.0.store.tree(vm).await?;
            directories
                .extend(tree.layers.values().filter_map(|layer| Some(layer.path.parent()?.to_owned())));
        }
        Ok(directories)
    }
}

fn files_of(tree: &LayerTree) -> impl Iterator<Item = PathBuf> {
    let layers = tree.layers.values().map(|layer| layer.path.clone());
    let kept = tree.snapshots.iter().flat_map(|snapshot| {
        let memory = snapshot.memory.iter().map(|memory| memory.path.clone());
        memory.chain(snapshot.variables.iter().map(|variables| variables.path.clone()))
    });
    layers.chain(kept)
}
