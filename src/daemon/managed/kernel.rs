//! wice's own interface in the kernel: its peers are the network's nodes, and paths are bound to it as in
//! attached mode.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use wice_signaling::protocol::{IpPrefix, PublicKey};

use crate::core::overlay::Owned;
use crate::daemon::base::Base;
use crate::daemon::binding::{Binding, Happened, Picture, Seen, slot_endpoint};
use crate::wireguard::backend::{BackendError, Device, DevicePeer};
use crate::wireguard::kernel::{OwnPeer, Owner};

/// Seconds between keepalives. A native path's NAT binding is held by WireGuard alone once the daemon is
/// gone; UDP bindings last 30 s on the shortest-lived NATs (RFC 4787 §4.3 asks for two minutes).
const KEEPALIVE: u16 = 25;

/// What was left on the interface and is not among the records that were kept may have come just before a crash:
/// signaling, connected within a second or a slow proxy's ten, tells whether it still holds.
const LEFT_GRACE: Duration = Duration::from_secs(10);

/// The interface, and its peers as they were set.
pub(super) struct KernelInterface {
    /// What binds paths to it.
    pub(super) binding: Binding,
    own: PublicKey,
    owner: Owner,
    /// With their allowed IPs, sorted.
    peers: BTreeMap<PublicKey, Vec<IpPrefix>>,
    /// Whom the interface had at the first look since what the core knows was compared with it: the core is
    /// asked after a look, and a later one may show whom its answer cannot know yet.
    there: Option<BTreeSet<PublicKey>>,
    /// Whom it lacked then: once may be a look that was on its way when the peer was set.
    missing: BTreeSet<PublicKey>,
    taken_over: Instant,
    /// Whom it had then; nobody once it has settled.
    left: BTreeSet<PublicKey>,
}

impl KernelInterface {
    /// Takes the interface over as it is: sessions go on.
    pub(super) fn new(binding: Binding, own: PublicKey, owner: Owner, device: &Device) -> Self {
        let of = |peer: &DevicePeer| (peer.key, sorted(peer.allowed_ips.clone()));
        Self {
            binding,
            own,
            owner,
            peers: device.peers.iter().map(of).collect(),
            there: None,
            missing: BTreeSet::new(),
            taken_over: Instant::now(),
            left: device.peers.iter().map(|peer| peer.key).collect(),
        }
    }

    /// The next thing that happens to the interface; never, where there is none. Cancel-safe.
    pub(super) async fn next(kernel: &mut Option<Self>) -> anyhow::Result<Happened> {
        match kernel {
            Some(kernel) => kernel.binding.next().await,
            None => std::future::pending().await,
        }
    }

    /// Does what is to be done about it. Gives what the core knows, once a second.
    pub(super) async fn handle(
        &mut self,
        happened: Happened,
        base: &Base,
    ) -> anyhow::Result<Option<Picture>> {
        let seen = self.binding.handle(happened, base).await?;
        // Who has come and gone is seen below.
        self.binding.take_changes();
        let interface = &base.settings.interface;
        match seen {
            Seen::Nothing => {}
            Seen::Lost(error) if is_gone(&error) => anyhow::bail!(gone(interface)),
            Seen::Lost(_) => {}
            Seen::OtherKey => anyhow::bail!(
                "another program has given {interface} a key that is not this node's\n  remove the interface (ip link delete {interface}), and start wice again"
            ),
            Seen::Device(device) => self.handle_device(&device),
            Seen::Picture(picture) => {
                self.reconcile(&picture);
                return Ok(Some(picture));
            }
        }
        Ok(None)
    }

    /// A peer owns this now; nothing: it is gone, and so is its session.
    pub(super) fn set(&mut self, key: PublicKey, owned: Option<&Owned>) {
        let done = match owned {
            Some(owned) => self.set_peer(key, owned),
            None => self.remove(key),
        };
        if let Err(error) = done {
            // What the core knows is compared with the interface once a second.
            tracing::warn!(event = "peer-not-set", peer = %key, %error);
        }
    }

    /// Whether all that was left has been told of by now.
    pub(super) fn has_settled(&self) -> bool {
        self.taken_over.elapsed() >= LEFT_GRACE
    }

    /// Whether nobody uses the interface.
    pub(super) fn has_no_peers(&self) -> bool {
        self.peers.is_empty()
    }

    fn set_peer(&mut self, key: PublicKey, owned: &Owned) -> Result<(), BackendError> {
        let known = self.peers.get(&key);
        let mut allowed_ips = owned.allowed_ips();
        if self.left.contains(&key) {
            // Its routes come after its advert.
            allowed_ips.extend(known.into_iter().flatten());
        }
        let allowed_ips = sorted(allowed_ips);
        let is_new = known.is_none();
        if known == Some(&allowed_ips) {
            return Ok(());
        }
        self.owner.set_peer(&OwnPeer {
            key,
            // Its first handshake waits at the slot for a path.
            endpoint: is_new.then(|| slot_endpoint(&key)),
            allowed_ips: &allowed_ips,
            // A keepalive begins a handshake at once, and two that cross cost 5 s: one side begins, and the
            // other keeps alive what it has answered.
            keepalive: is_new.then_some(if self.own > key { KEEPALIVE } else { 0 }),
        })?;
        self.peers.insert(key, allowed_ips);
        if is_new {
            tracing::info!(event = "peer-added", peer = %key);
            self.binding.look();
        }
        Ok(())
    }

    fn remove(&mut self, key: PublicKey) -> Result<(), BackendError> {
        self.owner.remove_peer(key)?;
        self.peers.remove(&key);
        tracing::info!(event = "peer-removed", peer = %key);
        self.binding.look();
        Ok(())
    }

    /// Whom another program has taken off the interface is not there, whatever was set.
    fn handle_device(&mut self, device: &Device) {
        let there: BTreeSet<PublicKey> = device.peers.iter().map(|peer| peer.key).collect();
        let missing = self.peers.keys().filter(|key| !there.contains(key));
        let missing: BTreeSet<PublicKey> = missing.copied().collect();
        for key in missing.intersection(&self.missing) {
            self.peers.remove(key);
        }
        self.missing = missing;
        self.there.get_or_insert(there);
        let lacks = |peer: &&DevicePeer| peer.keepalive == 0 && peer.last_handshake.is_some();
        for peer in device.peers.iter().filter(lacks) {
            if let Err(error) = self.owner.set_keepalive(peer.key, KEEPALIVE) {
                tracing::warn!(event = "peer-not-set", peer = %peer.key, %error);
            }
        }
    }

    /// The interface follows the core where a notice was lost, where another program has changed it, and
    /// where somebody left the network while no daemon ran.
    fn reconcile(&mut self, picture: &Picture) {
        let members: BTreeSet<PublicKey> = picture.ways.iter().map(|way| way.key).collect();
        if self.has_settled() {
            self.left.clear();
        }
        for key in self.there.take().unwrap_or_default().difference(&members) {
            if !self.left.contains(key) {
                self.set(*key, None);
            }
        }
        for (key, owned) in &picture.owned {
            self.set(*key, Some(owned));
        }
    }
}

/// Whether the interface itself is not there any more.
fn is_gone(error: &BackendError) -> bool {
    matches!(
        error,
        BackendError::NoSuchInterface(_) | BackendError::NotWireGuard(_)
    )
}

/// Why a daemon ends whose interface is gone.
pub(super) fn gone(interface: &str) -> String {
    format!("the interface {interface} is gone: somebody has removed it; start wice again")
}

fn sorted(mut prefixes: Vec<IpPrefix>) -> Vec<IpPrefix> {
    prefixes.sort();
    prefixes.dedup();
    prefixes
}
