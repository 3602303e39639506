//! Calls the controller, and calls it again.
//!
//! Decides when: at once, then later and later while it does not take us, with jitter, so that a thousand nodes do not call a
//! controller in one instant that has just come back. Leaves to `api` what is said.

use std::path::PathBuf;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use super::config::{Config, ConfigError, ControllerConfig};
use super::start::StartError;
use crate::api::Api;
use crate::model::OutboxId;
use crate::model::operation::causes;
use crate::store::Store;

/// From the first wait to the longest one.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// A stream that lasted so long was well: after it waits begin anew.
const STEADY: Duration = Duration::from_secs(30);

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A controller that has vanished without a word is noticed after so long: the time between two questions, and to an answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Whether the controller has taken us; otherwise why not.
pub(super) type Reporting = Result<(), String>;

/// Why the controller could not be called, or the stream ended.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("cannot read {}", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("the configuration is wrong")]
    Config(#[from] ConfigError),
    #[error("cannot connect")]
    Connect(#[from] tonic::transport::Error),
    #[error("the stream broke")]
    Stream(#[from] Status),
}

impl CallError {
    /// Whether the controller has said that it does not want us: soon is not sooner than late then.
    fn is_refusal(&self) -> bool {
        let refused = |status: &Status| {
            matches!(status.code(), Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated)
        };
        matches!(self, Self::Stream(status) if refused(status))
    }
}

/// Lets whatever happens from now on be kept for the controller, or for nobody if none is configured.
pub(super) async fn keep_outbox(store: &Store, config: &Config) -> Result<(), StartError> {
    let kept = match &config.controller {
        Some(controller) => store.open_outbox(OutboxId::new(), controller.outbox_bytes).await.map(drop),
        None => store.close_outbox().await,
    };
    kept.map_err(|cause| StartError::Catalog { path: config.catalog(), cause })
}

/// Reports until `stop`.
pub(super) async fn report(
    api: Api,
    config: ControllerConfig,
    reporting: watch::Sender<Reporting>,
    stop: CancellationToken,
) {
    let calls = async {
        let mut waits = waits();
        loop {
            let (lasted, error) = call(&api, &config, &reporting).await;
            if lasted >= STEADY {
                waits = self::waits();
            }
            let is_refusal = error.as_ref().is_some_and(CallError::is_refusal);
            tell(&config, error.as_ref(), &reporting);
            let wait = waits.next().filter(|_| !is_refusal).unwrap_or(WAITS.1);
            tokio::time::sleep(wait).await;
        }
    };
    tokio::select! {
        () = calls => {}
        () = stop.cancelled() => {}
    }
}

fn waits() -> ExponentialBackoff {
    let (first, longest) = WAITS;
    let waits = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest);
    waits.without_max_times().with_jitter().build()
}

/// One call. Gives how long the controller took us for, and why that ended if it was not by the controller's own will.
async fn call(
    api: &Api,
    config: &ControllerConfig,
    reporting: &watch::Sender<Reporting>,
) -> (Duration, Option<CallError>) {
    let mut since = None;
    let accepted = || {
        since = Some(Instant::now());
        tracing::info!(endpoint = config.endpoint, "reporting to the controller");
        drop(reporting.send_replace(Ok(())));
    };
    let ended = async {
        let channel = connect(config).await?;
        Ok(api.report(channel, accepted).await?)
    };
    let error = ended.await.err();
    (since.map_or(Duration::ZERO, |since| since.elapsed()), error)
}

/// Certificates and keys are read each time: one that was changed is used from then on.
async fn connect(config: &ControllerConfig) -> Result<Channel, CallError> {
    let mut endpoint = Endpoint::from_shared(config.endpoint.clone())?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true);
    if let Some(files) = config.tls()? {
        let identity = Identity::from_pem(read(files.certificate).await?, read(files.key).await?);
        let ca = Certificate::from_pem(read(files.ca).await?);
        let tls = ClientTlsConfig::new().ca_certificate(ca).identity(identity);
        endpoint = endpoint.tls_config(match &config.server_name {
            Some(name) => tls.domain_name(name),
            None => tls,
        })?;
    }
    Ok(endpoint.connect().await?)
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, CallError> {
    let content = tokio::fs::read(path).await;
    content.map_err(|cause| CallError::Unreadable { path: path.clone(), cause })
}

/// Once for each reason, not for each attempt.
fn tell(config: &ControllerConfig, error: Option<&CallError>, reporting: &watch::Sender<Reporting>) {
    let words = match error {
        Some(error) => std::iter::once(error.to_string()).chain(causes(error)).collect::<Vec<_>>().join(": "),
        None => "the controller ended the stream".to_owned(),
    };
    let is_new = reporting.send_if_modified(|known| {
        let now = Err(words.clone());
        std::mem::replace(known, now.clone()) != now
    });
    if is_new {
        tracing::warn!(
            endpoint = config.endpoint,
            why = words,
            "not reporting to the controller; it is called again"
        );
    }
}
