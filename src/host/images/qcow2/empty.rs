//! An empty image over another one, as bytes.
//!
//! Decides where its tables are. Leaves how they get into a file to `overlay`. Must never open one.
//!
//! ```text
//!   cluster 0   header, extensions, name of the backing file
//!   cluster 1   reference count table: one entry
//!   cluster 2   reference count block: a one for each of these clusters
//!   cluster 3.. first level table: all zeros, so that all is read from the backing file
//! ```

use super::{
    EXTENSION_BACKING_FORMAT, EXTENSION_END, INCOMPATIBLE_EXTENDED_L2, LONGEST_L1, LONGEST_NAME, MAGIC,
};

/// In how large pieces an image is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    has_subclusters: bool,
}

/// Smaller clusters need tables that are larger than one block of reference counts tells of.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 14..=21;

/// QEMU's default.
impl Default for Geometry {
    fn default() -> Self {
        Self { cluster_bits: 16, has_subclusters: false }
    }
}

impl Geometry {
    /// Clusters of so many bytes, a power of two between 16 KiB and 2 MiB; each in 32 parts that are mapped by themselves, or
    /// not (`extended_l2`). None if QEMU knows no such clusters, or no small image could have them.
    #[must_use]
    pub fn new(cluster_size: u64, has_subclusters: bool) -> Option<Self> {
        let cluster_bits = cluster_size.trailing_zeros();
        let is_known = cluster_size.is_power_of_two() && CLUSTER_BITS.contains(&cluster_bits);
        is_known.then_some(Self { cluster_bits, has_subclusters })
    }

    fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes that one entry of the first level table maps: a cluster full of entries of the second.
    fn mapped_by_entry(self) -> u64 {
        self.cluster() / if self.has_subclusters { 16 } else { 8 } * self.cluster()
    }
}

/// What an image has to hold: all other bytes are zeros.
#[derive(Debug, PartialEq, Eq)]
pub struct Empty {
    /// The first cluster, as far as it is used. Without it a file is no image.
    pub header: Vec<u8>,
    /// What else is there, and where.
    pub tables: [(u64, Vec<u8>); 2],
    /// Bytes of a cluster: the header has all of the first.
    pub cluster: usize,
    /// Bytes of the file.
    pub length: u64,
}

/// Why there is no such image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// QEMU counts in sectors.
    #[error("its size is no multiple of 512 bytes")]
    Size,
    /// Its first level table would be larger than QEMU reads.
    #[error("its size is more than its clusters can map")]
    TooLarge,
    /// The name of the backing file does not fit.
    #[error("the name of its backing file has more than {LONGEST_NAME} bytes")]
    Name,
}

/// An image of this size that reads what another one reads. `backing` is its name and its format, as QEMU spells it.
pub fn empty(virtual_size: u64, backing: (&str, &str), geometry: Geometry) -> Result<Empty, Impossible> {
    let (name, format) = backing;
    if !virtual_size.is_multiple_of(512) {
        return Err(Impossible::Size);
    }
    if name.len() > LONGEST_NAME {
        return Err(Impossible::Name);
    }
    let entries = virtual_size.div_ceil(geometry.mapped_by_entry());
    let l1_bytes = entries.checked_mul(8).filter(|bytes| *bytes <= LONGEST_L1).ok_or(Impossible::TooLarge)?;
    let cluster = geometry.cluster();
    // QEMU gives one to an image of no size, too.
    let clusters = 3 + l1_bytes.div_ceil(cluster).max(1);
    let mut header = Vec::new();
    put(&mut header, &[MAGIC, 3]);
    // The backing file's name, known below.
    put(&mut header, &[0, 0, 0, geometry.cluster_bits]);
    put64(&mut header, &[virtual_size]);
    // No encryption; how many entries the first level table has, and where it is.
    put(&mut header, &[0, u32::try_from(entries).map_err(|_| Impossible::TooLarge)?]);
    put64(&mut header, &[3 * cluster, cluster]);
    // One cluster of the reference count table; no snapshots, nowhere.
    put(&mut header, &[1, 0]);
    let incompatible = if geometry.has_subclusters { INCOMPATIBLE_EXTENDED_L2 } else { 0 };
    // No snapshots' table, and of the features no compatible ones, and none that are cleared by who does not know them.
    put64(&mut header, &[0, incompatible, 0, 0]);
    // Reference counts of 16 bits, and the length of all this.
    put(&mut header, &[4, 104]);
    put(&mut header, &[EXTENSION_BACKING_FORMAT, length(format)]);
    header.extend_from_slice(format.as_bytes());
    header.resize(header.len().next_multiple_of(8), 0);
    put(&mut header, &[EXTENSION_END, 0]);
    let name_at = header.len() as u64;
    header.extend_from_slice(name.as_bytes());
    header[8..16].copy_from_slice(&name_at.to_be_bytes());
    header[16..20].copy_from_slice(&length(name).to_be_bytes());
    let counts = (0..clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
    let tables = [(cluster, (2 * cluster).to_be_bytes().to_vec()), (2 * cluster, counts)];
    let header_cluster = usize::try_from(cluster).map_err(|_| Impossible::TooLarge)?;
    Ok(Empty { header, tables, cluster: header_cluster, length: clusters * cluster })
}

fn length(text: &str) -> u32 {
    u32::try_from(text.len()).expect("names and formats are short")
}

fn put(bytes: &mut Vec<u8>, values: &[u32]) {
    bytes.extend(values.iter().flat_map(|value| value.to_be_bytes()));
}

fn put64(bytes: &mut Vec<u8>, values: &[u64]) {
    bytes.extend(values.iter().flat_map(|value| value.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::super::{is_empty, read_header};
    use super::*;

    fn file(empty: &Empty) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(empty.length).unwrap();
        for (at, bytes) in empty.tables.iter().chain([&(0, empty.header.clone())]) {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn impossible_images() {
        let check = |size, name: &str, expected| {
            assert_eq!(empty(size, (name, "raw"), Geometry::default()).map(|_| ()), expected, "{size}");
        };
        check(0, "/base", Ok(()));
        check(512, "/base", Ok(()));
        check(513, "/base", Err(Impossible::Size));
        check(1 << 51, "/base", Ok(()));
        check((1 << 51) + 512, "/base", Err(Impossible::TooLarge));
        check(u64::MAX - 511, "/base", Err(Impossible::TooLarge));
        check(512, &"x".repeat(1023), Ok(()));
        check(512, &"x".repeat(1024), Err(Impossible::Name));
    }

    #[test]
    fn geometries() {
        let check = |size, expected| assert_eq!(Geometry::new(size, true).is_some(), expected, "{size}");
        check(0, false);
        check(8 << 10, false);
        check(16 << 10, true);
        check(48 << 10, false);
        check(2 << 20, true);
        check(4 << 20, false);
    }

    proptest::proptest! {
        #[test]
        fn our_own_reader_finds_what_was_wanted(
            sectors in 0..1_u64 << 34,
            name in "/[a-z/]{1,1000}",
            (bits, has_subclusters) in (14..=21_u32, proptest::bool::ANY),
        ) {
            let geometry = Geometry::new(1 << bits, has_subclusters).unwrap();
            if let Ok(made) = empty(sectors * 512, (&name, "qcow2"), geometry) {
                let file = file(&made);
                let header = read_header(&file).unwrap();
                assert_eq!(header.virtual_size, sectors * 512);
                assert_eq!(header.backing_name.as_deref(), Some(name.as_str()));
                assert_eq!(header.backing_format.as_deref(), Some("qcow2"));
                assert_eq!(header.cluster_bits, bits);
                assert!(header.l1_offset + u64::from(header.l1_entries) * 8 <= made.length);
                assert!(is_empty(&file, &header).unwrap());
                // One block of counts has them all.
                assert!(made.tables[1].1.len() as u64 <= 1 << bits);
            }
        }
    }
}
