//! Messages of the Port Control Protocol (RFC 6887): ANNOUNCE and MAP for UDP, without options.

use std::net::{IpAddr, SocketAddr};

use super::{NONCE_LEN, Refusal};

/// RFC 6887 §7.1.
const VERSION: u8 = 2;
/// The R bit of a response (§7.2).
const RESPONSE: u8 = 0x80;
/// Opcodes (§19.2).
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;
/// Bytes of the common header (§7.1, §7.2).
const HEADER_LEN: usize = 24;
/// Bytes of a MAP message without options (§11.1).
const MAP_LEN: usize = 60;
/// The longest message (§7).
const MAX_LEN: usize = 1100;
/// IANA's number of UDP.
const UDP: u8 = 17;

/// What a MAP request asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct MapRequest<'a> {
    /// Our address and port.
    pub(super) local: SocketAddr,
    /// Names the mapping as ours; the same at every renewal (§11.2).
    pub(super) nonce: &'a [u8; NONCE_LEN],
    /// The address and port that we would like; an unspecified address leaves it to the router.
    pub(super) suggested: SocketAddr,
    /// Seconds; 0 deletes.
    pub(super) lifetime: u32,
}

/// A well-formed response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The server speaks another version alone.
    OtherVersion,
    /// To ANNOUNCE; also sent unasked after the server lost its state (§14.1).
    Announce {
        /// What the server has against it.
        error: Option<Refusal>,
        /// The server's epoch, in seconds (§8.5).
        epoch: u32,
    },
    /// To MAP.
    Map {
        /// The request's nonce.
        nonce: [u8; NONCE_LEN],
        /// The mapped port here.
        internal_port: u16,
        /// The server's epoch, in seconds (§8.5).
        epoch: u32,
        /// Seconds: of the mapping, or how long the refusal will last.
        lifetime: u32,
        /// What was mapped, or why nothing was.
        result: Result<SocketAddr, Refusal>,
    },
}

/// Asks whether there is a server, and changes nothing (§14.1).
pub(super) fn announce(local: IpAddr) -> Vec<u8> {
    header(ANNOUNCE, 0, local)
}

/// Asks for a mapping of one UDP port (§11.1).
pub(super) fn map(request: &MapRequest<'_>) -> Vec<u8> {
    let mut message = header(MAP, request.lifetime, request.local.ip());
    message.extend_from_slice(request.nonce);
    message.extend_from_slice(&[UDP, 0, 0, 0]);
    message.extend_from_slice(&request.local.port().to_be_bytes());
    message.extend_from_slice(&request.suggested.port().to_be_bytes());
    message.extend_from_slice(&wide(request.suggested.ip()));
    message
}

/// Reads a response; `None` for what §8.3 says to drop.
pub(super) fn parse(message: &[u8]) -> Option<Reply> {
    if message.len() < HEADER_LEN || message.len() > MAX_LEN || !message.len().is_multiple_of(4) {
        return None;
    }
    let opcode = message[1].checked_sub(RESPONSE)?;
    if message[0] != VERSION {
        return Some(Reply::OtherVersion);
    }
    let error = refusal(message[3]);
    let lifetime = u32_at(message, 4)?;
    let epoch = u32_at(message, 8)?;
    match opcode {
        ANNOUNCE => Some(Reply::Announce { error, epoch }),
        MAP => {
            let body = message.get(HEADER_LEN..MAP_LEN)?;
            let nonce = body.get(..NONCE_LEN)?.try_into().ok()?;
            let octets: [u8; 16] = body.get(20..36)?.try_into().ok()?;
            let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
            if body[12] != UDP {
                return None;
            }
            let external = SocketAddr::new(IpAddr::from(octets).to_canonical(), port(18)?);
            Some(Reply::Map {
                nonce,
                internal_port: port(16)?,
                epoch,
                lifetime,
                result: error.map_or(Ok(external), Err),
            })
        }
        _ => None,
    }
}

fn header(opcode: u8, lifetime: u32, local: IpAddr) -> Vec<u8> {
    let mut message = Vec::with_capacity(MAP_LEN);
    message.extend_from_slice(&[VERSION, opcode, 0, 0]);
    message.extend_from_slice(&lifetime.to_be_bytes());
    message.extend_from_slice(&wide(local));
    message
}

/// IPv4 addresses stand as IPv4-mapped ones (§5).
fn wide(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(
        message.get(at..at + 4)?.try_into().ok()?,
    ))
}

/// Result codes (§7.4).
fn refusal(code: u8) -> Option<Refusal> {
    Some(match code {
        0 => return None,
        1 | 4 | 5 | 9 => Refusal::Unsupported,
        2 => Refusal::NotAuthorized,
        7 => Refusal::NetworkFailure,
        8 | 10 => Refusal::NoResources,
        11 => Refusal::Conflict,
        12 => Refusal::AddressMismatch,
        other => Refusal::Other(u16::from(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: [u8; NONCE_LEN] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    fn response(result: u8) -> Vec<u8> {
        let mut message = vec![2, 0x81, 0, result, 0, 0, 0x1c, 0x20, 0, 0, 0, 42];
        message.extend_from_slice(&[0; 12]);
        message.extend_from_slice(&NONCE);
        message.extend_from_slice(&[17, 0, 0, 0, 0xca, 0x6d, 0xca, 0x6e]);
        message.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 114, 4]);
        message
    }

    /// RFC 6887 figures 2 and 9.
    #[test]
    fn requests_are_laid_out_as_the_rfc_has_them() {
        let local: SocketAddr = "192.168.1.2:51821".parse().unwrap();
        let address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 2];
        assert_eq!(
            announce(local.ip()),
            [&[2, 0, 0, 0, 0, 0, 0, 0][..], &address].concat()
        );
        let request = MapRequest {
            local,
            nonce: &NONCE,
            suggested: "0.0.0.0:51822".parse().unwrap(),
            lifetime: 7200,
        };
        let any = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
        let expected = [
            &[2, 1, 0, 0, 0, 0, 0x1c, 0x20][..],
            &address,
            &NONCE,
            &[17, 0, 0, 0, 0xca, 0x6d, 0xca, 0x6e],
            &any,
        ];
        assert_eq!(map(&request), expected.concat());
    }

    /// RFC 6887 figures 3 and 10.
    #[test]
    fn responses_are_read() {
        let mapped = Reply::Map {
            nonce: NONCE,
            internal_port: 51821,
            epoch: 42,
            lifetime: 7200,
            result: Ok("203.0.114.4:51822".parse().unwrap()),
        };
        assert_eq!(parse(&response(0)), Some(mapped));
        let Some(Reply::Map { result, .. }) = parse(&response(2)) else {
            panic!("a refusal is a reply");
        };
        assert_eq!(result, Err(Refusal::NotAuthorized));
        let announced = [&[2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], &[0; 12]].concat();
        let expected = Reply::Announce {
            error: None,
            epoch: 256,
        };
        assert_eq!(parse(&announced), Some(expected));
        let older = [&[1, 0x81, 0, 1][..], &[0; 20]].concat();
        assert_eq!(parse(&older), Some(Reply::OtherVersion));
    }

    #[test]
    fn what_is_no_response_is_dropped() {
        let good = response(0);
        for length in 0..good.len() {
            let cut = parse(&good[..length]);
            assert!(cut.is_none(), "{length} bytes");
        }
        let mut request = good.clone();
        request[1] = 1;
        assert_eq!(parse(&request), None);
        let mut tcp = good.clone();
        tcp[36] = 6;
        assert_eq!(parse(&tcp), None);
        let mut long = good;
        long.resize(1104, 0);
        assert_eq!(parse(&long), None);
    }
}
