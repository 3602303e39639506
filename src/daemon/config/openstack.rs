//! The section `[openstack]`: where the OpenStack client is answered. Decides where that may be done without TLS.

use std::net::SocketAddr;

use argon2::Params;
use argon2::password_hash::phc::PasswordHash;
use serde::{Deserialize, Serialize};

use super::{Config, ConfigError, bad};

/// Longest name of a user.
const NAME_LIMIT: usize = 64;

/// What is said of something else than a hash. Not what it is: it may be the password.
const NO_HASH: &str = "it is no hash by Argon2id: 'argon2 SALT -id -e' makes one";

/// The most that a look at a password may cost, in KiB of memory, passes and lanes: anybody can ask for one.
const MOST: [u32; 3] = [256 * 1024, 16, 16];

/// What is said of a hash that costs more.
const TOO_SLOW: &str = "it takes too much: m is at most 262144 (256 MiB), t and p at most 16";

/// A listener for HTTP that speaks what the OpenStack client needs of the Block Storage API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenstackConfig {
    /// Address and port to listen on, as in `127.0.0.1:8776`.
    pub listen: SocketAddr,
    /// Whether with TLS: with the certificates of `[tcp]`, on both sides. Unset: if there is a `[tcp]`. Without it nobody proves
    /// who he is, so the address is one of this node alone, and a rule names `loopback`.
    pub tls: Option<bool>,
    /// Users with a password, `[[openstack.users]]`, whom rules name as `basic:NAME`. If there are any, a client needs no
    /// certificate, and nobody on this node a rule for `loopback`.
    #[serde(default)]
    pub users: Vec<UserConfig>,
}

/// A user of HTTP's basic authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// The name: letters, digits, `.`, `_`, `-` and `@`.
    pub name: String,
    /// The password's hash by Argon2id, as `argon2 SALT -id -e` prints it.
    pub password: String,
}

impl OpenstackConfig {
    /// Whether its clients prove who they are.
    #[must_use]
    pub fn is_secured(&self, config: &Config) -> bool {
        self.tls.unwrap_or(config.tcp.is_some())
    }

    pub(super) fn check(&self, config: &Config) -> Result<(), ConfigError> {
        for (number, user) in self.users.iter().enumerate() {
            user.check()?;
            if self.users[..number].iter().any(|other| other.name == user.name) {
                return Err(bad("openstack.users", format!("{:?} is there twice", user.name)));
            }
        }
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
        let is_named = config.access.iter().any(|rule| rule.who.iter().any(names_them));
        if !is_named && self.users.is_empty() {
            let problem = "without TLS it needs a rule in [[access]] whose who has \"loopback\", or users";
            return Err(bad("openstack.listen", problem.to_owned()));
        }
        Ok(())
    }
}

impl UserConfig {
    /// Whether it can be used. A hash of another kind would let in whoever guesses for long enough.
    fn check(&self) -> Result<(), ConfigError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        if self.name.is_empty() || self.name.len() > NAME_LIMIT || !self.name.chars().all(is_plain) {
            let problem = format!("{:?} is no name: letters, digits, '.', '_', '-' and '@'", self.name);
            return Err(bad("openstack.users.name", problem));
        }
        let no_hash = || bad("openstack.users.password", NO_HASH.to_owned());
        let hash = PasswordHash::new(&self.password).map_err(|_| no_hash())?;
        if hash.algorithm.as_str() != "argon2id" || hash.salt.is_none() || hash.hash.is_none() {
            return Err(no_hash());
        }
        let cost = Params::try_from(&hash).map_err(|_| no_hash())?;
        let is_cheap =
            [cost.m_cost(), cost.t_cost(), cost.p_cost()].iter().zip(MOST).all(|(is, most)| *is <= most);
        if is_cheap { Ok(()) } else { Err(bad("openstack.users.password", TOO_SLOW.to_owned())) }
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

    #[test]
    fn users() {
        const HASH: &str =
            "$argon2id$v=19$m=8,t=1,p=1$ZXhhbXBsZS1zYWx0$Nak3HAh3xvKBlSAiKNerxFSg4tj7r/ZE6kCFR9i47Yg";
        let user = |name: &str, password: &str| {
            format!("[[openstack.users]]\nname = '{name}'\npassword = '{password}'\n")
        };
        let here = |users: &str| format!("[openstack]\nlisten = '127.0.0.1:8776'\n{users}");
        check(&here(&user("backup@acme", HASH)), Ok(false));
        check(&here(&(user("a", HASH) + &user("a", HASH))), Err("\"a\" is there twice"));
        for name in ["", "a b", "a:b", "ä", &"x".repeat(65)] {
            check(&here(&user(name, HASH)), Err("openstack.users.name"));
        }
        for password in
            ["", "secret", "$argon2i$v=19$m=8,t=1,p=1$ZXhhbXBsZS1zYWx0", "$2b$12$abc", "$argon2id$v=19"]
        {
            check(&here(&user("a", password)), Err("openstack.users.password: it is no hash by Argon2id"));
        }
        check(&here(&user("a", &HASH.replace("m=8,t=1,p=1", "m=262144,t=16,p=16"))), Ok(false));
        for cost in ["m=262145,t=1,p=1", "m=8,t=17,p=1", "m=1024,t=1,p=17"] {
            let hash = HASH.replace("m=8,t=1,p=1", cost);
            check(&here(&user("a", &hash)), Err("openstack.users.password: it takes too much"));
        }
    }
}
