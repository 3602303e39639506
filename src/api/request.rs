//! Shapes that several requests share: checked here, all violations at once.

use std::str::FromStr;
use std::time::Duration;

use super::status::Violations;
use crate::model::edit::PROPERTIES_LIMIT;

/// Longest request id, in bytes.
const REQUEST_ID_LIMIT: usize = 36;

/// Longest text of a person, in bytes: descriptions and the like.
const TEXT_LIMIT: usize = 4096;

/// Longest name for people, account, key or value, in bytes.
const LABEL_LIMIT: usize = 255;

/// Most alternatives of a filter: more than there are kinds of anything, and as many as a snapshot has properties.
const FILTER_LIMIT: usize = PROPERTIES_LIMIT;

/// A time that is not negative, as the contract has it: no second is written in nanoseconds. prost's own conversion overflows.
pub(super) fn duration(asked: prost_types::Duration) -> Option<Duration> {
    let nanos = u32::try_from(asked.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(asked.seconds).ok()?, nanos))
}

impl Violations {
    /// A request id is short ASCII, or empty.
    pub(super) fn request_id(&mut self, id: &str) {
        if id.len() > REQUEST_ID_LIMIT || !id.chars().all(|c| c.is_ascii_graphic()) {
            self.add("request_id", format!("at most {REQUEST_ID_LIMIT} printable ASCII characters"));
        }
    }

    /// How long a merge may be without headway, in milliseconds. None for as long as is configured.
    pub(super) fn merge_deadline(&mut self, asked: Option<prost_types::Duration>) -> Option<u64> {
        let wanted = duration(asked?).filter(|wanted| !wanted.is_zero());
        let millis = wanted.and_then(|wanted| u64::try_from(wanted.as_millis()).ok());
        self.take("merge_deadline", millis.ok_or("more than 0 s"))
    }

    /// A text of a person.
    pub(super) fn text(&mut self, field: &str, text: &str) {
        self.limited(field, text, TEXT_LIMIT);
    }

    /// A label.
    pub(super) fn label(&mut self, field: &str, text: &str) {
        self.limited(field, text, LABEL_LIMIT);
    }

    /// Properties: keys that are not empty, all of them labels.
    pub(super) fn properties<'a>(
        &mut self,
        field: &str,
        properties: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
    ) {
        if properties.len() > PROPERTIES_LIMIT {
            self.add(field, format!("at most {PROPERTIES_LIMIT} are kept"));
        }
        for (key, value) in properties {
            if key.is_empty() {
                self.add(field, "a key is empty");
            }
            self.label(field, key);
            self.label(field, value);
        }
    }

    /// What a text stands for. One that is too long is not even read: what is said of it may quote it.
    pub(super) fn parse<T: FromStr>(&mut self, field: &str, text: &str) -> Option<T>
    where
        T::Err: ToString,
    {
        if text.len() > LABEL_LIMIT {
            self.label(field, text);
            return None;
        }
        self.take(field, text.parse())
    }

    /// Alternatives of a filter, of which each becomes a condition.
    pub(super) fn few(&mut self, field: &str, number: usize) {
        if number > FILTER_LIMIT {
            self.add(field, format!("it has {number} entries, at most {FILTER_LIMIT} are looked for"));
        }
    }

    /// Alternatives of a filter, each of which means something here.
    pub(super) fn known(&mut self, field: &str, all_are: bool) {
        if !all_are {
            self.add(field, "it has a value that this daemon does not know");
        }
    }

    /// A text that must be there.
    pub(super) fn required(&mut self, field: &str, text: &str) {
        if text.is_empty() {
            self.add(field, "it is empty");
        }
        self.label(field, text);
    }

    /// A text of so many bytes at most.
    pub(super) fn limited(&mut self, field: &str, text: &str, limit: usize) {
        if text.len() > limit {
            self.add(field, format!("it has {} bytes, at most {limit} are kept", text.len()));
        }
        if text.contains('\0') {
            self.add(field, "it contains a NUL");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |seconds, nanos, expected| {
            assert_eq!(duration(prost_types::Duration { seconds, nanos }), expected, "{seconds} {nanos}");
        };
        check(0, 0, Some(Duration::ZERO));
        check(1, 999_999_999, Some(Duration::new(1, 999_999_999)));
        check(i64::MAX, 999_999_999, Some(Duration::new(i64::MAX.unsigned_abs(), 999_999_999)));
        for (seconds, nanos) in [
            (-1, 0),
            (0, -1),
            (1, -1),
            (0, 1_000_000_000),
            (i64::MIN, 0),
            (i64::MIN, i32::MIN),
            (0, i32::MAX),
        ] {
            check(seconds, nanos, None);
        }
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_text_is_refused_or_kept(text in crate::mutation::text(["r-1", "a description\nof two lines", "x"])) {
            let accepts = |check: fn(&mut Violations, &str)| {
                let mut violations = Violations::default();
                check(&mut violations, &text);
                violations.check().is_ok()
            };
            if accepts(Violations::request_id) {
                assert!(text.len() <= REQUEST_ID_LIMIT && text.bytes().all(|byte| byte.is_ascii_graphic()));
            }
            if accepts(|violations, text| violations.text("description", text)) {
                assert!(text.len() <= TEXT_LIMIT && !text.contains('\0'));
            }
            if accepts(|violations, text| violations.required("name", text)) {
                assert!((1..=LABEL_LIMIT).contains(&text.len()) && !text.contains('\0'));
            }
        }
    }
}
