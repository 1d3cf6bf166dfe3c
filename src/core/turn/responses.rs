//! What the server sends. Every error code has one meaning for each kind of request, written here.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use stun_types::message::{Message, MessageClass};
use turn_types::message::DATA;

use super::allocation::{Allocation, MAX_SERVER_ERRORS, Phase};
use super::auth::Auth;
use super::message::{self, MAX_RESPONSE};
use super::permissions::BUSY_RETRY;
use super::transaction::{Request, Transaction};
use super::{AllocationEvent, Failure, Family, Received, Refusal};

/// How often one request starts over for a 401 or 438. Once is RFC 8489 §9.2.5; the second covers two
/// requests in flight where the server counts only the nonce that it gave last.
const MAX_CHALLENGES: u8 = 2;
/// The pause before a request that met a 5xx is sent again; doubled each time for Allocate.
const SERVER_ERROR_PAUSE: Duration = Duration::from_secs(1);
/// A refresh that met a 5xx is sent again after this: several times in any usual lifetime.
const REFRESH_RETRY: Duration = Duration::from_secs(15);
/// The shortest pause between refreshes, whatever lifetime a server grants.
const MIN_REFRESH: Duration = Duration::from_secs(5);
/// The longest lifetime that is believed (RFC 8656 §3.2 recommends 3600 s as the server's most).
const MAX_LIFETIME: u32 = 3600;
/// RFC 6298 §2: one eighth of each new sample.
const RTT_WEIGHT: u32 = 8;

const TRY_ALTERNATE: u16 = 300;
const UNAUTHENTICATED: u16 = 401;
const FORBIDDEN: u16 = 403;
const MISMATCH: u16 = 437;
const STALE_NONCE: u16 = 438;
const FAMILY_NOT_SUPPORTED: u16 = 440;
const WRONG_CREDENTIALS: u16 = 441;
const TRANSPORT_NOT_SUPPORTED: u16 = 442;
const PEER_FAMILY_MISMATCH: u16 = 443;
const QUOTA: u16 = 486;
const CAPACITY: u16 = 508;
const SERVER_ERRORS: std::ops::RangeInclusive<u16> = 500..=599;

impl Allocation {
    /// Takes one whole frame; returns what a peer sent in it.
    pub(super) fn handle_frame<'a>(
        &mut self,
        frame: &'a [u8],
        now: Instant,
    ) -> Option<Received<'a>> {
        let received = match frame.first() {
            Some(0x40..=0x4f) => {
                let parsed = message::parse_channel_data(frame);
                let Some((number, payload)) = parsed else {
                    self.counters.ignored += 1;
                    return None;
                };
                self.channel_peer(number)
                    .map(|peer| Received { peer, payload })
            }
            Some(0x00..=0x3f) => return self.handle_message(frame, now),
            Some(_) | None => {
                self.counters.ignored += 1;
                return None;
            }
        };
        if received.is_none() {
            self.counters.strangers += 1;
        }
        received
    }

    fn handle_message<'a>(&mut self, frame: &'a [u8], now: Instant) -> Option<Received<'a>> {
        let Some(parsed) = message::parse(frame) else {
            self.counters.ignored += 1;
            return None;
        };
        match parsed.class() {
            MessageClass::Indication if parsed.method() == DATA => {
                let Some((peer, payload)) = message::parse_data_indication(&parsed, frame) else {
                    self.counters.ignored += 1;
                    return None;
                };
                if !self.permissions.expected(peer.ip()) {
                    self.counters.strangers += 1;
                    return None;
                }
                Some(Received { peer, payload })
            }
            MessageClass::Success | MessageClass::Error => {
                self.handle_response(&parsed, now);
                None
            }
            MessageClass::Request | MessageClass::Indication => {
                self.counters.ignored += 1;
                None
            }
        }
    }

    /// Takes a response: it must answer an open request of the same method, and carry our integrity
    /// if the request did. 401 and 438 cannot carry one (RFC 8489 §9.2.4) and are taken without.
    fn handle_response(&mut self, message: &Message<'_>, now: Instant) {
        let id = message.transaction_id();
        let size = message.as_bytes().len();
        let Some(transaction) = self.transactions.get_mut(id) else {
            self.counters.ignored += 1;
            return;
        };
        if message.method() != transaction.request.method() || size > MAX_RESPONSE {
            self.counters.ignored += 1;
            return;
        }
        let code = message
            .has_class(MessageClass::Error)
            .then(|| message::error_code(message));
        let challenge = matches!(code, Some(UNAUTHENTICATED | STALE_NONCE));
        if transaction.signed && !challenge {
            let authentic = transaction.may_verify()
                && self.auth.as_ref().is_some_and(|auth| auth.verify(message));
            if !authentic {
                transaction.forged(code);
                self.counters.unauthenticated += 1;
                return;
            }
        }
        let Some(transaction) = self.transactions.remove(id) else {
            return;
        };
        self.unanswered_since = None;
        self.measure(transaction.rtt(now));
        match code {
            None => self.handle_success(transaction.request, message, now),
            Some(code) => self.handle_error(transaction, code, message, now),
        }
    }

    /// A request got no answer in its whole time.
    pub(super) fn handle_unanswered(&mut self, transaction: Transaction, now: Instant) {
        match transaction.request {
            Request::Allocate => self.fail(if transaction.forged > 0 {
                Failure::Unauthenticated {
                    code: transaction.forged_code,
                }
            } else {
                Failure::NoAnswer
            }),
            // Until the lifetime is over: an outage shorter than that costs nothing.
            Request::Refresh => self.refresh_at(now),
            Request::Close => self.closed(),
            Request::Permit(peers) => {
                for peer in self.permissions.again(&peers, now) {
                    let refusal = Refusal::NoAnswer;
                    self.event(AllocationEvent::PermissionRefused { peer, refusal });
                }
            }
            Request::Bind { peer, .. } => {
                if self.channels.again(peer, now, now) {
                    let refusal = Refusal::NoAnswer;
                    self.event(AllocationEvent::ChannelRefused { peer, refusal });
                }
            }
            Request::Keepalive => self.verify(now),
        }
    }

    fn handle_success(&mut self, request: Request, message: &Message<'_>, now: Instant) {
        match request {
            Request::Allocate => self.handle_allocated(message, now),
            Request::Refresh => {
                let seconds = message::lifetime(message).unwrap_or(0);
                if seconds == 0 {
                    return self.fail(Failure::BadAnswer);
                }
                self.prolong(seconds, now);
            }
            Request::Close => self.closed(),
            Request::Permit(peers) => {
                for peer in self.permissions.granted(&peers, now) {
                    self.event(AllocationEvent::PermissionInstalled(peer));
                }
            }
            Request::Bind { peer, number } => {
                // A ChannelBind installs or refreshes the permission too (RFC 8656 §12.2).
                for peer in self.permissions.granted(&[peer.ip()], now) {
                    self.event(AllocationEvent::PermissionInstalled(peer));
                }
                if self.channels.granted(peer, number, now) {
                    self.event(AllocationEvent::ChannelBound { peer, number });
                }
            }
            Request::Keepalive => {
                // Seen elsewhere than before, the server may not know this client any more. Nobody
                // vouches for the answer, so it only makes us ask.
                let seen = message::mapped_address(message);
                if seen.is_some() && seen != self.mapped_address() && !self.is_stream() {
                    self.verify(now);
                }
            }
        }
    }

    fn handle_allocated(&mut self, message: &Message<'_>, now: Instant) {
        let Some(allocated) = message::parse_allocated(message) else {
            return self.fail(Failure::BadAnswer);
        };
        let (relayed, mapped) = (allocated.relayed, allocated.mapped);
        if Family::of(relayed.ip()) != self.config.family {
            return self.fail(Failure::Family(FAMILY_NOT_SUPPORTED));
        }
        self.phase = Phase::Allocated {
            relayed,
            mapped,
            expires: now,
            refresh_at: None,
        };
        self.prolong(allocated.lifetime, now);
        self.event(AllocationEvent::Allocated { relayed, mapped });
    }

    fn handle_error(
        &mut self,
        transaction: Transaction,
        code: u16,
        message: &Message<'_>,
        now: Instant,
    ) {
        match code {
            UNAUTHENTICATED => return self.handle_unauthenticated(transaction, message, now),
            STALE_NONCE => return self.handle_stale_nonce(transaction, message, now),
            _ => {}
        }
        match transaction.request {
            Request::Allocate => self.handle_allocate_error(code, message, now),
            Request::Refresh if SERVER_ERRORS.contains(&code) => {
                self.refresh_at(now + REFRESH_RETRY);
            }
            Request::Refresh => self.fail(gone(code)),
            Request::Close => self.closed(),
            Request::Permit(_) | Request::Bind { .. } if is_gone(code) => self.fail(gone(code)),
            Request::Permit(peers) => self.handle_permit_error(&peers, code, now),
            Request::Bind { peer, .. } => self.handle_bind_error(peer, code, now),
            // Any answer shows that the server is there, which is all that it was for.
            Request::Keepalive => {}
        }
    }

    /// Answers 401. Without credentials in the request it is the challenge. With them it means that
    /// they are wrong, except in two cases: another realm, and a request on an existing allocation,
    /// whose credentials were right before (a restarted server's new nonce).
    fn handle_unauthenticated(
        &mut self,
        transaction: Transaction,
        message: &Message<'_>,
        now: Instant,
    ) {
        let Transaction {
            request,
            signed,
            challenges,
            ..
        } = transaction;
        if request == Request::Keepalive {
            return;
        }
        let other_realm = self
            .auth
            .as_ref()
            .is_some_and(|auth| auth.other_realm(message));
        let again = !signed || other_realm || request != Request::Allocate;
        if !again || challenges >= MAX_CHALLENGES {
            return self.fail(Failure::WrongCredentials);
        }
        match Auth::from_challenge(message, &self.config.credentials) {
            Ok(auth) => {
                self.auth = Some(auth);
                self.start(request, challenges + 1, now);
            }
            Err(_) => self.fail(Failure::BadChallenge),
        }
    }

    /// 438: the same request with the new nonce.
    fn handle_stale_nonce(
        &mut self,
        transaction: Transaction,
        message: &Message<'_>,
        now: Instant,
    ) {
        let Transaction {
            request,
            challenges,
            ..
        } = transaction;
        if request == Request::Keepalive {
            return;
        }
        let renewed = match &mut self.auth {
            Some(auth) => auth.renew(message),
            None => Auth::from_challenge(message, &self.config.credentials)
                .map(|auth| self.auth = Some(auth)),
        };
        if renewed.is_err() {
            return self.fail(Failure::BadChallenge);
        }
        if challenges < MAX_CHALLENGES {
            return self.start(request, challenges + 1, now);
        }
        match request {
            Request::Allocate => self.fail(Failure::StaleNonce),
            Request::Refresh => self.refresh_at(now + REFRESH_RETRY),
            Request::Close => self.closed(),
            Request::Permit(peers) => self.postpone_permissions(&peers, STALE_NONCE, now),
            Request::Bind { peer, .. } => self.postpone_channel(peer, STALE_NONCE, now),
            Request::Keepalive => {}
        }
    }

    fn handle_allocate_error(&mut self, code: u16, message: &Message<'_>, now: Instant) {
        let failure = match code {
            TRY_ALTERNATE => Failure::Alternate(message::alternate_server(message)),
            FORBIDDEN => Failure::Forbidden,
            FAMILY_NOT_SUPPORTED | PEER_FAMILY_MISMATCH => Failure::Family(code),
            TRANSPORT_NOT_SUPPORTED => Failure::Transport,
            QUOTA => Failure::Quota,
            CAPACITY => Failure::Capacity,
            _ if SERVER_ERRORS.contains(&code) => {
                if self.retry_allocate(now) {
                    return;
                }
                Failure::ServerError(code)
            }
            _ => gone(code),
        };
        self.fail(failure);
    }

    /// Plans another Allocate after a 5xx; false after [`MAX_SERVER_ERRORS`] of them.
    fn retry_allocate(&mut self, now: Instant) -> bool {
        let Phase::Allocating {
            retry_at,
            server_errors,
            ..
        } = &mut self.phase
        else {
            return false;
        };
        if *server_errors >= MAX_SERVER_ERRORS {
            return false;
        }
        *retry_at = Some(now + SERVER_ERROR_PAUSE * (1 << *server_errors));
        *server_errors += 1;
        true
    }

    fn handle_permit_error(&mut self, peers: &[IpAddr], code: u16, now: Instant) {
        if is_temporary(code) {
            return self.postpone_permissions(peers, code, now);
        }
        if let Some(peer) = self.permissions.refused(peers, now) {
            let refusal = refusal(code);
            self.event(AllocationEvent::PermissionRefused { peer, refusal });
        }
    }

    fn handle_bind_error(&mut self, peer: SocketAddr, code: u16, now: Instant) {
        if is_temporary(code) {
            return self.postpone_channel(peer, code, now);
        }
        self.unbind_channel(peer);
        let refusal = refusal(code);
        self.event(AllocationEvent::ChannelRefused { peer, refusal });
    }

    fn postpone_permissions(&mut self, peers: &[IpAddr], code: u16, now: Instant) {
        for peer in self.permissions.again(peers, now + BUSY_RETRY) {
            let refusal = Refusal::Temporary(code);
            self.event(AllocationEvent::PermissionRefused { peer, refusal });
        }
    }

    fn postpone_channel(&mut self, peer: SocketAddr, code: u16, now: Instant) {
        if self.channels.again(peer, now + BUSY_RETRY, now) {
            let refusal = Refusal::Temporary(code);
            self.event(AllocationEvent::ChannelRefused { peer, refusal });
        }
    }

    /// The server granted `seconds` more: refreshes at half of it (RFC 8656 §8 leaves the moment to
    /// the client; half leaves room for several transactions).
    fn prolong(&mut self, seconds: u32, now: Instant) {
        let lifetime = Duration::from_secs(u64::from(seconds.min(MAX_LIFETIME)));
        if let Phase::Allocated {
            expires,
            refresh_at,
            ..
        } = &mut self.phase
        {
            *expires = now + lifetime;
            *refresh_at = Some(now + (lifetime / 2).max(MIN_REFRESH));
        }
    }

    fn refresh_at(&mut self, at: Instant) {
        if let Phase::Allocated { refresh_at, .. } = &mut self.phase {
            *refresh_at = Some(at);
        }
    }

    fn measure(&mut self, sample: Option<Duration>) {
        let Some(sample) = sample else {
            return;
        };
        self.rtt = Some(match self.rtt {
            Some(rtt) => (rtt * (RTT_WEIGHT - 1) + sample) / RTT_WEIGHT,
            None => sample,
        });
    }
}

/// Whether an error of one peer's request says that the allocation itself is gone.
fn is_gone(code: u16) -> bool {
    matches!(code, MISMATCH | WRONG_CREDENTIALS)
}

fn gone(code: u16) -> Failure {
    match code {
        MISMATCH => Failure::Mismatch,
        WRONG_CREDENTIALS => Failure::WrongUser,
        FORBIDDEN => Failure::Forbidden,
        PEER_FAMILY_MISMATCH => Failure::Family(code),
        _ => Failure::Rejected(code),
    }
}

fn is_temporary(code: u16) -> bool {
    code == QUOTA || SERVER_ERRORS.contains(&code)
}

fn refusal(code: u16) -> Refusal {
    match code {
        FORBIDDEN => Refusal::Forbidden,
        PEER_FAMILY_MISMATCH => Refusal::Family,
        _ => Refusal::Code(code),
    }
}
