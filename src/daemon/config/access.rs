//! The sections `[[access]]`: who may do what. Decides how a rule is spelled; users and groups are looked up when it is read.

use std::collections::{BTreeMap, BTreeSet};

use nix::unistd::{Group, User};
use serde::{Deserialize, Serialize};

use super::{ConfigError, bad};
use crate::model::access::{Identity, InvalidIdentity, Role, Rule, Scope};

/// One rule. Of all of them, the first that names a caller speaks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessConfig {
    /// Whom it speaks for: `socket` (whoever the mode of the Unix socket lets in), `user:NAME`, `uid:NUMBER`, `group:NAME`,
    /// `gid:NUMBER`; over TCP `uri:URI` and `dns:NAME`, of the subject alternative names of the client's certificate; `loopback`
    /// for whoever on this node reaches `[openstack]` where that has no TLS, `basic:NAME` for a user of `[openstack]`.
    pub who: Vec<String>,
    /// What they may ask for: `viewer`, `operator`, `restorer` or `admin`.
    pub role: RoleName,
    /// Only VMs with this label `account`.
    pub account: Option<String>,
    /// Only VMs with this label `domain`.
    pub domain: Option<String>,
    /// Only VMs with this label `project`: nova's, if the VM has no label of ours.
    pub project: Option<String>,
    /// Only VMs with all of these labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A role as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "each is explained once, in model/access.rs")]
pub enum RoleName {
    Viewer,
    Operator,
    Restorer,
    Admin,
}

impl AccessConfig {
    /// Whether it is spelled well. Asks nobody who a name is: guests are thawed whether or not somebody can tell that.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.who.is_empty() {
            return Err(bad("access.who", "it names nobody".to_owned()));
        }
        for name in &self.who {
            Name::read(name).map_err(|problem| bad("access.who", problem))?;
        }
        self.scope().map(drop)
    }

    /// The rule. Asks the node who its users and groups are.
    pub fn rule(&self) -> Result<Rule, ConfigError> {
        let mut who = BTreeSet::new();
        for name in &self.who {
            let named = Name::read(name).and_then(Name::identities);
            who.extend(named.map_err(|problem| bad("access.who", problem))?);
        }
        let role = match self.role {
            RoleName::Viewer => Role::Viewer,
            RoleName::Operator => Role::Operator,
            RoleName::Restorer => Role::Restorer,
            RoleName::Admin => Role::Admin,
        };
        Ok(Rule { who, role, scope: self.scope()? })
    }

    fn scope(&self) -> Result<Option<Scope>, ConfigError> {
        let owner = [("account", &self.account), ("domain", &self.domain), ("project", &self.project)];
        let mut labels = self.labels.clone();
        for (key, value) in owner {
            let Some(value) = value else { continue };
            if labels.insert(key.to_owned(), value.clone()).is_some_and(|other| other != *value) {
                return Err(bad("access.labels", format!("it says something else of {key:?}")));
            }
        }
        // A scope that was left empty by whatever wrote the file must not be the whole node.
        if labels.iter().any(|(key, value)| key.is_empty() || value.is_empty()) {
            return Err(bad("access.labels", "a key or a value is empty".to_owned()));
        }
        Ok(Scope::new(labels))
    }
}

/// Who is named.
enum Name<'a> {
    User(&'a str),
    Group(&'a str),
    /// As it is.
    Plain(Identity),
}

impl<'a> Name<'a> {
    fn read(name: &'a str) -> Result<Self, String> {
        match name.split_once(':') {
            Some(("user", user)) if !user.is_empty() => Ok(Self::User(user)),
            Some(("group", group)) if !group.is_empty() => Ok(Self::Group(group)),
            Some(_) | None => name
                .parse()
                .map(Self::Plain)
                .map_err(|error: InvalidIdentity| format!("{error}, user:NAME or group:NAME")),
        }
    }

    /// A group is whoever has it as its own, and who is listed in it now: the kernel tells only the first.
    fn identities(self) -> Result<Vec<Identity>, String> {
        match self {
            Self::Plain(identity) => Ok(vec![identity]),
            Self::User(user) => {
                let found = User::from_name(user).map_err(|error| error.to_string())?;
                let found = found.ok_or_else(|| format!("there is no user {user:?}"))?;
                Ok(vec![Identity::User(found.uid.as_raw())])
            }
            Self::Group(group) => {
                let found = Group::from_name(group).map_err(|error| error.to_string())?;
                let found = found.ok_or_else(|| format!("there is no group {group:?}"))?;
                let mut identities = vec![Identity::Group(found.gid.as_raw())];
                for member in &found.mem {
                    // One who is not known any more is nobody; one who cannot be asked for now may be anybody.
                    let member = User::from_name(member).map_err(|error| format!("{member:?}: {error}"))?;
                    identities.extend(member.map(|member| Identity::User(member.uid.as_raw())));
                }
                Ok(identities)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Labels;

    fn check(text: &str, expected: Result<&[&str], &str>) -> Option<Rule> {
        match (toml::from_str::<AccessConfig>(text), expected) {
            (Ok(config), expected) => match (config.check().and_then(|()| config.rule()), expected) {
                (Ok(rule), Ok(who)) => {
                    let named: Vec<String> = rule.who.iter().map(ToString::to_string).collect();
                    assert_eq!(named, who, "{text}");
                    Some(rule)
                }
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{error}");
                    None
                }
                (result, _) => panic!("{text:?} gave {result:?}"),
            },
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{error}");
                None
            }
            (Err(error), Ok(_)) => panic!("{text:?} gave {error}"),
        }
    }

    #[test]
    fn rules() {
        check("who = ['user:root']\nrole = 'admin'", Ok(&["uid:0"]));
        check("who = ['group:root', 'uri:spiffe://a']\nrole = 'viewer'", Ok(&["gid:0", "uri:spiffe://a"]));
        check("who = []\nrole = 'viewer'", Err("it names nobody"));
        check("who = ['root']\nrole = 'viewer'", Err("is none of socket, uid:NUMBER"));
        check("who = ['user:nobody-has-this-name']\nrole = 'viewer'", Err("there is no user"));
        check("who = ['group:nobody-has-this-name']\nrole = 'viewer'", Err("there is no group"));
        check("who = ['socket']\nrole = 'owner'", Err("unknown variant `owner`"));
        check("who = ['socket']", Err("missing field `role`"));
        check("who = ['socket']\nrole = 'viewer'\nacount = 'acme'", Err("unknown field `acount`"));
    }

    #[test]
    fn scopes() {
        let scope = |text: &str| {
            let text = format!("who = ['socket']\nrole = 'viewer'\n{text}");
            check(&text, Ok(&["socket"])).unwrap().scope
        };
        assert_eq!(scope(""), None);
        let labels = |pairs: &[(&str, &str)]| {
            Labels(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        let acme = scope("account = 'acme'\nlabels = { tier = 'gold' }").unwrap();
        assert!(acme.has(&labels(&[("account", "acme"), ("tier", "gold")])));
        assert!(!acme.has(&labels(&[("account", "acme")])));
        let wrong = |text: &str, part: &str| {
            check(&format!("who = ['socket']\nrole = 'viewer'\n{text}"), Err(part));
        };
        wrong("account = ''", "a key or a value is empty");
        wrong("labels = { '' = 'x' }", "a key or a value is empty");
        wrong("account = 'acme'\nlabels = { account = 'other' }", "something else of \"account\"");
    }
}
