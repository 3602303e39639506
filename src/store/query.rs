//! Lists of snapshots: filter, order, pages.

use rusqlite::params_from_iter;

use super::catalog::state_column;
use super::conditions::Conditions;
use super::{Result, Store, from_json};
use crate::model::{Snapshot, SnapshotId, SnapshotState, VmId};

/// Which snapshots; each part left empty lets all through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotFilter {
    /// Of this VM.
    pub vm: Option<VmId>,
    /// In one of these states.
    pub states: Vec<SnapshotState>,
    /// With or without memory.
    pub has_memory: Option<bool>,
    /// Of this account.
    pub account: String,
    /// Of this tenant domain.
    pub domain: String,
    /// Of this project.
    pub project: String,
    /// Whose name is this.
    pub name: String,
    /// Whose name starts so.
    pub name_prefix: String,
    /// With each of these properties, and this value where one is given.
    pub properties: Vec<(String, Option<String>)>,
    /// Made at or after, in milliseconds since the epoch.
    pub created_after_ms: Option<i64>,
    /// Made before, in milliseconds since the epoch.
    pub created_before_ms: Option<i64>,
}

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    #[default]
    Oldest,
    /// Newest first.
    Newest,
}

/// Which part of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// At most so many.
    pub limit: u32,
    /// Those behind this one: its time and id.
    pub after: Option<(i64, SnapshotId)>,
    /// In this order.
    pub order: Order,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotPage {
    /// The snapshots.
    pub snapshots: Vec<Snapshot>,
    /// How many the whole list has.
    pub total: u64,
    /// Whether there are more behind these.
    pub has_more: bool,
}

impl Store {
    /// Lists snapshots.
    pub async fn snapshots(&self, filter: SnapshotFilter, page: Page) -> Result<SnapshotPage> {
        self.transact(move |transaction| {
            let mut wanted = Conditions::of(&filter);
            let sql = format!("SELECT count(*) FROM snapshot WHERE {}", wanted.text);
            let total: i64 =
                transaction.query_row(&sql, params_from_iter(&wanted.values), |row| row.get(0))?;
            let (direction, beyond) = match page.order {
                Order::Oldest => ("ASC", ">"),
                Order::Newest => ("DESC", "<"),
            };
            if let Some((created_ms, id)) = page.after {
                wanted.and(
                    &format!("(created_at, id) {beyond} (?, ?)"),
                    [created_ms.into(), id.to_string().into()],
                );
            }
            let sql = format!(
                "SELECT body FROM snapshot WHERE {} ORDER BY created_at {direction}, id {direction} LIMIT {}",
                wanted.text,
                u64::from(page.limit) + 1,
            );
            let mut statement = transaction.prepare(&sql)?;
            let rows =
                statement.query_map(params_from_iter(&wanted.values), |row| row.get::<_, String>(0))?;
            let mut snapshots: Vec<Snapshot> =
                rows.map(|row| from_json(&row?, "snapshot")).collect::<Result<_>>()?;
            let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
            let has_more = snapshots.len() > limit;
            snapshots.truncate(limit);
            Ok(SnapshotPage { snapshots, total: total.unsigned_abs(), has_more })
        })
        .await
    }
}

impl Conditions {
    fn of(filter: &SnapshotFilter) -> Self {
        let mut wanted = Self::none();
        if let Some(vm) = filter.vm {
            wanted.and("vm = ?", [vm.to_string().into()]);
        }
        wanted.one_of(
            "state",
            filter.states.iter().map(|state| state_column(*state).to_owned().into()).collect(),
        );
        if let Some(has_memory) = filter.has_memory {
            wanted.and("(body ->> '$.memory' IS NOT NULL) = ?", [has_memory.into()]);
        }
        for (column, value) in [
            ("account", &filter.account),
            ("domain", &filter.domain),
            ("project", &filter.project),
            ("name", &filter.name),
        ] {
            if !value.is_empty() {
                wanted.and(&format!("{column} = ?"), [value.clone().into()]);
            }
        }
        if !filter.name_prefix.is_empty() {
            wanted.and(
                "substr(name, 1, length(?)) = ?",
                [filter.name_prefix.clone().into(), filter.name_prefix.clone().into()],
            );
        }
        for (key, value) in &filter.properties {
            wanted.and(
                "EXISTS (SELECT 1 FROM json_each(body, '$.properties') WHERE key = ? AND value = coalesce(?, value))",
                [key.clone().into(), value.clone().into()],
            );
        }
        if let Some(after) = filter.created_after_ms {
            wanted.and("created_at >= ?", [after.into()]);
        }
        if let Some(before) = filter.created_before_ms {
            wanted.and("created_at < ?", [before.into()]);
        }
        wanted
    }
}
