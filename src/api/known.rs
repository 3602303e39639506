//! The labels of VMs, as they were when they were last asked for.
//!
//! Decides how long that is: a second, or until the hypervisor tells of a change. Callers with a scope ask for them with every call,
//! and operations wait for the same lane to the hypervisor. One asks at a time, for all who wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::Instant;

use super::reach::Reach;
use crate::host::{HostEvent, Link};
use crate::model::access::Scope;
use crate::model::{Labels, VmId};
use crate::ops::{Engine, OpsError};

/// A change of labels alone is not told by anybody.
const FRESH: Duration = Duration::from_secs(1);

/// All labels that are known. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct KnownLabels(Arc<Mutex<Option<Known>>>);

struct Known {
    changes: Receiver<HostEvent>,
    at: Instant,
    labels: Arc<HashMap<VmId, Labels>>,
}

impl KnownLabels {
    /// What is within a scope now.
    pub(super) async fn reach(&self, engine: &Engine, scope: Option<Scope>) -> Result<Reach, OpsError> {
        let Some(scope) = scope else { return Ok(Reach::Node) };
        let labels = self.labels(engine).await?;
        let vms = labels.iter().filter(|(_, labels)| scope.has(labels)).map(|(vm, _)| *vm).collect();
        Ok(Reach::Vms { scope, vms })
    }

    /// All of them.
    pub(super) async fn labels(&self, engine: &Engine) -> Result<Arc<HashMap<VmId, Labels>>, OpsError> {
        let hypervisor = &engine.host().hypervisor;
        let arrived = Instant::now();
        let mut known = self.0.lock().await;
        let is_up = *hypervisor.link().borrow() == Link::Up;
        // What was read while this one waited is as new as what it would read.
        if let Some(known) = known.as_mut().filter(|_| is_up)
            && (known.at >= arrived || (known.at.elapsed() < FRESH && known.has_no_news()))
        {
            return Ok(Arc::clone(&known.labels));
        }
        *known = None;
        // Before they are read: what changes meanwhile is news.
        let (changes, at) = (hypervisor.events(), Instant::now());
        let labels = Arc::new(engine.labels(None).await?);
        *known = Some(Known { changes, at, labels: Arc::clone(&labels) });
        Ok(labels)
    }
}

impl Known {
    fn has_no_news(&mut self) -> bool {
        loop {
            match self.changes.try_recv() {
                // Of a VM that is there or not, or of so many that some were missed.
                Ok(HostEvent::VmChanged(_)) | Err(TryRecvError::Lagged(_)) => return false,
                Ok(_) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return true,
            }
        }
    }
}
