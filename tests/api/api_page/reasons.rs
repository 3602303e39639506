//! The table of errors has every reason that the daemon may give, with its code and whether a time to ask again comes with it;
//! and those that the contract has beyond these are named.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::value::Error;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use vmsnap::api;
use vmsnap::model::Reason;
use vmsnap::proto::v1;

use super::PAGE;
use crate::page::code;

/// Asks a type for the names of its variants, and makes nothing.
struct Variants<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Variants<'_> {
    type Error = Error;

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = variants;
        Err(Error::custom("the names are all that was wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("it is not an enum"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// Every reason that the daemon knows: a list by hand would not grow with it.
fn all() -> Vec<Reason> {
    let mut names: &[&str] = &[];
    Reason::deserialize(Variants(&mut names)).unwrap_err();
    assert!(names.len() > 50, "{names:?}");
    names.iter().map(|name| serde_json::from_value((*name).into()).unwrap()).collect()
}

fn name(reason: v1::Reason) -> String {
    reason.as_str_name().trim_start_matches("REASON_").to_owned()
}

/// As the contract spells a code.
fn code_name(code: tonic::Code) -> String {
    let words = format!("{code:?}");
    let parted = words.chars().enumerate().flat_map(|(place, letter)| {
        let gap = (place > 0 && letter.is_ascii_uppercase()).then_some('_');
        gap.into_iter().chain([letter.to_ascii_uppercase()])
    });
    parted.collect()
}

/// What the daemon may send: of each reason its code, and whether it says when to ask again.
fn sent() -> BTreeMap<String, (String, bool)> {
    let told = all().into_iter().map(|reason| {
        let (told, code) = api::told_as(reason);
        (name(told), (code_name(code), api::is_passing(reason)))
    });
    told.collect()
}

#[test]
fn the_table_has_every_reason() {
    let rows = PAGE.part("## Errors").rows();
    let of_row = |row: &Vec<&'static str>| {
        let [reason, code_of_it, meaning, remedy] = row[..] else { panic!("{row:?}") };
        assert!(!meaning.is_empty() && !remedy.is_empty(), "{row:?} says nothing");
        let again = code(remedy).contains(&"RetryInfo");
        (code(reason)[0].to_owned(), (code(code_of_it)[0].to_owned(), again))
    };
    let table: BTreeMap<_, _> = rows.iter().map(of_row).collect();
    assert_eq!(rows.len(), table.len(), "a reason stands there twice");
    assert_eq!(table, sent());
}

#[test]
fn the_others_are_named() {
    let sent: BTreeSet<String> = sent().into_keys().collect();
    let contract = (1..2000).filter_map(|number| v1::Reason::try_from(number).ok()).map(name);
    let rest: BTreeSet<String> = contract.filter(|reason| !sent.contains(reason)).collect();
    let named: BTreeSet<String> =
        code(PAGE.part("### Not sent yet").0).into_iter().map(ToOwned::to_owned).collect();
    assert_eq!(named, rest);
}

/// The contract says beside each reason which code goes with it.
#[test]
fn the_contract_has_the_same_codes() {
    let contract = include_str!("../../../proto/vmsnap/v1/errors.proto");
    let told = sent();
    for (reason, (code, _)) in &told {
        let before = contract.split(&format!("  REASON_{reason} = ")).next().unwrap();
        let comment = before.rsplit(";\n").next().unwrap();
        assert!(comment.contains(&format!("  // {code}: ")), "{reason} goes with {code}: {comment}");
    }
}
