//! The header of libvirt's memory images (`virQEMUSaveHeader`).
//!
//! Decides whether a capture was finished. libvirt writes the last letters of the magic only at the end.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::files::{bad, failed, open_image};
use crate::host::{HostError, Result};

/// 16 bytes of magic and 19 numbers of 32 bits, in the byte order of the host.
const HEADER: usize = 92;

const COMPLETE: &[u8; 16] = b"LibvirtQemudSave";
const PARTIAL: &[u8; 16] = b"LibvirtQemudPart";

/// Bytes of a complete memory image; None for one that is missing or was never finished. Blocks.
pub(super) fn complete_bytes(path: &Path) -> Result<Option<u64>> {
    let file = match open_image(path) {
        Err(HostError::NoSuchImage(_)) => return Ok(None),
        opened => opened?,
    };
    let bytes = file.metadata().map_err(failed("look at", path))?.len();
    let mut header = [0; HEADER];
    match file.read_exact_at(&mut header, 0) {
        // The header is the first thing that is written.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map_err(failed("read", path))?,
    }
    judge(&header, bytes).map_err(|problem| bad(path, problem))
}

/// What a header says of a file of this many bytes.
fn judge(header: &[u8; HEADER], bytes: u64) -> std::result::Result<Option<u64>, String> {
    let (magic, numbers) = header.split_at(COMPLETE.len());
    if magic == PARTIAL {
        return Ok(None);
    }
    if magic != COMPLETE {
        return Err("it is not a memory image".to_owned());
    }
    let number = |index: usize| {
        let bytes = numbers[index * 4..][..4].try_into().expect("four bytes are four bytes");
        u32::from_ne_bytes(bytes)
    };
    let (version, data_length) = (number(0), number(1));
    if !matches!(version, 1..=3) {
        return Err(format!("it has version {version} of libvirt's format"));
    }
    // The definition stands between the header and the memory: without it, and something behind it, there is nothing.
    let memory_at = HEADER as u64 + u64::from(data_length);
    Ok((bytes > memory_at).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(magic: [u8; 16], version: u32, data_length: u32) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..16].copy_from_slice(&magic);
        header[16..20].copy_from_slice(&version.to_ne_bytes());
        header[20..24].copy_from_slice(&data_length.to_ne_bytes());
        header
    }

    #[track_caller]
    fn check(header: [u8; HEADER], bytes: u64, expected: Result<Option<u64>, &str>) {
        assert_eq!(judge(&header, bytes), expected.map_err(ToOwned::to_owned));
    }

    type Result<T, E> = std::result::Result<T, E>;

    #[test]
    fn headers() {
        check(header(*COMPLETE, 2, 1000), 5000, Ok(Some(5000)));
        check(header(*COMPLETE, 3, 1000), 5000, Ok(Some(5000)));
        check(header(*PARTIAL, 2, 1000), 5000, Ok(None));
        check(header(*COMPLETE, 2, 1000), 1092, Ok(None));
        check(header(*COMPLETE, 2, u32::MAX), 5000, Ok(None));
        check(header(*COMPLETE, 9, 1000), 5000, Err("it has version 9 of libvirt's format"));
        check([0; HEADER], 5000, Err("it is not a memory image"));
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_header_is_refused_or_of_a_whole_image(
            bytes in crate::mutation::bytes([header(*COMPLETE, 2, 1000), header(*PARTIAL, 3, 0)]),
            length: u64,
        ) {
            let mut whole = [0; HEADER];
            let there = bytes.len().min(HEADER);
            whole[..there].copy_from_slice(&bytes[..there]);
            if let Ok(Some(complete)) = judge(&whole, length) {
                assert!(complete == length && length > HEADER as u64 && whole.starts_with(COMPLETE));
            }
        }
    }
}
