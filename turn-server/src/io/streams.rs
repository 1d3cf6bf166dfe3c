//! The connections of one thread, by slot: bounded in number, in all and a source address, and in time without an allocation.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::stream::{Closed, Stream};
use crate::server::{ClientAddr, Framing, ToClient, data_indication, source_of};

/// Connections of a thread: each has at most 200 KiB of buffers, and few have any.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections of one source address (IPv6: of a /64).
const MAX_PER_SOURCE: u32 = 1024;
/// How long a connection may be without an allocation: a TLS handshake and an Allocate with its challenge on a bad path.
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Streams {
    slots: Vec<Option<Stream>>,
    free: Vec<u32>,
    sources: HashMap<IpAddr, u32>,
    /// Those with something to write.
    dirty: Vec<u32>,
    /// Payloads dropped because a client was too slow.
    pub(super) dropped: u64,
}

impl Streams {
    /// Takes a connection in; `None` when there is no room for it.
    pub(super) fn add(&mut self, mut stream: Stream) -> Option<u32> {
        let source = source_of(stream.client.remote);
        if self.len() >= MAX_CONNECTIONS || !self.enter(source) {
            return None;
        }
        let link = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        stream.client.link = link;
        self.slots[link as usize] = Some(stream);
        Some(link)
    }

    /// A connection that is lent is another source's than it seemed.
    pub(super) fn readdress(
        &mut self,
        stream: &mut Stream,
        remote: SocketAddr,
    ) -> Result<(), Closed> {
        if !self.enter(source_of(remote)) {
            return Err(Closed::TooMany);
        }
        self.leave(source_of(stream.client.remote));
        stream.client.remote = remote;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn get_mut(&mut self, link: u32) -> Option<&mut Stream> {
        self.slots.get_mut(link as usize)?.as_mut()
    }

    /// Takes a connection out for as long as its frames are handled.
    pub(super) fn lend(&mut self, link: u32) -> Option<Stream> {
        self.slots.get_mut(link as usize)?.take()
    }

    pub(super) fn give_back(&mut self, stream: Stream) {
        let link = stream.client.link;
        if let Some(slot) = self.slots.get_mut(link as usize) {
            *slot = Some(stream);
        }
        self.dirty.push(link);
    }

    pub(super) fn mark_dirty(&mut self, link: u32) {
        self.dirty.push(link);
    }

    /// A connection is over, or another thread's.
    pub(super) fn remove(&mut self, client: &ClientAddr) -> Option<Stream> {
        let stream = self.slots.get_mut(client.link as usize)?.take()?;
        self.free.push(client.link);
        self.leave(source_of(stream.client.remote));
        Some(stream)
    }

    fn enter(&mut self, source: IpAddr) -> bool {
        let count = self.sources.entry(source).or_default();
        let room = *count < MAX_PER_SOURCE;
        *count += u32::from(room);
        room
    }

    fn leave(&mut self, source: IpAddr) {
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }

    /// One payload to a client; dropped when the client is too slow.
    pub(super) fn send_payload(&mut self, to: &ToClient, payload: &[u8]) {
        let Some(stream) = self.get_mut(to.client.link) else {
            return;
        };
        let taken = match to.framing {
            Framing::Channel(number) => match crate::codec::channel_header(number, payload.len()) {
                Some(header) => stream.push_payload(&header, payload),
                None => false,
            },
            Framing::Indication { id, peer } => {
                stream.push_payload(&data_indication(id, peer, payload), &[])
            }
        };
        if taken {
            self.dirty.push(to.client.link);
        } else {
            self.dropped += 1;
        }
    }

    /// One response to a client.
    pub(super) fn send_control(
        &mut self,
        client: &ClientAddr,
        message: &[u8],
    ) -> Result<(), Closed> {
        if let Some(stream) = self.get_mut(client.link) {
            stream.push_control(message)?;
            self.dirty.push(client.link);
        }
        Ok(())
    }

    /// Those with something to write, each once.
    pub(super) fn take_dirty(&mut self) -> Vec<u32> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        dirty
    }

    /// Connections that have been there for [`IDLE_LIMIT`].
    pub(super) fn old(&self, now: Instant) -> Vec<ClientAddr> {
        self.slots
            .iter()
            .flatten()
            .filter(|stream| now.saturating_duration_since(stream.since) > IDLE_LIMIT)
            .map(|stream| stream.client)
            .collect()
    }
}
