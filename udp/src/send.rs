//! Sending: runs of equal size to one destination leave in one system call (UDP_SEGMENT), gathered
//! from where they lie, each behind a ChannelData header if it goes through a TURN channel.

use std::cell::RefCell;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use super::address::RawAddress;
use super::payloads::Payloads;
use super::socket::UdpSocket;

/// Segments a GSO send: UDP_MAX_SEGMENTS of kernels before 6.9 (128 since).
pub const MAX_SEGMENTS: usize = 64;
/// Payload bytes a GSO send: 65,535 less the IPv4 and UDP headers.
pub const MAX_GSO_BYTES: usize = 65_507;
/// A ChannelData header (RFC 8656 §12.4); over UDP the payload needs no padding.
pub const CHANNEL_HEADER_LEN: usize = 4;
/// Failures kept until the loop reads them; past them they are only counted in the socket.
const MAX_FAILURES: usize = 32;
/// pktinfo (20 bytes) and the segment size (2 bytes), each with its 16-byte header, aligned.
const CONTROL_BYTES: usize = 128;

/// What a datagram leaves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Source address; unspecified leaves the choice to the route.
    pub ip: IpAddr,
    /// Interface it must leave by; 0 leaves the choice to the route.
    pub ifindex: u32,
}

/// Where a datagram goes, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The remote address; a connected socket ignores it.
    pub remote: SocketAddr,
    /// `None` leaves address and interface to the route.
    pub source: Option<Source>,
}

/// Why datagrams did not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFailureKind {
    /// Larger than the MTU of the path as the kernel knows it.
    TooLarge,
    /// The send buffer is full: the link is slower than what is sent.
    BufferFull,
    /// No route, a source address that is gone, an ICMP error that repeats: the errno.
    Other(i32),
}

impl SendFailureKind {
    /// What an error of sendmsg means.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error().unwrap_or(libc::EIO) {
            libc::EMSGSIZE => Self::TooLarge,
            libc::EAGAIN | libc::ENOBUFS => Self::BufferFull,
            other => Self::Other(other),
        }
    }
}

/// Datagrams that did not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendFailure {
    /// Where they were to go.
    pub remote: SocketAddr,
    /// Why they did not.
    pub kind: SendFailureKind,
    /// Bytes of the largest, ChannelData header included.
    pub bytes: usize,
}

/// Failures that wait to be read; at most 32, later ones only count in the socket's counters.
#[derive(Debug)]
pub struct SendFailures(RefCell<Vec<SendFailure>>);

impl SendFailures {
    /// None yet.
    pub fn new() -> Self {
        Self(RefCell::new(Vec::with_capacity(MAX_FAILURES)))
    }

    /// Takes those that wait.
    pub fn drain(&mut self) -> impl Iterator<Item = SendFailure> {
        self.0.get_mut().drain(..)
    }

    /// Adds one, unless too many wait.
    pub fn push(&self, failure: SendFailure) {
        let mut waiting = self.0.borrow_mut();
        if waiting.len() < MAX_FAILURES {
            waiting.push(failure);
        }
    }
}

impl Default for SendFailures {
    fn default() -> Self {
        Self::new()
    }
}

/// Gathers datagrams and sends them in runs. `'p` is the life of the payloads, which are not
/// copied. Dropping it sends what is left.
pub struct Coalescer<'s, 'p> {
    socket: &'s UdpSocket,
    failures: &'s SendFailures,
    run: Run<'p>,
}

impl<'s, 'p> Coalescer<'s, 'p> {
    /// An empty one.
    pub fn new(socket: &'s UdpSocket, failures: &'s SendFailures) -> Self {
        Self {
            socket,
            failures,
            run: Run::new(),
        }
    }

    /// Adds one datagram, and sends what was gathered if this one cannot join it. Order to one
    /// destination is kept.
    pub fn push(
        &mut self,
        destination: Destination,
        header: Option<[u8; CHANNEL_HEADER_LEN]>,
        payload: &'p [u8],
    ) {
        self.push_all(destination, header, Payloads::one(payload));
    }

    /// Adds payloads of one length, each as a datagram behind the same header.
    pub fn push_all(
        &mut self,
        destination: Destination,
        header: Option<[u8; CHANNEL_HEADER_LEN]>,
        payloads: Payloads<'p>,
    ) {
        let mut rest = payloads;
        while rest.count() > 0 {
            self.make_room(destination, header.is_some(), rest.each());
            let taken = self.run.add(header, &rest);
            rest = rest.after(taken);
        }
    }

    /// Adds `segments`, all `segment_size` bytes long but the last, which may be shorter; `header` makes the header of a payload
    /// of so many bytes.
    pub fn push_framed_segments(
        &mut self,
        destination: Destination,
        header: impl Fn(usize) -> [u8; CHANNEL_HEADER_LEN],
        segments: &'p [u8],
        segment_size: usize,
    ) {
        let size = segment_size.max(1);
        let whole = Payloads::spaced(segments, size, size, usize::MAX);
        self.push_all(destination, Some(header(size)), whole);
        let (_, last) = segments.split_at(whole.count() * size);
        if !last.is_empty() {
            self.push(destination, Some(header(last.len())), last);
        }
    }

    /// Adds `segments`, all `segment_size` bytes long but the last, which may be shorter.
    pub fn push_segments(
        &mut self,
        destination: Destination,
        segments: &'p [u8],
        segment_size: usize,
    ) {
        let size = segment_size.max(1);
        let mut rest = segments;
        while !rest.is_empty() {
            self.make_room(destination, false, size.min(rest.len()));
            let taken = self.run.add_segments(rest, size);
            rest = rest.get(taken..).unwrap_or_default();
        }
    }

    /// Sends what was gathered if a payload of so many bytes cannot join it.
    fn make_room(&mut self, destination: Destination, framed: bool, payload: usize) {
        if !self.run.accepts(&destination, framed, payload) {
            self.flush();
            self.run.start(destination, framed);
        }
    }

    /// Sends what was gathered.
    pub fn flush(&mut self) {
        if let Some(destination) = self.run.destination
            && self.run.count > 0
        {
            self.socket.send_run(&destination, &self.run, self.failures);
        }
        self.run.destination = None;
        self.run.count = 0;
    }
}

impl Drop for Coalescer<'_, '_> {
    fn drop(&mut self) {
        self.flush();
    }
}

struct Run<'p> {
    destination: Option<Destination>,
    framed: bool,
    /// No more may join: the last one was short, or the first one empty.
    closed: bool,
    segment_size: usize,
    bytes: usize,
    /// Datagrams.
    count: usize,
    /// What they lie in, where they are: with a header each one of its own, else one or more.
    pieces: usize,
    headers: [[u8; CHANNEL_HEADER_LEN]; MAX_SEGMENTS],
    payloads: [&'p [u8]; MAX_SEGMENTS],
}

impl<'p> Run<'p> {
    fn new() -> Self {
        Self {
            destination: None,
            framed: false,
            closed: false,
            segment_size: 0,
            bytes: 0,
            count: 0,
            pieces: 0,
            headers: [[0; CHANNEL_HEADER_LEN]; MAX_SEGMENTS],
            payloads: [&[]; MAX_SEGMENTS],
        }
    }

    fn start(&mut self, destination: Destination, framed: bool) {
        self.destination = Some(destination);
        self.framed = framed;
        self.closed = false;
        self.segment_size = 0;
        self.bytes = 0;
        self.count = 0;
        self.pieces = 0;
    }

    fn accepts(&self, destination: &Destination, framed: bool, payload: usize) -> bool {
        let len = payload + if framed { CHANNEL_HEADER_LEN } else { 0 };
        self.count > 0
            && !self.closed
            && self.count < MAX_SEGMENTS
            && (1..=self.segment_size).contains(&len)
            && self.bytes + len <= MAX_GSO_BYTES
            && self.framed == framed
            && self.destination.as_ref() == Some(destination)
    }

    /// As many as fit of payloads of which the first was accepted or is the first of all. Returns how many.
    fn add(&mut self, header: Option<[u8; CHANNEL_HEADER_LEN]>, payloads: &Payloads<'p>) -> usize {
        let len = payloads.each() + self.header_len();
        if self.count == 0 {
            self.segment_size = len;
        }
        self.closed = len == 0 || len < self.segment_size;
        let most = if self.closed { 1 } else { self.room(len) };
        let first = self.pieces;
        for payload in payloads.iter().take(most) {
            self.headers[self.pieces] = header.unwrap_or_default();
            self.add_piece(payload, 1, len);
        }
        self.pieces - first
    }

    /// How many more datagrams of `len` bytes fit, at least the one that was accepted.
    fn room(&self, len: usize) -> usize {
        let bytes = MAX_GSO_BYTES.saturating_sub(self.bytes) / len;
        (MAX_SEGMENTS - self.count).min(bytes).max(1)
    }

    /// As many as fit of datagrams of `size` without headers, of which the first was accepted or is
    /// the first of all. Returns the bytes taken.
    fn add_segments(&mut self, segments: &'p [u8], size: usize) -> usize {
        let size = size.min(segments.len());
        if self.count == 0 {
            self.segment_size = size;
        }
        let most = if size == self.segment_size {
            self.room(size)
        } else {
            1
        };
        let taken = segments.len().min(most * size);
        self.closed = size < self.segment_size || !taken.is_multiple_of(size);
        let (piece, _) = segments.split_at(taken);
        self.add_piece(piece, taken.div_ceil(size), taken);
        taken
    }

    fn add_piece(&mut self, payload: &'p [u8], datagrams: usize, bytes: usize) {
        self.payloads[self.pieces] = payload;
        self.pieces += 1;
        self.count += datagrams;
        self.bytes += bytes;
    }

    fn header_len(&self) -> usize {
        if self.framed { CHANNEL_HEADER_LEN } else { 0 }
    }

    /// Describes all of it to the kernel; payloads that touch in memory become one entry. Returns
    /// the entries used.
    fn gather(&self, iovecs: &mut [libc::iovec; 2 * MAX_SEGMENTS]) -> usize {
        let mut used = 0;
        let mut end = std::ptr::null();
        for (header, payload) in self.headers.iter().zip(&self.payloads).take(self.pieces) {
            if self.framed {
                iovecs[used] = iovec(header);
                used += 1;
            } else if used > 0 && end == payload.as_ptr() {
                iovecs[used - 1].iov_len += payload.len();
                end = payload.as_ptr_range().end;
                continue;
            }
            iovecs[used] = iovec(payload);
            used += 1;
            end = payload.as_ptr_range().end;
        }
        used
    }

    /// The datagrams one by one, each with its header.
    fn datagrams(&self) -> impl Iterator<Item = (&[u8], &'p [u8])> {
        let size = self.segment_size.max(1);
        let header_len = self.header_len();
        let pieces = self.headers.iter().zip(&self.payloads).take(self.pieces);
        pieces.flat_map(move |(header, piece)| {
            // An empty datagram is one too.
            let whole = piece.is_empty().then_some(*piece);
            let parts = whole.into_iter().chain(piece.chunks(size));
            parts.map(move |payload| (&header[..header_len], payload))
        })
    }
}

impl UdpSocket {
    fn send_run(&self, destination: &Destination, run: &Run<'_>, failures: &SendFailures) {
        if run.count > 1 && self.gso() {
            // SAFETY: iovec is plain data for which all zero is valid.
            let mut iovecs: [libc::iovec; 2 * MAX_SEGMENTS] = unsafe { std::mem::zeroed() };
            let used = run.gather(&mut iovecs);
            let size = Some(run.segment_size as u16);
            match self.send_gathered(destination, &mut iovecs[..used], size) {
                Ok(()) => return self.count(|c| c.sent += run.count as u64),
                Err(error) => match error.raw_os_error() {
                    // EIO: the device cannot checksum what it would have to segment. EINVAL and
                    // EMSGSIZE: no UDP_SEGMENT here, a source that is gone, or a segment over the
                    // MTU; one by one tells which.
                    Some(code @ (libc::EIO | libc::EINVAL | libc::EMSGSIZE)) => {
                        self.count(|c| c.gso_refused += 1);
                        let all_left = self.send_singly(destination, run, failures);
                        if code == libc::EIO || (code == libc::EINVAL && all_left) {
                            self.disable_gso();
                        }
                        return;
                    }
                    _ => {
                        return self.fail(
                            destination,
                            run.segment_size,
                            run.count,
                            &error,
                            failures,
                        );
                    }
                },
            }
        }
        self.send_singly(destination, run, failures);
    }

    /// Returns whether every one left.
    fn send_singly(
        &self,
        destination: &Destination,
        run: &Run<'_>,
        failures: &SendFailures,
    ) -> bool {
        let mut all_left = true;
        for (header, payload) in run.datagrams() {
            let mut iovecs = [iovec(header), iovec(payload)];
            match self.send_gathered(destination, &mut iovecs, None) {
                Ok(()) => self.count(|c| c.sent += 1),
                Err(error) => {
                    all_left = false;
                    let bytes = header.len() + payload.len();
                    self.fail(destination, bytes, 1, &error, failures);
                }
            }
        }
        all_left
    }

    fn fail(
        &self,
        to: &Destination,
        bytes: usize,
        count: usize,
        error: &io::Error,
        failures: &SendFailures,
    ) {
        let count = count as u64;
        let kind = SendFailureKind::of(error);
        self.count(|c| c.failed(kind, count));
        failures.push(SendFailure {
            remote: self.connected().unwrap_or(to.remote),
            kind,
            bytes,
        });
    }

    /// One datagram, or with a `segment_size` as many as it cuts the entries into.
    fn send_gathered(
        &self,
        to: &Destination,
        iovecs: &mut [libc::iovec],
        segment_size: Option<u16>,
    ) -> io::Result<()> {
        // SAFETY: msghdr is plain data for which all zero is valid.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iovlen = iovecs.len() as _;
        header.msg_iov = iovecs.as_mut_ptr();
        let name = RawAddress::new(to.remote);
        if self.connected().is_none() {
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.len();
        }
        let mut control = Control::new();
        if let Some(source) = to.source {
            control.push_source(&source);
        }
        if let Some(size) = segment_size {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, size);
        }
        control.attach(&mut header);
        let mut retried = false;
        loop {
            // SAFETY: name, iovecs, payloads and control outlive the call.
            let sent =
                unsafe { libc::sendmsg(self.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
            self.count(|c| c.send_calls += 1);
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOBUFS | libc::EMSGSIZE | libc::EIO | libc::EINVAL) => {
                    return Err(error);
                }
                // An ICMP error that waits on the socket, perhaps of another destination, fails one
                // call unsent.
                _ if !retried => retried = true,
                _ => return Err(error),
            }
        }
    }
}

/// Control messages of one sendmsg.
#[repr(C, align(8))]
pub struct Control {
    bytes: [u8; CONTROL_BYTES],
    used: usize,
}

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

impl Control {
    /// None yet.
    pub fn new() -> Self {
        Self {
            bytes: [0; CONTROL_BYTES],
            used: 0,
        }
    }

    /// Makes them those of `header`, which must not outlive this.
    pub fn attach(&mut self, header: &mut libc::msghdr) {
        if self.used > 0 {
            header.msg_control = self.bytes.as_mut_ptr().cast();
            header.msg_controllen = self.used as _;
        }
    }

    /// The address and interface that the datagram leaves from.
    pub fn push_source(&mut self, source: &Source) {
        match source.ip {
            IpAddr::V4(ip) => self.push(
                libc::IPPROTO_IP,
                libc::IP_PKTINFO,
                libc::in_pktinfo {
                    ipi_ifindex: source.ifindex as libc::c_int,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from(ip).to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                },
            ),
            IpAddr::V6(ip) => self.push(
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: ip.octets(),
                    },
                    ipi6_ifindex: source.ifindex,
                },
            ),
        }
    }

    fn push<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, value: T) {
        // SAFETY: these only compute lengths.
        let (space, len) = unsafe {
            (
                libc::CMSG_SPACE(size_of::<T>() as u32),
                libc::CMSG_LEN(size_of::<T>() as u32),
            )
        };
        let next = self.used + space as usize;
        debug_assert!(next <= CONTROL_BYTES);
        // SAFETY: `used` is a multiple of the alignment (CMSG_SPACE rounds up), and what is pushed
        // fits by the derivation of CONTROL_BYTES.
        unsafe {
            let header = self
                .bytes
                .as_mut_ptr()
                .add(self.used)
                .cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = len as _;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        self.used = next;
    }
}

fn iovec(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}
