//! The kernel's routes: what peers own beyond the overlay's ranges leads to the interface.

use std::collections::{BTreeMap, BTreeSet};

use wice_signaling::protocol::{IpPrefix, OVERLAY_IPV4, OVERLAY_IPV6, PublicKey};

use crate::core::overlay::Owned;
use crate::daemon::base::Base;
use crate::daemon::binding::Picture;

/// Routes to the interface.
#[derive(Debug, Default)]
pub(super) struct KernelRoutes {
    of: BTreeMap<PublicKey, Vec<IpPrefix>>,
    /// What an interface that was there before still has, until it is known who owns what.
    left: BTreeSet<IpPrefix>,
    /// WireGuard's own packets follow the kernel's routes.
    in_kernel: bool,
}

impl KernelRoutes {
    /// None yet, but for those that a start before has left.
    pub(super) fn new(in_kernel: bool, left: Vec<IpPrefix>) -> Self {
        Self {
            of: BTreeMap::new(),
            left: left.into_iter().filter(is_beyond).collect(),
            in_kernel,
        }
    }

    /// A peer owns this now; nothing: it is gone.
    pub(super) async fn set(&mut self, key: PublicKey, owned: Option<&Owned>, base: &Base) {
        let owned = owned.into_iter().flat_map(|owned| &owned.prefixes).copied();
        let prefixes: Vec<IpPrefix> = owned.filter(is_beyond).collect();
        let before = self.of.insert(key, prefixes.clone()).unwrap_or_default();
        for gone in before.iter().filter(|prefix| !prefixes.contains(prefix)) {
            delete(*gone, base).await;
        }
        for new in prefixes.iter().filter(|prefix| !before.contains(prefix)) {
            self.add(*new, base).await;
        }
        if prefixes.is_empty() {
            self.of.remove(&key);
        }
    }

    /// What was left and nobody owns goes.
    pub(super) async fn settle(&mut self, picture: &Picture, base: &Base) {
        if self.left.is_empty() {
            return;
        }
        let owned = picture.owned.values().flat_map(|owned| &owned.prefixes);
        let owned: BTreeSet<IpPrefix> = owned.copied().collect();
        for left in std::mem::take(&mut self.left) {
            if !owned.contains(&left) {
                delete(left, base).await;
            }
        }
    }

    async fn add(&self, prefix: IpPrefix, base: &Base) {
        if self.in_kernel && prefix.prefix_len() == 0 {
            let why = "WireGuard's own packets would follow it back into the tunnel; start with --wireguard in-process to use it";
            tracing::warn!(event = "route-refused", %prefix, why);
            return;
        }
        if let Err(error) = base.netlink.add_route(prefix, base.index).await {
            tracing::warn!(event = "route-refused", %prefix, %error);
        }
    }
}

async fn delete(prefix: IpPrefix, base: &Base) {
    if let Err(error) = base.netlink.delete_route(prefix, base.index).await {
        tracing::warn!(event = "route-stays", %prefix, %error);
    }
}

fn is_beyond(prefix: &IpPrefix) -> bool {
    !OVERLAY_IPV4.covers(prefix) && !OVERLAY_IPV6.covers(prefix)
}
