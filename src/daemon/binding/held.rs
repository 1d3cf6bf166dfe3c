//! Whose endpoints stay as they are, for somebody knows more of them than the interface does.

use std::collections::BTreeSet;

use wice_signaling::protocol::PublicKey;

/// Whose endpoints are not touched as long as they are theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "kubernetes"),
    allow(dead_code, reason = "only a cluster holds anybody")
)]
pub(in crate::daemon) enum Held {
    /// Nobody's.
    #[default]
    Nobody,
    /// Everybody's: nothing is known yet.
    Everybody,
    /// These.
    These(BTreeSet<PublicKey>),
}

impl Held {
    /// Whether this peer's endpoint is one of them.
    pub(super) fn holds(&self, key: &PublicKey) -> bool {
        match self {
            Self::Nobody => false,
            Self::Everybody => true,
            Self::These(keys) => keys.contains(key),
        }
    }
}
