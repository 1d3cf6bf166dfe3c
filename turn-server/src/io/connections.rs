//! Connections of clients (TCP, TLS): accepted, read, written and ended by their thread.

use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustls::ServerConnection;

use super::stream::{Closed, Stream};
use super::streams::IDLE_LIMIT;
use super::token::Token;
use super::worker::{Worker, recycle};
use crate::server::{ClientAddr, Now};

/// Connections accepted before the others have their turn.
const ACCEPTS_A_TURN: usize = 32;

impl Worker {
    pub(super) fn accept(&mut self, index: u32, now: Instant) {
        for _ in 0..ACCEPTS_A_TURN {
            let Some((listener, secure)) = self.tcp.get(index as usize) else {
                return;
            };
            // Also when file descriptors are short: epoll tells again.
            let Ok((socket, remote)) = listener.accept() else {
                return;
            };
            let tls = match (secure, &self.tls) {
                (false, _) => None,
                (true, Some(config)) => match ServerConnection::new(Arc::clone(config)) {
                    Ok(tls) => Some(tls),
                    Err(_) => continue,
                },
                (true, None) => continue,
            };
            let Ok(local) = socket.local_addr() else {
                continue;
            };
            let Some(link) = self.streams.add(socket, (remote, local), tls, now) else {
                continue;
            };
            let added = self.streams.get_mut(link).map(|stream| {
                let data = EventData::new_u64(Token::Stream(link).to_u64());
                epoll::add(&self.epoll, &stream.socket, data, EventFlags::IN)
                    .map(|()| stream.client)
            });
            if let Some(Err(error)) = added {
                tracing::warn!(event = "turn-connection-refused", %error);
                let client = self.streams.get_mut(link).map(|stream| stream.client);
                client.inspect(|client| self.streams.remove(client));
            }
        }
    }

    pub(super) fn read_stream(&mut self, link: u32, now: Now) {
        let Some(mut stream) = self.streams.lend(link) else {
            return;
        };
        let client = stream.client;
        let result = self.handle_frames(&mut stream, now);
        self.streams.give_back(stream);
        self.obey(now.instant);
        if let Err(reason) = result {
            self.close(&client, &reason);
        }
    }

    fn handle_frames(&mut self, stream: &mut Stream, now: Now) -> Result<(), Closed> {
        if !stream.read(&mut self.scratch)? {
            return Ok(());
        }
        let client = stream.client;
        let mut known = self.server.has_allocation(&client);
        let mut done = 0;
        let mut batch = recycle(std::mem::take(&mut self.batch));
        let ended = loop {
            match stream.frame(done, known) {
                Ok(Some(frame)) => {
                    batch.extend(self.server.handle_client(&client, frame, now));
                    done += frame.len();
                    // Frames may follow their Allocate in one read.
                    known = known || self.server.has_allocation(&client);
                }
                Ok(None) => break Ok(()),
                Err(reason) => break Err(reason),
            }
        };
        self.sockets
            .dispatch(&mut batch, &mut self.streams, &mut self.failures);
        self.batch = recycle(batch);
        stream.consume(done);
        ended
    }

    pub(super) fn close(&mut self, client: &ClientAddr, reason: &Closed) {
        tracing::debug!(event = "turn-connection-closed", client = %client.remote, %reason);
        self.server.handle_disconnected(client, Instant::now());
        // What was said last may still leave.
        if let Some(stream) = self.streams.get_mut(client.link) {
            let _ = stream.flush();
            self.streams.remove(client);
        }
        self.obey(Instant::now());
    }

    pub(super) fn flush_streams(&mut self) {
        for link in self.streams.take_dirty() {
            let Some(stream) = self.streams.get_mut(link) else {
                continue;
            };
            let client = stream.client;
            match stream.flush() {
                Ok(waits) if waits != stream.waits => {
                    stream.waits = waits;
                    let mut flags = EventFlags::IN;
                    flags.set(EventFlags::OUT, waits);
                    let data = EventData::new_u64(Token::Stream(link).to_u64());
                    // It was added; at worst it waits for the client's next frame.
                    let _ = epoll::modify(&self.epoll, &stream.socket, data, flags);
                }
                Ok(_) => {}
                Err(reason) => self.close(&client, &reason),
            }
        }
    }

    /// Ends connections that came for nothing.
    pub(super) fn sweep(&mut self, now: Instant) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + IDLE_LIMIT / 4;
        for client in self.streams.old(now) {
            if !self.server.has_allocation(&client) {
                self.close(&client, &Closed::ByClient);
            }
        }
    }
}
