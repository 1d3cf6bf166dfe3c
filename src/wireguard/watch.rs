//! What the kernel announces by itself: that links, addresses or routes have changed, or the firewall's rules.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use super::netlink::NetlinkError;

/// Messages read at once; their content does not matter.
const BUFFER: usize = 8192;
/// nf_tables' group (linux/netfilter/nfnetlink.h, NFNLGRP_NFTABLES): rules of nft, and of iptables where that is made
/// of it. What iptables-legacy changes is announced nowhere.
const NFNLGRP_NFTABLES: u32 = 7;

/// Tells that something has changed; what it is now is to be asked for. So nothing is queued, and a burst that
/// overruns the socket (ENOBUFS) is a change like any other.
#[derive(Debug)]
pub struct Watch {
    socket: AsyncFd<OwnedFd>,
    what: &'static str,
}

impl Watch {
    /// Watches links, addresses and routes; needs a tokio runtime, but no privileges.
    pub fn start() -> Result<Self, NetlinkError> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        Self::of(libc::NETLINK_ROUTE, groups as u32, "watch the interfaces")
    }

    /// Watches the firewall's rules. Needs CAP_NET_ADMIN and a kernel with nf_tables.
    pub fn firewall() -> Result<Self, NetlinkError> {
        let groups = 1 << (NFNLGRP_NFTABLES - 1);
        Self::of(libc::NETLINK_NETFILTER, groups, "watch the firewall")
    }

    /// Waits until something has changed since the last call. Changes come in bursts: the caller waits
    /// a little before it looks. May be cancelled: nothing is awaited once a change was taken.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        loop {
            let ready = self.socket.readable().await;
            let mut ready = ready.map_err(|source| error(self.what, source))?;
            if drain(self.socket.get_ref()) {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    fn of(protocol: libc::c_int, groups: u32, what: &'static str) -> Result<Self, NetlinkError> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
        if fd < 0 {
            return Err(error(what, io::Error::last_os_error()));
        }
        // SAFETY: just opened, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: sockaddr_nl is plain data for which all zero is valid.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = groups;
        // SAFETY: an address that lives for the call, with its true length.
        let result = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(error(what, io::Error::last_os_error()));
        }
        // SAFETY: an OwnedFd keeps the same descriptor open for as long as it lives.
        let socket = unsafe { AsyncFd::register(fd) };
        let socket = socket.map_err(|e| error(what, e.into()))?;
        Ok(Self { socket, what })
    }
}

/// Empties the socket; returns whether anything was in it.
fn drain(socket: &OwnedFd) -> bool {
    let mut buffer = [0u8; BUFFER];
    let mut any = false;
    loop {
        // SAFETY: the buffer is writable for its length.
        let read = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let overrun = read < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
        if read <= 0 && !overrun {
            return any;
        }
        any = true;
    }
}

fn error(what: &str, source: io::Error) -> NetlinkError {
    let what = what.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => NetlinkError::NoPermission { what },
        _ => NetlinkError::System { what, source },
    }
}
