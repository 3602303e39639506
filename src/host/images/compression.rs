//! Memory that is compressed on its way into an image: what is written to a pipe goes behind the header as one zstd frame.
//!
//! Decides how well it is compressed, and by how many threads. Leaves who writes to the pipe to the caller, and what the image
//! is worth to whoever finishes it. Must never keep the writer waiting for good: a guest may stand still behind it. So whatever
//! happens to the file, the pipe can be closed.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::files::{failed, open_ours};
use crate::host::{HostError, Result};

/// The fastest of zstd's usual ones. A guest that changes what is not written yet waits until it is: what a better one saves in
/// bytes the guest would wait for.
const LEVEL: i32 = 1;

/// The processors are the guests'.
const MOST_THREADS: usize = 4;

/// Bytes that the pipe holds if Linux lets it (`/proc/sys/fs/pipe-max-size`): fewer changes between QEMU and us.
const PIPE_BYTES: i32 = 1 << 20;

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// Whoever gives it up waits for so long at most.
const LOOK_MILLISECONDS: u16 = 50;

/// Memory that is being compressed. Given up when it is dropped: whoever still writes to the pipe gets an error then.
#[derive(Debug)]
pub(in crate::host) struct Compression(Arc<Stream>);

/// How far a compression is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) enum Compressed {
    /// Under way.
    Partly,
    /// All that was written to the pipe is in the file, and the frame has its end. Not durable yet.
    Whole,
    /// It came to nothing; why, in words.
    Failed(String),
}

#[derive(Debug)]
struct Stream {
    /// None once nobody reads any more. Held by the thread only while it looks and reads, never while it writes.
    source: Mutex<Option<PipeReader>>,
    is_given_up: AtomicBool,
    compressed: Mutex<Compressed>,
}

impl Compression {
    /// From now on what is written to the pipe goes into `image`, which exists, from byte `memory_at` on. It is whole once
    /// nobody has the other end any more.
    pub(in crate::host) fn begin(image: &Path, memory_at: u64) -> Result<(Self, PipeWriter)> {
        let mut file = open_ours(image)?;
        file.seek(SeekFrom::Start(memory_at)).map_err(failed("write", image))?;
        let (source, sink) = io::pipe().map_err(failed("make a pipe to", image))?;
        if let Err(error) = fcntl(&sink, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)) {
            tracing::debug!(%error, "memory goes through a pipe of the usual size");
        }
        let stream = Arc::new(Stream {
            source: Mutex::new(Some(source)),
            is_given_up: AtomicBool::new(false),
            compressed: Mutex::new(Compressed::Partly),
        });
        let (worker, path) = (Arc::clone(&stream), image.to_owned());
        let spawned =
            thread::Builder::new().name("memory-zstd".to_owned()).spawn(move || worker.run(file, &path));
        spawned.map_err(failed("start a thread for", image))?;
        Ok((Self(stream), sink))
    }

    /// Whoever still writes to the pipe gets an error from now on. Waits for no disk.
    pub(in crate::host) fn give_up(&self) {
        self.0.is_given_up.store(true, Ordering::Relaxed);
        self.0.close();
    }

    /// How far it is.
    pub(in crate::host) fn look(&self) -> Compressed {
        self.0.compressed().clone()
    }
}

impl Drop for Compression {
    /// The thread may be waiting for the disk. Nobody waits for it.
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Stream {
    fn run(&self, file: File, path: &Path) {
        let done = self.compress(file);
        // Whoever still writes is not to wait for a reader that is gone.
        self.close();
        *self.compressed() = match done {
            Ok(()) => Compressed::Whole,
            Err(cause) => Compressed::Failed(words(path, cause)),
        };
    }

    fn compress(&self, file: File) -> io::Result<()> {
        let mut encoder = zstd::Encoder::new(file, LEVEL)?;
        // Read by nobody else before a guest runs on it.
        encoder.include_checksum(true)?;
        let share = Share::take();
        encoder.multithread(share.0)?;
        let mut piece = vec![0; PIECE];
        loop {
            match self.read(&mut piece)? {
                0 => return encoder.finish().map(drop),
                bytes => encoder.write_all(&piece[..bytes])?,
            }
        }
    }

    /// Zero bytes once nobody can write any more.
    fn read(&self, piece: &mut [u8]) -> io::Result<usize> {
        while !self.is_given_up.load(Ordering::Relaxed) {
            let mut source = self.source();
            let Some(source) = source.as_mut() else { break };
            let mut ready = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::from(LOOK_MILLISECONDS)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return source.read(piece),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("it was given up"))
    }

    fn close(&self) {
        self.source().take();
    }

    fn source(&self) -> MutexGuard<'_, Option<PipeReader>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compressed(&self) -> MutexGuard<'_, Compressed> {
        self.compressed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Compressions under way in this process.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// One compression's part of the threads.
struct Share(u32);

impl Share {
    /// Half of the node's processors are for the guests, which run meanwhile. Those that are under way keep what they have.
    fn take() -> Self {
        let there = thread::available_parallelism().map_or(1, usize::from);
        let sharers = UNDER_WAY.fetch_add(1, Ordering::Relaxed) + 1;
        let share = (there / 2).min(MOST_THREADS) / sharers;
        Self(u32::try_from(share.max(1)).unwrap_or(1))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

fn words(path: &Path, cause: io::Error) -> String {
    match failed("write", path)(cause) {
        HostError::Io { cause, .. } => format!("cannot write {}: {cause}", path.display()),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Where the frame begins.
    const AT: u64 = 4096;

    /// More than the pipe and the encoder hold.
    fn memory() -> Vec<u8> {
        (0..3 << 20).map(|index: u32| u8::try_from(index / 512 % 251).unwrap()).collect()
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        std::fs::write(&path, vec![b'h'; usize::try_from(AT).unwrap()]).unwrap();
        (directory, path)
    }

    /// Its thread closes the pipe, then says how it ended.
    fn ended(compression: &Compression) -> Compressed {
        loop {
            match compression.look() {
                Compressed::Partly => thread::yield_now(),
                ended => return ended,
            }
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let (_directory, path) = file();
        let (compression, mut sink) = Compression::begin(&path, AT).unwrap();
        sink.write_all(&memory()).unwrap();
        assert_eq!(compression.look(), Compressed::Partly, "somebody could still write");
        drop(sink);
        assert_eq!(ended(&compression), Compressed::Whole);
        let content = std::fs::read(&path).unwrap();
        let (header, frame) = content.split_at(usize::try_from(AT).unwrap());
        assert!(header.iter().all(|byte| *byte == b'h'), "the header stays");
        assert!(frame.len() < memory().len() / 4);
        assert_eq!(zstd::decode_all(frame).unwrap(), memory());
        assert!(zstd::decode_all(&frame[..frame.len() - 1]).is_err(), "it has an end, and a sum");
    }

    #[test]
    fn whoever_writes_to_one_that_was_given_up_gets_an_error() {
        let (_directory, path) = file();
        let (compression, mut sink) = Compression::begin(&path, AT).unwrap();
        drop(compression);
        let refused = sink.write_all(&memory()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_full_disk_is_told_and_keeps_nobody_waiting() {
        let (compression, mut sink) = Compression::begin(Path::new("/dev/full"), 0).unwrap();
        let mut written = Ok(());
        while written.is_ok() {
            let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(PIECE).collect();
            written = sink.write_all(&noise);
        }
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(ended(&compression), Compressed::Failed("no space is left for /dev/full".to_owned()));
    }
}
