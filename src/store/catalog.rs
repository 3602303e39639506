//! Snapshots, volumes and layers: read as the tree of one VM, changed by the rules of `model`, written back whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Prepared, Result, Store, clone, event, from_json, manifest, parse, snapshot, to_json};
use crate::model::edit::EditRefusal;
use crate::model::event::{Cause, of_snapshot, of_tree};
use crate::model::step::CatalogChange;
use crate::model::vm::Seen;
use crate::model::{Findings, Layer, LayerId, LayerTree, Snapshot, SnapshotId, SnapshotState, VmId, Volume};

impl Store {
    /// What is known of a VM; an empty tree if nothing is.
    pub async fn tree(&self, vm: VmId) -> Result<LayerTree> {
        self.read(move |transaction| read_tree(transaction, vm)).await
    }

    /// The VMs that have layers in the catalog.
    pub async fn vms(&self) -> Result<Vec<VmId>> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT DISTINCT vm FROM layer")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| super::parse(&row?, "VM id")).collect()
        })
        .await
    }

    /// The VMs, and what stands for one, that have snapshots under this name of theirs.
    pub async fn snapshotted_as(&self, vm_name: String) -> Result<Vec<VmId>> {
        self.read(move |transaction| {
            let mut statement =
                transaction.prepare_cached("SELECT DISTINCT vm FROM snapshot WHERE vm_name = ?")?;
            let rows = statement.query_map([vm_name], |row| row.get::<_, String>(0))?;
            rows.map(|row| parse(&row?, "VM id")).collect()
        })
        .await
    }

    /// One snapshot.
    pub async fn snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>> {
        self.read(move |transaction| snapshot::read(transaction, id)).await
    }

    /// The definition that was stored with a snapshot.
    pub async fn definition(&self, id: SnapshotId) -> Result<Option<String>> {
        self.read(move |transaction| snapshot::read_definition(transaction, id)).await
    }

    /// Keeps another definition with a snapshot that is being made.
    pub async fn keep_definition(&self, id: SnapshotId, definition: String) -> Result<()> {
        self.transact(move |transaction| snapshot::write_definition(transaction, id, &definition)).await
    }

    /// Lets a change of a step be so.
    pub async fn apply(
        &self,
        vm: VmId,
        change: CatalogChange,
        findings: Findings,
        cause: Cause,
    ) -> Result<()> {
        self.transact(move |transaction| {
            for vm in concerned(transaction, vm, &change)? {
                let before = read_tree(transaction, vm)?;
                let mut tree = before.clone();
                tree.apply(&change, &findings);
                write_tree(transaction, &before, &tree)?;
                event::insert_all(transaction, of_tree(&before, &tree, &cause))?;
            }
            Ok(())
        })
        .await
    }

    /// The VMs, and what stands for one, whose trees have a layer at one of these paths.
    pub async fn with_layers_at(&self, paths: Vec<PathBuf>) -> Result<BTreeSet<VmId>> {
        self.transact(move |transaction| with_layers_at(transaction, paths.iter().map(PathBuf::as_path)))
            .await
    }

    /// Puts a snapshot into a state. One that is not there stays so.
    pub async fn set_state(&self, id: SnapshotId, state: SnapshotState, cause: Cause) -> Result<()> {
        self.transact(move |transaction| set_state(transaction, id, state, &cause, |_| Ok(()))).await
    }

    /// The snapshot is being deleted, unless it is held; with `is_expired`, unless its time is yet to come. Both may have
    /// changed since that was planned.
    pub async fn mark_deleting(&self, id: SnapshotId, is_expired: bool, cause: Cause) -> Result<()> {
        self.transact(move |transaction| {
            let may_go = |snapshot: &Snapshot| {
                snapshot.check_not_held()?;
                if is_expired { snapshot.check_expired(cause.at) } else { Ok(()) }
            };
            set_state(transaction, id, SnapshotState::Deleting, &cause, may_go)
        })
        .await
    }

    /// Notes how the files of layers are.
    pub async fn remember(&self, vm: VmId, seen: Vec<(LayerId, Seen)>) -> Result<()> {
        self.transact(move |transaction| {
            let before = read_tree(transaction, vm)?;
            let mut tree = before.clone();
            tree.remember(&seen);
            write_tree(transaction, &before, &tree)
        })
        .await
    }

    /// Images are about to be written to: how they are is not known until somebody looks again.
    pub async fn forget_seen(&self, paths: Vec<PathBuf>) -> Result<()> {
        self.transact(move |transaction| {
            for vm in with_layers_at(transaction, paths.iter().map(PathBuf::as_path))? {
                let before = read_tree(transaction, vm)?;
                let mut tree = before.clone();
                for layer in tree.layers.values_mut().filter(|layer| paths.contains(&layer.path)) {
                    layer.seen = None;
                }
                write_tree(transaction, &before, &tree)?;
            }
            Ok(())
        })
        .await
    }

    /// Takes a reservation back.
    pub async fn forget_reservation(&self, id: SnapshotId, cause: Cause) -> Result<()> {
        self.transact(move |transaction| {
            let reserved = snapshot::read(transaction, id)?;
            let Some(reserved) = reserved.filter(|found| found.state == SnapshotState::Creating) else {
                return Ok(());
            };
            transaction.run("DELETE FROM snapshot WHERE id = ?", [id.to_string()])?;
            // It has none yet.
            transaction.run("DELETE FROM manifest WHERE id = ?", [id.to_string()])?;
            event::insert_all(transaction, of_snapshot(Some(&reserved), None, &cause))
        })
        .await
    }
}

pub(super) fn read_tree(transaction: &Transaction<'_>, vm: VmId) -> Result<LayerTree> {
    let key = vm.to_string();
    let current: Option<Option<String>> =
        transaction.row("SELECT current FROM vm WHERE id = ?", [&key], |row| row.get(0)).optional()?;
    let current = current.flatten().map(|id| parse(&id, "snapshot id")).transpose()?;

    let mut statement =
        transaction.prepare_cached("SELECT id, target, active FROM volume WHERE vm = ? ORDER BY target")?;
    let rows = statement.query_map([&key], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
    })?;
    let mut volumes = Vec::new();
    for row in rows {
        let (id, target, active) = row?;
        volumes.push(Volume {
            id: parse(&id, "volume id")?,
            target: parse(&target, "disk target")?,
            active: parse(&active, "layer id")?,
        });
    }

    let mut layers = BTreeMap::new();
    for body in bodies(transaction, "SELECT body FROM layer WHERE vm = ?", &key)? {
        let layer: Layer = from_json(&body, "layer")?;
        layers.insert(layer.id, layer);
    }
    let snapshots = snapshot::read_of_vm(transaction, vm)?;
    let clones = clone::read_of_vm(transaction, vm)?;
    Ok(LayerTree { vm, volumes, layers, snapshots, clones, current, read_elsewhere: BTreeSet::new() })
}

fn bodies(transaction: &Transaction<'_>, sql: &str, key: &str) -> Result<Vec<String>> {
    let mut statement = transaction.prepare_cached(sql)?;
    let rows = statement.query_map([key], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Whose trees a change is about. A clone may be a disk of other VMs than the one it was made out of, and have snapshots.
fn concerned(transaction: &Transaction<'_>, vm: VmId, change: &CatalogChange) -> Result<BTreeSet<VmId>> {
    let mut vms = BTreeSet::from([vm]);
    if let CatalogChange::CloneFlattened { source, path, .. } = change {
        vms.insert(*source);
        vms.extend(with_layers_at(transaction, [path.as_path()])?);
    }
    Ok(vms)
}

fn with_layers_at<'a>(
    transaction: &Transaction<'_>,
    paths: impl IntoIterator<Item = &'a Path>,
) -> Result<BTreeSet<VmId>> {
    let mut statement = transaction.prepare_cached("SELECT DISTINCT vm FROM layer WHERE path = ?")?;
    let mut vms = BTreeSet::new();
    for path in paths {
        let rows = statement.query_map([path.display().to_string()], |row| row.get::<_, String>(0))?;
        for row in rows {
            vms.insert(parse(&row?, "VM id")?);
        }
    }
    Ok(vms)
}

/// Writes a tree. Snapshots that are as `before` are left as they are: a VM may have hundreds.
pub(super) fn write_tree(transaction: &Transaction<'_>, before: &LayerTree, tree: &LayerTree) -> Result<()> {
    let key = tree.vm.to_string();
    transaction.run(
        "INSERT INTO vm (id, current) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET current = ?2",
        params![key, tree.current.map(|id| id.to_string())],
    )?;
    transaction.run("DELETE FROM volume WHERE vm = ?", [&key])?;
    for volume in &tree.volumes {
        transaction.run(
            "INSERT INTO volume (id, vm, target, active) VALUES (?, ?, ?, ?)",
            params![volume.id.to_string(), key, volume.target.as_str(), volume.active.to_string()],
        )?;
    }
    transaction.run("DELETE FROM layer WHERE vm = ?", [&key])?;
    for layer in tree.layers.values() {
        let path = layer.path.display().to_string();
        transaction.run(
            "INSERT INTO layer (id, vm, path, body) VALUES (?, ?, ?, ?)",
            params![layer.id.to_string(), key, path, to_json(layer, "layer")?],
        )?;
    }
    let kept: Vec<String> = tree.snapshots.iter().map(|snapshot| snapshot.id.to_string()).collect();
    transaction.run(
        "DELETE FROM snapshot WHERE vm = ?1 AND id NOT IN (SELECT value FROM json_each(?2))",
        params![key, to_json(&kept, "list of ids")?],
    )?;
    clone::write_of_vm(transaction, tree)?;
    manifest::mark_changes(transaction, before, tree)?;
    let is_changed = |snapshot: &&Snapshot| before.snapshot(snapshot.id) != Some(*snapshot);
    tree.snapshots.iter().filter(is_changed).try_for_each(|changed| snapshot::write(transaction, changed))
}

fn set_state(
    transaction: &Transaction<'_>,
    id: SnapshotId,
    state: SnapshotState,
    cause: &Cause,
    check: impl FnOnce(&Snapshot) -> std::result::Result<(), EditRefusal>,
) -> Result<()> {
    let Some(before) = snapshot::read(transaction, id)? else { return Ok(()) };
    if before.state == state {
        return Ok(());
    }
    check(&before)?;
    let mut changed = before.clone();
    changed.enter(state);
    changed.generation += 1;
    snapshot::write(transaction, &changed)?;
    event::insert_all(transaction, of_snapshot(Some(&before), Some(&changed), cause))
}
