//! Handshakes that WireGuard begins at endpoints which turn out to be dead, overheard as they leave: by
//! the path they come to something at once, while WireGuard itself repeats them after 5 s at the earliest
//! (paper §6.1, REKEY_TIMEOUT). Nothing else is copied, and nothing is read before it is asked for.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use wice_signaling::protocol::PublicKey;

use super::filter;
use crate::core::slots::{INITIATION_LEN, is_for};

/// After this WireGuard has begun another (paper §6.1, REKEY_TIMEOUT).
const FRESH: Duration = Duration::from_secs(5);
/// Initiations that are kept: of as many peers as may be replaced at once and have traffic. 200 KiB.
const MAX_KEPT: usize = 1024;
/// As many wait in the kernel, some 1 KiB each with its bookkeeping.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// The longest header of IPv4 (RFC 791 §3.1), and a UDP header.
const MAX_HEADERS: usize = 60 + 8;

/// What WireGuard has begun lately.
#[derive(Debug)]
pub struct Overheard {
    sockets: Vec<Socket>,
    kept: VecDeque<(Instant, Box<[u8; INITIATION_LEN]>)>,
}

impl Overheard {
    /// Listens at these interfaces, by the kernel's numbers, for what leaves from `port`. Needs
    /// CAP_NET_RAW, here alone.
    pub fn open(port: u16, interfaces: &[u32]) -> io::Result<Self> {
        let sockets = interfaces.iter().map(|index| listen(port, *index));
        Ok(Self {
            sockets: sockets.collect::<io::Result<_>>()?,
            kept: VecDeque::new(),
        })
    }

    /// Fetches what has left meanwhile; at least every few seconds, or the kernel has no room.
    pub fn fetch(&mut self, now: Instant) {
        let fresh = |(at, _): &(Instant, _)| now.saturating_duration_since(*at) < FRESH;
        self.kept.retain(fresh);
        let mut packet = [MaybeUninit::uninit(); MAX_HEADERS + INITIATION_LEN];
        for socket in &self.sockets {
            // An error, of an interface that is gone say, is the end of what there is.
            while let Ok(length) = socket.recv(&mut packet) {
                // SAFETY: the call has written so many.
                let bytes: Vec<u8> = packet[..length]
                    .iter()
                    .map(|b| unsafe { b.assume_init() })
                    .collect();
                let Some(initiation) = bytes.last_chunk::<INITIATION_LEN>() else {
                    continue;
                };
                if self.kept.len() == MAX_KEPT {
                    self.kept.pop_front();
                }
                self.kept.push_back((now, Box::new(*initiation)));
            }
        }
    }

    /// The latest initiation for this peer, if it can still be answered. Once.
    pub fn take(&mut self, peer: &PublicKey, now: Instant) -> Option<Box<[u8; INITIATION_LEN]>> {
        self.fetch(now);
        let at = self.kept.iter().rposition(|(_, kept)| is_for(kept, peer))?;
        self.kept.remove(at).map(|(_, initiation)| initiation)
    }
}

/// Nothing comes before the filter is there: a socket without protocol takes nothing (packet(7)).
fn listen(port: u16, interface: u32) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::PACKET, kind, None)?;
    let program = filter::initiations_from(port).map(|i| SockFilter::new(i.code, i.jt, i.jf, i.k));
    socket.attach_filter(&program)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.bind(&address(interface))?;
    Ok(socket)
}

/// All protocols, for it is these sockets alone that see what leaves.
fn address(interface: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a `sockaddr_ll` fits into the storage, which is made for every address, and is plain data.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    link.sll_ifindex = i32::try_from(interface).unwrap_or_default();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: family and length are those of what was written.
    unsafe { SockAddr::new(storage, length) }
}
