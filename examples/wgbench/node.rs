//! One node of in-process WireGuard with a peer at a static endpoint: the least loop that carries
//! packets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wice::io::udp::{Coalescer, Destination, ReceiveBuffers, SLOTS, SendFailures, UdpSocket};
use wice::wireguard::IpPrefix;
use wice::wireguard::inprocess::{
    DeviceCounters, Egress, MessageKind, PeerConfig, PeerId, PeerStats, TunRead, TunnelCounters,
    Tunnels, Verdict,
};
use wice::wireguard::netlink::Netlink;
use wice::wireguard::tun::Tun;
use wice_signaling::protocol::PublicKey;

/// Receive calls before the device has its turn.
const RECEIVES: usize = 4;
/// The longest wait, so that a stop is seen.
const MAX_WAIT: Duration = Duration::from_millis(250);

pub(crate) struct Config {
    pub(crate) interface: String,
    pub(crate) offload: bool,
    pub(crate) mtu: u32,
    pub(crate) private_key: [u8; 32],
    pub(crate) peer_key: [u8; 32],
    pub(crate) allowed_ips: Vec<IpPrefix>,
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    pub(crate) listen: SocketAddr,
    pub(crate) endpoint: Option<SocketAddr>,
    /// How often a new session is begun, though the old one holds; never, except to try it.
    pub(crate) rekey_every: Option<Duration>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "printed, or looked at by one of the two users")]
pub(crate) struct Report {
    pub(crate) stats: Option<PeerStats>,
    pub(crate) tunnels: TunnelCounters,
    pub(crate) device: DeviceCounters,
    pub(crate) socket: wice::io::udp::Counters,
    /// Handshakes that it has begun and that were answered.
    pub(crate) sessions: u32,
    pub(crate) thread_cpu: Duration,
}

/// Runs until `stop`, in the network namespace of the calling thread.
pub(crate) fn run(
    config: Config,
    stop: &AtomicBool,
) -> Result<Report, Box<dyn std::error::Error + Send + Sync>> {
    let mut tun = Tun::create(&config.interface, config.offload)?;
    tun.set_mtu(config.mtu)?;
    set_up(&config)?;
    let socket = UdpSocket::bind(config.listen)?;
    let mut tunnels = Tunnels::new(config.private_key, config.mtu as usize, Instant::now());
    let peer = tunnels.add_peer(PeerConfig {
        public_key: PublicKey(config.peer_key),
        preshared_key: None,
        allowed_ips: config.allowed_ips,
        persistent_keepalive: None,
    })?;
    let mut buffers = ReceiveBuffers::new();
    let mut out = Out {
        socket: &socket,
        failures: SendFailures::new(),
        route: config.endpoint,
        from: None,
    };
    tunnels.start_handshake(peer, Instant::now(), &mut out);
    let (mut begun, mut sessions) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let due = tunnels.poll_timeout().map_or(MAX_WAIT, |at| {
            at.saturating_duration_since(now).min(MAX_WAIT)
        });
        let (udp_ready, tun_ready) = wait(&socket, &tun, due)?;
        let now = Instant::now();
        if udp_ready {
            for _ in 0..RECEIVES {
                let filled = socket.receive(&mut buffers)?;
                for datagram in buffers.datagrams() {
                    out.from = Some(datagram.remote);
                    let verdict = tunnels.handle_datagram(
                        datagram.remote.ip(),
                        datagram.payload,
                        now,
                        &mut tun,
                        &mut out,
                    );
                    if let Verdict::Authenticated { kind, .. } = verdict {
                        out.route = Some(datagram.remote);
                        sessions += u32::from(kind == MessageKind::Response);
                    }
                }
                tunnels.flush(&mut tun);
                if filled < SLOTS {
                    break;
                }
            }
            while socket.next_error().is_some() {}
        }
        if tun_ready && let TunRead::Failed(error) = tunnels.handle_device(&mut tun, &mut out) {
            return Err(error.into());
        }
        if config.rekey_every.is_some_and(|every| now >= begun + every) {
            begun = now;
            tunnels.start_handshake(peer, now, &mut out);
        }
        tunnels.handle_timeout(now, &mut out);
        out.failures.drain().for_each(drop);
    }
    Ok(Report {
        stats: tunnels.stats(peer, Instant::now()),
        tunnels: tunnels.counters(),
        device: tunnels.device_counters(),
        socket: socket.counters(),
        sessions,
        thread_cpu: thread_cpu(),
    })
}

struct Out<'a> {
    socket: &'a UdpSocket,
    failures: SendFailures,
    route: Option<SocketAddr>,
    from: Option<SocketAddr>,
}

impl Egress for Out<'_> {
    fn send(&mut self, _: PeerId, segments: &[u8], segment_size: usize) {
        let Some(remote) = self.route else { return };
        let to = Destination {
            remote,
            source: None,
        };
        Coalescer::new(self.socket, &self.failures).push_segments(to, segments, segment_size);
    }

    fn reply(&mut self, packet: &[u8]) {
        let Some(remote) = self.from else { return };
        let to = Destination {
            remote,
            source: None,
        };
        Coalescer::new(self.socket, &self.failures).push(to, None, packet);
    }
}

fn set_up(config: &Config) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let netlink = Netlink::connect()?;
        let index = netlink.index(&config.interface).await?;
        for (ip, len) in &config.addresses {
            netlink.add_address(index, *ip, *len).await?;
        }
        netlink.set_up(index).await?;
        for prefix in &config.allowed_ips {
            netlink.add_route(*prefix, index).await?;
        }
        Ok(())
    })
}

fn wait(socket: &UdpSocket, tun: &Tun, timeout: Duration) -> io::Result<(bool, bool)> {
    let fd = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [fd(socket.as_raw_fd()), fd(tun.as_raw_fd())];
    // Rounded up, or the last millisecond would be spun through.
    let millis = timeout.as_micros().div_ceil(1000) as libc::c_int;
    // SAFETY: two pollfds that outlive the call.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, millis) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted {
            Ok((false, false))
        } else {
            Err(error)
        };
    }
    Ok((fds[0].revents != 0, fds[1].revents != 0))
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
