//! `qemu-img`, with every format and every name spelled out.
//!
//! Decides its command lines and reads its progress. Leaves limits and the process to `program`, and whether the result
//! is right to `overlay`.
//!
//! Nothing is probed: `-f` and `-F` are always given. Names are absolute, so none is read as an option or a protocol,
//! and they are arguments of their own, so that a comma in one is only a comma.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use super::measure;
use super::program::{Output, Program};
use crate::host::paths::plain;
use crate::host::workers::Workers;
use crate::host::{ByteProgress, HostError, Result};
use crate::model::step::{ImageRef, NewCopy};

/// The program, found once.
#[derive(Debug)]
pub(super) struct QemuImg(Program);

impl QemuImg {
    /// Looks it up at its fixed places.
    pub(super) fn find() -> Result<Self> {
        Program::find("qemu-img").map(Self)
    }

    /// Merges `top` into `base`. `top` keeps its content: only the base is written.
    pub(super) async fn commit(
        &self,
        workers: &Workers,
        top: &ImageRef,
        base: &ImageRef,
        (progress, bytes): (&ByteProgress, u64),
        deadline: Duration,
    ) -> Result<()> {
        let arguments =
            ["commit", "-p", "-d", "-f", top.format.as_str(), "-b", plain(&base.path)?, plain(&top.path)?];
        let report = |line: &[u8]| {
            if let Some(done) = done(line, bytes) {
                progress.send_replace((done, bytes));
            }
        };
        self.0.run(workers, &arguments, deadline, Output::Lines(&report), &base.path).await
    }

    /// Whether two images of one size read the same, all that they lie on with them.
    pub(super) async fn compare(
        &self,
        workers: &Workers,
        one: &ImageRef,
        other: &ImageRef,
        deadline: Duration,
    ) -> Result<bool> {
        let differs = OnceLock::new();
        let read = |line: &[u8]| {
            if line.starts_with(b"Content mismatch") {
                // It tells the first one, and ends.
                let _ = differs.set(());
            }
        };
        let arguments = [
            "compare",
            "-f",
            one.format.as_str(),
            "-F",
            other.format.as_str(),
            plain(&one.path)?,
            plain(&other.path)?,
        ];
        match self.0.run(workers, &arguments, deadline, Output::Lines(&read), &one.path).await {
            Ok(()) => Ok(true),
            // Its status for images that differ; for all that goes wrong it has others, and other words.
            Err(HostError::Program { .. }) if differs.get().is_some() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Copies what an image reads into a file that exists. Holes stay holes.
    pub(super) async fn convert(
        &self,
        workers: &Workers,
        copy: &NewCopy,
        (progress, bytes): (&ByteProgress, u64),
        deadline: Duration,
    ) -> Result<()> {
        let rate = copy.bandwidth.map(|bandwidth| bandwidth.to_string());
        let mut arguments = vec!["convert", "-p"];
        if let Some(rate) = &rate {
            arguments.extend(["-r", rate]);
        }
        arguments.extend([
            "-f",
            copy.source.format.as_str(),
            "-O",
            "qcow2",
            "-o",
            "compat=1.1,lazy_refcounts=off,preallocation=off",
            plain(&copy.source.path)?,
            plain(&copy.path)?,
        ]);
        let report = |line: &[u8]| {
            if let Some(done) = done(line, bytes) {
                progress.send_replace((done, bytes));
            }
        };
        self.0.run(workers, &arguments, deadline, Output::Lines(&report), &copy.path).await
    }

    /// Copies into an image all that it reads from those above `below`, then lets its header name that, or none. What is
    /// the same over both is not read (`img_rebase` in QEMU's qemu-img.c, "prefix chain").
    pub(super) async fn pull(
        &self,
        workers: &Workers,
        image: &ImageRef,
        below: Option<&ImageRef>,
        (progress, bytes): (&ByteProgress, u64),
        deadline: Duration,
    ) -> Result<()> {
        let mut arguments = vec!["rebase", "-p", "-f", image.format.as_str()];
        match below {
            Some(below) => arguments.extend(["-F", below.format.as_str(), "-b", plain(&below.path)?]),
            None => arguments.extend(["-b", ""]),
        }
        arguments.push(plain(&image.path)?);
        let report = |line: &[u8]| {
            if let Some(done) = done(line, bytes) {
                progress.send_replace((done, bytes));
            }
        };
        self.0.run(workers, &arguments, deadline, Output::Lines(&report), &image.path).await
    }

    /// Bytes that a qcow2 image would take that holds what `chain` reads (see `measure`). Shares the images with whoever
    /// writes to them. `top` is the one that is named if anything is wrong.
    pub(super) async fn measure(
        &self,
        workers: &Workers,
        chain: &str,
        top: &Path,
        deadline: Duration,
    ) -> Result<u64> {
        let told = OnceLock::new();
        let read = |line: &[u8]| {
            if let Some(bytes) = measure::required(line) {
                // It tells them once.
                let _ = told.set(bytes);
            }
        };
        let arguments = ["measure", "-U", "-O", "qcow2", "--output=json", chain];
        self.0.run(workers, &arguments, deadline, Output::Lines(&read), top).await?;
        let nothing = || HostError::Malformed {
            what: "the answer of qemu-img measure",
            cause: "it tells no size".into(),
        };
        told.get().copied().ok_or_else(nothing)
    }

    /// Writes another backing file into a header, and nothing else.
    pub(super) async fn rebase(
        &self,
        workers: &Workers,
        image: &ImageRef,
        base: &ImageRef,
        deadline: Duration,
    ) -> Result<()> {
        let arguments = [
            "rebase",
            "-q",
            "-u",
            "-f",
            image.format.as_str(),
            "-F",
            base.format.as_str(),
            "-b",
            plain(&base.path)?,
            plain(&image.path)?,
        ];
        self.0.run(workers, &arguments, deadline, Output::Ignored, &image.path).await
    }
}

/// Bytes done, out of a line of progress: `    (12.34/100%)`.
fn done(line: &[u8], total: u64) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?.trim();
    let percent = text.strip_prefix('(')?.strip_suffix("/100%)")?;
    let (whole, fraction) = percent.split_once('.')?;
    let hundredths: u128 = match fraction.len() {
        2 => whole.parse::<u128>().ok()?.checked_mul(100)?.checked_add(fraction.parse().ok()?)?,
        _ => return None,
    };
    u64::try_from(u128::from(total) * hundredths.min(10_000) / 10_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress() {
        let check = |line: &str, expected| assert_eq!(done(line.as_bytes(), 20_000), expected, "{line:?}");
        check("    (0.00/100%)", Some(0));
        check("    (12.34/100%)", Some(2_468));
        check("    (100.00/100%)", Some(20_000));
        check("(250.00/100%)", Some(20_000));
        check("", None);
        check("Image committed.", None);
        check("(-1.00/100%)", None);
        check("(1/100%)", None);
        check("(99999999999999999999999999999999999999999.00/100%)", None);
    }

    proptest::proptest! {
        #![proptest_config(crate::mutation::config())]

        #[test]
        fn any_line_tells_of_no_more_than_there_is(
            line in crate::mutation::bytes(["    (12.34/100%)", "(0.00/100%)", "(100.00/100%)"]),
            total: u64,
        ) {
            assert!(done(&line, total).is_none_or(|done| done <= total));
        }
    }
}
