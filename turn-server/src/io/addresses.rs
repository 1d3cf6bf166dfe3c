//! This machine's own addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Addresses of all interfaces.
pub(super) fn interfaces() -> io::Result<Vec<IpAddr>> {
    let mut list = std::ptr::null_mut();
    // SAFETY: `list` is writable; on success it is freed below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut entry = list;
    while !entry.is_null() {
        // SAFETY: not null, so one entry of the list that getifaddrs made.
        let (address, next) = unsafe { ((*entry).ifa_addr, (*entry).ifa_next) };
        if !address.is_null() {
            // SAFETY: not null: a sockaddr of the family that it names.
            found.extend(unsafe { ip_of(address) });
        }
        entry = next;
    }
    // SAFETY: what getifaddrs made, freed once.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// Whether IPv6 sockets can be bound at all.
pub(super) fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

/// Where packets to the internet leave from, for each family that has a route there.
pub(super) fn of_default_routes() -> Vec<IpAddr> {
    // Connecting a UDP socket sends nothing; documentation addresses are routed as any other.
    let somewhere = [
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), "192.0.2.1:9"),
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), "[2001:db8::1]:9"),
    ];
    let found = somewhere.iter().filter_map(|(any, to)| {
        let socket = UdpSocket::bind(SocketAddr::new(*any, 0)).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    });
    found.filter(|ip| !ip.is_unspecified()).collect()
}

/// # Safety
/// `address` must point at a sockaddr of the family that it names.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller's promise.
    match i32::from(unsafe { (*address).sa_family }) {
        libc::AF_INET => {
            // SAFETY: AF_INET is a sockaddr_in.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: AF_INET6 is a sockaddr_in6.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn loopback_is_ours() {
        let found = super::interfaces().unwrap();
        assert!(found.contains(&[127, 0, 0, 1].into()), "{found:?}");
    }
}
