//! Socket options that every socket of the data path has.

use std::io;
use std::mem::size_of;
use std::os::fd::RawFd;

use super::socket::Family;

pub(in crate::io) fn set(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the option value is a c_int that lives for the call.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The local address and interface of what arrives, errors of what was sent, and no fragments: what
/// is too large for the path is reported as EMSGSIZE.
pub(in crate::io) fn set_addresses_and_errors(fd: RawFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => {
            set(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            set(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
            set(
                fd,
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DO,
            )
        }
        Family::V6 => {
            set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
            set(
                fd,
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DO,
            )
        }
    }
}

/// How much may wait to be received. FORCE passes net.core.rmem_max but needs CAP_NET_ADMIN; the
/// plain option is clamped to it.
pub(in crate::io) fn size_receive_buffer(fd: RawFd, bytes: libc::c_int) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
        .or_else(|_| set(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes))
}

/// How much may wait to be sent, likewise.
pub(in crate::io) fn size_send_buffer(fd: RawFd, bytes: libc::c_int) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))
}
