//! `vmsnap controller receive`: a controller that only takes reports, to try the contract with and to learn it from.
//!
//! Decides what it has and what it lacks. Leaves to `log` how it lasts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::args::{ControllerVerb, Format, Global, ReceiveArgs};
use super::failure::{Failure, exit};
use super::output;
use crate::proto::controller::v1 as wire;
use crate::proto::controller::v1::controller_service_server::{ControllerService, ControllerServiceServer};
use crate::proto::controller::v1::report_request::Message;
use crate::proto::controller::v1::report_response::Message as Answer;

mod log;
mod told;

use log::{Entry, Log};

/// Answers that wait for an agent that does not read.
const ANSWERS: usize = 16;

/// Between questions whether a daemon is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Longest report, in bytes: what gRPC takes unless told otherwise.
const LONGEST_REPORT: usize = 4 << 20;

pub(super) async fn carry_out(global: &Global, verb: ControllerVerb) -> Result<u8, Failure> {
    match verb {
        ControllerVerb::Receive(args) => receive(global, args).await,
    }
}

async fn receive(global: &Global, args: ReceiveArgs) -> Result<u8, Failure> {
    let is_json = match global.output {
        Format::Json => true,
        Format::Table => false,
        Format::Yaml | Format::Name => {
            let message = "reports are printed for people, or as lines of JSON";
            return Err(Failure::new(exit::USAGE, message, "leave out -o, or use -o json"));
        }
    };
    // Daemons that have vanished without a word are noticed.
    let mut server = Server::builder().http2_keepalive_interval(Some(KEEPALIVE));
    match tls(&args)? {
        Some(tls) => {
            server = server.tls_config(tls).map_err(|error| cannot("use the certificate", &error))?;
        }
        None if args.listen.ip().is_loopback() => {}
        None => {
            let message = format!("{} can be reached from other machines", args.listen);
            let remedy = "add --certificate, --key and --client-ca, or listen on 127.0.0.1";
            return Err(Failure::new(exit::USAGE, message, remedy));
        }
    }
    let log = Log::open(args.log.as_deref()).map_err(|error| cannot("use the log", &error))?;
    let listener = TcpListener::bind(args.listen).await.map_err(|error| cannot("listen", &error))?;
    let address = listener.local_addr().map_err(|error| cannot("listen", &error))?;
    output::complaint(&format!("listening on {address}"));
    let unseen = Arc::new(Notify::new());
    let receiver = Receiver {
        log: Arc::new(Mutex::new(log)),
        is_json,
        wants_inventory: args.inventory,
        unseen: Arc::clone(&unseen),
    };
    let service = ControllerServiceServer::new(receiver).max_decoding_message_size(LONGEST_REPORT);
    let ended = server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    tokio::select! {
        ended = ended => ended.map(|()| exit::FAILED).map_err(|error| cannot("serve", &error)),
        () = unseen.notified() => {
            Err(Failure::new(exit::FAILED, "nobody reads what is printed", "keep the reports with --log"))
        }
        _ = tokio::signal::ctrl_c() => Ok(exit::INTERRUPTED),
    }
}

fn tls(args: &ReceiveArgs) -> Result<Option<ServerTlsConfig>, Failure> {
    let (Some(certificate), Some(key), Some(ca)) = (&args.certificate, &args.key, &args.client_ca) else {
        return Ok(None);
    };
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| cannot(&format!("read {}", path.display()), &error))
    };
    let identity = Identity::from_pem(read(certificate)?, read(key)?);
    Ok(Some(ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(read(ca)?))))
}

fn cannot(what: &str, error: &dyn std::error::Error) -> Failure {
    let causes: Vec<String> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    Failure::new(exit::FAILED, format!("cannot {what}: {}", causes.join(": ")), "")
}

/// The service. Cheap to clone.
#[derive(Clone)]
struct Receiver {
    log: Arc<Mutex<Log>>,
    is_json: bool,
    wants_inventory: bool,
    /// Told when what is printed goes nowhere.
    unseen: Arc<Notify>,
}

/// Who reports on a stream.
struct Agent {
    node_id: String,
    name: String,
    outbox_id: String,
}

#[tonic::async_trait]
impl ControllerService for Receiver {
    type ReportStream = ReceiverStream<Result<wire::ReportResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<wire::ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (answers, stream) = mpsc::channel(ANSWERS);
        let receiver = self.clone();
        tokio::spawn(async move {
            if let Err(status) = receiver.listen(request.into_inner(), &answers).await {
                output::complaint(&format!("a stream ended: {}", status.message()));
                // The agent may have gone.
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

type Answers = mpsc::Sender<Result<wire::ReportResponse, Status>>;

impl Receiver {
    async fn listen(
        &self,
        mut reports: Streaming<wire::ReportRequest>,
        answers: &Answers,
    ) -> Result<(), Status> {
        let first = reports.message().await?.unwrap_or_default();
        let Some(Message::Hello(hello)) = &first.message else {
            return Err(Status::failed_precondition("the first report is not a hello"));
        };
        let node = hello.node.clone().unwrap_or_default();
        let agent = Agent { node_id: node.id, name: node.name, outbox_id: hello.outbox_id.clone() };
        self.take(&agent, &first).await?;
        let known = self.log.lock().await.known(&agent.node_id);
        let welcome = wire::Welcome {
            acknowledged_sequence: known.last,
            send_inventory: known.owes_inventory || self.wants_inventory,
            heartbeat_interval: None,
        };
        answer(answers, Answer::Welcome(welcome)).await?;
        while let Some(report) = reports.message().await? {
            self.take(&agent, &report).await?;
            if report.sequence > 0 {
                answer(answers, Answer::Acknowledge(wire::Acknowledge { sequence: report.sequence })).await?;
            }
        }
        Ok(())
    }

    /// Keeps and shows a report, if it is new. When this returns it may be acknowledged.
    async fn take(&self, agent: &Agent, report: &wire::ReportRequest) -> Result<(), Status> {
        let json = output::json(report, "vmsnap.controller.v1.ReportRequest");
        let report_json = json.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let entry =
            Entry { node_id: agent.node_id.clone(), outbox_id: agent.outbox_id.clone(), report: report_json };
        let mut log = self.log.lock().await;
        if !log.keep(&entry).await.map_err(Status::failed_precondition)? {
            return Ok(());
        }
        let line = if self.is_json {
            serde_json::to_string(&entry).map_err(|error| Status::internal(error.to_string()))?
        } else {
            told::line(&agent.name, report)
        };
        let is_seen = output::try_line(&line).is_ok();
        if is_seen || log.lasts() {
            return Ok(());
        }
        // Whoever acknowledges what nobody has seen, and what is kept nowhere, loses it.
        self.unseen.notify_one();
        Err(Status::unavailable("nobody reads what is printed"))
    }
}

async fn answer(answers: &Answers, message: Answer) -> Result<(), Status> {
    let sent = answers.send(Ok(wire::ReportResponse { message: Some(message) })).await;
    sent.map_err(|_| Status::cancelled("the agent has gone"))
}
