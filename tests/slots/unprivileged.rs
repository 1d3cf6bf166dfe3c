//! A local process without privileges, as any program of any user is, and the same as root of a user namespace of its
//! own: what it can do towards a slot.

use std::mem::size_of;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::wireguard_go::LISTEN_PORT;

/// Nobody and nogroup.
const NOBODY: u32 = 65_534;
/// Sources that nobody can refuse to it: any port but WireGuard's, at any loopback address.
pub(crate) const SENDS: [SocketAddrV4; 3] = [
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, LISTEN_PORT - 1),
    SocketAddrV4::new(Ipv4Addr::new(127, 9, 9, 9), 40_001),
];
/// What it must not get: the port of WireGuard's, at whichever address.
const HELD: [SocketAddrV4; 3] = [
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, LISTEN_PORT),
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, LISTEN_PORT),
    SocketAddrV4::new(Ipv4Addr::new(127, 9, 9, 9), LISTEN_PORT),
];

/// Bits of [`run`]'s result.
const NOT_DROPPED: i32 = 1;
const NOT_SENT: i32 = 2;
const HAS_PORT: i32 = 4;
const HAS_RAW: i32 = 8;
const IS_TRANSPARENT: i32 = 16;

/// Tries all of it from a process of its own, in the calling thread's network namespace: 0 if nothing was possible but
/// to send from other sources, else what was (see the bits above).
pub(crate) fn run(target: SocketAddrV4, data: &[u8], as_root_of_its_own: bool) -> i32 {
    // SAFETY: the child makes system calls alone, as a copy of a process with threads must, and ends by _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "no process");
    if child == 0 {
        let result = attempt(target, data, as_root_of_its_own);
        // SAFETY: ends the copy at once.
        unsafe { libc::_exit(result) }
    }
    let mut status = 0;
    // SAFETY: a child of ours, and a status that lives for the call.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert!(waited == child && libc::WIFEXITED(status), "{status}");
    libc::WEXITSTATUS(status)
}

fn attempt(target: SocketAddrV4, data: &[u8], as_root_of_its_own: bool) -> i32 {
    // SAFETY: no memory is touched but what lives for the calls.
    unsafe {
        if libc::setgroups(0, std::ptr::null()) != 0
            || libc::setresgid(NOBODY, NOBODY, NOBODY) != 0
            || libc::setresuid(NOBODY, NOBODY, NOBODY) != 0
            || libc::geteuid() != NOBODY
        {
            return NOT_DROPPED;
        }
        if as_root_of_its_own {
            // A system may forbid it; then there is nothing to be had by it either.
            libc::unshare(libc::CLONE_NEWUSER);
        }
        let mut result = 0;
        for (domain, kind, protocol) in [
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP),
            (libc::AF_PACKET, libc::SOCK_DGRAM, 0),
        ] {
            if libc::socket(domain, kind, protocol) >= 0 {
                result |= HAS_RAW;
            }
        }
        for source in HELD {
            let socket = udp();
            for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
                set(socket, libc::SOL_SOCKET, option);
            }
            if set(socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT) {
                result |= IS_TRANSPARENT;
            }
            set(socket, libc::IPPROTO_IP, libc::IP_FREEBIND);
            if bind(socket, source) {
                result |= HAS_PORT;
            }
        }
        for source in SENDS {
            let (socket, to) = (udp(), address(target));
            let sent = bind(socket, source)
                && libc::sendto(
                    socket,
                    data.as_ptr().cast(),
                    data.len(),
                    0,
                    (&raw const to).cast(),
                    size_of::<libc::sockaddr_in>() as u32,
                ) == data.len() as isize;
            if !sent {
                result |= NOT_SENT;
            }
        }
        result
    }
}

/// Open until the process ends.
fn udp() -> i32 {
    // SAFETY: no pointers.
    unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) }
}

fn set(socket: i32, level: i32, name: i32) -> bool {
    let one: i32 = 1;
    // SAFETY: a value that lives for the call, with its true length.
    let result = unsafe {
        libc::setsockopt(
            socket,
            level,
            name,
            (&raw const one).cast(),
            size_of::<i32>() as u32,
        )
    };
    result == 0
}

fn bind(socket: i32, source: SocketAddrV4) -> bool {
    let source = address(source);
    // SAFETY: an address that lives for the call, with its true length.
    let result = unsafe {
        libc::bind(
            socket,
            (&raw const source).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        )
    };
    result == 0
}

fn address(of: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: of.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(of.ip().octets()),
        },
        sin_zero: [0; 8],
    }
}
