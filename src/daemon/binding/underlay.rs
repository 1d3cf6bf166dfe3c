//! A mesh agent's interface: WireGuard's packets are kept out of it.

use crate::wireguard::netlink::{DefaultRoutes, Netlink};

/// What is kept out of what.
#[derive(Debug, Default)]
pub(super) struct Underlay {
    /// The interface, the port and the default routes that it was last tried for.
    tried: Option<(u32, u16, DefaultRoutes)>,
}

impl Underlay {
    /// To be called when the interface, WireGuard's port or the routes may have changed.
    pub(super) async fn follow(
        &mut self,
        at: Option<(u32, u16)>,
        routes: DefaultRoutes,
        netlink: &Netlink,
    ) {
        let Some((index, port)) = at else {
            return;
        };
        if self.tried == Some((index, port, routes)) {
            return;
        }
        self.tried = Some((index, port, routes));
        match netlink.keep_underlay(index, port).await {
            Ok(()) => tracing::debug!(event = "underlay-kept", index, port),
            Err(error) => {
                let hint = "where the mesh agent routes a node's address into the mesh that is also its endpoint, WireGuard may talk to itself";
                tracing::warn!(event = "underlay-not-kept", reason = %error, hint);
            }
        }
    }
}
