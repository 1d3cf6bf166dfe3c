//! Listeners of a service: its threads share a port, other programs do not.

use std::io;
use std::net::{SocketAddr, TcpListener};

use wice_udp::{UdpError, UdpOptions, UdpSocket};

/// Receive buffer of a UDP listener, which all clients of a thread share: some 1,800 full packets.
const LISTENER_BUFFER_BYTES: i32 = 4 << 20;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Threads share a port, programs do not: the `first` must find it free without SO_REUSEPORT.
pub(super) fn open_udp(address: SocketAddr, first: bool) -> Result<UdpSocket, UdpError> {
    let mut options = UdpOptions {
        reuse_port: false,
        fragment: true,
        packet_info: true,
        timestamps: true,
        receive_buffer: LISTENER_BUFFER_BYTES,
        send_buffer: LISTENER_BUFFER_BYTES,
    };
    if first && address.port() != 0 {
        drop(UdpSocket::bind_with(address, &options)?);
    }
    options.reuse_port = true;
    UdpSocket::bind_with(address, &options)
}

/// As [`open_udp`].
pub(super) fn open_tcp(address: SocketAddr, first: bool) -> io::Result<TcpListener> {
    if first && address.port() != 0 {
        drop(bind_tcp(address, false)?);
    }
    let socket = bind_tcp(address, true)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// IPv6 alone where the address is: a wildcard of the other family may listen beside it.
fn bind_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<socket2::Socket> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_of_both_families_listen_on_one_port() {
        let v4 = open_tcp(([0, 0, 0, 0], 0).into(), true).unwrap();
        let port = v4.local_addr().unwrap().port();
        let v6 = open_tcp(([0u16; 8], port).into(), true).unwrap();
        assert_eq!(v6.local_addr().unwrap().port(), port);
        let again = open_tcp(([0, 0, 0, 0], port).into(), true);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
