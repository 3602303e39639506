//! Pages: sizes that are coerced, tokens that are opaque and bound to their query.

use tonic::Status;

use super::status;
use crate::model::Reason;

/// Entries of a page if the client does not say.
const DEFAULT: u32 = 100;
/// Most entries of a page.
pub(super) const MOST: u32 = 1000;

/// The size of a page: 0 is the default, too many are as many as there may be (AIP-158).
pub(super) fn size(asked: i32) -> Result<u32, Status> {
    match u32::try_from(asked) {
        Ok(0) => Ok(DEFAULT),
        Ok(asked) => Ok(asked.min(MOST)),
        Err(_) => {
            Err(status::plain(Reason::InvalidArgument, "page_size is negative", "use 0 for the default"))
        }
    }
}

/// A token that goes on behind `position` of the list that `query` (a digest) asked for.
pub(super) fn token(query: &[u8], position: &str) -> String {
    format!("{}.{position}", fingerprint(query))
}

/// The position of a token; None for an empty one. A token of another query is refused.
pub(super) fn position<'a>(query: &[u8], token: &'a str) -> Result<Option<&'a str>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    match token.split_once('.') {
        Some((owner, position)) if owner == fingerprint(query).to_string() => Ok(Some(position)),
        Some(_) | None => Err(invalid()),
    }
}

/// The status of a token that is not one of ours, or of another query.
pub(super) fn invalid() -> Status {
    let message = "the page token belongs to another list";
    status::plain(Reason::PageTokenInvalid, message, "begin again without a page token")
}

/// The field that a list is ordered by, and whether its end comes first. What cannot be read is a field that there is not.
pub(super) fn order(order_by: &str) -> (&str, bool) {
    match order_by.split_once(' ') {
        None => (order_by, false),
        Some((field, "asc")) => (field, false),
        Some((field, "desc")) => (field, true),
        Some(_) => ("?", false),
    }
}

/// The status of an order that there is not.
pub(super) fn bad_order(allowed: &str) -> Status {
    let mut violations = status::Violations::default();
    violations.add("order_by", allowed);
    violations.check().err().unwrap_or_else(invalid)
}

fn fingerprint(query: &[u8]) -> u32 {
    let start = query.first_chunk::<4>().copied().unwrap_or_default();
    u32::from_be_bytes(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_with_its_query() {
        let token = token(b"one query", "17");
        assert_eq!(position(b"one query", &token).unwrap(), Some("17"));
        assert_eq!(position(b"one query", "").unwrap(), None);
        assert!(position(b"another query", &token).is_err());
        assert!(position(b"one query", "17").is_err());
    }

    #[test]
    fn sizes_are_coerced() {
        assert_eq!(size(0).unwrap(), DEFAULT);
        assert_eq!(size(7).unwrap(), 7);
        assert_eq!(size(1_000_000).unwrap(), MOST);
        assert!(size(-1).is_err());
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_token_is_refused_or_one_of_its_query(
            text in crate::mutation::text([token(b"one query", "17"), token(b"another", "5_name")]),
            query in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
            asked: i32,
        ) {
            for query in [b"one query", query.as_slice()] {
                if let Ok(Some(place)) = position(query, &text) {
                    assert_eq!(token(query, place), text);
                }
            }
            assert!(size(asked).map_or(asked < 0, |size| (1..=MOST).contains(&size)));
        }
    }
}
