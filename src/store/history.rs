//! What is over: events, operations that have ended, and the requests that began them. All of it goes when it is old.
//!
//! Decides nothing of how old. What is open stays, however old it is.

use jiff::{SignedDuration, Timestamp};
use rusqlite::params;

use super::{Prepared, Result, Store};

impl Store {
    /// Lets go of what is over for longer than `kept`. A request that is repeated after that is a new one.
    pub async fn prune_history(&self, kept: SignedDuration, now: Timestamp) -> Result<()> {
        let until = now.saturating_sub(kept).unwrap_or(Timestamp::UNIX_EPOCH);
        self.transact(move |transaction| {
            let milliseconds = until.as_millisecond();
            transaction.run("DELETE FROM event WHERE created_at < ?", [milliseconds])?;
            transaction.run(
                "DELETE FROM operation WHERE is_open = 0 AND created_at < ? AND body ->> 'ended_at' < ?",
                params![milliseconds, until.to_string()],
            )?;
            transaction
                .run("DELETE FROM schedule_run WHERE is_open = 0 AND started_at < ?", [milliseconds])?;
            // What an operation that is kept was asked for with still answers with it.
            transaction.run(
                "DELETE FROM request WHERE created_at < ? AND NOT EXISTS
                 (SELECT 1 FROM operation WHERE id = request.answer ->> 'operation')",
                [milliseconds],
            )?;
            Ok(())
        })
        .await
    }
}
