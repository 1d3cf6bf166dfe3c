//! Connections with peers (RFC 6062). Nothing is read before the client's half is there, nor faster than it takes it: what is
//! not read waits at the peer.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use socket2::{Domain, Socket, Type};

use super::outbox::Outbox;
use crate::server::{ClientAddr, ConnectionId};

/// Bytes that wait in one direction before the other side is read no more.
pub(super) const HIGH_WATER: usize = 64 << 10;
/// And from which on it is read again.
pub(super) const LOW_WATER: usize = 16 << 10;
/// Connections with peers of a thread: each may have two open files and 128 KiB.
const MAX_PEERS: usize = 4096;
/// How long the rest may take to leave when the client is gone.
const LINGER: Duration = Duration::from_secs(10);

/// One connection with a peer.
pub(super) struct PeerStream {
    pub(super) socket: TcpStream,
    /// The kernel has not said yet that it stands.
    pub(super) connecting: bool,
    /// The client's half.
    pub(super) client: Option<ClientAddr>,
    pub(super) output: Outbox,
    /// Its client is too slow, or its user past its rate.
    pub(super) paused: bool,
    /// It ends when the rest has left, and at this time at the latest.
    pub(super) closing: Option<Instant>,
    /// What epoll is asked for.
    pub(super) watched: EventFlags,
}

impl PeerStream {
    /// One that the peer opened.
    pub(super) fn accepted(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Self::new(socket, false))
    }

    /// Begins one, from the address of a relay.
    pub(super) fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // The relay listens at this address, and other connections come from it.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&from.into())?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        Ok(Self::new(socket.into(), true))
    }

    fn new(socket: TcpStream, connecting: bool) -> Self {
        Self {
            socket,
            connecting,
            client: None,
            output: Outbox::default(),
            paused: false,
            closing: None,
            watched: EventFlags::empty(),
        }
    }

    /// What epoll is to be asked for now.
    pub(super) fn interest(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        let reads = self.client.is_some() && !self.paused && self.closing.is_none();
        flags.set(EventFlags::IN, reads);
        flags.set(EventFlags::OUT, self.connecting || !self.output.is_empty());
        flags
    }

    /// Whether a connection that was begun stands; asked when epoll has told of it.
    pub(super) fn is_connected(&self) -> bool {
        matches!(self.socket.take_error(), Ok(None)) && self.socket.peer_addr().is_ok()
    }

    /// `None`: nothing for now. 0: the peer has closed it.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> Option<usize> {
        match self.socket.read(scratch) {
            Ok(len) => Some(len),
            Err(error) if is_later(&error) => None,
            // Broken is closed.
            Err(_) => Some(0),
        }
    }

    /// Writes what the kernel takes; false when it is broken.
    pub(super) fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.socket.write(self.output.front()) {
                Ok(0) => return false,
                Ok(len) => self.output.pop(len),
                Err(error) => return is_later(&error),
            }
        }
        true
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Those of one thread.
#[derive(Default)]
pub(super) struct Peers(BTreeMap<ConnectionId, PeerStream>);

impl Peers {
    /// False: there is no room.
    pub(super) fn add(&mut self, connection: ConnectionId, peer: PeerStream) -> bool {
        let room = self.0.len() < MAX_PEERS;
        if room {
            self.0.insert(connection, peer);
        }
        room
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get_mut(&mut self, connection: ConnectionId) -> Option<&mut PeerStream> {
        self.0.get_mut(&connection)
    }

    pub(super) fn remove(&mut self, connection: ConnectionId) -> Option<PeerStream> {
        self.0.remove(&connection)
    }

    /// Its client is gone: true when something is left to be written, which gets its time.
    pub(super) fn finish(&mut self, connection: ConnectionId, now: Instant) -> bool {
        let Some(peer) = self.0.get_mut(&connection) else {
            return false;
        };
        peer.client = None;
        peer.closing = Some(now + LINGER);
        let left = peer.flush() && !peer.output.is_empty() && !peer.connecting;
        if !left {
            self.0.remove(&connection);
        }
        left
    }

    /// Ends those whose time to finish is over.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.0
            .retain(|_, peer| peer.closing.is_none_or(|until| until > now));
    }
}
