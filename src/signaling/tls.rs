//! Whom a connection to the service trusts: one pinned certificate, or public authorities.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::{CertificateError, ClientConfig};
use wice_signaling::protocol::ServerPin;

use crate::io::roots::{RootsError, roots};
use crate::io::verify::{ByRule, Rule, Shown};

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nobody to trust.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// rustls refuses its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// A client configuration, and the pin that it last saw in place of the expected one.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    verifier: Option<Arc<ByRule<Expected>>>,
}

impl Tls {
    /// Trusts `pin` alone if there is one (whatever name or dates the certificate has: boards
    /// start in 1970), else the system's authorities and those of `ca_file`.
    pub(super) fn new(pin: Option<ServerPin>, ca_file: Option<&Path>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (mut config, verifier) = match pin {
            Some(pin) => {
                let verifier = Arc::new(ByRule {
                    rule: Expected {
                        pin,
                        seen: Mutex::new(None),
                    },
                    provider: provider.clone(),
                });
                let config = ClientConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&rustls::version::TLS13])?
                    .dangerous()
                    .with_custom_certificate_verifier(verifier.clone())
                    .with_no_client_auth();
                (config, Some(verifier))
            }
            None => {
                // TLS 1.2 too: a company's proxy may speak no other.
                let config = ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots(ca_file)?)
                    .with_no_client_auth();
                (config, None)
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            verifier,
        })
    }

    /// The expected pin and the one that came instead, once.
    pub(super) fn take_mismatch(&self) -> Option<(ServerPin, ServerPin)> {
        let Expected { pin, seen } = &self.verifier.as_ref()?.rule;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        Some((*pin, seen.take()?))
    }
}

/// Accepts one certificate.
#[derive(Debug)]
struct Expected {
    pin: ServerPin,
    seen: Mutex<Option<ServerPin>>,
}

impl Rule for Expected {
    fn accept(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
        let seen = ServerPin::of_certificate(shown.end_entity);
        if seen == self.pin {
            return Ok(());
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}
