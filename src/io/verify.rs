//! A server's certificate under a rule of our own. The handshake's signature is checked as in every
//! TLS handshake, so whoever shows a certificate has its key.

use std::fmt::Debug;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// What a server has shown.
pub(crate) struct Shown<'a> {
    /// Its certificate.
    pub(crate) end_entity: &'a CertificateDer<'a>,
    /// What came with it.
    pub(crate) intermediates: &'a [CertificateDer<'a>],
    /// Whom we wanted to reach.
    pub(crate) name: &'a ServerName<'a>,
    /// A stapled OCSP response, perhaps empty.
    pub(crate) ocsp_response: &'a [u8],
    /// When.
    pub(crate) now: UnixTime,
}

/// Which certificates are taken.
pub(crate) trait Rule: Debug + Send + Sync {
    /// Whether this one is.
    fn accept(&self, shown: &Shown<'_>) -> Result<(), rustls::Error>;
}

/// A verifier by a rule.
#[derive(Debug)]
pub(crate) struct ByRule<R> {
    pub(crate) rule: R,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl<R: Rule> ServerCertVerifier for ByRule<R> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = Shown {
            end_entity,
            intermediates,
            name,
            ocsp_response,
            now,
        };
        self.rule.accept(&shown)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
