//! Layers that somebody else's content went into, as far as headers tell of it.
//!
//! Decides which layers cannot be vouched for. A merge by hand leaves no trace in the image that it goes into, but the image
//! that lay on what was merged lies on something else then. Ours go into what nothing needs: where a layer that is needed is
//! gone from between, and what lies below is needed too, it was not ours. And what is held has the length that it had.

use std::collections::{BTreeMap, BTreeSet};

use super::Evidence;
use super::found::Found;
use crate::model::{Layer, LayerId, LayerTree, SnapshotState};

/// Layers that may read a mixture.
#[derive(Debug, Default)]
pub(super) struct Written {
    why: BTreeMap<LayerId, String>,
    /// By layer, what may be below it: it reads what it read all the same. What went there is what it read before.
    harmless: BTreeMap<LayerId, BTreeSet<LayerId>>,
}

impl Written {
    /// `needed` are the layers that snapshots and clones refer to.
    pub(super) fn find(
        evidence: &Evidence,
        tree: &LayerTree,
        found: &Found,
        needed: &BTreeSet<LayerId>,
    ) -> Self {
        let mut written = Self::default();
        written.measure(evidence, tree, found);
        let of_snapshots = found.snapshots.iter().flat_map(|of| [&of.layers, &of.active]);
        for told in of_snapshots.chain(found.clones.iter().map(|of| &of.layers)) {
            for layer in told {
                written.look_below(tree, told, layer, needed);
            }
        }
        written
    }

    /// What a snapshot or a clone holds is written to by nobody.
    fn measure(&mut self, evidence: &Evidence, tree: &LayerTree, found: &Found) {
        let held = found.snapshots.iter().filter(|of| of.snapshot.state != SnapshotState::Deleting);
        let held = held.flat_map(|of| of.snapshot.disks.iter().map(|disk| (disk.layer, &of.layers)));
        let of_clones = found.clones.iter().filter_map(|of| Some((of.clone.layer?, &of.layers)));
        for (id, told) in held.chain(of_clones) {
            let told = told.iter().find(|told| told.id == id).and_then(|told| told.seen);
            let now = tree.layers.get(&id).and_then(|layer| evidence.images.get(&layer.path));
            if let (Some(told), Some(now)) = (told, now)
                && told.length != now.length
            {
                let why = format!("it has {} bytes, not {}", now.length, told.length);
                self.why.insert(id, why);
            }
        }
    }

    fn look_below(&mut self, tree: &LayerTree, told: &[Layer], layer: &Layer, needed: &BTreeSet<LayerId>) {
        let now = tree.layers.get(&layer.id).and_then(|known| known.parent);
        let Some(now) = now.filter(|now| needed.contains(now)) else { return };
        let gap = gap(told, layer, now);
        let (Some(highest), true) = (gap.first(), gap.iter().any(|gone| needed.contains(&gone.id))) else {
            return;
        };
        self.why.entry(now).or_insert_with(|| {
            format!(
                "{} lay on {} and does not any more: somebody may have merged that into what is below",
                layer.path.display(),
                highest.path.display()
            )
        });
        for reads_as_before in [layer.id, highest.id] {
            self.harmless.entry(reads_as_before).or_default().insert(now);
        }
    }

    /// Why what reads through `chain`, the highest first, cannot be vouched for.
    pub(super) fn check(&self, chain: &[&Layer]) -> Result<(), String> {
        let mut harmless: BTreeSet<LayerId> = BTreeSet::new();
        for layer in chain {
            if let Some(why) = self.why.get(&layer.id).filter(|_| !harmless.contains(&layer.id)) {
                return Err(format!("{} may read a mixture: {why}", layer.path.display()));
            }
            harmless.extend(self.harmless.get(&layer.id).into_iter().flatten());
        }
        Ok(())
    }
}

/// What lay between a layer and `below`, the highest first. Nothing if it was not told to lie on that.
fn gap<'a>(told: &'a [Layer], layer: &Layer, below: LayerId) -> Vec<&'a Layer> {
    let mut gap: Vec<&Layer> = Vec::new();
    let mut next = layer.parent;
    while let Some(id) = next.filter(|id| *id != below) {
        // A manifest that goes round in circles is as long as all of its layers.
        let between = told.iter().find(|told| told.id == id).filter(|_| gap.len() < told.len());
        let Some(between) = between else { return Vec::new() };
        gap.push(between);
        next = between.parent;
    }
    if next.is_some() { gap } else { Vec::new() }
}
