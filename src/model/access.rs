//! Who may do what, and with which VMs.
//!
//! Decides which rule speaks for a caller, whether the role that it gives suffices, and which VMs are within its scope. Leaves
//! to `daemon` how a caller proves who it is and where rules are written, to `api` what each call asks for. Must never know a
//! certificate, a socket, or a call's name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// What is written on a VM, by key: libvirt keeps it in the metadata of the definition. Who owns the VM is among it, under
/// `account`, `domain` and `project`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(pub BTreeMap<String, String>);

/// Something that a caller can prove to be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// Anybody whom the file mode of the Unix socket lets in.
    Socket,
    /// This user, at the other end of the Unix socket.
    User(u32),
    /// A user of this group, at the other end of the Unix socket.
    Group(u32),
    /// Whoever has the key of a certificate with this URI as a name.
    Uri(String),
    /// Whoever has the key of a certificate with this DNS name.
    Dns(String),
    /// Anybody on this node who reaches a listener without TLS.
    Loopback,
    /// Whoever knows the password of this user of the configuration.
    Basic(String),
}

/// What a caller may ask for. Each role may all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks and follows. Changes nothing.
    Viewer,
    /// Takes snapshots, writes on them, deletes them.
    Operator,
    /// Goes back to snapshots, and makes volumes and VMs of them.
    Restorer,
    /// Settles what needs a person, and what concerns the whole node.
    Admin,
}

/// The VMs that a caller may know of: those with each of these labels. There is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(BTreeMap<String, String>);

/// What somebody may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Whom it speaks for: any of these.
    pub who: BTreeSet<Identity>,
    /// What they may ask for.
    pub role: Role,
    /// With which VMs. None: all, and what belongs to the node.
    pub scope: Option<Scope>,
}

/// All rules, in the order in which they are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

/// Who calls, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Under which name it does: what snapshots and operations are noted to be made by.
    pub principal: Identity,
    /// What it may ask for.
    pub role: Role,
    /// With which VMs. None: all, and what belongs to the node.
    pub scope: Option<Scope>,
}

/// What a call asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The least role.
    pub role: Role,
    /// Whether a caller with a scope may make it. It is told of nothing outside of it then.
    pub within_scope: bool,
}

/// Why a call is not for its caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// No rule speaks for it.
    #[error("{principal} is given no access")]
    NoRule {
        /// Who it is.
        principal: Identity,
    },
    /// Its role is not enough.
    #[error("{principal} has the role {has}, and this call needs {needs}")]
    Role {
        /// Who it is.
        principal: Identity,
        /// Its role.
        has: Role,
        /// The least role.
        needs: Role,
    },
    /// The call is about the whole node.
    #[error("{principal} is given some VMs, and this call is about the node")]
    Node {
        /// Who it is.
        principal: Identity,
    },
}

impl Rules {
    /// These, and at last one for root, who could write any: nobody is locked out of his own node.
    #[must_use]
    pub fn new(mut rules: Vec<Rule>) -> Self {
        rules.push(Rule { who: [Identity::User(0)].into(), role: Role::Admin, scope: None });
        Self(rules)
    }

    /// Where none are written: whoever the socket lets in may do all, and nobody else anything.
    #[must_use]
    pub fn unwritten() -> Self {
        Self::new(vec![Rule { who: [Identity::Socket].into(), role: Role::Admin, scope: None }])
    }

    /// What the first rule that names one of these identities gives. The caller is known by the first of `proven` otherwise.
    pub fn grant(&self, proven: &[Identity]) -> Result<Grant, Denial> {
        let first = proven.first().cloned().unwrap_or(Identity::Socket);
        let speaks = |rule: &&Rule| proven.iter().any(|identity| rule.who.contains(identity));
        let Some(rule) = self.0.iter().find(speaks) else { return Err(Denial::NoRule { principal: first }) };
        let named = proven.iter().find(|identity| rule.who.contains(identity));
        let principal = match named {
            Some(named @ (Identity::Uri(_) | Identity::Dns(_) | Identity::Loopback | Identity::Basic(_))) => {
                named.clone()
            }
            // Whoever comes in by a group, or by the socket, is still that user.
            Some(Identity::Socket | Identity::User(_) | Identity::Group(_)) | None => first,
        };
        Ok(Grant { principal, role: rule.role, scope: rule.scope.clone() })
    }
}

impl Grant {
    /// Whether this caller may make such a call.
    pub fn check(&self, demand: Demand) -> Result<(), Denial> {
        let principal = self.principal.clone();
        if self.role < demand.role {
            return Err(Denial::Role { principal, has: self.role, needs: demand.role });
        }
        if self.scope.is_some() && !demand.within_scope {
            return Err(Denial::Node { principal });
        }
        Ok(())
    }
}

impl Scope {
    /// The VMs with all of these labels. None if there is no label: that would be all VMs, and is written otherwise.
    #[must_use]
    pub fn new(labels: BTreeMap<String, String>) -> Option<Self> {
        (!labels.is_empty()).then_some(Self(labels))
    }

    /// Whether a VM with these labels is within.
    #[must_use]
    pub fn has(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, value)| labels.0.get(key) == Some(value))
    }

    /// What it asks of a label, if it asks for that one.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket => f.write_str("socket"),
            Self::User(uid) => write!(f, "uid:{uid}"),
            Self::Group(gid) => write!(f, "gid:{gid}"),
            Self::Uri(uri) => write!(f, "uri:{uri}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Loopback => f.write_str("loopback"),
            Self::Basic(name) => write!(f, "basic:{name}"),
        }
    }
}

/// A text that names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of socket, uid:NUMBER, gid:NUMBER, uri:URI, dns:NAME, loopback, basic:NAME")]
pub struct InvalidIdentity(String);

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let invalid = || InvalidIdentity(text.to_owned());
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        // Digits alone: `+5` would be another spelling of the same.
        let number = || name.parse().ok().filter(|number: &u32| number.to_string() == name);
        match kind {
            "socket" if kind == text => Ok(Self::Socket),
            "loopback" if kind == text => Ok(Self::Loopback),
            "basic" if !name.is_empty() => Ok(Self::Basic(name.to_owned())),
            "uid" => number().map(Self::User).ok_or_else(invalid),
            "gid" => number().map(Self::Group).ok_or_else(invalid),
            "uri" if !name.is_empty() => Ok(Self::Uri(name.to_owned())),
            // Names of hosts are the same in either case, and certificates are read so.
            "dns" if !name.is_empty() => Ok(Self::Dns(name.to_ascii_lowercase())),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Restorer => "restorer",
            Self::Admin => "admin",
        })
    }
}

#[cfg(test)]
mod tests;
