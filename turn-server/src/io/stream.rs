//! One TCP or TLS connection of a client: bytes in, frames out; frames in, bytes out. Nothing blocks.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustls::ServerConnection;

use super::outbox::Outbox;
use super::proxy::Preamble;
use crate::codec::{Desynchronized, stream_frame};
use crate::server::{ClientAddr, ConnectionId, Transport};

/// Bytes of payloads that wait for a slow client; later ones are dropped: old packets are worth less than new ones. With the
/// kernel's [`NOTSENT_BYTES`] some 50 ms at 20 Mbit/s.
pub(super) const MAX_QUEUE: usize = 64 << 10;
/// Bytes that the kernel may hold unsent (TCP_NOTSENT_LOWAT).
const NOTSENT_BYTES: u32 = 64 << 10;
/// Past this also responses are too much: the client does not read.
const MAX_CONTROL_QUEUE: usize = 128 << 10;
/// Bytes of a frame before there is an allocation: requests are far smaller (RFC 8489 §6.1).
const MAX_FIRST_FRAME: usize = 2048;
/// Plaintext that goes into one TLS record at most (RFC 8446 §5.1).
const TLS_RECORD: usize = 16 << 10;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    #[error("the client closed it")]
    ByClient,
    #[error(transparent)]
    Desynchronized(#[from] Desynchronized),
    #[error("a frame of {0} bytes before any allocation")]
    TooLong(usize),
    #[error("the client does not read")]
    Stuck,
    #[error("the peer closed it")]
    ByPeer,
    #[error("too many connections of its source")]
    TooMany,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

pub(super) struct Stream {
    pub(super) socket: TcpStream,
    pub(super) client: ClientAddr,
    pub(super) since: Instant,
    tls: Option<Box<ServerConnection>>,
    /// What a load balancer says first.
    preamble: Option<Preamble>,
    /// Where the connection comes from, when it has said so.
    pub(super) proxied: Option<SocketAddr>,
    input: Vec<u8>,
    output: Outbox,
    /// The peer's connection that this one is one with.
    pub(super) joined: Option<ConnectionId>,
    /// The peer is too slow, or the user past its rate: nothing is read.
    pub(super) paused: bool,
    /// It ends when what waits has left.
    pub(super) closing: bool,
    /// The client has been told of the end.
    finished: bool,
    /// What epoll is asked for.
    pub(super) watched: EventFlags,
}

impl Stream {
    /// `addresses` are the client's and ours. A connection that is `passed_on` by a load balancer says first by whom.
    pub(super) fn new(
        socket: TcpStream,
        addresses: (SocketAddr, SocketAddr),
        tls: Option<ServerConnection>,
        passed_on: bool,
        now: Instant,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        socket2::SockRef::from(&socket).set_tcp_notsent_lowat(NOTSENT_BYTES)?;
        let transport = if tls.is_some() {
            Transport::Tls
        } else {
            Transport::Tcp
        };
        let (remote, local) = addresses;
        Ok(Self {
            socket,
            client: ClientAddr {
                transport,
                remote,
                local,
                link: 0,
            },
            since: now,
            tls: tls.map(Box::new),
            preamble: passed_on.then(Preamble::default),
            proxied: None,
            input: Vec::new(),
            output: Outbox::default(),
            joined: None,
            paused: false,
            closing: false,
            finished: false,
            watched: EventFlags::empty(),
        })
    }

    /// What epoll is to be asked for now.
    pub(super) fn interest(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !self.paused);
        let tls_waits = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        let can_write = self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking());
        flags.set(
            EventFlags::OUT,
            tls_waits || (can_write && !self.output.is_empty()),
        );
        flags
    }

    /// Tells the client that nothing more comes; what it still sends is read and forgotten until it closes as well.
    pub(super) fn finish(&mut self) {
        if self.finished {
            return;
        }
        self.finished = true;
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = tls.write_tls(&mut self.socket);
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Reads what one call of the kernel gives into the input. `Ok(false)`: nothing more for now.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> Result<bool, Closed> {
        if let Some(preamble) = &mut self.preamble {
            let Some(address) = preamble.read(&self.socket)? else {
                return Ok(false);
            };
            self.preamble = None;
            self.proxied = address;
        }
        let read = self.read_bytes(scratch)?;
        if self.closing {
            self.input.clear();
        }
        Ok(read)
    }

    fn read_bytes(&mut self, scratch: &mut [u8]) -> Result<bool, Closed> {
        let Some(tls) = &mut self.tls else {
            return match self.socket.read(scratch) {
                Ok(0) => Err(Closed::ByClient),
                Ok(len) => {
                    self.input.extend_from_slice(&scratch[..len]);
                    Ok(true)
                }
                Err(error) => later(error),
            };
        };
        match tls.read_tls(&mut self.socket) {
            Ok(0) => return Err(Closed::ByClient),
            Ok(_) => {}
            Err(error) => return later(error),
        }
        let state = tls.process_new_packets();
        let closed = match state {
            Ok(state) => state.peer_has_closed(),
            Err(error) => {
                // The alert says why; whether it arrives changes nothing.
                let _ = tls.write_tls(&mut self.socket);
                return Err(error.into());
            }
        };
        loop {
            match tls.reader().read(scratch) {
                Ok(0) => break,
                Ok(len) => self.input.extend_from_slice(&scratch[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        if closed && self.input.is_empty() {
            return Err(Closed::ByClient);
        }
        Ok(true)
    }

    /// The length of the whole frame at `from` in the input, padding included; `known`: the client has an allocation.
    pub(super) fn frame(&self, from: usize, known: bool) -> Result<Option<&[u8]>, Closed> {
        let rest = &self.input[from..];
        let Some(len) = stream_frame(rest)? else {
            return Ok(None);
        };
        if len > MAX_FIRST_FRAME && !known {
            return Err(Closed::TooLong(len));
        }
        Ok(rest.get(..len))
    }

    /// The frames up to here are done.
    pub(super) fn consume(&mut self, until: usize) {
        self.input.drain(..until);
        if self.input.is_empty() && self.input.capacity() > MAX_QUEUE {
            self.input = Vec::new();
        }
    }

    /// All that has been read.
    pub(super) fn take_input(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.input)
    }

    /// Queues ChannelData, padded (RFC 8656 §12.5), or an indication; false when it was dropped.
    pub(super) fn push_payload(&mut self, header: &[u8], payload: &[u8]) -> bool {
        let len = header.len() + payload.len();
        if self.queued() + len > MAX_QUEUE {
            return false;
        }
        self.output.push(header);
        self.output.push(payload);
        let padding = len.next_multiple_of(4) - len;
        self.output.push(&[0; 3][..padding]);
        true
    }

    /// Queues bytes of the peer that it is joined with, whose reader keeps the bound.
    pub(super) fn push_raw(&mut self, bytes: &[u8]) {
        self.output.push(bytes);
    }

    /// Queues a response.
    pub(super) fn push_control(&mut self, message: &[u8]) -> Result<(), Closed> {
        if self.queued() + message.len() > MAX_CONTROL_QUEUE {
            return Err(Closed::Stuck);
        }
        self.output.push(message);
        Ok(())
    }

    /// Writes what the kernel takes.
    pub(super) fn flush(&mut self) -> Result<(), Closed> {
        loop {
            if let Some(tls) = &mut self.tls {
                if tls.wants_write() {
                    match tls.write_tls(&mut self.socket) {
                        Ok(0) => return Err(Closed::ByClient),
                        Ok(_) => continue,
                        Err(error) => return later(error).map(drop),
                    }
                }
                if tls.is_handshaking() || self.output.is_empty() {
                    return Ok(());
                }
                let front = self.output.front();
                let record = &front[..front.len().min(TLS_RECORD)];
                let taken = tls.writer().write(record)?;
                self.output.pop(taken);
            } else {
                if self.output.is_empty() {
                    return Ok(());
                }
                match self.socket.write(self.output.front()) {
                    Ok(0) => return Err(Closed::ByClient),
                    Ok(len) => self.output.pop(len),
                    Err(error) => return later(error).map(drop),
                }
            }
        }
    }

    /// Bytes that wait to be written.
    pub(super) fn queued(&self) -> usize {
        self.output.len()
    }
}

/// Nothing now is no error.
fn later(error: io::Error) -> Result<bool, Closed> {
    if matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    ) {
        return Ok(false);
    }
    Err(error.into())
}
