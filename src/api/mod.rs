//! gRPC: request -> model -> ops -> response. Decides what a well-formed request is, and nothing else.
//!
//! Must never know libvirt, SQL or a file. Every answer is what the engine says; a call that comes in a later version
//! answers UNIMPLEMENTED.

use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch::Receiver;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;
use uuid::Uuid;

use crate::ops::{Asked, Engine};
use crate::proto::v1;
use crate::schedule::Schedules;
use crate::store::RequestKey;

mod about;
pub mod calls;
mod clone;
mod convert;
mod crowd;
mod edit;
mod event;
mod facts;
mod known;
mod label;
mod later;
mod list;
mod node;
mod operation;
mod paging;
mod reach;
mod reason;
mod reload;
mod report;
mod request;
mod resolve;
mod schedule;
mod shown;
mod snapshot;
mod status;
mod turns;
mod vm;
mod volume;
mod volume_list;
mod watch;

pub use about::About;
pub use crowd::{Crowd, Member};
pub use reason::{is_passing, of as told_as};
pub use reload::{Reload, ReloadError, Reloaded};
pub use report::ReportEnd;
pub use status::{
    denied, late, name as reason_name, rules_changed, too_many, unknown_call, unknown_user, unproven,
};

use about::answered;
use known::KnownLabels;
use reach::{Caller, Reach};
use shown::Watched;
use turns::Turns;

/// Longest request, in bytes. One with all texts and properties as long as may be has some tens of KiB; the rest is for
/// lists of names. Each call of each connection may hold that much.
const LONGEST_REQUEST: usize = 1024 * 1024;

/// One of the services, which takes no request beyond [`LONGEST_REQUEST`]. They have no trait in common that says so.
macro_rules! limited {
    ($api:expr, $module:ident::$server:ident) => {
        v1::$module::$server::new($api.clone()).max_decoding_message_size(LONGEST_REQUEST)
    };
}

/// A gRPC answer.
type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

/// Which node this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The same for as long as the state directory is there.
    pub id: Uuid,
    /// What the kernel calls it.
    pub host_name: String,
}

/// All services, over one engine. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    engine: Engine,
    schedules: Schedules,
    identity: NodeIdentity,
    state_directory: PathBuf,
    started: Instant,
    watched: Watched,
    known: KnownLabels,
    turns: Turns,
    /// Whether a controller has taken us; None where there is none.
    reporting: Option<Receiver<Result<(), String>>>,
    /// What reads the configuration again.
    reloading: Option<Arc<dyn Reload>>,
}

impl Api {
    /// The services over an engine.
    #[must_use]
    pub fn new(engine: Engine, identity: NodeIdentity, state_directory: PathBuf) -> Self {
        Self {
            schedules: Schedules::new(engine.clone(), Timestamp::now()),
            engine,
            identity,
            state_directory,
            started: Instant::now(),
            watched: Watched::default(),
            known: KnownLabels::default(),
            turns: Turns::default(),
            reporting: None,
            reloading: None,
        }
    }

    /// The schedules that its calls are about: whoever serves it starts them.
    #[must_use]
    pub fn schedules(&self) -> &Schedules {
        &self.schedules
    }

    /// With what reads the configuration again.
    #[must_use]
    pub fn reloading(self, reloading: Arc<dyn Reload>) -> Self {
        Self { reloading: Some(reloading), ..self }
    }

    /// With a controller: whether it has taken us, or why not.
    #[must_use]
    pub fn reporting(self, reporting: Receiver<Result<(), String>>) -> Self {
        Self { reporting: Some(reporting), ..self }
    }

    /// The services whose calls other interfaces of this daemon are made of, without a server.
    #[must_use]
    pub fn within(&self) -> Routes {
        Routes::new(limited!(self, vm_service_server::VmServiceServer))
            .add_service(limited!(self, snapshot_service_server::SnapshotServiceServer))
            .add_service(limited!(self, operation_service_server::OperationServiceServer))
            .add_service(limited!(self, volume_service_server::VolumeServiceServer))
    }

    /// Adds all services to a server.
    #[must_use]
    pub fn routes<L: Clone>(&self, mut server: Server<L>) -> Router<L> {
        server
            .add_service(limited!(self, node_service_server::NodeServiceServer))
            .add_service(limited!(self, vm_service_server::VmServiceServer))
            .add_service(limited!(self, snapshot_service_server::SnapshotServiceServer))
            .add_service(limited!(self, operation_service_server::OperationServiceServer))
            .add_service(limited!(self, volume_service_server::VolumeServiceServer))
            .add_service(limited!(self, event_service_server::EventServiceServer))
            .add_service(limited!(self, schedule_service_server::ScheduleServiceServer))
    }
}

/// How a mutation is asked for.
fn asked(by: String, request_id: &str, digest: Vec<u8>, validate_only: bool) -> Asked {
    let key = (!request_id.is_empty() && !validate_only).then(|| RequestKey {
        id: request_id.to_owned(),
        principal: by.clone(),
        digest,
    });
    Asked { by, key, validate_only }
}

/// The generation that an etag stands for; None for no etag.
fn generation(etag: &str) -> Result<Option<u64>, &'static str> {
    match etag {
        "" => Ok(None),
        etag => etag.parse().map(Some).map_err(|_| "it is not an etag"),
    }
}
