//! Which annotations of a Node are whose.

/// The prefix of our own annotations.
pub const DEFAULT_PREFIX: &str = "wice.riasc.eu";

/// The longest prefix of an annotation's name: a DNS subdomain (Kubernetes, "Annotations: syntax and character set").
const MAX_PREFIX: usize = 253;

/// The longest name after the prefix, by the same page.
const MAX_NAME: usize = 63;

/// Programs that build a mesh in a cluster, as far as their annotations are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshAgent {
    /// Kilo's `kg`.
    Kilo,
    /// kubernetes-wireguard-overlay (`wns`).
    Wns,
}

/// Names of annotations: ours, and what the mesh agent tells of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The prefix of ours, a DNS subdomain.
    pub prefix: String,
    /// The WireGuard key of a Node, in base64.
    pub key: String,
    /// Its address in the overlay, with or without a prefix length.
    pub wireguard_ip: String,
    /// In seconds: others let the Node's endpoint roam while it is above zero. None where the mesh agent has no such thing.
    pub keepalive: Option<String>,
    /// Whether there are Kilo's Peer objects.
    pub peers: bool,
}

/// A name that Kubernetes would refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be an annotation's name\n  it is PREFIX/NAME or NAME: a DNS subdomain, then at most 63 letters, digits, '-', '_' and '.' (see the Kubernetes page on annotations)"
)]
pub struct NameError(pub String);

impl Names {
    /// As `agent` names them, ours below [`DEFAULT_PREFIX`].
    #[must_use]
    pub fn of(agent: MeshAgent) -> Self {
        let prefix = DEFAULT_PREFIX.to_owned();
        match agent {
            MeshAgent::Kilo => Self {
                prefix,
                key: "kilo.squat.ai/key".to_owned(),
                wireguard_ip: "kilo.squat.ai/wireguard-ip".to_owned(),
                keepalive: Some("kilo.squat.ai/persistent-keepalive".to_owned()),
                peers: true,
            },
            MeshAgent::Wns => Self {
                prefix,
                key: "wireguard-publickey".to_owned(),
                wireguard_ip: "wireguard-ip".to_owned(),
                keepalive: None,
                peers: false,
            },
        }
    }

    /// The annotation with a node's advert.
    #[must_use]
    pub fn advert(&self) -> String {
        format!("{}/advert", self.prefix)
    }

    /// Refuses what Kubernetes would refuse, before it does.
    pub fn check(&self) -> Result<(), NameError> {
        let ours = self.advert();
        let theirs = [&self.key, &self.wireguard_ip];
        let all = theirs.into_iter().chain(&self.keepalive).chain([&ours]);
        for name in all {
            if !is_annotation_name(name) {
                return Err(NameError(name.clone()));
            }
        }
        Ok(())
    }
}

fn is_annotation_name(name: &str) -> bool {
    let (prefix, name) = match name.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, name),
    };
    prefix.is_none_or(is_subdomain) && is_bounded(name, MAX_NAME, |b| b"-_.".contains(&b), true)
}

fn is_subdomain(text: &str) -> bool {
    let label = |label: &str| is_bounded(label, MAX_NAME, |b| b == b'-', false);
    text.len() <= MAX_PREFIX && text.split('.').all(label)
}

/// Letters and digits at both ends, and `inner` as well between them.
fn is_bounded(text: &str, max: usize, inner: impl Fn(u8) -> bool, upper: bool) -> bool {
    let alphanumeric =
        |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase() || (upper && b.is_ascii_uppercase());
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    bytes.len() <= max
        && ends.iter().all(|end| end.is_some_and(|b| alphanumeric(*b)))
        && bytes.iter().all(|b| alphanumeric(*b) || inner(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kubernetes_takes_pass_and_others_are_told() {
        for agent in [MeshAgent::Kilo, MeshAgent::Wns] {
            assert_eq!(Names::of(agent).check(), Ok(()));
        }
        assert_eq!(Names::of(MeshAgent::Kilo).advert(), "wice.riasc.eu/advert");
        for prefix in ["", "Wice.eu", "a..b", "-a.eu", "wice.eu/x", "wice eu"] {
            let names = Names {
                prefix: prefix.to_owned(),
                ..Names::of(MeshAgent::Kilo)
            };
            let error = names.check().unwrap_err();
            assert!(error.to_string().contains("DNS subdomain"), "{prefix}");
        }
        let long = "x".repeat(MAX_NAME + 1);
        for key in ["", "a/b/c", "_a", "kilo.squat.ai/", long.as_str()] {
            let names = Names {
                key: key.to_owned(),
                ..Names::of(MeshAgent::Kilo)
            };
            assert_eq!(names.check(), Err(NameError(key.to_owned())));
        }
    }
}
