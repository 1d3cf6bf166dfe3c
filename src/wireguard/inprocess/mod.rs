//! In-process WireGuard for many peers: boringtun's `Tunn` for the protocol, and around it what a
//! device does: cryptokey routing, dispatch, limits, and offload on both sides. One thread, no
//! locks taken by two, no I/O but through [`Device`] and [`Egress`].

mod allowed_ips;
pub(crate) mod checksum;
mod coalesce;
mod device;
mod inbound;
mod limiter;
mod outbound;
mod sealer;
mod segment;
mod split;
mod vnet;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use rand_core::TryRngCore as _;
use wice_signaling::protocol::PublicKey;

use crate::wireguard::IpPrefix;
use allowed_ips::AllowedIps;
use coalesce::Coalescer;
pub use coalesce::DeviceCounters;
pub use device::{Device, Egress, Offload};
pub use inbound::{DropReason, MessageKind, Verdict};
use limiter::{HANDSHAKES_PER_SECOND, Limiter};
pub use outbound::TunRead;
use sealer::{DATA_OVERHEAD, HANDSHAKE_LEN, MAX_PACKET, PADDING, Sealer};
pub use vnet::VNET_HEADER_LEN;

/// How often `Tunn`'s timers are looked at; they count in seconds, but take the last look as the
/// present.
pub const TIMER_INTERVAL: Duration = Duration::from_millis(250);
/// Forced handshakes of one peer are at least this far apart: the kernel refuses initiations faster
/// than 50 a second.
const MIN_HANDSHAKE_INTERVAL: Duration = Duration::from_millis(20);
/// How long packets wait, after an initiation was answered, for the session that comes of it, before
/// they start a handshake of their own: a round trip of any path that is of use, and less than the
/// 5 s after which the other side repeats (WireGuard paper §6.4), in case the answer was lost.
const CONFIRMATION: Duration = Duration::from_secs(1);
/// Packets that wait meanwhile: as many as `Tunn` queues.
const MAX_WAITING: usize = 256;
/// Peers of one interface: what 16 bits count; indices have 24.
pub const MAX_PEERS: usize = 1 << 16;
/// Bits of a receiver index that `Tunn` counts sessions with; those above name the tunnel.
const SESSION_BITS: u32 = 8;
/// Tries to draw an index that is not in use: at most one in 256 is, so eight fail once in 10^19.
const INDEX_TRIES: usize = 8;
/// The largest packet from the device, its header, and slack for padding; or the largest queued
/// packet, sealed.
const READ_BYTES: usize = VNET_HEADER_LEN + MAX_PACKET + PADDING + DATA_OVERHEAD;

/// A peer, while it is configured; numbers are dense and used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}", self.0)
    }
}

/// A peer as it is configured.
#[derive(Clone)]
pub struct PeerConfig {
    /// Its static public key.
    pub public_key: PublicKey,
    /// Mixed into the handshake if both sides have it.
    pub preshared_key: Option<[u8; 32]>,
    /// The inner addresses that are its own; they are taken from any peer that had them.
    pub allowed_ips: Vec<IpPrefix>,
    /// Seconds between keepalives, `None` for none.
    pub persistent_keepalive: Option<u16>,
}

/// Why a peer was not added.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddPeerError {
    /// Remove it first, to change its keys.
    #[error("peer {0} is configured already")]
    Exists(PublicKey),
    /// A peer cannot be the node itself.
    #[error(
        "peer {0} has this node's own key\n  two nodes share one private key: make a new one on either"
    )]
    OwnKey(PublicKey),
    /// Bounded.
    #[error("cannot add peer {0}: {MAX_PEERS} peers are configured, which is the limit")]
    TooMany(PublicKey),
    /// The system's random number generator does not answer.
    #[error("cannot add peer {0}: no random numbers from the system")]
    NoRandomness(PublicKey),
}

/// What a peer has carried. Bytes count UDP payloads, as `wg show` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Authenticated bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Since the last complete handshake; `None` before the first.
    pub last_handshake: Option<Duration>,
}

/// What was dropped, by cause, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelCounters {
    /// From the network: of no known message type and length.
    pub malformed: u64,
    /// From the network: for a receiver index that is not in use.
    pub unknown_receiver: u64,
    /// From the network: an initiation of a key that is not a peer's.
    pub unknown_peer: u64,
    /// From the network: authentication failed.
    pub unauthenticated: u64,
    /// From the network: already received, or too old.
    pub replayed: u64,
    /// From the network: handshakes answered by a cookie.
    pub cookies_sent: u64,
    /// From the network: handshakes past the limits.
    pub rate_limited: u64,
    /// From a peer: the inner source is not its own.
    pub wrong_source: u64,
    /// From a peer: not an IP packet.
    pub bad_inner: u64,
    /// From the device: not an IP packet, or its header contradicts it.
    pub bad_from_device: u64,
    /// From the device: no peer has the destination.
    pub no_peer: u64,
}

/// All the tunnels of one interface.
pub struct Tunnels {
    private_key: x25519::StaticSecret,
    public_key: x25519::PublicKey,
    peers: Vec<Option<Peer>>,
    by_key: BTreeMap<PublicKey, PeerId>,
    by_index: BTreeMap<u32, PeerId>,
    /// The last receiver index found: datagrams come in runs.
    last_index: Option<(u32, PeerId)>,
    allowed_ips: AllowedIps,
    /// Demands cookies under load.
    cookies: RateLimiter,
    limiter: Limiter,
    /// `Tunn` insists on checking again what was checked before it was found: without a limit.
    unlimited: Arc<RateLimiter>,
    coalescer: Coalescer,
    sealer: Sealer,
    read_buffer: Box<[u8]>,
    next_tick: Instant,
    counters: TunnelCounters,
}

struct Peer {
    config: PeerConfig,
    index: u32,
    tunn: Tunn,
    /// Packets may wait, in the tunnel's queue or in `waiting`.
    queued: bool,
    /// We answered an initiation, and there is no session yet: until then packets wait here, behind
    /// those in the tunnel's queue. `Tunn` would start a handshake for the next of them and forget
    /// its initiation that is on its way; where both sides have traffic, they would do so for ever.
    confirmed_by: Option<Instant>,
    waiting: VecDeque<Vec<u8>>,
    /// We answered an initiation; the first data packet confirms the session.
    unconfirmed: bool,
    last_handshake: Option<Instant>,
    last_initiation: Option<Instant>,
    rx_bytes: u64,
    tx_bytes: u64,
}

impl Tunnels {
    /// No peers yet. `mtu` is the device's.
    pub fn new(private_key: [u8; 32], mtu: usize, now: Instant) -> Self {
        let private_key = x25519::StaticSecret::from(private_key);
        let public_key = x25519::PublicKey::from(&private_key);
        Self {
            cookies: RateLimiter::new(&public_key, HANDSHAKES_PER_SECOND),
            limiter: Limiter::new(now),
            unlimited: Arc::new(RateLimiter::new(&public_key, u64::MAX)),
            private_key,
            public_key,
            peers: Vec::new(),
            by_key: BTreeMap::new(),
            by_index: BTreeMap::new(),
            last_index: None,
            allowed_ips: AllowedIps::default(),
            coalescer: Coalescer::new(),
            sealer: Sealer::new(mtu),
            read_buffer: vec![0; READ_BYTES].into_boxed_slice(),
            next_tick: now + TIMER_INTERVAL,
            counters: TunnelCounters::default(),
        }
    }

    /// The key that peers know this node by.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.public_key.to_bytes())
    }

    /// Takes a changed MTU of the device: padding never goes past it.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.sealer.set_mtu(mtu);
    }

    /// Adds a peer. Nothing is sent until [`Self::start_handshake`] or a packet for it.
    pub fn add_peer(&mut self, config: PeerConfig) -> Result<PeerId, AddPeerError> {
        let key = config.public_key;
        if key == self.public_key() {
            return Err(AddPeerError::OwnKey(key));
        }
        if self.by_key.contains_key(&key) {
            return Err(AddPeerError::Exists(key));
        }
        if self.by_key.len() >= MAX_PEERS {
            return Err(AddPeerError::TooMany(key));
        }
        let index = self.draw_index().ok_or(AddPeerError::NoRandomness(key))?;
        let slot = self
            .peers
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.peers.len());
        let id = PeerId(slot as u32);
        let tunn = Tunn::new(
            self.private_key.clone(),
            x25519::PublicKey::from(key.0),
            config.preshared_key,
            config.persistent_keepalive,
            index,
            Some(Arc::clone(&self.unlimited)),
        );
        for prefix in &config.allowed_ips {
            self.allowed_ips.insert(*prefix, id);
        }
        let peer = Peer {
            config,
            index,
            tunn,
            queued: false,
            confirmed_by: None,
            waiting: VecDeque::new(),
            unconfirmed: false,
            last_handshake: None,
            last_initiation: None,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        if slot == self.peers.len() {
            self.peers.push(Some(peer));
        } else {
            self.peers[slot] = Some(peer);
        }
        self.by_key.insert(key, id);
        self.by_index.insert(index, id);
        Ok(id)
    }

    /// Forgets a peer, its sessions and its queue.
    pub fn remove_peer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::take) else {
            return;
        };
        self.by_key.remove(&peer.config.public_key);
        self.by_index.remove(&peer.index);
        self.last_index = None;
        self.allowed_ips.remove_peer(id);
    }

    /// Replaces a peer's allowed IPs.
    pub fn set_allowed_ips(&mut self, id: PeerId, allowed_ips: Vec<IpPrefix>) {
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::as_mut) else {
            return;
        };
        self.allowed_ips.remove_peer(id);
        for prefix in &allowed_ips {
            self.allowed_ips.insert(*prefix, id);
        }
        peer.config.allowed_ips = allowed_ips;
    }

    /// The peer with this key.
    pub fn find(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// What a peer has carried; `None` if it is not configured.
    pub fn stats(&self, id: PeerId, now: Instant) -> Option<PeerStats> {
        let peer = self.peer(id)?;
        Some(PeerStats {
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            last_handshake: peer
                .last_handshake
                .map(|at| now.saturating_duration_since(at)),
        })
    }

    /// What was dropped.
    pub fn counters(&self) -> TunnelCounters {
        self.counters
    }

    /// What went to the device.
    pub fn device_counters(&self) -> DeviceCounters {
        self.coalescer.counters()
    }

    /// Sends an initiation now, also while an earlier one is unanswered (it may have left before
    /// there was a path; its answer is still taken). For path selection: waiting for the first
    /// packet, or for a lost initiation's 5 s, would be seen. No more than one in 20 ms; returns
    /// whether one was sent.
    pub fn start_handshake(&mut self, id: PeerId, now: Instant, egress: &mut impl Egress) -> bool {
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::as_mut) else {
            return false;
        };
        if peer
            .last_initiation
            .is_some_and(|at| now.saturating_duration_since(at) < MIN_HANDSHAKE_INTERVAL)
        {
            return false;
        }
        peer.last_initiation = Some(now);
        let mut buffer = [0; HANDSHAKE_LEN];
        let result = peer.tunn.format_handshake_initiation(&mut buffer, true);
        peer.send_result(id, result, egress)
    }

    /// When [`Self::handle_timeout`] is next due; `None` without peers.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.by_key.is_empty()).then_some(self.next_tick)
    }

    /// Retries, rekeys and keepalives of all peers, if due.
    pub fn handle_timeout(&mut self, now: Instant, egress: &mut impl Egress) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TIMER_INTERVAL;
        self.cookies.reset_count();
        for (slot, peer) in self.peers.iter_mut().enumerate() {
            if let Some(peer) = peer {
                peer.tick(PeerId(slot as u32), egress);
                if peer.confirmed_by.is_some_and(|at| at <= now) {
                    peer.send_queued(PeerId(slot as u32), &mut self.read_buffer, egress);
                }
            }
        }
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.0 as usize)?.as_ref()
    }

    /// Random, so that nobody off the path can guess where a forged message would be looked at.
    fn draw_index(&self) -> Option<u32> {
        (0..INDEX_TRIES).find_map(|_| {
            let index = rand_core::OsRng.try_next_u32().ok()? >> SESSION_BITS;
            (!self.by_index.contains_key(&index)).then_some(index)
        })
    }
}

impl Peer {
    /// Lets `Tunn` see the time. Also to be called before a session is made: it knows sessions by
    /// the time of the last look, and of two made at one time takes back the older.
    fn tick(&mut self, id: PeerId, egress: &mut impl Egress) {
        let mut buffer = [0; HANDSHAKE_LEN];
        let mut result = self.tunn.update_timers(&mut buffer);
        // It gives up after 90 s, for ever; a peer with a keepalive is to be kept alive.
        if matches!(result, TunnResult::Err(_)) && self.config.persistent_keepalive.is_some() {
            result = self.tunn.format_handshake_initiation(&mut buffer, false);
        }
        self.send_result(id, result, egress);
    }

    /// Sends one packet that `Tunn` made of its own accord; returns whether there was one.
    fn send_result(
        &mut self,
        id: PeerId,
        result: TunnResult<'_>,
        egress: &mut impl Egress,
    ) -> bool {
        let TunnResult::WriteToNetwork(packet) = result else {
            return false;
        };
        self.tx_bytes += packet.len() as u64;
        egress.send(id, packet, packet.len());
        true
    }
}
