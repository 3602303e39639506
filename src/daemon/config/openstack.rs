//! The section `[openstack]`: where the OpenStack client is answered. Decides where that may be done without TLS.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError, bad};

/// A listener for HTTP that speaks what the OpenStack client needs of the Block Storage API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenstackConfig {
    /// Address and port to listen on, as in `127.0.0.1:8776`.
    pub listen: SocketAddr,
    /// Whether with TLS: with the certificates of `[tcp]`, on both sides. Unset: if there is a `[tcp]`. Without it nobody proves
    /// who he is, so the address is one of this node alone, and a rule names `loopback`.
    pub tls: Option<bool>,
}

impl OpenstackConfig {
    /// Whether its clients prove who they are.
    #[must_use]
    pub fn is_secured(&self, config: &Config) -> bool {
        self.tls.unwrap_or(config.tcp.is_some())
    }

    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        if self.is_secured(config) {
            let problem = || bad("openstack.tls", "it needs the certificates of [tcp]".to_owned());
            return config.tcp.as_ref().map(drop).ok_or_else(problem);
        }
        if !self.listen.ip().is_loopback() {
            let problem =
                format!("{} is not of this node alone, so TLS is needed: see [tcp]", self.listen.ip());
            return Err(bad("openstack.listen", problem));
        }
        // Everybody on the node reaches it. Who lets them do something has to say so.
        let names_them = |name: &String| name == "loopback";
        if !config.access.iter().any(|rule| rule.who.iter().any(names_them)) {
            let problem = "without TLS it needs a rule in [[access]] whose who has \"loopback\"";
            return Err(bad("openstack.listen", problem.to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<bool, &str>) {
        let config: Config = toml::from_str(text).unwrap();
        let checked = config.check().map(|()| config.openstack.as_ref().unwrap().is_secured(&config));
        match (checked, expected) {
            (Ok(is_secured), Ok(expected)) => assert_eq!(is_secured, expected, "{text}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (result, _) => panic!("{text:?} gave {result:?}"),
        }
    }

    #[test]
    fn listeners() {
        let rule = "[[access]]\nwho = ['loopback']\nrole = 'operator'\n";
        let tcp = "[tcp]\nlisten = '[::]:1'\ncertificate = '/c'\nkey = '/k'\nclient_ca = '/a'\n";
        let here = "[openstack]\nlisten = '127.0.0.1:8776'\n";
        let network = "[openstack]\nlisten = '[::]:8776'\n";
        check(&format!("{rule}{here}"), Ok(false));
        check(&format!("{rule}[openstack]\nlisten = '[::1]:8776'"), Ok(false));
        check(here, Err("openstack.listen: without TLS it needs a rule"));
        check(&format!("{rule}{network}"), Err("openstack.listen: :: is not of this node alone"));
        check(&format!("{rule}[openstack]\nlisten = '192.0.2.1:1'"), Err("so TLS is needed"));
        check(&format!("{tcp}{network}"), Ok(true));
        check(&format!("{tcp}{here}tls = false"), Err("without TLS it needs a rule"));
        check(&format!("{rule}{tcp}{here}tls = false"), Ok(false));
        check(&format!("{rule}{tcp}{network}tls = false"), Err("is not of this node alone"));
        check(&format!("{rule}{here}tls = true"), Err("openstack.tls: it needs the certificates"));
    }
}
