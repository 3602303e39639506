//! The images below a disk, by the headers of the images themselves.
//!
//! Decides where a chain goes on that the definition leaves open, which chains we refuse, and what counts as a
//! disagreement between definition and header. Leaves opening files to [`ImageFiles`].
//!
//! A header that disagrees is invisible while the VM runs, because QEMU was told the chain. It shows at the next cold
//! start, or when `qemu-img` reads the image.

use std::path::{Path, PathBuf};

use crate::host::images::qcow2::{Header, backing_path};
use crate::host::{HostError, Result};
use crate::model::vm::{ChainImage, Format, RefusedDisk};

/// Most images of one chain. libvirt's own limit is 200.
const DEEPEST: usize = 256;

/// What is asked of image files.
pub(super) trait ImageFiles {
    /// The header of a qcow2 image.
    fn header(&self, path: &Path) -> Result<Header>;
    /// Whether two paths lead to one file.
    fn is_same(&self, one: &Path, other: &Path) -> bool;
    /// Whether a path leads to a block device.
    fn is_block_device(&self, path: &Path) -> bool;
}

/// A chain, or why a disk with it is refused.
pub(super) type ChainOrRefusal = std::result::Result<Vec<ChainImage>, RefusedDisk>;

/// Follows a chain by the headers, from the images that the definition names on.
///
/// `is_complete` says that the definition names the last one too.
pub(super) fn follow(
    mut images: Vec<ChainImage>,
    is_complete: bool,
    files: &impl ImageFiles,
) -> Result<ChainOrRefusal> {
    let mut at = 0;
    while let Some(image) = images.get(at) {
        if at >= DEEPEST {
            return Err(bad(image, format!("its chain has more than {DEEPEST} images")));
        }
        if image.format == Format::Raw {
            break;
        }
        let header = files.header(&image.path)?;
        if let Some(refused) = refused(&header) {
            return Ok(Err(refused));
        }
        let below = match below(image, &header)? {
            Ok(below) => below,
            Err(refused) => return Ok(Err(refused)),
        };
        match (images.get(at + 1), below) {
            (Some(named), below) => check_same(image, named, below.as_ref(), files)?,
            (None, None) => {}
            (None, Some((path, _))) if is_complete => {
                return Err(bad(
                    image,
                    format!("its header names {} as backing file, libvirt none", path.display()),
                ));
            }
            (None, Some((path, Some(format)))) => {
                let is_block_device = files.is_block_device(&path);
                images.push(ChainImage { path, format, is_block_device });
            }
            (None, Some((_, None))) => return Ok(Err(RefusedDisk::FormatUnknown)),
        }
        at += 1;
    }
    Ok(Ok(images))
}

type Below = Option<(PathBuf, Option<Format>)>;

/// The backing file that a header names.
fn below(image: &ChainImage, header: &Header) -> Result<std::result::Result<Below, RefusedDisk>> {
    let Some(name) = &header.backing_name else { return Ok(Ok(None)) };
    let path = backing_path(&image.path, name)
        .map_err(|refused| bad(image, format!("its header names {refused} as backing file")))?;
    let format = match header.backing_format.as_deref() {
        None => None,
        Some("qcow2") => Some(Format::Qcow2),
        // The names of QEMU's protocols for a file and a block device: raw, as they are.
        Some("raw" | "file" | "host_device") => Some(Format::Raw),
        Some(other) => return Ok(Err(RefusedDisk::Kind(format!("over an image of format {other}")))),
    };
    Ok(Ok(Some((path, format))))
}

fn refused(header: &Header) -> Option<RefusedDisk> {
    if header.has_data_file {
        return Some(RefusedDisk::ExternalDataFile);
    }
    if let Some(encryption) = header.encryption {
        return Some(RefusedDisk::Encrypted(encryption.to_owned()));
    }
    (header.internal_snapshots > 0).then_some(RefusedDisk::InternalSnapshots)
}

/// Checks that the image that libvirt names below `image` is the one that its header names.
fn check_same(
    image: &ChainImage,
    named: &ChainImage,
    below: Option<&(PathBuf, Option<Format>)>,
    files: &impl ImageFiles,
) -> Result<()> {
    let Some((path, format)) = below else {
        return Err(bad(
            image,
            format!("its header names no backing file, libvirt {}", named.path.display()),
        ));
    };
    if *path != named.path && !files.is_same(path, &named.path) {
        return Err(bad(
            image,
            format!("its header names {} as backing file, libvirt {}", path.display(), named.path.display()),
        ));
    }
    match format {
        Some(format) if *format != named.format => Err(bad(
            image,
            format!("its header says that {} is {format}, libvirt {}", path.display(), named.format),
        )),
        Some(_) | None => Ok(()),
    }
}

fn bad(image: &ChainImage, problem: String) -> HostError {
    HostError::BadImage { path: image.path.clone(), problem }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::host::images::qcow2::Header;

    /// Headers by path, made of what they name below. `/same/x` is another name of `/i/x`.
    #[derive(Default)]
    struct Files(HashMap<&'static str, Header>);

    impl Files {
        fn with(mut self, path: &'static str, header: Header) -> Self {
            self.0.insert(path, header);
            self
        }
    }

    impl ImageFiles for Files {
        fn header(&self, path: &Path) -> Result<Header> {
            let header = path.to_str().and_then(|path| self.0.get(path));
            header.cloned().ok_or_else(|| HostError::NoSuchImage(path.to_owned()))
        }

        fn is_same(&self, one: &Path, other: &Path) -> bool {
            one.strip_prefix("/same").is_ok_and(|name| Path::new("/i").join(name) == other)
        }

        fn is_block_device(&self, path: &Path) -> bool {
            path.starts_with("/dev")
        }
    }

    fn over(name: &str, format: Option<&str>) -> Header {
        Header {
            backing_name: Some(name.to_owned()),
            backing_format: format.map(ToOwned::to_owned),
            ..Header::without_backing(1 << 20)
        }
    }

    fn alone() -> Header {
        Header::without_backing(1 << 20)
    }

    fn image(path: &str, format: Format) -> ChainImage {
        ChainImage { path: path.into(), format, is_block_device: path.starts_with("/dev") }
    }

    fn qcow2(path: &str) -> ChainImage {
        image(path, Format::Qcow2)
    }

    #[track_caller]
    fn check(named: &[ChainImage], is_complete: bool, files: &Files, expected: &[ChainImage]) {
        assert_eq!(follow(named.to_vec(), is_complete, files).unwrap().unwrap(), expected);
    }

    #[test]
    fn the_header_goes_on_where_the_definition_ends() {
        let files = Files::default()
            .with("/i/top", over("/i/middle", Some("qcow2")))
            .with("/i/middle", over("base", Some("raw")))
            .with("/i/over-device", over("/dev/x", Some("host_device")))
            .with("/i/alone", alone());
        let chain = [qcow2("/i/top"), qcow2("/i/middle"), image("/i/base", Format::Raw)];
        check(&chain[..1], false, &files, &chain);
        check(&chain[..2], false, &files, &chain);
        check(&chain, false, &files, &chain);
        check(&chain, true, &files, &chain);
        check(&[qcow2("/i/alone")], true, &files, &[qcow2("/i/alone")]);
        check(&[qcow2("/i/alone")], false, &files, &[qcow2("/i/alone")]);
        check(&[image("/i/raw", Format::Raw)], true, &files, &[image("/i/raw", Format::Raw)]);
        let device = [qcow2("/i/over-device"), image("/dev/x", Format::Raw)];
        check(&device[..1], false, &files, &device);
    }

    #[test]
    fn another_name_of_the_same_file_agrees() {
        let files = Files::default().with("/i/top", over("/same/base", Some("raw")));
        let chain = [qcow2("/i/top"), image("/i/base", Format::Raw)];
        check(&chain, true, &files, &chain);
    }

    #[test]
    fn chains_that_are_refused() {
        let check = |header: Header, expected: RefusedDisk| {
            let files = Files::default().with("/i/top", header);
            assert_eq!(follow(vec![qcow2("/i/top")], false, &files).unwrap(), Err(expected));
        };
        check(Header { has_data_file: true, ..alone() }, RefusedDisk::ExternalDataFile);
        check(Header { encryption: Some("LUKS"), ..alone() }, RefusedDisk::Encrypted("LUKS".into()));
        check(Header { internal_snapshots: 1, ..alone() }, RefusedDisk::InternalSnapshots);
        check(over("/i/base", None), RefusedDisk::FormatUnknown);
        check(over("/i/base", Some("vdi")), RefusedDisk::Kind("over an image of format vdi".into()));
    }

    #[test]
    fn disagreements_name_both_sides() {
        let check = |named: &[ChainImage], header: Header, expected: &str| {
            let files = Files::default().with("/i/top", header);
            match follow(named.to_vec(), true, &files) {
                Err(HostError::BadImage { path, problem }) => {
                    assert_eq!((path.to_str(), problem.as_str()), (Some("/i/top"), expected));
                }
                other => panic!("{other:?}"),
            }
        };
        let chain = [qcow2("/i/top"), image("/i/base", Format::Raw)];
        check(
            &chain,
            over("/i/other", Some("raw")),
            "its header names /i/other as backing file, libvirt /i/base",
        );
        check(&chain, over("/i/base", Some("qcow2")), "its header says that /i/base is qcow2, libvirt raw");
        check(&chain, alone(), "its header names no backing file, libvirt /i/base");
        check(
            &chain[..1],
            over("/i/base", Some("raw")),
            "its header names /i/base as backing file, libvirt none",
        );
        check(
            &chain,
            over("nbd://x", Some("raw")),
            "its header names the name of a protocol as backing file",
        );
    }

    #[test]
    fn a_circle_ends() {
        let files = Files::default().with("/i/top", over("/i/top", Some("qcow2")));
        let endless = follow(vec![qcow2("/i/top")], false, &files);
        assert!(matches!(&endless, Err(HostError::BadImage { .. })), "{endless:?}");
    }
}
