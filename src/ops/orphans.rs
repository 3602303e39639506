//! Files that we made, by their names, and that nobody needs. They are told, and removed only when somebody asks.
//!
//! Decides what the catalog needs. Leaves who else reads a file to `readers`. Must never take a file that is being made for one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::readers::{self, Readers};
use super::{Engine, Inner, OpsError, Result, detached, observe};
use crate::host::{HostError, unfinished};
use crate::model::vm::{FileIdentity, Format};
use crate::model::{Difference, LayerTree, VmId, VmView, VolumeId};
use crate::plan::{self, FileReader, World};

impl Engine {
    /// The orphans of the node.
    ///
    /// First the files, then whether anything is under way, then who needs them: a file that is seen is then in the catalog,
    /// or an operation that makes it is open, or it is nobody's.
    pub(super) async fn orphans(&self) -> Result<Vec<Difference>> {
        let Inner { host, store, places, .. } = &*self.0;
        let images = &*host.images;
        let (mut files, _) = readers::list(images, &readers::directories(store, places).await?).await;
        files.retain(|path| plan::is_named_by_us(path));
        if files.is_empty() || !store.open_operations().await?.is_empty() {
            return Ok(Vec::new());
        }
        let needed = self.needed().await?;
        files.retain(|path| !needed.contains(path));
        if files.is_empty() {
            return Ok(Vec::new());
        }
        // A directory may have two names.
        let needed: BTreeSet<FileIdentity> =
            readers::identities(images, needed).await.into_values().collect();
        let identities = readers::identities(images, files.clone()).await;
        files.retain(|path| identities.get(path).is_none_or(|identity| !needed.contains(identity)));
        // A VM that cannot be looked at may have anything: then nothing can be said.
        let readers = match Readers::look(host, store, places).await {
            Err(OpsError::Host(error)) if !matches!(error, HostError::Unreachable(_)) => {
                return Ok(Vec::new());
            }
            readers => readers?,
        };
        // It may be from before a backup that the catalog was restored from, and tell of the others.
        let manifest = files.iter().find(|path| plan::is_manifest(path)).map(PathBuf::as_path);
        let told = files.iter().filter_map(|path| match readers.of(path, identities.get(path).copied()) {
            // It is a disk of somebody's.
            Some(FileReader::Vm(_)) => None,
            reader => Some(plan::orphan(path, reader.as_ref(), manifest)),
        });
        Ok(told.collect())
    }

    /// What the catalog needs.
    async fn needed(&self) -> Result<BTreeSet<PathBuf>> {
        let store = &self.0.store;
        let mut needed: BTreeSet<PathBuf> = BTreeSet::new();
        for vm in store.vms().await? {
            needed.extend(files_of(&store.tree(vm).await?));
        }
        needed.extend(store.clones().await?.into_iter().map(|clone| clone.path));
        for path in store.manifest_places().await? {
            needed.extend([unfinished(&path), path]);
        }
        Ok(needed)
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
}

fn files_of(tree: &LayerTree) -> impl Iterator<Item = PathBuf> {
    let layers = tree.layers.values().map(|layer| layer.path.clone());
    let kept = tree.snapshots.iter().flat_map(|snapshot| {
        let memory = snapshot.memory.iter().map(|memory| memory.path.clone());
        memory.chain(snapshot.variables.iter().map(|variables| variables.path.clone()))
    });
    layers.chain(kept)
}
