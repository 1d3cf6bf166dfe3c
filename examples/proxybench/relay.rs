//! A TURN server between two machines, with the I/O of the real thing: GRO in, UDP_SEGMENT out. What
//! it costs is not measured.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use wice::io::udp::{Coalescer, Destination, ReceiveBuffers, SendFailures, UdpSocket};

use super::node::Error;
use super::turn_server::{Client, Out, TurnServer};

/// The first port that it gives out; more are not asked for here.
const RELAYED_PORT: u16 = 50_000;
/// Waiting ends by then, so that a stop is seen.
const WAIT_MS: libc::c_int = 50;

pub(crate) struct Relay {
    stop: Arc<AtomicBool>,
}

impl Relay {
    /// Starts it in a thread of the calling thread's namespace.
    pub(crate) fn start(listen: SocketAddr, relay: IpAddr) -> Result<Self, Error> {
        let sockets = [
            UdpSocket::bind(listen)?,
            UdpSocket::bind(SocketAddr::new(relay, RELAYED_PORT))?,
        ];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let server = TurnServer::new(&[relay]);
        std::thread::spawn(move || serve(server, &sockets, listen, &stopped));
        Ok(Self { stop })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(mut server: TurnServer, sockets: &[UdpSocket; 2], listen: SocketAddr, stop: &AtomicBool) {
    let [clients, peers] = sockets;
    let failures = SendFailures::new();
    let mut buffers = ReceiveBuffers::new();
    while !stop.load(Ordering::Relaxed) {
        let mut polled = [clients, peers].map(|socket| libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two pollfds that outlive the call.
        unsafe { libc::poll(polled.as_mut_ptr(), 2, WAIT_MS) };
        let now = Instant::now();
        while clients.receive(&mut buffers).unwrap_or(0) > 0 {
            let outs: Vec<Out> = buffers
                .datagrams()
                .flat_map(|d| {
                    server.handle(Client::Udp(d.remote, listen), d.remote, d.payload, now)
                })
                .collect();
            let mut to_peers = Coalescer::new(peers, &failures);
            for out in &outs {
                match out {
                    Out::ToClient(client, bytes) => to_client(clients, client, bytes, &failures),
                    Out::ToPeer { to, payload, .. } => to_peers.push(at(*to), None, payload),
                }
            }
        }
        while peers.receive(&mut buffers).unwrap_or(0) > 0 {
            let Ok(relayed) = peers.local_addr() else {
                return;
            };
            let outs: Vec<(Client, Vec<u8>)> = buffers
                .datagrams()
                .filter_map(|d| server.handle_peer(relayed, d.remote, d.payload, now))
                .collect();
            let mut to_clients = Coalescer::new(clients, &failures);
            for (client, bytes) in &outs {
                if let Client::Udp(remote, _) = client {
                    to_clients.push(at(*remote), None, bytes);
                }
            }
        }
    }
}

fn to_client(socket: &UdpSocket, client: &Client, bytes: &[u8], failures: &SendFailures) {
    if let Client::Udp(remote, _) = client {
        Coalescer::new(socket, failures).push(at(*remote), None, bytes);
    }
}

fn at(remote: SocketAddr) -> Destination {
    Destination {
        remote,
        source: None,
    }
}
