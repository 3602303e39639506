//! Which manifests are due, and where they are.
//!
//! A change of a snapshot, of a clone or of what they read marks their manifest in the same transaction. Marks are counted:
//! whoever has written one says up to which mark, so a change that came meanwhile is not forgotten. Where a file may be is
//! noted before it is written, so that none is forgotten either.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rusqlite::{Transaction, params};
use uuid::Uuid;

use super::{Prepared, Result, Store, StoreError, catalog, edit, from_json, parse, snapshot, to_json};
use crate::model::manifest::Manifest;
use crate::model::{Layer, LayerId, LayerTree, SnapshotDisk, SnapshotId, SnapshotState, VmId};

/// The manifest of a snapshot or of a clone.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptManifest {
    /// Of what.
    pub id: Uuid,
    /// What is to be in it; None if there must be none.
    pub wanted: Option<Manifest>,
    /// Where one may be.
    pub places: Vec<PathBuf>,
    /// The checksum of what was written there last; empty if that is not known.
    pub checksum: String,
    /// Up to which change this is.
    pub mark: i64,
    /// Whether it has not been written since.
    pub is_due: bool,
}

impl Store {
    /// The VMs, and what stands for one, that have manifests which are due. A row that cannot be read is told, and holds up
    /// none of the others.
    pub async fn vms_with_due_manifests(&self) -> Result<BTreeSet<VmId>> {
        self.transact(|transaction| {
            let sql = "SELECT DISTINCT vm FROM manifest WHERE mark <> settled";
            let mut statement = transaction.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            let mut vms = BTreeSet::new();
            for row in rows {
                match parse(&row?, "VM id") {
                    Ok(vm) => drop(vms.insert(vm)),
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(error, "it cannot be told of which VM a manifest is");
                    }
                }
            }
            Ok(vms)
        })
        .await
    }

    /// The manifests of a VM's snapshots and clones: all of them, or only those that are due.
    pub async fn manifests(&self, vm: VmId, only_due: bool) -> Result<Vec<KeptManifest>> {
        let rows = self.readable_manifests(vm, only_due).await?;
        rows.into_iter().map(|row| row.map_err(|(_, error)| error)).collect()
    }

    /// As [`Self::manifests`], each on its own: of what cannot be read, why.
    pub async fn readable_manifests(
        &self,
        vm: VmId,
        only_due: bool,
    ) -> Result<Vec<std::result::Result<KeptManifest, (Uuid, StoreError)>>> {
        self.transact(move |transaction| {
            let rows = read_rows(transaction, vm, only_due)?;
            if rows.is_empty() {
                return Ok(Vec::new());
            }
            let tree = catalog::read_tree(transaction, vm)?;
            let fill = |row: KeptManifest| match wanted(transaction, &tree, row.id) {
                Ok(wanted) => Ok(KeptManifest { wanted, ..row }),
                Err(error) => Err((row.id, error)),
            };
            Ok(rows.into_iter().map(fill).collect())
        })
        .await
    }

    /// Notes that a manifest may be at these places from now on, with content that is not known.
    pub async fn place_manifest(&self, id: Uuid, places: Vec<PathBuf>) -> Result<()> {
        self.transact(move |transaction| {
            let places = to_json(&places, "list of paths")?;
            let sql = "UPDATE manifest SET places = ?2, checksum = '' WHERE id = ?1";
            transaction.run(sql, params![id.to_string(), places])?;
            Ok(())
        })
        .await
    }

    /// Notes that a manifest is as it was wanted at that mark: in one place, or nowhere.
    pub async fn settle_manifest(
        &self,
        id: Uuid,
        mark: i64,
        written: Option<(PathBuf, String)>,
    ) -> Result<()> {
        self.transact(move |transaction| {
            let is_gone = written.is_none();
            let (places, checksum) =
                written.map_or((Vec::new(), String::new()), |(path, sum)| (vec![path], sum));
            let (id, places) = (id.to_string(), to_json(&places, "list of paths")?);
            let sql = "UPDATE manifest SET settled = ?2, places = ?3, checksum = ?4 WHERE id = ?1";
            transaction.run(sql, params![id, mark, places, checksum])?;
            if is_gone {
                transaction.run("DELETE FROM manifest WHERE id = ?1 AND mark = ?2", params![id, mark])?;
            }
            Ok(())
        })
        .await
    }

    /// Where manifests of a VM may be that promise what is promised no longer: of what is gone, or on its way out.
    pub async fn stale_manifests(&self, vm: VmId) -> Result<Vec<PathBuf>> {
        let due = self.manifests(vm, true).await?;
        let is_stale = |kept: &KeptManifest| kept.wanted.as_ref().is_none_or(Manifest::is_of_deleted);
        Ok(due.into_iter().filter(is_stale).flat_map(|kept| kept.places).collect())
    }

    /// Where there may be manifests, of everything.
    pub async fn manifest_places(&self) -> Result<BTreeSet<PathBuf>> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT places FROM manifest")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            let mut places = BTreeSet::new();
            for row in rows {
                places.extend(from_json::<Vec<PathBuf>>(&row?, "list of paths")?);
            }
            Ok(places)
        })
        .await
    }
}

/// The manifest of this is due.
pub(super) fn mark(transaction: &Transaction<'_>, vm: VmId, id: Uuid) -> Result<()> {
    let sql = "INSERT INTO manifest (id, vm, places, checksum, mark, settled) VALUES (?, ?, '[]', '', 1, 0)
               ON CONFLICT (id) DO UPDATE SET mark = mark + 1";
    transaction.prepare_cached(sql)?.execute(params![id.to_string(), vm.to_string()])?;
    Ok(())
}

/// The manifests that a change of a tree makes due.
pub(super) fn mark_changes(
    transaction: &Transaction<'_>,
    before: &LayerTree,
    tree: &LayerTree,
) -> Result<()> {
    let changed = changed_layers(before, tree);
    let reads_change = |top: LayerId| {
        !changed.is_empty()
            && [before, tree]
                .iter()
                .any(|tree| tree.chain(top).iter().any(|layer| changed.contains(&layer.id)))
    };
    for snapshot in &tree.snapshots {
        let was_current = before.current == Some(snapshot.id);
        let is_current = tree.current == Some(snapshot.id);
        let is_held_as_seen = |disk: &SnapshotDisk| is_as_seen(before, tree, disk.layer);
        let is_told = snapshot.disks.iter().all(is_held_as_seen)
            && !snapshot.disks.iter().any(|disk| reads_change(disk.layer));
        // A snapshot that has changed itself is marked when it is written.
        if was_current != is_current || !is_told {
            mark(transaction, tree.vm, snapshot.id.0)?;
        }
    }
    let (told_before, tells) = (Manifest::teller(before), Manifest::teller(tree));
    let disks_differ =
        before.volumes != tree.volumes || tree.volumes.iter().any(|volume| reads_change(volume.active));
    if told_before != tells || disks_differ {
        let is_there = |id: &SnapshotId| tree.snapshot(*id).is_some();
        let both: BTreeSet<SnapshotId> = told_before.filter(is_there).into_iter().chain(tells).collect();
        both.into_iter().try_for_each(|id| mark(transaction, tree.vm, id.0))?;
    }
    let gone = before.snapshots.iter().filter(|snapshot| tree.snapshot(snapshot.id).is_none());
    gone.map(|snapshot| snapshot.id.0).try_for_each(|id| mark(transaction, tree.vm, id))?;
    let is_there = |id| tree.clones.iter().find(|clone| clone.id == id);
    for clone in &before.clones {
        let is_told = clone.layer.is_none_or(|layer| is_as_seen(before, tree, layer) && !reads_change(layer));
        if is_there(clone.id) != Some(clone) || !is_told {
            mark(transaction, tree.vm, clone.id.0)?;
        }
    }
    Ok(())
}

fn is_as_seen(before: &LayerTree, tree: &LayerTree, layer: LayerId) -> bool {
    let seen = |tree: &LayerTree| tree.layers.get(&layer).and_then(|layer| layer.seen);
    seen(before) == seen(tree)
}

/// How files are is told by what holds them.
fn changed_layers(before: &LayerTree, tree: &LayerTree) -> BTreeSet<LayerId> {
    let is_same =
        |a: &Layer, b: &Layer| Layer { seen: None, ..a.clone() } == Layer { seen: None, ..b.clone() };
    let differs = |in_one: &LayerTree, layer: &Layer| {
        !in_one.layers.get(&layer.id).is_some_and(|other| is_same(other, layer))
    };
    let gone = before.layers.values().filter(|layer| differs(tree, layer));
    let new = tree.layers.values().filter(|layer| differs(before, layer));
    gone.chain(new).map(|layer| layer.id).collect()
}

fn read_rows(transaction: &Transaction<'_>, vm: VmId, only_due: bool) -> Result<Vec<KeptManifest>> {
    let sql = "SELECT id, places, checksum, mark, mark <> settled FROM manifest
               WHERE vm = ?1 AND (mark <> settled OR NOT ?2) ORDER BY id";
    let mut statement = transaction.prepare_cached(sql)?;
    let rows = statement.query_map(params![vm.to_string(), only_due], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
    })?;
    rows.map(|row| {
        let (id, places, checksum, mark, is_due) = row?;
        let (id, places) = (parse(&id, "manifest id")?, from_json(&places, "list of paths")?);
        Ok(KeptManifest { id, wanted: None, places, checksum, mark, is_due })
    })
    .collect()
}

fn wanted(transaction: &Transaction<'_>, tree: &LayerTree, id: Uuid) -> Result<Option<Manifest>> {
    if let Some(clone) = tree.clones.iter().find(|clone| clone.id.0 == id) {
        return Ok(Manifest::of_clone(tree, clone));
    }
    let Some(found) = tree.snapshots.iter().find(|snapshot| snapshot.id.0 == id) else { return Ok(None) };
    if found.state == SnapshotState::Creating {
        return Ok(None);
    }
    let definition = snapshot::read_definition(transaction, found.id)?.unwrap_or_default();
    let comments = edit::read_comments(transaction, found.id)?;
    Ok(Manifest::of_snapshot(tree, found, definition, comments))
}
