//! WireGuard as far as paths can tell: who sends which kind of packet when (whitepaper §6).

use std::time::{Duration, Instant};

use wice::core::node::{Route, WireGuardPacket};

use crate::network::HostId;

const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_AFTER: Duration = Duration::from_secs(120);
const KEEPALIVE: Duration = Duration::from_secs(10);
const PACKET: usize = 32;

/// One end of one tunnel.
#[derive(Default)]
pub(crate) struct Tunnel {
    pub(crate) routes: Vec<Route>,
    /// A packet of the user's this often.
    pub(crate) traffic: Option<Duration>,
    next_data: Option<Instant>,
    established: Option<Instant>,
    initiator: bool,
    retry: Option<Instant>,
    unanswered: Option<Instant>,
    keepalive: Option<Instant>,
    /// When something authentic came in last, and when user data did.
    pub(crate) received: Option<Instant>,
    pub(crate) received_data: Option<Instant>,
    /// The longest time between two packets of user data.
    pub(crate) longest_gap: Duration,
}

impl Tunnel {
    pub(crate) fn start_handshake(&mut self, now: Instant) {
        self.retry = Some(now);
    }

    pub(crate) fn set_traffic(&mut self, every: Option<Duration>, now: Instant) {
        self.traffic = every;
        self.next_data = every.map(|_| now);
    }

    /// Whether packets have come through both ways.
    pub(crate) fn is_up(&self) -> bool {
        self.established.is_some() && self.received.is_some()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let rehandshake = self.rehandshake_at().filter(|_| self.retry.is_none());
        [self.retry, self.next_data, self.keepalive, rehandshake]
            .into_iter()
            .flatten()
            .min()
    }

    /// What is to be sent now; the flag says that user data waits.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> (Vec<WireGuardPacket>, bool) {
        let mut out = Vec::new();
        let mut waits = false;
        if let (Some(every), Some(at)) = (self.traffic, self.next_data)
            && at <= now
        {
            self.next_data = Some(now + every);
            if self.established.is_some() {
                out.push(WireGuardPacket::Data);
                self.unanswered.get_or_insert(now);
                self.keepalive = None;
            } else {
                waits = true;
                self.retry.get_or_insert(now);
            }
            let old = self.established.is_some_and(|at| now >= at + REKEY_AFTER);
            if old && self.initiator {
                self.retry.get_or_insert(now);
            }
        }
        if self.rehandshake_at().is_some_and(|at| at <= now) {
            self.retry.get_or_insert(now);
        }
        if self.retry.is_some_and(|at| at <= now) {
            out.push(WireGuardPacket::HandshakeInitiation);
            self.retry = Some(now + REKEY_TIMEOUT);
        }
        if self.keepalive.is_some_and(|at| at <= now) {
            self.keepalive = None;
            out.push(WireGuardPacket::Keepalive);
        }
        (out, waits)
    }

    pub(crate) fn handle(&mut self, packet: WireGuardPacket, now: Instant) -> Vec<WireGuardPacket> {
        self.received = Some(now);
        self.unanswered = None;
        match packet {
            WireGuardPacket::HandshakeInitiation => {
                self.established = Some(now);
                self.initiator = false;
                return vec![WireGuardPacket::HandshakeResponse];
            }
            WireGuardPacket::HandshakeResponse => {
                self.established = Some(now);
                self.initiator = true;
                self.retry = None;
                return vec![WireGuardPacket::Keepalive];
            }
            WireGuardPacket::Keepalive => self.retry = None,
            WireGuardPacket::Data => {
                self.retry = None;
                if let Some(last) = self.received_data {
                    self.longest_gap = self.longest_gap.max(now - last);
                }
                self.received_data = Some(now);
                self.keepalive.get_or_insert(now + KEEPALIVE);
            }
        }
        Vec::new()
    }

    fn rehandshake_at(&self) -> Option<Instant> {
        self.unanswered.map(|at| at + KEEPALIVE + REKEY_TIMEOUT)
    }
}

/// The bytes of a packet from one host to another.
pub(crate) fn encode(packet: WireGuardPacket, from: HostId, to: HostId) -> Vec<u8> {
    let (kind, payload) = match packet {
        WireGuardPacket::HandshakeInitiation => (1, 0),
        WireGuardPacket::HandshakeResponse => (2, 0),
        WireGuardPacket::Keepalive => (4, 0),
        WireGuardPacket::Data => (4, 1),
    };
    let mut bytes = vec![0; PACKET];
    bytes[0] = kind;
    bytes[4] = u8::try_from(from % 256).unwrap();
    bytes[5] = u8::try_from(from / 256).unwrap();
    bytes[6] = u8::try_from(to % 256).unwrap();
    bytes[7] = u8::try_from(to / 256).unwrap();
    bytes[8] = payload;
    bytes
}

/// Kind, sender and receiver.
pub(crate) fn decode(bytes: &[u8]) -> Option<(WireGuardPacket, HostId, HostId)> {
    if bytes.len() != PACKET {
        return None;
    }
    let packet = match (bytes[0], bytes[8]) {
        (1, _) => WireGuardPacket::HandshakeInitiation,
        (2, _) => WireGuardPacket::HandshakeResponse,
        (4, 0) => WireGuardPacket::Keepalive,
        (4, _) => WireGuardPacket::Data,
        _ => return None,
    };
    let number = |low: u8, high: u8| usize::from(low) + 256 * usize::from(high);
    Some((
        packet,
        number(bytes[4], bytes[5]),
        number(bytes[6], bytes[7]),
    ))
}
