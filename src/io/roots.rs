//! Whom TLS connections trust: the system's authorities, and more if a file names some.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// There is nobody to trust.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The operating system has no usable root certificates.
    #[error("this machine has no CA certificates: install ca-certificates, or set a CA file")]
    None,
    /// The file cannot be read or holds no certificate.
    #[error("cannot use the CA file {path}: {why}\n  give one or more CA certificates in PEM", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// The system's authorities and those of `ca_file`. Reads files: call it at start-up or where blocking
/// is fine.
pub(crate) fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, RootsError> {
    let mut roots = RootCertStore::empty();
    // Unreadable ones among the system's are skipped: one good root is enough to go on.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let fail = |why: String| RootsError::File {
            path: path.to_owned(),
            why,
        };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| fail(error.to_string()))?;
        if certificates.is_empty() {
            return Err(fail("it holds no certificate".to_owned()));
        }
        for certificate in certificates {
            roots
                .add(certificate)
                .map_err(|error| fail(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        Err(RootsError::None)
    } else {
        Ok(roots)
    }
}
