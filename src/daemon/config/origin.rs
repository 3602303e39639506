//! Where a configuration comes from: a file, and what the command line says instead. Kept with it, so that it can be read again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Config, ConfigError};

/// Where the configuration is looked for if nobody says.
pub const DEFAULT_PATH: &str = "/etc/vmsnapd/vmsnapd.toml";

/// Where a configuration comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The file, if one was named.
    pub path: Option<PathBuf>,
    /// Instead of the file's `socket`.
    pub socket: Option<PathBuf>,
    /// Instead of the file's `state_directory`.
    pub state_directory: Option<PathBuf>,
}

impl Origin {
    /// All of it from a file.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self { path: Some(path.to_owned()), ..Self::default() }
    }

    /// The text, and the file that it is from. None if there is none, and nobody named one.
    pub(super) fn text(&self) -> Result<Option<(String, PathBuf)>, ConfigError> {
        let path = self.path.clone().unwrap_or_else(|| DEFAULT_PATH.into());
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some((text, path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.is_none() => Ok(None),
            Err(cause) => Err(ConfigError::Unreadable { path, cause }),
        }
    }

    pub(super) fn override_in(&self, config: &mut Config) {
        config.socket = self.socket.clone().unwrap_or_else(|| config.socket.clone());
        config.state_directory =
            self.state_directory.clone().unwrap_or_else(|| config.state_directory.clone());
    }
}
