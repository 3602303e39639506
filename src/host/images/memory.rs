//! The header of libvirt's memory images (`virQEMUSaveHeader`): read of all, written of those that QEMU fills by itself.
//!
//! Decides whether a capture was finished. The last letters of the magic are written only at the end, by libvirt and here.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::files::{bad, create_new, failed, open_image, open_ours, sync_directory};
use crate::host::{HostError, Result};
use crate::model::vm::MemoryFormat;

/// 16 bytes of magic and 19 numbers of 32 bits, in the byte order of the host.
const HEADER: usize = 92;

const COMPLETE: &[u8; 16] = b"LibvirtQemudSave";
const PARTIAL: &[u8; 16] = b"LibvirtQemudPart";

/// The version whose header is written: memory as one stream, without a cookie, as every libvirt reads it.
const VERSION: u32 = 2;

/// Room behind the definition: libvirt writes another one in its place if it fits (`virDomainSaveImageDefineXML`).
const ROOM: usize = 64 << 10;

/// What stands for a format in the header (`virQEMUSaveFormat`).
const RAW: u32 = 0;
const ZSTD: u32 = 5;

/// The memory begins at a multiple of this.
const PAGE: usize = 4096;

/// Where the memory goes in an unfinished image, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) struct MemoryPlace {
    /// Bytes that stand before it.
    pub(in crate::host) at: u64,
    /// How it is to stand there.
    pub(in crate::host) format: MemoryFormat,
}

/// Makes a memory image that has everything but the memory, durable and unfinished.
pub(super) fn begin(path: &Path, definition: &str, format: MemoryFormat) -> Result<()> {
    let content = beginning(definition, format).map_err(|problem| bad(path, problem))?;
    let (file, directory) = create_new(path)?;
    file.write_all_at(&content, 0).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("sync", path))?;
    sync_directory(directory, path)
}

/// Where the memory goes in an unfinished image.
pub(in crate::host) fn where_memory_goes(path: &Path) -> Result<MemoryPlace> {
    let mut header = [0; HEADER];
    open_image(path)?.read_exact_at(&mut header, 0).map_err(failed("read", path))?;
    if !header.starts_with(PARTIAL) {
        return Err(bad(path, "it is not an unfinished memory image".to_owned()));
    }
    let format = match number(&header, 3) {
        RAW => MemoryFormat::Raw,
        ZSTD => MemoryFormat::Zstd,
        other => {
            return Err(bad(path, format!("it has format {other} of libvirt's, which is not written here")));
        }
    };
    Ok(MemoryPlace { at: memory_at(&header), format })
}

/// How the memory stands in an image, complete or not; see [`crate::host::Images::memory_format`].
pub(super) fn format(path: &Path) -> Result<MemoryFormat> {
    let mut header = [0; HEADER];
    open_image(path)?.read_exact_at(&mut header, 0).map_err(failed("read", path))?;
    Ok(if number(&header, 3) == ZSTD { MemoryFormat::Zstd } else { MemoryFormat::Raw })
}

/// Behind the header and the definition.
fn memory_at(header: &[u8; HEADER]) -> u64 {
    HEADER as u64 + u64::from(number(header, 1))
}

/// One of the numbers behind the magic.
fn number(header: &[u8; HEADER], index: usize) -> u32 {
    let bytes = header[COMPLETE.len() + index * 4..][..4].try_into().expect("four bytes are four bytes");
    u32::from_ne_bytes(bytes)
}

/// The header, the definition with its NUL, and zeros up to where the memory goes.
fn beginning(definition: &str, format: MemoryFormat) -> std::result::Result<Vec<u8>, String> {
    let memory_at = (HEADER + definition.len() + 1 + ROOM).next_multiple_of(PAGE);
    let data_length =
        u32::try_from(memory_at - HEADER).map_err(|_| "the definition is too long".to_owned())?;
    let mut content = Vec::with_capacity(memory_at);
    content.extend_from_slice(PARTIAL);
    let format = match format {
        MemoryFormat::Raw => RAW,
        MemoryFormat::Zstd => ZSTD,
    };
    // Whether it ran, and the format: it did. The rest has no meaning yet.
    for number in [VERSION, data_length, 1, format] {
        content.extend_from_slice(&number.to_ne_bytes());
    }
    content.resize(HEADER, 0);
    content.extend_from_slice(definition.as_bytes());
    content.resize(memory_at, 0);
    Ok(content)
}

/// Makes an image whose memory is all there a complete one, durably. Gives its bytes. One that is complete stays as it is.
pub(super) fn finish(path: &Path) -> Result<u64> {
    let file = open_image(path)?;
    // All that stands behind the magic is durable before it.
    file.sync_all().map_err(failed("sync", path))?;
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).map_err(failed("read", path))?;
    let bytes = file.metadata().map_err(failed("look at", path))?.len();
    header[..COMPLETE.len()].copy_from_slice(COMPLETE);
    let complete = judge(&header, bytes).map_err(|problem| bad(path, problem))?;
    let bytes = complete.ok_or_else(|| bad(path, "no memory was written to it".to_owned()))?;
    let file = open_ours(path)?;
    file.write_all_at(COMPLETE, 0).map_err(failed("write", path))?;
    file.sync_all().map_err(failed("sync", path))?;
    Ok(bytes)
}

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
    if header.starts_with(PARTIAL) {
        return Ok(None);
    }
    if !header.starts_with(COMPLETE) {
        return Err("it is not a memory image".to_owned());
    }
    let version = number(header, 0);
    if !matches!(version, 1..=3) {
        return Err(format!("it has version {version} of libvirt's format"));
    }
    // The definition stands between the header and the memory: without it, and something behind it, there is nothing.
    Ok((bytes > memory_at(header)).then_some(bytes))
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

    /// It is unfinished until it is finished. Gives what libvirt finds as its format.
    fn number_of_a_finished_one(format: MemoryFormat) -> u32 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        let definition = "<domain/>";
        begin(&path, definition, format).unwrap();
        let place = where_memory_goes(&path).unwrap();
        assert_eq!(place.format, format);
        let memory_at = place.at;
        assert!(memory_at.is_multiple_of(PAGE as u64) && memory_at > (HEADER + ROOM) as u64);
        assert_eq!(complete_bytes(&path).unwrap(), None);
        assert!(begin(&path, definition, format).is_err(), "what stands there is left alone");
        let file = open_ours(&path).unwrap();
        file.write_all_at(b"memory", memory_at).unwrap();
        assert_eq!(complete_bytes(&path).unwrap(), None);
        let bytes = memory_at + 6;
        assert_eq!((finish(&path).unwrap(), finish(&path).unwrap()), (bytes, bytes));
        assert!(where_memory_goes(&path).is_err(), "nothing goes there any more");
        assert_eq!(complete_bytes(&path).unwrap(), Some(bytes));
        let content = std::fs::read(&path).unwrap();
        assert_eq!(&content[HEADER..HEADER + 10], b"<domain/>\0");
        u32::from_ne_bytes(content[28..32].try_into().unwrap())
    }

    /// As libvirt numbers them.
    #[test]
    fn captures_of_either_format() {
        assert_eq!(number_of_a_finished_one(MemoryFormat::Raw), 0);
        assert_eq!(number_of_a_finished_one(MemoryFormat::Zstd), 5);
    }

    #[test]
    fn memory_goes_into_no_format_that_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        let mut content = beginning("<domain/>", MemoryFormat::Raw).unwrap();
        content[28..32].copy_from_slice(&3_u32.to_ne_bytes());
        std::fs::write(&path, content).unwrap();
        assert!(matches!(where_memory_goes(&path), Err(HostError::BadImage { .. })));
    }

    #[test]
    fn an_image_without_memory_is_not_finished() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        begin(&path, "<domain/>", MemoryFormat::Raw).unwrap();
        assert!(matches!(finish(&path), Err(HostError::BadImage { .. })));
        assert_eq!(complete_bytes(&path).unwrap(), None);
    }

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
