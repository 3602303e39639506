//! Headers, good and hostile, built byte by byte.

use std::fs::File;
use std::io::Write;

use super::*;

/// A header of version 3 over a base, as `qemu-img` writes it; each test bends one thing.
struct Image {
    bytes: Vec<u8>,
}

const BACKING_AT: usize = 0x200;

impl Image {
    fn new() -> Self {
        let image = Self { bytes: vec![0; 0x50000] };
        let image = image
            .u32(0, MAGIC)
            .u32(4, 3)
            .u32(20, 16)
            .u64(24, 1 << 30)
            .u32(36, 2)
            .u64(40, 0x30000)
            .u64(48, 0x10000)
            .u32(56, 1)
            .u32(96, 4)
            .u32(100, 104);
        let image =
            image.extension(104, EXTENSION_BACKING_FORMAT, b"raw").extension(120, 0x6803_f857, &[7; 48]);
        image.backing(b"/images/base.raw")
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn u32(self, at: usize, value: u32) -> Self {
        self.put(at, &value.to_be_bytes())
    }

    fn u64(self, at: usize, value: u64) -> Self {
        self.put(at, &value.to_be_bytes())
    }

    fn extension(self, at: usize, kind: u32, data: &[u8]) -> Self {
        let length = u32::try_from(data.len()).unwrap();
        self.u32(at, kind).u32(at + 4, length).put(at + 8, data)
    }

    fn backing(self, name: &[u8]) -> Self {
        let length = u32::try_from(name.len()).unwrap();
        self.u64(8, BACKING_AT as u64).u32(16, length).put(BACKING_AT, name)
    }

    fn file(&self, length: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self.bytes[..length]).unwrap();
        file
    }

    fn read(&self) -> Result<Header, HeaderError> {
        read_header(&self.file(self.bytes.len()))
    }
}

fn good() -> Header {
    Header {
        backing_name: Some("/images/base.raw".to_owned()),
        backing_format: Some("raw".to_owned()),
        ..Header::without_backing(1 << 30)
    }
}

/// Bends the image in one way, and expects the good header with one difference.
#[track_caller]
fn check(bend: impl FnOnce(Image) -> Image, differ: impl FnOnce(&mut Header)) {
    let image = bend(Image::new());
    let mut expected = good();
    differ(&mut expected);
    assert_eq!(image.read().unwrap(), expected);
}

#[track_caller]
fn check_refused(bend: impl FnOnce(Image) -> Image, expected: &str) {
    let image = bend(Image::new());
    assert_eq!(image.read().unwrap_err().to_string(), expected);
}

#[test]
fn what_a_header_says() {
    check(|image| image, |_| {});
    check(|image| image.u64(8, 0), |header| header.backing_name = None);
    check(|image| image.u32(16, 0), |header| header.backing_name = None);
    check(|image| image.u32(32, 1), |header| header.encryption = Some("AES"));
    check(|image| image.u32(32, 2), |header| header.encryption = Some("LUKS"));
    check(|image| image.u32(60, 3), |header| header.internal_snapshots = 3);
    check(|image| image.u64(72, 1), |header| header.is_dirty = true);
    check(|image| image.u64(72, 2), |header| header.is_corrupt = true);
    check(|image| image.u64(72, 4), |header| header.has_data_file = true);
    check(|image| image.u64(72, 8), |_| {});
    check(|image| image.u64(72, 8 | 16), |header| header.pieces.smallest = 2048);
    check(|image| image.u32(104, EXTENSION_END), |header| header.backing_format = None);
    check(
        |image| image.extension(104, 0x1234, b"any").extension(120, EXTENSION_BACKING_FORMAT, b"qcow2"),
        |header| header.backing_format = Some("qcow2".to_owned()),
    );
    check(
        |image| image.u32(100, 112).extension(112, EXTENSION_BACKING_FORMAT, b"qcow2"),
        |header| header.backing_format = Some("qcow2".to_owned()),
    );
}

#[test]
fn version_2_has_no_features() {
    check(
        |image| image.u32(4, 2).put(72, &[0; 400]).extension(72, EXTENSION_BACKING_FORMAT, b"qcow2"),
        |header| {
            header.version = 2;
            header.backing_format = Some("qcow2".to_owned());
        },
    );
}

#[test]
fn hostile_headers() {
    check_refused(|image| image.u32(0, 0), "it is not a qcow2 image");
    check_refused(|image| image.u32(4, 1), "it has version 1 of the format");
    check_refused(|image| image.u32(4, 4), "it has version 4 of the format");
    check_refused(|image| image.u64(72, 1 << 63), "it uses unknown features (0x8000000000000000)");
    for bits in [0, 8, 22, u32::MAX] {
        check_refused(|image| image.u32(20, bits), "its header is damaged: cluster size");
    }
    for length in [0, 72, 103, 105, 1 << 20, u32::MAX] {
        check_refused(|image| image.u32(100, length), "its header is damaged: header length");
    }
    check_refused(|image| image.u32(32, 9), "its header is damaged: encryption method");
    for length in [1024, u32::MAX] {
        check_refused(|image| image.u32(16, length), "its header is damaged: backing file name");
    }
    for offset in [0xffff, 1 << 20, u64::MAX] {
        check_refused(|image| image.u64(8, offset), "its header is damaged: backing file name");
    }
    for byte in [0, 0xff] {
        check_refused(|image| image.put(BACKING_AT, &[byte]), "its header is damaged: backing file name");
        check_refused(|image| image.put(112, &[byte]), "its header is damaged: backing format");
    }
    check_refused(|image| image.u32(108, 16), "its header is damaged: backing format");
    for length in [0x1000, u32::MAX] {
        check_refused(|image| image.u32(124, length).u32(104, 9), "its header is damaged: header extension");
    }
    // Extensions of no length, one after the other, to the end of the cluster.
    check_refused(
        |image| {
            let places = (104..0x8000).step_by(8);
            places.fold(image.u64(8, 0), |image, at| image.extension(at, 0x1234, &[]))
        },
        "its header is damaged: too many header extensions",
    );
}

#[test]
fn short_files() {
    let image = Image::new();
    let check = |length, expected: &str| {
        assert_eq!(read_header(&image.file(length)).unwrap_err().to_string(), expected, "{length}");
    };
    check(0, "it is not a qcow2 image");
    check(71, "it is not a qcow2 image");
    check(72, "it ends within the header");
    check(103, "it ends within the header");
    check(BACKING_AT + 3, "it ends within the header");
}

#[test]
fn emptiness_is_the_first_level_table() {
    let check = |bend: &dyn Fn(Image) -> Image, expected: Result<bool, &str>| {
        let image = bend(Image::new());
        let file = image.file(image.bytes.len());
        let found = is_empty(&file, &read_header(&file).unwrap()).map_err(|error| error.to_string());
        assert_eq!(found, expected.map_err(ToOwned::to_owned));
    };
    check(&|image| image, Ok(true));
    check(&|image| image.u32(0x30000 + 4, 1), Ok(false));
    check(&|image| image.u32(0x30000 + 12, 1), Ok(false));
    check(&|image| image.u32(0x30000 + 16, 1), Ok(true));
    check(&|image| image.u32(36, 0), Ok(true));
    check(&|image| image.u32(36, u32::MAX), Err("its header is damaged: first level table"));
    check(&|image| image.u64(40, u64::MAX), Err("its header is damaged: first level table"));
    check(&|image| image.u64(40, 0x4fff8), Err("it ends within the header"));
}

#[test]
fn names_of_backing_files() {
    let check = |name: &str, expected: Result<&str, RefusedName>| {
        let found = backing_path(Path::new("/images/vm/top.qcow2"), name);
        assert_eq!(found, expected.map(PathBuf::from), "{name:?}");
    };
    check("/other/base", Ok("/other/base"));
    check("base", Ok("/images/vm/base"));
    check("../base", Ok("/images/vm/../base"));
    check("/with:colon", Ok("/with:colon"));
    check("./with:colon", Ok("/images/vm/./with:colon"));
    check("json:{\"driver\":\"nbd\"}", Err(RefusedName::Json));
    check("nbd://host/export", Err(RefusedName::Protocol));
    check("file:/etc/shadow", Err(RefusedName::Protocol));
    check("with:colon", Err(RefusedName::Protocol));
    check("a\nb", Err(RefusedName::Control));
}

/// An image in memory that counts what is read of it.
struct Counted {
    bytes: Vec<u8>,
    read: std::cell::Cell<usize>,
}

impl FileExt for Counted {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let there = &self.bytes[from..];
        let length = there.len().min(buffer.len());
        buffer[..length].copy_from_slice(&there[..length]);
        self.read.set(self.read.get() + length);
        Ok(length)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        unreachable!("nothing is written to an image that is read")
    }
}

/// All that is looked at of a good image, and a version 2 of it; the table at a place that is there.
fn samples() -> [Vec<u8>; 2] {
    let version_3 = || Image::new().u64(40, 0x300);
    let version_2 =
        version_3().u32(4, 2).put(72, &[0; 400]).extension(72, EXTENSION_BACKING_FORMAT, b"qcow2");
    [version_3(), version_2].map(|image| image.bytes[..0x400].to_vec())
}

/// Most that a header may cost: the fixed fields, the extensions, the names.
const MOST_READ: usize = 72 + 32 + MOST_EXTENSIONS * 8 + LONGEST_NAME + 16;

proptest::proptest! {
    #![proptest_config(crate::mutation::config())]

    #[test]
    fn any_header_is_refused_or_sane(bytes in crate::mutation::bytes(samples())) {
        let file = Counted { bytes, read: std::cell::Cell::new(0) };
        let header = read_header(&file);
        assert!(file.read.get() <= MOST_READ, "{} bytes were read", file.read.get());
        let Ok(header) = header else { return Ok(()) };
        assert!(CLUSTER_BITS.contains(&header.cluster_bits) && matches!(header.version, 2 | 3), "{header:?}");
        assert!(header.backing_format.as_deref().is_none_or(|format| format.len() < 16), "{header:?}");
        if let Some(name) = &header.backing_name {
            assert!(name.len() <= LONGEST_NAME && !name.contains('\0'));
            if let Ok(path) = backing_path(Path::new("/images/top"), name) {
                let path = path.to_str().expect("of two texts");
                assert!(path.starts_with('/') && !path.chars().any(char::is_control), "{path:?}");
                // As QEMU would read it.
                assert!(name.starts_with('/') || !name.split('/').next().unwrap().contains(':'), "{name:?}");
            }
        }
        file.read.set(0);
        let _ = is_empty(&file, &header);
        assert!(file.read.get() as u64 <= LONGEST_L1);
    }
}
