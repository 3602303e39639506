//! What has happened since the daemon started, counted from its events: nothing has to tell the metrics by itself, and what is
//! told to a controller and what is counted here is the same.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::Metrics;
use super::look::whole;
use crate::daemon::follow::Follower;
use crate::model::event::{EventKind, Severity};
use crate::model::{Event, LayerTree, VmId};
use crate::ops::Engine;

/// Counts until the engine drains.
pub(in crate::daemon) async fn observe(metrics: Arc<Metrics>, engine: Engine) {
    let (mut follower, stopping) = (Follower::new(&engine), engine.draining());
    let mut trees = Trees::default();
    // Whether or not the hypervisor can be asked which there are.
    let all = engine.store().vms().await.unwrap_or_default();
    trees.look(&metrics, &engine, all.into_iter().collect()).await;
    loop {
        let events = tokio::select! {
            events = follower.next() => events,
            () = stopping.cancelled() => return,
        };
        for event in &events {
            count_one(&metrics, &event.event);
        }
        let touched = events.iter().filter_map(|event| event.event.vm).collect();
        trees.look(&metrics, &engine, touched).await;
    }
}

fn count_one(metrics: &Metrics, event: &Event) {
    let severity = match event.severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    metrics.events.with_label_values(&[event.kind.name().as_str(), severity]).inc();
    match event.kind {
        EventKind::OperationStateChanged => count_operation(metrics, event),
        EventKind::ScheduleRun | EventKind::ScheduleMissed | EventKind::SchedulePruned => {
            count_run(metrics, event);
        }
        _ => {}
    }
}

fn count_run(metrics: &Metrics, event: &Event) {
    let number =
        |key: &str| event.attributes.get(key).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    if let Some(outcome) = event.attributes.get("outcome") {
        metrics.runs.with_label_values(&[outcome.as_str()]).inc();
    }
    metrics.missed_runs.inc_by(number("count"));
    if event.kind == EventKind::SchedulePruned {
        metrics.pruned_snapshots.inc_by(number("snapshots"));
        metrics.pruned_bytes.inc_by(number("bytes"));
    }
}

fn count_operation(metrics: &Metrics, event: &Event) {
    let text = |key: &str| event.attributes.get(key).map(String::as_str).unwrap_or_default();
    let number = |key: &str| event.attributes.get(key).and_then(|number| number.parse::<f64>().ok());
    // Only one that has ended took so long.
    let Some(milliseconds) = number("milliseconds") else { return };
    let (operation, outcome) = (text("operation").replace(' ', "_"), text("to").to_ascii_lowercase());
    metrics.ended.with_label_values(&[operation.as_str(), outcome.as_str()]).inc();
    metrics.took.with_label_values(&[operation.as_str()]).observe(milliseconds / 1000.0);
    for (key, figure) in [("frozen_ms", &metrics.frozen), ("paused_ms", &metrics.paused)] {
        if let Some(milliseconds) = number(key) {
            figure.observe(milliseconds / 1000.0);
        }
    }
}

/// What is known of the layers of each VM. A tree is read when something has happened to it, and not kept.
#[derive(Default)]
struct Trees(HashMap<VmId, Shape>);

struct Shape {
    layers: usize,
    waiting: usize,
    deepest: usize,
}

impl Trees {
    async fn look(&mut self, metrics: &Metrics, engine: &Engine, vms: BTreeSet<VmId>) {
        for vm in vms {
            match engine.store().tree(vm).await {
                Ok(tree) if tree.layers.is_empty() => drop(self.0.remove(&vm)),
                Ok(tree) => drop(self.0.insert(vm, Shape::of(&tree))),
                // It is known from the last time.
                Err(_) => {}
            }
        }
        let sum = |of: fn(&Shape) -> usize| whole(self.0.values().map(of).sum());
        metrics.layers.set(sum(|shape| shape.layers));
        metrics.waiting.set(sum(|shape| shape.waiting));
        metrics.deepest.set(whole(self.0.values().map(|shape| shape.deepest).max().unwrap_or(0)));
    }
}

impl Shape {
    fn of(tree: &LayerTree) -> Self {
        let depths = tree.volumes.iter().map(|volume| tree.chain(volume.active).len());
        Self {
            layers: tree.layers.len(),
            waiting: tree.pending().count(),
            deepest: depths.max().unwrap_or(0),
        }
    }
}
