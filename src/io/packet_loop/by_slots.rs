//! The data plane of a WireGuard interface, wice's own or another program's: between the slots, where it
//! finds its peers, and the routes. It forwards runs whole, copies nothing, and decides nothing by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use wice_signaling::protocol::PublicKey;

use super::inward::Inward;
use super::links::{Batch, Links};
use super::notes::{self, Notes};
use crate::core::node::{
    Arrival, HostSocket, Inbound, Node, PeerId, RelayId, Route, WireGuardPacket,
};
use crate::core::slots::{INITIATION_LEN, Message, Recipients, Slots, spans};
use crate::core::timing::TA_NODE;
use crate::io::slots::SlotSocket;
use crate::io::udp::{CHANNEL_HEADER_LEN, PathErrorKind, Payloads, ReceiveBuffers, SendFailures};

/// On a channel: its number and length (RFC 8656 §12.4), then type and receiver's index of a transport
/// message (WireGuard paper §5.4.6).
const FRAMED_NAMES_LEN: usize = CHANNEL_HEADER_LEN + 8;

/// How data that comes on a channel begins, and how long it is. What is the same is of the same session, and is not looked at again.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Names([u8; FRAMED_NAMES_LEN], usize);

impl Names {
    fn of(datagram: &[u8]) -> Option<Self> {
        let begins = datagram.first_chunk()?;
        Some(Self(*begins, datagram.len()))
    }
}

/// WireGuard is knocked at no more often, however many checks come: well below the round trip that passes until a peer
/// that hears of its port's end has asked whether it is so.
const KNOCK_EVERY: Duration = TA_NODE;

/// The slots, their socket, and every peer's routes.
pub(super) struct BySlots {
    pub(super) slots: Slots,
    pub(super) socket: SlotSocket,
    /// The port that WireGuard has bound; without it nothing is forwarded.
    pub(super) port: Option<u16>,
    routes: BTreeMap<PeerId, Vec<Route>>,
    own: PublicKey,
    /// Peers whose paths end at their WireGuard's own port.
    natives: BTreeSet<PeerId>,
    /// Whose held initiations leave when, unless WireGuard has answered the peer's.
    answering: BTreeMap<PeerId, Instant>,
    failures: SendFailures,
    /// When WireGuard was knocked at last.
    knocked: Option<Instant>,
}

impl BySlots {
    pub(super) fn new(socket: SlotSocket, own: PublicKey) -> Self {
        Self {
            slots: Slots::default(),
            socket,
            port: None,
            routes: BTreeMap::new(),
            own,
            natives: BTreeSet::new(),
            answering: BTreeMap::new(),
            failures: SendFailures::new(),
            knocked: None,
        }
    }

    pub(super) fn add_peer(&mut self, peer: PeerId, key: &PublicKey) {
        self.slots.add(peer, key);
        self.routes.entry(peer).or_default();
    }

    pub(super) fn remove_peer(&mut self, peer: PeerId) {
        self.slots.remove(peer);
        self.routes.remove(&peer);
        self.answering.remove(&peer);
        self.natives.remove(&peer);
    }

    /// Takes a peer's routes; `native` is whether one of them ends at the port of the peer's WireGuard. The handshake
    /// that waited for them leaves at once, unless WireGuard is about to answer the peer's.
    pub(super) fn bind(
        &mut self,
        peer: PeerId,
        routes: Vec<Route>,
        native: bool,
        links: &Links,
        notes: &mut Notes,
        now: Instant,
    ) {
        let Some(known) = self.routes.get_mut(&peer) else {
            return;
        };
        *known = routes;
        match native {
            true => self.natives.insert(peer),
            false => self.natives.remove(&peer),
        };
        if let Some(until) = self.slots.answers_until(peer, now) {
            self.answering.entry(peer).or_insert(until);
        }
        self.release(peer, links, notes, now);
    }

    /// Lets the initiations go that have waited for an answer in vain.
    pub(super) fn handle_timeout(&mut self, links: &Links, notes: &mut Notes, now: Instant) {
        while let Some((_, peer)) = self.next_answering().filter(|(at, _)| *at <= now) {
            self.answering.remove(&peer);
            self.release(peer, links, notes, now);
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next_answering().map(|(at, _)| at)
    }

    fn next_answering(&self) -> Option<(Instant, PeerId)> {
        self.answering.iter().map(|(peer, at)| (*at, *peer)).min()
    }

    /// Whether the initiation of ours that leaves now goes to the peer's wice, which drops it if it crosses one of theirs:
    /// WireGuard, at whose own port the path ends, would answer it and forget its own. Theirs may come to ours as they are,
    /// for it is ours that is dropped.
    fn encloses(&mut self, peer: PeerId, now: Instant) -> bool {
        self.natives.contains(&peer)
            && self.slots.yields(peer, &self.own)
            && self.slots.encloses_next(peer, now)
    }

    /// The handshake that waited leaves by the routes that there are.
    fn release(&mut self, peer: PeerId, links: &Links, notes: &mut Notes, now: Instant) {
        let has_path = self.routes.get(&peer).is_some_and(|r| !r.is_empty());
        if !has_path || self.answering.contains_key(&peer) {
            return;
        }
        let Some(initiation) = self.slots.take_held(peer, now) else {
            return;
        };
        let encloses = self.encloses(peer, now);
        let message = Message::parse(&initiation[..]);
        if encloses {
            notes.enclosed.push((peer, initiation));
        } else {
            let mut batch = links.batch();
            for route in self.routes.get(&peer).into_iter().flatten() {
                batch.push(route, &initiation[..], initiation.len());
            }
        }
        if let Some(message) = message {
            notes::tell(&self.slots, peer, message, "leaves after waiting");
        }
        self.slots.note_sent(peer, INITIATION_LEN, true, now);
        notes.sent(peer, WireGuardPacket::HandshakeInitiation);
        self.slots.note_initiated(peer, now);
    }

    /// What ICMP says of WireGuard: whether its port has been closed under us.
    pub(super) fn take_errors(&mut self) -> Option<u16> {
        let mut closed = None;
        while let Some(error) = self.socket.next_error() {
            let refused = error.kind == PathErrorKind::Refused;
            if refused && self.port == Some(error.remote.port()) {
                closed = self.port.take();
            }
        }
        closed
    }

    /// Whether WireGuard's port has been closed under us, asked at most every [`KNOCK_EVERY`]: a byte that is no message
    /// of WireGuard's goes there, and where nobody listens the kernel says so within the call, as on loopback.
    pub(super) fn knock(&mut self, now: Instant) -> Option<u16> {
        let port = self.port?;
        if self.knocked.is_some_and(|at| now < at + KNOCK_EVERY) {
            return None;
        }
        self.knocked = Some(now);
        let towards = SlotSocket::towards(port, Ipv4Addr::LOCALHOST);
        self.socket
            .coalescer(&self.failures)
            .push(towards, None, &[0]);
        self.take_errors()
    }

    /// What WireGuard has sent, on its way to the peers.
    pub(super) fn take_slots(
        &mut self,
        buffers: &ReceiveBuffers,
        links: &Links,
        notes: &mut Notes,
        now: Instant,
    ) {
        let mut batch = links.batch();
        for run in buffers.arrivals() {
            let datagrams = run.bytes.len().div_ceil(run.segment_size) as u64;
            let Some(port) = self.port else {
                self.slots.counters.no_port += datagrams;
                continue;
            };
            let Some(slot) = self.socket.slot(&run, port) else {
                self.slots.counters.wrong_source += datagrams;
                continue;
            };
            for span in spans(run.bytes, run.segment_size) {
                let Some(message) = span.message else {
                    self.slots.counters.malformed_out += 1;
                    continue;
                };
                let mut out = Outbound {
                    batch: &mut batch,
                    notes,
                    now,
                };
                // What is for nobody is counted.
                match self.slots.recipients(slot, message, span.bytes, now) {
                    Ok(Recipients::One(peer)) => {
                        self.forward(peer, message, span.bytes, run.segment_size, &mut out);
                    }
                    Ok(Recipients::All(peers)) => {
                        for peer in peers {
                            self.forward(peer, message, span.bytes, run.segment_size, &mut out);
                        }
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// What came in at a shared socket: STUN is the core's, the rest is for WireGuard.
    pub(super) fn take_host(
        &mut self,
        buffers: &ReceiveBuffers,
        node: &mut Node,
        notes: &mut Notes,
        now: Instant,
    ) {
        let (mut inward, slots) = self.inward(notes, now);
        for run in buffers.arrivals() {
            let Some(local) = run.local else { continue };
            let arrival = Arrival::Host {
                socket: HostSocket::Own,
                local,
                interface: run.ifindex,
                from: run.remote,
            };
            for span in spans(run.bytes, run.segment_size) {
                match span.message {
                    Some(message) => {
                        inward.deliver(slots, arrival, message, span.bytes, run.segment_size, node);
                    }
                    None => {
                        if node.handle_datagram(arrival, span.bytes, now) == Inbound::Data {
                            slots.counters.malformed_in += 1;
                        }
                    }
                }
            }
        }
    }

    /// What came from a TURN server over UDP.
    pub(super) fn take_relay(
        &mut self,
        relay: RelayId,
        buffers: &ReceiveBuffers,
        node: &mut Node,
        notes: &mut Notes,
        now: Instant,
    ) {
        let (mut inward, slots) = self.inward(notes, now);
        let mut like: Option<Names> = None;
        for run in buffers.arrivals() {
            let mut rest = run.bytes;
            while !rest.is_empty() {
                let size = run.segment_size.min(rest.len());
                let is_alike = |next: &&[u8]| like.is_some() && Names::of(next) == like;
                let alike = rest.chunks(size).take_while(is_alike).count();
                if alike > 0 {
                    let (_, first) = rest.split_at(CHANNEL_HEADER_LEN);
                    let len = size - CHANNEL_HEADER_LEN;
                    inward.deliver_alike(slots, Payloads::spaced(first, size, len, alike));
                    (_, rest) = rest.split_at(alike * size);
                    continue;
                }
                let (datagram, after) = rest.split_at(size);
                rest = after;
                (like, inward.last) = (None, None);
                if let Some((from, payload)) = node.handle_relay_datagram(relay, datagram, now) {
                    let arrival = Arrival::Relay { relay, from };
                    inward.deliver_one(slots, arrival, payload, node);
                    let on_channel = payload.len() + CHANNEL_HEADER_LEN == size;
                    like = Names::of(datagram).filter(|_| on_channel && inward.last.is_some());
                }
            }
        }
    }

    /// One payload that came through a relay over TCP or TLS.
    pub(super) fn take_relayed(
        &mut self,
        arrival: Arrival,
        payload: &[u8],
        node: &Node,
        notes: &mut Notes,
        now: Instant,
    ) {
        let (mut inward, slots) = self.inward(notes, now);
        inward.deliver_one(slots, arrival, payload, node);
    }

    /// An initiation that the peer's wice has brought.
    pub(super) fn take_enclosed(
        &mut self,
        peer: PeerId,
        arrival: Arrival,
        initiation: &[u8; INITIATION_LEN],
        notes: &mut Notes,
        now: Instant,
    ) {
        let (mut inward, slots) = self.inward(notes, now);
        let Some(message @ Message::Initiation { .. }) = Message::parse(initiation) else {
            slots.counters.malformed_in += 1;
            return;
        };
        if let Ok(sender) = slots.sender(Some(peer), message, now) {
            inward.hand_on(slots, arrival, sender, message, initiation, INITIATION_LEN);
        }
    }

    /// An initiation that WireGuard has sent elsewhere, as though it had come by the peer's slot.
    pub(super) fn send_initiation(
        &mut self,
        peer: PeerId,
        initiation: &[u8; INITIATION_LEN],
        links: &Links,
        notes: &mut Notes,
        now: Instant,
    ) {
        let (Some(slot), Some(message)) = (self.slots.slot(peer), Message::parse(initiation))
        else {
            return;
        };
        let mut batch = links.batch();
        let mut out = Outbound {
            batch: &mut batch,
            notes,
            now,
        };
        // By its mac1 it is that peer's, also where the slot is shared.
        if let Ok(Recipients::One(peer)) = self.slots.recipients(slot, message, initiation, now) {
            self.forward(peer, message, initiation, INITIATION_LEN, &mut out);
        }
    }

    fn forward<'p>(
        &mut self,
        peer: PeerId,
        message: Message,
        bytes: &'p [u8],
        segment_size: usize,
        out: &mut Outbound<'_, '_, 'p>,
    ) {
        let now = out.now;
        if let Message::Initiation { .. } = message
            && let Some(until) = self.slots.answers_until(peer, now)
        {
            self.slots.hold(peer, bytes, now);
            self.answering.insert(peer, until);
            self.slots.note_sent(peer, bytes.len(), false, now);
            out.notes.sent(peer, WireGuardPacket::HandshakeInitiation);
            notes::tell(&self.slots, peer, message, "waits for an answer");
            return;
        }
        let answered = match message {
            Message::Response { .. } | Message::Cookie { .. } => self.slots.take_asked(peer, now),
            Message::Initiation { .. } | Message::Data { .. } => None,
        };
        if let (Message::Response { .. }, Some(_)) = (message, &answered) {
            self.answering.remove(&peer);
            // By its answer WireGuard has forgotten what it had sent itself.
            if self.slots.take_held(peer, now).is_some() {
                notes::tell(&self.slots, peer, message, "overtakes our initiation");
            }
        }
        let has_path = self.routes.get(&peer).is_some_and(|r| !r.is_empty());
        let carried = answered.is_some() || has_path;
        let enclosed = match message {
            Message::Initiation { .. } if has_path && self.encloses(peer, now) => {
                bytes.try_into().ok()
            }
            Message::Initiation { .. }
            | Message::Response { .. }
            | Message::Cookie { .. }
            | Message::Data { .. } => None,
        };
        let step = match (answered, enclosed) {
            (Some(arrival), _) => {
                out.answer(arrival, bytes);
                "back to where it was asked"
            }
            (None, Some(initiation)) => {
                out.notes.enclosed.push((peer, Box::new(initiation)));
                "to the peer's wice"
            }
            (None, None) => {
                for route in self.routes.get(&peer).into_iter().flatten() {
                    out.batch.push(route, bytes, segment_size);
                }
                if carried {
                    "by the path"
                } else {
                    "waits for a path"
                }
            }
        };
        notes::tell(&self.slots, peer, message, step);
        if !carried {
            self.slots.counters.no_path += bytes.len().div_ceil(segment_size) as u64;
            if let Message::Initiation { .. } = message {
                self.slots.hold(peer, bytes, now);
            }
        } else if let Message::Initiation { .. } = message {
            self.slots.note_initiated(peer, now);
        }
        self.slots.note_sent(peer, bytes.len(), carried, now);
        if let Some(packet) = message.packet() {
            out.notes.sent(peer, packet);
        }
    }

    fn inward<'s, 'p>(
        &'s mut self,
        notes: &'s mut Notes,
        now: Instant,
    ) -> (Inward<'s, 'p>, &'s mut Slots) {
        let Self {
            slots,
            socket,
            port,
            own,
            failures,
            ..
        } = self;
        let inward = Inward {
            out: socket.coalescer(failures),
            own: *own,
            port: *port,
            notes,
            now,
            last: None,
        };
        (inward, slots)
    }
}

/// From the slots to the peers.
struct Outbound<'a, 's, 'p> {
    batch: &'a mut Batch<'s, 'p>,
    notes: &'a mut Notes,
    now: Instant,
}

impl<'p> Outbound<'_, '_, 'p> {
    /// Back to where the initiation came from, by which there may be no route yet.
    fn answer(&mut self, arrival: Arrival, bytes: &'p [u8]) {
        match arrival {
            Arrival::Host {
                socket,
                local,
                interface,
                from,
            } => {
                let back = Route::Host {
                    socket,
                    local,
                    interface,
                    remote: from,
                };
                self.batch.push(&back, bytes, bytes.len());
            }
            Arrival::Relay { relay, from } => {
                let reply = (relay, from, bytes.to_vec());
                self.notes.relay_replies.push(reply);
            }
        }
    }
}

/// What an inspection sees of the slots.
pub struct SlotsView<'a> {
    /// Which peer stands where, what it has carried, and what was dropped.
    pub slots: &'a Slots,
    /// The slots' socket.
    pub socket: &'a SlotSocket,
    /// WireGuard's port; `None` while nothing is forwarded.
    pub port: Option<u16>,
}

impl SlotsView<'_> {
    /// The slot of a key on the interface.
    pub fn slot(&self, peer: PeerId) -> Option<Ipv4Addr> {
        self.slots.slot(peer)
    }
}

#[cfg(test)]
#[path = "by_slots_tests.rs"]
mod tests;
