//! The rules in force, and what they say of whoever is connected.
//!
//! Decides when somebody who was let in is looked at again: with each call after the rules or certificates have changed, and
//! once a minute, for a certificate expires by itself. Leaves to `model` what a rule gives, to `tls` what a certificate proves.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Status};

use super::config::{Config, ConfigError};
use super::passwords::Users;
use super::tls::{Chain, Tls, TlsError};
use crate::api;
use crate::model::access::{Demand, Grant, Identity, Rules};

/// How long what was found out about a connection is relied upon.
const RELIED_UPON: Duration = Duration::from_secs(60);

/// What was read at one time.
pub(super) struct InForce {
    rules: Rules,
    /// None where nothing is listened for on the network.
    pub(super) tls: Option<Tls>,
    /// Who has a password.
    pub(super) users: Arc<Users>,
}

/// What is in force now, and whether it changes.
pub(super) type Current = watch::Receiver<Arc<InForce>>;

/// Why rules and certificates are not taken into force.
#[derive(Debug, thiserror::Error)]
pub(super) enum AccessError {
    #[error("the configuration is wrong")]
    Config(#[from] ConfigError),
    #[error("the certificates of [tcp] cannot be used")]
    Tls(#[from] TlsError),
}

impl InForce {
    /// What a configuration says, and the files that it names. Blocks.
    pub(super) fn read(config: &Config) -> Result<Self, AccessError> {
        let users = config.openstack.as_ref().map_or(&[][..], |openstack| &openstack.users);
        let has_passwords = !users.is_empty();
        let tls = config.tcp.as_ref().map(|tcp| Tls::read(tcp, has_passwords)).transpose()?;
        Ok(Self { rules: config.rules()?, tls, users: Users::of(users) })
    }
}

/// Who is at the other end of a connection.
pub(super) enum Peer {
    /// Somebody on this node.
    Local(UdsConnectInfo),
    /// Somebody with a certificate.
    Remote { address: SocketAddr, chain: Chain },
    /// Somebody on this node who has proven nothing.
    Loopback { address: SocketAddr },
    /// Somebody who knows the password of a user; nobody, as long as no name is known.
    Basic { address: SocketAddr, name: String },
}

impl Peer {
    /// What it has proven, for as long as the proof holds.
    pub(super) fn proven(&self) -> Vec<Identity> {
        match self {
            Self::Local(UdsConnectInfo { peer_cred: Some(peer), .. }) => {
                vec![Identity::User(peer.uid()), Identity::Group(peer.gid()), Identity::Socket]
            }
            Self::Local(_) => vec![Identity::Socket],
            Self::Remote { chain, .. } => chain.identities(),
            Self::Loopback { .. } => vec![Identity::Loopback],
            Self::Basic { name, .. } => vec![Identity::Basic(name.clone())],
        }
    }

    /// What its calls are counted by.
    pub(super) fn identity(&self) -> Identity {
        self.proven().into_iter().next().unwrap_or(Identity::Socket)
    }

    /// From which address. None on the Unix socket.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Local(_) => None,
            Self::Remote { address, .. } | Self::Loopback { address } | Self::Basic { address, .. } => {
                Some(address.ip())
            }
        }
    }

    /// From where, for people.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Local(UdsConnectInfo { peer_cred: Some(peer), .. }) => match peer.pid() {
                Some(pid) => format!("pid {pid}"),
                None => "this node".to_owned(),
            },
            Self::Local(_) => "this node".to_owned(),
            Self::Remote { address, .. } | Self::Loopback { address } | Self::Basic { address, .. } => {
                address.to_string()
            }
        }
    }
}

/// What somebody who is connected may do.
pub(super) struct Standing {
    pub(super) peer: Peer,
    current: Current,
    /// Last.
    known: Mutex<Option<Found>>,
}

/// What was found out, under which rules, and when.
type Found = (Arc<InForce>, Instant, Result<Grant, Status>);

impl Standing {
    pub(super) fn new(peer: Peer, current: Current) -> Self {
        Self { peer, current, known: Mutex::new(None) }
    }

    /// The same connection, when a request on it has proven to be of a user. What that was found by is in force now.
    pub(super) fn of_user(&self, name: String) -> Self {
        let address = match &self.peer {
            Peer::Remote { address, .. } | Peer::Loopback { address } | Peer::Basic { address, .. } => {
                *address
            }
            Peer::Local(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        Self::new(Peer::Basic { address, name }, self.current.clone())
    }

    /// Who has a password now.
    pub(super) fn users(&self) -> Arc<Users> {
        Arc::clone(&self.current.borrow().users)
    }

    /// Who it is and what it may do now.
    pub(super) fn grant(&self) -> Result<Grant, Status> {
        let in_force = Arc::clone(&self.current.borrow());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((under, at, grant)) if Arc::ptr_eq(under, &in_force) && at.elapsed() < RELIED_UPON => {
                grant.clone()
            }
            Some(_) | None => {
                let grant = self.look(&in_force);
                *known = Some((in_force, Instant::now(), grant.clone()));
                grant
            }
        }
    }

    /// Whether no rule speaks of it, whatever it has proven.
    pub(super) fn is_stranger(&self) -> bool {
        self.grant().is_err_and(|status| status.code() == Code::PermissionDenied)
    }

    /// Why its certificate proves nothing any more, if that is so.
    pub(super) fn proof(&self) -> Result<(), Status> {
        match self.grant() {
            Err(status) if status.code() == Code::Unauthenticated => Err(status),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether it may make a call that asks for so much. None for whoever may without a name: probes on this node. From the
    /// network nobody is answered of whom no rule speaks.
    pub(super) fn check(&self, demand: Option<Demand>) -> Result<Option<Grant>, Status> {
        match (demand, &self.peer) {
            (None, Peer::Local(_)) => Ok(None),
            (None, Peer::Remote { .. } | Peer::Loopback { .. } | Peer::Basic { .. }) => {
                self.grant().map(Some)
            }
            (Some(demand), _) => {
                let grant = self.grant()?;
                grant.check(demand).map_err(|denial| api::denied(&denial))?;
                Ok(Some(grant))
            }
        }
    }

    fn look(&self, in_force: &InForce) -> Result<Grant, Status> {
        if let Peer::Remote { chain, .. } = &self.peer {
            let verified = in_force.tls.as_ref().map(|tls| tls.verify(chain));
            match verified {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(api::unproven(&error.to_string())),
                None => return Err(api::unproven("nobody is let in from the network any more")),
            }
        }
        in_force.rules.grant(&self.peer.proven()).map_err(|denial| api::denied(&denial))
    }
}
