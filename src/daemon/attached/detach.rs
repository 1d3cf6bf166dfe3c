//! Endpoints as they were before: what `wice detach` does, once the daemon has ended.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use wice_signaling::protocol::PublicKey;

use super::start::{AttachError, state_folder};
use crate::daemon::binding::{binder, sighting};
use crate::daemon::state::State;
use crate::daemon::{SIGNAL, Settings, Signals, log_stopping};
use crate::wireguard::backend::{AnyBackend, Backend as _, BackendError};
use crate::wireguard::netlink::{Netlink, NetlinkError};

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Peers that have their endpoint back.
    pub restored: Vec<(PublicKey, SocketAddr)>,
    /// Peers that never had one. WireGuard cannot take an endpoint away: they keep the slot, where
    /// nobody answers any more, until they are heard from.
    pub without: Vec<PublicKey>,
}

/// Detaches, and waits to be told to stop: an agent's last roll-out, before its objects go. An interface that is gone has no endpoints
/// to give back.
pub async fn stay_detached(settings: &Settings) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let (folder, interface) = (&settings.run_dir, &settings.interface);
    let told = marker(folder, interface);
    match std::fs::remove_file(&told) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", told.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let netlink = Netlink::connect()?;
    let done = match netlink.index(interface).await {
        Ok(_) => match detach(&settings.state_dir, interface).await {
            Err(error) if error.is::<AttachError>() => Detached::default(),
            done => done?,
        },
        Err(NetlinkError::NoSuchInterface { .. }) => {
            netlink.release_underlay(None).await?;
            Detached::default()
        }
        Err(error) => return Err(error.into()),
    };
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&told, ""))
        .with_context(|| format!("writing {}", told.display()))?;
    let (endpoints, without) = (done.restored.len(), done.without.len());
    let hint = "nothing of wice's is left on this node but its state folder: the pod may go";
    tracing::info!(event = "detached", interface, endpoints, without, hint);
    signals.stop().await;
    log_stopping(SIGNAL);
    Ok(())
}

/// Whether [`stay_detached`] has done its work here.
pub fn is_detached(run_dir: &Path, interface: &str) -> bool {
    marker(run_dir, interface).exists()
}

fn marker(run_dir: &Path, interface: &str) -> PathBuf {
    run_dir.join(format!("{interface}.detached"))
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
