//! Values in words: sizes, ages, states.

use jiff::{SignedDuration, Timestamp};
use prost_types::Timestamp as ProtoTimestamp;

use crate::proto::v1;

/// A number of bytes, in units of 1024, three digits at most.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let mut number = bytes as f64;
    let mut unit = 0;
    while number >= 1000.0 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    if unit == 0 || number >= 99.95 {
        format!("{number:.0} {}", UNITS[unit])
    } else {
        format!("{number:.1} {}", UNITS[unit])
    }
}

/// How a merge stands against the guest, where that is worth a word.
pub(super) fn convergence(progress: &v1::Progress) -> Option<String> {
    let (disk, limit) = (&progress.disk, progress.writes_limited_to_bytes_per_second);
    let slowed = || format!("the guest's writes are slowed to {}/s", size(limit));
    let (written, copied) = (size(progress.write_bytes_per_second), size(progress.bytes_per_second));
    match progress.convergence() {
        v1::Convergence::Outrun if limit > 0 => {
            Some(format!("{disk}: {written}/s are written, {copied}/s copied; {}", slowed()))
        }
        v1::Convergence::Outrun => {
            Some(format!("{disk}: the guest writes {written}/s, {copied}/s are copied"))
        }
        v1::Convergence::Still => Some(format!("{disk}: nothing is copied")),
        v1::Convergence::Gaining | v1::Convergence::Unspecified if limit > 0 => {
            Some(format!("{disk}: {}", slowed()))
        }
        v1::Convergence::Gaining | v1::Convergence::Unspecified => held(progress),
    }
}

/// How slowly a merge copies for the guest's sake.
fn held(progress: &v1::Progress) -> Option<String> {
    let limit = Some(progress.held_to_bytes_per_second).filter(|limit| *limit > 0)?;
    let wait = progress.guest_wait.and_then(|wait| std::time::Duration::try_from(wait).ok());
    let wait = wait.map(|wait| format!(": its requests take {} ms", wait.as_millis())).unwrap_or_default();
    Some(format!(
        "{}: at most {}/s are copied, so that the guest does not wait{wait}",
        progress.disk,
        size(limit)
    ))
}

/// How long ago, in its largest unit.
pub(super) fn age(time: Option<ProtoTimestamp>) -> String {
    time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok())
        .map(|time| span(Timestamp::now().duration_since(time)))
        .unwrap_or_default()
}

fn span(span: SignedDuration) -> String {
    let seconds = span.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// A time, in this place's own.
pub(super) fn time(time: Option<ProtoTimestamp>) -> String {
    time.map(|time| time_in(time, &jiff::tz::TimeZone::system())).unwrap_or_default()
}

/// A time, in another place's own.
pub(super) fn time_in(time: ProtoTimestamp, zone: &jiff::tz::TimeZone) -> String {
    let time = Timestamp::new(time.seconds, time.nanos);
    time.map(|time| time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string())
        .unwrap_or_default()
}

/// How long, as it is typed: exact, in the largest unit that divides it. Nothing for none.
pub(super) fn duration(duration: Option<prost_types::Duration>) -> String {
    let Some(duration) = duration else { return String::new() };
    match (duration.seconds, duration.nanos) {
        (seconds, nanos) if nanos != 0 => format!("{}ms", seconds * 1000 + i64::from(nanos) / 1_000_000),
        (seconds, _) if seconds != 0 && seconds % 86400 == 0 => format!("{}d", seconds / 86400),
        (seconds, _) if seconds != 0 && seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        (seconds, _) if seconds != 0 && seconds % 60 == 0 => format!("{}m", seconds / 60),
        (seconds, _) => format!("{seconds}s"),
    }
}

/// Milliseconds; nothing for none.
pub(super) fn milliseconds(ms: f64) -> String {
    match ms {
        none if none <= 0.0 => String::new(),
        short if short < 1000.0 => format!("{short:.0} ms"),
        long => format!("{:.1} s", long / 1000.0),
    }
}

/// A value of an enum without the prefix that protos need.
fn short(name: &str, prefix: &str) -> String {
    let name = name.strip_prefix(prefix).unwrap_or(name);
    if name == "UNSPECIFIED" { String::new() } else { name.to_owned() }
}

pub(super) fn snapshot_state(state: v1::SnapshotState) -> String {
    short(state.as_str_name(), "SNAPSHOT_STATE_")
}

pub(super) fn operation_state(state: v1::OperationState) -> String {
    short(state.as_str_name(), "OPERATION_STATE_")
}

pub(super) fn operation_kind(kind: v1::OperationKind) -> String {
    short(kind.as_str_name(), "OPERATION_KIND_").to_lowercase().replace('_', " ")
}

pub(super) fn schedule_run_state(state: v1::ScheduleRunState) -> String {
    short(state.as_str_name(), "SCHEDULE_RUN_STATE_")
}

/// As the option spells it. Nothing for the default.
pub(super) fn quiesce(quiesce: v1::Quiesce) -> String {
    short(quiesce.as_str_name(), "QUIESCE_").to_lowercase()
}

/// As the option spells it. Nothing for the default.
pub(super) fn catch_up(catch_up: v1::CatchUp) -> String {
    short(catch_up.as_str_name(), "CATCH_UP_").to_lowercase()
}

pub(super) fn step_state(state: v1::StepState) -> String {
    short(state.as_str_name(), "STEP_STATE_")
}

pub(super) fn severity(severity: v1::Severity) -> String {
    short(severity.as_str_name(), "SEVERITY_")
}

pub(super) fn difference(kind: v1::DifferenceKind) -> String {
    short(kind.as_str_name(), "DIFFERENCE_KIND_").to_lowercase().replace('_', " ")
}

/// As the options of `resolve` spell it.
pub(super) fn difference_action(action: v1::DifferenceAction) -> String {
    short(action.as_str_name(), "DIFFERENCE_ACTION_").to_lowercase().replace('_', "-")
}

pub(super) fn volume_state(state: v1::VolumeState) -> String {
    short(state.as_str_name(), "VOLUME_STATE_")
}

pub(super) fn consistency(consistency: v1::Consistency) -> String {
    short(consistency.as_str_name(), "CONSISTENCY_")
}

pub(super) fn run_state(state: v1::RunState) -> String {
    short(state.as_str_name(), "RUN_STATE_").to_lowercase()
}

pub(super) fn image_format(format: v1::ImageFormat) -> String {
    short(format.as_str_name(), "IMAGE_FORMAT_").to_lowercase()
}

pub(super) fn snapshot_kind(kind: v1::SnapshotKind) -> &'static str {
    match kind {
        v1::SnapshotKind::Unspecified => "",
        v1::SnapshotKind::VmDisks => "disks",
        v1::SnapshotKind::VmDisksAndMemory => "disks+memory",
        v1::SnapshotKind::Volume => "volume",
    }
}

/// Who holds, and why.
pub(super) fn hold(hold: &v1::Hold) -> String {
    match hold.reason.as_str() {
        "" => hold.name.clone(),
        reason => format!("{} ({reason})", hold.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |bytes, expected| assert_eq!(size(bytes), expected);
        check(0, "0 B");
        check(999, "999 B");
        check(1000, "1.0 KiB");
        check(1536, "1.5 KiB");
        check(150 << 20, "150 MiB");
        check(u64::MAX, "16384 PiB");
    }

    #[test]
    fn a_merge_against_the_guest() {
        let check = |convergence: v1::Convergence, limit, expected: Option<&str>| {
            let progress = v1::Progress {
                disk: "vda".to_owned(),
                convergence: convergence.into(),
                bytes_per_second: 60 << 20,
                write_bytes_per_second: 80 << 20,
                writes_limited_to_bytes_per_second: limit,
                ..v1::Progress::default()
            };
            assert_eq!(super::convergence(&progress).as_deref(), expected);
        };
        check(v1::Convergence::Outrun, 0, Some("vda: the guest writes 80.0 MiB/s, 60.0 MiB/s are copied"));
        let both =
            "vda: 80.0 MiB/s are written, 60.0 MiB/s copied; the guest's writes are slowed to 2.0 MiB/s";
        check(v1::Convergence::Outrun, 2 << 20, Some(both));
        check(v1::Convergence::Still, 0, Some("vda: nothing is copied"));
        check(v1::Convergence::Gaining, 2 << 20, Some("vda: the guest's writes are slowed to 2.0 MiB/s"));
        check(v1::Convergence::Gaining, 0, None);
        check(v1::Convergence::Unspecified, 0, None);
    }

    #[test]
    fn a_merge_held_back() {
        let check = |limit, wait: Option<prost_types::Duration>, expected: Option<&str>| {
            let progress = v1::Progress {
                disk: "vda".to_owned(),
                held_to_bytes_per_second: limit,
                guest_wait: wait,
                ..v1::Progress::default()
            };
            assert_eq!(convergence(&progress).as_deref(), expected);
        };
        let wait = prost_types::Duration { seconds: 0, nanos: 45_600_000 };
        check(0, Some(wait), None);
        check(32 << 20, None, Some("vda: at most 32.0 MiB/s are copied, so that the guest does not wait"));
        let both =
            "vda: at most 32.0 MiB/s are copied, so that the guest does not wait: its requests take 45 ms";
        check(32 << 20, Some(wait), Some(both));
    }

    #[test]
    fn durations_as_they_are_typed() {
        let check = |seconds, nanos, expected| {
            assert_eq!(duration(Some(prost_types::Duration { seconds, nanos })), expected);
        };
        check(0, 0, "0s");
        check(90, 0, "90s");
        check(600, 0, "10m");
        check(36000, 0, "10h");
        check(7 * 86400, 0, "7d");
        check(1, 500_000_000, "1500ms");
        assert_eq!(duration(None), "");
    }

    #[test]
    fn spans() {
        let check = |seconds, expected| assert_eq!(span(SignedDuration::from_secs(seconds)), expected);
        check(-5, "0s");
        check(119, "119s");
        check(120, "2m");
        check(7200, "2h");
        check(200_000, "2d");
    }
}
