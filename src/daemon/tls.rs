//! Certificates: ours, and what those of clients prove.
//!
//! Decides who counts as proven: whoever has the key of a certificate that an authority of `[tcp] client_ca` has signed, that
//! has not expired and is not revoked. TLS 1.3 alone, and no connection is resumed: each proves itself anew. Leaves to `model`
//! what somebody may do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::config::TcpConfig;
use crate::model::access::Identity;

/// Why certificates are not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("cannot read {}", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{} is not what it should be", .path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        cause: pem::Error,
    },
    #[error("{} has nothing of that kind in it", .0.display())]
    Empty(PathBuf),
    #[error("the certificate or its key cannot be used")]
    Own(#[source] rustls::Error),
    #[error("the authorities of clients cannot be used")]
    Authorities(#[source] rustls::Error),
    #[error("the authorities of clients, or their revocation lists, cannot be used")]
    Verifier(#[source] VerifierBuilderError),
}

/// What was read at one time. All of it is used, or none.
#[derive(Clone)]
pub(super) struct Tls {
    /// For new connections, gRPC on them.
    grpc: Arc<ServerConfig>,
    /// The same for plain HTTP.
    web: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// The contents, by their keys: to tell which have changed.
    contents: Vec<(&'static str, Vec<u8>)>,
}

/// The certificates that a client has shown; its own first. None where it may prove itself otherwise.
#[derive(Debug, Clone)]
pub(super) struct Chain(Vec<CertificateDer<'static>>);

impl Tls {
    /// Reads all files. With `has_passwords` a client of plain HTTP may prove itself by one, and needs no certificate. Blocks.
    pub(super) fn read(config: &TcpConfig, has_passwords: bool) -> Result<Self, TlsError> {
        let mut contents = Vec::new();
        for (key, path) in config.files() {
            contents.push((key, read(path)?));
        }
        let content = |wanted: &str| {
            let found = contents.iter().find(|(key, _)| *key == wanted);
            found.map(|(_, content)| content.as_slice()).unwrap_or_default()
        };
        let authorities: Vec<CertificateDer<'_>> = all_of(&config.client_ca, content("tcp.client_ca"))?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(TlsError::Authorities)?;
        }
        let provider = Arc::new(default_provider());
        let mut verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
        if let Some(path) = &config.revocation_list {
            let lists: Vec<CertificateRevocationListDer<'_>> = all_of(path, content("tcp.revocation_list"))?;
            // A list that is out of date says less than it should: nobody can tell who was revoked since.
            verifier = verifier.with_crls(lists).enforce_revocation_expiration();
        }
        let of_web = if has_passwords { verifier.clone().allow_unauthenticated() } else { verifier.clone() };
        let [verifier, of_web] =
            [verifier, of_web].map(|verifier| verifier.build().map_err(TlsError::Verifier));
        let (verifier, of_web) = (verifier?, of_web?);
        let chain = all_of(&config.certificate, content("tcp.certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(content("tcp.key"))
            .map_err(|cause| TlsError::Malformed { path: config.key.clone(), cause })?;
        let server = |verifier: &Arc<dyn ClientCertVerifier>, protocol: &[u8]| {
            let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(Arc::clone(verifier))
                .with_single_cert(chain.clone(), key.clone_key());
            let mut server = server?;
            server.alpn_protocols = vec![protocol.to_vec()];
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
            Ok(Arc::new(server))
        };
        let grpc = server(&verifier, b"h2").map_err(TlsError::Own)?;
        let web = server(&of_web, b"http/1.1").map_err(TlsError::Own)?;
        Ok(Self { grpc, web, verifier, contents })
    }

    /// For new connections that speak gRPC.
    pub(super) fn grpc(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.grpc)
    }

    /// For new connections that speak plain HTTP.
    pub(super) fn web(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.web)
    }

    /// Whether the certificates of a connection prove anything still: it may have outlived them, or their revocation.
    pub(super) fn verify(&self, chain: &Chain) -> Result<(), rustls::Error> {
        let Some((own, between)) = chain.0.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        self.verifier.verify_client_cert(own, between, UnixTime::now()).map(drop)
    }

    /// The keys of the files that have another content than before.
    pub(super) fn changed(&self, before: &Self) -> Vec<&'static str> {
        let is_new = |one: &&(&'static str, Vec<u8>)| !before.contents.contains(one);
        self.contents.iter().filter(is_new).map(|(key, _)| *key).collect()
    }
}

impl Chain {
    /// Whether nothing was shown.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn new(shown: &[CertificateDer<'_>]) -> Self {
        Self(shown.iter().map(|shown| shown.clone().into_owned()).collect())
    }

    /// Who its owner is: the URIs and DNS names among the subject alternative names. No common name, which nobody checks.
    pub(super) fn identities(&self) -> Vec<Identity> {
        let Some(own) = self.0.first() else { return Vec::new() };
        let Ok(own) = webpki::EndEntityCert::try_from(own) else { return Vec::new() };
        let uris = own.valid_uri_names().map(|uri| Identity::Uri(uri.to_owned()));
        // `dns:*.example` in a rule would be this very name, not all that it stands for.
        let names = own.valid_dns_names().map(|name| Identity::Dns(name.to_ascii_lowercase()));
        uris.chain(names).collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|cause| TlsError::Unreadable { path: path.to_owned(), cause })
}

/// All that a file has of one kind; at least one.
fn all_of<T: PemObject>(path: &Path, content: &[u8]) -> Result<Vec<T>, TlsError> {
    let found: Result<Vec<T>, _> = T::pem_slice_iter(content).collect();
    let found = found.map_err(|cause| TlsError::Malformed { path: path.to_owned(), cause })?;
    if found.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(found) }
}
