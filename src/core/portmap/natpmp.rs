//! Messages of the NAT Port Mapping Protocol (RFC 6886).

use std::net::Ipv4Addr;

use super::Refusal;

/// RFC 6886 §3.2.
const VERSION: u8 = 0;
/// A response's opcode is the request's and this (§3.2).
const RESPONSE: u8 = 128;
/// Opcodes (§3.2, §3.3).
const EXTERNAL_ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;

/// A well-formed response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// A request that the server does not understand, such as one of PCP (§3.5).
    Unsupported,
    /// To the question for the external address; also sent unasked when it changes or the router
    /// has restarted (§3.2.1).
    External {
        /// Seconds since the router's mappings were last lost (§3.6).
        epoch: u32,
        /// The router's address outside.
        result: Result<Ipv4Addr, Refusal>,
    },
    /// To a request for a mapping.
    Map {
        /// As above.
        epoch: u32,
        /// What was mapped, or why nothing was.
        result: Result<Mapped, Refusal>,
    },
}

/// A mapping that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// The port here.
    pub(super) internal_port: u16,
    /// The port outside.
    pub(super) external_port: u16,
    /// Seconds.
    pub(super) lifetime: u32,
}

/// Asks for the router's external address, and changes nothing (§3.2).
pub(super) fn external_address() -> Vec<u8> {
    vec![VERSION, EXTERNAL_ADDRESS]
}

/// Asks for a mapping of a UDP port; a lifetime of 0 deletes it, and `external` must be 0 then (§3.3,
/// §3.4).
pub(super) fn map(internal: u16, external: u16, lifetime: u32) -> Vec<u8> {
    let mut message = vec![VERSION, MAP_UDP, 0, 0];
    message.extend_from_slice(&internal.to_be_bytes());
    message.extend_from_slice(&external.to_be_bytes());
    message.extend_from_slice(&lifetime.to_be_bytes());
    message
}

/// Reads a response; `None` for anything else.
pub(super) fn parse(message: &[u8]) -> Option<Reply> {
    let [VERSION, opcode, code @ ..] = message else {
        return None;
    };
    let opcode = opcode.checked_sub(RESPONSE)?;
    let code = u16::from_be_bytes(*code.first_chunk()?);
    let epoch = u32::from_be_bytes(*message.get(4..)?.first_chunk()?);
    let error = refusal(code);
    if matches!(error, Some(Refusal::Unsupported)) {
        return Some(Reply::Unsupported);
    }
    match opcode {
        EXTERNAL_ADDRESS => {
            let result = match error {
                Some(error) => Err(error),
                None => {
                    let octets: [u8; 4] = *message.get(8..)?.first_chunk()?;
                    let address = Ipv4Addr::from(octets);
                    // The router has no address outside (yet).
                    let known = !address.is_unspecified();
                    known.then_some(address).ok_or(Refusal::NetworkFailure)
                }
            };
            Some(Reply::External { epoch, result })
        }
        MAP_UDP => {
            let port = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
            // Of an error nothing counts after the epoch (§3.5).
            let result = match error {
                Some(error) => Err(error),
                None => Ok(Mapped {
                    internal_port: port(8)?,
                    external_port: port(10)?,
                    lifetime: u32::from_be_bytes(*message.get(12..)?.first_chunk()?),
                }),
            };
            Some(Reply::Map { epoch, result })
        }
        _ => None,
    }
}

/// Result codes (§3.5).
fn refusal(code: u16) -> Option<Refusal> {
    Some(match code {
        0 => return None,
        1 | 5 => Refusal::Unsupported,
        2 => Refusal::NotAuthorized,
        3 => Refusal::NetworkFailure,
        4 => Refusal::NoResources,
        other => Refusal::Other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6886 §3.2 and §3.3.
    #[test]
    fn messages_are_laid_out_as_the_rfc_has_them() {
        assert_eq!(external_address(), [0, 0]);
        assert_eq!(
            map(51821, 51822, 7200),
            [0, 1, 0, 0, 0xca, 0x6d, 0xca, 0x6e, 0, 0, 0x1c, 0x20]
        );
        let external = parse(&[0, 128, 0, 0, 0, 0, 1, 0, 203, 0, 114, 4]);
        let expected = Reply::External {
            epoch: 256,
            result: Ok(Ipv4Addr::new(203, 0, 114, 4)),
        };
        assert_eq!(external, Some(expected));
        let mapped = [
            0, 129, 0, 0, 0, 0, 0, 9, 0xca, 0x6d, 0xca, 0x6e, 0, 0, 0x0e, 0x10,
        ];
        let expected = Reply::Map {
            epoch: 9,
            result: Ok(Mapped {
                internal_port: 51821,
                external_port: 51822,
                lifetime: 3600,
            }),
        };
        assert_eq!(parse(&mapped), Some(expected));
        for length in 0..mapped.len() {
            assert_eq!(parse(&mapped[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let refused = |code: u8| {
            let mut message = [0; 8];
            message[1] = 129;
            message[3] = code;
            parse(&message)
        };
        let Some(Reply::Map { result, .. }) = refused(2) else {
            panic!("a refusal is a reply");
        };
        assert_eq!(result, Err(Refusal::NotAuthorized));
        // What a server of this protocol says to PCP's version 2.
        assert_eq!(parse(&[0, 129, 0, 1, 0, 0, 0, 5]), Some(Reply::Unsupported));
        let nowhere = parse(&[0, 128, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        let expected = Reply::External {
            epoch: 256,
            result: Err(Refusal::NetworkFailure),
        };
        assert_eq!(nowhere, Some(expected));
        assert_eq!(parse(&[2, 128, 0, 0, 0, 0, 1, 0, 203, 0, 114, 4]), None);
        assert_eq!(parse(&[0, 1, 0, 0]), None);
    }
}
