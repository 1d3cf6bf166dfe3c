//! Slots: the loopback addresses at which this node stands in for its WireGuard peers, and for whom
//! a datagram is that passes one. It reads what every WireGuard message shows without keys, and
//! authenticates nothing: WireGuard does.

mod indices;
mod message;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use wice_signaling::protocol::PublicKey;

use crate::core::node::{Arrival, PeerId};
use indices::Indices;
use message::Mac1Key;

pub use message::{INITIATION_LEN, Message, Span, is_for, spans};

/// The port of all slots of a mesh. It must be the same on every node, since a mesh agent publishes
/// the endpoints that it sees, and nobody else's: WireGuard uses 51820, our own sockets 51821.
pub const SLOT_PORT: u16 = 51822;

/// How long an answer may take to follow the handshake message that it answers: past WireGuard's
/// REKEY_TIMEOUT (paper §6.1) the other side has started anew.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How long our WireGuard may take to answer an initiation that was handed to it: far less, but on a machine that is busy.
const ANSWERING: Duration = Duration::from_millis(250);
/// How long an initiation is kept for a path: WireGuard replaces it every 5 s until it gives up after
/// REKEY_ATTEMPT_TIME (paper §6.1), and the last one can still be answered.
const HELD_TIME: Duration = Duration::from_secs(90);

/// Initiations of both sides that leave within a round trip of each other cross. Longer than any round
/// trip on which people use a mesh, shorter than REKEY_TIMEOUT (paper §6.1).
const CROSSING: Duration = Duration::from_secs(1);

/// WireGuard repeats an initiation that has no answer after REKEY_TIMEOUT and some jitter (paper §6.1): what follows one within
/// this time repeats it.
const REPEATED: Duration = Duration::from_secs(10);
/// How many initiations in a row go to the peer's wice: there may be none that takes them, though WireGuard would. The second may
/// be one whose first was dropped for one that was lost, and both sides repeat theirs together.
const ENCLOSED_IN_A_ROW: u32 = 2;

const SLOT_LABEL: &[u8] = b"wice-slot-v1\0";
/// Slots are 127.1.0.0 to 127.255.255.254: 127.0.0.0/16 is in use on many machines (resolvers), and
/// 127.255.255.255 is a broadcast address.
const FIRST_SLOT: u32 = 0x7f01_0000;
const SLOTS: u64 = 0x7fff_ffff - 0x7f01_0000;

/// The slot of a peer: a hash of its key alone, so that it is the same on every node. Among 1,000
/// peers one in 33 networks has two that share one.
pub fn slot_of(key: &PublicKey) -> Ipv4Addr {
    let digest = Sha256::new()
        .chain_update(SLOT_LABEL)
        .chain_update(key.0)
        .finalize();
    let number = digest
        .iter()
        .take(8)
        .fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    // The remainder is below 2^24.
    let offset = u32::try_from(number % SLOTS).unwrap_or(0);
    Ipv4Addr::from(FIRST_SLOT + offset)
}

/// Why a datagram went nowhere; each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// To an address that is no peer's slot.
    UnknownSlot,
    /// To a slot that several share, and for none of them.
    UnknownRecipient,
    /// From an address that is no peer's, naming no session of ours.
    UnknownSender,
}

/// Who is to get what WireGuard sent to a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipients {
    /// This peer.
    One(PeerId),
    /// All who share the slot: which of them is meant cannot be seen, and the others' WireGuard
    /// drops it.
    All(Vec<PeerId>),
}

/// Whose a datagram from the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The peer.
    pub peer: PeerId,
    /// Its slot, which WireGuard knows it by.
    pub slot: Ipv4Addr,
    /// It names a session that our WireGuard has with this peer, or none of the peer's has begun
    /// since we started. An initiation names none.
    pub in_session: bool,
}

/// What a peer has carried through its slot. Bytes count UDP payloads, as `wg show` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotStats {
    /// From the peer to WireGuard.
    pub rx_bytes: u64,
    /// From WireGuard to the peer, once for all routes.
    pub tx_bytes: u64,
    /// When something came from the peer last.
    pub last_received: Option<Instant>,
    /// When WireGuard sent something last, whether or not there was a path.
    pub last_wanted: Option<Instant>,
}

/// What was dropped, by cause, in datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounters {
    /// At a slot: not from WireGuard's address and port, or not by the loopback interface.
    pub wrong_source: u64,
    /// Either way: WireGuard's port is not bound.
    pub no_port: u64,
    /// At a slot: no message of WireGuard's.
    pub malformed_out: u64,
    /// At an address that is no peer's slot.
    pub unknown_slot: u64,
    /// At a shared slot: a handshake for none of those who share it.
    pub unknown_recipient: u64,
    /// At a shared slot: of a session that began before us, sent to all who share it. Not lost.
    pub to_all: u64,
    /// For a peer without a path; its latest initiation is kept.
    pub no_path: u64,
    /// From the network: no message of WireGuard's.
    pub malformed_in: u64,
    /// From the network: an initiation from an address that is no peer's.
    pub unknown_initiation: u64,
    /// From the network: an initiation that has crossed one of ours.
    pub crossed: u64,
    /// From the network: anything else from such an address, naming no session of ours.
    pub unknown_sender: u64,
}

impl SlotCounters {
    /// All of them: a stable name, and the count. `to_all` is not among them, for nothing was lost.
    pub fn dropped(&self) -> [(&'static str, u64); 9] {
        [
            ("wrong-source", self.wrong_source),
            ("no-port", self.no_port),
            ("malformed-out", self.malformed_out),
            ("unknown-slot", self.unknown_slot),
            ("unknown-recipient", self.unknown_recipient),
            ("no-path", self.no_path),
            ("malformed-in", self.malformed_in),
            ("unknown-initiation", self.unknown_initiation),
            ("unknown-sender", self.unknown_sender),
        ]
    }
}

/// Which peers stand behind which slots, and the sessions that tell them apart.
#[derive(Debug, Default)]
pub struct Slots {
    peers: BTreeMap<PeerId, Entry>,
    by_slot: BTreeMap<Ipv4Addr, Vec<PeerId>>,
    /// Sessions of our WireGuard, by its own index.
    by_index: BTreeMap<u32, PeerId>,
    /// What was dropped; the I/O side counts what it drops itself.
    pub counters: SlotCounters,
}

#[derive(Debug)]
struct Entry {
    key: PublicKey,
    slot: Ipv4Addr,
    mac1: Mac1Key,
    /// How our WireGuard is known to the peer.
    local: Indices,
    /// How the peer is known to our WireGuard.
    remote: Indices,
    stats: SlotStats,
    /// The latest initiation that found no path, or waits for what WireGuard answers to the peer's.
    held: Option<(Box<[u8; INITIATION_LEN]>, Instant)>,
    /// Where the peer's latest initiation came from, and when.
    asked: Option<(Arrival, Instant)>,
    /// When an initiation of ours left that has no answer yet.
    initiated: Option<Instant>,
    /// How many in a row went to the peer's wice rather than its WireGuard, and when the last did.
    enclosed: (u32, Option<Instant>),
}

impl Slots {
    /// A peer of the interface; known already, it stays as it is.
    pub fn add(&mut self, peer: PeerId, key: &PublicKey) {
        if self.peers.contains_key(&peer) {
            return;
        }
        let slot = slot_of(key);
        let entry = Entry {
            key: *key,
            slot,
            mac1: Mac1Key::of(key),
            local: Indices::default(),
            remote: Indices::default(),
            stats: SlotStats::default(),
            held: None,
            asked: None,
            initiated: None,
            enclosed: (0, None),
        };
        self.peers.insert(peer, entry);
        self.by_slot.entry(slot).or_default().push(peer);
    }

    /// The peer is gone, and its sessions with it.
    pub fn remove(&mut self, peer: PeerId) {
        let Some(entry) = self.peers.remove(&peer) else {
            return;
        };
        for index in entry.local.iter() {
            if self.by_index.get(&index) == Some(&peer) {
                self.by_index.remove(&index);
            }
        }
        if let Some(sharing) = self.by_slot.get_mut(&entry.slot) {
            sharing.retain(|other| *other != peer);
            if sharing.is_empty() {
                self.by_slot.remove(&entry.slot);
            }
        }
    }

    /// The peer's slot.
    pub fn slot(&self, peer: PeerId) -> Option<Ipv4Addr> {
        Some(self.peers.get(&peer)?.slot)
    }

    /// Its name.
    pub fn key(&self, peer: PeerId) -> Option<&PublicKey> {
        Some(&self.peers.get(&peer)?.key)
    }

    /// What the peer has carried.
    pub fn stats(&self, peer: PeerId) -> Option<SlotStats> {
        Some(self.peers.get(&peer)?.stats)
    }

    /// Counts what was handed to WireGuard.
    pub fn note_received(&mut self, peer: PeerId, bytes: usize, now: Instant) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.stats.rx_bytes += bytes as u64;
            entry.stats.last_received = Some(now);
        }
    }

    /// Counts what WireGuard sent to the peer; `carried` says whether there was a way.
    pub fn note_sent(&mut self, peer: PeerId, bytes: usize, carried: bool, now: Instant) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.stats.tx_bytes += if carried { bytes as u64 } else { 0 };
            entry.stats.last_wanted = Some(now);
        }
    }

    /// Who is to get what WireGuard sent to `slot`: `message`, which `datagram` is or begins. On a
    /// shared slot a handshake names its recipient by mac1, the rest by an index; one of a session
    /// that began before we could see whose it is goes to all.
    pub fn recipients(
        &mut self,
        slot: Ipv4Addr,
        message: Message,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Recipients, Refusal> {
        let Some(sharing) = self.by_slot.get(&slot) else {
            self.counters.unknown_slot += 1;
            return Err(Refusal::UnknownSlot);
        };
        let of = |wanted: &dyn Fn(&Entry) -> bool| {
            let fits = |peer: &&PeerId| self.peers.get(peer).is_some_and(wanted);
            sharing.iter().find(fits).copied()
        };
        let found = match (sharing.as_slice(), message) {
            ([only], _) => Some(*only),
            (_, Message::Initiation { .. } | Message::Response { .. }) => {
                let named = of(&|entry| entry.mac1.fits(datagram));
                if named.is_none() {
                    self.counters.unknown_recipient += 1;
                    return Err(Refusal::UnknownRecipient);
                }
                named
            }
            (_, Message::Cookie { receiver } | Message::Data { receiver, .. }) => {
                of(&|entry| entry.remote.has(receiver, now))
            }
        };
        let Some(peer) = found else {
            self.counters.to_all += 1;
            return Ok(Recipients::All(sharing.clone()));
        };
        self.learn_outbound(peer, message, now);
        Ok(Recipients::One(peer))
    }

    /// Whose a message from the network is: of the session that it names, or else of the peer whose
    /// address it came from. That it came from there proves little; WireGuard authenticates it.
    pub fn sender(
        &mut self,
        by_address: Option<PeerId>,
        message: Message,
        now: Instant,
    ) -> Result<Sender, Refusal> {
        let by_index = message.receiver().and_then(|receiver| {
            let peer = self.by_index.get(&receiver)?;
            let entry = self.peers.get(peer)?;
            entry.local.has(receiver, now).then_some(*peer)
        });
        let found = by_index.or(by_address);
        let Some((peer, entry)) = found.and_then(|peer| Some((peer, self.peers.get_mut(&peer)?)))
        else {
            match message {
                Message::Initiation { .. } => self.counters.unknown_initiation += 1,
                Message::Response { .. } | Message::Cookie { .. } | Message::Data { .. } => {
                    self.counters.unknown_sender += 1;
                }
            }
            return Err(Refusal::UnknownSender);
        };
        let slot = entry.slot;
        if let (Message::Response { .. }, Some(_)) = (message, by_index) {
            entry.initiated = None;
        }
        let names_none = message.receiver().is_none();
        let in_session = names_none || by_index.is_some() || !entry.local.any(now);
        // Only what answers an initiation of ours tells how the peer is to be named: anybody can make
        // an initiation.
        if let (Message::Response { sender, .. }, Some(_)) = (message, by_index) {
            self.learn_remote(peer, sender, now);
        }
        Ok(Sender {
            peer,
            slot,
            in_session,
        })
    }

    /// Keeps an initiation until it can leave.
    pub fn hold(&mut self, peer: PeerId, initiation: &[u8], now: Instant) {
        if let (Some(entry), Ok(initiation)) = (
            self.peers.get_mut(&peer),
            <[u8; INITIATION_LEN]>::try_from(initiation),
        ) {
            entry.held = Some((Box::new(initiation), now + HELD_TIME));
        }
    }

    /// The initiation that waits for a path, unless it is too old to be answered.
    pub fn take_held(&mut self, peer: PeerId, now: Instant) -> Option<Box<[u8; INITIATION_LEN]>> {
        let (initiation, until) = self.peers.get_mut(&peer)?.held.take()?;
        (now < until).then_some(initiation)
    }

    /// An initiation of ours has left.
    pub fn note_initiated(&mut self, peer: PeerId, now: Instant) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.initiated = Some(now);
        }
    }

    /// Whether an initiation of the peer is to be dropped, because it has crossed one of ours. WireGuard
    /// answers every initiation and forgets its own: of two that cross neither comes to anything, and
    /// with traffic both ways so do those that follow, both 5 s later. The side with the greater key,
    /// `own`, goes on with its own; the other's WireGuard answers that.
    pub fn crosses(&mut self, peer: PeerId, own: &PublicKey, now: Instant) -> bool {
        let Some(entry) = self.peers.get(&peer) else {
            return false;
        };
        let open = entry.initiated.is_some_and(|at| now < at + CROSSING);
        let crosses = open && *own > entry.key;
        self.counters.crossed += u64::from(crosses);
        crosses
    }

    /// Whether the peer's initiations go before ours where two cross ([`Self::crosses`]).
    pub fn yields(&self, peer: PeerId, own: &PublicKey) -> bool {
        self.peers.get(&peer).is_some_and(|entry| *own < entry.key)
    }

    /// Whether the initiation that leaves now goes to the peer's wice. After two in a row one goes to its WireGuard.
    pub fn encloses_next(&mut self, peer: PeerId, now: Instant) -> bool {
        let Some(entry) = self.peers.get_mut(&peer) else {
            return false;
        };
        let (count, last) = entry.enclosed;
        let repeats = last.is_some_and(|at| now < at + REPEATED);
        let count = if repeats { count } else { 0 };
        let encloses = count < ENCLOSED_IN_A_ROW;
        entry.enclosed = if encloses {
            (count + 1, Some(now))
        } else {
            (0, None)
        };
        encloses
    }

    /// An initiation of the peer came in here and went to WireGuard.
    pub fn note_asked(&mut self, peer: PeerId, arrival: Arrival, now: Instant) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.asked = Some((arrival, now));
        }
    }

    /// Until when an answer of our WireGuard's to an initiation of the peer is to be expected, if one is. An initiation that it
    /// sends before that crosses: it was under way when that came, and WireGuard has forgotten it by the answer.
    pub fn answers_until(&self, peer: PeerId, now: Instant) -> Option<Instant> {
        let (_, asked) = self.peers.get(&peer)?.asked?;
        Some(asked + ANSWERING).filter(|until| now < *until)
    }

    /// Where a response or cookie goes: back to where the initiation came from, which may be before
    /// the peer has a path. Once.
    pub fn take_asked(&mut self, peer: PeerId, now: Instant) -> Option<Arrival> {
        let (arrival, asked) = self.peers.get_mut(&peer)?.asked.take()?;
        (now < asked + ANSWER_TIME).then_some(arrival)
    }

    /// What our WireGuard says of its sessions is true: it alone can send here.
    fn learn_outbound(&mut self, peer: PeerId, message: Message, now: Instant) {
        let (sender, receiver) = match message {
            Message::Initiation { sender } => (sender, None),
            Message::Response { sender, receiver } => (sender, Some(receiver)),
            Message::Cookie { .. } | Message::Data { .. } => return,
        };
        if let Some(before) = self.by_index.insert(sender, peer)
            && before != peer
            && let Some(entry) = self.peers.get_mut(&before)
        {
            entry.local.forget(sender);
        }
        let evicted = self
            .peers
            .get_mut(&peer)
            .and_then(|entry| entry.local.learn(sender, now));
        if let Some(index) = evicted {
            self.by_index.remove(&index);
        }
        if let Some(receiver) = receiver {
            self.learn_remote(peer, receiver, now);
        }
    }

    /// The first of those who share a slot to use an index keeps it: none can take another's.
    fn learn_remote(&mut self, peer: PeerId, index: u32, now: Instant) {
        let Some(slot) = self.slot(peer) else {
            return;
        };
        let sharing = self.by_slot.get(&slot).into_iter().flatten();
        let taken = sharing.filter(|other| **other != peer).any(|other| {
            self.peers
                .get(other)
                .is_some_and(|entry| entry.remote.has(index, now))
        });
        if let Some(entry) = self.peers.get_mut(&peer).filter(|_| !taken) {
            entry.remote.learn(index, now);
        }
    }
}
