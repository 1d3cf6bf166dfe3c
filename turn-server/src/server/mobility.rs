//! Mobility (RFC 8016): a client that comes from another address takes its allocation along.
//!
//! A client that moved may be received by another thread. That thread finds out who asks, and sends a [`Claim`] to the one that
//! the ticket names; the allocation comes back whole, with its relay sockets, and is at home there from then on. Addresses are
//! proven before: nonces are good for one source alone.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand_core::RngCore as _;
use subtle::ConstantTimeEq as _;

use super::allocation::{Allocation, Family};
use super::auth::Author;
use super::error::ErrorCode;
use super::refusal::Refusal;
use super::types::{ClientAddr, Command, Now, RelayId, source_of};
use super::{AllocationId, Relay, Reply, Server};
use crate::codec::Message;

/// Random bytes of a ticket: whoever guesses one must be its user besides.
const SECRET_LEN: usize = 16;
/// Thread, place in its table, secret.
const PLAIN_LEN: usize = 1 + 4 + SECRET_LEN;
/// The same in base64, without padding: coturn's client takes a ticket for text, which ends at a zero byte.
pub(super) const TICKET_LEN: usize = PLAIN_LEN / 3 * 4;
/// How long a movable allocation waits for its client when its connection broke: longer than a phone takes from one network to
/// the next, and shorter than any lifetime.
const ORPHAN_LIFETIME: Duration = Duration::from_secs(60);
/// A link that is nobody's: the allocation of a connection that broke has no way to its client.
const NO_LINK: u32 = u32::MAX;

/// What makes a ticket out of a place.
pub(super) type TicketSecret = [u8; SECRET_LEN];

/// MOBILITY-TICKET (RFC 8016 §3.3): it names a place and proves nothing but itself, so nothing in it needs to be hidden.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    shard: u8,
    slot: AllocationId,
    secret: TicketSecret,
}

/// What one thread's server has for another one's: see [`Command::HandOver`].
#[derive(Debug)]
pub enum Handover {
    /// An allocation is asked for.
    Claim(Claim),
    /// It comes, and its relay sockets with it.
    Arrival(Arrival),
    /// It does not come.
    Refused(Claim, Refusal),
}

/// An authentic Refresh with a ticket of another thread.
#[derive(Debug)]
pub struct Claim {
    /// Whom to answer.
    shard: u8,
    ticket: Ticket,
    username: Box<str>,
    reply: Reply,
    /// The request: done once the allocation is here.
    frame: Box<[u8]>,
}

/// An allocation on its way.
#[derive(Debug)]
pub struct Arrival {
    allocation: Box<Allocation>,
    relays: Vec<(Family, RelayId, Relay)>,
    claim: Claim,
}

impl Handover {
    /// The relay sockets that go along, by the names that they had; in the order of [`Server::handle_handover`]'s answer.
    pub fn relays(&self) -> Vec<RelayId> {
        match self {
            Self::Arrival(arrival) => arrival.relays.iter().map(|(_, id, _)| *id).collect(),
            Self::Claim(_) | Self::Refused(..) => Vec::new(),
        }
    }
}

impl Server {
    /// What another thread's server sent. Returns the names that the sockets of an arrival have from now on, in their order;
    /// fewer than there are: those left are to be closed.
    pub fn handle_handover(&mut self, handover: Handover, now: Now) -> Vec<RelayId> {
        match handover {
            Handover::Claim(claim) => {
                self.yield_to(claim);
                Vec::new()
            }
            Handover::Arrival(Arrival {
                mut allocation,
                relays,
                claim,
            }) => {
                allocation.client = claim.reply.client;
                let names = self.settle_in(allocation, relays);
                self.counters.moved += 1;
                self.handle_client(&claim.reply.client, &claim.frame, now);
                names
            }
            Handover::Refused(claim, why) => {
                let client = claim.reply.client;
                if self.has_allocation(&client) {
                    // A retransmission crossed the arrival.
                    self.handle_client(&client, &claim.frame, now);
                } else {
                    let (method, user) = (claim.reply.method, Some(&*claim.username));
                    self.notices.push(&client, method, user, why, now.instant);
                    self.refuse(&claim.reply, why.code());
                }
                Vec::new()
            }
        }
    }

    /// A [`Command::HandOver`] that could not be delivered. A claim is lost as a datagram is; what a ticket names that is not
    /// there is refused; an allocation that was on its way is at home again (answers as [`Server::handle_handover`]).
    pub fn handle_undelivered(&mut self, handover: Handover, exists: bool) -> Vec<RelayId> {
        match handover {
            Handover::Claim(claim) => {
                if !exists {
                    self.refuse(&claim.reply, ErrorCode::BadRequest);
                }
                Vec::new()
            }
            Handover::Refused(..) => Vec::new(),
            Handover::Arrival(arrival) => self.settle_in(arrival.allocation, arrival.relays),
        }
    }

    /// A new ticket for an allocation that is to be movable.
    pub(super) fn new_ticket(&mut self) -> TicketSecret {
        let mut secret = TicketSecret::default();
        self.rng.fill_bytes(&mut secret);
        secret
    }

    /// The ticket as the client gets it, if it asked for one.
    pub(super) fn ticket(&self, id: AllocationId) -> Option<[u8; TICKET_LEN]> {
        let secret = self.get(id)?.ticket?;
        let ticket = Ticket {
            shard: self.shard,
            slot: id,
            secret,
        };
        Some(ticket.to_bytes())
    }

    /// A Refresh with a ticket from a 5-tuple without an allocation (RFC 8016 §3.2.2). `None`: another thread has been asked.
    pub(super) fn move_here(
        &mut self,
        reply: &Reply,
        ticket: &[u8],
        message: &Message<'_>,
        author: &Author,
    ) -> Result<Option<AllocationId>, Refusal> {
        let ticket = Ticket::from_bytes(ticket).ok_or(ErrorCode::BadRequest)?;
        if ticket.shard != self.shard {
            let claim = Claim {
                shard: self.shard,
                ticket,
                username: author.username.clone(),
                reply: reply.clone(),
                frame: message.bytes().into(),
            };
            self.commands.push_back(Command::HandOver {
                shard: ticket.shard,
                handover: Box::new(Handover::Claim(claim)),
            });
            return Ok(None);
        }
        let source = source_of(reply.client.remote);
        let id = self.check_ticket(&ticket, &author.username, source)?;
        let secret = self.new_ticket();
        if let Some(allocation) = self.get_mut(id) {
            let old = std::mem::replace(&mut allocation.client, reply.client);
            allocation.ticket = Some(secret);
            self.clients.remove(&old);
            self.clients.insert(reply.client, id);
            self.last = None;
            self.counters.moved += 1;
        }
        Ok(Some(id))
    }

    /// The client's connection broke. Without a ticket the allocation ends with it (RFC 8656 §5); with one it waits a while for
    /// its client.
    pub(super) fn disconnect(&mut self, id: AllocationId, now: Instant) {
        let Some(allocation) = self.get(id).filter(|a| a.ticket.is_some()) else {
            return self.delete(id);
        };
        let gone = allocation.client;
        let orphan = ClientAddr {
            link: NO_LINK,
            ..gone
        };
        if let Some(&older) = self.clients.get(&orphan) {
            self.delete(older);
        }
        self.clients.remove(&gone);
        self.clients.insert(orphan, id);
        self.last = None;
        let latest = now + ORPHAN_LIFETIME;
        if let Some(allocation) = self.get_mut(id) {
            allocation.client = orphan;
            for (family, mut relayed) in allocation.all_relayed() {
                relayed.expires = relayed.expires.min(latest);
                allocation.set_relayed(family, Some(relayed));
            }
        }
        self.settle(id);
    }

    /// Gives an allocation to the thread that claims it.
    fn yield_to(&mut self, claim: Claim) {
        let shard = claim.shard;
        let source = source_of(claim.reply.client.remote);
        let handover = match self.check_ticket(&claim.ticket, &claim.username, source) {
            Ok(id) => match self.pack(id) {
                Some((allocation, relays)) => Handover::Arrival(Arrival {
                    allocation,
                    relays,
                    claim,
                }),
                None => Handover::Refused(claim, ErrorCode::BadRequest.into()),
            },
            Err(why) => Handover::Refused(claim, why),
        };
        self.commands.push_back(Command::HandOver {
            shard,
            handover: Box::new(handover),
        });
    }

    /// The allocation of a ticket, which counts at its new source from now on.
    fn check_ticket(
        &mut self,
        ticket: &Ticket,
        username: &str,
        source: IpAddr,
    ) -> Result<AllocationId, Refusal> {
        let config = std::sync::Arc::clone(&self.config);
        let allocation = self.get_mut(ticket.slot).ok_or(ErrorCode::BadRequest)?;
        let secret = allocation.ticket.ok_or(ErrorCode::BadRequest)?;
        if !bool::from(secret.ct_eq(&ticket.secret)) {
            return Err(ErrorCode::BadRequest.into());
        }
        if &*allocation.username != username {
            return Err(ErrorCode::WrongCredentials.into());
        }
        let moved = allocation.grant.move_to(source, &config.quotas);
        moved.map_err(Refusal::Quota)?;
        Ok(ticket.slot)
    }

    /// Takes an allocation out of every table, its ports still taken.
    #[expect(clippy::type_complexity, reason = "one caller")]
    fn pack(
        &mut self,
        id: AllocationId,
    ) -> Option<(Box<Allocation>, Vec<(Family, RelayId, Relay)>)> {
        let allocation = self.remove(id)?;
        let mut relays = Vec::new();
        for (family, relayed) in allocation.all_relayed() {
            let slot = self.relays.get_mut(relayed.relay.0 as usize);
            if let Some(relay) = slot.and_then(Option::take) {
                self.by_address.remove(&relay.external);
                self.closing.push(relayed.relay.0);
                relays.push((family, relayed.relay, relay));
            }
        }
        Some((allocation, relays))
    }

    /// The other way. Where the client has got another allocation meanwhile, it keeps that one.
    fn settle_in(
        &mut self,
        mut allocation: Box<Allocation>,
        relays: Vec<(Family, RelayId, Relay)>,
    ) -> Vec<RelayId> {
        if self.clients.contains_key(&allocation.client) {
            for (_, _, relay) in relays {
                relay.ports.release(relay.local.port());
            }
            return Vec::new();
        }
        allocation.ticket = Some(self.new_ticket());
        let due = allocation.due;
        let id = self.insert(allocation, due);
        let mut names = Vec::new();
        for (family, _, mut relay) in relays {
            relay.allocation = id;
            let name = self.name_relay(relay);
            if let Some(allocation) = self.get_mut(id)
                && let Some(mut relayed) = allocation.relayed(family)
            {
                relayed.relay = name;
                allocation.set_relayed(family, Some(relayed));
            }
            names.push(name);
        }
        names
    }
}

impl Ticket {
    fn to_bytes(self) -> [u8; TICKET_LEN] {
        let mut bytes = [0; PLAIN_LEN];
        bytes[0] = self.shard;
        bytes[1..5].copy_from_slice(&self.slot.0.to_be_bytes());
        bytes[5..].copy_from_slice(&self.secret);
        let mut text = [0; TICKET_LEN];
        // It fits by the derivation of TICKET_LEN.
        let written = STANDARD.encode_slice(bytes, &mut text);
        debug_assert_eq!(written, Ok(TICKET_LEN));
        text
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let text: &[u8; TICKET_LEN] = bytes.try_into().ok()?;
        let mut bytes = [0; PLAIN_LEN];
        // A slice that is too small would be an error, not a panic.
        STANDARD.decode_slice_unchecked(text, &mut bytes).ok()?;
        let (head, secret) = bytes.split_first_chunk::<5>()?;
        Some(Self {
            shard: head[0],
            slot: AllocationId(u32::from_be_bytes([head[1], head[2], head[3], head[4]])),
            secret: secret.try_into().ok()?,
        })
    }
}
