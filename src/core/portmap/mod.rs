//! Port mapping: asks the router of one interface to forward a UDP port to this node, by PCP
//! (RFC 6887), NAT-PMP (RFC 6886) or UPnP's Internet Gateway Device, whichever answers, in that
//! order. One [`Client`] an address and its default gateway.
//!
//! It speaks with the gateway alone and believes nobody else. Every mapping ends by itself:
//! [`LIFETIME`] after a node that died.

mod client;
mod epoch;
mod hold;
mod http;
mod natpmp;
mod pcp;
#[cfg(test)]
mod tests;
mod upnp;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

pub use client::Client;
pub use http::{MAX_RESPONSE, Malformed, Response, parse as parse_response};

/// Where routers listen for PCP and NAT-PMP (RFC 6887 §19.1, RFC 6886 §3.1).
pub const SERVER_PORT: u16 = 5351;
/// Where hosts hear that a router has restarted (RFC 6887 §14.1.1, RFC 6886 §3.2.1).
pub const ANNOUNCEMENT_PORT: u16 = 5350;
/// Where gateways listen for searches (UPnP Device Architecture 1.1 §1).
pub const SEARCH_PORT: u16 = 1900;
/// Bytes of a PCP nonce (RFC 6887 §11.1).
pub const NONCE_LEN: usize = 12;

/// How long a mapping is asked for (RFC 6886 §3.3 recommends two hours); what a node that died leaves
/// on the router is gone by then.
pub const LIFETIME: Duration = Duration::from_secs(7200);
/// The longest mapping that is believed, however long the router says: a day (RFC 6887 §15).
const LIFETIME_MAX: Duration = Duration::from_secs(86_400);
/// The shortest: a router that says less is asked no oftener (RFC 6887 §11.2.1 forbids under 4 s).
const LIFETIME_MIN: Duration = Duration::from_secs(120);
/// First retransmission of PCP (RFC 6887 §8.1.1: IRT), ± 10 %, doubled each time.
const PCP_RTO: Duration = Duration::from_secs(3);
/// First retransmission of NAT-PMP (RFC 6886 §3.1), doubled each time.
const NATPMP_RTO: Duration = Duration::from_millis(250);
/// First repetition of a search, doubled each time: answers take up to a second (MX).
const SEARCH_RTO: Duration = Duration::from_millis(1500);
/// One round of asking: three times by PCP and UPnP, six times by NAT-PMP. A router on the LAN that has
/// not answered by then has none of it.
const ROUND: Duration = Duration::from_secs(10);
/// The same for who only looks, and for whom somebody waits: answers to searches take up to a second,
/// two exchanges follow.
const LOOK: Duration = Duration::from_millis(2500);
/// A protocol that has answered waits this long for one that is preferred: some round trips on a
/// LAN, and NAT-PMP's first retransmission.
const PREFER: Duration = Duration::from_millis(300);
/// After nothing was found, or all was refused, until the next try: PCP's longest wait
/// (RFC 6887 §8.1.1: MRT).
const REST: Duration = Duration::from_secs(1024);
/// The same while the router has no connection of its own.
const REST_OFFLINE: Duration = Duration::from_secs(60);
/// How often a router is asked whether it still knows the mapping, by its epoch: a router that has
/// restarted without a word is found out after this. 24 bytes a minute.
const WATCH: Duration = Duration::from_secs(60);
/// The same by UPnP, where it takes two TCP connections.
const WATCH_UPNP: Duration = Duration::from_secs(300);
/// Other external ports that are tried by UPnP when one is taken.
const PORT_TRIES: u8 = 4;
/// How the mapping is called on the router's page.
const DESCRIPTION: &str = "wice";

/// How a router maps ports, the preferred first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl Protocol {
    /// All, in the order of preference.
    pub const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Upnp];

    /// As reports have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// Why a router maps nothing for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its administrator forbids it.
    #[error("it is not allowed in the router's settings")]
    NotAuthorized,
    /// It has no more room.
    #[error("the router has no room for another mapping")]
    NoResources,
    /// It is not connected itself.
    #[error("the router has no connection of its own")]
    NetworkFailure,
    /// It does not know the request.
    #[error("the router cannot do it")]
    Unsupported,
    /// There is a NAT between us and the router.
    #[error("there is another NAT before the router")]
    AddressMismatch,
    /// Every port that was tried is another's.
    #[error("the ports are taken by others")]
    Conflict,
    /// It offers only mappings that never end, which wice does not leave behind.
    #[error("the router offers only mappings that never end")]
    PermanentOnly,
    /// It answered to what came before, and no more.
    #[error("the router ceased to answer")]
    NoAnswer,
    /// Another code of the protocol.
    #[error("the router refused with code {0}")]
    Other(u16),
}

/// What is to be mapped, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our address on the interface, and the port to map.
    pub local: SocketAddr,
    /// The default gateway of the interface, of the same family.
    pub gateway: IpAddr,
    /// What for.
    pub purpose: Purpose,
    /// Names our mappings towards PCP; the same after a restart of the node, or the router would take us
    /// for another (RFC 6887 §11.2).
    pub nonce: [u8; NONCE_LEN],
    /// 32 random bytes: spreads retransmissions and picks ports.
    pub seed: [u8; 32],
}

/// What a client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To have the port mapped.
    Map,
    /// To see what the router offers; it changes nothing there.
    Look,
}

/// Something to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// A datagram to the gateway's [`SERVER_PORT`], by PCP or NAT-PMP.
    Server(Vec<u8>),
    /// A datagram to [`SEARCH_PORT`], of the gateway and of 239.255.255.250.
    Search(Vec<u8>),
    /// An HTTP exchange over a TCP connection of its own; what comes of it goes to
    /// [`Client::handle_response`] under the same number. A later one replaces it.
    Exchange {
        /// Its number.
        id: u32,
        /// On the gateway.
        address: SocketAddr,
        /// The whole request.
        request: Vec<u8>,
    },
}

/// What is known of a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Our address and port.
    pub local: SocketAddr,
    /// The router.
    pub gateway: IpAddr,
    /// Which protocols it has answered to.
    pub protocols: Vec<Protocol>,
    /// Its address outside, where it has told it.
    pub external: Option<IpAddr>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of asking a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not finished.
    Looking,
    /// It does not answer to any protocol.
    Nothing,
    /// It answers; nothing was asked for.
    Offered,
    /// The port is mapped.
    Mapped {
        /// How.
        protocol: Protocol,
        /// Where we are reached.
        external: SocketAddr,
        /// When the mapping ends if it is not renewed.
        until: Instant,
    },
    /// It refuses.
    Refused {
        /// The protocol that it was asked by first.
        protocol: Protocol,
        /// Why.
        refusal: Refusal,
    },
    /// Its own address outside is a private one: another NAT is before it, and a mapping on this one
    /// alone would reach nobody.
    TwoLayers,
}

#[cfg(test)]
mod constants {
    use super::*;

    #[test]
    fn timers_keep_their_relations() {
        assert!(PCP_RTO.mul_f64(1.1) * 3 <= ROUND, "three transmissions");
        assert!(NATPMP_RTO * 31 < ROUND, "six transmissions");
        assert!(PREFER < NATPMP_RTO * 2 && PREFER > NATPMP_RTO);
        assert!(WATCH > ROUND && WATCH_UPNP * 4 < LIFETIME / 2);
        // A router that grants the least is still asked in time, once more after a lost round.
        assert!(LIFETIME_MIN / 2 + ROUND + LIFETIME_MIN / 4 + ROUND < LIFETIME_MIN + ROUND);
    }
}
