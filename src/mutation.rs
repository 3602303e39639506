//! Inputs as a stranger would send them: any bytes, and good samples that were bent. For tests of whatever reads something
//! from outside.
//!
//! Decides nothing about what is read. `make fuzz` runs these tests for as long as one likes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What has hurt readers before: numbers at their bounds, ends of texts, names that mean more than a file, depth.
const TOKENS: &[&[u8]] = &[
    b"",
    b"\0",
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\n",
    b"\x1b[2J",
    "\u{202e}".as_bytes(),
    "\u{feff}".as_bytes(),
    "\u{ffff}".as_bytes(),
    b"0",
    b"-1",
    b"-9223372036854775808",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"1e999",
    b"0x10",
    b"NaN",
    b"json:{\"driver\":\"nbd\"}",
    b"nbd://example.org/x",
    b"file:",
    b"/../../etc/shadow",
    b"//",
    b"'",
    b"\"",
    b"<",
    b">",
    b"&",
    b"&amp;",
    b"&#0;",
    b"&#x1F600;",
    b"&unknown;",
    b"<!DOCTYPE x [<!ENTITY y 'z'>]>",
    b"<![CDATA[x]]>",
    b"]]>",
    b"<!-- x -->",
    b"<?x y?>",
    b" xmlns='y'",
    b" xmlns:x='y'",
    b" type='file'",
    b" dev='/x'",
    b" file='/x'",
    b"<backingStore/>",
    b"<x>",
    b"</x>",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"true",
    b",",
    b":",
    b"\\u0000",
    b"\\ud800",
    b"[x]\n",
    b"= ",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x00\x00\x00\x00\x00\x00\x00\x01",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xe2\x79\x2a\xca",
];

/// One thing that is done to a sample.
#[derive(Debug, Clone)]
enum Bend {
    /// One bit is another.
    Flip(Index, u8),
    /// It ends early.
    Cut(Index),
    /// A part is missing.
    Remove(Index, Index),
    /// A part stands there many times.
    Repeat(Index, Index, usize),
    /// Something stands between.
    Insert(Index, Vec<u8>),
    /// Something stands instead of as many bytes.
    Overwrite(Index, Vec<u8>),
    /// Something stands instead of a number or a word.
    Replace(Index, Vec<u8>),
    /// A part of another sample stands between.
    Splice(Index, Index, Index, Index),
}

/// Bytes: samples bent once or some times over, and sometimes bytes that have nothing to do with them.
pub fn bytes<S: AsRef<[u8]>>(samples: impl IntoIterator<Item = S>) -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<Vec<u8>> = samples.into_iter().map(|sample| sample.as_ref().to_vec()).collect();
    let others = samples.clone();
    let bent = (select(samples), vec(bend(), 0..6)).prop_map(move |(mut sample, bends)| {
        for bend in bends {
            bend.apply(&mut sample, &others);
        }
        sample
    });
    prop_oneof![15 => bent, 1 => vec(any::<u8>(), 0..400)]
}

/// The same for readers of text: what is no UTF-8 reaches none of them.
pub fn text<S: AsRef<str>>(samples: impl IntoIterator<Item = S>) -> impl Strategy<Value = String> {
    let samples = samples.into_iter().map(|sample| sample.as_ref().as_bytes().to_vec());
    bytes(samples).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// How long to try: a failure is told, and the sample that was found belongs into a test of its own.
pub fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

fn bend() -> impl Strategy<Value = Bend> {
    let index = any::<Index>;
    let token = || prop_oneof![4 => select(TOKENS).prop_map(<[u8]>::to_vec), 1 => vec(any::<u8>(), 0..20)];
    let times = prop_oneof![4 => 2..5_usize, 1 => 100..1000_usize];
    prop_oneof![
        (index(), 0..8_u8).prop_map(|(at, bit)| Bend::Flip(at, bit)),
        index().prop_map(Bend::Cut),
        (index(), index()).prop_map(|(from, to)| Bend::Remove(from, to)),
        (index(), index(), times).prop_map(|(from, to, times)| Bend::Repeat(from, to, times)),
        (index(), token()).prop_map(|(at, token)| Bend::Insert(at, token)),
        (index(), token()).prop_map(|(at, token)| Bend::Overwrite(at, token)),
        (index(), token()).prop_map(|(at, token)| Bend::Replace(at, token)),
        (index(), index(), index(), index())
            .prop_map(|(at, which, from, to)| Bend::Splice(at, which, from, to)),
    ]
}

/// Longest part that is taken out, repeated or moved.
const PART: usize = 300;

/// Longest input: readers have bounds of their own, which have tests of their own.
const LONGEST: usize = 200_000;

impl Bend {
    fn apply(self, input: &mut Vec<u8>, others: &[Vec<u8>]) {
        let place = |at: Index, input: &[u8]| at.index(input.len() + 1);
        let part = |from: Index, to: Index, input: &[u8]| {
            let from = place(from, input);
            from..(from + to.index(PART)).min(input.len())
        };
        match self {
            Self::Flip(at, bit) if !input.is_empty() => {
                let at = at.index(input.len());
                input[at] ^= 1 << bit;
            }
            Self::Flip(..) => {}
            Self::Cut(at) => input.truncate(place(at, input)),
            Self::Remove(from, to) => drop(input.drain(part(from, to, input))),
            Self::Repeat(from, to, times) => {
                let part = part(from, to, input);
                let times = times.min(LONGEST / (part.len() + 1));
                let many = input[part.clone()].repeat(times);
                input.splice(part, many);
            }
            Self::Insert(at, token) => {
                let at = place(at, input);
                input.splice(at..at, token);
            }
            Self::Overwrite(at, token) => {
                let at = place(at, input);
                let end = (at + token.len()).min(input.len());
                input.splice(at..end, token);
            }
            Self::Replace(at, token) => {
                if let Some(word) = word(at, input) {
                    input.splice(word, token);
                }
            }
            Self::Splice(at, which, from, to) => {
                let other = which.get(others);
                let (at, part) = (place(at, input), part(from, to, other));
                input.splice(at..at, other[part].iter().copied());
            }
        }
    }
}

/// The first word or number from a place on.
fn word(at: Index, input: &[u8]) -> Option<std::ops::Range<usize>> {
    let at = at.index(input.len() + 1);
    let start = at + input[at..].iter().position(u8::is_ascii_alphanumeric)?;
    let length = input[start..].iter().position(|byte| !byte.is_ascii_alphanumeric());
    Some(start..length.map_or(input.len(), |length| start + length))
}
