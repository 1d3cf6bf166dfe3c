//! From the network to the device: who a datagram is for, whether it may cost cryptography, and
//! what it proved.

use std::net::IpAddr;
use std::time::Instant;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use wice_signaling::protocol::PublicKey;

use super::device::{Device, Egress};
use super::sealer::{HANDSHAKE_LEN, TRANSPORT};
use super::{CONFIRMATION, MAX_WAITING, Peer, PeerId, SESSION_BITS, Tunnels};

/// A cookie reply's length (WireGuard paper §5.4.7).
const COOKIE_LEN: usize = 64;
/// Where the counter of a transport message stands, and from which value on a session is dead
/// (§6.1): `Tunn`'s replay window would overflow.
const COUNTER: std::ops::Range<usize> = 8..16;
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// The shortest IP header.
const IPV4_HEADER: usize = 20;
/// Packets that `Tunn` queues while there is no session.
const MAX_QUEUED: usize = 256;

/// The messages that authenticate a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// A handshake initiation; it was answered.
    Initiation,
    /// A handshake response: the path works both ways.
    Response,
    /// An empty transport packet.
    Keepalive,
    /// A transport packet.
    Data,
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Not a WireGuard message.
    Malformed,
    /// Its receiver index is not in use.
    UnknownReceiver,
    /// An initiation of a key that is not a peer's.
    UnknownPeer,
    /// A mac or tag is wrong, or it fits no handshake of ours.
    Unauthenticated,
    /// Under load: answered by a cookie.
    CookieSent,
    /// Under load: past its source's share.
    RateLimited,
}

/// What a datagram was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The peer sent it, and nobody replayed it.
    Authenticated {
        /// Whose it is.
        peer: PeerId,
        /// What it is.
        kind: MessageKind,
    },
    /// Its counter or timestamp came already, or is too old: a copy on a second path, or a replay.
    /// Proves nothing.
    Duplicate {
        /// Whose session it names.
        peer: PeerId,
    },
    /// A cookie that fits our initiation: the peer is under load. Proves no path.
    CookieReply {
        /// Whose it is.
        peer: PeerId,
    },
    /// Nothing came of it.
    Dropped(DropReason),
}

impl Tunnels {
    /// Takes one datagram. What it holds goes to `device` when [`Self::flush`] is called, or when
    /// the buffer is full; answers leave by `egress` at once. `source` is the remote address:
    /// cookies are bound to it.
    pub fn handle_datagram(
        &mut self,
        source: IpAddr,
        datagram: &[u8],
        now: Instant,
        device: &mut impl Device,
        egress: &mut impl Egress,
    ) -> Verdict {
        let verdict = match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::PacketData(data)) => match self.by_receiver(data.receiver_idx) {
                Some(id) => self.handle_data(id, datagram, now, device, egress),
                None => Verdict::Dropped(DropReason::UnknownReceiver),
            },
            Ok(Packet::HandshakeInit(init)) => match self.admit(source, datagram, now, egress) {
                Ok(()) => match parse_handshake_anon(&self.private_key, &self.public_key, &init) {
                    Ok(half) => match self.find(&PublicKey(half.peer_static_public)) {
                        Some(id) => self.handle_initiation(id, datagram, now, egress),
                        None => Verdict::Dropped(DropReason::UnknownPeer),
                    },
                    Err(_) => Verdict::Dropped(DropReason::Unauthenticated),
                },
                Err(reason) => Verdict::Dropped(reason),
            },
            Ok(Packet::HandshakeResponse(response)) => {
                match self.by_receiver(response.receiver_idx) {
                    Some(id) => match self.admit(source, datagram, now, egress) {
                        Ok(()) => self.handle_response(id, datagram, now, egress),
                        Err(reason) => Verdict::Dropped(reason),
                    },
                    None => Verdict::Dropped(DropReason::UnknownReceiver),
                }
            }
            Ok(Packet::PacketCookieReply(cookie)) => match self.by_receiver(cookie.receiver_idx) {
                Some(id) => self.handle_cookie(id, datagram),
                None => Verdict::Dropped(DropReason::UnknownReceiver),
            },
            Err(_) => Verdict::Dropped(DropReason::Malformed),
        };
        self.count_verdict(verdict);
        verdict
    }

    /// Hands what was decrypted to the device, joined where it can be. To be called after each
    /// batch of datagrams.
    pub fn flush(&mut self, device: &mut impl Device) {
        self.coalescer.flush(device);
    }

    /// Indices name a tunnel and, in the low 8 bits, a session, which `Tunn` checks.
    fn by_receiver(&mut self, receiver: u32) -> Option<PeerId> {
        let index = receiver >> SESSION_BITS;
        if let Some((last, id)) = self.last_index
            && last == index
        {
            return Some(id);
        }
        let id = *self.by_index.get(&index)?;
        self.last_index = Some((index, id));
        Some(id)
    }

    /// Whether a handshake message may cost its cryptography: mac1 always, a cookie and a share of
    /// the source's under load.
    fn admit(
        &mut self,
        source: IpAddr,
        datagram: &[u8],
        now: Instant,
        egress: &mut impl Egress,
    ) -> Result<(), DropReason> {
        let mut cookie = [0; COOKIE_LEN];
        match self
            .cookies
            .verify_packet(Some(source), datagram, &mut cookie)
        {
            Ok(_) if self.limiter.allow(source, now) => Ok(()),
            Ok(_) => Err(DropReason::RateLimited),
            Err(TunnResult::WriteToNetwork(reply)) => {
                egress.reply(reply);
                Err(DropReason::CookieSent)
            }
            Err(
                TunnResult::Err(_)
                | TunnResult::Done
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..),
            ) => Err(DropReason::Unauthenticated),
        }
    }

    fn handle_initiation(
        &mut self,
        id: PeerId,
        datagram: &[u8],
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        let Some(peer) = self.peers[id.0 as usize].as_mut() else {
            return Verdict::Dropped(DropReason::UnknownPeer);
        };
        peer.tick(id, egress);
        let mut buffer = [0; HANDSHAKE_LEN];
        // The queue is left alone: until the other side's first packet the new session is not used
        // for sending.
        let response = match peer.tunn.decapsulate(None, datagram, &mut buffer) {
            TunnResult::WriteToNetwork(response) => response,
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => {
                return Verdict::Duplicate { peer: id };
            }
            TunnResult::Err(_)
            | TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => {
                return Verdict::Dropped(DropReason::Unauthenticated);
            }
        };
        peer.unconfirmed = true;
        if peer.tunn.time_since_last_handshake().is_none() {
            peer.confirmed_by = Some(now + CONFIRMATION);
        }
        peer.rx_bytes += datagram.len() as u64;
        peer.tx_bytes += response.len() as u64;
        egress.reply(response);
        Verdict::Authenticated {
            peer: id,
            kind: MessageKind::Initiation,
        }
    }

    fn handle_response(
        &mut self,
        id: PeerId,
        datagram: &[u8],
        now: Instant,
        egress: &mut impl Egress,
    ) -> Verdict {
        let Some(peer) = self.peers[id.0 as usize].as_mut() else {
            return Verdict::Dropped(DropReason::UnknownReceiver);
        };
        peer.tick(id, egress);
        let mut buffer = [0; HANDSHAKE_LEN];
        // It answers with a keepalive, which confirms the session to the other side.
        let result = peer.tunn.decapsulate(None, datagram, &mut buffer);
        if !peer.send_result(id, result, egress) {
            return Verdict::Dropped(DropReason::Unauthenticated);
        }
        peer.rx_bytes += datagram.len() as u64;
        peer.last_handshake = Some(now);
        peer.unconfirmed = false;
        peer.send_queued(id, &mut self.read_buffer, egress);
        Verdict::Authenticated {
            peer: id,
            kind: MessageKind::Response,
        }
    }

    fn handle_cookie(&mut self, id: PeerId, datagram: &[u8]) -> Verdict {
        let Some(peer) = self.peers[id.0 as usize].as_mut() else {
            return Verdict::Dropped(DropReason::UnknownReceiver);
        };
        match peer.tunn.decapsulate(None, datagram, &mut []) {
            TunnResult::Done => Verdict::CookieReply { peer: id },
            TunnResult::Err(_)
            | TunnResult::WriteToNetwork(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Verdict::Dropped(DropReason::Unauthenticated),
        }
    }

    fn handle_data(
        &mut self,
        id: PeerId,
        datagram: &[u8],
        now: Instant,
        device: &mut impl Device,
        egress: &mut impl Egress,
    ) -> Verdict {
        let counter = datagram
            .get(COUNTER)
            .and_then(|bytes| bytes.try_into().ok());
        if counter.is_none_or(|bytes| u64::from_le_bytes(bytes) >= REJECT_AFTER_MESSAGES) {
            return Verdict::Dropped(DropReason::Unauthenticated);
        }
        if !self.coalescer.has_room(datagram.len()) {
            self.coalescer.flush(device);
        }
        let Some(peer) = self.peers[id.0 as usize].as_mut() else {
            return Verdict::Dropped(DropReason::UnknownReceiver);
        };
        let (kind, inner) = match peer.tunn.decapsulate(None, datagram, self.coalescer.slot()) {
            TunnResult::WriteToTunnelV4(packet, source) => {
                (MessageKind::Data, Some((packet.len(), IpAddr::V4(source))))
            }
            TunnResult::WriteToTunnelV6(packet, source) => {
                (MessageKind::Data, Some((packet.len(), IpAddr::V6(source))))
            }
            TunnResult::Done => (MessageKind::Keepalive, None),
            TunnResult::Err(WireGuardError::DuplicateCounter | WireGuardError::InvalidCounter) => {
                return Verdict::Duplicate { peer: id };
            }
            // The message itself was parsed above, so this is said of what it held.
            TunnResult::Err(WireGuardError::InvalidPacket) => {
                self.counters.bad_inner += 1;
                (MessageKind::Data, None)
            }
            TunnResult::Err(_) | TunnResult::WriteToNetwork(_) => {
                return Verdict::Dropped(DropReason::Unauthenticated);
            }
        };
        peer.rx_bytes += datagram.len() as u64;
        if peer.unconfirmed {
            peer.unconfirmed = false;
            peer.confirmed_by = None;
            peer.last_handshake = Some(now);
        }
        if let Some((len, inner_source)) = inner {
            // `Tunn` cuts a packet to the length in its header, whatever that says.
            if len < IPV4_HEADER {
                self.counters.bad_inner += 1;
            } else if self.allowed_ips.find(inner_source) == Some(id) {
                self.coalescer.push(len, device.offload());
            } else {
                self.counters.wrong_source += 1;
            }
        }
        if peer.queued {
            peer.send_queued(id, &mut self.read_buffer, egress);
        }
        Verdict::Authenticated { peer: id, kind }
    }

    fn count_verdict(&mut self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Authenticated { .. } | Verdict::CookieReply { .. } => return,
            Verdict::Duplicate { .. } => &mut self.counters.replayed,
            Verdict::Dropped(DropReason::Malformed) => &mut self.counters.malformed,
            Verdict::Dropped(DropReason::UnknownReceiver) => &mut self.counters.unknown_receiver,
            Verdict::Dropped(DropReason::UnknownPeer) => &mut self.counters.unknown_peer,
            Verdict::Dropped(DropReason::Unauthenticated) => &mut self.counters.unauthenticated,
            Verdict::Dropped(DropReason::CookieSent) => &mut self.counters.cookies_sent,
            Verdict::Dropped(DropReason::RateLimited) => &mut self.counters.rate_limited,
        };
        *counter += 1;
    }
}

impl Peer {
    /// Keeps a packet until there is a session; what has no room is lost.
    pub(super) fn wait(&mut self, packet: &[u8], padded: usize) {
        self.queued = true;
        if self.waiting.len() < MAX_WAITING {
            let mut packet = packet.to_vec();
            packet.resize(padded, 0);
            self.waiting.push_back(packet);
        }
    }

    /// Sends what waited for a session. `scratch` is the device's read buffer, which is free
    /// meanwhile.
    pub(super) fn send_queued(&mut self, id: PeerId, scratch: &mut [u8], egress: &mut impl Egress) {
        self.queued = false;
        self.confirmed_by = None;
        for _ in 0..MAX_QUEUED {
            let result = self.tunn.decapsulate(None, &[], scratch);
            if !self.send_sealed(id, result, egress) || self.queued {
                break;
            }
        }
        while let Some(packet) = self.waiting.pop_front() {
            let result = self.tunn.encapsulate(&packet, scratch);
            self.queued |= !self.send_sealed(id, result, egress);
        }
    }

    /// Sends what came of a packet, if anything did. Where that is not the packet sealed, but an
    /// initiation, the session is gone already and the packet is queued again.
    fn send_sealed(
        &mut self,
        id: PeerId,
        result: TunnResult<'_>,
        egress: &mut impl Egress,
    ) -> bool {
        let TunnResult::WriteToNetwork(packet) = result else {
            return false;
        };
        self.queued |= !packet.starts_with(&TRANSPORT);
        self.tx_bytes += packet.len() as u64;
        egress.send(id, packet, packet.len());
        true
    }
}
