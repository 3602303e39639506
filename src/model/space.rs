//! Room on file systems, as it was seen at one moment. Decides nothing.

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Which one: directories with the same number share their room. Numbered anew with each boot.
    pub file_system: u64,
    /// Its size, in bytes.
    pub total: u64,
    /// What a process without privileges can still write, in bytes.
    pub free: u64,
}
