//! The section `[tcp]`: where calls are taken from the network. There is no such listener without certificates on both sides.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ConfigError, bad};

/// A listener for clients with a certificate. Files are PEM, and are read again with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpConfig {
    /// Address and port to listen on, as in `[::]:7443`.
    pub listen: SocketAddr,
    /// Our certificate, with what is between it and its authority behind it.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates of the authorities that clients' are signed by.
    pub client_ca: PathBuf,
    /// Lists of clients' certificates that were revoked: one of each authority. A client whose authority has none there is
    /// refused then.
    pub revocation_list: Option<PathBuf>,
}

impl TcpConfig {
    /// By their keys.
    #[must_use]
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        let files = [
            ("tcp.certificate", Some(&self.certificate)),
            ("tcp.key", Some(&self.key)),
            ("tcp.client_ca", Some(&self.client_ca)),
            ("tcp.revocation_list", self.revocation_list.as_ref()),
        ];
        files.into_iter().filter_map(|(key, path)| Some((key, path?.as_path()))).collect()
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (key, path) in self.files() {
            if !path.is_absolute() {
                return Err(bad(key, "the path is not absolute".to_owned()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners() {
        let check = |text: &str, expected: Result<usize, &str>| {
            let config = toml::from_str::<TcpConfig>(text).map_err(|error| error.to_string());
            let checked = config.and_then(|config| {
                config.check().map_err(|error| error.to_string())?;
                Ok(config.files().len())
            });
            match (checked, expected) {
                (Ok(files), Ok(expected)) => assert_eq!(files, expected, "{text}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (result, _) => panic!("{text:?} gave {result:?}"),
            }
        };
        let files = "certificate = '/c'\nkey = '/k'\nclient_ca = '/a'";
        check(&format!("listen = '[::]:7443'\n{files}"), Ok(3));
        check(&format!("listen = '127.0.0.1:7443'\n{files}\nrevocation_list = '/r'"), Ok(4));
        check(&format!("listen = '127.0.0.1'\n{files}"), Err("invalid socket address"));
        check(
            &format!("listen = '[::]:1'\n{files}\nrevocation_list = 'r'"),
            Err("tcp.revocation_list: the path"),
        );
        check("listen = '[::]:7443'\ncertificate = '/c'\nkey = '/k'", Err("missing field `client_ca`"));
    }
}
