//! Gathers the view of the world that a plan looks at. Decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::host::{Host, HostError};
use crate::model::vm::{DiskView, Format, ImageFacts};
use crate::model::{LayerTree, Snapshot, SnapshotState, VmId, VmView, VolumeId};
use crate::plan::World;

use super::{Engine, Inner, OpsError, detached};

/// The world as far as `vm` is concerned. `image`: of a volume that no VM has, and that the catalog may not know.
pub(super) async fn observe(engine: &Engine, vm: VmId, image: Option<&Path>) -> Result<World, OpsError> {
    let Inner { host, store, places, .. } = &*engine.0;
    let tree = store.tree(vm).await?;
    let view = match tree.detached_image().map(|layer| &*layer.path).or(image) {
        Some(path) => detached::look(host, store, VolumeId(vm.0), path).await?,
        None => match (engine.look_at_vm(vm).await, name_of_lost(&tree)) {
            (Err(HostError::NoSuchVm(_)), Some(name)) => VmView::of_gone(vm, name),
            (seen, _) => seen?,
        },
    };
    let (images, damaged) = inspect_all(host, &view, &tree).await?;
    let memory_images = measure_memory_images(host, &tree).await?;
    let variables = measure_variables(host, &view, &tree).await?;
    let mut directories: BTreeSet<&Path> = images.keys().filter_map(|path| path.parent()).collect();
    directories.insert(&places.memory);
    directories.extend(places.overlays.as_deref());
    directories.extend(places.images.iter().map(PathBuf::as_path));
    let mut free_space = HashMap::new();
    for directory in directories {
        // A directory that cannot be asked is found out when it is written to.
        if let Ok(free) = host.images.free_space(directory).await {
            free_space.insert(directory.to_owned(), free);
        }
    }
    let volumes = store.volumes_without_vm().await?.into_iter().collect();
    Ok(World { images, damaged, memory_images, variables, volumes, free_space, ..unseen(engine, view, tree) })
}

/// The world of a VM of which no image can be seen.
pub(super) fn unseen(engine: &Engine, view: VmView, tree: LayerTree) -> World {
    World {
        vm: view,
        tree,
        images: HashMap::new(),
        damaged: BTreeMap::new(),
        memory_images: HashMap::new(),
        variables: HashMap::new(),
        volumes: HashMap::new(),
        users: Vec::new(),
        clone_tree: None,
        free_space: HashMap::new(),
        measured: HashMap::new(),
        places: engine.0.places.clone(),
        background_blocker: None,
        memory_compression: engine.0.memory_compression,
        compression_blocker: None,
        live_pulls: engine.0.live_pulls,
        now: Timestamp::now(),
    }
}

/// The name of a VM that has left, if its snapshots say that it has: one is LOST, or none is left that could be.
fn name_of_lost(tree: &LayerTree) -> Option<String> {
    let snapshots = &tree.snapshots;
    let lost = snapshots.iter().find(|snapshot| snapshot.state == SnapshotState::Lost);
    let is_error = |snapshot: &Snapshot| snapshot.state == SnapshotState::Error;
    let first = snapshots.first().filter(|_| snapshots.iter().all(is_error));
    lost.or(first).map(|snapshot| snapshot.vm_name.clone())
}

/// The images of the VM and of the catalog, and those that are damaged. One that is not there is left out: the plan tells what
/// that means. What the VM reads has to be as it should: else nothing is known of it.
async fn inspect_all(
    host: &Host,
    view: &VmView,
    tree: &LayerTree,
) -> Result<(HashMap<PathBuf, ImageFacts>, BTreeMap<PathBuf, String>), OpsError> {
    let of_vm: BTreeMap<&PathBuf, Format> =
        view.disks.iter().flat_map(DiskView::chain).map(|image| (&image.path, image.format)).collect();
    let layers = tree.layers.values().map(|layer| (&layer.path, layer.format));
    let clones = tree.clones.iter().map(|clone| (&clone.path, Format::Qcow2));
    let of_catalog = layers.chain(clones);
    let wanted: BTreeMap<&PathBuf, Format> = of_catalog.chain(of_vm.clone()).collect();
    let (mut images, mut damaged) = (HashMap::new(), BTreeMap::new());
    for (path, format) in wanted {
        match host.images.inspect(path, format).await {
            Ok(facts) => drop(images.insert(path.clone(), facts)),
            Err(HostError::NoSuchImage(_)) => {}
            Err(HostError::BadImage { problem, .. }) if !of_vm.contains_key(path) => {
                damaged.insert(path.clone(), problem);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((images, damaged))
}

async fn measure_memory_images(host: &Host, tree: &LayerTree) -> Result<HashMap<PathBuf, u64>, OpsError> {
    let mut sizes = HashMap::new();
    for memory in tree.snapshots.iter().filter_map(|snapshot| snapshot.memory.as_ref()) {
        if let Some(bytes) = host.images.memory_image(&memory.path).await? {
            sizes.insert(memory.path.clone(), bytes);
        }
    }
    Ok(sizes)
}

/// Files of UEFI variables are small: their size and their presence say enough.
async fn measure_variables(
    host: &Host,
    view: &VmView,
    tree: &LayerTree,
) -> Result<HashMap<PathBuf, u64>, OpsError> {
    let kept = tree.snapshots.iter().filter_map(|snapshot| snapshot.variables.as_ref());
    let kept = kept.map(|variables| &variables.path);
    let mut sizes = HashMap::new();
    for path in kept.chain(view.variables.iter().map(|file| &file.path)) {
        match host.images.inspect(path, Format::Raw).await {
            Ok(facts) => drop(sizes.insert(path.clone(), facts.virtual_size)),
            Err(HostError::NoSuchImage(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sizes)
}
