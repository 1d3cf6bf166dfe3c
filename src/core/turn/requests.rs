//! What an allocation asks of its server: building requests, and keeping what was granted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_chacha::rand_core::RngCore;
use stun_types::AddressFamily;
use stun_types::message::{MessageWriteVec, TransactionId};
use stun_types::prelude::MessageWrite;
use turn_types::attribute::{
    ChannelNumber, Lifetime, RequestedAddressFamily, RequestedTransport, XorPeerAddress,
};

use super::allocation::Allocation;
use super::message::{self, add};
use super::transaction::Request;
use super::{AllocationEvent, Family, Refusal};

/// Pause without anything sent by this state machine after which a UDP keepalive goes out: many NATs
/// forget a UDP mapping after 30 s (RFC 4787 §4.3 asks for 2 min, few obey).
pub(super) const KEEPALIVE_UDP: Duration = Duration::from_secs(20);
/// The same for TCP and TLS: proxies and load balancers drop idle connections after 60 s.
pub(super) const KEEPALIVE_STREAM: Duration = Duration::from_secs(50);
/// The most requests for permissions, and for channels, that are in flight at once.
const MAX_IN_FLIGHT: usize = 4;

impl Allocation {
    /// Sends a request; `challenges`: how often the server made it start over.
    pub(super) fn start(&mut self, request: Request, challenges: u8, now: Instant) {
        let id = self.transaction_id();
        let writer = self.write(&request, id);
        let auth = self.auth.as_ref().filter(|_| request != Request::Keepalive);
        let (bytes, signed) = match auth {
            Some(auth) => {
                let username = self.config.credentials.username();
                (auth.sign(writer, username), true)
            }
            None => (writer.finish(), false),
        };
        // A keepalive goes out once: that it is lost says little, see `handle_unanswered`.
        if request != Request::Keepalive {
            self.unanswered_since.get_or_insert(now);
        }
        self.transactions
            .start(id, request, bytes.clone(), signed, challenges, now);
        self.transmit(bytes, now);
    }

    /// Permissions, channels and the keepalive, while allocated.
    pub(super) fn maintain(&mut self, now: Instant) {
        for peer in self.permissions.expire(now) {
            let refusal = Refusal::NoAnswer;
            self.event(AllocationEvent::PermissionRefused { peer, refusal });
        }
        for peer in self.channels.expire(now) {
            let refusal = Refusal::NoAnswer;
            self.event(AllocationEvent::ChannelRefused { peer, refusal });
        }
        while self.may_permit() {
            let Some(batch) = self.permissions.next_batch(now) else {
                break;
            };
            self.start(Request::Permit(batch), 0, now);
        }
        while self.may_bind() {
            let Some((peer, number)) = self.channels.next_due(now) else {
                break;
            };
            self.start(Request::Bind { peer, number }, 0, now);
        }
        if self.keepalive_at().is_some_and(|at| at <= now) {
            self.start(Request::Keepalive, 0, now);
        }
    }

    fn may_permit(&self) -> bool {
        let permit = |request: &Request| matches!(request, Request::Permit(_));
        self.transactions.count(permit) < MAX_IN_FLIGHT
    }

    fn may_bind(&self) -> bool {
        let bind = |request: &Request| matches!(request, Request::Bind { .. });
        self.transactions.count(bind) < MAX_IN_FLIGHT
    }

    pub(super) fn permission_timeout(&self) -> Option<Instant> {
        self.permissions
            .poll_timeout()
            .filter(|_| self.may_permit())
    }

    pub(super) fn channel_timeout(&self) -> Option<Instant> {
        self.channels.poll_timeout().filter(|_| self.may_bind())
    }

    pub(super) fn keepalive_at(&self) -> Option<Instant> {
        let pause = if self.is_stream() {
            KEEPALIVE_STREAM
        } else {
            KEEPALIVE_UDP
        };
        self.last_sent.map(|at| at + pause)
    }

    pub(super) fn transmit(&mut self, bytes: Vec<u8>, now: Instant) {
        self.last_sent = Some(now);
        if !self.outbox.push_control(bytes) {
            self.counters.dropped += 1;
        }
    }

    pub(super) fn transaction_id(&mut self) -> TransactionId {
        let mut id = [0; 16];
        // Twelve of sixteen bytes: an id has 96 bits, and the codec takes the lower ones of 128.
        self.rng.fill_bytes(&mut id[4..]);
        u128::from_be_bytes(id).into()
    }

    fn write(&self, request: &Request, id: TransactionId) -> MessageWriteVec {
        let mut writer = match request {
            Request::Keepalive => message::binding_request(id),
            Request::Allocate
            | Request::Refresh
            | Request::Close
            | Request::Permit(_)
            | Request::Bind { .. } => message::request(request.method(), id),
        };
        match request {
            Request::Allocate => {
                let udp = RequestedTransport::new(RequestedTransport::UDP);
                add(&mut writer, &udp);
                // Absent means IPv4 (RFC 8656 §7.1), which servers without IPv6 understand too.
                if self.config.family == Family::V6 {
                    let family = RequestedAddressFamily::new(AddressFamily::IPV6);
                    add(&mut writer, &family);
                }
            }
            Request::Close => add(&mut writer, &Lifetime::new(0)),
            Request::Permit(peers) => {
                for peer in peers {
                    let address = XorPeerAddress::new(SocketAddr::new(*peer, 0), id);
                    add(&mut writer, &address);
                }
            }
            Request::Bind { peer, number } => {
                add(&mut writer, &ChannelNumber::new(*number));
                add(&mut writer, &XorPeerAddress::new(*peer, id));
            }
            Request::Refresh | Request::Keepalive => {}
        }
        writer
    }
}
