//! Throttles: durable before the writes of a guest are slowed, gone only once they are as they were.

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{Prepared, Result, Store, from_json, to_json};
use crate::model::{DiskTarget, IoLimits, OperationId, VmId};

/// The promise to let a guest write as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// The VM.
    pub vm: VmId,
    /// The disk.
    pub disk: DiskTarget,
    /// The operation that slows it.
    pub operation: OperationId,
    /// The limits from before.
    pub before: IoLimits,
    /// The limits on writes that we may have set since, in bytes per second. Any other one is somebody else's.
    pub writes_at_most: Vec<u64>,
}

impl Store {
    /// Makes a throttle durable.
    pub async fn put_throttle(&self, throttle: Throttle) -> Result<()> {
        self.transact(move |transaction| {
            transaction.run(
                "INSERT INTO throttle (vm, disk, body) VALUES (?1, ?2, ?3)
                 ON CONFLICT (vm, disk) DO UPDATE SET body = ?3",
                params![throttle.vm.to_string(), throttle.disk.as_str(), to_json(&throttle, "throttle")?],
            )?;
            Ok(())
        })
        .await
    }

    /// The throttle on a disk.
    pub async fn throttle(&self, vm: VmId, disk: &DiskTarget) -> Result<Option<Throttle>> {
        let throttles = self.throttles().await?;
        Ok(throttles.into_iter().find(|throttle| throttle.vm == vm && throttle.disk == *disk))
    }

    /// All throttles: guests whose writes may be slowed because of us.
    pub async fn throttles(&self) -> Result<Vec<Throttle>> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT body FROM throttle")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| from_json(&row?, "throttle")).collect()
        })
        .await
    }

    /// Ends a throttle. The caller has seen that the guest writes as before, or that there is nothing to slow any more.
    pub async fn clear_throttle(&self, vm: VmId, disk: DiskTarget) -> Result<()> {
        self.transact(move |transaction| {
            let key = params![vm.to_string(), disk.as_str()];
            transaction.run("DELETE FROM throttle WHERE vm = ? AND disk = ?", key)?;
            Ok(())
        })
        .await
    }
}
