//! Endpoints as they were before: what `wice detach` does, once the daemon has ended.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use wice_signaling::protocol::PublicKey;

use super::start::{AttachError, state_folder};
use crate::daemon::binding::{binder, sighting};
use crate::daemon::state::State;
use crate::wireguard::backend::{AnyBackend, Backend as _, BackendError};
use crate::wireguard::netlink::Netlink;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Peers that have their endpoint back.
    pub restored: Vec<(PublicKey, SocketAddr)>,
    /// Peers that never had one. WireGuard cannot take an endpoint away: they keep the slot, where
    /// nobody answers any more, until they are heard from.
    pub without: Vec<PublicKey>,
}

/// Gives the peers of `interface` the endpoints back that they had, and takes away the rules that were made for it. No daemon may run on it.
pub async fn detach(state_dir: &Path, interface: &str) -> anyhow::Result<Detached> {
    let path = state_folder(state_dir, interface);
    if !path.is_dir() {
        let interface = interface.to_owned();
        return Err(AttachError::NeverAttached { interface, path }.into());
    }
    let state = State::open(&path)?;
    let mut backend = AnyBackend::open(interface).await?;
    let device = backend.device().await?;
    let mut binder = binder(&state);
    let sightings: Vec<_> = device.peers.iter().map(sighting).collect();
    binder.handle_device(&sightings, Instant::now());
    let (restored, without) = binder.restore();
    let mut done = Detached {
        restored: Vec::new(),
        without,
    };
    for (key, endpoint) in restored {
        match backend.set_endpoint(key, endpoint).await {
            Ok(()) => done.restored.push((key, endpoint)),
            Err(BackendError::NoSuchPeer(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let netlink = Netlink::connect()?;
    let index = netlink.index(interface).await.ok();
    netlink.release_underlay(index).await?;
    Ok(done)
}
