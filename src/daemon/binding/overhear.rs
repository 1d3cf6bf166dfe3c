//! Handshakes that WireGuard begins at dead endpoints, caught where packets leave for the internet.

use std::time::Instant;

use wice_signaling::protocol::PublicKey;

use crate::core::slots::INITIATION_LEN;
use crate::io::shared_port::Overheard;
use crate::wireguard::netlink::DefaultRoutes;

/// Listens at the interfaces of the default routes, where that is permitted.
#[derive(Debug, Default)]
pub(super) struct Overhearing {
    overheard: Option<Overheard>,
    /// WireGuard's port, and the interfaces.
    at: (Option<u16>, Vec<u32>),
}

impl Overhearing {
    /// To be called when WireGuard's port or the routes may have changed.
    pub(super) fn follow(&mut self, port: Option<u16>, routes: DefaultRoutes) {
        let mut interfaces: Vec<u32> = [routes.v4, routes.v6].into_iter().flatten().collect();
        interfaces.dedup();
        if self.at == (port, interfaces.clone()) {
            return;
        }
        let opened = port
            .map(|port| Overheard::open(port, &interfaces))
            .transpose();
        self.overheard = opened.unwrap_or_else(|error| {
            // Not worth a warning: without it a handshake waits for WireGuard to repeat it.
            tracing::debug!(event = "cannot-overhear", %error);
            None
        });
        self.at = (port, interfaces);
    }

    /// To be called at every look.
    pub(super) fn fetch(&mut self, now: Instant) {
        if let Some(overheard) = &mut self.overheard {
            overheard.fetch(now);
        }
    }

    /// What WireGuard has begun with this peer lately.
    pub(super) fn take(
        &mut self,
        peer: &PublicKey,
        now: Instant,
    ) -> Option<Box<[u8; INITIATION_LEN]>> {
        self.overheard.as_mut()?.take(peer, now)
    }
}
