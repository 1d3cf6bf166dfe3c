//! The machines of the measurement: two side by side, and two with a TURN server between them.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use wice::core::node::RelayServer;
use wice::core::slots::{SLOT_PORT, slot_of};
use wice::io::udp::UdpSocket;
use wice_signaling::protocol::RelayTransport;
use wice_turn::io::{Listen, Service, Settings};
use wice_turn::server::Transport;

use super::forward::{Forwarder, Kind};
use super::load::Sink;
use super::namespace::{Namespace, two_namespaces};
use super::node::{AttachedNode, Config, Error};

/// What stands for WireGuard's port.
const WIREGUARD: u16 = 51820;
/// Where forwarders listen: one of a kind at the first machine, and the next at the second.
const FORWARDERS: u16 = 7000;
const TURN: u16 = 3478;
const USER: &str = "alice";
const PASSWORD: &str = "wonderland";
/// Paths, relays included, are found within this.
const PATIENCE: Duration = Duration::from_secs(20);

/// One side: a node, and something that sends and receives as WireGuard does.
pub(crate) struct Side {
    pub(crate) namespace: Namespace,
    pub(crate) node: AttachedNode,
    /// Packets leave from here, as if WireGuard had sent them, to forwarders.
    pub(crate) plain: UdpSocket,
    /// WireGuard's socket: what is received is counted; it sends too.
    pub(crate) wireguard: UdpSocket,
    pub(crate) sink: Sink,
}

impl Side {
    fn start(
        namespace: &Namespace,
        runtime: &tokio::runtime::Runtime,
        config: Config,
    ) -> Result<Self, Error> {
        let handle = runtime.handle().clone();
        let inside = namespace.clone();
        let started = namespace.spawn(move || -> Result<Self, Error> {
            let node = AttachedNode::start(&config, handle)?;
            let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            // Both ends of WireGuard's port are one socket.
            let wireguard = UdpSocket::bind(local(WIREGUARD))?;
            let sink = Sink::start(&wireguard)?;
            node.wireguard_port(Some(WIREGUARD))?;
            Ok(Self {
                namespace: inside,
                node,
                plain: UdpSocket::bind(local(0))?,
                wireguard,
                sink,
            })
        });
        started.join().map_err(|_| "a machine did not start")?
    }

    pub(crate) fn slot(&self) -> SocketAddr {
        SocketAddr::from((slot_of(&self.node.key), SLOT_PORT))
    }
}

/// Two machines that can carry packets from the first to the second by slots or by a bare forwarder
/// at either.
pub(crate) struct Pair {
    pub(crate) a: Side,
    pub(crate) b: Side,
    pub(crate) forwarders: Vec<(Kind, Forwarder, Forwarder)>,
}

impl Pair {
    pub(crate) fn new(runtime: &tokio::runtime::Runtime) -> Result<Self, Error> {
        let [a, b] = two_namespaces().ok_or("needs root")?;
        let config = |number: u8, interface: &str| Config {
            secret: [number; 32],
            addresses: vec![(Ipv4Addr::new(192, 0, 2, number), interface.to_owned())],
            slot_port: SLOT_PORT,
            relay: None,
        };
        let mut a = Side::start(&a, runtime, config(1, "veth-a"))?;
        let mut b = Side::start(&b, runtime, config(2, "veth-b"))?;
        introduce(&mut a, &mut b, false)?;
        let mut forwarders = Vec::new();
        for (number, kind) in [Kind::GroGso, Kind::Addressed, Kind::Quinn, Kind::Tokio]
            .into_iter()
            .enumerate()
        {
            let port = FORWARDERS + number as u16;
            let middle = SocketAddr::from(([192, 0, 2, 2], port));
            let first = forwarder(&a, kind, listen_at(kind), middle)?;
            let end = SocketAddr::from((Ipv4Addr::LOCALHOST, WIREGUARD));
            let second = forwarder(&b, kind, middle, end)?;
            forwarders.push((kind, first, second));
        }
        Ok(Self { a, b, forwarders })
    }

    /// What the link does with many packets in one send: hands them over whole (as cards with USO
    /// do), or cuts them, and the receiving side joins them again (as cards without).
    pub(crate) fn segment_on_link(&self, on: bool) -> Result<(), Error> {
        let offload = if on { "off" } else { "on" };
        for (side, device) in [(&self.a, "veth-a"), (&self.b, "veth-b")] {
            for arguments in [
                format!("-K {device} tso {offload} tx-udp-segmentation {offload}"),
                format!("-K {device} gro on"),
            ] {
                let ran = side.namespace.spawn(move || {
                    Command::new("ethtool")
                        .args(arguments.split(' '))
                        .stderr(Stdio::null())
                        .status()
                });
                let status = ran.join().map_err(|_| "ethtool")?;
                if !status
                    .map_err(|error| format!("ethtool: {error}"))?
                    .success()
                {
                    return Err("ethtool cannot change the link's offloads".into());
                }
            }
        }
        Ok(())
    }
}

/// Where the first machine's forwarder listens: a loopback address, as a slot is.
pub(crate) fn listen_at(kind: Kind) -> SocketAddr {
    SocketAddr::from(([127, 9, 9, 9], FORWARDERS + 100 + kind as u16))
}

fn forwarder(
    side: &Side,
    kind: Kind,
    listen: SocketAddr,
    to: SocketAddr,
) -> Result<Forwarder, Error> {
    let started = side
        .namespace
        .spawn(move || Forwarder::start(kind, listen, to));
    started.join().map_err(|_| "a forwarder did not start")?
}

fn introduce(a: &mut Side, b: &mut Side, relayed: bool) -> Result<(), Error> {
    a.node.meet(&[&b.node])?;
    b.node.meet(&[&a.node])?;
    a.node.wait_path(b.node.key, relayed, PATIENCE)?;
    b.node.wait_path(a.node.key, relayed, PATIENCE)
}

/// Two machines that reach each other only through the first's relay, a `wice turn` between them.
pub(crate) struct Relayed {
    pub(crate) a: Side,
    pub(crate) b: Side,
    _server: Service,
}

impl Relayed {
    pub(crate) fn new(runtime: &tokio::runtime::Runtime) -> Result<Self, Error> {
        let new = || Namespace::new().ok_or("needs root");
        let (a, b, between) = (new()?, new()?, new()?);
        for (end, net, name) in [(&a, 2, "to-a"), (&b, 3, "to-b")] {
            let path = end.path();
            between.ip(&format!(
                "link add {name} type veth peer name v0 netns {path}"
            ));
            between.ip(&format!("address add 198.51.{net}.254/24 dev {name}"));
            between.ip(&format!("link set {name} up"));
            end.ip(&format!("address add 198.51.{net}.1/24 dev v0"));
            end.ip("link set v0 up");
            end.ip(&format!("route add default via 198.51.{net}.254"));
        }
        let listen = SocketAddr::from(([198, 51, 2, 254], TURN));
        // Its thread is in the namespace of the one that starts it.
        let relay = between.spawn(move || {
            Service::start(&Settings {
                listen: vec![Listen {
                    transport: Transport::Udp,
                    address: listen,
                }],
                relay_ips: vec![[198, 51, 3, 254].into()],
                users: vec![(USER.to_owned(), PASSWORD.to_owned())],
                threads: 1,
                ..Settings::new()
            })
        });
        let server = relay.join().map_err(|_| "the relay did not start")??;
        let config = |number: u8, net: u8, relay| Config {
            secret: [number; 32],
            addresses: vec![(Ipv4Addr::new(198, 51, net, 1), "v0".to_owned())],
            slot_port: SLOT_PORT,
            relay,
        };
        let relay = RelayServer {
            name: "bench".to_owned(),
            address: listen,
            transport: RelayTransport::Udp,
            username: USER.to_owned(),
            password: PASSWORD.to_owned(),
        };
        let mut a = Side::start(&a, runtime, config(3, 2, Some(relay)))?;
        let mut b = Side::start(&b, runtime, config(4, 3, None))?;
        introduce(&mut a, &mut b, true)?;
        Ok(Self {
            a,
            b,
            _server: server,
        })
    }
}
