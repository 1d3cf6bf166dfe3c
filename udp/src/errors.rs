//! What ICMP and the local stack say of datagrams that were sent (IP_RECVERR). Anyone may forge
//! ICMP: hints, not proof.

use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, RawFd};

use super::address;
use super::socket::UdpSocket;

/// sock_extended_err (16 bytes) and the offender's address (28), pktinfo (20), each with a 16-byte
/// header, aligned.
const CONTROL_BYTES: usize = 192;

/// What was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathErrorKind {
    /// Nothing listens there (ICMP port unreachable).
    Refused,
    /// The host cannot be reached.
    HostUnreachable,
    /// The network cannot be reached.
    NetworkUnreachable,
    /// The datagram was larger than the path's MTU, which is this many bytes, IP header included.
    TooLarge {
        /// Bytes.
        mtu: u32,
    },
    /// Another errno.
    Other(i32),
}

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorOrigin {
    /// This machine's stack.
    Local,
    /// A router or the remote host, by ICMP.
    Icmp(Option<IpAddr>),
}

/// An error about one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathError {
    /// Where the datagram was going.
    pub remote: SocketAddr,
    /// What was said.
    pub kind: PathErrorKind,
    /// Who said it.
    pub origin: ErrorOrigin,
    /// ICMP type and code, 0 where it was this machine's stack (RFC 792, RFC 4443).
    pub icmp: (u8, u8),
}

impl PathError {
    /// Whether the remote host itself says that nothing listens there, not a router on the way.
    pub fn is_refusal(&self) -> bool {
        let by_host = self.origin == ErrorOrigin::Icmp(Some(self.remote.ip()));
        self.kind == PathErrorKind::Refused && by_host
    }

    /// Whether the datagram got nowhere, whatever its size.
    pub fn is_fatal(&self) -> bool {
        match self.kind {
            PathErrorKind::TooLarge { .. } => false,
            PathErrorKind::Refused
            | PathErrorKind::HostUnreachable
            | PathErrorKind::NetworkUnreachable
            | PathErrorKind::Other(_) => true,
        }
    }
}

impl UdpSocket {
    /// The next error that waits, oldest first. epoll reports EPOLLERR until all are read.
    pub fn next_error(&self) -> Option<PathError> {
        loop {
            match read_error(self.as_raw_fd(), self.connected(), &mut []) {
                ErrorRead::Error(error, _) => return Some(error),
                ErrorRead::Skip => {}
                ErrorRead::Empty => return None,
            }
        }
    }
}

/// What reading one error of a socket brought.
pub enum ErrorRead {
    /// An error, and how many bytes of the datagram came with it.
    Error(PathError, usize),
    /// Something that is none.
    Skip,
    /// Nothing waits.
    Empty,
}

/// Reads one error off a socket, and into `datagram` as much of what caused it as the kernel has.
/// `connected` is where it was going if the kernel does not say.
pub fn read_error(fd: RawFd, connected: Option<SocketAddr>, datagram: &mut [u8]) -> ErrorRead {
    let mut name = address::empty();
    let mut control = Control([0; CONTROL_BYTES]);
    let mut iovec = libc::iovec {
        iov_base: datagram.as_mut_ptr().cast(),
        iov_len: datagram.len(),
    };
    // SAFETY: msghdr is plain data for which all zero is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = std::ptr::from_mut(&mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: name, datagram and control are writable for the lengths given.
    let read =
        unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    let Ok(read) = usize::try_from(read) else {
        return ErrorRead::Empty;
    };
    let Some(remote) = address::decode(&name).or(connected) else {
        return ErrorRead::Skip;
    };
    // SAFETY: the kernel wrote msg_control and set msg_controllen; the CMSG macros stay within
    // them.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: not null, so a whole header within the control buffer.
        let kind = unsafe { ((*message).cmsg_level, (*message).cmsg_type) };
        if kind == (libc::IPPROTO_IP, libc::IP_RECVERR)
            || kind == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        {
            // SAFETY: such a message carries one sock_extended_err and the offender's address
            // behind it.
            let error = unsafe { decode(remote, libc::CMSG_DATA(message)) };
            return ErrorRead::Error(error, read);
        }
        // SAFETY: header and message belong together.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    ErrorRead::Skip
}

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// # Safety
/// `data` must point at a `sock_extended_err` followed by a sockaddr, as IP_RECVERR gives them.
unsafe fn decode(remote: SocketAddr, data: *const u8) -> PathError {
    // SAFETY: the caller's promise; control data may be unaligned.
    let error = unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() };
    let kind = match error.ee_errno as i32 {
        libc::ECONNREFUSED => PathErrorKind::Refused,
        libc::EHOSTUNREACH => PathErrorKind::HostUnreachable,
        libc::ENETUNREACH => PathErrorKind::NetworkUnreachable,
        libc::EMSGSIZE => PathErrorKind::TooLarge { mtu: error.ee_info },
        other => PathErrorKind::Other(other),
    };
    let origin = match error.ee_origin {
        libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => {
            // SAFETY: as above.
            let offender = unsafe { data.add(size_of::<libc::sock_extended_err>()) };
            let mut storage = address::empty();
            // A sockaddr_in6 is the longest; the control buffer is zeroed and longer than that in
            // any case. SAFETY: 28 bytes lie within the control buffer by its derivation.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    offender,
                    std::ptr::from_mut(&mut storage).cast::<u8>(),
                    size_of::<libc::sockaddr_in6>(),
                );
            }
            ErrorOrigin::Icmp(address::decode(&storage).map(|a| a.ip()))
        }
        _ => ErrorOrigin::Local,
    };
    PathError {
        remote,
        kind,
        origin,
        icmp: (error.ee_type, error.ee_code),
    }
}
