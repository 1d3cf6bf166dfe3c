//! Why a server's certificate is not taken, as sentences with what to do.

use std::io;

use rustls::CertificateError;

/// What is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// As in `its certificate has expired`.
    pub(crate) what: String,
    /// What whoever reads it can do.
    pub(crate) remedy: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.remedy)
    }
}

/// The certificate's part in a handshake that failed, if it had one.
pub(crate) fn refused_certificate(error: &io::Error) -> Option<Refused> {
    let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(error) = inner else {
        return None;
    };
    Some(explain(error))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of another crate, which adds to it"
)]
fn explain(error: &CertificateError) -> Refused {
    let of = |what: &str, remedy: &str| Refused {
        what: what.to_owned(),
        remedy: remedy.to_owned(),
    };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => of(
            "its certificate has expired",
            "renew it on the server; if it is good, this machine's clock is wrong (date)",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => of(
            "its certificate is not valid yet",
            "see whether this machine's clock is right (date)",
        ),
        CertificateError::NotValidForName => of(
            "its certificate is for another name",
            "use the name in the URL that the certificate is for",
        ),
        CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
            Refused {
                what: format!("its certificate is for another name ({})", names(presented)),
                remedy: "use that name in the URL, or have the server show one for this name"
                    .to_owned(),
            }
        }
        CertificateError::NotValidForNameContext { .. } => of(
            "its certificate is for no name at all",
            "have the server show one for this name",
        ),
        CertificateError::UnknownIssuer => of(
            "its certificate is from an authority that this machine does not know",
            "give the authority's certificate with --ca-file FILE; where nobody has one, TLS is being intercepted",
        ),
        CertificateError::Revoked => of("its certificate was revoked", "renew it on the server"),
        CertificateError::ApplicationVerificationFailure => of(
            "its certificate is not the one that is pinned",
            "TLS is being intercepted, or the server was set up anew",
        ),
        other => Refused {
            what: format!("its certificate cannot be used ({other})"),
            remedy: "renew it on the server".to_owned(),
        },
    }
}

/// The first few, as in `a.example, b.example …`.
fn names(presented: &[String]) -> String {
    /// Enough to see whose certificate it is.
    const SHOWN: usize = 3;
    // rustls shows how it has parsed them: DnsName("a.example").
    let plain = |name: &String| match name.split('"').nth(1) {
        Some(inner) => inner.to_owned(),
        None => name.clone(),
    };
    let shown: Vec<String> = presented.iter().take(SHOWN).map(plain).collect();
    let more = if presented.len() > SHOWN { " …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    fn said(error: CertificateError) -> String {
        let error = io::Error::other(rustls::Error::InvalidCertificate(error));
        refused_certificate(&error).unwrap().to_string()
    }

    #[test]
    fn each_cause_is_a_sentence_with_its_remedy() {
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(9));
        let expired = CertificateError::ExpiredContext {
            time,
            not_after: time,
        };
        assert!(said(expired).starts_with("its certificate has expired: renew it"));
        let early = CertificateError::NotValidYetContext {
            time,
            not_before: time,
        };
        assert!(said(early).contains("clock"));
        let name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("sig.example").unwrap(),
            presented: vec!["DnsName(\"turn.example\")".into(), "b".into()],
        };
        assert!(said(name).starts_with("its certificate is for another name (turn.example, b): "));
        assert!(said(CertificateError::UnknownIssuer).contains("--ca-file FILE"));
        // No word of Rust's in any of them.
        for error in [
            CertificateError::BadEncoding,
            CertificateError::UnknownIssuer,
            CertificateError::Revoked,
        ] {
            let text = said(error);
            assert!(!text.contains("::") && !text.contains('{'), "{text}");
        }
    }

    #[test]
    fn what_is_no_certificates_fault_is_left() {
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(refused_certificate(&reset), None);
        let other = io::Error::other(rustls::Error::HandshakeNotComplete);
        assert_eq!(refused_certificate(&other), None);
    }
}
