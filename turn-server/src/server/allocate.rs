//! Allocate (RFC 8656 §7.2).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::RngCore as _;

use super::allocation::{Allocation, Family, Relayed};
use super::auth::Author;
use super::error::ErrorCode;
use super::quota::Exceeded;
use super::refusal::Refusal;
use super::reservation::{RESERVATION_LIFETIME, Reservation, Token};
use super::types::{Command, OpenError, RelayAddr, RelayId, RelayKind, Transport, source_of};
use super::{AllocationId, Relay, Reply, Server, canonical, config::account_of};
use crate::codec::{Class, Message, Writer, attribute, method};

/// Lifetime without a wish (RFC 8656 §3.2).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);
/// The longest that is granted (RFC 8656 §7.2 recommends an hour).
const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// Ports that are tried before an allocation fails: other programs may have some of the range.
const MAX_ATTEMPTS: u8 = 32;
/// UDP in REQUESTED-TRANSPORT (RFC 8656 §18.7).
const UDP: u8 = 17;
/// TCP (RFC 6062 §5.1).
const TCP: u8 = 6;
/// The R bit of EVEN-PORT (RFC 8656 §18.8).
const RESERVE_NEXT: u8 = 0x80;

/// ADDITIONAL-ADDRESS-FAMILY before IANA gave it a number: coturn to 4.6 and its clients.
const OLD_ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8032;

/// Which port an allocation gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortWish {
    Any,
    Even,
    /// And the next one is held for a token.
    EvenAndNext,
    /// Held for this allocation already.
    Reserved(u16),
}

/// An allocation whose relay sockets are being opened, one after the other.
#[derive(Debug)]
pub(super) struct Opening {
    allocation: AllocationId,
    reply: Reply,
    wish: PortWish,
    kind: RelayKind,
    lifetime: Duration,
    /// Families still to open, and the one that is being opened.
    rest: Vec<Family>,
    current: Option<Family>,
    attempts: u8,
    /// What a dual allocation did not get (RFC 8656 §7.2, ADDRESS-ERROR-CODE).
    missing: Vec<(Family, ErrorCode)>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply")
            .field("client", &self.client)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// The shell's answer to [`Command::OpenRelay`].
    pub fn handle_relay_opened(
        &mut self,
        relay: RelayId,
        result: Result<(), OpenError>,
        now: Instant,
    ) {
        let Some(mut opening) = self.openings.remove(&relay) else {
            return;
        };
        let Some(family) = opening.current.take() else {
            return;
        };
        match result {
            Ok(()) => {
                if opening.wish == PortWish::EvenAndNext
                    && let Err(exceeded) = self.reserve_next(&opening, relay, now)
                {
                    self.close_relay(opening.allocation, family);
                    return self.fail(opening, family, Refusal::Quota(exceeded), now);
                }
                self.open_next(opening, now);
            }
            Err(error) => {
                self.abandon(&opening, family, relay);
                let again = error == OpenError::PortInUse
                    && opening.attempts < MAX_ATTEMPTS
                    && !matches!(opening.wish, PortWish::Reserved(_));
                if again {
                    opening.rest.push(family);
                    return self.open_next(opening, now);
                }
                self.fail(opening, family, Refusal::NoSocket, now);
            }
        }
    }

    /// A 5-tuple that has an allocation: a retransmission is answered again, anything else is 437.
    pub(super) fn allocate_again(
        &mut self,
        reply: &Reply,
        id: AllocationId,
        author: &Author,
    ) -> Result<(), Refusal> {
        let allocation = self.get(id).ok_or(ErrorCode::AllocationMismatch)?;
        if allocation.id != reply.id || allocation.username != author.username {
            return Err(ErrorCode::AllocationMismatch.into());
        }
        self.tell(reply, id, &[]);
        Ok(())
    }

    pub(super) fn allocate(
        &mut self,
        reply: &Reply,
        message: &Message<'_>,
        author: Author,
        now: Instant,
    ) -> Result<(), Refusal> {
        let transport = message.word(attribute::REQUESTED_TRANSPORT);
        let [transport, ..] = transport.ok_or(ErrorCode::BadRequest)?;
        let kind = match transport {
            UDP => RelayKind::Udp,
            TCP if self.config.tcp_relay => RelayKind::Tcp,
            _ => return Err(ErrorCode::UnsupportedTransport.into()),
        };
        let lifetime = granted(lifetime(message)?);
        let even = match message.get(attribute::EVEN_PORT) {
            None => None,
            Some(&[bits]) => Some(bits & RESERVE_NEXT != 0),
            Some(_) => return Err(ErrorCode::BadRequest.into()),
        };
        let requested = requested_family(message)?;
        let older = Some(OLD_ADDITIONAL_ADDRESS_FAMILY).filter(|_| self.config.old_clients);
        let additional = message
            .word(attribute::ADDITIONAL_ADDRESS_FAMILY)
            .or_else(|| message.word(older?));
        let additional = match additional {
            // RFC 8656 §18.11: IPv6 alone can be added.
            Some([2, ..]) => true,
            Some(_) => return Err(ErrorCode::BadRequest.into()),
            None => false,
        };
        let token = match message.get(attribute::RESERVATION_TOKEN) {
            None => None,
            Some(token) => Some(Token::try_from(token).map_err(|_| ErrorCode::BadRequest)?),
        };
        let contradiction = (token.is_some()
            && (even.is_some() || requested.is_some() || additional))
            || (requested.is_some() && additional)
            || (even == Some(true) && additional);
        // RFC 6062 §5.1; of a second family it does not speak.
        let tcp_contradiction = kind == RelayKind::Tcp
            && (reply.client.transport == Transport::Udp
                || additional
                || even.is_some()
                || token.is_some()
                || message.has(attribute::DONT_FRAGMENT));
        if contradiction || tcp_contradiction {
            return Err(ErrorCode::BadRequest.into());
        }
        if self.draining {
            return Err(Refusal::Draining);
        }

        let account = account_of(&self.config.credentials, &author.username);
        let source = source_of(reply.client.remote);
        let (wish, families, grant) = if let Some(token) = token {
            let held = self.shared.reservations.take(&token, &author.username, now);
            let held = held.ok_or(ErrorCode::InsufficientCapacity)?;
            let (family, port) = (Family::of(held.external), held.port);
            let grant = held
                .claim(self.shard)
                .ok_or(ErrorCode::InsufficientCapacity)?;
            (PortWish::Reserved(port), vec![family], grant)
        } else {
            let families = match (requested, additional) {
                (Some(family), _) => vec![family],
                (None, true) => Family::BOTH.to_vec(),
                (None, false) => vec![Family::V4],
            };
            if families
                .iter()
                .all(|family| self.relay_config(*family).is_none())
            {
                return Err(ErrorCode::AddressFamilyNotSupported.into());
            }
            let entered = self
                .shared
                .ledger
                .enter(&self.config.quotas, account, source);
            let grant = entered.map_err(Refusal::Quota)?;
            let wish = match even {
                None => PortWish::Any,
                Some(false) => PortWish::Even,
                Some(true) => PortWish::EvenAndNext,
            };
            (wish, families, grant)
        };

        let due = now + lifetime;
        let times = (lifetime, due);
        let mut allocation = Allocation::new(reply.client, author, grant, reply.id, times);
        if kind == RelayKind::Tcp {
            allocation.connections = Some(Vec::new());
        } else if message.has(attribute::MOBILITY_TICKET) {
            allocation.ticket = Some(self.new_ticket());
        }
        let id = self.insert(Box::new(allocation), due);
        self.counters.allocated += 1;
        let (rest, missing) = families
            .into_iter()
            .rev()
            .partition::<Vec<_>, _>(|family| self.relay_config(*family).is_some());
        let opening = Opening {
            allocation: id,
            reply: reply.clone(),
            wish,
            kind,
            lifetime,
            rest,
            current: None,
            attempts: 0,
            missing: missing
                .into_iter()
                .map(|family| (family, ErrorCode::AddressFamilyNotSupported))
                .collect(),
        };
        self.open_next(Box::new(opening), now);
        Ok(())
    }

    /// Puts an allocation in its tables.
    pub(super) fn insert(&mut self, allocation: Box<Allocation>, due: Instant) -> AllocationId {
        let client = allocation.client;
        let allocation = Some(allocation);
        let id = match self.free_allocations.pop() {
            Some(id) => {
                self.allocations[id as usize] = allocation;
                AllocationId(id)
            }
            None => {
                self.allocations.push(allocation);
                AllocationId(self.allocations.len() as u32 - 1)
            }
        };
        self.clients.insert(client, id);
        self.timers.insert((due, id));
        id
    }

    /// Asks for the next relay socket, or answers when there is none left to open.
    fn open_next(&mut self, mut opening: Box<Opening>, now: Instant) {
        let Some(family) = opening.rest.pop() else {
            return self.tell(&opening.reply, opening.allocation, &opening.missing);
        };
        let start = self.rng.next_u32() as u16;
        let shard = self.shard;
        let Some(relay) = self.relay_config(family).cloned() else {
            let code = ErrorCode::AddressFamilyNotSupported;
            return self.fail(opening, family, code.into(), now);
        };
        let port = match opening.wish {
            PortWish::Any => relay.ports.take(start, shard),
            PortWish::Even => relay.ports.take_even(start, shard),
            PortWish::EvenAndNext => relay.ports.take_pair(start, shard),
            PortWish::Reserved(port) => Some(port),
        };
        let Some(port) = port else {
            return self.fail(opening, family, Refusal::NoPort, now);
        };
        let local = SocketAddr::new(relay.local, port);
        let external = RelayAddr(SocketAddr::new(relay.external, port));
        let kind = opening.kind;
        let id = self.name_relay(Relay {
            allocation: opening.allocation,
            local,
            external,
            kind,
            ports: relay.ports,
        });
        let expires = now + opening.lifetime;
        if let Some(allocation) = self.get_mut(opening.allocation) {
            let relayed = Relayed { relay: id, expires };
            allocation.set_relayed(family, Some(relayed));
        }
        opening.attempts += 1;
        opening.current = Some(family);
        let keeps_next = opening.wish == PortWish::EvenAndNext;
        self.openings.insert(id, opening);
        self.commands.push_back(Command::OpenRelay {
            relay: id,
            kind,
            local,
            keeps_next,
        });
    }

    /// A name for a relay socket.
    pub(super) fn name_relay(&mut self, relay: Relay) -> RelayId {
        let (external, kind) = (relay.external, relay.kind);
        let id = match self.free_relays.pop() {
            Some(id) => {
                self.relays[id as usize] = Some(relay);
                RelayId(id)
            }
            None => {
                self.relays.push(Some(relay));
                RelayId(self.relays.len() as u32 - 1)
            }
        };
        if kind == RelayKind::Udp {
            self.by_address.insert(external, id);
        }
        id
    }

    /// A socket that could not be opened: nothing is to be closed, its ports are free again.
    fn abandon(&mut self, opening: &Opening, family: Family, relay: RelayId) {
        if opening.wish == PortWish::EvenAndNext
            && let Some(slot) = self.relay(relay)
        {
            slot.ports.release(slot.local.port() + 1);
        }
        self.forget_relay(relay);
        if let Some(allocation) = self.get_mut(opening.allocation) {
            allocation.set_relayed(family, None);
        }
    }

    /// A family that there is no address of: an allocation that has, or may get, the other goes on.
    fn fail(&mut self, mut opening: Box<Opening>, family: Family, why: Refusal, now: Instant) {
        let allocation = self.get(opening.allocation);
        let has_other = allocation.is_some_and(|a| a.all_relayed().next().is_some());
        if has_other || !opening.rest.is_empty() {
            opening.missing.push((family, why.code()));
            return self.open_next(opening, now);
        }
        let user = allocation.map(|allocation| allocation.username.clone());
        self.notices.push(
            &opening.reply.client,
            opening.reply.method,
            user.as_deref(),
            why,
            now,
        );
        self.delete(opening.allocation);
        self.refuse(&opening.reply, why.code());
    }

    /// Holds the port after the one just opened. When the quota is used up nothing is held.
    fn reserve_next(
        &mut self,
        opening: &Opening,
        relay: RelayId,
        now: Instant,
    ) -> Result<(), Exceeded> {
        let (Some(slot), Some(allocation)) = (self.relay(relay), self.get(opening.allocation))
        else {
            return Ok(());
        };
        let (ports, next) = (slot.ports.clone(), slot.local.port() + 1);
        let kept = SocketAddr::new(slot.local.ip(), next);
        let external = slot.external.0.ip();
        let username = allocation.username.clone();
        let account = account_of(&self.config.credentials, &username);
        let source = source_of(opening.reply.client.remote);
        let quotas = &self.config.quotas;
        let entered = self.shared.ledger.enter(quotas, account, source);
        let grant = match entered {
            Ok(grant) => grant,
            Err(exceeded) => {
                self.commands
                    .push_back(Command::ReleasePort { local: kept });
                ports.release(next);
                return Err(exceeded);
            }
        };
        let held = Reservation::new(&username, external, (&ports, next), grant, now);
        let mut token = Token::default();
        self.rng.fill_bytes(&mut token);
        self.shared.reservations.insert(token, held);
        let sweep = now + RESERVATION_LIFETIME;
        self.sweep = Some(self.sweep.map_or(sweep, |at| at.min(sweep)));
        if let Some(allocation) = self.get_mut(opening.allocation) {
            allocation.token = Some(token);
        }
        Ok(())
    }

    /// The success response (RFC 8656 §7.2).
    fn tell(&mut self, reply: &Reply, id: AllocationId, missing: &[(Family, ErrorCode)]) {
        let Some(allocation) = self.get(id) else {
            return;
        };
        let mut writer = Writer::new(Class::Success, method::ALLOCATE, reply.id);
        for (_, relayed) in allocation.all_relayed() {
            if let Some(relay) = self.relay(relayed.relay) {
                writer.add_xor_address(attribute::XOR_RELAYED_ADDRESS, relay.external.0);
            }
        }
        let seconds = allocation.lifetime.as_secs() as u32;
        writer.add(attribute::LIFETIME, &seconds.to_be_bytes());
        if let Some(token) = &allocation.token {
            writer.add(attribute::RESERVATION_TOKEN, token);
        }
        if let Some(ticket) = self.ticket(id) {
            writer.add(attribute::MOBILITY_TICKET, &ticket);
        }
        writer.add_xor_address(
            attribute::XOR_MAPPED_ADDRESS,
            canonical(reply.client.remote),
        );
        for (family, code) in missing {
            let number = code.code();
            let mut value = vec![
                family.number(),
                0,
                (number / 100) as u8,
                (number % 100) as u8,
            ];
            value.extend_from_slice(code.reason().as_bytes());
            writer.add(attribute::ADDRESS_ERROR_CODE, &value);
        }
        self.send(reply, writer);
    }
}

/// LIFETIME as it stands there.
pub(super) fn lifetime(message: &Message<'_>) -> Result<Option<Duration>, ErrorCode> {
    if !message.has(attribute::LIFETIME) {
        return Ok(None);
    }
    let seconds = message.word(attribute::LIFETIME);
    let seconds = u32::from_be_bytes(seconds.ok_or(ErrorCode::BadRequest)?);
    Ok(Some(Duration::from_secs(seconds.into())))
}

/// What is granted for a wish; 0 is the default where nothing is to end (RFC 8656 §7.2).
pub(super) fn granted(wish: Option<Duration>) -> Duration {
    wish.unwrap_or(DEFAULT_LIFETIME)
        .clamp(DEFAULT_LIFETIME, MAX_LIFETIME)
}

/// REQUESTED-ADDRESS-FAMILY (RFC 8656 §18.6).
pub(super) fn requested_family(message: &Message<'_>) -> Result<Option<Family>, ErrorCode> {
    if !message.has(attribute::REQUESTED_ADDRESS_FAMILY) {
        return Ok(None);
    }
    let word = message.word(attribute::REQUESTED_ADDRESS_FAMILY);
    let [number, ..] = word.ok_or(ErrorCode::BadRequest)?;
    let family = Family::from_number(number);
    Ok(Some(family.ok_or(ErrorCode::AddressFamilyNotSupported)?))
}
