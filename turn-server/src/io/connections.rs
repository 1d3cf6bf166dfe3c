//! Connections of clients (TCP, TLS): accepted, read, written and ended by their thread.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustls::ServerConnection;
use wice_udp::Payloads;

use super::mailbox::Letter;
use super::peers::LOW_WATER;
use super::stream::{Closed, Stream};
use super::streams::IDLE_LIMIT;
use super::token::Token;
use super::worker::{Worker, recycle};
use crate::server::{ClientAddr, Now, RelayId, thread_of};

/// Connections accepted before the others have their turn.
const ACCEPTS_A_TURN: usize = 32;

/// How long listeners rest when file descriptors are short.
const REST: Duration = Duration::from_millis(100);
/// How often that is told.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// What is to be done after frames.
enum Next {
    /// Wait for more.
    Wait,
    /// A ConnectionBind was among them: what it asked for comes before the rest.
    Again,
    /// It is one for another thread.
    Elsewhere(u8),
}

impl Worker {
    pub(super) fn accept(&mut self, index: u32, now: Instant) {
        for _ in 0..ACCEPTS_A_TURN {
            let Some((listener, secure)) = self.tcp.get(index as usize) else {
                return;
            };
            let (socket, remote) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => return self.not_accepted(Token::Tcp(index), &error, now),
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
            let ip = remote.ip().to_canonical();
            let proxied = self.proxies.iter().any(|prefix| prefix.contains(ip));
            let addresses = (remote, local);
            let Ok(stream) = Stream::new(socket, addresses, tls, proxied, now) else {
                continue;
            };
            self.take_in(stream);
        }
    }

    /// Nobody is there any more; or file descriptors are short, and epoll would tell so without end.
    pub(super) fn not_accepted(&mut self, listener: Token, error: &io::Error, now: Instant) {
        let short = matches!(
            error.raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
        );
        if !short {
            return;
        }
        if self.resting.is_empty() {
            self.rest_until = now + REST;
            if self.next_warning <= now {
                self.next_warning = now + WARNING_INTERVAL;
                tracing::warn!(
                    event = "turn-connections-wait",
                    %error,
                    "connections wait until others end: raise the limit of open files (LimitNOFILE=, ulimit -n)"
                );
            }
        }
        self.watch_listener(listener, EventFlags::empty());
        self.resting.push(listener);
    }

    /// Listens again.
    pub(super) fn end_rest(&mut self, now: Instant) {
        if self.resting.is_empty() || now < self.rest_until {
            return;
        }
        for listener in std::mem::take(&mut self.resting) {
            self.watch_listener(listener, EventFlags::IN);
        }
    }

    fn watch_listener(&self, token: Token, flags: EventFlags) {
        let listener = match token {
            Token::Tcp(index) => self.tcp.get(index as usize).map(|(listener, _)| listener),
            Token::TcpRelay(relay) => self.sockets.tcp_relays.get(&RelayId(relay)),
            Token::Wake | Token::Udp(_) | Token::Relay(_) | Token::Stream(_) | Token::Peer(_) => {
                None
            }
        };
        if let Some(listener) = listener {
            // It was added.
            let _ = epoll::modify(
                &self.epoll,
                listener,
                EventData::new_u64(token.to_u64()),
                flags,
            );
        }
    }

    /// A connection of this thread from now on. It closes where there is no room for it.
    fn take_in(&mut self, stream: Stream) -> Option<u32> {
        let link = self.streams.add(stream)?;
        let stream = self.streams.get_mut(link)?;
        stream.watched = stream.interest();
        let data = EventData::new_u64(Token::Stream(link).to_u64());
        let client = stream.client;
        if let Err(error) = epoll::add(&self.epoll, &stream.socket, data, stream.watched) {
            tracing::warn!(event = "turn-connection-refused", %error);
            self.streams.remove(&client);
            return None;
        }
        Some(link)
    }

    /// One that another thread has received, with a ConnectionBind for this one.
    pub(super) fn take_over(&mut self, stream: Stream, now: Now) {
        if let Some(link) = self.take_in(stream) {
            self.work_off(link, now);
        }
    }

    /// Epoll has something to say of a connection.
    pub(super) fn read_stream(&mut self, link: u32, flags: EventFlags, now: Now) {
        let Some(mut stream) = self.streams.lend(link) else {
            return;
        };
        let client = stream.client;
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let read = if broken && stream.paused {
            Err(Closed::ByClient)
        } else if stream.paused {
            Ok(false)
        } else if let Some(connection) = stream.joined {
            self.pump_up(&mut stream, connection, now).map(|()| false)
        } else {
            self.read_in(&mut stream)
        };
        self.streams.give_back(stream);
        self.obey(now.instant);
        match read {
            Ok(false) => {}
            Ok(true) => self.work_off(link, now),
            Err(reason) => self.close(&client, &reason),
        }
    }

    fn read_in(&mut self, stream: &mut Stream) -> Result<bool, Closed> {
        let read = stream.read(&mut self.scratch)?;
        if let Some(remote) = stream.proxied.take() {
            self.streams.readdress(stream, remote)?;
        }
        Ok(read)
    }

    /// Does what has been read.
    fn work_off(&mut self, link: u32, now: Now) {
        loop {
            let Some(mut stream) = self.streams.lend(link) else {
                return;
            };
            let client = stream.client;
            let next = match stream.joined {
                Some(connection) => self
                    .pump_up(&mut stream, connection, now)
                    .map(|()| Next::Wait),
                None => self.handle_frames(&mut stream, now),
            };
            self.streams.give_back(stream);
            self.obey(now.instant);
            match next {
                Ok(Next::Wait) => return,
                Ok(Next::Again) => {}
                Ok(Next::Elsewhere(thread)) => return self.bring(&client, thread),
                Err(reason) => return self.close(&client, &reason),
            }
        }
    }

    fn handle_frames(&mut self, stream: &mut Stream, now: Now) -> Result<Next, Closed> {
        let client = stream.client;
        let mut known = self.server.has_allocation(&client);
        let mut done = 0;
        let mut batch = recycle(std::mem::take(&mut self.batch));
        let ended = loop {
            match stream.frame(done, known) {
                Ok(Some(frame)) => {
                    let thread = thread_of(frame).filter(|_| !known);
                    if let Some(thread) = thread
                        && self.is_another(thread)
                    {
                        break Ok(Next::Elsewhere(thread));
                    }
                    let routed = self.server.handle_client(&client, frame, now);
                    batch.extend(routed.map(|(to, payload)| (to, Payloads::one(payload))));
                    done += frame.len();
                    if thread.is_some() {
                        break Ok(Next::Again);
                    }
                    // Frames may follow their Allocate in one read.
                    known = known || self.server.has_allocation(&client);
                }
                Ok(None) => break Ok(Next::Wait),
                Err(reason) => break Err(reason),
            }
        };
        self.sockets
            .dispatch(&mut batch, &mut self.streams, &mut self.failures);
        self.batch = recycle(batch);
        stream.consume(done);
        ended
    }

    /// Gives a connection to the thread that it is for, with what has been read of it.
    fn bring(&mut self, client: &ClientAddr, thread: u8) {
        let Some(stream) = self.streams.remove(client) else {
            return;
        };
        // It was added.
        let _ = epoll::delete(&self.epoll, &stream.socket);
        if let Some(mailbox) = self.mailboxes.get(usize::from(thread)) {
            // Where there is no room it closes.
            let _ = mailbox.send(Letter::Stream(Box::new(stream)));
        }
    }

    fn is_another(&self, thread: u8) -> bool {
        let thread = usize::from(thread);
        thread != self.thread && thread < self.mailboxes.len()
    }

    pub(super) fn close(&mut self, client: &ClientAddr, reason: &Closed) {
        tracing::debug!(event = "turn-connection-closed", client = %client.remote, %reason);
        self.server.handle_disconnected(client, Instant::now());
        // What was said last may still leave.
        if let Some(mut stream) = self.streams.remove(client) {
            let _ = stream.flush();
        }
        self.obey(Instant::now());
    }

    pub(super) fn flush_streams(&mut self) {
        for link in self.streams.take_dirty() {
            let Some(stream) = self.streams.get_mut(link) else {
                continue;
            };
            let client = stream.client;
            if let Err(reason) = stream.flush() {
                self.close(&client, &reason);
                continue;
            }
            let (queued, joined) = (stream.queued(), stream.joined);
            if stream.closing && queued == 0 {
                stream.finish();
            }
            let flags = stream.interest();
            if flags != stream.watched {
                stream.watched = flags;
                let data = EventData::new_u64(Token::Stream(link).to_u64());
                // It was added; at worst it waits for the client's next frame.
                let _ = epoll::modify(&self.epoll, &stream.socket, data, flags);
            }
            if let Some(connection) = joined
                && queued < LOW_WATER
            {
                self.resume_peer(connection);
            }
        }
    }

    /// Ends connections that came for nothing, or whose rest does not leave.
    pub(super) fn sweep(&mut self, now: Instant) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + IDLE_LIMIT / 4;
        self.peers.sweep(now);
        self.kept.sweep(now);
        for client in self.streams.old(now) {
            let known = self.server.has_allocation(&client);
            if !known && !self.server.is_data_connection(&client) {
                self.close(&client, &Closed::ByClient);
            }
        }
    }
}
