//! Pivots: durable before a VM is let write to a base, gone only once it is seen that its definition names the base, too.

use std::path::PathBuf;

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{Prepared, Result, Store, from_json, to_json};
use crate::model::{DiskTarget, OperationId, ProcessId, VmId};

/// A VM was asked to write to a base instead of a child: from then on either may hold what its guest wrote last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedPivot {
    /// The VM.
    pub vm: VmId,
    /// The disk.
    pub disk: DiskTarget,
    /// The operation that asked.
    pub operation: OperationId,
    /// The process that was asked: as long as it is there, it tells what it writes to.
    pub process: ProcessId,
    /// What it wrote to before.
    pub child: PathBuf,
    /// What it writes to afterwards.
    pub base: PathBuf,
}

impl Store {
    /// Makes a pivot that is about to be asked for durable.
    pub async fn put_pivot(&self, pivot: AskedPivot) -> Result<()> {
        self.transact(move |transaction| {
            transaction.run(
                "INSERT INTO pivot (vm, disk, body) VALUES (?1, ?2, ?3)
                 ON CONFLICT (vm, disk) DO UPDATE SET body = ?3",
                params![pivot.vm.to_string(), pivot.disk.as_str(), to_json(&pivot, "asked pivot")?],
            )?;
            Ok(())
        })
        .await
    }

    /// The pivot that was asked for last on a disk, if it is not known to be over.
    pub async fn pivot(&self, vm: VmId, disk: &DiskTarget) -> Result<Option<AskedPivot>> {
        let disk = disk.clone();
        self.transact(move |transaction| {
            let mut statement =
                transaction.prepare_cached("SELECT body FROM pivot WHERE vm = ? AND disk = ?")?;
            let mut rows = statement.query(params![vm.to_string(), disk.as_str()])?;
            rows.next()?.map(|row| from_json(&row.get::<_, String>(0)?, "asked pivot")).transpose()
        })
        .await
    }

    /// Those of all disks of a VM. While no operation is at work on it, each is one that nobody has seen the end of.
    pub async fn pivots(&self, vm: VmId) -> Result<Vec<AskedPivot>> {
        self.transact(move |transaction| {
            let mut statement = transaction.prepare_cached("SELECT body FROM pivot WHERE vm = ?")?;
            let rows = statement.query_map(params![vm.to_string()], |row| row.get::<_, String>(0))?;
            rows.map(|row| from_json(&row?, "asked pivot")).collect()
        })
        .await
    }

    /// Forgets a pivot. The caller has seen which image holds what the guest wrote last, and that the definition names it.
    pub async fn clear_pivot(&self, vm: VmId, disk: DiskTarget) -> Result<()> {
        self.transact(move |transaction| {
            let key = params![vm.to_string(), disk.as_str()];
            transaction.run("DELETE FROM pivot WHERE vm = ? AND disk = ?", key)?;
            Ok(())
        })
        .await
    }
}
