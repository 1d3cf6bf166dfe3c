//! The UDP port that WireGuard has bound, shared: a raw socket receives the STUN that comes to it and
//! sends STUN from it, so that checks open the very mapping that WireGuard's packets use and a direct
//! path becomes the peer's native endpoint.
//!
//! WireGuard sees that STUN as well and ignores it (no message type of its own), and as its port is
//! bound no ICMP error answers it. WireGuard's packets never come here: the kernel drops them in the
//! filter, before it copies anything. Needs CAP_NET_RAW, at [`SharedPort::open`] alone.
//!
//! What a raw socket cannot tell: the UDP checksum of what arrives by IPv4 (senders on this machine
//! leave it to hardware that is not there). STUN's own integrity is what counts.

mod filter;
mod held;
mod overheard;
mod packet;
mod routes;
mod self_test;

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::io::udp::raw::{self, Control, ErrorRead, RawAddress};
use crate::io::udp::{
    Counters, Destination, Family, PathError, ReceiveBuffers, SendFailure, SendFailureKind, Source,
};
pub use overheard::Overheard;
use routes::Routes;
pub use self_test::SELF_TEST_TIMEOUT;

/// Receive buffer asked for: checks and answers of a thousand peers at once, some 1 KiB each with the
/// kernel's bookkeeping.
const RECEIVE_BUFFER_BYTES: libc::c_int = 1 << 20;
/// Where an IPv6 raw socket puts the checksum that it computes (RFC 3542 §3.1): offset in the UDP
/// header.
const CHECKSUM_OFFSET: libc::c_int = 6;

/// Why a port cannot be shared. Each means: use the local proxy instead.
#[derive(Debug, thiserror::Error)]
pub enum SharedPortError {
    /// CAP_NET_RAW is missing.
    #[error(
        "cannot share WireGuard's UDP port {port}: no permission for raw sockets\n  grant CAP_NET_RAW; until then direct paths go through the local proxy"
    )]
    NoPermission {
        /// WireGuard's port.
        port: u16,
    },
    /// This machine has no such family.
    #[error("cannot share WireGuard's UDP port {port}: no {family} on this machine")]
    NoFamily {
        /// The family asked for.
        family: Family,
        /// WireGuard's port.
        port: u16,
    },
    /// No socket holds the port: whatever came to it would be answered with port unreachable.
    #[error(
        "cannot share WireGuard's UDP port {port}: nothing listens on it for {family} in this network namespace\n  is the interface up, and is its socket in this namespace? see: ss -lun 'sport = :{port}'"
    )]
    NotHeld {
        /// The family asked for.
        family: Family,
        /// WireGuard's port.
        port: u16,
    },
    /// What was sent from the port to itself did not come back.
    #[error(
        "cannot share WireGuard's UDP port {port}: a {family} test to itself over loopback did not arrive within {} ms\n  a firewall rule on lo may drop it; direct paths go through the local proxy",
        SELF_TEST_TIMEOUT.as_millis()
    )]
    SelfTest {
        /// The family asked for.
        family: Family,
        /// WireGuard's port.
        port: u16,
    },
    /// Anything else that the kernel said.
    #[error("cannot {step} to share WireGuard's UDP port {port}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// WireGuard's port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One family of a shared port. Non-blocking; not `Sync`: the packet loop owns it alone.
#[derive(Debug)]
pub struct SharedPort {
    socket: Socket,
    family: Family,
    port: u16,
    routes: Routes,
    counters: Cell<Counters>,
}

impl SharedPort {
    /// Shares `port`, which another socket of this network namespace holds, and shows that it works:
    /// a STUN indication goes from the port to itself over loopback. Blocks for at most
    /// [`SELF_TEST_TIMEOUT`]. When WireGuard's port changes, open another.
    pub fn open(family: Family, port: u16) -> Result<Self, SharedPortError> {
        let shared = Self::open_untested(family, port)?;
        held::check(family, port)?;
        self_test::run(&shared)?;
        shared.counters.set(Counters::default());
        Ok(shared)
    }

    /// The family it serves.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The port that it shares.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Marks what is sent from now on, as WireGuard marks its own packets (SO_MARK, 0 for none). Needs CAP_NET_ADMIN.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        let mark = mark.cast_signed();
        raw::set(self.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, mark)?;
        self.routes.set_mark(mark)
    }

    /// What it has seen. What the filter dropped was not seen.
    pub fn counters(&self) -> Counters {
        self.counters.get()
    }

    /// Takes the STUN that has arrived, as [`UdpSocket::receive`](crate::io::udp::UdpSocket::receive)
    /// does: into the same buffers, with the same meaning of what is returned.
    pub fn receive(&self, buffers: &mut ReceiveBuffers) -> io::Result<usize> {
        let mut counters = self.counters.get();
        let filled = buffers.fill(self.as_raw_fd(), &mut counters, |mut slot, bytes| {
            let content = packet::open(self.family, bytes).filter(|c| c.to == self.port)?;
            slot.start += content.start;
            slot.len = content.len;
            slot.segment_size = content.segment_size;
            slot.remote.set_port(content.from);
            Some(slot)
        });
        self.counters.set(counters);
        filled
    }

    /// Sends one datagram from the port, never fragmented. Without a source address in `to` the
    /// route chooses it, which over IPv4 costs a look-up.
    pub fn send(&self, to: &Destination, payload: &[u8]) -> Result<(), SendFailure> {
        let sent = self.try_send(to, payload);
        self.count(|c| c.send_calls += 1);
        match sent {
            Ok(()) => {
                self.count(|c| c.sent += 1);
                Ok(())
            }
            Err(error) => {
                let kind = SendFailureKind::of(&error);
                self.count(|c| c.failed(kind, 1));
                Err(SendFailure {
                    remote: to.remote,
                    kind,
                    bytes: payload.len(),
                })
            }
        }
    }

    /// The next error that waits, oldest first, about a datagram from this port: WireGuard's own too,
    /// as they are from it. epoll reports EPOLLERR until all are read.
    pub fn next_error(&self) -> Option<PathError> {
        loop {
            let mut returned = [0; packet::HEADER_LEN];
            match raw::read_error(self.as_raw_fd(), None, &mut returned) {
                ErrorRead::Error(mut error, bytes) => {
                    let returned = returned.get(..bytes).unwrap_or_default();
                    let ports = packet::returned_ports(returned);
                    // The errors of every UDP socket of the machine come here.
                    let Some((_, to)) = ports.filter(|&(from, _)| from == self.port) else {
                        continue;
                    };
                    error.remote.set_port(to);
                    return Some(error);
                }
                ErrorRead::Skip => {}
                ErrorRead::Empty => return None,
            }
        }
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    fn open_untested(family: Family, port: u16) -> Result<Self, SharedPortError> {
        let fail = |step| move |source| classify(family, port, step, source);
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let kind = Type::RAW.nonblocking().cloexec();
        let socket = Socket::new(domain, kind, Some(Protocol::UDP));
        let shared = Self {
            socket: socket.map_err(fail("open a raw socket"))?,
            family,
            port,
            routes: Routes::new(domain).map_err(fail("open a socket"))?,
            counters: Cell::default(),
        };
        let program =
            filter::stun_to(family, port).map(|i| SockFilter::new(i.code, i.jt, i.jf, i.k));
        let attached = shared.socket.attach_filter(&program);
        attached.map_err(fail("attach a filter"))?;
        // Between the two the socket has taken everything that came to this machine by UDP.
        shared.drain().map_err(fail("drain the socket"))?;
        shared.configure().map_err(fail("set the options"))?;
        Ok(shared)
    }

    fn configure(&self) -> io::Result<()> {
        let set = |level, name, value| raw::set(self.as_raw_fd(), level, name, value);
        // Address and interface of what arrives, errors of what was sent, and no fragments: what is too
        // large for the path is reported as EMSGSIZE.
        match self.family {
            Family::V4 => {
                set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
                set(libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
                let never = libc::IP_PMTUDISC_DO;
                set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, never)?;
            }
            Family::V6 => {
                set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
                set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
                let never = libc::IPV6_PMTUDISC_DO;
                set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, never)?;
                set(libc::IPPROTO_IPV6, libc::IPV6_CHECKSUM, CHECKSUM_OFFSET)?;
            }
        }
        let bytes = RECEIVE_BUFFER_BYTES;
        set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
            .or_else(|_| set(libc::SOL_SOCKET, libc::SO_RCVBUF, bytes))
    }

    fn drain(&self) -> io::Result<()> {
        let mut byte = [std::mem::MaybeUninit::uninit(); 1];
        loop {
            match self.socket.recv(&mut byte) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn try_send(&self, to: &Destination, payload: &[u8]) -> io::Result<()> {
        let too_large = || io::Error::from_raw_os_error(libc::EMSGSIZE);
        let mut header =
            packet::header(self.port, to.remote.port(), payload.len()).ok_or_else(too_large)?;
        let mut source = to.source;
        if self.family == Family::V4 {
            // The checksum covers the source address. Over IPv6 the kernel puts both in.
            let ifindex = source.map_or(0, |source| source.ifindex);
            let from = match source {
                Some(source) if !source.ip.is_unspecified() => source.ip,
                Some(_) | None => self.routes.source(to.remote, ifindex)?,
            };
            source = Some(Source { ip: from, ifindex });
            packet::add_checksum(&mut header, from, to.remote.ip(), payload);
        }
        let mut control = Control::new();
        if let Some(source) = source {
            control.push_source(&source);
        }
        // A raw IPv6 socket takes the port for a protocol number.
        let mut name = to.remote;
        name.set_port(0);
        self.send_message(&RawAddress::new(name), &header, payload, control)
    }

    fn send_message(
        &self,
        name: &RawAddress,
        header: &[u8],
        payload: &[u8],
        mut control: Control,
    ) -> io::Result<()> {
        let mut parts = [IoSlice::new(header), IoSlice::new(payload)];
        // SAFETY: msghdr is plain data for which all zero is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = name.as_ptr().cast_mut().cast();
        message.msg_namelen = name.len();
        // An IoSlice is an iovec (its documentation promises that).
        message.msg_iov = parts.as_mut_ptr().cast();
        message.msg_iovlen = parts.len() as _;
        control.attach(&mut message);
        let mut retried = false;
        loop {
            // SAFETY: name, parts, what they point at, and control outlive the call.
            let sent =
                unsafe { libc::sendmsg(self.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOBUFS | libc::EMSGSIZE | libc::EINVAL) => {
                    return Err(error);
                }
                // An ICMP error that waits on the socket, of whatever datagram, fails one call
                // unsent.
                _ if !retried => retried = true,
                _ => return Err(error),
            }
        }
    }
}

impl AsFd for SharedPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for SharedPort {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn classify(family: Family, port: u16, step: &'static str, source: io::Error) -> SharedPortError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => SharedPortError::NoPermission { port },
        Some(libc::EAFNOSUPPORT) => SharedPortError::NoFamily { family, port },
        _ => SharedPortError::System { step, port, source },
    }
}
