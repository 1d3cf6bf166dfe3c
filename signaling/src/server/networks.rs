//! Which networks the service serves.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::protocol::NetworkId;

/// The networks served, looked up when a node says hello: one that was made a moment ago counts.
#[derive(Clone)]
pub struct Networks(Arc<dyn Fn() -> BTreeSet<NetworkId> + Send + Sync>);

impl Networks {
    /// Any network: nothing is listed, so nobody gets TURN credentials.
    #[must_use]
    pub fn any() -> Self {
        Self::looked_up(BTreeSet::new)
    }

    /// These.
    #[must_use]
    pub fn listed(networks: BTreeSet<NetworkId>) -> Self {
        Self::looked_up(move || networks.clone())
    }

    /// Those that `list` gives at the time; while it gives none, any. It is called once a hello, so it
    /// must be quick.
    #[must_use]
    pub fn looked_up(list: impl Fn() -> BTreeSet<NetworkId> + Send + Sync + 'static) -> Self {
        Self(Arc::new(list))
    }

    /// How many are listed now; none: any is served.
    #[must_use]
    pub fn count(&self) -> usize {
        (self.0)().len()
    }

    /// Whether nodes of this network may come in.
    pub(super) fn serve(&self, network: &NetworkId) -> bool {
        let listed = (self.0)();
        listed.is_empty() || listed.contains(network)
    }

    /// Whether nodes of this network get TURN credentials: whoever can make a network would get a
    /// relay if any did.
    pub(super) fn trust(&self, network: &NetworkId) -> bool {
        (self.0)().contains(network)
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Networks").field(&self.count()).finish()
    }
}
