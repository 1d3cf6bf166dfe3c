//! Which source address the route to a destination has: asked of an own UDP socket, which is in the
//! raw socket's network namespace and sends nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use socket2::{Domain, Socket, Type};

use crate::io::udp::raw;

#[derive(Debug)]
pub(super) struct Routes(Socket);

impl Routes {
    pub(super) fn new(domain: Domain) -> io::Result<Self> {
        Ok(Self(Socket::new(domain, Type::DGRAM.cloexec(), None)?))
    }

    pub(super) fn set_mark(&self, mark: libc::c_int) -> io::Result<()> {
        raw::set(self.0.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, mark)
    }

    /// The source of an IPv4 datagram that leaves by the interface `ifindex`; by any for 0. Kernels
    /// before 6.2 answer for any.
    pub(super) fn source(&self, remote: SocketAddr, ifindex: u32) -> io::Result<IpAddr> {
        // SO_BINDTOIFINDEX would need CAP_NET_RAW for the second interface. In network byte order.
        let index = ifindex.to_be() as libc::c_int;
        raw::set(
            self.0.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_UNICAST_IF,
            index,
        )?;
        self.0.connect(&remote.into())?;
        let local = self.0.local_addr()?.as_socket();
        Ok(local.ok_or(io::ErrorKind::AddrNotAvailable)?.ip())
    }
}
