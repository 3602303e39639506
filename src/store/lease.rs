//! Freeze leases: durable before a guest is frozen, gone only once it is proven thawed.

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{Result, Store, from_json, to_json};
use crate::model::{OperationId, VmId};

/// The promise to thaw a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeLease {
    /// The VM.
    pub vm: VmId,
    /// The operation that freezes it.
    pub operation: OperationId,
    /// The boot of the node in which it was made: the guest did not survive another.
    pub boot_id: String,
    /// Milliseconds since the epoch at which the freeze was asked for.
    pub since_ms: i64,
    /// Milliseconds since the epoch at which the guest is thawed, whatever happens.
    pub deadline_ms: i64,
    /// It is proven that the guest is thawed; only the operation does not know yet. Whoever freezes it now is not us.
    #[serde(default)]
    pub is_thawed: bool,
}

impl Store {
    /// Makes a lease durable.
    pub async fn put_lease(&self, lease: FreezeLease) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "INSERT INTO lease (vm, body) VALUES (?1, ?2) ON CONFLICT (vm) DO UPDATE SET body = ?2",
                params![lease.vm.to_string(), to_json(&lease, "freeze lease")?],
            )?;
            Ok(())
        })
        .await
    }

    /// The lease on a VM.
    pub async fn lease(&self, vm: VmId) -> Result<Option<FreezeLease>> {
        Ok(self.leases().await?.into_iter().find(|lease| lease.vm == vm))
    }

    /// All leases: guests that may be frozen because of us.
    pub async fn leases(&self) -> Result<Vec<FreezeLease>> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare("SELECT body FROM lease")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| from_json(&row?, "freeze lease")).collect()
        })
        .await
    }

    /// Ends the lease that an operation has on a VM. The caller has proof that the guest is thawed. One that another operation
    /// has taken since stays.
    pub async fn clear_lease(&self, vm: VmId, operation: OperationId) -> Result<()> {
        self.transact(move |transaction| {
            let sql = "DELETE FROM lease WHERE vm = ? AND body ->> 'operation' = ?";
            transaction.execute(sql, [vm.to_string(), operation.to_string()])?;
            Ok(())
        })
        .await
    }
}
