//! Backups of the catalog, when somebody asks. No operation: nothing but the copy is made, and it is there when it answers.

use jiff::Timestamp;

use super::{Asked, Engine, Result};
use crate::store::Backup;

impl Engine {
    /// Copies the catalog as it is now, while everything goes on.
    pub async fn back_up_catalog(&self, asked: Asked) -> Result<Backup> {
        let kept = self.0.limits.backups;
        let backup = self.0.store.back_up(asked.key, kept, Timestamp::now()).await?;
        tracing::info!(path = %backup.path.display(), bytes = backup.bytes, by = asked.by, "the catalog is backed up");
        Ok(backup)
    }
}
