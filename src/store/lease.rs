//! Leases on guests: durable before one is frozen or paused, gone only once it is proven that it goes on.

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{Prepared, Result, Store, from_json, to_json};
use crate::model::{OperationId, VmId};

/// The promise to let a guest go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLease {
    /// The VM.
    pub vm: VmId,
    /// The operation that lets it stand still.
    pub operation: OperationId,
    /// What stands still.
    #[serde(default)]
    pub standstill: Standstill,
    /// The boot of the node in which it was made: the guest did not survive another.
    pub boot_id: String,
    /// Milliseconds since the epoch at which it was asked for.
    pub since_ms: i64,
    /// Milliseconds since the epoch at which the guest goes on, whatever happens.
    pub deadline_ms: i64,
    /// It is proven that the guest goes on; only the operation does not know yet. Whoever holds it up now is not us.
    #[serde(default)]
    pub is_thawed: bool,
}

/// What stands still of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standstill {
    /// Its file systems.
    #[default]
    Frozen,
    /// Its processors.
    Paused,
}

impl Store {
    /// Makes a lease durable.
    pub async fn put_lease(&self, lease: GuestLease) -> Result<()> {
        self.transact(move |transaction| {
            transaction.run(
                "INSERT INTO lease (vm, body) VALUES (?1, ?2) ON CONFLICT (vm) DO UPDATE SET body = ?2",
                params![lease.vm.to_string(), to_json(&lease, "lease")?],
            )?;
            Ok(())
        })
        .await
    }

    /// The lease on a VM.
    pub async fn lease(&self, vm: VmId) -> Result<Option<GuestLease>> {
        Ok(self.leases().await?.into_iter().find(|lease| lease.vm == vm))
    }

    /// All leases: guests that may stand still because of us.
    pub async fn leases(&self) -> Result<Vec<GuestLease>> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT body FROM lease")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| from_json(&row?, "lease")).collect()
        })
        .await
    }

    /// Ends the lease that an operation has on a VM. The caller has proof that the guest goes on. One that another operation
    /// has taken since stays.
    pub async fn clear_lease(&self, vm: VmId, operation: OperationId) -> Result<()> {
        self.transact(move |transaction| {
            let sql = "DELETE FROM lease WHERE vm = ? AND body ->> 'operation' = ?";
            transaction.run(sql, [vm.to_string(), operation.to_string()])?;
            Ok(())
        })
        .await
    }
}
