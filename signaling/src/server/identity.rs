//! What the service keeps on disk: certificate, key, secret, revocations.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::config::Transport;
use crate::protocol::{MAX_REVOCATION_LEN, NetworkId, RevocationList, ServerPin, ServiceSecret};

/// The service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file or folder.
    #[error("cannot {what} {path}: {error}", path = path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The address.
    #[error(
        "cannot listen on {listen} ({protocol}): {error}\n  {}",
        listen_hint(error)
    )]
    Listen {
        /// Where.
        listen: std::net::SocketAddr,
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// Certificate or key.
    #[error("cannot use the certificate {path}: {why}\n  give a PEM chain and its PEM key, or neither: then one is made", path = path.display())]
    Certificate {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random,
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(&'static str),
}

fn listen_hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrNotAvailable {
        "no interface of this machine has this address: ip address"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "choose a port above 1023, or run as root"
    } else {
        "choose another address or port, or stop what uses it: ss -lnp"
    }
}

/// Folder and files of the service.
#[derive(Clone, Debug)]
pub(super) struct StateDir(PathBuf);

/// TLS as the service does it.
pub(super) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    /// Of a certificate that the service made itself.
    pub(super) pin: Option<ServerPin>,
}

impl StateDir {
    pub(super) fn open(path: &Path) -> Result<Self, StartError> {
        let state = Self(path.to_owned());
        for dir in [path.to_owned(), state.revocations()] {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder
                .create(&dir)
                .map_err(|error| file("make", &dir, error))?;
        }
        Ok(state)
    }

    /// The persistent secret, made at the first call.
    pub(super) fn secret(&self) -> Result<ServiceSecret, StartError> {
        let path = self.0.join("service-secret");
        if let Some(bytes) = read(&path)? {
            let bytes = <[u8; 32]>::try_from(bytes.as_slice())
                .map_err(|_| file("read", &path, io::Error::other("it has not 32 bytes")))?;
            return Ok(ServiceSecret::from_bytes(bytes));
        }
        let mut bytes = [0; 32];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| StartError::Random)?;
        write_new(&path, &bytes)?;
        Ok(ServiceSecret::from_bytes(bytes))
    }

    /// TLS, and the pin of an own certificate; `None` for plain.
    pub(super) fn tls(&self, transport: &Transport) -> Result<Option<Tls>, StartError> {
        match transport {
            Transport::Plain => Ok(None),
            Transport::SelfSigned => {
                let (certificate, key) = self.own_certificate()?;
                let pin = ServerPin::of_certificate(&certificate);
                let path = self.0.join("tls-cert.der");
                let config = server_config(vec![certificate], key)
                    .map_err(|why| StartError::Certificate { path, why })?;
                Ok(Some(Tls {
                    config,
                    pin: Some(pin),
                }))
            }
            Transport::Certificate {
                certificate: path,
                key: key_path,
            } => {
                let fail = |path: &Path, why: String| StartError::Certificate {
                    path: path.to_owned(),
                    why,
                };
                let chain = CertificateDer::pem_file_iter(path)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|error| fail(path, error.to_string()))?;
                let key = PrivateKeyDer::from_pem_file(key_path)
                    .map_err(|error| fail(key_path, error.to_string()))?;
                let config = server_config(chain, key).map_err(|why| fail(path, why))?;
                Ok(Some(Tls { config, pin: None }))
            }
        }
    }

    /// Every network's list that was kept; what does not verify is left out.
    pub(super) fn load_revocations(&self) -> Result<Vec<(NetworkId, RevocationList)>, StartError> {
        let dir = self.revocations();
        let mut lists = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|error| file("read", &dir, error))? {
            let path = entry.map_err(|error| file("read", &dir, error))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let Ok(network) = name.parse::<NetworkId>() else {
                continue;
            };
            let list = read(&path)?.map(|bytes| RevocationList::decode_verified(&bytes, &network));
            match list {
                Some(Ok(list)) => lists.push((network, list)),
                Some(Err(error)) => {
                    tracing::warn!(event = "revocations-unusable", %network, %error);
                }
                None => {}
            }
        }
        Ok(lists)
    }

    /// Keeps a network's list; blocks on the disk.
    pub(super) fn store_revocations(
        &self,
        network: &NetworkId,
        list: &RevocationList,
    ) -> Result<(), StartError> {
        let path = self.revocations().join(network.to_string());
        let fresh = path.with_extension("new");
        let written = private()
            .create(true)
            .truncate(true)
            .open(&fresh)
            .and_then(|mut file| {
                file.write_all(list.encoded())?;
                file.sync_all()
            });
        written.map_err(|error| file("write", &fresh, error))?;
        fs::rename(&fresh, &path).map_err(|error| file("write", &path, error))
    }

    /// Forgets a network's list; blocks on the disk.
    pub(super) fn remove_revocations(&self, network: &NetworkId) {
        // One that stays is read again at the next start, and forgotten again.
        let _ = fs::remove_file(self.revocations().join(network.to_string()));
    }

    fn revocations(&self) -> PathBuf {
        self.0.join("revocations")
    }

    fn own_certificate(
        &self,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), StartError> {
        let (path, key_path) = (self.0.join("tls-cert.der"), self.0.join("tls-key.der"));
        if let (Some(certificate), Some(key)) = (read(&path)?, read(&key_path)?) {
            let key = PrivatePkcs8KeyDer::from(key.to_vec());
            return Ok((certificate.to_vec().into(), key.into()));
        }
        // Nobody looks at the name: nodes pin the certificate.
        let made = rcgen::generate_simple_self_signed(vec!["wice-signal".to_owned()]).map_err(
            |error| StartError::Certificate {
                path: path.clone(),
                why: error.to_string(),
            },
        )?;
        let key = Zeroizing::new(made.signing_key.serialize_der());
        for half in [&key_path, &path] {
            match fs::remove_file(half) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file("replace", half, error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        write_new(&key_path, &key)?;
        write_new(&path, made.cert.der())?;
        Ok((
            made.cert.der().clone(),
            PrivatePkcs8KeyDer::from(key.to_vec()).into(),
        ))
    }
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| error.to_string())?;
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The file's bytes; `None` when there is no file.
fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StartError> {
    let mut bytes = Zeroizing::new(Vec::new());
    // Nothing kept here is longer than the longest list of revocations.
    let limit = MAX_REVOCATION_LEN as u64 + 1;
    match fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("read", path, error)),
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), StartError> {
    let written = private().create_new(true).open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|error| file("write", path, error))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn file(what: &'static str, path: &Path, error: io::Error) -> StartError {
    StartError::File {
        what,
        path: path.to_owned(),
        error,
    }
}
