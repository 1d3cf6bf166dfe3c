//! Receiving: one recvmmsg fills up to [`SLOTS`] slots, each of which may hold a run of datagrams
//! that the kernel joined (UDP_GRO).

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Duration;

use super::address;
use super::socket::{Counters, UdpSocket};

/// Slots a system call fills: past 16 the call's own cost is lost in the copying of up to 1 MiB.
pub const SLOTS: usize = 16;
/// A joined run is at most one IP datagram long (65,535 bytes).
const SLOT_BYTES: usize = 65_536;
/// From one slot to the next. At 64 KiB sharp the first packets of all slots would share the same sets of every cache; 2 KiB
/// more has those of a full packet lie beside each other.
const SLOT_STRIDE: usize = SLOT_BYTES + 2048;
/// pktinfo (at most 20 bytes), the segment size (4 bytes) and a time (16 bytes), each with its 16-byte header, aligned.
const CONTROL_BYTES: usize = 128;

/// Memory that receiving uses, shared by all sockets of a thread: 1 MiB of address space, of which
/// only pages that datagrams have filled are ever resident.
pub struct ReceiveBuffers {
    data: Box<[u8]>,
    controls: Box<[Control; SLOTS]>,
    slots: Vec<Slot>,
    received: u64,
}

/// A run of datagrams from one remote to one local address, all `segment_size` bytes long but the
/// last, which may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Where they came from.
    pub remote: SocketAddr,
    /// The destination address in their IP headers; `None` if the kernel did not say.
    pub local: Option<IpAddr>,
    /// The interface they came in by; 0 if the kernel did not say.
    pub ifindex: u32,
    /// When the kernel got the first of them, since the UNIX epoch, where the socket was opened to say so.
    pub at: Option<Duration>,
    /// Bytes a datagram, at least 1.
    pub segment_size: usize,
    /// The payloads, back to back.
    pub bytes: &'a [u8],
}

/// One datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Where it came from.
    pub remote: SocketAddr,
    /// The destination address in its IP header; `None` if the kernel did not say.
    pub local: Option<IpAddr>,
    /// The interface it came in by; 0 if the kernel did not say.
    pub ifindex: u32,
    /// The UDP payload, at least one byte.
    pub payload: &'a [u8],
}

impl<'a> Arrival<'a> {
    /// The datagrams one by one.
    pub fn datagrams(self) -> impl Iterator<Item = Datagram<'a>> {
        self.bytes
            .chunks(self.segment_size)
            .map(move |payload| Datagram {
                remote: self.remote,
                local: self.local,
                ifindex: self.ifindex,
                payload,
            })
    }
}

impl ReceiveBuffers {
    /// Reserves the memory.
    pub fn new() -> Self {
        Self {
            data: vec![0; SLOTS * SLOT_STRIDE].into_boxed_slice(),
            controls: Box::new([Control([0; CONTROL_BYTES]); SLOTS]),
            slots: Vec::with_capacity(SLOTS),
            received: 0,
        }
    }

    /// Datagrams since the start, of whatever sockets.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// What the last [`UdpSocket::receive`] brought, in order of arrival.
    pub fn arrivals(&self) -> impl Iterator<Item = Arrival<'_>> {
        self.slots.iter().map(|slot| Arrival {
            remote: slot.remote,
            local: slot.local,
            ifindex: slot.ifindex,
            at: slot.at,
            segment_size: slot.segment_size,
            bytes: &self.data[slot.start..slot.start + slot.len],
        })
    }

    /// The same, one by one.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        self.arrivals().flat_map(Arrival::datagrams)
    }
}

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self::new()
    }
}

impl UdpSocket {
    /// Takes what has arrived, up to [`SLOTS`] runs, into `buffers`, whose former content is gone.
    /// Returns how many slots the kernel filled: fewer than [`SLOTS`] means that the socket was
    /// empty, 0 that nothing had arrived. An error here is the socket's, never a datagram's: the
    /// caller may log it and go on.
    pub fn receive(&self, buffers: &mut ReceiveBuffers) -> io::Result<usize> {
        let mut counters = self.counters.get();
        let filled = buffers.fill(self.as_raw_fd(), &mut counters, |slot, _| Some(slot));
        self.counters.set(counters);
        filled
    }
}

impl UdpSocket {
    /// Throws away up to [`SLOTS`] runs of what has arrived, which costs far less than to read it. Returns how many runs, and how
    /// many datagrams they were.
    pub fn discard(&self) -> (usize, u64) {
        let mut bytes = [Control([0; CONTROL_BYTES]); SLOTS];
        // SAFETY: mmsghdr is plain data for which all zero is valid.
        let mut messages: [libc::mmsghdr; SLOTS] = unsafe { std::mem::zeroed() };
        for (message, control) in messages.iter_mut().zip(&mut bytes) {
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL_BYTES as _;
        }
        let received = receive_messages(self.as_raw_fd(), &mut messages, libc::MSG_TRUNC);
        let runs = received.ok().flatten().unwrap_or(0);
        let datagrams = messages.iter().take(runs).map(|message| {
            let gro =
                |(level, kind, _): &(_, _, _)| (*level, *kind) == (libc::SOL_UDP, libc::UDP_GRO);
            let size = controls(&message.msg_hdr).find(gro).map(|(_, _, size)| {
                // SAFETY: UDP_GRO carries one c_int; cmsg data may be unaligned.
                unsafe { size.cast::<libc::c_int>().read_unaligned() }
            });
            let size = size.and_then(|size| u32::try_from(size).ok());
            let size = size.unwrap_or(message.msg_len).max(1);
            u64::from(message.msg_len.div_ceil(size).max(1))
        });
        (runs, datagrams.sum())
    }
}

impl ReceiveBuffers {
    /// One recvmmsg on `fd`; its former content is gone. `open` has a slot and its bytes and says
    /// which of them are payload, and whose; `None` where there is none. Returns how many slots the
    /// kernel filled.
    pub fn fill(
        &mut self,
        fd: RawFd,
        counters: &mut Counters,
        open: impl Fn(Slot, &[u8]) -> Option<Slot>,
    ) -> io::Result<usize> {
        self.slots.clear();
        let mut names = [address::empty(); SLOTS];
        // SAFETY: iovec and mmsghdr are plain data for which all zero is valid.
        let mut iovecs: [libc::iovec; SLOTS] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut messages: [libc::mmsghdr; SLOTS] = unsafe { std::mem::zeroed() };
        for (index, slot) in self.data.chunks_exact_mut(SLOT_STRIDE).enumerate() {
            iovecs[index] = libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: SLOT_BYTES,
            };
            let header = &mut messages[index].msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut iovecs[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES as _;
        }
        let Some(filled) = receive_messages(fd, &mut messages, 0)? else {
            return Ok(0);
        };
        for (index, message) in messages.iter().enumerate().take(filled) {
            let slot = Slot::parse(index, message, &names[index])
                .and_then(|slot| open(slot, &self.data[slot.start..slot.start + slot.len]));
            match slot {
                Some(slot) => {
                    let datagrams = slot.len.div_ceil(slot.segment_size) as u64;
                    counters.received += datagrams;
                    self.received += datagrams;
                    self.slots.push(slot);
                }
                None => counters.receive_malformed += 1,
            }
        }
        Ok(filled)
    }
}

/// `None` when nothing has arrived. An ICMP error that waits on the socket fails one call, whatever
/// it belongs to; it is told by `next_error`, so the call is made again.
fn receive_messages(
    fd: RawFd,
    messages: &mut [libc::mmsghdr; SLOTS],
    flags: libc::c_int,
) -> io::Result<Option<usize>> {
    let mut retried = false;
    loop {
        // SAFETY: what every header points at, a name, an iovec, a control buffer or nothing, outlives the call.
        let filled = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                SLOTS as libc::c_uint,
                (libc::MSG_DONTWAIT | flags) as _,
                std::ptr::null_mut(),
            )
        };
        if let Ok(filled) = usize::try_from(filled) {
            return Ok(Some(filled));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN) => return Ok(None),
            Some(libc::EINTR) => {}
            _ if !retried => retried = true,
            _ => return Err(error),
        }
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Where in the buffers a run lies, and whose it is; see [`Arrival`].
#[derive(Clone, Copy)]
pub struct Slot {
    /// First byte in the buffers.
    pub start: usize,
    /// Bytes, at least 1.
    pub len: usize,
    /// Bytes a datagram, at least 1.
    pub segment_size: usize,
    /// Where they came from.
    pub remote: SocketAddr,
    local: Option<IpAddr>,
    ifindex: u32,
    at: Option<Duration>,
}

impl Slot {
    /// `None` for what no datagram of ours can be: empty, cut off, or of an unknown family.
    fn parse(index: usize, message: &libc::mmsghdr, name: &libc::sockaddr_storage) -> Option<Self> {
        let header = &message.msg_hdr;
        let len = message.msg_len as usize;
        if len == 0 || header.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let mut slot = Self {
            start: index * SLOT_STRIDE,
            len,
            segment_size: len,
            remote: address::decode(name)?,
            local: None,
            ifindex: 0,
            at: None,
        };
        for (level, kind, data) in controls(header) {
            match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    // SAFETY: UDP_GRO carries one c_int; cmsg data may be unaligned.
                    let size = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                    slot.segment_size = usize::try_from(size).unwrap_or(0).max(1);
                }
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                    // SAFETY: SCM_TIMESTAMPNS carries one timespec.
                    let at = unsafe { data.cast::<libc::timespec>().read_unaligned() };
                    let nanoseconds = u32::try_from(at.tv_nsec).unwrap_or(0);
                    let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
                    slot.at = Some(Duration::new(seconds, nanoseconds));
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // SAFETY: IP_PKTINFO carries one in_pktinfo.
                    let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                    slot.local = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                    slot.ifindex = info.ipi_ifindex as u32;
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    // SAFETY: IPV6_PKTINFO carries one in6_pktinfo.
                    let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                    slot.local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                    slot.ifindex = info.ipi6_ifindex;
                }
                _ => {}
            }
        }
        Some(slot)
    }
}

/// The control messages that the kernel has left in `header`: level, kind, and where the data is.
fn controls(
    header: &libc::msghdr,
) -> impl Iterator<Item = (libc::c_int, libc::c_int, *const libc::c_uchar)> {
    // SAFETY: the kernel wrote msg_control and set msg_controllen; the CMSG macros stay within them.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    std::iter::from_fn(move || {
        let control = std::ptr::NonNull::new(next)?.as_ptr();
        // SAFETY: not null, so a whole header within the control buffer; header and control are those of this message.
        unsafe {
            next = libc::CMSG_NXTHDR(header, control);
            let data = libc::CMSG_DATA(control).cast_const();
            Some(((*control).cmsg_level, (*control).cmsg_type, data))
        }
    })
}
