//! The NAT in front of one family: mapping by several servers, filtering by one with two addresses, hairpin by two own sockets.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use wice_signaling::protocol::{Filtering, NatBehavior};

use super::refused::refusing;
use super::stun::{Answer, Change, ask_all, encode};
use super::unknown_nat;
use crate::cli::random::random;
use crate::core::gather::Gatherer;
use crate::core::ice::BaseId;
use crate::core::stun::{Binding, TransactionId};
use crate::report::MappingObservation;

/// The only base that the gatherer is told of here.
const BASE: BaseId = BaseId(0);
/// What goes through the NAT and back stays in the router: this is plenty.
const HAIRPIN_WAIT: Duration = Duration::from_millis(500);
/// How often it is tried.
const HAIRPIN_TRIES: u32 = 2;
/// More than a Binding request has.
const SMALL: usize = 128;

/// A server, resolved.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// What was found out.
#[derive(Debug)]
pub(super) struct FamilyResult {
    pub(super) mappings: Vec<MappingObservation>,
    pub(super) behavior: NatBehavior,
    pub(super) hairpin: Option<bool>,
    /// Servers whose own host says that nothing listens there.
    pub(super) refused: Vec<SocketAddr>,
}

impl FamilyResult {
    fn nothing() -> Self {
        Self {
            mappings: Vec::new(),
            behavior: unknown_nat(),
            hairpin: None,
            refused: Vec::new(),
        }
    }

    /// Whether any server answered; `None` where none was asked.
    pub(super) fn works(&self) -> Option<bool> {
        (!self.mappings.is_empty()).then(|| self.mappings.iter().any(|seen| seen.mapped.is_some()))
    }
}

/// Examines one family; what cannot be tried is not known.
pub(super) async fn examine(family: Family, servers: &[Server]) -> FamilyResult {
    let servers: Vec<&Server> = servers
        .iter()
        .filter(|server| server.address.is_ipv4() == (family == Family::V4))
        .collect();
    if servers.is_empty() {
        return FamilyResult::nothing();
    }
    try_examine(family, &servers)
        .await
        .unwrap_or_else(|_| FamilyResult {
            // There is no socket of this family.
            mappings: servers
                .iter()
                .map(|server| observation(server, None))
                .collect(),
            ..FamilyResult::nothing()
        })
}

async fn try_examine(family: Family, servers: &[&Server]) -> anyhow::Result<FamilyResult> {
    let socket = bind(family).await?;
    let questions: Vec<(SocketAddr, Change)> = servers
        .iter()
        .map(|server| (server.address, Change::Nothing))
        .collect();
    let answers = ask_all(&socket, &questions).await?;
    let port = socket.local_addr()?.port();
    let own = own_address(family, servers, port).await;
    let mut behavior = classify(own, servers, &answers);
    let two_addresses = servers.iter().zip(&answers).find_map(|(server, answer)| {
        let other = answer.as_ref()?.other?;
        // One with both alike has only one.
        (other.ip() != server.address.ip()).then_some((server.address, other))
    });
    let filtering = async {
        match two_addresses {
            Some((server, other)) => filtering(family, server, other).await.unwrap_or_default(),
            None => Filtering::Unknown,
        }
    };
    let mapped = answers.iter().flatten().map(|answer| answer.mapped).next();
    let hairpin = async {
        match (mapped, own) {
            (Some(mapped), own) if Some(mapped) != own => {
                hairpin(family, &socket, mapped).await.ok()
            }
            (_, _) => None,
        }
    };
    let silent = servers.iter().zip(&answers);
    let silent = silent.filter(|(_, answer)| answer.is_none());
    let refused = refusing(silent.map(|(server, _)| server.address).collect());
    let (filtering, hairpin, refused) = tokio::join!(filtering, hairpin, refused);
    behavior.filtering = filtering;
    let seen = servers.iter().zip(&answers);
    Ok(FamilyResult {
        mappings: seen
            .map(|(server, answer)| observation(server, answer.as_ref()))
            .collect(),
        behavior,
        hairpin,
        refused,
    })
}

/// The core's own judgement, given the answers.
fn classify(
    own: Option<SocketAddr>,
    servers: &[&Server],
    answers: &[Option<Answer>],
) -> NatBehavior {
    let now = Instant::now();
    let mut gatherer = Gatherer::default();
    let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let base = own
        .or(servers.first().map(|_| unspecified))
        .unwrap_or(unspecified);
    gatherer.set_bases(BTreeMap::from([(BASE, base)]), now);
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
    gatherer.set_servers(&addresses, now);
    let mut number = 0u128;
    loop {
        number += 1;
        let Some(request) = gatherer.poll_request(TransactionId::from(number), now) else {
            break;
        };
        let answer = servers
            .iter()
            .zip(answers)
            .find(|(server, _)| server.address == request.server)
            .and_then(|(_, answer)| *answer);
        let (Some(answer), Some(asked)) = (answer, Binding::parse(&request.payload)) else {
            continue;
        };
        let key = crate::core::stun::integrity_key("");
        let response = crate::core::stun::encode_success(asked.id(), answer.mapped, &key);
        if let Some(response) = Binding::parse(&response) {
            gatherer.handle_response(request.server, &response, now);
        }
    }
    gatherer.nat()
}

/// RFC 5780 §4.4, from a socket that has sent nothing to the server's other address.
async fn filtering(
    family: Family,
    server: SocketAddr,
    other: SocketAddr,
) -> anyhow::Result<Filtering> {
    let fresh = bind(family).await?;
    if ask_all(&fresh, &[(server, Change::Nothing)]).await?[0].is_none() {
        return Ok(Filtering::Unknown);
    }
    let from = |answer: &Option<Answer>| answer.map(|answer| answer.from);
    let moved = ask_all(&fresh, &[(server, Change::AddressAndPort)]).await?;
    if from(&moved[0]).is_some_and(|from| from.ip() == other.ip()) {
        return Ok(Filtering::EndpointIndependent);
    }
    let moved = ask_all(&fresh, &[(server, Change::Port)]).await?;
    Ok(match from(&moved[0]) {
        Some(from) if from.ip() == server.ip() && from.port() != server.port() => {
            Filtering::AddressDependent
        }
        // It answers from where it was asked: it does not do what RFC 5780 says.
        Some(_) => Filtering::Unknown,
        None => Filtering::AddressAndPortDependent,
    })
}

/// RFC 4787 §6: whether a second socket reaches the first at its mapped address.
async fn hairpin(family: Family, socket: &UdpSocket, mapped: SocketAddr) -> anyhow::Result<bool> {
    let second = bind(family).await?;
    let probe = encode(
        TransactionId::from(u128::from_be_bytes(random()?)),
        Change::Nothing,
    );
    let mut buffer = [0; SMALL];
    for _ in 0..HAIRPIN_TRIES {
        let _ = second.send_to(&probe, mapped).await;
        let until = tokio::time::Instant::now() + HAIRPIN_WAIT;
        while let Ok(received) = tokio::time::timeout_at(until, socket.recv_from(&mut buffer)).await
        {
            if received.is_ok_and(|(length, _)| buffer[..length] == probe[..]) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

async fn bind(family: Family) -> std::io::Result<UdpSocket> {
    match family {
        Family::V4 => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await,
        Family::V6 => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await,
    }
}

/// From which address the kernel sends to the servers.
async fn own_address(family: Family, servers: &[&Server], port: u16) -> Option<SocketAddr> {
    let probe = bind(family).await.ok()?;
    probe.connect(servers.first()?.address).await.ok()?;
    Some(SocketAddr::new(probe.local_addr().ok()?.ip(), port))
}

fn observation(server: &Server, answer: Option<&Answer>) -> MappingObservation {
    MappingObservation {
        server: server.name.clone(),
        address: server.address,
        mapped: answer.map(|answer| answer.mapped),
        rtt_ms: answer.map(|answer| crate::report::milliseconds(answer.rtt)),
    }
}
