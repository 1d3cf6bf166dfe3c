//! One TCP or TLS connection of a client: bytes in, frames out; frames in, bytes out. Nothing blocks.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use rustls::ServerConnection;

use crate::codec::{Desynchronized, stream_frame};
use crate::server::ClientAddr;

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
    input: Vec<u8>,
    output: Vec<u8>,
    /// How much of `output` is written.
    written: usize,
    /// Whether epoll is asked for writability.
    pub(super) waits: bool,
}

impl Stream {
    pub(super) fn new(
        socket: TcpStream,
        client: ClientAddr,
        tls: Option<ServerConnection>,
        now: Instant,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        socket2::SockRef::from(&socket).set_tcp_notsent_lowat(NOTSENT_BYTES)?;
        Ok(Self {
            socket,
            client,
            since: now,
            tls: tls.map(Box::new),
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            waits: false,
        })
    }

    /// Reads what one call of the kernel gives into the input. `Ok(false)`: nothing more for now.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> Result<bool, Closed> {
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

    /// Queues ChannelData, padded (RFC 8656 §12.5), or an indication; false when it was dropped.
    pub(super) fn push_payload(&mut self, header: &[u8], payload: &[u8]) -> bool {
        let len = header.len() + payload.len();
        if self.queued() + len > MAX_QUEUE {
            return false;
        }
        self.output.extend_from_slice(header);
        self.output.extend_from_slice(payload);
        let padding = len.next_multiple_of(4) - len;
        self.output.extend_from_slice(&[0; 3][..padding]);
        true
    }

    /// Queues a response.
    pub(super) fn push_control(&mut self, message: &[u8]) -> Result<(), Closed> {
        if self.queued() + message.len() > MAX_CONTROL_QUEUE {
            return Err(Closed::Stuck);
        }
        self.output.extend_from_slice(message);
        Ok(())
    }

    /// Writes what the kernel takes. `Ok(true)`: something is left.
    pub(super) fn flush(&mut self) -> Result<bool, Closed> {
        loop {
            if let Some(tls) = &mut self.tls {
                if tls.wants_write() {
                    match tls.write_tls(&mut self.socket) {
                        Ok(0) => return Err(Closed::ByClient),
                        Ok(_) => continue,
                        Err(error) => return later(error).map(|again| !again),
                    }
                }
                if tls.is_handshaking() || self.output.len() == self.written {
                    break;
                }
                let end = self.output.len().min(self.written + TLS_RECORD);
                self.written += tls.writer().write(&self.output[self.written..end])?;
            } else {
                if self.queued() == 0 {
                    break;
                }
                match self.socket.write(&self.output[self.written..]) {
                    Ok(0) => return Err(Closed::ByClient),
                    Ok(len) => self.written += len,
                    Err(error) => {
                        self.compact();
                        return later(error).map(|again| !again);
                    }
                }
            }
            self.compact();
        }
        Ok(false)
    }

    fn queued(&self) -> usize {
        self.output.len() - self.written
    }

    fn compact(&mut self) {
        if self.queued() == 0 {
            self.output.clear();
            self.written = 0;
        } else if self.written > MAX_QUEUE {
            self.output.drain(..self.written);
            self.written = 0;
        }
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
