//! Switches on the way back: durable once it is known which images the VM writes to, and before anything is merged.

use rusqlite::{Transaction, params};

use super::{Prepared, Result, Store};
use crate::model::OperationId;

impl Store {
    /// Notes that the operation takes its switch back. The caller has seen which images the VM writes to, and that its
    /// definition names them.
    pub async fn enter_way_back(&self, operation: OperationId) -> Result<()> {
        self.transact(move |transaction| {
            let id = params![operation.to_string()];
            transaction.run("INSERT OR IGNORE INTO way_back (operation) VALUES (?)", id)?;
            Ok(())
        })
        .await
    }

    /// Whether it does. From then on what its overlays hold says nothing of the switch any more.
    pub async fn is_on_way_back(&self, operation: OperationId) -> Result<bool> {
        self.transact(move |transaction| {
            let mut statement = transaction.prepare_cached("SELECT 1 FROM way_back WHERE operation = ?")?;
            Ok(statement.exists(params![operation.to_string()])?)
        })
        .await
    }
}

/// The operation has ended.
pub(super) fn leave(transaction: &Transaction<'_>, operation: OperationId) -> Result<()> {
    transaction.run("DELETE FROM way_back WHERE operation = ?", params![operation.to_string()])?;
    Ok(())
}
