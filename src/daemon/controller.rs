//! Calls the controller, and calls it again.
//!
//! Decides when: at once, then later and later while it does not take us, with jitter, so that a thousand nodes do not call a
//! controller in one instant that has just come back. Leaves to `api` what is said.

use std::path::PathBuf;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use hyper::rt::Executor;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use super::config::{ConfigError, ControllerConfig};
use crate::api::{Api, ReportEnd};
use crate::model::OutboxId;
use crate::model::operation::in_one_line;
use crate::store::Store;

/// From the first wait to the longest one, without jitter.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A controller that has said that it does not want us is called again after so long.
const REFUSED: Duration = Duration::from_secs(120);

/// A stream that lasted so long was well: after it waits begin anew.
const STEADY: Duration = Duration::from_secs(5);

/// How long a connection may take: its name, TCP, TLS, and that the other side speaks HTTP/2.
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
    #[error("the controller does not answer")]
    Late,
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

/// Lets whatever happens from now on be kept for the controller, or for nobody if none is configured. Where that cannot be
/// written the daemon starts all the same: there may be no room, and guests to thaw. It is tried again with each call.
pub(super) async fn keep_outbox(store: &Store, controller: Option<&ControllerConfig>) {
    let kept = match controller {
        Some(controller) => store.open_outbox(OutboxId::new(), controller.outbox_bytes).await,
        None => store.close_outbox().await,
    };
    if let Err(error) = kept {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "the outbox for the controller cannot be opened, or closed");
    }
}

/// Removes what nobody has to be told any more. What is left is removed with the next call, or at the next start.
pub(super) async fn prune_outbox(store: &Store) {
    if let Err(error) = store.prune_outbox().await {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "what the controller need not be told any more cannot be removed");
    }
}

/// Reports until `stop`.
pub(super) async fn report(
    api: Api,
    store: Store,
    config: ControllerConfig,
    reporting: watch::Sender<Reporting>,
    stop: CancellationToken,
) {
    let calls = async {
        let mut waits = waits(WAITS);
        loop {
            keep_outbox(&store, Some(&config)).await;
            prune_outbox(&store).await;
            let (lasted, ended) = call(&api, &config, &reporting).await;
            if lasted >= STEADY {
                waits = self::waits(WAITS);
            }
            let is_refusal = ended.as_ref().is_err_and(CallError::is_refusal);
            tell(&config, ended, &reporting);
            let wait = if is_refusal { self::waits((REFUSED, REFUSED)).next() } else { waits.next() };
            tokio::time::sleep(wait.unwrap_or(WAITS.1)).await;
        }
    };
    tokio::select! {
        () = calls => {}
        () = stop.cancelled() => {}
    }
}

/// Each is as long as it is said to be, or up to twice as long.
fn waits((first, longest): (Duration, Duration)) -> ExponentialBackoff {
    let waits = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest);
    waits.without_max_times().with_jitter().build()
}

/// One call. Gives how long the controller took us for, and how that ended.
async fn call(
    api: &Api,
    config: &ControllerConfig,
    reporting: &watch::Sender<Reporting>,
) -> (Duration, Result<ReportEnd, CallError>) {
    let mut since = None;
    let accepted = || {
        since = Some(Instant::now());
        tracing::info!(endpoint = config.endpoint, "reporting to the controller");
        drop(reporting.send_replace(Ok(())));
    };
    let over = CancellationToken::new();
    // Whatever a controller leaves half open goes with the call.
    let _ends = over.clone().drop_guard();
    let ended = async {
        // The time for a connection of the endpoint is for TCP alone.
        let channel = tokio::time::timeout(CONNECT, connect(config, over));
        let channel = channel.await.map_err(|_| CallError::Late)??;
        Ok(api.report(channel, accepted).await?)
    };
    let ended = ended.await;
    (since.map_or(Duration::ZERO, |since| since.elapsed()), ended)
}

/// Runs what belongs to one connection, until the connection is given up.
#[derive(Clone)]
struct UntilOver(CancellationToken);

impl<F> Executor<F> for UntilOver
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        let over = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                () = over.cancelled() => {}
            }
        });
    }
}

/// Certificates and keys are read each time: one that was changed is used from then on.
async fn connect(config: &ControllerConfig, over: CancellationToken) -> Result<Channel, CallError> {
    let mut endpoint = Endpoint::from_shared(config.endpoint.clone())?
        .executor(UntilOver(over))
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
fn tell(
    config: &ControllerConfig,
    ended: Result<ReportEnd, CallError>,
    reporting: &watch::Sender<Reporting>,
) {
    let words = match ended {
        Err(error) => in_one_line(&error),
        Ok(ReportEnd::ByController) => "the controller ended the stream".to_owned(),
        Ok(ReportEnd::ByUs) => "another stream has to begin".to_owned(),
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
