//! Reading the configuration again, as far as a call asks for it. Decides nothing: the daemon does it.

use tonic::{Response, Status};

use super::{Answer, Api, status};
use crate::model::Reason;
use crate::model::operation::in_one_line;
use crate::proto::v1;

/// Reads the configuration again.
#[tonic::async_trait]
pub trait Reload: Send + Sync {
    /// Takes what can change into force, or only says what would.
    async fn reload(&self, validate_only: bool) -> Result<Reloaded, ReloadError>;
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// The keys with other values than before, which are in force.
    pub changed: Vec<String>,
    /// The keys whose new values need a restart.
    pub restart: Vec<String>,
}

/// Why all of the old configuration stays in force.
#[derive(Debug, thiserror::Error)]
#[error("the new configuration cannot be used")]
pub struct ReloadError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl ReloadError {
    /// For this reason.
    pub fn new(cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self(Box::new(cause))
    }
}

pub(super) async fn reload(
    api: &Api,
    request: v1::ReloadConfigurationRequest,
) -> Answer<v1::ReloadConfigurationResponse> {
    let Some(reloading) = &api.reloading else {
        return Err(Status::internal("there is nothing to be read again"));
    };
    let reloaded = reloading.reload(request.validate_only).await.map_err(|error| {
        let remedy = "mend it: 'vmsnapd check-config' says whether it can be used";
        status::plain(Reason::ConfigurationInvalid, &in_one_line(&error), remedy)
    })?;
    let (changed_keys, restart_keys) = (reloaded.changed, reloaded.restart);
    Ok(Response::new(v1::ReloadConfigurationResponse { changed_keys, restart_keys }))
}
