//! The header of a qcow2 image, read by ourselves; and an empty image, made so.
//!
//! Decides which headers are well formed and what they say. Opens nothing but what it is given, follows no name, and
//! reads a bounded number of bytes: the bytes may be a guest's.
//!
//! The format is QEMU's `docs/interop/qcow2.txt`.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::model::vm::Pieces;

pub use empty::{Empty, Geometry, Impossible, empty};

mod empty;

/// `QFI\xfb`.
const MAGIC: u32 = 0x5146_49fb;

/// The header is in the first cluster; QEMU's largest cluster is 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Longest backing file name, as in QEMU.
const LONGEST_NAME: usize = 1023;

/// Most header extensions that are looked at. QEMU writes three or four.
const MOST_EXTENSIONS: usize = 32;

/// Largest first level table, as in QEMU: 32 MiB.
const LONGEST_L1: u64 = 32 * 1024 * 1024;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = INCOMPATIBLE_DIRTY
    | INCOMPATIBLE_CORRUPT
    | INCOMPATIBLE_DATA_FILE
    | INCOMPATIBLE_COMPRESSION
    | INCOMPATIBLE_EXTENDED_L2;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Base two logarithm of the cluster size.
    pub cluster_bits: u32,
    /// The backing file, as written: not yet looked at, see [`backing_path`].
    pub backing_name: Option<String>,
    /// Its format, as written.
    pub backing_format: Option<String>,
    /// How the data is encrypted, if it is.
    pub encryption: Option<&'static str>,
    /// Snapshots inside the image.
    pub internal_snapshots: u32,
    /// Whether the data is in another file.
    pub has_data_file: bool,
    /// Whether QEMU has marked the image as corrupt.
    pub is_corrupt: bool,
    /// Whether the reference counts are to be rebuilt at the next opening. Normal while a VM writes.
    pub is_dirty: bool,
    /// Where the first level table is, in bytes.
    pub l1_offset: u64,
    /// Its number of entries, of eight bytes each.
    pub l1_entries: u32,
    /// In what pieces it takes space.
    pub pieces: Pieces,
}

#[cfg(test)]
impl Header {
    /// A header that says nothing but a size: for tests that bend it.
    pub(in crate::host) fn without_backing(virtual_size: u64) -> Self {
        Self {
            version: 3,
            virtual_size,
            cluster_bits: 16,
            backing_name: None,
            backing_format: None,
            encryption: None,
            internal_snapshots: 0,
            has_data_file: false,
            is_corrupt: false,
            is_dirty: false,
            l1_offset: 0x30000,
            l1_entries: 2,
            pieces: Pieces { cluster: 1 << 16, smallest: 1 << 16 },
        }
    }
}

/// Why a header cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file could not be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// The file ends within the header.
    #[error("it ends within the header")]
    Truncated,
    /// The file is not qcow2.
    #[error("it is not a qcow2 image")]
    NotQcow2,
    /// A version that we do not know.
    #[error("it has version {0} of the format")]
    Version(u32),
    /// A feature that we do not know, which changes the meaning of the rest.
    #[error("it uses unknown features ({0:#x})")]
    UnknownFeatures(u64),
    /// A field that makes no sense.
    #[error("its header is damaged: {0}")]
    Damaged(&'static str),
}

/// Reads the header.
pub fn read_header(file: &impl FileExt) -> Result<Header, HeaderError> {
    let mut fixed = Fields::read(file, 0, 72)?;
    if fixed.u32() != MAGIC {
        return Err(HeaderError::NotQcow2);
    }
    let version = fixed.u32();
    if !matches!(version, 2 | 3) {
        return Err(HeaderError::Version(version));
    }
    let (backing_offset, backing_length, cluster_bits) = (fixed.u64(), fixed.u32(), fixed.u32());
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err(HeaderError::Damaged("cluster size"));
    }
    let first_cluster = 1_u64 << cluster_bits;
    let (virtual_size, crypt_method, l1_entries, l1_offset) =
        (fixed.u64(), fixed.u32(), fixed.u32(), fixed.u64());
    let (_refcounts, _refcount_clusters, internal_snapshots) = (fixed.u64(), fixed.u32(), fixed.u32());
    let (incompatible, length) = features(file, version)?;
    if incompatible & !INCOMPATIBLE_KNOWN != 0 {
        return Err(HeaderError::UnknownFeatures(incompatible & !INCOMPATIBLE_KNOWN));
    }
    if length > first_cluster {
        return Err(HeaderError::Damaged("header length"));
    }
    let end = if backing_offset == 0 { first_cluster } else { backing_offset };
    Ok(Header {
        version,
        virtual_size,
        cluster_bits,
        backing_name: backing_name(file, backing_offset, backing_length, first_cluster)?,
        backing_format: backing_format(file, length, end.min(first_cluster))?,
        encryption: match crypt_method {
            0 => None,
            1 => Some("AES"),
            2 => Some("LUKS"),
            _ => return Err(HeaderError::Damaged("encryption method")),
        },
        internal_snapshots,
        has_data_file: incompatible & INCOMPATIBLE_DATA_FILE != 0,
        is_corrupt: incompatible & INCOMPATIBLE_CORRUPT != 0,
        is_dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
        l1_offset,
        l1_entries,
        pieces: pieces(first_cluster, incompatible & INCOMPATIBLE_EXTENDED_L2 != 0),
    })
}

fn pieces(cluster: u64, has_subclusters: bool) -> Pieces {
    Pieces { cluster, smallest: if has_subclusters { cluster / 32 } else { cluster } }
}

/// Whether no guest cluster is allocated: the first level table is all zeros.
pub fn is_empty(file: &impl FileExt, header: &Header) -> Result<bool, HeaderError> {
    let length = u64::from(header.l1_entries) * 8;
    if length > LONGEST_L1 {
        return Err(HeaderError::Damaged("first level table"));
    }
    let mut at = header.l1_offset;
    let end = at.checked_add(length).ok_or(HeaderError::Damaged("first level table"))?;
    while at < end {
        let piece = usize::try_from((end - at).min(64 * 1024)).map_err(|_| HeaderError::Truncated)?;
        if read(file, at, piece)?.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += piece as u64;
    }
    Ok(true)
}

/// Why a backing file's name is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedName {
    /// QEMU would read it as a description of anything at all.
    #[error("a description in JSON")]
    Json,
    /// QEMU would take the part before the colon as a protocol.
    #[error("the name of a protocol")]
    Protocol,
    /// Control characters.
    #[error("a name with control characters")]
    Control,
}

/// The path that a backing file's name means. A plain relative name starts at the directory of `image`.
pub fn backing_path(image: &Path, name: &str) -> Result<PathBuf, RefusedName> {
    if name.starts_with("json:") {
        return Err(RefusedName::Json);
    }
    if name.chars().any(char::is_control) {
        return Err(RefusedName::Control);
    }
    // As in QEMU's path_has_protocol(): a colon before the first slash.
    if name.find([':', '/']).is_some_and(|at| name.as_bytes()[at] == b':') {
        return Err(RefusedName::Protocol);
    }
    let name = Path::new(name);
    // `join` of an absolute path is that path.
    Ok(image.parent().map_or_else(|| name.to_owned(), |directory| directory.join(name)))
}

/// Incompatible features, and where the extensions begin.
fn features(file: &impl FileExt, version: u32) -> Result<(u64, u64), HeaderError> {
    if version == 2 {
        return Ok((0, 72));
    }
    let mut fields = Fields::read(file, 72, 32)?;
    let incompatible = fields.u64();
    let (_compatible, _autoclear, _refcount_order) = (fields.u64(), fields.u64(), fields.u32());
    let length = u64::from(fields.u32());
    if length < 104 || length % 8 != 0 {
        return Err(HeaderError::Damaged("header length"));
    }
    Ok((incompatible, length))
}

fn backing_name(
    file: &impl FileExt,
    offset: u64,
    length: u32,
    first_cluster: u64,
) -> Result<Option<String>, HeaderError> {
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > LONGEST_NAME || offset.saturating_add(length as u64) > first_cluster {
        return Err(HeaderError::Damaged("backing file name"));
    }
    text(read(file, offset, length)?, "backing file name").map(Some)
}

fn backing_format(file: &impl FileExt, mut at: u64, end: u64) -> Result<Option<String>, HeaderError> {
    for _ in 0..MOST_EXTENSIONS {
        if at + 8 > end {
            return Ok(None);
        }
        let mut head = Fields::read(file, at, 8)?;
        let (kind, length) = (head.u32(), u64::from(head.u32()));
        let data = at + 8;
        if kind == EXTENSION_END {
            return Ok(None);
        }
        if data + length > end {
            return Err(HeaderError::Damaged("header extension"));
        }
        if kind == EXTENSION_BACKING_FORMAT {
            // QEMU's own limit for the name of a format.
            let length = usize::try_from(length).ok().filter(|length| *length < 16);
            let length = length.ok_or(HeaderError::Damaged("backing format"))?;
            return text(read(file, data, length)?, "backing format").map(Some);
        }
        at = data + length.next_multiple_of(8);
    }
    Err(HeaderError::Damaged("too many header extensions"))
}

fn text(bytes: Vec<u8>, what: &'static str) -> Result<String, HeaderError> {
    if bytes.contains(&0) {
        return Err(HeaderError::Damaged(what));
    }
    String::from_utf8(bytes).map_err(|_| HeaderError::Damaged(what))
}

fn read(file: &impl FileExt, at: u64, length: usize) -> Result<Vec<u8>, HeaderError> {
    let mut bytes = vec![0; length];
    match file.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(HeaderError::Truncated),
        Err(error) => Err(HeaderError::Io(error)),
    }
}

/// Big-endian fields, one after the other. Reading past the end is a mistake of this file.
struct Fields {
    bytes: Vec<u8>,
    at: usize,
}

impl Fields {
    fn read(file: &impl FileExt, at: u64, length: usize) -> Result<Self, HeaderError> {
        let bytes = read(file, at, length);
        let bytes = match bytes {
            // Too short to be qcow2 at all.
            Err(HeaderError::Truncated) if at == 0 => return Err(HeaderError::NotQcow2),
            other => other?,
        };
        Ok(Self { bytes, at: 0 })
    }

    fn take<const LENGTH: usize>(&mut self) -> [u8; LENGTH] {
        let piece = self.bytes[self.at..self.at + LENGTH].try_into().expect("the slice has this length");
        self.at += LENGTH;
        piece
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

#[cfg(test)]
mod tests;
