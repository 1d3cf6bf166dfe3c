//! The I/O of one allocation: a socket or a relay connection, and real time.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stun_types::attribute::ErrorCode;
use stun_types::message::Message;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};
use wice::core::turn::url::Host;
use wice::core::turn::{
    Allocation, AllocationConfig, AllocationEvent, AllocationState, Credentials, Failure, Family,
};
use wice::io::dial::Fwmark;
use wice::io::relay::{Endpoint, RelayConnection, RelayEvent, Tls, Trust};
use wice_signaling::protocol::RelayTransport;

use crate::server::{NAME, Server};

/// Longer than anything on loopback takes, retransmissions included.
const PATIENCE: Duration = Duration::from_secs(6);
/// How many echoes are on their way at once: coturn drops whole frames towards a stream once 32 KiB
/// of them wait.
const WINDOW: usize = 16;
/// After which an echo counts as lost: datagrams may be, and so may frames that waited too long.
const LOST: Duration = Duration::from_millis(400);
/// The most echoes that may get lost in one test; a stream out of step loses all.
const MAX_LOST: usize = 8;

pub(crate) enum Link {
    Udp(UdpSocket),
    Stream {
        connection: RelayConnection,
        events: mpsc::Receiver<(u64, RelayEvent)>,
        transport: RelayTransport,
    },
}

impl Link {
    pub(crate) async fn udp(server: &Server) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        socket.connect(server.address).await.expect("connected");
        Self::Udp(socket)
    }

    pub(crate) fn tcp(server: &Server) -> Self {
        Self::stream(server.address, None, None)
    }

    pub(crate) fn tls(server: &Server, proxy: Option<SocketAddr>) -> Self {
        let trust = Trust::CaFile(server.ca_file());
        let tls = Tls::new(&trust, Some(NAME.to_owned())).expect("set up");
        Self::stream(server.tls_address, Some(tls), proxy)
    }

    pub(crate) async fn of(transport: RelayTransport, server: &Server) -> Self {
        match transport {
            RelayTransport::Udp => Self::udp(server).await,
            RelayTransport::Tcp => Self::tcp(server),
            RelayTransport::Tls => Self::tls(server, None),
        }
    }

    pub(crate) fn stream(address: SocketAddr, tls: Option<Tls>, proxy: Option<SocketAddr>) -> Self {
        let transport = if tls.is_some() {
            RelayTransport::Tls
        } else {
            RelayTransport::Tcp
        };
        let endpoint = Endpoint {
            host: Host::Address(address.ip()),
            port: address.port(),
            tls,
            proxy: proxy.map(|proxy| format!("http://{proxy}").parse().expect("a URL")),
            mark: Fwmark::default(),
        };
        let (sender, events) = mpsc::channel(64);
        Self::Stream {
            connection: RelayConnection::open(1, endpoint, sender),
            events,
            transport,
        }
    }
}

pub(crate) struct Driver {
    pub(crate) allocation: Allocation,
    link: Link,
    pub(crate) events: Vec<AllocationEvent>,
    received: Vec<(SocketAddr, Vec<u8>)>,
    partial: Vec<u8>,
    /// The error codes that the server sent.
    pub(crate) codes: BTreeSet<u16>,
    /// How many ChannelData frames arrived.
    pub(crate) channel_frames_in: usize,
}

enum Arrived {
    Datagram(usize),
    Stream(RelayEvent),
    Nothing,
}

impl Driver {
    pub(crate) fn new(link: Link, credentials: Credentials) -> Self {
        Self::of_family(Family::V4, link, credentials)
    }

    pub(crate) fn of_family(family: Family, link: Link, credentials: Credentials) -> Self {
        static SEED: AtomicUsize = AtomicUsize::new(1);
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&SEED.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let transport = match &link {
            Link::Udp(_) => RelayTransport::Udp,
            Link::Stream { transport, .. } => *transport,
        };
        let config = AllocationConfig {
            transport,
            credentials,
            family,
        };
        let mut allocation = Allocation::new(config, seed);
        if matches!(link, Link::Udp(_)) {
            allocation.handle_connected(Instant::now());
        }
        Self {
            allocation,
            link,
            events: Vec::new(),
            received: Vec::new(),
            partial: Vec::new(),
            codes: BTreeSet::new(),
            channel_frames_in: 0,
        }
    }

    pub(crate) fn into_link(self) -> Link {
        self.link
    }

    pub(crate) async fn allocate(&mut self) {
        self.until("the allocation", |driver| {
            driver.allocation.state() != AllocationState::Allocating
                && driver.allocation.state() != AllocationState::Unconnected
        })
        .await;
        let state = self.allocation.state();
        assert_eq!(state, AllocationState::Allocated, "{:?}", self.events);
    }

    pub(crate) async fn permit(&mut self, peer: IpAddr) {
        self.allocation.permit(peer, Instant::now());
        self.until("the permission", |driver| driver.allocation.permitted(peer))
            .await;
    }

    /// Asks for a refresh and waits for its answer.
    pub(crate) async fn refresh(&mut self) {
        self.allocation.verify(Instant::now());
        self.allocation.handle_timeout(Instant::now());
        assert!(self.allocation.unanswered_since().is_some());
        self.until("the refresh", |driver| {
            driver.allocation.unanswered_since().is_none()
        })
        .await;
        assert_eq!(self.allocation.state(), AllocationState::Allocated);
    }

    /// Waits until the allocation failed or was lost, and says why.
    pub(crate) async fn failure(&mut self) -> Failure {
        let ended = |driver: &Self| driver.allocation.state() == AllocationState::Failed;
        self.until("the failure", ended).await;
        match self.events.last() {
            Some(
                AllocationEvent::Failed { failure, .. } | AllocationEvent::Lost { failure, .. },
            ) => *failure,
            other => panic!("no failure but {other:?}"),
        }
    }

    /// Sends payloads of these sizes until each has come back unchanged.
    pub(crate) async fn expect_echoes(&mut self, peer: SocketAddr, sizes: &[usize]) {
        let mut lost = 0;
        for (n, window) in sizes.chunks(WINDOW).enumerate() {
            let first = u8::try_from(n % 15 * WINDOW).unwrap_or(0);
            let mut missing: Vec<Vec<u8>> = (first..)
                .zip(window)
                .map(|(mark, &size)| vec![mark; size])
                .collect();
            while !missing.is_empty() {
                self.received.clear();
                for payload in &missing {
                    let sent = self.allocation.send(peer, payload, Instant::now());
                    sent.unwrap_or_else(|error| panic!("{error}"));
                }
                let (expected, end) = (missing.len(), Instant::now() + LOST);
                let all =
                    |driver: &Self| driver.received.len() >= expected || Instant::now() >= end;
                self.until("the echoes", all).await;
                for (from, payload) in &self.received {
                    assert_eq!(*from, peer);
                    let sent = window.contains(&payload.len());
                    assert!(sent, "{} bytes that nobody sent", payload.len());
                    missing.retain(|waiting| waiting != payload);
                }
                lost += missing.len();
                assert!(lost <= MAX_LOST, "{lost} lost; {}", self.describe());
            }
        }
    }

    pub(crate) async fn pause(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.until("the pause", |_| Instant::now() >= end).await;
    }

    /// Runs the allocation until `done`.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        loop {
            self.flush().await;
            if done(self) {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{what} never came; {}",
                self.describe()
            );
            self.step().await;
        }
    }

    fn describe(&self) -> String {
        let queue = match &self.link {
            Link::Udp(_) => None,
            Link::Stream { connection, .. } => Some(connection.counters()),
        };
        format!(
            "{:?}, {:?}, {} payloads in, {} of them on a channel, errors {:?}, {:?}, {queue:?}",
            self.allocation.state(),
            self.events,
            self.received.len(),
            self.channel_frames_in,
            self.codes,
            self.allocation.counters(),
        )
    }

    async fn flush(&mut self) {
        let now = Instant::now();
        if self.allocation.poll_timeout().is_some_and(|at| at <= now) {
            self.allocation.handle_timeout(now);
        }
        while let Some(transmit) = self.allocation.poll_transmit() {
            match &self.link {
                Link::Udp(socket) => {
                    // An ICMP error of an earlier datagram may show here; retransmission decides.
                    let _ = socket.send(&transmit.data).await;
                }
                Link::Stream { connection, .. } => {
                    connection.send(transmit.data, transmit.droppable);
                }
            }
        }
        while let Some(event) = self.allocation.poll_event() {
            self.events.push(event);
        }
    }

    async fn step(&mut self) {
        let mut buffer = [0; 2048];
        let at = self.allocation.poll_timeout();
        let at = at.unwrap_or_else(|| Instant::now() + PATIENCE);
        let arrived = tokio::select! {
            arrived = receive(&mut self.link, &mut buffer) => arrived,
            () = sleep_until(at.into()) => Arrived::Nothing,
            () = sleep(Duration::from_millis(50)) => Arrived::Nothing,
        };
        let now = Instant::now();
        match arrived {
            Arrived::Datagram(length) => {
                let datagram = &buffer[..length];
                self.note(datagram);
                if let Some(received) = self.allocation.handle_datagram(datagram, now) {
                    self.received
                        .push((received.peer, received.payload.to_vec()));
                }
            }
            Arrived::Stream(RelayEvent::Connected { .. }) => self.allocation.handle_connected(now),
            Arrived::Stream(RelayEvent::Data(bytes)) => {
                self.note_stream(&bytes);
                let received = &mut self.received;
                self.allocation.handle_stream(&bytes, now, |data| {
                    received.push((data.peer, data.payload.to_vec()));
                });
            }
            Arrived::Stream(RelayEvent::Closed(reason)) => {
                self.allocation
                    .handle_closed(wice::core::turn::Failure::ConnectionClosed, now);
                assert!(!reason.to_string().is_empty());
            }
            Arrived::Nothing => {}
        }
    }

    fn note(&mut self, frame: &[u8]) {
        if frame.first().is_some_and(|first| *first >= 0x40) {
            self.channel_frames_in += 1;
        } else if let Ok(message) = Message::from_bytes(frame)
            && let Ok(error) = message.attribute::<ErrorCode>()
        {
            self.codes.insert(error.code());
        }
    }

    /// Counts the whole frames of the stream so far.
    fn note_stream(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        while let Some(&[first, _, a, b]) = self.partial.first_chunk::<4>() {
            let length = usize::from(u16::from_be_bytes([a, b]));
            let header = if first < 0x40 { 20 } else { 4 };
            let end = header + length.next_multiple_of(4);
            if end > self.partial.len() {
                return;
            }
            let rest = self.partial.split_off(end);
            let frame = std::mem::replace(&mut self.partial, rest);
            self.note(&frame);
        }
    }
}

async fn receive(link: &mut Link, buffer: &mut [u8]) -> Arrived {
    match link {
        Link::Udp(socket) => match socket.recv(buffer).await {
            Ok(length) => Arrived::Datagram(length),
            Err(_) => Arrived::Nothing,
        },
        Link::Stream { events, .. } => match events.recv().await {
            Some((_, event)) => Arrived::Stream(event),
            None => std::future::pending().await,
        },
    }
}

/// A UDP peer that sends everything back, and how much that was.
pub(crate) async fn echo_peer(ip: IpAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind((ip, 0)).await.expect("a port");
    let address = socket.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    });
    (address, count)
}
