//! The data plane of a WireGuard interface, wice's own or another program's: between the slots, where it
//! finds its peers, and the routes. It forwards runs whole, copies nothing, and decides nothing by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use wice_signaling::protocol::PublicKey;

use super::links::{Batch, Links};
use super::notes::Notes;
use crate::core::node::{
    Arrival, HostSocket, Inbound, Node, PeerId, RelayId, Route, WireGuardPacket,
};
use crate::core::slots::{INITIATION_LEN, Message, Recipients, Sender, Slots, spans};
use crate::core::timing::TA_NODE;
use crate::io::slots::SlotSocket;
use crate::io::udp::{
    CHANNEL_HEADER_LEN, Coalescer, PathErrorKind, Payloads, ReceiveBuffers, SendFailures,
};

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
/// At WireGuard's own port nobody can drop one of two initiations that cross, so the other side's waits for
/// so long: paths are ready on both sides within a round trip, and half of one more brings theirs here. For round trips up to 160 ms; beyond, WireGuard's own retry has to do.
const YIELD: Duration = Duration::from_millis(250);

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
    /// Whose held initiations leave when.
    yielding: BTreeMap<PeerId, Instant>,
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
            yielding: BTreeMap::new(),
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
        self.yielding.remove(&peer);
        self.natives.remove(&peer);
    }

    /// Takes a peer's routes. The handshake that waited for them leaves at once, unless it yields: `native`
    /// is whether the first of them ends at the port of the peer's WireGuard.
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
        if known.is_empty() {
            return;
        }
        if self.yields(peer) {
            self.yielding.entry(peer).or_insert(now + YIELD);
            return;
        }
        self.release(peer, links, notes, now);
    }

    /// Lets the initiations go that have yielded for long enough.
    pub(super) fn handle_timeout(&mut self, links: &Links, notes: &mut Notes, now: Instant) {
        while let Some(peer) = self.next_yielding().filter(|(at, _)| *at <= now) {
            self.yielding.remove(&peer.1);
            self.release(peer.1, links, notes, now);
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next_yielding().map(|(at, _)| at)
    }

    fn next_yielding(&self) -> Option<(Instant, PeerId)> {
        self.yielding.iter().map(|(peer, at)| (*at, *peer)).min()
    }

    /// Whether an initiation of ours is to wait for the peer's.
    fn yields(&self, peer: PeerId) -> bool {
        self.natives.contains(&peer) && self.slots.yields(peer, &self.own)
    }

    /// The handshake that waited leaves by the routes that there are.
    fn release(&mut self, peer: PeerId, links: &Links, notes: &mut Notes, now: Instant) {
        let Some(known) = self.routes.get(&peer).filter(|routes| !routes.is_empty()) else {
            return;
        };
        let Some(initiation) = self.slots.take_held(peer, now) else {
            return;
        };
        let mut batch = links.batch();
        for route in known {
            batch.push(route, &initiation[..], initiation.len());
        }
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
            && self.yields(peer)
        {
            self.slots.hold(peer, bytes, now);
            self.yielding.entry(peer).or_insert(now + YIELD);
            return;
        }
        let answered = match message {
            Message::Response { .. } | Message::Cookie { .. } => self.slots.take_asked(peer, now),
            Message::Initiation { .. } | Message::Data { .. } => None,
        };
        let routes = self.routes.get(&peer).map_or(&[][..], Vec::as_slice);
        let carried = answered.is_some() || !routes.is_empty();
        match answered {
            Some(arrival) => out.answer(arrival, bytes),
            None => {
                for route in routes {
                    out.batch.push(route, bytes, segment_size);
                }
            }
        }
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
            failures,
            ..
        } = self;
        let inward = Inward {
            out: socket.coalescer(failures),
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

/// From the network to WireGuard.
struct Inward<'s, 'p> {
    out: Coalescer<'s, 'p>,
    port: Option<u16>,
    notes: &'s mut Notes,
    now: Instant,
    /// The last data's arrival, receiver index and sender: it comes in runs.
    last: Option<(Arrival, u32, Sender)>,
}

impl<'p> Inward<'_, 'p> {
    fn deliver_one(&mut self, slots: &mut Slots, arrival: Arrival, payload: &'p [u8], node: &Node) {
        match Message::parse(payload) {
            Some(message) => {
                self.deliver(slots, arrival, message, payload, payload.len(), node);
            }
            None => slots.counters.malformed_in += 1,
        }
    }

    fn deliver(
        &mut self,
        slots: &mut Slots,
        arrival: Arrival,
        message: Message,
        bytes: &'p [u8],
        segment_size: usize,
        node: &Node,
    ) {
        let Some(sender) = self.sender(slots, arrival, message, node) else {
            return;
        };
        let Some(port) = self.port else {
            slots.counters.no_port += bytes.len().div_ceil(segment_size) as u64;
            return;
        };
        if let Message::Initiation { .. } = message {
            if slots.crosses(sender.peer, &node.public_key(), self.now) {
                return;
            }
            slots.note_asked(sender.peer, arrival, self.now);
        }
        let towards = SlotSocket::towards(port, sender.slot);
        self.out.push_segments(towards, bytes, segment_size);
        slots.note_received(sender.peer, bytes.len(), self.now);
        if let Some(packet) = message.packet().filter(|_| sender.in_session) {
            self.notes.received(sender.peer, arrival, packet);
        }
    }

    /// More of what was delivered last.
    fn deliver_alike(&mut self, slots: &mut Slots, payloads: Payloads<'p>) {
        let Some((_, _, sender)) = self.last else {
            return;
        };
        let Some(port) = self.port else {
            slots.counters.no_port += payloads.count() as u64;
            return;
        };
        let towards = SlotSocket::towards(port, sender.slot);
        self.out.push_all(towards, None, payloads);
        let bytes = payloads.count() * payloads.each();
        slots.note_received(sender.peer, bytes, self.now);
    }

    fn sender(
        &mut self,
        slots: &mut Slots,
        arrival: Arrival,
        message: Message,
        node: &Node,
    ) -> Option<Sender> {
        if let Message::Data { receiver, .. } = message
            && let Some((from, index, sender)) = self.last
            && from == arrival
            && index == receiver
        {
            return Some(sender);
        }
        let sender = slots
            .sender(node.peer_at(&arrival), message, self.now)
            .ok()?;
        self.last = match message {
            Message::Data { receiver, .. } => Some((arrival, receiver, sender)),
            Message::Initiation { .. } | Message::Response { .. } | Message::Cookie { .. } => None,
        };
        Some(sender)
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
