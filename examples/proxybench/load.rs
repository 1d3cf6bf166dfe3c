//! Where measured packets come from and where they end: what looks like WireGuard's data, sent as
//! WireGuard sends it, and never more on the way than a window, so that nothing is measured but what
//! is carried.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wice::io::udp::{self, Coalescer, Destination, SendFailures};

use super::node::Error;

/// UDP payload of a packet.
pub(crate) const PACKET: usize = 1400;
/// Packets of one send of a WireGuard that uses UDP_SEGMENT: 64 KiB hold 46.
const SEGMENTS: usize = 44;
/// What the kernel joins at most.
const BUFFER: usize = 65_536;
/// Packets on the way at most: some 6 ms at 1 Gbit/s, and less than any socket's buffer.
const WINDOW: u64 = 512;
/// Packets that are not through by then are lost: the window opens again.
const LOST_AFTER: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_micros(50);
/// Nothing has come for this long: a forwarder looks at its clock.
pub(crate) const IDLE: Duration = Duration::from_millis(50);
/// What is on its way arrives, and clocks have been looked at.
const SETTLE: Duration = Duration::from_millis(150);

/// How a WireGuard sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Many packets a system call, as wireguard-go since 2023.
    Segments,
    /// One packet a system call, as the kernel's does towards loopback.
    Singles,
}

/// Counts what arrives at a socket, in a thread of the calling thread's namespace.
pub(crate) struct Sink {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Sink {
    /// Another thread sends by the same socket meanwhile.
    pub(crate) fn start(socket: &udp::UdpSocket) -> Result<Self, Error> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let received = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let sink = Self {
            received: Arc::clone(&received),
            stop: Arc::clone(&stop),
        };
        std::thread::spawn(move || {
            let mut buffer = vec![0u8; BUFFER];
            while !stop.load(Ordering::Relaxed) {
                let _ = wait(socket.as_raw_fd());
                // Runs that the kernel joined are whole packets of one size, so bytes tell how many.
                // SAFETY: the buffer is writable for its length.
                while let Ok(len @ 1..) = usize::try_from(unsafe {
                    libc::recv(
                        socket.as_raw_fd(),
                        buffer.as_mut_ptr().cast(),
                        buffer.len(),
                        libc::MSG_DONTWAIT,
                    )
                }) {
                    received.fetch_add(len.div_ceil(PACKET) as u64, Ordering::Relaxed);
                }
            }
        });
        Ok(sink)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What one run has carried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Carried {
    pub(crate) packets: u64,
    pub(crate) lost: u64,
    /// Packets a second.
    pub(crate) rate: f64,
}

/// Sends from `from` to `to` for `duration`, as fast as `sink` takes it.
pub(crate) fn drive(
    from: &udp::UdpSocket,
    to: SocketAddr,
    pattern: Pattern,
    sink: &Sink,
    duration: Duration,
) -> Carried {
    let mut packets = vec![0u8; PACKET * SEGMENTS];
    for packet in packets.chunks_mut(PACKET) {
        packet[0] = 4;
        packet[4..8].copy_from_slice(&[9; 4]);
    }
    let failures = SendFailures::new();
    let destination = Destination {
        remote: to,
        source: None,
    };
    let first = sink.received.load(Ordering::Relaxed);
    let (start, mut sent, mut lost) = (Instant::now(), 0, 0);
    let mut progress = (0, start);
    while start.elapsed() < duration {
        let arrived = sink.received.load(Ordering::Relaxed) - first;
        if arrived != progress.0 {
            progress = (arrived, Instant::now());
        }
        if sent - arrived.min(sent) - lost > WINDOW {
            if progress.1.elapsed() > LOST_AFTER {
                lost = sent - arrived;
            } else {
                std::thread::sleep(PAUSE);
            }
            continue;
        }
        match pattern {
            Pattern::Segments => {
                let mut out = Coalescer::new(from, &failures);
                out.push_segments(destination, &packets, PACKET);
            }
            Pattern::Singles => {
                for packet in packets.chunks(PACKET) {
                    Coalescer::new(from, &failures).push(destination, None, packet);
                }
            }
        }
        sent += SEGMENTS as u64;
    }
    let seconds = start.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let arrived = sink.received.load(Ordering::Relaxed) - first;
    Carried {
        packets: arrived,
        lost: sent.saturating_sub(arrived),
        rate: arrived as f64 / seconds,
    }
}

/// Waits for something to read; false if nothing has come for a while.
pub(crate) fn wait(fd: i32) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd that outlives the call.
    unsafe { libc::poll(&raw mut poll, 1, IDLE.as_millis() as libc::c_int) > 0 }
}

/// A plain socket with buffers that hold the window, for forwarders that bring none of their own.
pub(crate) fn plain(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let bytes: libc::c_int = 8 << 20;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: the value is a c_int that lives for the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                std::ptr::from_ref(&bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(socket)
}
