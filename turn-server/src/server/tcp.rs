//! TCP allocations (RFC 6062): connections between the relayed address and peers, each joined with a connection of the client's
//! once that names it. Bytes of joined connections are the shell's; here are names, rights and times.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::RngCore as _;

use super::allocation::Family;
use super::auth::{Author, Known};
use super::error::ErrorCode;
use super::policy::Verdict;
use super::refusal::Refusal;
use super::types::{ClientAddr, Command, ConnectionId, PeerAddr, RelayId, Transport};
use super::{AllocationId, Reply, Server};
use crate::codec::{Class, Message, Writer, attribute, method};

/// How long a peer may take to accept (RFC 6062 §5.2: at least 30 s).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection to a peer waits for its client's (RFC 6062 §5.2, §5.3).
const BIND_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections of an allocation: each may hold two open files and 128 KiB.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// Bits of a CONNECTION-ID that are chosen at random; those above are the thread, which clients' connections are brought to.
const RANDOM_BITS: u32 = 24;

/// One connection with a peer.
#[derive(Debug)]
pub(super) struct PeerConnection {
    allocation: AllocationId,
    peer: PeerAddr,
    state: State,
    /// When it ends unless its state changes before.
    due: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// The peer has not accepted yet; who is told.
    Connecting(Box<Reply>),
    /// The client has been told its name.
    Waiting,
    /// Joined.
    Bound(ClientAddr),
}

/// Which way bytes of a joined connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// The thread that a ConnectionBind is for, if these bytes are one.
pub fn thread_of(frame: &[u8]) -> Option<u8> {
    const CONNECTION_BIND: [u8; 2] = method::CONNECTION_BIND.to_be_bytes();
    if !frame.starts_with(&CONNECTION_BIND) {
        return None;
    }
    let [shard, ..] = Message::parse(frame).ok()?.word(attribute::CONNECTION_ID)?;
    Some(shard)
}

impl Server {
    /// The shell's answer to [`Command::ConnectPeer`].
    pub fn handle_peer_connected(
        &mut self,
        connection: ConnectionId,
        connected: bool,
        now: Instant,
    ) {
        if !connected {
            return self.fail_connect(connection);
        }
        let Some(found) = self.connections.get_mut(&connection) else {
            self.commands.push_back(Command::ClosePeer { connection });
            return;
        };
        let before = std::mem::replace(&mut found.state, State::Waiting);
        let State::Connecting(reply) = before else {
            found.state = before;
            return;
        };
        self.set_due(connection, Some(now + BIND_TIMEOUT));
        let mut writer = Writer::new(Class::Success, reply.method, reply.id);
        writer.add(attribute::CONNECTION_ID, &connection.0.to_be_bytes());
        self.send(&reply, writer);
    }

    /// A peer has connected to a relayed address. `None`: it is to be closed.
    pub fn handle_peer_accepted(
        &mut self,
        relay: RelayId,
        from: SocketAddr,
        now: Instant,
    ) -> Option<ConnectionId> {
        let slot = self.relay(relay)?;
        let (id, peer) = (
            slot.allocation,
            PeerAddr(self.as_clients_see(slot.local, slot.external, from)),
        );
        let allocation = self.get(id)?;
        let client = allocation.client;
        if !allocation.is_permitted(peer.0.ip(), now) {
            self.counters.unpermitted_down += 1;
            return None;
        }
        let connection = self.add_connection(id, peer, State::Waiting, now + BIND_TIMEOUT)?;
        let indication = (Class::Indication, method::CONNECTION_ATTEMPT);
        let mut writer = Writer::new(indication.0, indication.1, self.new_id());
        writer.add(attribute::CONNECTION_ID, &connection.0.to_be_bytes());
        writer.add_xor_address(attribute::XOR_PEER_ADDRESS, peer.0);
        let message = writer.finish(None, false);
        self.commands.push_back(Command::Send { client, message });
        Some(connection)
    }

    /// The peer closed it, or it broke.
    pub fn handle_peer_closed(&mut self, connection: ConnectionId) {
        self.forget(connection);
    }

    /// Whether a joined connection may carry more now, or its user is past its rate.
    pub fn may_carry(&self, connection: ConnectionId, now: Instant) -> bool {
        let rate = self.config.quotas.user_bytes_per_second;
        let found = self.connections.get(&connection);
        found
            .and_then(|found| self.get(found.allocation))
            .is_some_and(|allocation| allocation.grant.is_within(rate, now))
    }

    /// Bytes that a joined connection carried.
    pub fn carried(
        &mut self,
        connection: ConnectionId,
        direction: Direction,
        bytes: usize,
        now: Instant,
    ) {
        let found = self.connections.get(&connection);
        if let Some(allocation) = found.and_then(|found| self.get(found.allocation)) {
            let rate = self.config.quotas.user_bytes_per_second;
            allocation.grant.charge(bytes, rate, now);
        }
        match direction {
            Direction::Up => self.counters.bytes_up += bytes as u64,
            Direction::Down => self.counters.bytes_down += bytes as u64,
        }
    }

    /// Whether a connection of a client is one half of a joined one.
    pub fn is_data_connection(&self, client: &ClientAddr) -> bool {
        self.data_clients.contains_key(client)
    }

    /// Connect (RFC 6062 §5.2).
    pub(super) fn connect(
        &mut self,
        reply: &Reply,
        message: &Message<'_>,
        id: AllocationId,
        now: Instant,
    ) -> Result<(), Refusal> {
        let allocation = self.get(id).ok_or(ErrorCode::AllocationMismatch)?;
        let connections = allocation.connections.as_ref();
        let connections = connections.ok_or(ErrorCode::BadRequest)?;
        let peer = self.peer_asked_for(message, id)?;
        let same = |connection: &ConnectionId| {
            let found = self.connections.get(connection);
            found.is_some_and(|found| found.peer == peer)
        };
        if connections.iter().any(same) {
            return Err(ErrorCode::ConnectionAlreadyExists.into());
        }
        let relayed = allocation.relayed(Family::of(peer.0.ip()));
        let relay = relayed.ok_or(ErrorCode::PeerAddressFamilyMismatch)?.relay;
        let state = State::Connecting(Box::new(reply.clone()));
        let connection = self.add_connection(id, peer, state, now + CONNECT_TIMEOUT);
        let connection = connection.ok_or(Refusal::PeersFull)?;
        let to = self.as_bound(peer.0);
        self.commands.push_back(Command::ConnectPeer {
            connection,
            relay,
            to,
        });
        Ok(())
    }

    /// ConnectionBind (RFC 6062 §5.4): this connection of the client's is joined with a peer's.
    pub(super) fn connection_bind(
        &mut self,
        reply: &Reply,
        message: &Message<'_>,
        author: &Author,
    ) -> Result<(), Refusal> {
        let client = reply.client;
        let taken = self.clients.contains_key(&client) || self.is_data_connection(&client);
        if client.transport == Transport::Udp || taken {
            return Err(ErrorCode::BadRequest.into());
        }
        let connection = named(message).ok_or(ErrorCode::BadRequest)?;
        let found = self.connections.get(&connection);
        let found = found.filter(|found| matches!(found.state, State::Waiting));
        let found = found.ok_or(ErrorCode::BadRequest)?;
        let owner = self.get(found.allocation).map(|a| &*a.username);
        if owner != Some(&*author.username) {
            return Err(ErrorCode::WrongCredentials.into());
        }
        self.set_due(connection, None);
        if let Some(found) = self.connections.get_mut(&connection) {
            found.state = State::Bound(client);
        }
        self.data_clients.insert(client, connection);
        let mut writer = Writer::new(Class::Success, reply.method, reply.id);
        writer.add(attribute::CONNECTION_ID, &connection.0.to_be_bytes());
        self.send(reply, writer);
        self.commands
            .push_back(Command::Join { connection, client });
        Ok(())
    }

    /// Whose connection a ConnectionBind names: its key outlives credentials as that of other requests does.
    pub(super) fn owner_of_connection(&self, message: &Message<'_>) -> Option<Known<'_>> {
        let found = self.connections.get(&named(message)?)?;
        Some(self.get(found.allocation)?.known())
    }

    /// A client's connection is gone: so is the peer's that it was joined with.
    pub(super) fn disconnect_data(&mut self, client: &ClientAddr) {
        if let Some(connection) = self.data_clients.remove(client) {
            self.close_connection(connection);
        }
    }

    pub(super) fn connections_of(&self, id: AllocationId) -> Vec<ConnectionId> {
        let connections = self.get(id).and_then(|a| a.connections.clone());
        connections.unwrap_or_default()
    }

    pub(super) fn close_connection(&mut self, connection: ConnectionId) {
        if self.forget(connection).is_some() {
            self.commands.push_back(Command::ClosePeer { connection });
        }
    }

    /// Closes connections with peers that are denied now.
    pub(super) fn revoke_connections(&mut self) {
        let denied =
            |found: &PeerConnection| self.config.policy.judge(found.peer.0.ip()) == Verdict::Denied;
        let denied: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, found)| denied(found))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in denied {
            self.close_connection(connection);
        }
    }

    /// Ends what nobody accepted or came for.
    pub(super) fn expire_connections(&mut self, now: Instant) {
        while let Some(&(at, connection)) = self.connection_timers.first() {
            if at > now {
                return;
            }
            let found = self.connections.get(&connection);
            if found.is_some_and(|found| matches!(found.state, State::Connecting(_))) {
                self.commands.push_back(Command::ClosePeer { connection });
                self.fail_connect(connection);
            } else {
                self.close_connection(connection);
            }
        }
    }

    fn fail_connect(&mut self, connection: ConnectionId) {
        let Some(found) = self.forget(connection) else {
            return;
        };
        if let State::Connecting(reply) = found.state {
            self.refuse(&reply, ErrorCode::ConnectionFailed);
        }
    }

    /// `None`: the allocation has as many as it may have.
    fn add_connection(
        &mut self,
        id: AllocationId,
        peer: PeerAddr,
        state: State,
        due: Instant,
    ) -> Option<ConnectionId> {
        let count = self.get(id)?.connections.as_ref()?.len();
        if count >= MAX_CONNECTIONS {
            return None;
        }
        let thread = u32::from(self.shard) << RANDOM_BITS;
        let connection = loop {
            let random = self.rng.next_u32() >> (u32::BITS - RANDOM_BITS);
            let connection = ConnectionId(thread | random);
            if !self.connections.contains_key(&connection) {
                break connection;
            }
        };
        self.get_mut(id)?.connections.as_mut()?.push(connection);
        let found = PeerConnection {
            allocation: id,
            peer,
            state,
            due: None,
        };
        self.connections.insert(connection, found);
        self.set_due(connection, Some(due));
        Some(connection)
    }

    fn set_due(&mut self, connection: ConnectionId, due: Option<Instant>) {
        let Some(found) = self.connections.get_mut(&connection) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut found.due, due) {
            self.connection_timers.remove(&(old, connection));
        }
        self.connection_timers
            .extend(due.map(|due| (due, connection)));
    }

    fn forget(&mut self, connection: ConnectionId) -> Option<PeerConnection> {
        self.set_due(connection, None);
        let found = self.connections.remove(&connection)?;
        if let State::Bound(client) = found.state {
            self.data_clients.remove(&client);
        }
        let allocation = self.get_mut(found.allocation);
        if let Some(connections) = allocation.and_then(|a| a.connections.as_mut()) {
            connections.retain(|other| *other != connection);
        }
        Some(found)
    }
}

fn named(message: &Message<'_>) -> Option<ConnectionId> {
    let id = message.word(attribute::CONNECTION_ID)?;
    Some(ConnectionId(u32::from_be_bytes(id)))
}
