//! Bare forwarders to measure against: what comes in at one socket goes out by another, without a
//! look at it. None of them uses anything of wice.

use std::cell::Cell;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
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
    /// The same as a proxy for many peers must do it: no socket is connected, and every run tells and is told its addresses.
    Addressed,
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
        let local = outward.local_addr()?.ip();
        Self::spawn(kind, move |running, ready| match kind {
            Kind::GroGso => gro_gso(&inward, &outward, None, running, ready),
            Kind::Addressed => gro_gso(&inward, &inward, Some((local, to)), running, ready),
            Kind::Quinn => quinn(&inward, &outward, to, running, ready),
            Kind::Tokio => tokio(inward, outward, running, ready),
        })
    }

    /// Both ways between a program on this machine and the other machine, [`Kind::GroGso`], a thread each. A side is
    /// where it is met here, and where it is.
    pub(crate) fn both_ways(sides: [(SocketAddr, SocketAddr); 2]) -> Result<[Self; 2], Error> {
        let socket = |(local, remote): (SocketAddr, SocketAddr)| -> io::Result<UdpSocket> {
            let socket = plain(local)?;
            socket.connect(remote)?;
            Ok(socket)
        };
        let (near, far) = (socket(sides[0])?, socket(sides[1])?);
        let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
        Ok([
            Self::spawn(Kind::GroGso, move |running, ready| {
                gro_gso(&near, &far, None, running, ready)
            })?,
            Self::spawn(Kind::GroGso, move |running, ready| {
                gro_gso(&far_too, &near_too, None, running, ready)
            })?,
        ])
    }

    fn spawn(
        kind: Kind,
        run: impl FnOnce(&Running, &mpsc::Sender<()>) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, Error> {
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
            if let Err(error) = run(&Running { stop, cpu }, &ready) {
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

fn set(
    socket: &UdpSocket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value is a c_int that lives for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
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
    by: Option<(IpAddr, SocketAddr)>,
    running: &Running,
    ready: &mpsc::Sender<()>,
) -> io::Result<()> {
    set(inward, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    if by.is_some() {
        set(inward, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    }
    let way = by.and_then(Way::new);
    // SAFETY: plain data for which all zero is valid.
    let mut names: [libc::sockaddr_in; SLOTS] = unsafe { std::mem::zeroed() };
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
                if way.is_some() {
                    header.msg_name = (&raw mut names[slot]).cast();
                    header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
                }
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
            send_gathered(&data, &messages[..filled], outward, way.as_ref());
            if filled < SLOTS {
                break;
            }
        }
    }
    Ok(())
}

/// Runs of equal size leave together.
fn send_gathered(data: &[u8], messages: &[libc::mmsghdr], outward: &UdpSocket, way: Option<&Way>) {
    // SAFETY: plain data for which all zero is valid.
    let mut iovecs: [libc::iovec; MAX_SEGMENTS] = unsafe { std::mem::zeroed() };
    let (mut used, mut segments, mut bytes, mut size, mut closed) = (0, 0, 0, 0, true);
    for (slot, message) in messages.iter().enumerate() {
        let len = message.msg_len as usize;
        let own = segment_size(&message.msg_hdr).unwrap_or(len).max(1);
        let count = len.div_ceil(own);
        if closed || own != size || segments + count > MAX_SEGMENTS || bytes + len > MAX_BYTES {
            send(&mut iovecs[..used], segments, size, outward, way);
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
    send(&mut iovecs[..used], segments, size, outward, way);
}

/// From where to where a run goes, over IPv4, where the socket is not connected.
struct Way {
    to: libc::sockaddr_in,
    from: libc::in_pktinfo,
}

impl Way {
    fn new((from, to): (IpAddr, SocketAddr)) -> Option<Self> {
        let (IpAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
            return None;
        };
        let address = |ip: std::net::Ipv4Addr| libc::in_addr {
            s_addr: u32::from(ip).to_be(),
        };
        Some(Self {
            to: libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: to.port().to_be(),
                sin_addr: address(*to.ip()),
                sin_zero: [0; 8],
            },
            from: libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: address(from),
                ipi_addr: libc::in_addr { s_addr: 0 },
            },
        })
    }
}

/// Writes a control message behind those that are there.
fn add<T>(
    control: &mut Control,
    header: &mut libc::msghdr,
    (level, kind): (libc::c_int, libc::c_int),
    value: T,
) {
    let used = header.msg_controllen;
    let bytes = size_of::<T>() as libc::c_uint;
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: these compute lengths, and write one header and a value into a buffer that has room for an address and a size.
    unsafe {
        header.msg_controllen += libc::CMSG_SPACE(bytes) as usize;
        let message = control.0.as_mut_ptr().add(used).cast::<libc::cmsghdr>();
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = libc::CMSG_LEN(bytes) as usize;
        libc::CMSG_DATA(message).cast::<T>().write_unaligned(value);
    }
}

fn send(
    iovecs: &mut [libc::iovec],
    segments: usize,
    size: usize,
    outward: &UdpSocket,
    way: Option<&Way>,
) {
    if iovecs.is_empty() {
        return;
    }
    let mut control = Control([0; CONTROL]);
    // SAFETY: plain data for which all zero is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = iovecs.as_mut_ptr();
    header.msg_iovlen = iovecs.len();
    if let Some(way) = way {
        header.msg_name = std::ptr::from_ref(&way.to).cast_mut().cast();
        header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        let kind = (libc::IPPROTO_IP, libc::IP_PKTINFO);
        add(&mut control, &mut header, kind, way.from);
    }
    if segments > 1 {
        let kind = (libc::SOL_UDP, libc::UDP_SEGMENT);
        add(&mut control, &mut header, kind, size as u16);
    }
    // SAFETY: everything that the header points at outlives the call. What is refused is lost.
    unsafe { libc::sendmsg(outward.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
}

fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel wrote msg_control and its length; UDP_GRO carries one c_int.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if ((*message).cmsg_level, (*message).cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO) {
                let size = libc::CMSG_DATA(message).cast::<libc::c_int>();
                return usize::try_from(size.read_unaligned()).ok();
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
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
