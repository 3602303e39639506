//! VMs that leave the node and come back: what becomes of their snapshots, in one transaction with what is told of it.

use rusqlite::Transaction;

use super::{Result, Store, event, parse, snapshot};
use crate::model::event::{Cause, of_presence, of_snapshot};
use crate::model::{Failure, Snapshot, SnapshotId, SnapshotState, VmId};

/// How many snapshots of a VM are where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The VM.
    pub vm: VmId,
    /// READY ones.
    pub ready: u64,
    /// LOST ones.
    pub lost: u64,
    /// Those in ERROR.
    pub error: u64,
}

impl Store {
    /// The VMs that have snapshots which are READY, LOST or in ERROR. Volumes that no VM has are none.
    pub async fn kept(&self) -> Result<Vec<Kept>> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT vm, sum(state = 'ready'), sum(state = 'lost'), sum(state = 'error') FROM snapshot
                 WHERE state IN ('ready', 'lost', 'error') AND NOT EXISTS (SELECT 1 FROM volume WHERE vm = snapshot.vm AND id = vm)
                 GROUP BY vm",
            )?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
            rows.map(|row| {
                let (vm, ready, lost, error): (String, i64, i64, i64) = row?;
                let [ready, lost, error] = [ready, lost, error].map(i64::unsigned_abs);
                Ok(Kept { vm: parse(&vm, "VM id")?, ready, lost, error })
            })
            .collect()
        })
        .await
    }

    /// The VM has left: its READY snapshots are LOST. Gives how many.
    pub async fn lose(&self, vm: VmId, why: Failure, cause: Cause) -> Result<usize> {
        self.transact(move |transaction| {
            let ready = of_state(transaction, vm, SnapshotState::Ready)?;
            let change = |snapshot: &mut Snapshot| {
                snapshot.state = SnapshotState::Lost;
                snapshot.trouble = Some(why.clone());
            };
            move_all(transaction, vm, false, &ready, change, &cause)
        })
        .await
    }

    /// The VM is back, and these snapshots read what they read: they are READY again. Gives how many.
    pub async fn regain(&self, vm: VmId, ids: Vec<SnapshotId>, cause: Cause) -> Result<usize> {
        self.transact(move |transaction| {
            let lost = of_state(transaction, vm, SnapshotState::Lost)?;
            let lost: Vec<Snapshot> = lost.into_iter().filter(|lost| ids.contains(&lost.id)).collect();
            let change = |snapshot: &mut Snapshot| {
                snapshot.enter(SnapshotState::Ready);
            };
            move_all(transaction, vm, true, &lost, change, &cause)
        })
        .await
    }
}

fn of_state(transaction: &Transaction<'_>, vm: VmId, state: SnapshotState) -> Result<Vec<Snapshot>> {
    let snapshots = snapshot::read_of_vm(transaction, vm)?;
    Ok(snapshots.into_iter().filter(|snapshot| snapshot.state == state).collect())
}

fn move_all(
    transaction: &Transaction<'_>,
    vm: VmId,
    is_here: bool,
    snapshots: &[Snapshot],
    change: impl Fn(&mut Snapshot),
    cause: &Cause,
) -> Result<usize> {
    let Some(first) = snapshots.first() else { return Ok(0) };
    // A file that is back does not bring the VM back.
    if !is_here || snapshots.iter().any(Snapshot::has_left) {
        event::insert_all(transaction, [of_presence(vm, &first.vm_name, is_here, snapshots.len(), cause)])?;
    }
    for before in snapshots {
        let mut changed = before.clone();
        change(&mut changed);
        changed.generation += 1;
        snapshot::write(transaction, &changed)?;
        event::insert_all(transaction, of_snapshot(Some(before), Some(&changed), cause))?;
    }
    Ok(snapshots.len())
}
