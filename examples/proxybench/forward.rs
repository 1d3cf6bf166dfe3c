//! Bare forwarders to measure against: what comes in at one socket goes out by another, without a
//! look at it. None of them uses anything of wice.

use std::cell::Cell;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use super::load::{plain, wait};
use super::node::{Error, thread_cpu};

/// Messages a recvmmsg, and room for what the kernel joins in each.
const SLOTS: usize = 16;
const SLOT_BYTES: usize = 65_536;
/// What one UDP_SEGMENT send holds (udp(7), UDP_MAX_SEGMENTS of older kernels).
const MAX_SEGMENTS: usize = 64;
const MAX_BYTES: usize = 65_507;
const CONTROL: usize = 64;
/// How often tokio's forwarder reads its clock.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// recvmmsg with UDP_GRO in, UDP_SEGMENT out, runs gathered over a whole batch.
    GroGso,
    /// quinn-udp, each run as it was received.
    Quinn,
    /// tokio's `recv_from` and `send`.
    Tokio,
}

/// A forwarder's thread, in the namespace of the thread that started it.
pub(crate) struct Forwarder {
    stop: Arc<AtomicBool>,
    cpu: Arc<AtomicU64>,
}

impl Forwarder {
    /// From what `listen` takes to `to`.
    pub(crate) fn start(kind: Kind, listen: SocketAddr, to: SocketAddr) -> Result<Self, Error> {
        let inward = plain(listen)?;
        let outward = plain(SocketAddr::new(
            match listen {
                SocketAddr::V4(_) => [0, 0, 0, 0].into(),
                SocketAddr::V6(_) => [0u16; 8].into(),
            },
            0,
        ))?;
        outward.connect(to)?;
        let (stop, cpu) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let this = Self {
            stop: Arc::clone(&stop),
            cpu: Arc::clone(&cpu),
        };
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            let running = Running { stop, cpu };
            let ran = match kind {
                Kind::GroGso => gro_gso(&inward, &outward, &running, &ready),
                Kind::Quinn => quinn(&inward, &outward, to, &running, &ready),
                Kind::Tokio => tokio(inward, outward, &running, &ready),
            };
            if let Err(error) = ran {
                eprintln!("{kind:?}: {error}");
            }
        });
        is_ready.recv()?;
        Ok(this)
    }

    /// User and kernel time of its thread, as of its last batch.
    pub(crate) fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu.load(Ordering::Relaxed))
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Running {
    stop: Arc<AtomicBool>,
    cpu: Arc<AtomicU64>,
}

impl Running {
    /// Called when nothing has come for a while: the clock would cost if it were read a batch.
    fn goes_on(&self) -> bool {
        let cpu = u64::try_from(thread_cpu().as_nanos()).unwrap_or(u64::MAX);
        self.cpu.store(cpu, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }
}

fn set(socket: &UdpSocket, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value is a c_int that lives for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

fn gro_gso(
    inward: &UdpSocket,
    outward: &UdpSocket,
    running: &Running,
    ready: &mpsc::Sender<()>,
) -> io::Result<()> {
    set(inward, libc::UDP_GRO, 1)?;
    let mut data = vec![0u8; SLOTS * SLOT_BYTES];
    let mut controls = [Control([0; CONTROL]); SLOTS];
    let _ = ready.send(());
    while wait(inward.as_raw_fd()) || running.goes_on() {
        loop {
            let mut iovecs: [libc::iovec; SLOTS] = std::array::from_fn(|slot| libc::iovec {
                iov_base: data[slot * SLOT_BYTES..].as_mut_ptr().cast(),
                iov_len: SLOT_BYTES,
            });
            // SAFETY: plain data for which all zero is valid.
            let mut messages: [libc::mmsghdr; SLOTS] = unsafe { std::mem::zeroed() };
            for slot in 0..SLOTS {
                let header = &mut messages[slot].msg_hdr;
                header.msg_iov = &raw mut iovecs[slot];
                header.msg_iovlen = 1;
                header.msg_control = controls[slot].0.as_mut_ptr().cast();
                header.msg_controllen = CONTROL;
            }
            // SAFETY: every header points at buffers that outlive the call.
            let filled = unsafe {
                libc::recvmmsg(
                    inward.as_raw_fd(),
                    messages.as_mut_ptr(),
                    SLOTS as u32,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            let Ok(filled) = usize::try_from(filled) else {
                break;
            };
            send_gathered(&data, &messages[..filled], outward);
            if filled < SLOTS {
                break;
            }
        }
    }
    Ok(())
}

/// Runs of equal size leave together.
fn send_gathered(data: &[u8], messages: &[libc::mmsghdr], outward: &UdpSocket) {
    // SAFETY: plain data for which all zero is valid.
    let mut iovecs: [libc::iovec; MAX_SEGMENTS] = unsafe { std::mem::zeroed() };
    let (mut used, mut segments, mut bytes, mut size, mut closed) = (0, 0, 0, 0, true);
    for (slot, message) in messages.iter().enumerate() {
        let len = message.msg_len as usize;
        let own = segment_size(&message.msg_hdr).unwrap_or(len).max(1);
        let count = len.div_ceil(own);
        if closed || own != size || segments + count > MAX_SEGMENTS || bytes + len > MAX_BYTES {
            send(&mut iovecs[..used], segments, size, outward);
            (used, segments, bytes, size) = (0, 0, 0, own);
        }
        iovecs[used] = libc::iovec {
            iov_base: data[slot * SLOT_BYTES..].as_ptr().cast_mut().cast(),
            iov_len: len,
        };
        used += 1;
        segments += count;
        bytes += len;
        closed = !len.is_multiple_of(own);
    }
    send(&mut iovecs[..used], segments, size, outward);
}

fn send(iovecs: &mut [libc::iovec], segments: usize, size: usize, outward: &UdpSocket) {
    if iovecs.is_empty() {
        return;
    }
    let mut control = Control([0; CONTROL]);
    // SAFETY: plain data for which all zero is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = iovecs.as_mut_ptr();
    header.msg_iovlen = iovecs.len();
    if segments > 1 {
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: these compute lengths, and write one header and a u16 into a buffer that has room.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(2) as usize;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_UDP;
            (*message).cmsg_type = libc::UDP_SEGMENT;
            (*message).cmsg_len = libc::CMSG_LEN(2) as usize;
            libc::CMSG_DATA(message)
                .cast::<u16>()
                .write_unaligned(size as u16);
        }
    }
    // SAFETY: everything that the header points at outlives the call. What is refused is lost.
    unsafe { libc::sendmsg(outward.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
}

fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel wrote msg_control and its length; UDP_GRO carries one c_int.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(header);
        let is_gro = !message.is_null()
            && ((*message).cmsg_level, (*message).cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO);
        is_gro.then(|| {
            let size = libc::CMSG_DATA(message).cast::<libc::c_int>();
            usize::try_from(size.read_unaligned()).unwrap_or(0)
        })
    }
}

fn quinn(
    inward: &UdpSocket,
    outward: &UdpSocket,
    to: SocketAddr,
    running: &Running,
    ready: &mpsc::Sender<()>,
) -> io::Result<()> {
    let receiver = UdpSocketState::new(UdpSockRef::from(inward))?;
    let sender = UdpSocketState::new(UdpSockRef::from(outward))?;
    let mut data = vec![0u8; quinn_udp::BATCH_SIZE * SLOT_BYTES];
    let lost = Cell::new(0u64);
    let _ = ready.send(());
    while wait(inward.as_raw_fd()) || running.goes_on() {
        loop {
            let mut metas = [RecvMeta::default(); quinn_udp::BATCH_SIZE];
            let mut slices: Vec<IoSliceMut<'_>> =
                data.chunks_mut(SLOT_BYTES).map(IoSliceMut::new).collect();
            let Ok(filled) = receiver.recv(UdpSockRef::from(inward), &mut slices, &mut metas)
            else {
                break;
            };
            for (meta, slot) in metas.iter().zip(data.chunks(SLOT_BYTES)).take(filled) {
                let mut rest = &slot[..meta.len];
                let most = sender
                    .max_gso_segments()
                    .min(MAX_BYTES / meta.stride.max(1))
                    .max(1);
                while !rest.is_empty() {
                    let (contents, after) = rest.split_at(rest.len().min(most * meta.stride));
                    rest = after;
                    let transmit = Transmit {
                        destination: to,
                        ecn: None,
                        contents,
                        segment_size: Some(meta.stride),
                        src_ip: None,
                    };
                    if sender
                        .try_send(UdpSockRef::from(outward), &transmit)
                        .is_err()
                    {
                        lost.set(lost.get() + 1);
                    }
                }
            }
        }
    }
    Ok(())
}

fn tokio(
    inward: UdpSocket,
    outward: UdpSocket,
    running: &Running,
    ready: &mpsc::Sender<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let inward = tokio::net::UdpSocket::from_std(inward)?;
        let outward = tokio::net::UdpSocket::from_std(outward)?;
        let mut buffer = vec![0u8; SLOT_BYTES];
        let _ = ready.send(());
        let forward = async {
            loop {
                let (len, _) = inward.recv_from(&mut buffer).await?;
                // What is refused is lost.
                let _ = outward.send(&buffer[..len]).await;
            }
        };
        let looked_at = async {
            while running.goes_on() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(())
        };
        tokio::select! {
            ended = forward => ended,
            ended = looked_at => ended,
        }
    })
}
