//! `[controller]`: whom the daemon reports to, and what they know each other by.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tonic::transport::Uri;

use super::{ConfigError, bad};

/// Without this section nobody is reported to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// Where the controller serves `ControllerService`: `https://host:port`. `http://` only on this machine itself. The unit of
    /// systemd lets nobody to the network unless `vmsnapd-network.conf` is put beside it.
    pub endpoint: String,
    /// Certificates, PEM: one of them must have signed the controller's. Read anew for each connection, as the next two.
    pub ca: Option<PathBuf>,
    /// Our certificate and those that lead from it to one that the controller knows, PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// The name in the controller's certificate. Unset: the host of the endpoint.
    pub server_name: Option<String>,
    /// Bytes that are kept for a controller that is away; the file of the catalog grows by somewhat more. When they are not
    /// enough all of them go, and the controller has to ask for an inventory.
    #[serde(default = "outbox_bytes")]
    pub outbox_bytes: u64,
}

/// Some thousands of operations.
fn outbox_bytes() -> u64 {
    64 << 20
}

/// What proves who both sides are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsFiles<'a> {
    /// Who may sign.
    pub ca: &'a PathBuf,
    /// What we show.
    pub certificate: &'a PathBuf,
    /// That it is ours.
    pub key: &'a PathBuf,
}

impl ControllerConfig {
    /// The files for TLS; None without TLS. Refuses what could be overheard, or is not whole.
    pub fn tls(&self) -> Result<Option<TlsFiles<'_>>, ConfigError> {
        let uri: Uri = self
            .endpoint
            .parse()
            .map_err(|error| bad("controller.endpoint", format!("{:?}: {error}", self.endpoint)))?;
        let host = uri.host().unwrap_or_default();
        let files = self.files();
        match uri.scheme_str() {
            Some("https") => {
                let [ca, certificate, key] = files.map(|(name, path)| {
                    path.as_ref()
                        .ok_or_else(|| bad(name, "https needs it: both sides prove who they are".to_owned()))
                });
                Ok(Some(TlsFiles { ca: ca?, certificate: certificate?, key: key? }))
            }
            Some("http") if !is_here(host) => {
                let problem = format!("{host:?} is not this machine, so https is needed");
                Err(bad("controller.endpoint", problem))
            }
            Some("http") => match files.iter().find(|(_, path)| path.is_some()) {
                Some((name, _)) => Err(bad(name, "the endpoint is not https".to_owned())),
                None => Ok(None),
            },
            Some(_) | None => {
                Err(bad("controller.endpoint", format!("{:?} is not https://host:port", self.endpoint)))
            }
        }
    }

    /// By their keys.
    fn files(&self) -> [(&'static str, &Option<PathBuf>); 3] {
        [
            ("controller.ca", &self.ca),
            ("controller.certificate", &self.certificate),
            ("controller.key", &self.key),
        ]
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.tls()?;
        if self.outbox_bytes < 1 << 20 {
            return Err(bad("controller.outbox_bytes", "at least 1048576".to_owned()));
        }
        for (key, path) in self.files() {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(bad(key, "the path is not absolute".to_owned()));
            }
        }
        Ok(())
    }
}

fn is_here(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<bool, &str>) {
        let config: ControllerConfig = toml::from_str(text).unwrap();
        match (config.check().and_then(|()| Ok(config.tls()?.is_some())), expected) {
            (Ok(is_tls), Ok(expected)) => assert_eq!(is_tls, expected, "{text}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (result, _) => panic!("{text:?} gave {result:?}"),
        }
    }

    #[test]
    fn endpoints() {
        let files = "ca = '/a'\ncertificate = '/c'\nkey = '/k'\n";
        let with_files = |endpoint: &str| format!("endpoint = '{endpoint}'\n{files}");
        check(&with_files("https://controller:7443"), Ok(true));
        check("endpoint = 'https://controller:7443'", Err("controller.ca: https needs it"));
        check("endpoint = 'http://127.0.0.1:7443'", Ok(false));
        check("endpoint = 'http://[::1]:7443'", Ok(false));
        check("endpoint = 'http://localhost:7443'", Ok(false));
        check(&with_files("http://localhost:7443"), Err("controller.ca: the endpoint is not https"));
        check("endpoint = 'http://controller:7443'", Err("\"controller\" is not this machine"));
        check("endpoint = 'http://127.0.0.1.example.org:7443'", Err("is not this machine"));
        check("endpoint = 'ftp://localhost'", Err("is not https://host:port"));
        check("endpoint = 'controller:7443'", Err("controller.endpoint"));
        check("endpoint = ''", Err("controller.endpoint"));
        check(
            "endpoint = 'https://c'\nca = 'a'\ncertificate = '/c'\nkey = '/k'",
            Err("controller.ca: the path is not absolute"),
        );
        check("endpoint = 'http://localhost'\noutbox_bytes = 0", Err("outbox_bytes: at least 1048576"));
    }
}
