//! A node of attached mode without a daemon: the packet loop, with adverts carried by hand.

#![allow(dead_code, reason = "not every user needs all of it")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use wice::core::node::{
    Admission, HostAddress, Node, NodeConfig, PeerId, PeerSnapshot, RelayServer,
};
use wice::core::slots::{SlotCounters, SlotStats};
use wice::io::dial::Fwmark;
use wice::io::packet_loop::{
    self, Command, Inbox, Notice, Parts, PlaneParts, PlaneView, SlotsView, View,
};
use wice::io::slots::SlotSocket;
use wice::io::udp::UdpSocket;
use wice_signaling::protocol::{PrivateKey, PublicKey, Session};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Our own port, beside WireGuard's.
pub(crate) const PORT: u16 = 51821;
/// Notices on their way to the thread that carries adverts.
const NOTICES: usize = 1024;
/// The loop answers an inspection within this.
const INSPECT: Duration = Duration::from_secs(10);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) struct Config {
    pub(crate) secret: [u8; 32],
    /// Its addresses, with their interfaces.
    pub(crate) addresses: Vec<(Ipv4Addr, String)>,
    pub(crate) slot_port: u16,
    pub(crate) relay: Option<RelayServer>,
}

/// A running node.
pub(crate) struct AttachedNode {
    pub(crate) inbox: Inbox,
    pub(crate) key: PublicKey,
    /// What its notices said of WireGuard's port.
    pub(crate) closed_ports: Arc<Mutex<Vec<u16>>>,
    notices: Option<tokio::sync::mpsc::Receiver<Notice>>,
}

impl AttachedNode {
    /// Starts it in the network namespace of the calling thread.
    pub(crate) fn start(config: &Config, runtime: tokio::runtime::Handle) -> Result<Self, Error> {
        let key = PrivateKey::from_bytes(config.secret);
        let public = key.public_key();
        let now = Instant::now();
        let node = Node::new(
            NodeConfig {
                key,
                session: Session([config.secret[0]; 16]),
                sequence: 1,
                name: "bench".to_owned(),
                admission: Admission::Added,
                membership: Vec::new(),
                seed: config.secret,
            },
            now,
        );
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT).into())?;
        let (sender, notices) = tokio::sync::mpsc::channel(NOTICES);
        let (inbox, _thread) = packet_loop::spawn(Parts {
            node,
            overlay: None,
            plane: PlaneParts::BySlots(SlotSocket::open(config.slot_port)?),
            v4: Some(v4),
            v6: None,
            endpoint: Box::new(|_| None),
            fwmark: Fwmark::default(),
            notices: sender,
            runtime,
        })?;
        let addresses = config
            .addresses
            .iter()
            .map(|(ip, interface)| HostAddress {
                address: SocketAddr::from((*ip, PORT)),
                interface: index(interface),
            })
            .collect();
        inbox.send(Command::Addresses {
            addresses,
            changed: false,
        })?;
        if let Some(relay) = &config.relay {
            inbox.send(Command::RelayServers(vec![relay.clone()]))?;
        }
        Ok(Self {
            inbox,
            key: public,
            closed_ports: Arc::default(),
            notices: Some(notices),
        })
    }

    /// Makes it a peer of all others, and carries its adverts to them from now on.
    pub(crate) fn meet(&mut self, others: &[&AttachedNode]) -> Result<(), Error> {
        for other in others {
            other.inbox.send(Command::AddPeer(self.key))?;
        }
        let inboxes: Vec<Inbox> = others.iter().map(|other| other.inbox.clone()).collect();
        let closed = Arc::clone(&self.closed_ports);
        let Some(mut notices) = self.notices.take() else {
            return Ok(());
        };
        std::thread::spawn(move || {
            while let Some(notice) = notices.blocking_recv() {
                match notice {
                    Notice::Publish { advert, .. } => {
                        for inbox in &inboxes {
                            // Who has ended needs none.
                            let _ = inbox.send(Command::Advert(advert.clone()));
                        }
                    }
                    Notice::PortClosed(port) => {
                        if let Ok(mut closed) = closed.lock() {
                            closed.push(port);
                        }
                    }
                    Notice::Accepted(_)
                    | Notice::AcceptedRoutes(_)
                    | Notice::Owned { .. }
                    | Notice::Path(_)
                    | Notice::DeviceLost(_) => {}
                }
            }
        });
        Ok(())
    }

    pub(crate) fn wireguard_port(&self, port: Option<u16>) -> Result<(), Error> {
        Ok(self.inbox.send(Command::WireGuardPort(port, Vec::new()))?)
    }

    /// Looks at the loop's state, in the loop's thread.
    pub(crate) fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = mpsc::channel();
        self.inbox.send(Command::Inspect(Box::new(move |view| {
            // Fails only when nobody waits any more.
            let _ = sender.send(look(view));
        })))?;
        Ok(receiver.recv_timeout(INSPECT)?)
    }

    pub(crate) fn counters(&self) -> Result<SlotCounters, Error> {
        self.look(|view| attached(view).slots.counters)
    }

    pub(crate) fn stats(&self, key: PublicKey) -> Result<Option<SlotStats>, Error> {
        self.look(move |view| attached(view).slots.stats(view.node.peer_of(&key)?))
    }

    pub(crate) fn peer(&self, key: PublicKey) -> Result<Option<PeerSnapshot>, Error> {
        self.look(move |view| {
            let peer: PeerId = view.node.peer_of(&key)?;
            view.node.peer_snapshot(peer, view.now)
        })
    }

    /// Waits until there is a path to a peer; `relayed` says what kind is wanted.
    pub(crate) fn wait_path(
        &self,
        key: PublicKey,
        relayed: bool,
        patience: Duration,
    ) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let path = self.peer(key)?.and_then(|peer| peer.path);
            if path.is_some_and(|path| (path.pair.relays > 0) == relayed) {
                return Ok(());
            }
            if start.elapsed() > patience {
                return Err("no path".into());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Packets handed to WireGuard, and the system calls that it took.
    pub(crate) fn handed_on(&self) -> Result<(u64, u64), Error> {
        self.look(|view| {
            let counters = attached(view).socket.udp().counters();
            (counters.sent, counters.send_calls)
        })
    }

    /// CPU time that the loop's thread has used, user and kernel.
    pub(crate) fn cpu(&self) -> Result<Duration, Error> {
        self.look(|_| thread_cpu())
    }

    pub(crate) fn stop(&self) {
        // It may have ended already.
        let _ = self.inbox.send(Command::Stop);
    }
}

impl Drop for AttachedNode {
    fn drop(&mut self) {
        self.stop();
    }
}

/// CPU time of the calling thread, user and kernel.
pub(crate) fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn attached<'a>(view: &'a View<'_>) -> &'a SlotsView<'a> {
    match &view.plane {
        PlaneView::BySlots(view) => view,
        PlaneView::InProcess(_) => unreachable!("started with slots"),
    }
}

fn index(interface: &str) -> u32 {
    let Ok(name) = std::ffi::CString::new(interface) else {
        return 0;
    };
    // SAFETY: a string that ends in zero and outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}
