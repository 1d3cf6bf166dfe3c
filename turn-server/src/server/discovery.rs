//! NAT behaviour discovery (RFC 5780), where UDP listeners stand at two addresses with the same two ports each: Binding answered
//! from another of them, or to another port of who asks. PADDING is not offered: it is of use to reflectors mostly.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::error::ErrorCode;
use super::types::{ClientAddr, Now, Transport, source_of};
use super::{Reply, Server, canonical};
use crate::codec::{Class, Message, Writer, attribute, method};

/// Flags of CHANGE-REQUEST (RFC 5780 §7.2).
const CHANGE_IP: u32 = 0x04;
/// See [`CHANGE_IP`].
const CHANGE_PORT: u32 = 0x02;
/// RESPONSE-PORT below this is refused: no client has its socket there, but services have that could be made to answer.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// Attributes that are understood here alone.
pub(super) const OWN: [u16; 2] = [attribute::CHANGE_REQUEST, attribute::RESPONSE_PORT];

/// A UDP listener, by its place in the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    address: SocketAddr,
    link: u32,
}

/// What there is beside a listener.
#[derive(Clone, Copy, Debug)]
struct Others {
    same: Listener,
    port: Listener,
    ip: Listener,
    both: Listener,
}

/// The listeners that take part, at most four a family.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    by_local: BTreeMap<SocketAddr, Others>,
}

impl Discovery {
    /// From all UDP listeners, by link. The first two addresses of a family that share two ports are used.
    pub(super) fn new(listeners: &[SocketAddr]) -> Self {
        let find = |ip: IpAddr, port: u16| {
            let address = SocketAddr::new(ip, port);
            let link = listeners.iter().position(|one| *one == address)?;
            let link = link as u32;
            Some(Listener { address, link })
        };
        let mut discovery = Self::default();
        let named = listeners.iter().filter(|one| !one.ip().is_unspecified());
        for (index, first) in named.clone().enumerate() {
            for second in named.clone().skip(index + 1) {
                let diagonal = first.ip() != second.ip()
                    && first.port() != second.port()
                    && first.is_ipv4() == second.is_ipv4();
                let taken = |one: &SocketAddr| one.is_ipv4() == first.is_ipv4();
                if !diagonal || discovery.by_local.keys().any(taken) {
                    continue;
                }
                let at = |ip: &SocketAddr, port: &SocketAddr| find(ip.ip(), port.port());
                let four = (
                    at(first, first),
                    at(first, second),
                    at(second, first),
                    at(second, second),
                );
                if let (Some(a), Some(b), Some(c), Some(d)) = four {
                    discovery.add([a, b, c, d]);
                    discovery.add([b, a, d, c]);
                    discovery.add([c, d, a, b]);
                    discovery.add([d, c, b, a]);
                }
            }
        }
        discovery
    }

    fn add(&mut self, [same, port, ip, both]: [Listener; 4]) {
        let others = Others {
            same,
            port,
            ip,
            both,
        };
        self.by_local.insert(same.address, others);
    }

    fn at(&self, client: &ClientAddr) -> Option<&Others> {
        match client.transport {
            Transport::Udp => self.by_local.get(&client.local),
            Transport::Tcp | Transport::Tls => None,
        }
    }
}

impl Server {
    /// Where the shell's UDP listeners are, by link: two addresses with two ports each serve behaviour discovery (RFC 5780).
    pub fn set_listeners(&mut self, listeners: &[SocketAddr]) {
        self.discovery = Discovery::new(listeners);
    }

    /// Whether clients at any listener are served behaviour discovery.
    pub fn discovers(&self) -> bool {
        !self.discovery.by_local.is_empty()
    }

    /// RFC 8489 §6.3, with RFC 5780 §6 where a client speaks to a listener that takes part.
    pub(super) fn handle_binding(&mut self, mut reply: Reply, message: &Message<'_>, now: Now) {
        let others = self.discovery.at(&reply.client).copied();
        let mut unknown = message.unknown().to_vec();
        if others.is_some() {
            unknown.retain(|kind| !OWN.contains(kind));
        }
        if !unknown.is_empty() {
            return self.refuse_unknown(&reply, &unknown);
        }
        let mapped = canonical(reply.client.remote);
        let mut writer = Writer::new(Class::Success, method::BINDING, reply.id);
        writer.add_xor_address(attribute::XOR_MAPPED_ADDRESS, mapped);
        if let Some(others) = others {
            let special = OWN.iter().any(|kind| message.has(*kind));
            let source = source_of(reply.client.remote);
            // Answers that come from elsewhere, or go elsewhere, share the ration of challenges.
            if special
                && !self
                    .limiter
                    .allow(self.config.challenges, source, now.instant)
            {
                self.counters.challenges_limited += 1;
                return;
            }
            let origin = match redirect(&mut reply.client, message, &others) {
                Ok(origin) => origin,
                Err(code) => return self.refuse(&reply, code),
            };
            writer.add_address(attribute::MAPPED_ADDRESS, mapped);
            writer.add_address(attribute::RESPONSE_ORIGIN, origin);
            writer.add_address(attribute::OTHER_ADDRESS, others.both.address);
        }
        self.counters.bindings += 1;
        self.send(&reply, writer);
    }
}

/// Where the answer leaves from (CHANGE-REQUEST) and goes to (RESPONSE-PORT); returns the former.
fn redirect(
    client: &mut ClientAddr,
    message: &Message<'_>,
    others: &Others,
) -> Result<SocketAddr, ErrorCode> {
    let flags = match (
        message.has(attribute::CHANGE_REQUEST),
        message.word(attribute::CHANGE_REQUEST),
    ) {
        (false, _) => 0,
        (true, Some(word)) => u32::from_be_bytes(word),
        (true, None) => return Err(ErrorCode::BadRequest),
    };
    let port = match (
        message.has(attribute::RESPONSE_PORT),
        message.word(attribute::RESPONSE_PORT),
    ) {
        (false, _) => None,
        (true, Some([high, low, ..])) => Some(u16::from_be_bytes([high, low])),
        (true, None) => return Err(ErrorCode::BadRequest),
    };
    if port.is_some_and(|port| port < FIRST_UNPRIVILEGED_PORT) {
        return Err(ErrorCode::BadRequest);
    }
    let from = match (flags & CHANGE_IP != 0, flags & CHANGE_PORT != 0) {
        (false, false) => others.same,
        (false, true) => others.port,
        (true, false) => others.ip,
        (true, true) => others.both,
    };
    client.local = from.address;
    client.link = from.link;
    client.remote.set_port(port.unwrap_or(client.remote.port()));
    Ok(from.address)
}
