//! Which certificate a signaling service shows, for the token to pin.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wice_signaling::protocol::{ServerPin, SignalUrl};

use super::block_on;
use crate::io::verify::{ByRule, Rule, Shown};

/// A service that takes longer is looked for by hand.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// Where `wice signal` keeps the certificate that it made.
const OWN_CERTIFICATE: &str = "tls-cert.der";

/// What to pin: `None` where a public authority vouches for the service, or where there is no TLS. A service that does not answer
/// but has its state here is known by that.
pub(super) fn find(url: &SignalUrl, state_dir: &Path) -> anyhow::Result<Option<ServerPin>> {
    if !url.tls {
        return Ok(None);
    }
    let looked = block_on(async {
        tokio::time::timeout(LOOK_TIMEOUT, look(url))
            .await
            .unwrap_or_else(|_| {
                Err(anyhow::anyhow!(
                    "no answer within {} s",
                    LOOK_TIMEOUT.as_secs()
                ))
            })
    });
    match looked {
        Ok(None) => Ok(None),
        Ok(Some(pin)) => {
            eprintln!("pinned {pin}, which the service shows now: compare it with what `wice signal` printed");
            Ok(Some(pin))
        }
        Err(error) => match std::fs::read(state_dir.join(OWN_CERTIFICATE)) {
            Ok(der) => Ok(Some(ServerPin::of_certificate(&der))),
            Err(_) => Err(error).context(format!(
                "cannot look at the certificate of {url}\n\
                 is the service running, and TCP {} to it open? On {}: wice signal --listen 0.0.0.0:{}\n\
                 or give --pin, which `wice signal` tells when it starts (pin=sha256:…)",
                url.port, url.host, url.port
            )),
        },
    }
}

async fn look(url: &SignalUrl) -> anyhow::Result<Option<ServerPin>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let seen = Arc::new(ByRule {
        rule: Seen::new(&provider),
        provider: Arc::clone(&provider),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    let stream = TcpStream::connect(url.authority()).await?;
    let name = ServerName::try_from(url.host.clone())?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let found = seen
        .rule
        .found
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    found.context("the service showed no certificate")
}

/// Takes any certificate, and notes whether a public authority vouches for it (`Some(None)`) or its hash. Nothing is sent over
/// the connection: what is trusted is for the user to compare.
#[derive(Debug)]
struct Seen {
    found: Mutex<Option<Option<ServerPin>>>,
    public: Option<Arc<WebPkiServerVerifier>>,
}

impl Seen {
    fn new(provider: &Arc<CryptoProvider>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let builder =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        Self {
            found: Mutex::new(None),
            // Without any roots everything is pinned.
            public: builder.build().ok(),
        }
    }
}

impl Rule for Seen {
    fn accept(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
        let vouched = self.public.as_ref().is_some_and(|public| {
            let Shown {
                end_entity,
                intermediates,
                name,
                ocsp_response,
                now,
            } = shown;
            public
                .verify_server_cert(end_entity, intermediates, name, ocsp_response, *now)
                .is_ok()
        });
        let pin = (!vouched).then(|| ServerPin::of_certificate(shown.end_entity));
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(pin);
        Ok(())
    }
}
