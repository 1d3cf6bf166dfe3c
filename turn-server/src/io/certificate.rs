//! TLS out of PEM files, or of a certificate that the server makes for itself.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::settings::StartError;

/// A certificate that nobody signed, for clients that are given it (`--ca-file`).
pub(super) struct SelfSigned {
    chain: String,
    key: Zeroizing<String>,
}

impl SelfSigned {
    /// One for these names and addresses.
    pub(super) fn new(names: &[String], addresses: &[IpAddr]) -> Result<Self, StartError> {
        let addresses = addresses.iter().map(IpAddr::to_string);
        let all: Vec<String> = names.iter().cloned().chain(addresses).collect();
        let made = rcgen::generate_simple_self_signed(all.clone()).map_err(|error| {
            StartError::Settings(format!(
                "--self-signed {}: {error}\n  give names that clients know the server by, or none for its addresses",
                names.join(" ")
            ))
        })?;
        tracing::info!(
            event = "turn-self-signed",
            names = all.join(","),
            sha256 = hex(&Sha256::digest(made.cert.der()))
        );
        Ok(Self {
            chain: made.cert.pem(),
            key: Zeroizing::new(made.signing_key.serialize_pem()),
        })
    }

    /// Keeps it where a start looks for it; the key is its owner's alone.
    pub(super) fn save(&self, chain: &Path, key: &Path) -> Result<(), StartError> {
        write(key, self.key.as_bytes(), 0o600)?;
        write(chain, self.chain.as_bytes(), 0o644)
    }

    /// TLS with it.
    pub(super) fn config(&self) -> Result<Arc<ServerConfig>, StartError> {
        let here = Path::new("of --self-signed");
        let chain = CertificateDer::from_pem_slice(self.chain.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        let (Ok(chain), Ok(key)) = (chain, key) else {
            return Err(fail(here, "it cannot be read back".into()));
        };
        config(vec![chain], key).map_err(|error| fail(here, error.to_string()))
    }
}

/// TLS 1.2 and 1.3 with a chain and its key.
pub(super) fn load(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>, StartError> {
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fail(chain, error.to_string()))?;
    if certificates.is_empty() {
        return Err(fail(chain, "there is no certificate in it".into()));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| fail(key, error.to_string()))?;
    config(certificates, private).map_err(|error| fail(chain, error.to_string()))
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions()?;
    let builder = builder.with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key)?;
    // RFC 7443: clients that ask by ALPN ask for one of these.
    config.alpn_protocols = vec![b"stun.turn".to_vec(), b"stun.nat-discovery".to_vec()];
    if let Ok(ticketer) = rustls::crypto::ring::Ticketer::new() {
        config.ticketer = ticketer;
    }
    Ok(Arc::new(config))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StartError> {
    let mut options = std::fs::OpenOptions::new();
    // Never over somebody's file, nor through a link that was laid there.
    let file = options.write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(|error| fail(path, error.to_string()))
}

fn fail(path: &Path, why: String) -> StartError {
    StartError::Certificate {
        path: path.to_owned(),
        why,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
