//! Whether WireGuard's port is bound in this network namespace: only then does a datagram from it
//! prove anything, and only here can it be reached over loopback.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};

/// Sockets have lines of 128 bytes: 32,000 of them. What is not found by then counts as not bound.
const MAX_TABLE: u64 = 4 << 20;
/// The first columns of `/proc/net/udp` (proc(5)): number, local address, remote address, state,
/// queues, timer, retransmits, user.
const LOCAL: usize = 1;
const USER: usize = 7;

/// Whether root, or this process's own user, has bound `port` at all addresses or at 127.0.0.1. The
/// kernel's own sockets are root's.
pub(super) fn is_bound(port: u16) -> bool {
    let own = rustix::process::geteuid().as_raw();
    ["/proc/self/net/udp", "/proc/self/net/udp6"]
        .iter()
        .filter_map(|path| File::open(path).ok())
        .flat_map(|file| BufReader::new(file.take(MAX_TABLE)).lines())
        .map_while(Result::ok)
        .any(|line| holds(&line, port, own))
}

fn holds(line: &str, port: u16, own: u32) -> bool {
    let mut columns = line.split_ascii_whitespace();
    let Some((address, found)) = columns.nth(LOCAL).and_then(|c| c.split_once(':')) else {
        return false;
    };
    let user = columns.nth(USER - LOCAL - 1).and_then(|c| c.parse().ok());
    let reachable = address.bytes().all(|digit| digit == b'0') || address == local_host();
    let ours = user.is_some_and(|user: u32| user == 0 || user == own);
    reachable && ours && u16::from_str_radix(found, 16) == Ok(port)
}

/// 127.0.0.1 as the kernel prints it: the four bytes as one number of this machine.
fn local_host() -> String {
    format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]))
}

/// What to do about an interface whose port is not bound here; 0 for one that has none.
pub(super) fn unbound(interface: &str, port: u16) -> String {
    if port == 0 {
        return format!(
            "{interface} has no listen port yet: bring it up (ip link set {interface} up)"
        );
    }
    format!(
        "WireGuard's port {port} is not open in this network namespace: {interface} is down (ip link set {interface} up), or was made in another namespace, where its socket stays: run wice there"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_port_is_found_and_a_closed_one_is_not() {
        for address in ["0.0.0.0:0", "127.0.0.1:0"] {
            let socket = std::net::UdpSocket::bind(address).unwrap();
            let port = socket.local_addr().unwrap().port();
            assert!(is_bound(port), "{address}");
            drop(socket);
            assert!(!is_bound(port), "{address}");
        }
    }

    #[test]
    fn what_another_user_has_bound_proves_nothing() {
        let line = |user: u32| {
            format!(
                "  401: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000 {user:>5}        0 0 2 0 0"
            )
        };
        assert!(holds(&line(0), 0xca6c, 1000));
        assert!(holds(&line(1000), 0xca6c, 1000));
        assert!(!holds(&line(1001), 0xca6c, 1000));
        assert!(!holds(&line(0), 0xca6d, 1000));
        for hostile in ["", "sl local_address rem_address st", "1: :", "1: x:CA6C"] {
            assert!(!holds(hostile, 0xca6c, 1000), "{hostile}");
        }
    }

    /// An address of the LAN cannot be reached from 127.0.0.1's side.
    #[test]
    fn a_port_at_another_address_does_not_count() {
        let line = "1: 0100A8C0:CA6C 00000000:0000 07 0:0 00:0 0 0 0 0";
        assert!(!holds(line, 0xca6c, 0));
    }
}
