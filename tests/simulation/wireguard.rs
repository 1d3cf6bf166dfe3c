//! WireGuard as far as paths can tell: who sends which kind of packet when (whitepaper §6).

use std::time::{Duration, Instant};

use wice::core::node::{Route, WireGuardPacket};

use crate::network::HostId;

const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_AFTER: Duration = Duration::from_secs(120);
const KEEPALIVE: Duration = Duration::from_secs(10);
const PACKET: usize = 32;

/// A packet and the session that it belongs to.
pub(crate) type Packet = (WireGuardPacket, u32);

/// One end of one tunnel.
#[derive(Default)]
pub(crate) struct Tunnel {
    pub(crate) routes: Vec<Route>,
    /// A packet of the user's this often.
    pub(crate) traffic: Option<Duration>,
    next_data: Option<Instant>,
    /// The session that it sends by, and since when there is one.
    current: Option<(u32, Instant)>,
    /// A session that the other side has asked for and not used yet.
    next: Option<u32>,
    /// The session before, by which packets may still come.
    previous: Option<u32>,
    /// The session that it has asked for.
    asked: Option<u32>,
    next_session: u32,
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

    /// Another program's tunnel knows other sessions.
    pub(crate) fn starting_from(session: u32) -> Self {
        Self {
            next_session: session,
            ..Self::default()
        }
    }

    /// Whether packets have come through both ways.
    pub(crate) fn is_up(&self) -> bool {
        let session = self.current.is_some() || self.next.is_some();
        session && self.received.is_some()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let rehandshake = self.rehandshake_at().filter(|_| self.retry.is_none());
        [self.retry, self.next_data, self.keepalive, rehandshake]
            .into_iter()
            .flatten()
            .min()
    }

    /// What is to be sent now; the flag says that user data waits.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> (Vec<Packet>, bool) {
        let mut out = Vec::new();
        let mut waits = false;
        if let (Some(every), Some(at)) = (self.traffic, self.next_data)
            && at <= now
        {
            self.next_data = Some(now + every);
            if let Some((session, since)) = self.current {
                out.push((WireGuardPacket::Data, session));
                self.unanswered.get_or_insert(now);
                self.keepalive = None;
                if self.initiator && now >= since + REKEY_AFTER {
                    self.retry.get_or_insert(now);
                }
            } else {
                waits = true;
                self.retry.get_or_insert(now);
            }
        }
        if self.rehandshake_at().is_some_and(|at| at <= now) {
            self.retry.get_or_insert(now);
        }
        if self.retry.is_some_and(|at| at <= now) {
            self.next_session += 1;
            self.asked = Some(self.next_session);
            out.push((WireGuardPacket::HandshakeInitiation, self.next_session));
            self.retry = Some(now + REKEY_TIMEOUT);
        }
        if self.keepalive.is_some_and(|at| at <= now) {
            self.keepalive = None;
            let session = self.current.map(|(session, _)| session);
            out.extend(session.map(|session| (WireGuardPacket::Keepalive, session)));
        }
        (out, waits)
    }

    /// What is answered; `None` if it is not authentic.
    pub(crate) fn handle(
        &mut self,
        (packet, session): Packet,
        now: Instant,
    ) -> Option<Vec<Packet>> {
        let mut answer = Vec::new();
        match packet {
            WireGuardPacket::HandshakeInitiation => {
                self.next = Some(session);
                answer.push((WireGuardPacket::HandshakeResponse, session));
            }
            WireGuardPacket::HandshakeResponse => {
                self.asked.take_if(|asked| *asked == session)?;
                self.establish(session, true, now);
                self.retry = None;
                answer.push((WireGuardPacket::Keepalive, session));
            }
            WireGuardPacket::Keepalive | WireGuardPacket::Data => {
                if self.next == Some(session) {
                    self.establish(session, false, now);
                }
                let current = self.current.map(|(current, _)| current);
                if current != Some(session) && self.previous != Some(session) {
                    return None;
                }
                if packet == WireGuardPacket::Data {
                    if let Some(last) = self.received_data {
                        self.longest_gap = self.longest_gap.max(now - last);
                    }
                    self.received_data = Some(now);
                    self.keepalive.get_or_insert(now + KEEPALIVE);
                }
            }
        }
        self.received = Some(now);
        if packet != WireGuardPacket::HandshakeInitiation {
            self.unanswered = None;
        }
        Some(answer)
    }

    fn establish(&mut self, session: u32, initiator: bool, now: Instant) {
        let current = self.current.map(|(current, _)| current);
        self.previous = self.next.filter(|_| initiator).or(current);
        self.current = Some((session, now));
        self.next = None;
        self.initiator = initiator;
    }

    fn rehandshake_at(&self) -> Option<Instant> {
        self.unanswered.map(|at| at + KEEPALIVE + REKEY_TIMEOUT)
    }
}

/// The bytes of a packet from one host to another.
pub(crate) fn encode((packet, session): Packet, from: HostId, to: HostId) -> Vec<u8> {
    let (kind, payload) = match packet {
        WireGuardPacket::HandshakeInitiation => (1, 0),
        WireGuardPacket::HandshakeResponse => (2, 0),
        WireGuardPacket::Keepalive => (4, 0),
        WireGuardPacket::Data => (4, 1),
    };
    let mut bytes = vec![0; PACKET];
    bytes[0] = kind;
    bytes[4..8].copy_from_slice(&session.to_be_bytes());
    bytes[8..10].copy_from_slice(&u16::try_from(from).unwrap().to_be_bytes());
    bytes[10..12].copy_from_slice(&u16::try_from(to).unwrap().to_be_bytes());
    bytes[12] = payload;
    bytes
}

/// Packet, sender and receiver.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Packet, HostId, HostId)> {
    let bytes: &[u8; PACKET] = bytes.try_into().ok()?;
    let packet = match (bytes[0], bytes[12]) {
        (1, _) => WireGuardPacket::HandshakeInitiation,
        (2, _) => WireGuardPacket::HandshakeResponse,
        (4, 0) => WireGuardPacket::Keepalive,
        (4, _) => WireGuardPacket::Data,
        _ => return None,
    };
    let session = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let host = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    Some(((packet, session), host(8), host(10)))
}
