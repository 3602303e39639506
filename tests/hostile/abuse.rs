//! What clients that mean harm do. Each gives what it holds on to.

use std::path::Path;

use tonic::Code;
use vmsnap::proto::v1;
use vmsnap::proto::v1::event_service_client::EventServiceClient;

use super::bystander::channel;
use super::wire::{
    AGAIN, CONTINUATION, DATA, END_HEADERS, END_STREAM, FRAME, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, Wire, call, frame, header, message, remembered,
};

/// Connections that are still open.
type Held = Vec<Wire>;

type Abuse = fn(&Path) -> Held;

pub const ALL: &[(&str, Abuse)] = &[
    ("messages of 100 MiB", large_messages),
    ("messages that claim to be large", claimed_messages),
    ("a message that ignores the window", beyond_the_window),
    ("a million headers", a_million_headers),
    ("a header of 100 MiB", one_large_header),
    ("headers by reference", headers_by_reference),
    ("empty continuations", empty_continuations),
    ("streams that never end", half_open_streams),
    ("more streams than allowed", many_streams),
    ("rapid resets", rapid_resets),
    ("pings, settings, priorities", control_frames),
    ("silent connections", |socket| silent(socket, 3000)),
    ("half a preface", half_prefaces),
    ("garbage", garbage),
    ("TLS", tls),
    ("10,000 connections, one after the other", reconnects),
    ("watches that nobody reads", unread_watches),
    ("lists read byte by byte", sipped_lists),
];

const LIST: &str = "/vmsnap.v1.EventService/ListEvents";
const WATCH: &str = "/vmsnap.v1.EventService/WatchEvents";

/// The stream of a client's call.
fn stream(number: u32) -> u32 {
    2 * number + 1
}

/// A whole call.
fn whole(path: &str, number: u32, request: &[u8]) -> Vec<u8> {
    let length = u32::try_from(request.len()).unwrap();
    [
        frame(HEADERS, END_HEADERS, stream(number), &call(path)),
        frame(DATA, END_STREAM, stream(number), &message(length, request)),
    ]
    .concat()
}

/// Sent by a library, which keeps to the rules: the daemon says no, and why.
fn large_messages(socket: &Path) -> Held {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let request = v1::ListEventsRequest { page_token: "x".repeat(100 << 20), ..Default::default() };
        for _ in 0..3 {
            let refused = EventServiceClient::new(channel(socket)).list_events(request.clone()).await;
            assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
        }
    });
    Vec::new()
}

fn claimed_messages(socket: &Path) -> Held {
    let claims = [1 << 20, (1 << 20) - 1, 4 << 20, 100 << 20, u32::MAX];
    let hold = |_| {
        let mut wire = Wire::open(socket);
        for (number, claimed) in (0..64).zip(claims.into_iter().cycle()) {
            let head = frame(HEADERS, END_HEADERS, stream(number), &call(LIST));
            wire.say(&[head, frame(DATA, 0, stream(number), &message(claimed, &[7; 100]))].concat());
        }
        wire
    };
    (0..20).map(hold).collect()
}

fn beyond_the_window(socket: &Path) -> Held {
    let mut wire = Wire::open(socket);
    wire.say(&frame(HEADERS, END_HEADERS, 1, &call(LIST)));
    wire.say(&frame(DATA, 0, 1, &message(100 << 20, &[])));
    let piece = frame(DATA, 0, 1, &[7; FRAME]);
    let is_cut = (0..(100 << 20) / FRAME).any(|_| !wire.say(&piece));
    assert!(is_cut, "the daemon took it all");
    vec![wire]
}

fn a_million_headers(socket: &Path) -> Held {
    let headers: Vec<u8> = (0..500).flat_map(|number| header(&format!("x-{number}"), "y")).collect();
    let mut wire = Wire::open(socket);
    wire.say(&frame(HEADERS, 0, 1, &call(LIST)));
    let piece = frame(CONTINUATION, 0, 1, &headers);
    let is_cut = (0..2000).any(|_| !wire.say(&piece));
    assert!(is_cut, "the daemon took them all");
    vec![wire]
}

fn one_large_header(socket: &Path) -> Held {
    let mut wire = Wire::open(socket);
    let bytes = header("x", &"y".repeat(100 << 20));
    let mut pieces = bytes.chunks(FRAME);
    wire.say(&frame(HEADERS, 0, 1, pieces.next().unwrap()));
    let is_cut = pieces.any(|piece| !wire.say(&frame(CONTINUATION, 0, 1, piece)));
    assert!(is_cut, "the daemon took it all");
    vec![wire]
}

/// Some KiB that stand for 64 MiB.
fn headers_by_reference(socket: &Path) -> Held {
    let bomb = [call(LIST), remembered("x", &"y".repeat(4000)), vec![AGAIN; 12_000]].concat();
    let hold = |_| {
        let mut wire = Wire::open(socket);
        for number in 0..50 {
            if !wire.say(&frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &bomb)) {
                break;
            }
        }
        wire
    };
    (0..10).map(hold).collect()
}

fn empty_continuations(socket: &Path) -> Held {
    let mut wire = Wire::open(socket);
    wire.say(&frame(HEADERS, 0, 1, &call(LIST)));
    let many = frame(CONTINUATION, 0, 1, &[]).repeat(1000);
    let is_cut = (0..1000).any(|_| !wire.say(&many));
    assert!(is_cut, "the daemon took them all");
    vec![wire]
}

fn half_open_streams(socket: &Path) -> Held {
    let hold = |_| {
        let mut wire = Wire::open(socket);
        for number in 0..64 {
            wire.say(&frame(HEADERS, END_HEADERS, stream(number), &call(LIST)));
        }
        wire
    };
    (0..50).map(hold).collect()
}

fn many_streams(socket: &Path) -> Held {
    let hold = |_| {
        let mut wire = Wire::open(socket);
        let _ = (0..5000).all(|number| wire.push(&whole(LIST, number, &[])));
        wire
    };
    (0..10).map(hold).collect()
}

/// CVE-2023-44487: asked for and taken back, so that it does not count as open.
fn rapid_resets(socket: &Path) -> Held {
    let hold = |_| {
        let mut wire = Wire::open(socket);
        let _ = (0..50_000).all(|number| {
            let reset = frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes());
            wire.say(&[whole(LIST, number, &[]), reset].concat())
        });
        wire
    };
    (0..4).map(hold).collect()
}

fn control_frames(socket: &Path) -> Held {
    let kinds = [
        frame(PING, 0, 0, &[0; 8]),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 0]),
        frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
        frame(0x77, 0, 1, &[0; 8]),
    ];
    let hold = |kind: &Vec<u8>| {
        let mut wire = Wire::open(socket);
        let many = kind.repeat(1000);
        // Its answers are not read, so it does not go on for ever.
        let _ = (0..200).all(|_| wire.push(&many));
        wire
    };
    kinds.iter().map(hold).collect()
}

/// So many that say nothing at all.
pub fn silent(socket: &Path, number: usize) -> Held {
    (0..number).map(|_| Wire::silent(socket)).collect()
}

fn half_prefaces(socket: &Path) -> Held {
    let half = |length| {
        let mut wire = Wire::silent(socket);
        wire.say(&PREFACE[..length % PREFACE.len()]);
        wire
    };
    (0..300).map(half).collect()
}

fn garbage(socket: &Path) -> Held {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = move || {
        // Marsaglia's xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.to_le_bytes()[0]
    };
    let mut talk = |number| {
        let bytes: Vec<u8> = (0..4096).map(|_| byte()).collect();
        let mut wire = if number % 2 == 0 { Wire::open(socket) } else { Wire::silent(socket) };
        wire.say(&bytes);
        wire
    };
    (0..300).map(&mut talk).collect()
}

/// The begin of a `ClientHello`.
fn tls(socket: &Path) -> Held {
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat();
    let talk = |_| {
        let mut wire = Wire::silent(socket);
        wire.say(&hello);
        wire.end();
        wire
    };
    (0..50).map(talk).collect()
}

fn reconnects(socket: &Path) -> Held {
    for number in 0..10_000 {
        let mut wire = Wire::open(socket);
        if number % 10 == 0 {
            wire.say(&whole(LIST, 0, &[]));
        }
    }
    Vec::new()
}

/// From the first event on, so that there is something to send at once.
fn unread_watches(socket: &Path) -> Held {
    let from_the_first = [&[0x12, 1][..], b"0"].concat();
    let hold = |_| {
        let mut wire = Wire::open(socket);
        let _ = (0..64).all(|number| wire.push(&whole(WATCH, number, &from_the_first)));
        wire
    };
    (0..20).map(hold).collect()
}

fn sipped_lists(socket: &Path) -> Held {
    let page_size_of_1000 = [0x18, 0xe8, 7];
    let hold = |_| {
        let mut wire = Wire::open(socket);
        for number in 0..4 {
            wire.say(&whole(LIST, number, &page_size_of_1000));
        }
        for _ in 0..10 {
            wire.sip();
        }
        wire
    };
    (0..20).map(hold).collect()
}
