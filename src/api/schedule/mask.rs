//! The fields of a schedule that `update_mask` may name.
//!
//! Decides which there are, and takes each. A message is named as a whole, or a field within it; what lies deeper is not. Leaves to
//! `wish` whether what comes out is a schedule. Whether it rests is no field of these: there are calls for that.

use crate::api::status::Violations;
use crate::proto::v1;

/// Longest piece of a path that is said back.
const QUOTED: usize = 64;

/// A schedule with what `paths` name taken from `values`.
pub(super) fn with(
    violations: &mut Violations,
    mut schedule: v1::Schedule,
    values: &v1::Schedule,
    paths: &[String],
) -> v1::Schedule {
    for path in paths {
        if !take(path, values, &mut schedule) {
            let quoted: String = path.chars().take(QUOTED).collect();
            violations.add("update_mask", format!("{quoted:?} is not a field that can be changed"));
        }
    }
    schedule
}

/// Takes one. Whether there is such a field.
fn take(path: &str, values: &v1::Schedule, into: &mut v1::Schedule) -> bool {
    match path {
        "name" => into.name.clone_from(&values.name),
        "description" => into.description.clone_from(&values.description),
        "selector" => into.selector.clone_from(&values.selector),
        "template" => into.template.clone_from(&values.template),
        "timing" => into.timing.clone_from(&values.timing),
        "retention" => into.retention = values.retention,
        "limits" => into.limits = values.limits,
        path => return path.split_once('.').is_some_and(|(part, field)| within(part, field, values, into)),
    }
    true
}

/// Takes a field within one of the messages.
fn within(part: &str, field: &str, values: &v1::Schedule, into: &mut v1::Schedule) -> bool {
    /// The fields of a part, by their names. One that is not given at all has its fields empty.
    macro_rules! fields {
        ($part:ident: $($field:ident)*) => {{
            let (values, into) = (values.$part.clone().unwrap_or_default(), into.$part.get_or_insert_default());
            match field {
                $(stringify!($field) => into.$field = values.$field,)*
                _ => return false,
            }
            true
        }};
    }
    match part {
        "selector" => fields!(selector: vms labels account all),
        "template" => {
            fields!(template: name description disks memory quiesce mount_points account domain project properties)
        }
        "timing" => fields!(timing: cron time_zone jitter blackout_windows catch_up),
        "retention" => {
            fields!(retention: keep_last keep_hourly keep_daily keep_weekly keep_monthly keep_yearly
                               keep_within minimum)
        }
        "limits" => fields!(limits: max_snapshots_per_vm max_bytes_per_vm min_free_bytes max_chain_depth),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::{DescriptorPool, Kind};

    use super::*;
    use crate::proto::DESCRIPTOR_SET;

    /// A field that the contract gets anew can be changed, or it is said here why not.
    #[test]
    fn every_field_that_people_set_is_one() {
        let contract = DescriptorPool::decode(DESCRIPTOR_SET).unwrap();
        let message = contract.get_message_by_name("vmsnap.v1.Schedule").unwrap();
        let of_others = ["id", "paused", "next_run_time", "last_run", "create_time", "created_by", "etag"];
        for field in message.fields() {
            let check = |path: &str, expected: bool| {
                let (values, mut into) = (v1::Schedule::default(), v1::Schedule::default());
                assert_eq!(take(path, &values, &mut into), expected, "{path}");
            };
            let is_set = !of_others.contains(&field.name());
            check(field.name(), is_set);
            let Kind::Message(part) = field.kind() else { continue };
            for within in part.fields() {
                check(&format!("{}.{}", field.name(), within.name()), is_set);
            }
        }
        for path in ["", ".", "timing.", ".cron", "timing.cron.x", "timing.blackout_windows.0", "*", "Timing"]
        {
            assert!(!take(path, &v1::Schedule::default(), &mut v1::Schedule::default()), "{path}");
        }
    }

    #[test]
    fn only_what_is_named_is_taken() {
        let timing = |cron: &str, zone: &str| {
            let (cron, time_zone) = (cron.to_owned(), zone.to_owned());
            Some(v1::Timing { cron, time_zone, ..v1::Timing::default() })
        };
        let before = v1::Schedule { name: "a".to_owned(), timing: timing("1", "UTC"), ..Default::default() };
        let values = v1::Schedule { name: "b".to_owned(), timing: timing("2", "GMT"), ..Default::default() };
        let check = |paths: &[&str], name: &str, expected: Option<v1::Timing>| {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            let mut violations = Violations::default();
            let after = with(&mut violations, before.clone(), &values, &paths);
            assert_eq!((after.name.as_str(), after.timing), (name, expected), "{paths:?}");
            violations.check().unwrap();
        };
        check(&[], "a", timing("1", "UTC"));
        check(&["name"], "b", timing("1", "UTC"));
        check(&["timing.cron"], "a", timing("2", "UTC"));
        check(&["timing"], "a", timing("2", "GMT"));
        check(&["name", "timing.time_zone"], "b", timing("1", "GMT"));
        let mut violations = Violations::default();
        let paths = ["x".repeat(100_000)];
        with(&mut violations, before.clone(), &values, &paths);
        assert!(violations.check().unwrap_err().message().len() < 200);
    }
}
