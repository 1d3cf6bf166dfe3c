//! One allocation: its life from connection to close, its timers, and what its owner may ask of it.
//! What it asks is in `requests`, what the
//! server says in `responses`.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use wice_signaling::protocol::RelayTransport;

use crate::core::timing::RELAY_SILENT;

use super::auth::Auth;
use super::channels::Channels;
use super::message::{self, MAX_PAYLOAD};
use super::outbox::{Outbox, Transmit};
use super::permissions::Permissions;
use super::stream::StreamBuffer;
use super::transaction::{Due, Request, Transactions};
use super::{AllocationConfig, AllocationEvent, Failure, Family, Received, Refusal, canonical};

/// How long from the connection to the allocation, challenge and retries included: one whole
/// transaction (39.5 s) that gets no answer, and little more.
pub(super) const ALLOCATE_TIMEOUT: Duration = Duration::from_secs(40);
/// How long [`Allocation::close`] waits for the server's word: three sendings over UDP. Without it
/// the allocation expires by itself.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a 500 is answered by asking again (RFC 8489 §6.3.4: at most four times).
pub(crate) const MAX_SERVER_ERRORS: u8 = 4;
/// The most events that wait to be polled: one for each permission and channel, and the allocation's.
const MAX_EVENTS: usize = super::MAX_PERMISSIONS + super::MAX_CHANNELS + 8;

/// Where an allocation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocationState {
    /// Waiting for [`Allocation::handle_connected`].
    Unconnected,
    /// Asking the server.
    Allocating,
    /// There is a relayed address.
    Allocated,
    /// Handing the allocation back.
    Closing,
    /// Closed as its owner wanted.
    Closed,
    /// Failed or lost; final.
    Failed,
}

/// Why [`Allocation::send`] sent nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no allocation (any more).
    #[error("there is no allocation on this relay now")]
    NotAllocated,
    /// The server has no permission for the peer: [`Allocation::permit`] it and wait for
    /// [`AllocationEvent::PermissionInstalled`].
    #[error("the relay has no permission for this peer yet")]
    NoPermission,
    /// More than a UDP datagram through the relay can hold.
    #[error("the payload has {0} bytes; at most {MAX_PAYLOAD} fit")]
    TooLarge(usize),
    /// Too much waits to be polled already; it is dropped, as a full queue on the way would.
    #[error("the queue towards the relay is full")]
    QueueFull,
}

/// What was ignored or dropped, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Input that is no message for this allocation: malformed, of no known request, or too late.
    pub ignored: u64,
    /// Responses whose integrity was missing or wrong.
    pub unauthenticated: u64,
    /// Data from peers without permission or channel.
    pub strangers: u64,
    /// Messages dropped because a queue was full.
    pub dropped: u64,
}

/// What there is to know only in one state.
pub(super) enum Phase {
    Unconnected,
    Allocating {
        deadline: Instant,
        retry_at: Option<Instant>,
        server_errors: u8,
    },
    Allocated {
        relayed: SocketAddr,
        mapped: Option<SocketAddr>,
        expires: Instant,
        /// `None` while a refresh is in flight.
        refresh_at: Option<Instant>,
    },
    Closing {
        deadline: Instant,
    },
    Closed,
    Failed,
}

/// One allocation on one server over one connection. See the module for how it is driven.
pub struct Allocation {
    pub(super) config: AllocationConfig,
    pub(super) rng: ChaCha20Rng,
    pub(super) phase: Phase,
    pub(super) auth: Option<Auth>,
    pub(super) transactions: Transactions,
    pub(super) permissions: Permissions,
    pub(super) channels: Channels,
    stream: StreamBuffer,
    pub(super) outbox: Outbox,
    events: VecDeque<AllocationEvent>,
    pub(super) rtt: Option<Duration>,
    pub(super) unanswered_since: Option<Instant>,
    pub(super) last_sent: Option<Instant>,
    pub(super) counters: Counters,
}

impl Allocation {
    /// `seed`: 32 random bytes, from which the transaction ids come (RFC 8489 §5 wants them
    /// unpredictable).
    pub fn new(config: AllocationConfig, seed: [u8; 32]) -> Self {
        let reliable = config.transport != RelayTransport::Udp;
        Self {
            config,
            rng: ChaCha20Rng::from_seed(seed),
            phase: Phase::Unconnected,
            auth: None,
            transactions: Transactions::new(reliable),
            permissions: Permissions::default(),
            channels: Channels::default(),
            stream: StreamBuffer::default(),
            outbox: Outbox::default(),
            events: VecDeque::new(),
            rtt: None,
            unanswered_since: None,
            last_sent: None,
            counters: Counters::default(),
        }
    }

    /// The connection is there: asks for the allocation. A second call does nothing.
    pub fn handle_connected(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Unconnected) {
            return;
        }
        self.phase = Phase::Allocating {
            deadline: now + ALLOCATE_TIMEOUT,
            retry_at: None,
            server_errors: 0,
        };
        self.start(Request::Allocate, 0, now);
    }

    /// The connection could not be made or is gone. (A UDP socket's ICMP error is neither.)
    pub fn handle_closed(&mut self, failure: Failure, _now: Instant) {
        if matches!(self.phase, Phase::Closing { .. }) {
            self.closed();
        } else {
            self.fail(failure);
        }
    }

    /// Takes one datagram from the server; returns what a peer sent in it, if anything.
    pub fn handle_datagram<'a>(&mut self, data: &'a [u8], now: Instant) -> Option<Received<'a>> {
        if self.state() == AllocationState::Failed {
            return None;
        }
        self.handle_frame(data, now)
    }

    /// Takes bytes of the stream, cut anywhere, and hands each payload from a peer to `deliver`.
    pub fn handle_stream(
        &mut self,
        mut data: &[u8],
        now: Instant,
        mut deliver: impl FnMut(Received<'_>),
    ) {
        loop {
            if matches!(self.phase, Phase::Failed | Phase::Closed) {
                return;
            }
            let known = |number| self.channels.known(number);
            match self.stream.next(&mut data, known) {
                Ok(Some(frame)) => {
                    if let Some(received) = self.handle_frame(&frame, now) {
                        deliver(received);
                    }
                }
                Ok(None) => return,
                Err(_) => return self.fail(Failure::Desynchronized),
            }
        }
    }

    /// Wants `peer` to be reachable until [`Self::forget`]: [`AllocationEvent::PermissionInstalled`]
    /// tells when it is. Wishes before the allocation is there are kept. Asking again is free.
    pub fn permit(&mut self, peer: IpAddr, now: Instant) {
        let peer = peer.to_canonical();
        if let Err(refusal) = self.want(peer, true, now) {
            self.event(AllocationEvent::PermissionRefused { peer, refusal });
        }
    }

    /// No longer wants `peer`. A channel to it keeps its permission alive until it is unbound too.
    pub fn forget(&mut self, peer: IpAddr) {
        let peer = peer.to_canonical();
        let channel = self.channels.any_to(peer);
        self.permissions.forget(peer, channel);
    }

    /// Wants a channel to `peer`, and its permission with it, until [`Self::unbind_channel`].
    pub fn bind_channel(&mut self, peer: SocketAddr, now: Instant) {
        let peer = canonical(peer);
        let wanted = self.want(peer.ip(), false, now).and_then(|()| {
            let room = self.channels.want(peer, now);
            room.then_some(()).ok_or(Refusal::Limit)
        });
        if let Err(refusal) = wanted {
            let channel = self.channels.any_to(peer.ip());
            self.permissions.release(peer.ip(), channel);
            self.event(AllocationEvent::ChannelRefused { peer, refusal });
        }
    }

    /// No longer refreshes the channel to `peer` nor sends on it. The server keeps it for up to ten
    /// minutes (there is no request that ends a channel), so that what `peer` sends goes on to come in
    /// by it while `peer` is permitted.
    pub fn unbind_channel(&mut self, peer: SocketAddr) {
        let peer = canonical(peer);
        self.channels.retire(peer);
        let channel = self.channels.any_to(peer.ip());
        self.permissions.release(peer.ip(), channel);
    }

    /// The number on which ChannelData reaches `peer` now; see [`super::channel_data_header`].
    pub fn channel(&self, peer: SocketAddr) -> Option<u16> {
        self.channels.bound(canonical(peer))
    }

    /// Whose data arrives on a channel number: a peer's whose channel is wanted, or whose permission
    /// is, since the server goes on using a channel for minutes after [`Self::unbind_channel`].
    pub fn channel_peer(&self, number: u16) -> Option<SocketAddr> {
        let (peer, wanted) = self.channels.peer(number)?;
        (wanted || self.permissions.expected(peer.ip())).then_some(peer)
    }

    /// Whether `peer` can be sent to now.
    pub fn permitted(&self, peer: IpAddr) -> bool {
        self.permissions.installed(peer.to_canonical())
    }

    /// Queues one datagram for `peer`: ChannelData on a bound channel, else a Send indication.
    /// Meant for checks; WireGuard's packets go out as ChannelData by the data path.
    pub fn send(
        &mut self,
        peer: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), SendError> {
        let peer = canonical(peer);
        if self.state() != AllocationState::Allocated {
            return Err(SendError::NotAllocated);
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(SendError::TooLarge(payload.len()));
        }
        let bytes = if let Some(number) = self.channels.bound(peer) {
            message::channel_data(number, payload, self.is_stream())
        } else if self.permissions.installed(peer.ip()) {
            let id = self.transaction_id();
            message::send_indication(id, peer, payload)
        } else {
            return Err(SendError::NoPermission);
        };
        if !self.outbox.push_data(bytes) {
            self.counters.dropped += 1;
            return Err(SendError::QueueFull);
        }
        self.last_sent = Some(now);
        Ok(())
    }

    /// Asks the server at once whether the allocation is still there, by a refresh: for an owner
    /// whose relayed pairs all went silent. [`AllocationEvent::Lost`] follows if it is not.
    pub fn verify(&mut self, now: Instant) {
        if let Phase::Allocated { refresh_at, .. } = &mut self.phase
            && refresh_at.is_some()
        {
            *refresh_at = Some(now);
        }
    }

    /// Hands the allocation back (REFRESH with lifetime 0, RFC 8656 §8). [`AllocationEvent::Closed`]
    /// follows within 3 s, whether or not the server answers.
    pub fn close(&mut self, now: Instant) {
        match self.phase {
            Phase::Closing { .. } | Phase::Closed | Phase::Failed => return,
            Phase::Unconnected | Phase::Allocating { .. } | Phase::Allocated { .. } => {}
        }
        self.forget_all();
        // Also while still allocating: the server may have granted what we do not know of yet.
        if self.auth.is_none() {
            return self.closed();
        }
        self.phase = Phase::Closing {
            deadline: now + CLOSE_TIMEOUT,
        };
        self.start(Request::Close, 0, now);
    }

    /// The address at which peers reach this node, while allocated.
    pub fn relayed_address(&self) -> Option<SocketAddr> {
        match self.phase {
            Phase::Allocated { relayed, .. } => Some(relayed),
            Phase::Unconnected
            | Phase::Allocating { .. }
            | Phase::Closing { .. }
            | Phase::Closed
            | Phase::Failed => None,
        }
    }

    /// What the server saw this node as, while allocated. Server-reflexive over UDP only.
    pub fn mapped_address(&self) -> Option<SocketAddr> {
        match self.phase {
            Phase::Allocated { mapped, .. } => mapped,
            Phase::Unconnected
            | Phase::Allocating { .. }
            | Phase::Closing { .. }
            | Phase::Closed
            | Phase::Failed => None,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> AllocationState {
        match self.phase {
            Phase::Unconnected => AllocationState::Unconnected,
            Phase::Allocating { .. } => AllocationState::Allocating,
            Phase::Allocated { .. } => AllocationState::Allocated,
            Phase::Closing { .. } => AllocationState::Closing,
            Phase::Closed => AllocationState::Closed,
            Phase::Failed => AllocationState::Failed,
        }
    }

    /// The smoothed round-trip time to the server (RFC 6298 §2), from requests that were answered at
    /// their first sending, the keepalives among them.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Whether the server has owed an answer for [`RELAY_SILENT`]: it is down, or out of reach.
    pub fn is_silent(&self, now: Instant) -> bool {
        self.unanswered_since
            .is_some_and(|at| now >= at + RELAY_SILENT)
    }

    /// Since when the server owes an answer; `None` after any valid response. The allocation may
    /// outlive such a gap: whether to allocate elsewhere meanwhile is the owner's choice.
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered_since
    }

    /// What it was configured with.
    pub fn config(&self) -> &AllocationConfig {
        &self.config
    }

    /// What was ignored or dropped so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Does what is due. To be called when [`Self::poll_timeout`] is reached, or at any time.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Allocating { deadline, .. } if deadline <= now => {
                return self.fail(Failure::NoAnswer);
            }
            Phase::Allocated { expires, .. } if expires <= now => {
                return self.fail(Failure::Expired);
            }
            Phase::Closing { deadline } if deadline <= now => return self.closed(),
            Phase::Unconnected | Phase::Closed | Phase::Failed => return,
            Phase::Allocating { .. } | Phase::Allocated { .. } | Phase::Closing { .. } => {}
        }
        while let Some(due) = self.transactions.poll_due(now) {
            match due {
                Due::Retransmit(bytes) => self.transmit(bytes, now),
                Due::TimedOut(transaction) => self.handle_unanswered(transaction, now),
            }
        }
        match &mut self.phase {
            Phase::Allocating { retry_at, .. } if retry_at.is_some_and(|at| at <= now) => {
                *retry_at = None;
                self.start(Request::Allocate, 0, now);
            }
            Phase::Allocated { refresh_at, .. } => {
                if refresh_at.is_some_and(|at| at <= now) {
                    *refresh_at = None;
                    self.start(Request::Refresh, 0, now);
                }
                self.maintain(now);
            }
            Phase::Unconnected
            | Phase::Allocating { .. }
            | Phase::Closing { .. }
            | Phase::Closed
            | Phase::Failed => {}
        }
    }

    /// When [`Self::handle_timeout`] has something to do; `None`: not before other input.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.phase {
            Phase::Unconnected | Phase::Closed | Phase::Failed => return None,
            Phase::Closing { deadline } => [Some(deadline), None, None, None, None],
            Phase::Allocating {
                deadline, retry_at, ..
            } => [Some(deadline), retry_at, None, None, None],
            Phase::Allocated {
                expires,
                refresh_at,
                ..
            } => [
                Some(expires),
                refresh_at,
                self.permission_timeout(),
                self.channel_timeout(),
                self.keepalive_at(),
            ],
        };
        own.into_iter()
            .flatten()
            .chain(self.transactions.poll_timeout())
            .min()
    }

    /// The next message for the server; call until `None`.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outbox.pop()
    }

    /// The next event; call until `None`.
    pub fn poll_event(&mut self) -> Option<AllocationEvent> {
        self.events.pop_front()
    }

    pub(super) fn event(&mut self, event: AllocationEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        } else {
            self.counters.dropped += 1;
        }
    }

    /// Ends for good. Says Failed or Lost, whichever it is.
    pub(super) fn fail(&mut self, failure: Failure) {
        let retry_after = failure.retry_after();
        let event = match self.phase {
            Phase::Closed | Phase::Failed => return,
            Phase::Closing { .. } => return self.closed(),
            Phase::Unconnected | Phase::Allocating { .. } => AllocationEvent::Failed {
                failure,
                retry_after,
            },
            Phase::Allocated { .. } => AllocationEvent::Lost {
                failure,
                retry_after,
            },
        };
        self.phase = Phase::Failed;
        self.forget_all();
        self.event(event);
    }

    pub(super) fn closed(&mut self) {
        self.phase = Phase::Closed;
        self.forget_all();
        self.event(AllocationEvent::Closed);
    }

    pub(super) fn is_stream(&self) -> bool {
        self.config.transport != RelayTransport::Udp
    }

    fn forget_all(&mut self) {
        self.transactions.clear();
        self.permissions.clear();
        self.channels.clear();
        self.stream.clear();
        self.outbox.clear();
        self.unanswered_since = None;
    }

    fn want(&mut self, peer: IpAddr, explicit: bool, now: Instant) -> Result<(), Refusal> {
        match self.phase {
            Phase::Unconnected | Phase::Allocating { .. } | Phase::Allocated { .. } => {}
            Phase::Closing { .. } | Phase::Closed | Phase::Failed => return Ok(()),
        }
        if Family::of(peer) != self.config.family {
            return Err(Refusal::Family);
        }
        let room = self.permissions.want(peer, explicit, now);
        room.then_some(()).ok_or(Refusal::Limit)
    }
}
