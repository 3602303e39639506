//! Departures: which VMs were seen to leave for another node. It is told once, and a definition that stays looks like a VM that
//! is off.
//!
//! Decides that a departure which is newer than the one that somebody has seen settled stays.

use rusqlite::params;
use uuid::Uuid;

use super::{Prepared, Result, Store, parse};
use crate::model::VmId;

/// A VM was seen to leave for another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    /// The VM.
    pub vm: VmId,
    /// Which of its departures: it may come back, and leave once more.
    pub mark: Uuid,
}

impl Store {
    /// Makes a departure durable, in the place of any earlier one of the VM.
    pub async fn put_departure(&self, departure: Departure) -> Result<()> {
        self.transact(move |transaction| {
            transaction.run(
                "INSERT INTO departure (vm, mark) VALUES (?1, ?2) ON CONFLICT (vm) DO UPDATE SET mark = ?2",
                params![departure.vm.to_string(), departure.mark.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    /// The last departure of each VM that was not seen to run here since. A row that cannot be read is left out, and told: it
    /// must not hold up a start, which has guests to thaw.
    pub async fn departures(&self) -> Result<Vec<Departure>> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT vm, mark FROM departure")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let mut departures = Vec::new();
            for row in rows {
                let (vm, mark): (String, String) = row?;
                match (parse(&vm, "VM id"), parse(&mark, "mark of a departure")) {
                    (Ok(vm), Ok(mark)) => departures.push(Departure { vm, mark }),
                    (Err(error), _) | (_, Err(error)) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(vm, error, "that a VM has migrated cannot be read");
                    }
                }
            }
            Ok(departures)
        })
        .await
    }

    /// Ends a departure: the caller has seen the VM run here after it.
    pub async fn clear_departure(&self, departure: Departure) -> Result<()> {
        self.transact(move |transaction| {
            let key = params![departure.vm.to_string(), departure.mark.to_string()];
            transaction.run("DELETE FROM departure WHERE vm = ? AND mark = ?", key)?;
            Ok(())
        })
        .await
    }
}
