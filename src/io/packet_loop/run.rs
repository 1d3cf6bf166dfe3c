//! The loop itself: what is ready is taken, then everything that follows from it is done.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::{
    Notice, PacketLoop, Plane, TOKEN_INBOX, TOKEN_RELAYS, TOKEN_SLOTS, TOKEN_TUN, TOKEN_V4,
    TOKEN_V6, TOKEN_WIREGUARD_V4, TOKEN_WIREGUARD_V6,
};
use crate::core::node::{Arrival, HostSocket, RelayId, Via};
use crate::io::shared_port::SharedPort;
use crate::io::udp::{
    Destination, Moderation, PathErrorKind, ReceiveBuffers, SLOTS, SendFailureKind, Source,
    UdpSocket,
};
use crate::wireguard::inprocess::TunRead;

/// Events of one wake-up; more wait for the next.
const MAX_EVENTS: usize = 64;
/// Receive calls to one socket before the others have their turn.
const MAX_RECEIVES: usize = 4;
/// Waiting never lasts longer, so that a clock that was set does not matter.
const MAX_WAIT: Duration = Duration::from_secs(60);

impl PacketLoop {
    pub(super) fn run(mut self) {
        let mut buffers = ReceiveBuffers::new();
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let mut tun_waits = false;
        let mut moderation = Moderation::new(Instant::now());
        while !self.stopped {
            self.settle(Instant::now());
            events.clear();
            let wait = if tun_waits {
                Duration::ZERO
            } else {
                self.wait(Instant::now())
            };
            let timeout = rustix::event::Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(wait.subsec_nanos()),
            };
            let waited = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            );
            if let Err(error) = waited
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(event = "loop-failed", %error, "cannot wait for packets");
                return;
            }
            let now = Instant::now();
            for event in &events {
                // Looking for errors is a system call: only where there are some.
                let flags = event.flags;
                if flags.contains(epoll::EventFlags::ERR) {
                    self.take_errors(event.data.u64(), now);
                }
                match event.data.u64() {
                    TOKEN_INBOX => self.take_commands(now),
                    TOKEN_TUN => tun_waits = true,
                    token @ (TOKEN_V4 | TOKEN_V6) => self.receive(token, &mut buffers, now),
                    TOKEN_SLOTS => self.receive_slots(&mut buffers, now),
                    token @ (TOKEN_WIREGUARD_V4 | TOKEN_WIREGUARD_V6) => {
                        self.receive_wireguard(token, &mut buffers, now);
                    }
                    relay => self.receive_relay(relay, &mut buffers, now),
                }
            }
            if tun_waits {
                tun_waits = self.take_device();
            } else if let Some(nap) = moderation.after_turn(now, buffers.received()) {
                // What was just sent has left; timers are later by no more than this.
                std::thread::sleep(nap);
            }
        }
    }

    /// Everything that follows from what has happened: timers, transmits, events, notes.
    pub(super) fn settle(&mut self, now: Instant) {
        self.node.handle_timeout(now);
        let Self {
            plane,
            links,
            notes,
            ..
        } = self;
        match plane {
            Plane::InProcess(in_process) => in_process.handle_timeout(links, notes, now),
            Plane::BySlots(by_slots) => by_slots.handle_timeout(links, notes, now),
        }
        // What is sent can cause events and the other way round; both end by themselves.
        loop {
            self.tell_core(now);
            self.transmit();
            let Some(event) = self.node.poll_event() else {
                break;
            };
            self.handle_event(event, now);
        }
    }

    fn wait(&self, now: Instant) -> Duration {
        let core = self.node.poll_timeout().map(|(at, _)| at);
        let plane = match &self.plane {
            Plane::InProcess(in_process) => in_process.poll_timeout(),
            Plane::BySlots(by_slots) => by_slots.poll_timeout(),
        };
        let next = [core, plane].into_iter().flatten().min();
        next.map_or(MAX_WAIT, |at| at.saturating_duration_since(now))
            .min(MAX_WAIT)
    }

    pub(super) fn transmit(&mut self) {
        while let Some(transmit) = self.node.poll_transmit() {
            match transmit.via {
                Via::Host {
                    socket,
                    local,
                    interface,
                    remote,
                } => {
                    let source = Some(Source {
                        ip: local,
                        ifindex: interface,
                    });
                    let to = Destination { remote, source };
                    self.links.send_host(socket, to, &transmit.payload);
                }
                Via::Relay { relay, droppable } => {
                    self.links.send_relay(relay, transmit.payload, droppable);
                }
            }
        }
        // Each failure is one lost packet; the sockets count them.
        let Self { node, links, .. } = self;
        for failure in links.failures.drain() {
            tracing::trace!(?failure, "not sent");
            match failure.kind {
                SendFailureKind::Other(_) => node.handle_path_error(failure.remote, Instant::now()),
                SendFailureKind::TooLarge => links.oversize.note(failure.remote),
                SendFailureKind::BufferFull => {}
            }
        }
    }

    /// What WireGuard has sent and received, for the choice of paths.
    fn tell_core(&mut self, now: Instant) {
        for (peer, packet) in self.notes.sent.drain(..) {
            self.node.note_sent(peer, packet, now);
        }
        for (peer, arrival, packet) in self.notes.received.drain(..) {
            self.node.note_received(peer, arrival, packet, now);
        }
        for (relay, to, packet) in self.notes.relay_replies.drain(..) {
            self.node.reply_relayed(relay, to, &packet, now);
        }
        for (peer, initiation) in self.notes.enclosed.drain(..) {
            self.node.send_enclosed(peer, &initiation, now);
        }
    }

    fn receive(&mut self, token: u64, buffers: &mut ReceiveBuffers, now: Instant) {
        for _ in 0..MAX_RECEIVES {
            let socket = if token == TOKEN_V4 {
                &self.links.v4
            } else {
                &self.links.v6
            };
            let Some(socket) = socket else { return };
            let slots = socket.receive(buffers).unwrap_or(0);
            let Self {
                node,
                plane,
                links,
                notes,
                ..
            } = self;
            match plane {
                Plane::InProcess(in_process) => {
                    in_process.take_host(buffers, node, links, notes, now)
                }
                Plane::BySlots(by_slots) => by_slots.take_host(buffers, node, notes, now),
            }
            if slots < SLOTS {
                return;
            }
        }
    }

    fn receive_relay(&mut self, token: u64, buffers: &mut ReceiveBuffers, now: Instant) {
        let relay = relay_of(token);
        for _ in 0..MAX_RECEIVES {
            let Some(socket) = self.links.udp_relay(relay) else {
                return;
            };
            let slots = socket.receive(buffers).unwrap_or(0);
            let Self {
                node,
                plane,
                links,
                notes,
                ..
            } = self;
            match plane {
                Plane::InProcess(in_process) => {
                    in_process.take_relay(relay, buffers, node, links, notes, now);
                }
                Plane::BySlots(by_slots) => by_slots.take_relay(relay, buffers, node, notes, now),
            }
            if slots < SLOTS {
                return;
            }
        }
    }

    /// What WireGuard has sent to its peers' slots.
    fn receive_slots(&mut self, buffers: &mut ReceiveBuffers, now: Instant) {
        let Self {
            plane,
            links,
            notes,
            ..
        } = self;
        let Plane::BySlots(by_slots) = plane else {
            return;
        };
        for _ in 0..MAX_RECEIVES {
            let slots = by_slots.socket.receive(buffers).unwrap_or(0);
            by_slots.take_slots(buffers, links, notes, now);
            if slots < SLOTS {
                break;
            }
        }
    }

    /// STUN that came to WireGuard's own port. All else there is WireGuard's, and never comes here.
    fn receive_wireguard(&mut self, token: u64, buffers: &mut ReceiveBuffers, now: Instant) {
        for _ in 0..MAX_RECEIVES {
            let Some(shared) = self.wireguard_port(token) else {
                return;
            };
            let slots = shared.receive(buffers).unwrap_or(0);
            // The raw socket hears what comes to a port that WireGuard has left, too; an answer would say that it can
            // still be met there.
            if slots > 0 && self.is_wireguard_gone(now) {
                return;
            }
            for run in buffers.arrivals() {
                let Some(local) = run.local else { continue };
                let arrival = Arrival::Host {
                    socket: HostSocket::WireGuard,
                    local,
                    interface: run.ifindex,
                    from: run.remote,
                };
                for datagram in run.datagrams() {
                    self.node.handle_datagram(arrival, datagram.payload, now);
                }
            }
            if slots < SLOTS {
                return;
            }
        }
    }

    fn is_wireguard_gone(&mut self, now: Instant) -> bool {
        let Plane::BySlots(by_slots) = &mut self.plane else {
            return false;
        };
        let closed = by_slots.knock(now);
        self.end_port(closed, now);
        closed.is_some()
    }

    /// Nobody listens at this port of WireGuard's any more.
    fn end_port(&mut self, closed: Option<u16>, now: Instant) {
        if let Some(port) = closed {
            self.share(Vec::new(), now);
            self.notify(Notice::PortClosed(port));
        }
    }

    fn wireguard_port(&self, token: u64) -> Option<&SharedPort> {
        match token {
            TOKEN_WIREGUARD_V4 => self.links.wireguard_v4.as_ref(),
            TOKEN_WIREGUARD_V6 => self.links.wireguard_v6.as_ref(),
            _ => None,
        }
    }

    /// What ICMP says of what was sent: hints that anybody can forge, but for what comes of `lo`.
    fn take_errors(&mut self, token: u64, now: Instant) {
        let Self {
            node, plane, links, ..
        } = self;
        let socket = match token {
            TOKEN_V4 => links.v4.as_ref(),
            TOKEN_V6 => links.v6.as_ref(),
            TOKEN_SLOTS => {
                let closed = match plane {
                    Plane::BySlots(by_slots) => by_slots.take_errors(),
                    Plane::InProcess(_) => None,
                };
                return self.end_port(closed, now);
            }
            token @ (TOKEN_WIREGUARD_V4 | TOKEN_WIREGUARD_V6) => {
                while let Some(error) = self.wireguard_port(token).and_then(SharedPort::next_error)
                {
                    if error.is_refusal() {
                        self.node.handle_refused(error.remote, now);
                    }
                    self.links.note_too_large(&error);
                    if error.is_fatal() {
                        self.node.handle_path_error(error.remote, now);
                    }
                }
                return;
            }
            relay => links.udp_relay(relay_of(relay)),
        };
        let mut too_large = Vec::new();
        while let Some(error) = socket.and_then(UdpSocket::next_error) {
            tracing::trace!(?error, "path error");
            if error.is_refusal() {
                node.handle_refused(error.remote, now);
            }
            if error.is_fatal() {
                node.handle_path_error(error.remote, now);
            }
            if matches!(error.kind, PathErrorKind::TooLarge { .. }) {
                too_large.push(error);
            }
        }
        for error in &too_large {
            links.note_too_large(error);
        }
    }

    /// Reads the device; whether more waits.
    fn take_device(&mut self) -> bool {
        let Self {
            plane,
            links,
            notes,
            ..
        } = self;
        let Plane::InProcess(in_process) = plane else {
            return false;
        };
        match in_process.take_device(links, notes) {
            TunRead::Drained => false,
            TunRead::More => true,
            TunRead::Failed(error) => {
                self.stopped = true;
                self.notify(Notice::DeviceLost(error));
                false
            }
        }
    }

    pub(super) fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    pub(super) fn notify(&mut self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            self.notices_dropped += 1;
        }
    }
}

/// The relay connection that a token stands for; of one that stands for none, one that is never there.
fn relay_of(token: u64) -> RelayId {
    let number = token.checked_sub(TOKEN_RELAYS);
    let number = number.and_then(|number| u32::try_from(number).ok());
    RelayId(number.unwrap_or(u32::MAX))
}
