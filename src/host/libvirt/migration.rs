//! What QEMU tells of its last migration (QMP `query-migrate`), which a background capture is one of.
//!
//! Decides what its words mean. Leaves what is done about it to `background`.

use serde::Deserialize;

/// The answer to `query-migrate`: empty if there never was one.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Migration {
    status: Option<String>,
    error_desc: Option<String>,
    ram: Option<Ram>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ram {
    total: u64,
    remaining: u64,
    normal: u64,
    duplicate: u64,
}

/// What QEMU tells of its last migration.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// Pages written, bytes done, bytes in all.
    Active {
        pages: u64,
        done: u64,
        total: u64,
    },
    Complete {
        total: u64,
    },
    Failed(String),
}

impl Migration {
    /// What it means.
    pub(super) fn judge(self) -> Told {
        let ram = self.ram.unwrap_or_default();
        match self.status.as_deref() {
            None | Some("none") => Told::Nothing,
            Some("completed") => Told::Complete { total: ram.total },
            Some("failed") => {
                Told::Failed(self.error_desc.unwrap_or_else(|| "QEMU does not say why".to_owned()))
            }
            Some("cancelled") => Told::Failed("it was cancelled".to_owned()),
            // One that a newer QEMU has come up with is under way.
            Some(_) => Told::Active {
                pages: ram.normal.saturating_add(ram.duplicate),
                done: ram.total.saturating_sub(ram.remaining),
                total: ram.total,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_tells() {
        let check = |json: &str, expected: Told| {
            let migration: Migration = serde_json::from_str(json).unwrap();
            assert_eq!(migration.judge(), expected, "{json}");
        };
        check("{}", Told::Nothing);
        check(r#"{"status":"none"}"#, Told::Nothing);
        check(r#"{"status":"setup"}"#, Told::Active { pages: 0, done: 0, total: 0 });
        check(
            r#"{"status":"active","ram":{"total":100,"remaining":60,"normal":3,"duplicate":4,"mbps":1.5}}"#,
            Told::Active { pages: 7, done: 40, total: 100 },
        );
        check(r#"{"status":"cancelling"}"#, Told::Active { pages: 0, done: 0, total: 0 });
        check(r#"{"status":"completed","ram":{"total":1}}"#, Told::Complete { total: 1 });
        check(r#"{"status":"failed","error-desc":"no room"}"#, Told::Failed("no room".to_owned()));
        check(r#"{"status":"failed"}"#, Told::Failed("QEMU does not say why".to_owned()));
        check(r#"{"status":"cancelled"}"#, Told::Failed("it was cancelled".to_owned()));
    }
}
