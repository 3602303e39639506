//! How long a call may take to its answer, or to the begin of one that goes on.
//!
//! Decides that a client's own deadline counts, up to ours. tonic would end such a call with CANCELLED, which says that the client
//! has taken it back. What a call has begun goes on: an operation ends by itself.

use std::time::Duration;

use tonic::codegen::http::HeaderMap;

/// Longer than any call of ours: it ends one whose request never comes whole.
const LONGEST: Duration = Duration::from_secs(120);

/// tonic looks at the same deadline, and was asked first.
const BEFORE_TONIC: Duration = Duration::from_millis(5);

/// How long this call may take.
pub(super) fn of(headers: &HeaderMap) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|value| read(value.to_str().ok()?));
    asked.map_or(LONGEST, |asked| asked.saturating_sub(BEFORE_TONIC).min(LONGEST))
}

/// As the gRPC specification spells a `Timeout`: at most eight digits and a unit. tonic passes over what is none.
fn read(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("123456789S", None),
            ("1\u{e9}", None),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
    }

    #[test]
    fn ours_is_the_longest() {
        let of = |text: &'static str| {
            super::of(
                &[("grpc-timeout", text)]
                    .into_iter()
                    .map(|(name, value)| {
                        (
                            tonic::codegen::http::HeaderName::from_static(name),
                            tonic::codegen::http::HeaderValue::from_static(value),
                        )
                    })
                    .collect(),
            )
        };
        assert_eq!(of("1S"), Duration::from_millis(995));
        assert_eq!(of("1m"), Duration::ZERO);
        assert_eq!(of("1H"), LONGEST);
        assert_eq!(of("nonsense"), LONGEST);
    }
}
