//! Opening a socket with everything that the data path needs set.

use std::cell::Cell;
use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::address::{self, RawAddress};
use super::options;
use super::send::SendFailureKind;

/// How a socket is set up beyond what every one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOptions {
    /// Several sockets share the port; the kernel keeps each remote address on one (SO_REUSEPORT).
    pub reuse_port: bool,
    /// Datagrams too large for the path are fragmented instead of refused (IP_PMTUDISC_DONT).
    pub fragment: bool,
    /// Every arrival tells which address and interface it came to; a socket of one address does without.
    pub packet_info: bool,
    /// Every arrival tells when the kernel got it.
    pub timestamps: bool,
    /// Bytes of receive buffer asked for.
    pub receive_buffer: libc::c_int,
    /// Bytes of send buffer asked for.
    pub send_buffer: libc::c_int,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            reuse_port: false,
            fragment: false,
            packet_info: true,
            timestamps: false,
            receive_buffer: RECEIVE_BUFFER_BYTES,
            send_buffer: SEND_BUFFER_BYTES,
        }
    }
}

/// Receive buffer asked for: 8 MiB hold 50 ms at 1 Gbit/s with the kernel's bookkeeping; an unsized
/// one (208 KiB) loses most of a burst.
const RECEIVE_BUFFER_BYTES: libc::c_int = 8 << 20;
/// Send buffer asked for: some 30 full GSO sends in flight, about 25 ms at 1 Gbit/s.
const SEND_BUFFER_BYTES: libc::c_int = 4 << 20;

/// The family that a socket serves: one socket serves one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6 alone (IPV6_V6ONLY): no IPv4-mapped addresses show anywhere.
    V6,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    /// The family of an address.
    pub fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Another process holds the port.
    #[error(
        "cannot listen on UDP {0}: another program holds this port\n  find it with: ss -lunp 'sport = :{port}', or choose another port",
        port = .0.port()
    )]
    PortInUse(SocketAddr),
    /// The address is not (or no longer) an address of this machine.
    #[error("cannot use UDP address {0}: no interface of this machine has it\n  see: ip address")]
    NoSuchAddress(SocketAddr),
    /// The port is privileged, or the process lacks the right to bind to an interface.
    #[error("cannot use UDP {0}: no permission\n  choose a port above 1023, or run as root")]
    NoPermission(SocketAddr),
    /// Anything else that the kernel said.
    #[error("cannot {step} for UDP {address}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The address the socket was meant for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a socket has seen since it was opened. Datagrams are WireGuard or STUN packets, not GSO
/// sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams received.
    pub received: u64,
    /// Datagrams dropped because they were longer than a slot, or of an unknown family.
    pub receive_malformed: u64,
    /// Datagrams the kernel took.
    pub sent: u64,
    /// System calls that sent them.
    pub send_calls: u64,
    /// Datagrams dropped because the send buffer was full (EAGAIN, ENOBUFS).
    pub send_buffer_full: u64,
    /// Datagrams refused as larger than the path's MTU (EMSGSIZE).
    pub send_too_large: u64,
    /// Datagrams refused for another reason.
    pub send_failed: u64,
    /// Times a GSO send was refused and its datagrams were sent one by one.
    pub gso_refused: u64,
}

impl Counters {
    /// Counts datagrams that did not leave.
    pub fn failed(&mut self, kind: SendFailureKind, datagrams: u64) {
        match kind {
            SendFailureKind::TooLarge => self.send_too_large += datagrams,
            SendFailureKind::BufferFull => self.send_buffer_full += datagrams,
            SendFailureKind::Other(_) => self.send_failed += datagrams,
        }
    }
}

/// A non-blocking UDP socket of one family. Not `Sync`: the packet loop owns it alone.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    family: Family,
    connected: Option<SocketAddr>,
    gso: Cell<bool>,
    gro: bool,
    pub(super) counters: Cell<Counters>,
}

impl UdpSocket {
    /// A socket for any peer. `address` may be a wildcard, and its port 0.
    pub fn bind(address: SocketAddr) -> Result<Self, UdpError> {
        Self::bind_with(address, &UdpOptions::default())
    }

    /// The same, set up by `options`.
    pub fn bind_with(address: SocketAddr, options: &UdpOptions) -> Result<Self, UdpError> {
        let socket = Self::open(address, options)?;
        socket.bind_to(address)?;
        Ok(socket)
    }

    /// As [`Self::bind`], for what comes and goes by the interface `ifindex` alone. The second value
    /// says whether the kernel sees to that: before Linux 5.7 it takes CAP_NET_RAW, and without it the
    /// owner has to look at every datagram's interface.
    pub fn bind_on(address: SocketAddr, ifindex: u32) -> Result<(Self, bool), UdpError> {
        let socket = Self::open(address, &UdpOptions::default())?;
        let bound = socket.set_interface(ifindex).is_ok();
        socket.bind_to(address)?;
        Ok((socket, bound))
    }

    /// A socket for one server, from `local` (a wildcard leaves the choice to the route), leaving
    /// by the interface `ifindex` alone if it is given.
    pub fn connect(
        local: SocketAddr,
        remote: SocketAddr,
        ifindex: Option<u32>,
    ) -> Result<Self, UdpError> {
        Self::connect_marked(local, remote, ifindex, 0)
    }

    /// As [`Self::connect`], with a mark for policy routing, which chooses the route and with it the source.
    pub fn connect_marked(
        local: SocketAddr,
        remote: SocketAddr,
        ifindex: Option<u32>,
        mark: u32,
    ) -> Result<Self, UdpError> {
        let mut socket = Self::open(local, &UdpOptions::default())?;
        if let Some(ifindex) = ifindex {
            socket
                .set_interface(ifindex)
                .map_err(|e| classify(local, "bind to the interface", e))?;
        }
        if mark != 0 {
            socket
                .set_mark(mark)
                .map_err(|e| classify(local, "mark the socket", e))?;
        }
        socket.bind_to(local)?;
        let raw = RawAddress::new(remote);
        // SAFETY: a valid descriptor, and an address that lives for the call with its true length.
        let result = unsafe { libc::connect(socket.fd.as_raw_fd(), raw.as_ptr(), raw.len()) };
        if result != 0 {
            return Err(classify(remote, "connect", io::Error::last_os_error()));
        }
        socket.connected = Some(remote);
        Ok(socket)
    }

    /// The address that it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let mut storage = address::empty();
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: storage is writable for `len` bytes.
        let result = unsafe {
            libc::getsockname(
                self.fd.as_raw_fd(),
                std::ptr::from_mut(&mut storage).cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        address::decode(&storage).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
    }

    /// The family it serves.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The one server that it is connected to, if it is.
    pub fn connected(&self) -> Option<SocketAddr> {
        self.connected
    }

    /// Bytes of the largest packet, IP header included, that the kernel believes to reach the server that it is connected
    /// to in one piece: the link's MTU, the route's, or what routers on the way have told of late.
    pub fn path_mtu(&self) -> io::Result<u32> {
        let (level, name) = match self.family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        };
        let mut mtu: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `mtu` is writable for `len` bytes.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                std::ptr::from_mut(&mut mtu).cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        u32::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// What it has seen.
    pub fn counters(&self) -> Counters {
        self.counters.get()
    }

    /// Whether sends use UDP_SEGMENT: the kernel has it, and no device has refused it.
    pub fn gso(&self) -> bool {
        self.gso.get()
    }

    /// Whether the kernel joins arriving datagrams (UDP_GRO).
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// Datagrams leave one by one from now on, as on a kernel or a device without UDP_SEGMENT.
    pub fn disable_gso(&self) {
        self.gso.set(false);
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    fn open(address: SocketAddr, options: &UdpOptions) -> Result<Self, UdpError> {
        let family = Family::of(address);
        let domain = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(domain, kind, 0) };
        if fd < 0 {
            return Err(classify(
                address,
                "open a socket",
                io::Error::last_os_error(),
            ));
        }
        // SAFETY: just opened, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut socket = Self {
            fd,
            family,
            connected: None,
            gso: Cell::new(false),
            gro: false,
            counters: Cell::default(),
        };
        socket
            .configure(options)
            .map_err(|e| classify(address, "set the options", e))?;
        Ok(socket)
    }

    /// Whether datagrams that are too large for the path are fragmented, as [`UdpOptions::fragment`] at the start.
    pub fn set_fragment(&self, fragment: bool) -> io::Result<()> {
        // Never fragment: what is too large for the path is reported as EMSGSIZE.
        let (level, name, value) = match (self.family, fragment) {
            (Family::V4, false) => (
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DO,
            ),
            (Family::V4, true) => (
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DONT,
            ),
            (Family::V6, false) => (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DO,
            ),
            (Family::V6, true) => (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
            ),
        };
        self.set(level, name, value)
    }

    /// Marks what is sent from now on for policy routing (SO_MARK, 0 for none). Needs CAP_NET_ADMIN.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
    }

    fn configure(&mut self, options: &UdpOptions) -> io::Result<()> {
        if options.reuse_port {
            self.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        if options.timestamps {
            self.set(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        }
        self.set_fragment(options.fragment)?;
        match self.family {
            Family::V4 => {
                if options.packet_info {
                    self.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
                }
                self.set(libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
            }
            Family::V6 => {
                self.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
                if options.packet_info {
                    self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
                }
                self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
            }
        }
        self.size_buffer(
            libc::SO_RCVBUFFORCE,
            libc::SO_RCVBUF,
            options.receive_buffer,
        )?;
        self.size_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, options.send_buffer)?;
        self.gro = self.set(libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        self.gso
            .set(self.set(libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok());
        Ok(())
    }

    /// FORCE passes net.core.[rw]mem_max but needs CAP_NET_ADMIN; the plain option is clamped to
    /// it.
    fn size_buffer(
        &self,
        force: libc::c_int,
        plain: libc::c_int,
        bytes: libc::c_int,
    ) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, force, bytes)
            .or_else(|_| self.set(libc::SOL_SOCKET, plain, bytes))
    }

    fn set_interface(&self, ifindex: u32) -> io::Result<()> {
        self.set(
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            ifindex as libc::c_int,
        )
    }

    fn bind_to(&self, address: SocketAddr) -> Result<(), UdpError> {
        let raw = RawAddress::new(address);
        // SAFETY: a valid descriptor, and an address that lives for the call with its true length.
        let result = unsafe { libc::bind(self.fd.as_raw_fd(), raw.as_ptr(), raw.len()) };
        if result != 0 {
            return Err(classify(address, "bind", io::Error::last_os_error()));
        }
        Ok(())
    }

    fn set(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        options::set(self.fd.as_raw_fd(), level, name, value)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn classify(address: SocketAddr, step: &'static str, source: io::Error) -> UdpError {
    match source.raw_os_error() {
        Some(libc::EADDRINUSE) => UdpError::PortInUse(address),
        Some(libc::EADDRNOTAVAIL) => UdpError::NoSuchAddress(address),
        Some(libc::EACCES | libc::EPERM) => UdpError::NoPermission(address),
        _ => UdpError::System {
            step,
            address,
            source,
        },
    }
}
