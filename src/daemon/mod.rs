//! The daemon of managed mode: it owns the WireGuard interface, keeps state, talks to signaling, and
//! tells the packet loop what it learns.

mod answers;
pub mod control;
mod interfaces;
mod join;
mod kept;
mod leave;
mod metrics;
mod port_mapping;
mod servers;
mod state;
mod transition;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use wice_signaling::protocol::{
    Advert, IpPrefix, OVERLAY_IPV4, OVERLAY_IPV6, Presence, PrivateKey, PublicKey, RecordKind,
    Routes, ServerAddress, Token,
};

use crate::core::node::{Admission, HostAddress, Node, NodeConfig};
use crate::core::overlay::Overlay;
use crate::io::packet_loop::{self, Command, Inbox, InboxError, Notice, Parts, PlaneParts};
use crate::io::udp::UdpSocket;
use crate::signaling::{Event, Signaling, WebSocketBackend, WebSocketConfig};
use crate::wireguard::inprocess::Tunnels;
use crate::wireguard::netlink::{Netlink, Watch};
use crate::wireguard::tun::Tun;
use answers::{Answers, Shared};
use control::ControlListener;
use join::Membership;
use kept::Kept;
use port_mapping::PortMapper;
use servers::Servers;
use state::{NodeState, ServerState, State};

pub(crate) use interfaces::{Ports, host_addresses};
pub use join::JoinError;
pub use leave::{LeaveError, Leaving};
pub use port_mapping::PortMapping;
pub use state::StateError;
#[doc(hidden)]
pub use state::parse_anything as parse_state;

/// Notices of the packet loop that may wait.
const NOTICES: usize = 4096;
/// Records of peers are written to the state folder at most this often.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// Changes of addresses come in bursts; they are read once after this.
const SETTLE: Duration = Duration::from_millis(50);
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
    /// The interface to make.
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

/// A running daemon.
struct Daemon {
    settings: Settings,
    state: State,
    node_state: NodeState,
    key: PrivateKey,
    membership: Membership,
    inbox: Inbox,
    netlink: Netlink,
    index: u32,
    ports: Ports,
    addresses: Vec<HostAddress>,
    signaling: Signaling,
    shared: Arc<Shared>,
    servers: Servers,
    kept: Kept,
    port_mapper: PortMapper,
    routed: BTreeMap<PublicKey, Vec<IpPrefix>>,
    routes_published: bool,
}

/// Runs the daemon until it is told to stop.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let (mut daemon, mut notices) = Daemon::start(settings).await?;
    let ended = daemon.serve(&mut notices).await;
    // Nobody is left to hear of a loop that has ended already.
    let _ = daemon.inbox.send(Command::Stop);
    daemon.keep_records();
    daemon.signaling.leave().await;
    daemon.port_mapper.stop().await;
    ended
}

impl Daemon {
    async fn start(mut settings: Settings) -> anyhow::Result<(Self, mpsc::Receiver<Notice>)> {
        let state = State::open(&settings.state_dir)?;
        let key = state.key(random()?)?;
        let membership = join::membership(&state, settings.token.as_ref(), &key)?;
        let mut node_state = match state.node()? {
            Some(node) => node,
            None => NodeState {
                session: random()?,
                sequence: 0,
                routes_sequence: 0,
                overlay_counter: 0,
                name: None,
            },
        };
        if !settings.name_is_default {
            node_state.name = Some(settings.name.clone());
        } else if let Some(name) = &node_state.name {
            settings.name.clone_from(name);
        }
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

        let v4 = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], settings.port)))?;
        // A machine without IPv6 is no error.
        let v6 = UdpSocket::bind(SocketAddr::from(([0u16; 8], settings.port))).ok();
        let port = |socket: &UdpSocket| socket.local_addr().ok().map(|address| address.port());
        let ports = Ports {
            v4: port(&v4),
            v6: v6.as_ref().and_then(port),
        };

        let mtu = usize::try_from(settings.mtu).unwrap_or(usize::MAX);
        let now = std::time::Instant::now();
        let tunnels = Tunnels::new(*key.expose_secret(), mtu, now);
        let node = Node::new(
            NodeConfig {
                key: PrivateKey::from_bytes(*key.expose_secret()),
                session: node_state.session(),
                sequence: node_state.sequence,
                name: settings.name.clone(),
                admission: Admission::Members(membership.network),
                membership: membership.proof.clone(),
                seed: random()?,
            },
            now,
        );
        let servers = Servers::new(&settings)?;
        let (notices_sender, notices) = mpsc::channel(NOTICES);
        let (inbox, _thread) = packet_loop::spawn(Parts {
            node,
            plane: PlaneParts::Managed {
                overlay,
                tunnels: Box::new(tunnels),
                tun,
            },
            v4: Some(v4),
            v6,
            endpoint: servers.endpoints(),
            notices: notices_sender,
            runtime: tokio::runtime::Handle::current(),
        })?;
        let signaling = Signaling::start(WebSocketBackend::new(WebSocketConfig {
            url: membership.url.clone(),
            pin: membership.pin,
            network: membership.network,
            key: PrivateKey::from_bytes(*key.expose_secret()),
            membership: membership.proof.clone(),
            receipt: membership.receipt,
            proxy: settings.proxy.as_deref().map(str::parse).transpose()?,
            ca_file: settings.ca_file.clone(),
            socket_hook: None,
        }));
        let shared = Arc::new(Shared::new(membership.url.to_string()));
        let socket = settings
            .run_dir
            .join(format!("{}.sock", settings.interface));
        let control = ControlListener::bind(&socket)?;
        let answers = Answers {
            interface: settings.interface.clone(),
            port: ports.v4.unwrap_or(settings.port),
            started: now,
            inbox: inbox.clone(),
            shared: Arc::clone(&shared),
        };
        let answers = Arc::new(answers);
        tokio::spawn(control::serve(control, Arc::clone(&answers)));
        if let Some(address) = settings.metrics {
            metrics::serve(address, answers).await?;
        }
        // Who waits for this line may use the control socket.
        tracing::info!(
            event = "started",
            interface = settings.interface,
            name = settings.name,
            network = membership.name,
            key = %key.public_key(),
            ipv4 = %v4_address,
            ipv6 = %v6_address,
        );
        let kept = Kept::read(&state);
        let port_mapper = PortMapper::new(settings.port_mapping, *key.expose_secret());
        let mut daemon = Self {
            settings,
            state,
            node_state,
            key,
            membership,
            inbox,
            netlink,
            index,
            ports,
            addresses: Vec::new(),
            signaling,
            shared,
            servers,
            kept,
            port_mapper,
            routed: BTreeMap::new(),
            routes_published: false,
        };
        daemon.restore().await?;
        Ok((daemon, notices))
    }

    /// What was known before the start: addresses, servers, adverts.
    async fn restore(&mut self) -> anyhow::Result<()> {
        self.read_addresses().await?;
        let known = self.state.servers();
        self.servers.restore(known, &self.membership.url);
        let adverts = self.kept.records(RecordKind::Advert).cloned();
        let routes = self.kept.records(RecordKind::Routes).cloned();
        // Routes count for peers that are known.
        let commands = adverts
            .map(Command::Advert)
            .chain(routes.map(Command::Routes));
        for command in commands {
            match self.inbox.send(command) {
                Ok(()) => {}
                // Signaling brings what has no room.
                Err(InboxError::Full) => break,
                Err(error @ InboxError::Ended) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn serve(&mut self, notices: &mut mpsc::Receiver<Notice>) -> anyhow::Result<()> {
        let mut watch = Watch::start()?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut keep = tokio::time::interval(KEEP_EVERY);
        let mut settle: Option<Instant> = None;
        let stop = Arc::clone(&self.shared);
        loop {
            let settled = async {
                match settle {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                notice = notices.recv() => match notice {
                    Some(notice) => self.handle_notice(notice).await?,
                    None => anyhow::bail!("the packet loop has ended: see the log above"),
                },
                event = self.signaling.next() => match event {
                    Some(event) => self.handle_signaling(event)?,
                    None => anyhow::bail!("the signaling client has ended: see the log above"),
                },
                update = self.servers.next() => {
                    self.shared.serves(&update.stun, &update.relays);
                    self.inbox.send(Command::StunServers(update.stun))?;
                    self.inbox.send(Command::RelayServers(update.relays))?;
                }
                () = self.port_mapper.changed() => self.tell_port_mappings()?,
                changed = watch.changed() => {
                    changed?;
                    settle.get_or_insert_with(|| Instant::now() + SETTLE);
                }
                () = settled => {
                    settle = None;
                    self.read_addresses().await?;
                }
                _ = keep.tick() => self.keep_records(),
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                () = stop.stop.notified() => return Ok(()),
            }
        }
    }

    async fn handle_notice(&mut self, notice: Notice) -> anyhow::Result<()> {
        match notice {
            Notice::Publish { advert, sequence } => {
                self.node_state.sequence = sequence;
                self.state.set_node(&self.node_state)?;
                self.publish(RecordKind::Advert, &advert)?;
                let nat = Advert::decode_verified(&advert).map(|advert| advert.nat.mapping);
                if nat.is_ok_and(|nat| self.port_mapper.nat(nat)) {
                    self.tell_port_mappings()?;
                }
                // After the first advert: peers take routes from nodes that they know.
                if !std::mem::replace(&mut self.routes_published, true) {
                    self.publish_routes()?;
                }
            }
            Notice::Accepted(record) => self.kept.keep(RecordKind::Advert, record),
            Notice::AcceptedRoutes(record) => self.kept.keep(RecordKind::Routes, record),
            Notice::Owned { key, prefixes } => {
                if prefixes.is_empty() {
                    self.kept.forget(&key);
                }
                self.route(key, prefixes).await;
            }
            Notice::Path(peer) => {
                let port = self.ports.v4.unwrap_or(self.settings.port);
                transition::log_path(&self.inbox, port, *peer).await;
            }
            // There is no such port in managed mode.
            Notice::PortClosed(_) => {}
            Notice::DeviceLost(error) => {
                return Err(error).context(format!(
                    "the interface {} is gone: somebody has removed it; start wice again",
                    self.settings.interface
                ));
            }
        }
        Ok(())
    }

    fn handle_signaling(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Connected => {
                tracing::info!(event = "signaling-connected", url = %self.membership.url);
                self.shared.connected();
            }
            Event::Disconnected { reason, retry_in } => {
                transition::log_lost(&self.shared, reason, retry_in);
                self.pass_on(Command::SignalingLost)?;
            }
            Event::Refused { code, text } => {
                // Who has never been in has nothing to keep; who has keeps its paths.
                let newcomer = self.settings.token.is_some() && self.membership.receipt.is_none();
                if newcomer && !code.is_temporary() {
                    anyhow::bail!(
                        "the signaling service refuses this node ({}): {text}\n  {}",
                        code.as_str(),
                        answers::advice(code).unwrap_or_default()
                    );
                }
                self.shared.refused(code);
            }
            Event::Record {
                key,
                kind,
                sealed,
                last_seen,
            } => {
                let Membership {
                    network,
                    network_key,
                    ..
                } = &self.membership;
                match network_key.open(network, &key, kind, &sealed) {
                    Ok(record) if kind == RecordKind::Routes && key == self.key.public_key() => {
                        self.read_back_routes(&record)?;
                    }
                    Ok(record) => self.pass_on(match kind {
                        RecordKind::Advert => Command::Advert(record),
                        RecordKind::Routes => Command::Routes(record),
                    })?,
                    Err(error) => tracing::debug!(event = "record-refused", %key, %error),
                }
                let presence = match u32::try_from(last_seen.as_secs()) {
                    Ok(0) => Presence::Connected,
                    Ok(last_seen_s) => Presence::Lost { last_seen_s },
                    Err(_) => Presence::Lost {
                        last_seen_s: u32::MAX,
                    },
                };
                self.pass_on(Command::Presence(key, presence))?;
            }
            Event::Presence { key, presence } => {
                self.pass_on(Command::Presence(key, presence))?;
            }
            Event::Servers(servers) => {
                if servers.credentials.is_some() {
                    let known = ServerState {
                        addresses: servers.addresses.iter().map(ToString::to_string).collect(),
                        credentials: servers
                            .credentials
                            .as_ref()
                            .map(|c| (c.username.clone(), c.password.clone())),
                    };
                    self.state.set_servers(&known)?;
                }
                self.servers.told(servers);
            }
            Event::Revocations(list) => self.inbox.send(Command::Revocations(list))?,
            Event::Receipt(receipt) => {
                // No newcomer any more: a refusal ends no paths from here on.
                self.membership.receipt = Some(receipt);
                join::keep_receipt(&self.state, receipt)?;
            }
        }
        Ok(())
    }

    /// Passes on what signaling says. What has no room is lost, as on the way: the daemon goes on.
    fn pass_on(&self, command: Command) -> anyhow::Result<()> {
        match self.inbox.send(command) {
            Err(error @ InboxError::Full) => {
                tracing::warn!(event = "overloaded", %error);
                Ok(())
            }
            sent => Ok(sent?),
        }
    }

    fn publish(&mut self, kind: RecordKind, record: &[u8]) -> anyhow::Result<()> {
        let Membership {
            network,
            network_key,
            ..
        } = &self.membership;
        let key = self.key.public_key();
        let sealed = network_key.seal(network, &key, kind, &random()?, record)?;
        self.signaling.publish(kind, sealed);
        Ok(())
    }

    fn publish_routes(&mut self) -> anyhow::Result<()> {
        if self.settings.advertise_routes.is_empty() && self.node_state.routes_sequence == 0 {
            return Ok(());
        }
        self.node_state.routes_sequence += 1;
        self.state.set_node(&self.node_state)?;
        let mut prefixes = self.settings.advertise_routes.clone();
        prefixes.sort();
        prefixes.dedup();
        let routes = Routes {
            key: self.key.public_key(),
            sequence: self.node_state.routes_sequence,
            overlay_counter: self.node_state.overlay_counter,
            prefixes,
        };
        let record = routes.encode_signed(&self.key, &random()?)?;
        self.publish(RecordKind::Routes, &record)
    }

    /// Ours as the service has them: newer than ours if this node's count was lost. Then they are
    /// published once more, or peers would take them for old ones.
    fn read_back_routes(&mut self, record: &[u8]) -> anyhow::Result<()> {
        let Ok(routes) = Routes::decode_verified(record) else {
            return Ok(());
        };
        if routes.sequence <= self.node_state.routes_sequence {
            return Ok(());
        }
        self.node_state.routes_sequence = routes.sequence;
        self.publish_routes()
    }

    async fn read_addresses(&mut self) -> anyhow::Result<()> {
        let interfaces = self.netlink.interfaces().await?;
        let routes = self.netlink.default_routes().await?;
        let addresses = host_addresses(&interfaces, routes, self.index, self.ports);
        let gateways = self.netlink.gateways().await?;
        if self.port_mapper.network(&addresses, gateways, &interfaces) {
            self.tell_port_mappings()?;
        }
        if addresses == self.addresses {
            return Ok(());
        }
        let changed = !self.addresses.is_empty();
        tracing::debug!(event = "addresses", ?addresses);
        self.addresses.clone_from(&addresses);
        self.inbox.send(Command::Addresses { addresses, changed })?;
        if changed {
            self.signaling.network_changed();
        }
        Ok(())
    }

    fn tell_port_mappings(&self) -> anyhow::Result<()> {
        self.shared.port_mappings(self.port_mapper.reports());
        let mapped = self.port_mapper.mapped();
        Ok(self.inbox.send(Command::PortMappings(mapped))?)
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
            if let Err(error) = self.netlink.delete_route(*gone, self.index).await {
                tracing::warn!(event = "route-stays", prefix = %gone, %error);
            }
        }
        for new in prefixes.iter().filter(|prefix| !before.contains(prefix)) {
            if let Err(error) = self.netlink.add_route(*new, self.index).await {
                tracing::warn!(event = "route-refused", prefix = %new, %error);
            }
        }
        if prefixes.is_empty() {
            self.routed.remove(&key);
        }
    }

    fn keep_records(&mut self) {
        if let Err(error) = self.kept.write(&self.state) {
            tracing::warn!(event = "state-not-kept", %error);
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
