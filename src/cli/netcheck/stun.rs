//! STUN requests to servers, with what RFC 5780 adds: CHANGE-REQUEST and OTHER-ADDRESS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::core::stun::{Binding, BindingClass, TransactionId, is_stun};

/// When a request is sent: 10 % loss each way leaves 0.7 % unanswered.
const SENT_AT: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(400),
    Duration::from_millis(1000),
];
/// When an answer is waited for no longer: a satellite's round trip after the last transmission.
pub(super) const GIVE_UP: Duration = Duration::from_millis(2000);
/// No answer of a STUN server is longer (RFC 8489 §6.1, on an MTU of 1,500).
const MAX_DATAGRAM: usize = 1500;

/// RFC 5780 §7.2, §7.4.
const CHANGE_REQUEST: u16 = 0x0003;
const OTHER_ADDRESS: u16 = 0x802C;
const CHANGE_IP: u8 = 0x04;
const CHANGE_PORT: u8 = 0x02;
const HEADER: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];

/// From where an answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Change {
    /// From the address that was asked.
    Nothing,
    /// From the server's other port.
    Port,
    /// From its other address and port.
    AddressAndPort,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Answer {
    /// What the server saw.
    pub(in crate::cli) mapped: SocketAddr,
    /// Where the answer came from.
    pub(super) from: SocketAddr,
    /// The server's other address and port, if it has any.
    pub(super) other: Option<SocketAddr>,
    pub(super) rtt: Duration,
}

struct Asked {
    id: TransactionId,
    server: SocketAddr,
    request: Vec<u8>,
    answer: Option<Answer>,
}

/// Asks all from one socket at once; answers in the order of the questions.
pub(in crate::cli) async fn ask_all(
    socket: &UdpSocket,
    questions: &[(SocketAddr, Change)],
) -> anyhow::Result<Vec<Option<Answer>>> {
    let mut asked = Vec::with_capacity(questions.len());
    for (server, change) in questions {
        let id = TransactionId::from(u128::from_be_bytes(crate::cli::random::random()?));
        asked.push(Asked {
            id,
            server: *server,
            request: encode(id, *change),
            answer: None,
        });
    }
    let start = Instant::now();
    let mut sent = [start; SENT_AT.len()];
    for (round, at) in SENT_AT.iter().enumerate() {
        let next = SENT_AT.get(round + 1).copied().unwrap_or(GIVE_UP);
        tokio::time::sleep_until(start + *at).await;
        sent[round] = Instant::now();
        for one in asked.iter().filter(|one| one.answer.is_none()) {
            // Without a route there is no answer either.
            let _ = socket.send_to(&one.request, one.server).await;
        }
        listen(socket, &mut asked, sent[round], start + next).await;
        if asked.iter().all(|one| one.answer.is_some()) {
            break;
        }
    }
    Ok(asked.into_iter().map(|one| one.answer).collect())
}

/// Takes answers until all are there or it is `until`.
async fn listen(socket: &UdpSocket, asked: &mut [Asked], sent: Instant, until: Instant) {
    let mut buffer = [0; MAX_DATAGRAM];
    while asked.iter().any(|one| one.answer.is_none()) {
        let (length, from) = match timeout_at(until, socket.recv_from(&mut buffer)).await {
            Err(_) => return,
            // ICMP errors of one server say nothing of the others.
            Ok(Err(_)) => continue,
            Ok(Ok(received)) => received,
        };
        let Some((id, mapped, other)) = parse(&buffer[..length]) else {
            continue;
        };
        if let Some(one) = asked.iter_mut().find(|one| one.id == id) {
            one.answer.get_or_insert(Answer {
                mapped,
                from: SocketAddr::new(from.ip().to_canonical(), from.port()),
                other,
                rtt: sent.elapsed(),
            });
        }
    }
}

/// A Binding request.
pub(super) fn encode(id: TransactionId, change: Change) -> Vec<u8> {
    let flags = match change {
        Change::Nothing => return crate::core::stun::encode_binding(id),
        Change::Port => CHANGE_PORT,
        Change::AddressAndPort => CHANGE_IP | CHANGE_PORT,
    };
    let mut out = vec![0, 1, 0, 8];
    out.extend_from_slice(&COOKIE);
    out.extend_from_slice(&u128::from(id).to_be_bytes()[4..]);
    out.extend_from_slice(&CHANGE_REQUEST.to_be_bytes());
    out.extend_from_slice(&[0, 4, 0, 0, 0, flags]);
    out
}

/// A success response: its id, the mapped address, the other address.
pub(super) fn parse(datagram: &[u8]) -> Option<(TransactionId, SocketAddr, Option<SocketAddr>)> {
    if !is_stun(datagram) {
        return None;
    }
    let binding = Binding::parse(datagram)?;
    if binding.class() != BindingClass::Success {
        return None;
    }
    Some((
        binding.id(),
        binding.mapped_address()?,
        other_address(datagram),
    ))
}

/// OTHER-ADDRESS: as MAPPED-ADDRESS, not masked (RFC 5780 §7.4).
fn other_address(datagram: &[u8]) -> Option<SocketAddr> {
    let mut rest = datagram.get(HEADER..)?;
    loop {
        let head = rest.get(..4)?;
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = rest.get(4..4 + length)?;
        if kind == OTHER_ADDRESS {
            return address(value);
        }
        rest = rest.get(4 + length.next_multiple_of(4)..)?;
    }
}

/// One zero byte, family, port, address (RFC 8489 §14.1).
fn address(value: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([*value.get(2)?, *value.get(3)?]);
    let ip = match value.get(1)? {
        1 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(value.get(4..8)?).ok()?)),
        2 => IpAddr::V6(Ipv6Addr::from(
            <[u8; 16]>::try_from(value.get(4..20)?).ok()?,
        )),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}
