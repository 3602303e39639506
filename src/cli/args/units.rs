//! Values with units, as a person types them.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// A number and a unit: `90`, `90s`, `5m`, `2h`, `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(format!("{unit:?} is not a unit of time: ms, s, m, h or d")),
    };
    let number: f64 = number.parse().map_err(|_| "a number is missing, as in 30s".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

/// A number and a unit of 1024: `1000`, `64K`, `50M`, `1G`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("{unit:?} is not a unit of bytes: K, M, G or T")),
    };
    let number: u64 = number.parse().map_err(|_| "a number is missing, as in 50M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "it is too much".to_owned())
}

/// A limit on bytes per second, at least one of them: `50M`. None is `none`, and 0 here.
pub(super) fn bandwidth(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        text => match bytes(text)? {
            0 => Err("it is 'none', or more than 0".to_owned()),
            limit => Ok(limit),
        },
    }
}

/// When a time begins and how long it lasts: `0 8 * * 1-5/10h`. A cron expression has slashes of its own: the last one counts,
/// and a unit must follow, so that a step such as `*/2` is not taken for two seconds.
pub(super) fn window(text: &str) -> Result<(String, Duration), String> {
    let wrong = || "it is CRON/DURATION, as in '0 8 * * 1-5/10h'".to_owned();
    let (cron, long) = text.rsplit_once('/').ok_or_else(wrong)?;
    if cron.trim().is_empty() || long.ends_with(|last: char| last.is_ascii_digit()) {
        return Err(wrong());
    }
    Ok((cron.trim().to_owned(), duration(long)?))
}

pub(super) fn property(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it is KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A moment: RFC 3339, a day as in `2026-01-31`, or a duration, taken back from now.
pub(super) fn ago(text: &str) -> Result<SystemTime, String> {
    moment(text, SystemTime::checked_sub)
}

/// A moment: RFC 3339, a day as in `2026-01-31`, or a duration, counted from now.
pub(super) fn from_now(text: &str) -> Result<SystemTime, String> {
    moment(text, SystemTime::checked_add)
}

fn moment(text: &str, apart: fn(&SystemTime, Duration) -> Option<SystemTime>) -> Result<SystemTime, String> {
    if let Ok(duration) = duration(text) {
        return apart(&SystemTime::now(), duration).ok_or_else(|| "it is too far away".to_owned());
    }
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment.into());
    }
    let day = text.parse::<Date>().map_err(|_| "it is a time as in 2026-01-31T12:00:00Z, a day, or 2d")?;
    let begin = day.to_zoned(TimeZone::system()).map_err(|error| error.to_string())?;
    Ok(begin.timestamp().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let noon = "2026-01-31T12:00:00Z";
        let expected = noon.parse::<Timestamp>().unwrap().into();
        assert_eq!((ago(noon), from_now(noon)), (Ok(expected), Ok(expected)));
        let now = SystemTime::now();
        assert!(ago("1h").unwrap() < now && from_now("1h").unwrap() > now);
        assert!(ago("2026-01-31").unwrap() < now);
        assert!(ago("yesterday").is_err() && from_now("99999999999999999999d").is_err());
    }

    fn check_duration(text: &str, expected: Option<Duration>) {
        assert_eq!(duration(text).ok(), expected, "{text:?}");
    }

    #[test]
    fn durations() {
        check_duration("90", Some(Duration::from_secs(90)));
        check_duration("1.5s", Some(Duration::from_millis(1500)));
        check_duration("500ms", Some(Duration::from_millis(500)));
        check_duration("2h", Some(Duration::from_secs(7200)));
        check_duration("", None);
        check_duration("5 parsec", None);
        check_duration("-5s", None);
    }

    fn check_window(text: &str, expected: Option<(&str, u64)>) {
        let expected = expected.map(|(cron, seconds)| (cron.to_owned(), Duration::from_secs(seconds)));
        assert_eq!(window(text).ok(), expected, "{text:?}");
    }

    #[test]
    fn windows() {
        check_window("0 8 * * 1-5/10h", Some(("0 8 * * 1-5", 36000)));
        check_window("*/5 * * * */90s", Some(("*/5 * * * *", 90)));
        check_window("0 8 * * */2", None);
        check_window("0 8 * * *", None);
        check_window("0 8 * * */", None);
        check_window("/10h", None);
    }

    fn check_bytes(text: &str, expected: Option<u64>) {
        assert_eq!(bytes(text).ok(), expected, "{text:?}");
    }

    #[test]
    fn amounts() {
        check_bytes("1000", Some(1000));
        check_bytes("64K", Some(65536));
        check_bytes("50MiB", Some(50 << 20));
        check_bytes("9999999999T", None);
        check_bytes("fast", None);
    }
}
