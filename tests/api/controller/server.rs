//! A controller for tests: it notes what it hears, and does what a test wants it to.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use vmsnap::proto::controller::v1 as wire;
use vmsnap::proto::controller::v1::controller_service_server::{ControllerService, ControllerServiceServer};
use vmsnap::proto::controller::v1::report_request::Message;
use vmsnap::proto::controller::v1::report_response::Message as Answer;

use crate::node::PATIENCE;

/// What it does with a stream.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Its welcome.
    pub welcome: wire::Welcome,
    /// Acknowledges each item.
    pub acknowledges: bool,
    /// Acknowledges this item at once, whether there is one or not; 0 for none.
    pub claims: u64,
    /// Leaves its own half of a stream open when the daemon has ended the other.
    pub stays: bool,
    /// Breaks the stream after so many items; 0 for never.
    pub breaks_after: usize,
}

/// Cheap to clone. Gone with the runtime of its test.
#[derive(Clone)]
pub struct Controller {
    pub address: SocketAddr,
    manners: Arc<Mutex<Manners>>,
    heard: watch::Sender<Vec<wire::ReportRequest>>,
}

impl Controller {
    pub async fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, _) = watch::channel(Vec::new());
        let controller = Self { address, manners: Arc::new(Mutex::new(manners)), heard };
        let service = ControllerServiceServer::new(controller.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        controller
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From the next stream on.
    pub fn behave(&self, manners: Manners) {
        *self.manners.lock().unwrap() = manners;
    }

    pub fn heard(&self) -> Vec<wire::ReportRequest> {
        self.heard.borrow().clone()
    }

    /// Waits until what was heard is as wanted, and gives it.
    pub async fn until(&self, wanted: impl Fn(&[wire::ReportRequest]) -> bool) -> Vec<wire::ReportRequest> {
        let mut heard = self.heard.subscribe();
        let waiting = heard.wait_for(|heard| wanted(heard));
        let Ok(found) = tokio::time::timeout(PATIENCE, waiting).await else {
            panic!("it was not heard: {:#?}", self.heard());
        };
        found.unwrap().clone()
    }

    async fn listen(
        &self,
        mut reports: Streaming<wire::ReportRequest>,
        answers: mpsc::Sender<Result<wire::ReportResponse, Status>>,
    ) {
        let manners = self.manners.lock().unwrap().clone();
        let mut items = 0;
        while let Ok(Some(report)) = reports.message().await {
            let answer = match &report.message {
                Some(Message::Hello(_)) => Some(Answer::Welcome(manners.welcome)),
                _ if report.sequence > 0 && manners.acknowledges => {
                    Some(Answer::Acknowledge(wire::Acknowledge { sequence: report.sequence }))
                }
                _ => None,
            };
            items += usize::from(report.sequence > 0);
            self.heard.send_modify(|heard| heard.push(report));
            let is_welcome = matches!(answer, Some(Answer::Welcome(_)));
            let claim = (is_welcome && manners.claims > 0)
                .then_some(Answer::Acknowledge(wire::Acknowledge { sequence: manners.claims }));
            for message in answer.into_iter().chain(claim) {
                let _ = answers.send(Ok(wire::ReportResponse { message: Some(message) })).await;
            }
            if items > 0 && items == manners.breaks_after {
                let _ = answers.send(Err(Status::unavailable("it breaks"))).await;
                return;
            }
        }
        if manners.stays {
            std::future::pending::<()>().await;
        }
    }
}

#[tonic::async_trait]
impl ControllerService for Controller {
    type ReportStream = ReceiverStream<Result<wire::ReportResponse, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<wire::ReportRequest>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (answers, stream) = mpsc::channel(16);
        let controller = self.clone();
        tokio::spawn(async move { controller.listen(request.into_inner(), answers).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
