//! TCP allocations (RFC 6062): peers' connections, and the clients' that they are joined with.

use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::listen;
use super::peers::{HIGH_WATER, LOW_WATER, PeerStream};
use super::stream::{Closed, Stream};
use super::token::Token;
use super::worker::Worker;
use crate::server::{ClientAddr, ConnectionId, Direction, Now, OpenError, RelayId};
use std::net::SocketAddr;

/// Peers accepted at one relayed address before the others have their turn.
const ACCEPTS_A_TURN: usize = 16;
/// Reads of one connection before the others have their turn.
const READS_A_TURN: usize = 4;
/// When those of users past their rate are looked at again.
pub(super) const THROTTLE_STEP: Duration = Duration::from_millis(10);

impl Worker {
    pub(super) fn open_tcp_relay(
        &mut self,
        relay: RelayId,
        local: SocketAddr,
    ) -> Result<(), OpenError> {
        let listener = listen::open_tcp(local, true).map_err(|error| {
            if error.kind() == std::io::ErrorKind::AddrInUse {
                return OpenError::PortInUse;
            }
            tracing::warn!(event = "turn-relay-not-opened", address = %local, %error);
            OpenError::Unable
        })?;
        self.add(&listener, Token::TcpRelay(relay.0), EventFlags::IN)
            .map_err(|_| OpenError::Unable)?;
        self.sockets.tcp_relays.insert(relay, listener);
        Ok(())
    }

    pub(super) fn connect_peer(
        &mut self,
        connection: ConnectionId,
        relay: RelayId,
        to: SocketAddr,
        now: Instant,
    ) {
        let listener = self.sockets.tcp_relays.get(&relay);
        let local = listener.and_then(|listener| listener.local_addr().ok());
        let begun = local.and_then(|from| PeerStream::connect(from, to).ok());
        if !begun.is_some_and(|peer| self.add_peer(connection, peer)) {
            self.server.handle_peer_connected(connection, false, now);
        }
    }

    pub(super) fn accept_peers(&mut self, relay: RelayId, now: Now) {
        for _ in 0..ACCEPTS_A_TURN {
            let Some(listener) = self.sockets.tcp_relays.get(&relay) else {
                return;
            };
            let (socket, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    return self.not_accepted(Token::TcpRelay(relay.0), &error, now.instant);
                }
            };
            let taken = self.server.handle_peer_accepted(relay, from, now.instant);
            if let Some(connection) = taken
                && !PeerStream::accepted(socket).is_ok_and(|peer| self.add_peer(connection, peer))
            {
                self.server.handle_peer_closed(connection);
            }
            self.obey(now.instant);
        }
    }

    /// Epoll has something to say of a peer's connection.
    pub(super) fn serve_peer(&mut self, connection: ConnectionId, flags: EventFlags, now: Now) {
        let Some(peer) = self.peers.get_mut(connection) else {
            return;
        };
        if peer.connecting {
            peer.connecting = false;
            let connected = peer.is_connected();
            if !connected {
                self.peers.remove(connection);
            }
            self.watch_peer(connection);
            self.server
                .handle_peer_connected(connection, connected, now.instant);
            return self.obey(now.instant);
        }
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        if !peer.flush() || (broken && !peer.interest().contains(EventFlags::IN)) {
            return self.end_peer(connection, now);
        }
        if peer.closing.is_some() && peer.output.is_empty() {
            self.peers.remove(connection);
            return;
        }
        if peer.output.len() < LOW_WATER
            && let Some(client) = peer.client
        {
            self.resume_client(&client);
        }
        self.pump_down(connection, now);
        self.watch_peer(connection);
    }

    /// From now on a client's connection and a peer's are one.
    pub(super) fn join(&mut self, connection: ConnectionId, client: &ClientAddr) {
        let (peer, stream) = (
            self.peers.get_mut(connection),
            self.streams.get_mut(client.link),
        );
        let (Some(peer), Some(stream)) = (peer, stream) else {
            // The peer has just closed; the client's half has nothing to be joined with.
            self.server.handle_peer_closed(connection);
            return self.end_client(client);
        };
        peer.client = Some(*client);
        stream.joined = Some(connection);
        self.watch_peer(connection);
    }

    /// What the server ends.
    pub(super) fn close_peer(&mut self, connection: ConnectionId, now: Instant) {
        let client = self.peers.get_mut(connection).and_then(|peer| peer.client);
        if self.peers.finish(connection, now) {
            self.watch_peer(connection);
        }
        if let Some(client) = client {
            self.end_client(&client);
        }
    }

    /// What a joined client has sent, as far as its peer takes it.
    pub(super) fn pump_up(
        &mut self,
        stream: &mut Stream,
        connection: ConnectionId,
        now: Now,
    ) -> Result<(), Closed> {
        let mut waiting = self.pass_up(stream, connection, now)?;
        for _ in 0..READS_A_TURN {
            if waiting >= HIGH_WATER {
                stream.paused = true;
                break;
            }
            if !self.server.may_carry(connection, now.instant) {
                stream.paused = true;
                self.throttled.push(connection);
                break;
            }
            if !stream.read(&mut self.scratch)? {
                break;
            }
            waiting = self.pass_up(stream, connection, now)?;
        }
        self.watch_peer(connection);
        Ok(())
    }

    /// What has been read of a client; returns how much waits for its peer.
    fn pass_up(
        &mut self,
        stream: &mut Stream,
        connection: ConnectionId,
        now: Now,
    ) -> Result<usize, Closed> {
        let peer = self.peers.get_mut(connection).ok_or(Closed::ByPeer)?;
        let input = stream.take_input();
        peer.output.push(&input);
        if !peer.flush() {
            return Err(Closed::ByPeer);
        }
        let (up, len) = (Direction::Up, input.len());
        self.server.carried(connection, up, len, now.instant);
        Ok(peer.output.len())
    }

    /// What a joined peer has sent, as far as its client takes it.
    fn pump_down(&mut self, connection: ConnectionId, now: Now) {
        for _ in 0..READS_A_TURN {
            let Some(peer) = self.peers.get_mut(connection) else {
                return;
            };
            let Some(client) = peer.client.filter(|_| !peer.paused) else {
                return;
            };
            let Some(stream) = self.streams.get_mut(client.link) else {
                return;
            };
            if stream.queued() >= HIGH_WATER {
                peer.paused = true;
                return;
            }
            if !self.server.may_carry(connection, now.instant) {
                peer.paused = true;
                self.throttled.push(connection);
                return;
            }
            match peer.read(&mut self.scratch) {
                None => return,
                Some(0) => return self.end_peer(connection, now),
                Some(len) => {
                    stream.push_raw(&self.scratch[..len]);
                    let down = Direction::Down;
                    self.server.carried(connection, down, len, now.instant);
                    self.streams.mark_dirty(client.link);
                }
            }
        }
    }

    /// A client's connection has room again.
    pub(super) fn resume_peer(&mut self, connection: ConnectionId) {
        if let Some(peer) = self.peers.get_mut(connection) {
            peer.paused = false;
        }
        self.watch_peer(connection);
    }

    /// Those of users past their rate get another look.
    pub(super) fn resume_throttled(&mut self) {
        for connection in std::mem::take(&mut self.throttled) {
            let client = self.peers.get_mut(connection).and_then(|peer| peer.client);
            self.resume_peer(connection);
            client.inspect(|client| self.resume_client(client));
        }
    }

    fn resume_client(&mut self, client: &ClientAddr) {
        if let Some(stream) = self.streams.get_mut(client.link)
            && stream.paused
        {
            stream.paused = false;
            self.streams.mark_dirty(client.link);
        }
    }

    /// The peer has closed, or broke: the client gets the rest, then the end.
    fn end_peer(&mut self, connection: ConnectionId, now: Now) {
        let peer = self.peers.remove(connection);
        self.server.handle_peer_closed(connection);
        if let Some(client) = peer.and_then(|peer| peer.client) {
            self.end_client(&client);
        }
        self.obey(now.instant);
    }

    fn end_client(&mut self, client: &ClientAddr) {
        if let Some(stream) = self.streams.get_mut(client.link) {
            stream.joined = None;
            stream.closing = true;
            self.streams.mark_dirty(client.link);
        }
    }

    fn add_peer(&mut self, connection: ConnectionId, mut peer: PeerStream) -> bool {
        peer.watched = peer.interest();
        let token = Token::Peer(connection.0);
        self.add(&peer.socket, token, peer.watched).is_ok() && self.peers.add(connection, peer)
    }

    fn watch_peer(&mut self, connection: ConnectionId) {
        let Some(peer) = self.peers.get_mut(connection) else {
            return;
        };
        let flags = peer.interest();
        if flags != peer.watched {
            peer.watched = flags;
            let data = EventData::new_u64(Token::Peer(connection.0).to_u64());
            // It was added.
            let _ = epoll::modify(&self.epoll, &peer.socket, data, flags);
        }
    }
}
