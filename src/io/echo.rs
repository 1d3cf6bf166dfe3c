//! ICMP echo (RFC 792, RFC 4443 §4) through the overlay, for `wice ping`: it proves that packets pass,
//! not only that checks do.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// Longer than any reply to what is sent, IPv4 header with options included.
const BUFFER: usize = 256;
/// Fills the request to the size that `ping` has.
const PAYLOAD: usize = 56;
const HEADER: usize = 8;

/// Sends one echo request and waits for its reply. Blocks for at most `timeout`; `None` when nothing
/// has come by then. Needs CAP_NET_RAW where the system allows no unprivileged ICMP sockets.
pub fn echo(
    to: IpAddr,
    identifier: u16,
    sequence: u16,
    timeout: Duration,
) -> io::Result<Option<Duration>> {
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    // The kernel gives datagram sockets an identifier of their own and takes the IP header away.
    let (socket, raw) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
        Ok(socket) => (socket, false),
        Err(_) => (Socket::new(domain, Type::RAW, Some(protocol))?, true),
    };
    let mut packet = vec![0; HEADER + PAYLOAD];
    packet[0] = request;
    packet[4..6].copy_from_slice(&identifier.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    if to.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let started = Instant::now();
    socket.send_to(&packet, &SocketAddr::new(to, 0).into())?;
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // SAFETY: recv has initialised the first `len` bytes.
        let received: Vec<u8> = buffer[..len]
            .iter()
            .map(|byte| unsafe { byte.assume_init() })
            .collect();
        let skip = match received.first() {
            Some(first) if raw && to.is_ipv4() => usize::from(first & 0x0F) * 4,
            Some(_) | None => 0,
        };
        let Some(message) = received
            .get(skip..)
            .filter(|message| message.len() >= HEADER)
        else {
            continue;
        };
        let ours = !raw || message[4..6] == identifier.to_be_bytes();
        if message[0] == reply && ours && message[6..8] == sequence.to_be_bytes() {
            return Ok(Some(started.elapsed()));
        }
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_answers() {
        for address in ["127.0.0.1", "::1"] {
            let rtt = echo(address.parse().unwrap(), 77, 1, Duration::from_secs(1)).unwrap();
            assert!(
                rtt.is_some_and(|rtt| rtt < Duration::from_secs(1)),
                "{address}"
            );
        }
    }

    #[test]
    fn the_checksum_is_rfc_1071s() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }
}
