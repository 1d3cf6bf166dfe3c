//! The daemon: it keeps state, talks to signaling, and tells the packet loop what it learns. In managed
//! mode it owns the WireGuard interface, in attached mode ([`attach`]) another program does.

#[cfg(feature = "kubernetes")]
mod agent;
mod answers;
mod attached;
mod base;
pub mod control;
mod interfaces;
mod join;
mod kept;
mod leave;
mod metrics;
mod network;
mod observer;
mod port_mapping;
mod servers;
mod state;
mod transition;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use wice_signaling::protocol::{
    IpPrefix, OVERLAY_IPV4, OVERLAY_IPV6, PublicKey, RecordKind, Routes, ServerAddress, Token,
};

use crate::core::node::Admission;
use crate::core::overlay::Overlay;
use crate::io::packet_loop::{Command, InboxError, Notice, PlaneParts};
use crate::wireguard::inprocess::Tunnels;
use crate::wireguard::netlink::Netlink;
use crate::wireguard::tun::Tun;
use answers::View;
use base::{Base, Left, Prepared, Record};
use network::Network;
use state::{NodeState, State};

#[cfg(feature = "kubernetes")]
pub use agent::agent;
pub use attached::{AttachError, Detached, Direct, attach, detach};
pub(crate) use interfaces::{Ports, host_addresses};
pub use join::JoinError;
pub use leave::{LeaveError, Leaving};
pub use port_mapping::PortMapping;
pub use state::StateError;
#[doc(hidden)]
pub use state::parse_anything as parse_state;

/// The default MTU: 1,500 less IPv6, UDP, WireGuard and, for a relayed path, ChannelData, and less
/// eight bytes for PPPoE on the way, rounded down to a multiple of 16 as WireGuard pads.
pub const DEFAULT_MTU: u32 = 1392;
/// The default port of the shared sockets.
pub const DEFAULT_PORT: u16 = 51821;

/// How the daemon runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network to join; none to go on with the one of the state folder.
    pub token: Option<Token>,
    /// The interface to make, or to attach to.
    pub interface: String,
    /// The node's name for people.
    pub name: String,
    /// Nobody gave the name, it is the host's: one that was given at an earlier start goes before it.
    pub name_is_default: bool,
    /// The port of the shared sockets; 0 takes any.
    pub port: u16,
    /// Bytes of the largest inner packet.
    pub mtu: u32,
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// Where the control socket is.
    pub run_dir: PathBuf,
    /// STUN servers beside those that signaling tells.
    pub stun: Vec<ServerAddress>,
    /// TURN servers of one's own, with credentials.
    pub turn: Vec<StaticRelay>,
    /// Routes that are taken from peers without the admin key's grant.
    pub accept_routes: Vec<IpPrefix>,
    /// Routes that this node announces.
    pub advertise_routes: Vec<IpPrefix>,
    /// An HTTP proxy for signaling and for relays over TCP and TLS.
    pub proxy: Option<String>,
    /// More authorities to trust, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Whether routers are asked to forward our port.
    pub port_mapping: PortMapping,
    /// Where Prometheus metrics are served; none for nowhere.
    pub metrics: Option<SocketAddr>,
    /// Attached mode: the interface's private key, where WireGuard does not tell it.
    pub private_key_file: Option<PathBuf>,
    /// Attached mode: how direct paths are bound.
    pub direct: Direct,
}

/// A TURN server with credentials that do not come from signaling.
#[derive(Clone, Debug)]
pub struct StaticRelay {
    /// Where it is.
    pub address: ServerAddress,
    /// Long-term username.
    pub username: String,
    /// Long-term password.
    pub password: String,
}

/// The daemon of managed mode.
struct Daemon {
    base: Base,
    routed: BTreeMap<PublicKey, Vec<IpPrefix>>,
    routes_published: bool,
}

/// Runs the daemon until it is told to stop.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let (mut daemon, mut notices) = Daemon::start(settings).await?;
    let ended = daemon.serve(&mut notices).await;
    daemon.base.stop().await;
    ended
}

impl Daemon {
    async fn start(mut settings: Settings) -> anyhow::Result<(Self, mpsc::Receiver<Notice>)> {
        let state = State::open(&settings.state_dir)?;
        let key = state.key(random()?)?;
        let membership = join::membership(&state, settings.token.as_ref(), &key)?;
        let mut node_state = match state.node()? {
            Some(node) => node,
            None => NodeState::new(random()?),
        };
        node_state.keep_name(&mut settings);
        state.set_node(&node_state)?;

        let netlink = Netlink::connect()?;
        interfaces::check_overlay(&netlink.interfaces().await?, &settings.interface)?;
        let tun = Tun::create(&settings.interface, true)?;
        tun.set_mtu(settings.mtu)?;
        let index = netlink.index(tun.name()).await?;
        let overlay = Overlay::new(
            key.public_key(),
            node_state.overlay_counter,
            settings.accept_routes.clone(),
        );
        let (v4_address, v6_address) = overlay.own_addresses();
        netlink
            .add_address(index, IpAddr::V4(v4_address), OVERLAY_IPV4.prefix_len())
            .await?;
        // Without IPv6 in the kernel the overlay is IPv4 alone.
        let v6_added = netlink
            .add_address(index, IpAddr::V6(v6_address), OVERLAY_IPV6.prefix_len())
            .await;
        if let Err(error) = v6_added {
            tracing::warn!(event = "no-overlay-ipv6", %error);
        }
        netlink.set_up(index).await?;

        let mtu = usize::try_from(settings.mtu).unwrap_or(usize::MAX);
        let tunnels = Tunnels::new(*key.expose_secret(), mtu, std::time::Instant::now());
        let admission = Admission::Members(membership.network);
        let prepared = Prepared {
            settings,
            state,
            node_state,
            key,
            network: Network::Service(Box::new(membership)),
            netlink,
            index,
            admission,
            socket_hook: None,
            view: View::Managed,
        };
        let plane = PlaneParts::Managed {
            overlay,
            tunnels: Box::new(tunnels),
            tun,
        };
        let (base, notices) = Base::start(prepared, plane).await?;
        // Who waits for this line may use the control socket.
        tracing::info!(
            event = "started",
            interface = base.settings.interface,
            name = base.settings.name,
            network = base.network.name(),
            key = %base.key.public_key(),
            ipv4 = %v4_address,
            ipv6 = %v6_address,
        );
        restore(&base)?;
        let daemon = Self {
            base,
            routed: BTreeMap::new(),
            routes_published: false,
        };
        Ok((daemon, notices))
    }

    async fn serve(&mut self, notices: &mut mpsc::Receiver<Notice>) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        loop {
            tokio::select! {
                notice = notices.recv() => match notice {
                    Some(notice) => self.handle_notice(notice).await?,
                    None => anyhow::bail!(LOOP_ENDED),
                },
                happened = self.base.next() => match self.base.handle(happened?).await? {
                    Left::Record(record) => self.handle_record(record)?,
                    Left::Stop => {
                        log_stopping(ASKED);
                        return Ok(());
                    }
                    Left::Interfaces(_) | Left::Nothing => {}
                },
                () = signals.stop() => {
                    log_stopping(SIGNAL);
                    return Ok(());
                }
            }
        }
    }

    async fn handle_notice(&mut self, notice: Notice) -> anyhow::Result<()> {
        match notice {
            Notice::Publish { advert, sequence } => {
                self.base.publish_advert(&advert, sequence)?;
                // After the first advert: peers take routes from nodes that they know.
                if !std::mem::replace(&mut self.routes_published, true) {
                    self.publish_routes()?;
                }
            }
            Notice::Accepted(record) => self.base.kept.keep(RecordKind::Advert, record),
            Notice::AcceptedRoutes(record) => self.base.kept.keep(RecordKind::Routes, record),
            Notice::Owned { key, prefixes } => {
                if prefixes.is_empty() {
                    self.base.kept.forget(&key);
                }
                self.route(key, prefixes).await;
            }
            Notice::Path(peer) => self.base.log_path(*peer).await,
            // There is no such port in managed mode.
            Notice::PortClosed(_) => {}
            Notice::DeviceLost(error) => {
                return Err(error).context(format!(
                    "the interface {} is gone: somebody has removed it; start wice again",
                    self.base.settings.interface
                ));
            }
        }
        Ok(())
    }

    fn handle_record(&mut self, record: Record) -> anyhow::Result<()> {
        match record.kind {
            RecordKind::Routes if record.key == self.base.key.public_key() => {
                self.read_back_routes(&record.bytes)?;
            }
            RecordKind::Advert => self.base.pass_on(Command::Advert(record.bytes))?,
            RecordKind::Routes => self.base.pass_on(Command::Routes(record.bytes))?,
        }
        self.base
            .pass_on(Command::Presence(record.key, record.presence))
    }

    /// Ours as the service has them: newer than ours if this node's count was lost. Then they are
    /// published once more, or peers would take them for old ones.
    fn read_back_routes(&mut self, record: &[u8]) -> anyhow::Result<()> {
        let Ok(routes) = Routes::decode_verified(record) else {
            return Ok(());
        };
        if routes.sequence <= self.base.node_state.routes_sequence {
            return Ok(());
        }
        self.base.node_state.routes_sequence = routes.sequence;
        self.publish_routes()
    }

    fn publish_routes(&mut self) -> anyhow::Result<()> {
        if self.base.settings.advertise_routes.is_empty()
            && self.base.node_state.routes_sequence == 0
        {
            return Ok(());
        }
        self.base.node_state.routes_sequence += 1;
        self.base.state.set_node(&self.base.node_state)?;
        let mut prefixes = self.base.settings.advertise_routes.clone();
        prefixes.sort();
        prefixes.dedup();
        let routes = Routes {
            key: self.base.key.public_key(),
            sequence: self.base.node_state.routes_sequence,
            overlay_counter: self.base.node_state.overlay_counter,
            prefixes,
        };
        let record = routes.encode_signed(&self.base.key, &random()?)?;
        self.base.publish(RecordKind::Routes, &record)
    }

    /// The kernel's routes follow what peers own beyond the overlay's ranges.
    async fn route(&mut self, key: PublicKey, prefixes: Vec<IpPrefix>) {
        let in_overlay = |p: &IpPrefix| OVERLAY_IPV4.covers(p) || OVERLAY_IPV6.covers(p);
        let prefixes: Vec<IpPrefix> = prefixes.into_iter().filter(|p| !in_overlay(p)).collect();
        let before = self
            .routed
            .insert(key, prefixes.clone())
            .unwrap_or_default();
        for gone in before.iter().filter(|prefix| !prefixes.contains(prefix)) {
            if let Err(error) = self.base.netlink.delete_route(*gone, self.base.index).await {
                tracing::warn!(event = "route-stays", prefix = %gone, %error);
            }
        }
        for new in prefixes.iter().filter(|prefix| !before.contains(prefix)) {
            if let Err(error) = self.base.netlink.add_route(*new, self.base.index).await {
                tracing::warn!(event = "route-refused", prefix = %new, %error);
            }
        }
        if prefixes.is_empty() {
            self.routed.remove(&key);
        }
    }
}

/// Tells the packet loop what was known before the start.
fn restore(base: &Base) -> anyhow::Result<()> {
    let adverts = base.kept.records(RecordKind::Advert).cloned();
    let routes = base.kept.records(RecordKind::Routes).cloned();
    // Routes count for peers that are known.
    let commands = adverts
        .map(Command::Advert)
        .chain(routes.map(Command::Routes));
    for command in commands {
        match base.inbox.send(command) {
            Ok(()) => {}
            // Signaling brings what has no room.
            Err(InboxError::Full) => break,
            Err(error @ InboxError::Ended) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Why a daemon ends whose packet loop has.
const LOOP_ENDED: &str = "the packet loop has ended: see the log above";

/// Who asked the daemon to end: `wice down` or `wice detach`, over the control socket.
const ASKED: &str = "asked";
/// A signal: SIGTERM or SIGINT.
const SIGNAL: &str = "signal";

/// One line for the end, as for the start.
fn log_stopping(reason: &str) {
    tracing::info!(event = "stopping", reason);
}

/// What tells the process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for either; cancel-safe.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Bytes from the system's random number generator.
fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    rand_core::TryRngCore::try_fill_bytes(&mut rand_core::OsRng, &mut bytes)
        .map_err(|error| anyhow::anyhow!("no random numbers from the system: {error}"))?;
    Ok(bytes)
}
