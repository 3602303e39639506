//! A client of HTTP, as plain as can be.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authority::Files;
use crate::node::PATIENCE;

/// Where to ask, and with what.
#[derive(Clone)]
pub struct Http {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    headers: Vec<(&'static str, String)>,
}

/// A connection.
pub type Wire = http1::SendRequest<Full<Bytes>>;

/// What was answered.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub text: String,
    headers: HeaderMap,
}

impl Http {
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None, headers: Vec::new() }
    }

    /// Over TLS, trusting this authority, with a certificate or without one.
    pub fn secured(address: SocketAddr, authority: &Path, own: Option<&Files>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let chain = vec![CertificateDer::from_pem_file(&own.certificate).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&own.key).unwrap()).unwrap()
            }
        };
        // As Python's does.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { address, tls: Some(Arc::new(config)), headers: Vec::new() }
    }

    /// The same with another header.
    pub fn with(&self, name: &'static str, value: &str) -> Self {
        let mut with = self.clone();
        with.headers.retain(|(known, _)| *known != name);
        with.headers.push((name, value.to_owned()));
        with
    }

    pub async fn ask(&self, method: &str, path: &str, body: &Value) -> Reply {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.try_raw(method, path, body).await.unwrap()
    }

    /// With any bytes. An error if nobody answers.
    pub async fn try_raw(&self, method: &str, path: &str, body: Vec<u8>) -> Result<Reply, String> {
        let mut wire = self.open().await?;
        self.over(&mut wire, method, path, body).await
    }

    /// A connection on which nothing was asked yet.
    pub async fn open(&self) -> Result<Wire, String> {
        let opened = async {
            let stream = TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
            let Some(tls) = &self.tls else { return shake(stream).await };
            let name = ServerName::try_from("localhost").unwrap();
            let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
            shake(stream.map_err(|error| error.to_string())?).await
        };
        tokio::time::timeout(PATIENCE, opened).await.expect("nobody answers")
    }

    /// The same as [`Self::try_raw`], on a connection that is open.
    pub async fn over(
        &self,
        wire: &mut Wire,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Reply, String> {
        let mut request = hyper::Request::builder().method(method).uri(path);
        let headers = request.headers_mut().unwrap();
        headers.insert("host", self.address.to_string().parse().unwrap());
        if !body.is_empty() {
            headers.insert("content-type", "application/json".parse().unwrap());
        }
        for (name, value) in &self.headers {
            headers.insert(*name, value.parse().unwrap());
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let asked = async {
            wire.ready().await.map_err(|error| error.to_string())?;
            let answer = wire.send_request(request).await.map_err(|error| error.to_string())?;
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            let bytes = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok(Reply { status, text: String::from_utf8(bytes.to_vec()).unwrap(), headers })
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("nobody answers")
    }
}

async fn shake<S>(stream: S) -> Result<Wire, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

impl Reply {
    /// Null for an empty body.
    pub fn json(&self) -> Value {
        if self.text.is_empty() { Value::Null } else { serde_json::from_str(&self.text).unwrap() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// An error in Cinder's shape, with these words in its message.
#[track_caller]
pub fn assert_fault(reply: &Reply, status: u16, word: &str, words: &str) {
    assert_eq!(reply.status, status, "{}", reply.text);
    let body = reply.json();
    let [(found, fault)] = body.as_object().unwrap().iter().collect::<Vec<_>>()[..] else { panic!("{body}") };
    assert_eq!((found.as_str(), &fault["code"]), (word, &status.into()), "{body}");
    assert!(fault["message"].as_str().unwrap().contains(words), "{body}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
}
