//! TLS to relays: whom to trust, and the handshake.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::CloseReason;
use crate::core::turn::url::Host;
use crate::io::certificates::refused_certificate;
use crate::io::roots::{RootsError, roots};
use crate::io::verify::{ByRule, Rule, Shown};

/// Whose certificate a relay must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// One from an authority that the operating system trusts.
    System,
    /// One from an authority in this PEM file, or that the operating system trusts.
    CaFile(PathBuf),
    /// Exactly the one whose DER encoding has this SHA-256, whatever its name, issuer and dates. It
    /// works on a machine whose clock is wrong.
    Pin([u8; 32]),
}

/// Why no TLS can be set up.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Nobody to trust.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The cryptography library refused.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
}

/// A TLS client set up once and used for many connections.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: Option<String>,
}

impl Tls {
    /// Reads the roots. `name`: what the certificate must be for and what is sent as SNI, if that is
    /// not the relay's host. Reads files: call it at start-up or where blocking is fine.
    pub fn new(trust: &Trust, name: Option<String>) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let setup = |error: &dyn fmt::Display| TrustError::Setup(error.to_string());
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            Trust::System => by_roots(roots(None)?, &provider)?,
            Trust::CaFile(path) => by_roots(roots(Some(path))?, &provider)?,
            Trust::Pin(digest) => Arc::new(ByRule {
                rule: Pinned { digest: *digest },
                provider: Arc::clone(&provider),
            }),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(&error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    pub(super) async fn connect(
        &self,
        host: &Host,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, CloseReason> {
        let name = match (&self.name, host) {
            (Some(name), _) | (None, Host::Name(name)) => ServerName::try_from(name.clone())
                .map_err(|error| {
                    CloseReason::Tls(format!("`{name}` is no server name: {error}"))
                })?,
            (None, Host::Address(address)) => ServerName::from(*address),
        };
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector
            .connect(name, stream)
            .await
            .map_err(|error| match refused_certificate(&error) {
                Some(refused) => CloseReason::Certificate(refused.to_string()),
                None => CloseReason::Tls(error.to_string()),
            })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn by_roots(
    roots: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TrustError> {
    let roots = Arc::new(roots);
    let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider));
    let verifier = builder
        .build()
        .map_err(|error| TrustError::Setup(error.to_string()))?;
    Ok(verifier)
}

/// Accepts one certificate.
#[derive(Debug)]
struct Pinned {
    digest: [u8; 32],
}

impl Rule for Pinned {
    fn accept(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
        let digest: [u8; 32] = Sha256::digest(shown.end_entity).into();
        if digest != self.digest {
            return Err(rustls::CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(())
    }
}
