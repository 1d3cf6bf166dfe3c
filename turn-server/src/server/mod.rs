//! The server without its sockets: messages, payloads and time in; commands and forwards out.
//!
//! One [`Server`] a thread; what threads share (ports, quotas, reservations) they touch when allocations come and go, never for
//! a packet. Nothing is kept for who has not authenticated.

mod allocate;
mod allocation;
mod auth;
mod config;
mod data;
mod discovery;
mod error;
mod limiter;
mod mobility;
mod nonce;
mod policy;
mod ports;
mod prefix;
mod quota;
mod refusal;
mod requests;
mod reservation;
mod tcp;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use allocate::Opening;
use allocation::{Allocation, Family};
use auth::{Author, MAX_REQUEST, printable};
pub use config::{
    Config, Credentials, DEFAULT_CHALLENGES, DEFAULT_QUOTAS, MAX_PEERS, NONCE_LIFETIME,
    RelayConfig, mint,
};
pub use data::data_indication;
use discovery::Discovery;
pub use error::ErrorCode;
use limiter::Limiter;
pub use limiter::Rate;
pub use mobility::{Arrival, Claim, Handover};
pub use nonce::{NonceKey, nonce_key};
pub use policy::{PeerPolicy, Verdict};
pub use ports::{DEFAULT_PORTS, MAX_SHARDS, Ports};
pub use prefix::{Prefix, PrefixError};
pub use quota::{Exceeded, Grant, Ledger, Quotas};
use refusal::Notices;
pub use refusal::{Notice, Refusal};
pub use reservation::{RESERVATION_LIFETIME, Reservations};
use tcp::PeerConnection;
pub use tcp::{Direction, thread_of};
pub(crate) use types::source_of;
pub use types::{
    ClientAddr, Command, ConnectionId, Forward, Framing, IcmpError, Now, OpenError, PeerAddr,
    RelayAddr, RelayId, RelayKind, ToClient, Transport,
};

use crate::codec::{Class, Hash, Key, Message, TransactionId, Writer, attribute, method};

/// What all threads share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Quotas in use.
    pub ledger: Arc<Ledger>,
    /// Ports held for tokens.
    pub reservations: Arc<Reservations>,
}

impl Shared {
    /// Nothing in use. `start` is any instant before the first packet.
    pub fn new(start: Instant) -> Self {
        Self {
            ledger: Ledger::new(start),
            reservations: Arc::default(),
        }
    }
}

/// What a server did, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Binding requests answered.
    pub bindings: u64,
    /// Allocations begun.
    pub allocated: u64,
    /// Allocations that ended.
    pub freed: u64,
    /// Allocations that followed their client to another address.
    pub moved: u64,
    /// Requests refused, in the order of [`ErrorCode::ALL`].
    pub refused: [u64; ErrorCode::ALL.len()],
    /// Challenges not sent because the source had its share.
    pub challenges_limited: u64,
    /// What was neither STUN nor ChannelData, or malformed.
    pub malformed: u64,
    /// Payloads from clients that were forwarded.
    pub packets_up: u64,
    /// Their bytes.
    pub bytes_up: u64,
    /// Payloads to clients that were forwarded.
    pub packets_down: u64,
    /// Their bytes.
    pub bytes_down: u64,
    /// Payloads from clients without allocation, channel or permission.
    pub unpermitted_up: u64,
    /// Payloads from peers without permission.
    pub unpermitted_down: u64,
    /// Payloads of users past their rate.
    pub over_rate: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct AllocationId(u32);

/// A relay socket, opening or open.
#[derive(Debug)]
struct Relay {
    allocation: AllocationId,
    local: SocketAddr,
    external: RelayAddr,
    kind: RelayKind,
    ports: Arc<Ports>,
}

/// One thread's server.
#[derive(Debug)]
pub struct Server {
    config: Arc<Config>,
    shared: Shared,
    shard: u8,
    rng: ChaCha8Rng,
    limiter: Limiter,
    discovery: Discovery,
    draining: bool,
    clients: HashMap<ClientAddr, AllocationId>,
    /// Whose payload came last: most come in runs.
    last: Option<(ClientAddr, AllocationId)>,
    allocations: Vec<Option<Box<Allocation>>>,
    free_allocations: Vec<u32>,
    relays: Vec<Option<Relay>>,
    free_relays: Vec<u32>,
    /// Names that are free once the shell has done every command: until then they have a socket.
    closing: Vec<u32>,
    /// Our own relayed addresses, for relay to relay without a trip through the kernel.
    by_address: HashMap<RelayAddr, RelayId>,
    timers: BTreeSet<(Instant, AllocationId)>,
    sweep: Option<Instant>,
    /// By the socket that is being opened.
    openings: BTreeMap<RelayId, Box<Opening>>,
    connections: BTreeMap<ConnectionId, PeerConnection>,
    connection_timers: BTreeSet<(Instant, ConnectionId)>,
    /// Connections of clients that are joined with a peer's.
    data_clients: HashMap<ClientAddr, ConnectionId>,
    commands: VecDeque<Command>,
    notices: Notices,
    counters: Counters,
}

/// How a response is addressed and sealed.
#[derive(Clone)]
struct Reply {
    client: ClientAddr,
    method: u16,
    id: TransactionId,
    fingerprint: bool,
    seal: Option<(Key, Hash)>,
}

impl Server {
    /// A server without allocations. `seed` must be unpredictable; `shard` is the thread's number, below [`MAX_SHARDS`].
    pub fn new(config: Arc<Config>, shared: Shared, shard: u8, seed: [u8; 32], now: Now) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        let limiter = Limiter::new(now.instant, rng.next_u64());
        let notices = Notices::new(now.instant, rng.next_u64());
        Self {
            config,
            shared,
            shard,
            rng,
            limiter,
            discovery: Discovery::default(),
            draining: false,
            clients: HashMap::new(),
            last: None,
            allocations: Vec::new(),
            free_allocations: Vec::new(),
            relays: Vec::new(),
            free_relays: Vec::new(),
            closing: Vec::new(),
            by_address: HashMap::new(),
            timers: BTreeSet::new(),
            sweep: None,
            openings: BTreeMap::new(),
            connections: BTreeMap::new(),
            connection_timers: BTreeSet::new(),
            data_clients: HashMap::new(),
            commands: VecDeque::new(),
            notices,
            counters: Counters::default(),
        }
    }

    /// One whole frame of a client: a STUN message or ChannelData. Returns where `payload` (a part of `frame`) goes, if it
    /// carries one that is let through.
    pub fn handle_client<'a>(
        &mut self,
        client: &ClientAddr,
        frame: &'a [u8],
        now: Now,
    ) -> Option<(Forward, &'a [u8])> {
        if crate::codec::is_channel_data(frame) {
            return self.handle_channel_data(client, frame, now.instant);
        }
        let Ok(message) = Message::parse(frame) else {
            self.counters.malformed += 1;
            return None;
        };
        match (message.class(), message.method()) {
            (Class::Indication, method::SEND) => {
                return self.handle_send(client, &message, now.instant);
            }
            (Class::Request, _) if frame.len() <= MAX_REQUEST => {
                self.handle_request(client, &message, now);
            }
            (Class::Request, _) => self.counters.malformed += 1,
            // Binding indications are keepalives; we ask nothing that could be answered.
            (Class::Indication | Class::Success | Class::Error, _) => {}
        }
        None
    }

    /// The client's connection is gone, and with it the allocation (RFC 8656 §5), unless the client may come back with a ticket.
    pub fn handle_disconnected(&mut self, client: &ClientAddr, now: Instant) {
        self.disconnect_data(client);
        if let Some(&id) = self.clients.get(client) {
            self.disconnect(id, now);
        }
    }

    /// A connection without an allocation may be closed when it idles.
    pub fn has_allocation(&self, client: &ClientAddr) -> bool {
        self.clients.contains_key(client)
    }

    /// When [`Server::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let allocation = self.timers.first().map(|(at, _)| *at);
        let connection = self.connection_timers.first().map(|(at, _)| *at);
        [allocation, connection, self.sweep]
            .into_iter()
            .flatten()
            .min()
    }

    /// Ends what has expired.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.sweep.is_some_and(|at| at <= now) {
            self.sweep = None;
            self.shared.reservations.sweep(now);
        }
        self.expire_connections(now);
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                return;
            }
            self.expire(id, now);
        }
    }

    /// What the shell is to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        let command = self.commands.pop_front();
        if command.is_none() {
            self.free_relays.append(&mut self.closing);
        }
        command
    }

    /// Why requests were refused, for the operator: at most 5 a second, and a source's once a minute.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop()
    }

    /// What was done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Allocations now.
    pub fn allocations(&self) -> usize {
        self.clients.len()
    }

    /// A new configuration. Allocations stay, also those whose user or secret is gone, until they would have to be
    /// refreshed; permissions and channels that it denies go at once.
    pub fn set_config(&mut self, config: Arc<Config>) {
        for allocation in self.allocations.iter_mut().flatten() {
            allocation.revoke(|peer| config.policy.judge(peer) != Verdict::Denied);
        }
        self.config = config;
        self.revoke_connections();
    }

    /// No new allocations from now on; those that are there go on.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    fn handle_request(&mut self, client: &ClientAddr, message: &Message<'_>, now: Now) {
        let mut reply = Reply {
            client: *client,
            method: message.method(),
            id: message.id(),
            fingerprint: message.has_fingerprint(),
            seal: None,
        };
        if message.method() == method::BINDING {
            return self.handle_binding(reply, message, now);
        }
        let known = matches!(
            message.method(),
            method::ALLOCATE | method::REFRESH | method::CREATE_PERMISSION | method::CHANNEL_BIND
        ) || self.config.tcp_relay
            && matches!(message.method(), method::CONNECT | method::CONNECTION_BIND);
        if !known {
            // Not worth a challenge: nobody may do it.
            self.counters.malformed += 1;
            return;
        }
        let source = source_of(client.remote);
        let existing = self.clients.get(client).copied();
        let known = match message.method() {
            method::CONNECTION_BIND => self.owner_of_connection(message),
            _ => existing.and_then(|id| self.get(id)).map(Allocation::known),
        };
        let author = match auth::authenticate(&self.config, message, source, known, now) {
            Ok(author) => author,
            Err(why) => return self.refuse_stranger(&reply, message, why, now),
        };
        reply.seal = Some((author.key.clone(), author.hash));
        if !message.unknown().is_empty() {
            self.notify(&reply, message, ErrorCode::UnknownAttribute.into(), now);
            return self.refuse_unknown(&reply, message.unknown());
        }
        let done = self.handle_authentic(&reply, message, author, existing, now);
        if let Err(why) = done {
            self.notify(&reply, message, why, now);
            self.refuse(&reply, why.code());
        }
    }

    fn handle_authentic(
        &mut self,
        reply: &Reply,
        message: &Message<'_>,
        author: Author,
        existing: Option<AllocationId>,
        now: Now,
    ) -> Result<(), Refusal> {
        let now = now.instant;
        if reply.method == method::ALLOCATE {
            return match existing {
                Some(id) => self.allocate_again(reply, id, &author),
                None => self.allocate(reply, message, author, now),
            };
        }
        if reply.method == method::CONNECTION_BIND {
            return self.connection_bind(reply, message, &author);
        }
        let ticket = message.get(attribute::MOBILITY_TICKET);
        let moved = match (existing, ticket) {
            (None, Some(ticket)) if reply.method == method::REFRESH => {
                match self.move_here(reply, ticket, message, &author)? {
                    Some(id) => Some(id),
                    None => return Ok(()),
                }
            }
            (existing, _) => existing,
        };
        let id = moved.ok_or(ErrorCode::AllocationMismatch)?;
        let owner = self.get(id).map(|allocation| &*allocation.username);
        if owner != Some(&*author.username) {
            return Err(ErrorCode::WrongCredentials.into());
        }
        match reply.method {
            method::REFRESH => self.refresh(reply, message, id, now),
            method::CREATE_PERMISSION => self.create_permission(reply, message, id, now),
            method::CONNECT => self.connect(reply, message, id, now),
            _ => self.channel_bind(reply, message, id, now),
        }
    }

    /// 400, 401 or 438 for somebody who has not authenticated: rate-limited, unsealed.
    fn refuse_stranger(&mut self, reply: &Reply, message: &Message<'_>, why: Refusal, now: Now) {
        let (code, source) = (why.code(), source_of(reply.client.remote));
        if !self
            .limiter
            .allow(self.config.challenges, source, now.instant)
        {
            self.counters.challenges_limited += 1;
            let (client, method) = (&reply.client, reply.method);
            let notices = &mut self.notices;
            return notices.push(client, method, None, Refusal::Rationed, now.instant);
        }
        self.notify(reply, message, why, now);
        self.count_refusal(code);
        let mut writer = Writer::new(Class::Error, reply.method, reply.id);
        writer.add_error(code.code(), code.reason());
        if code.is_challenge() {
            auth::add_challenge(&mut writer, &self.config, source, now);
        }
        self.send(reply, writer);
    }

    /// The operator's part of a refusal.
    fn notify(&mut self, reply: &Reply, message: &Message<'_>, why: Refusal, now: Now) {
        let user = message.get(attribute::USERNAME).and_then(printable);
        self.notices
            .push(&reply.client, reply.method, user, why, now.instant);
    }

    fn refuse(&mut self, reply: &Reply, code: ErrorCode) {
        self.count_refusal(code);
        let mut writer = Writer::new(Class::Error, reply.method, reply.id);
        writer.add_error(code.code(), code.reason());
        self.send(reply, writer);
    }

    fn refuse_unknown(&mut self, reply: &Reply, unknown: &[u16]) {
        let code = ErrorCode::UnknownAttribute;
        self.count_refusal(code);
        let mut writer = Writer::new(Class::Error, reply.method, reply.id);
        writer.add_error(code.code(), code.reason());
        let list: Vec<u8> = unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect();
        writer.add(attribute::UNKNOWN_ATTRIBUTES, &list);
        self.send(reply, writer);
    }

    fn count_refusal(&mut self, code: ErrorCode) {
        for (count, counted) in self.counters.refused.iter_mut().zip(ErrorCode::ALL) {
            *count += u64::from(counted == code);
        }
    }

    fn send(&mut self, reply: &Reply, writer: Writer) {
        let seal = reply.seal.as_ref().map(|(key, hash)| (key, *hash));
        self.commands.push_back(Command::Send {
            client: reply.client,
            message: writer.finish(seal, reply.fingerprint),
        });
    }

    /// The allocation of who sends a payload.
    fn sender(&mut self, client: &ClientAddr) -> Option<AllocationId> {
        if let Some((last, id)) = &self.last
            && last == client
        {
            return Some(*id);
        }
        let id = self.clients.get(client).copied()?;
        self.last = Some((*client, id));
        Some(id)
    }

    fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.allocations.get(id.0 as usize)?.as_deref()
    }

    fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.allocations.get_mut(id.0 as usize)?.as_deref_mut()
    }

    fn relay(&self, relay: RelayId) -> Option<&Relay> {
        self.relays.get(relay.0 as usize)?.as_ref()
    }

    /// Relayed addresses whose time is over go; without any left, the allocation.
    fn expire(&mut self, id: AllocationId, now: Instant) {
        let Some(allocation) = self.get(id) else {
            return;
        };
        let expired: Vec<Family> = allocation
            .all_relayed()
            .filter(|(_, relayed)| relayed.expires <= now)
            .map(|(family, _)| family)
            .collect();
        for family in expired {
            self.close_relay(id, family);
        }
        self.settle(id);
    }

    /// After relayed addresses changed: the timer, or the end.
    fn settle(&mut self, id: AllocationId) {
        let Some(allocation) = self.get(id) else {
            return;
        };
        let (old, next) = (
            allocation.due,
            allocation.all_relayed().map(|(_, r)| r.expires).min(),
        );
        let Some(next) = next else {
            return self.delete(id);
        };
        self.timers.remove(&(old, id));
        self.timers.insert((next, id));
        if let Some(allocation) = self.get_mut(id) {
            allocation.due = next;
        }
    }

    fn delete(&mut self, id: AllocationId) {
        for connection in self.connections_of(id) {
            self.close_connection(connection);
        }
        for family in Family::BOTH {
            self.close_relay(id, family);
        }
        if self.remove(id).is_some() {
            self.counters.freed += 1;
        }
    }

    /// Takes an allocation out of its tables; its relayed addresses are another matter.
    fn remove(&mut self, id: AllocationId) -> Option<Box<Allocation>> {
        let slot = self.allocations.get_mut(id.0 as usize);
        let allocation = slot.and_then(Option::take)?;
        self.timers.remove(&(allocation.due, id));
        self.clients.remove(&allocation.client);
        self.last = None;
        self.free_allocations.push(id.0);
        Some(allocation)
    }

    fn close_relay(&mut self, id: AllocationId, family: Family) {
        let Some(allocation) = self.get_mut(id) else {
            return;
        };
        let Some(relayed) = allocation.relayed(family) else {
            return;
        };
        allocation.set_relayed(family, None);
        self.forget_relay(relayed.relay);
        self.commands.push_back(Command::CloseRelay {
            relay: relayed.relay,
        });
    }

    /// Frees the name and the port of a relay socket.
    fn forget_relay(&mut self, relay: RelayId) {
        let slot = self.relays.get_mut(relay.0 as usize);
        let Some(gone) = slot.and_then(Option::take) else {
            return;
        };
        self.by_address.remove(&gone.external);
        gone.ports.release(gone.local.port());
        self.closing.push(relay.0);
    }

    fn relay_config(&self, family: Family) -> Option<&RelayConfig> {
        match family {
            Family::V4 => self.config.relay_v4.as_ref(),
            Family::V6 => self.config.relay_v6.as_ref(),
        }
    }
}

/// An address as STUN tells it: IPv4 as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
