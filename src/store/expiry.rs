//! Which snapshots have expired, and when the next one will.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Prepared, Result, Store, parse};
use crate::model::{SnapshotId, VmId};

/// Snapshots that stay although their time has come are not due: held ones, and those that are not what they should be.
const MAY_GO: &str = "held = 0 AND state = 'ready'";

impl Store {
    /// The snapshots that are to be deleted, by VM.
    pub async fn expired(&self, now: Timestamp) -> Result<BTreeMap<VmId, Vec<SnapshotId>>> {
        self.transact(move |transaction| {
            let sql =
                format!("SELECT vm, id FROM snapshot WHERE expires_at <= ? AND {MAY_GO} ORDER BY expires_at");
            let mut statement = transaction.prepare_cached(&sql)?;
            let rows = statement.query_map([now.as_millisecond()], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
            })?;
            let mut expired = BTreeMap::<_, Vec<_>>::new();
            for row in rows {
                let (vm, id) = row?;
                expired.entry(parse(&vm, "VM id")?).or_default().push(parse(&id, "snapshot id")?);
            }
            Ok(expired)
        })
        .await
    }

    /// When the first of those that have not expired yet will.
    pub async fn next_expiry(&self, now: Timestamp) -> Result<Option<Timestamp>> {
        self.transact(move |transaction| {
            let sql = "SELECT min(expires_at) FROM snapshot WHERE expires_at > ?";
            let next: Option<i64> = transaction.row(sql, [now.as_millisecond()], |row| row.get(0))?;
            Ok(next.and_then(|next| Timestamp::from_millisecond(next).ok()))
        })
        .await
    }
}
