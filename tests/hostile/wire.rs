//! HTTP/2 frames written by hand: what no library lets one send. RFC 9113 has the frames, RFC 7541 the headers.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// What only a daemon that has stopped reading does not take.
const PATIENCE: Duration = Duration::from_secs(30);

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Longest payload of a frame that may be sent unasked.
pub const FRAME: usize = 16 * 1024;

/// A connection on which anything can be said.
pub struct Wire(UnixStream);

impl Wire {
    /// One that has said nothing.
    pub fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the daemon listens");
        stream.set_write_timeout(Some(PATIENCE)).expect("a limit that is not zero");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit that is not zero");
        Self(stream)
    }

    /// One whose HTTP/2 has begun. Windows for answers are as large as they can be, so that nothing but the daemon limits
    /// what it holds for us.
    pub fn open(socket: &Path) -> Self {
        let mut wire = Self::silent(socket);
        let window = [&[0, 4][..], &0x7fff_ffff_u32.to_be_bytes()].concat();
        let more = frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes());
        wire.say(&[PREFACE, &frame(SETTINGS, 0, 0, &window), &more].concat());
        wire
    }

    /// Says it, as far as the other side listens. False once it does not any more.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        match self.0.write_all(bytes) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("the daemon reads no more"),
            Err(error) => panic!("{error}"),
        }
    }

    /// Says it if it can be said without waiting. False if not.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.0.set_nonblocking(true).expect("a socket");
        let is_said = self.0.write_all(bytes).is_ok();
        self.0.set_nonblocking(false).expect("a socket");
        is_said
    }

    /// Waits until the other side has hung up, reading what it says until then.
    pub fn end(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the daemon does not hang up: {error}"),
            }
        }
    }

    /// Reads one byte.
    pub fn sip(&mut self) {
        self.0.read_exact(&mut [0]).expect("the daemon answers");
    }
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header, spelled out: not to be remembered.
pub fn header(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &text(name), &text(value)].concat()
}

/// A header that is to be remembered, and is asked for again by [`AGAIN`].
pub fn remembered(name: &str, value: &str) -> Vec<u8> {
    [&[0x40][..], &text(name), &text(value)].concat()
}

/// The header that was remembered last: the first behind the 61 that every connection knows.
pub const AGAIN: u8 = 0x80 + 62;

/// A text with its length before it.
fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match text.len() {
        length @ 0..127 => bytes.push(u8::try_from(length).expect("below 127")),
        length => {
            bytes.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).expect("below 128") | 128);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).expect("below 128"));
        }
    }
    bytes.extend(text.bytes());
    bytes
}

/// The headers of a gRPC call.
pub fn call(path: &str) -> Vec<u8> {
    [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", path),
        header(":authority", "localhost"),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ]
    .concat()
}

/// A gRPC message that claims to have so many bytes.
pub fn message(claimed: u32, bytes: &[u8]) -> Vec<u8> {
    [&[0][..], &claimed.to_be_bytes(), bytes].concat()
}
