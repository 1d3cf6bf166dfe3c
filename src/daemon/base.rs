//! What both kinds of daemon stand on: the packet loop, signaling, servers, addresses, the control
//! socket, and what is kept.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wice_signaling::protocol::{Advert, IpPrefix, Presence, PrivateKey, PublicKey, RecordKind};

use super::answers::{Answers, Commands, Shared, View};
use super::control::{self, ControlListener};
use super::interfaces::{Ports, host_addresses};
use super::kept::Kept;
use super::network::Network;
use super::port_mapping::PortMapper;
use super::servers::{Servers, Update};
use super::state::{NodeState, ServerState, State};
use super::{Settings, answers, metrics, observer, random, transition};
use crate::core::node::{Admission, HostAddress, Node, NodeConfig, PeerSnapshot};
use crate::core::overlay::Overlay;
use crate::io::dial::Fwmark;
use crate::io::packet_loop::{self, Command, Inbox, InboxError, Notice, Parts, PlaneParts};
use crate::io::udp::{UdpError, UdpSocket};
use crate::signaling::{Event, Signaling};
use crate::wireguard::netlink::{Interface, Netlink, Watch};

/// Notices of the packet loop that may wait.
const NOTICES: usize = 4096;
/// Records of peers are written to the state folder at most this often.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// Nodes of which it is kept that they are away: as many as there are peers.
const MAX_AWAY: usize = 4096;
/// Changes of addresses come in bursts; they are read once after this.
const SETTLE: Duration = Duration::from_millis(50);

/// What is known before anything runs.
pub(super) struct Prepared {
    pub(super) settings: Settings,
    pub(super) state: State,
    pub(super) node_state: NodeState,
    pub(super) key: PrivateKey,
    pub(super) network: Network,
    pub(super) netlink: Netlink,
    /// The index of the node's own interface.
    pub(super) index: u32,
    pub(super) admission: Admission,
    /// Managed mode's inner addresses.
    pub(super) overlay: Option<Overlay>,
    /// What keeps our own packets out of the tunnel.
    pub(super) fwmark: Fwmark,
    /// What reports are made of beside the core.
    pub(super) view: View,
}

/// What runs.
pub(super) struct Base {
    pub(super) settings: Settings,
    pub(super) state: State,
    pub(super) node_state: NodeState,
    pub(super) key: PrivateKey,
    pub(super) network: Network,
    pub(super) inbox: Inbox,
    pub(super) netlink: Netlink,
    pub(super) index: u32,
    pub(super) shared: Arc<Shared>,
    pub(super) kept: Kept,
    commands: Commands,
    /// Nodes that signaling says are not connected.
    pub(super) away: BTreeSet<PublicKey>,
    ports: Ports,
    addresses: Vec<HostAddress>,
    signaling: Signaling,
    servers: Servers,
    port_mapper: PortMapper,
    fwmark: Fwmark,
    watch: Watch,
    settle: Option<Instant>,
    keep: tokio::time::Interval,
    thread: std::thread::JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
}

/// What has happened that both kinds do the same about; see [`Base::handle`].
pub(super) enum Happened {
    Signaling(Option<Event>),
    Servers(Update),
    PortMapped,
    Changed,
    Settled,
    Keep,
    Stop,
}

/// A record that came from signaling, opened.
pub(super) struct Record {
    pub(super) key: PublicKey,
    pub(super) kind: RecordKind,
    pub(super) bytes: Vec<u8>,
    /// Whether its node is connected; to be told after the record.
    pub(super) presence: Presence,
}

/// What is left to do about what has happened.
pub(super) enum Left {
    Nothing,
    /// The addresses were read again, with all interfaces.
    Interfaces(Vec<Interface>),
    Record(Record),
    Stop,
}

impl Base {
    /// Starts everything, and gives the notices of the packet loop.
    pub(super) async fn start(
        prepared: Prepared,
        plane: PlaneParts,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Notice>)> {
        let Prepared {
            settings,
            state,
            node_state,
            key,
            mut network,
            netlink,
            index,
            admission,
            overlay,
            fwmark,
            view,
        } = prepared;
        let now = std::time::Instant::now();
        let v4 = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], settings.port)));
        let v4 = v4.map_err(|error| match error {
            UdpError::PortInUse(_) => anyhow::anyhow!(
                "UDP port {port} is in use\n  wice up and wice attach run side by side with a port each: give this one another (--listen-port 0 takes any), or see who has it: ss -lunp 'sport = :{port}'",
                port = settings.port
            ),
            error @ (UdpError::NoSuchAddress(_)
            | UdpError::NoPermission(_)
            | UdpError::System { .. }) => error.into(),
        })?;
        // A machine without IPv6 is no error.
        let v6 = UdpSocket::bind(SocketAddr::from(([0u16; 8], settings.port))).ok();
        let port = |socket: &UdpSocket| socket.local_addr().ok().map(|address| address.port());
        let ports = Ports {
            v4: port(&v4),
            v6: v6.as_ref().and_then(port),
        };
        let node = Node::new(
            NodeConfig {
                key: PrivateKey::from_bytes(*key.expose_secret()),
                session: node_state.session(),
                sequence: node_state.sequence,
                name: settings.name.clone(),
                admission,
                membership: network.proof(),
                seed: random()?,
            },
            now,
        );
        let servers = Servers::new(&settings, fwmark.clone())?;
        let (notices_sender, notices) = mpsc::channel(NOTICES);
        let (inbox, thread) = packet_loop::spawn(Parts {
            node,
            overlay,
            plane,
            v4: Some(v4),
            v6,
            endpoint: servers.endpoints(),
            fwmark: fwmark.clone(),
            notices: notices_sender,
            runtime: tokio::runtime::Handle::current(),
        })?;
        let signaling = network.start(&settings, &key, fwmark.hook())?;
        let attached = match &view {
            View::InProcess | View::Kernel(_) => None,
            View::Attached(_) => Some(state.folder()),
        };
        let commands = Commands::new(&settings.interface, attached);
        let shared = Arc::new(Shared::new(network.place()));
        let control = ControlListener::bind(&settings.socket())?;
        let answers = Arc::new(Answers {
            interface: settings.interface.clone(),
            port: ports.v4.unwrap_or(settings.port),
            started: now,
            inbox: inbox.clone(),
            shared: Arc::clone(&shared),
            commands: commands.clone(),
            ca_file: settings.ca_file.clone(),
            view,
        });
        let managed = !matches!(answers.view, View::Attached(_));
        let observer = observer::observe(
            inbox.clone(),
            Arc::clone(&shared),
            settings.interface.clone(),
            managed,
            fwmark.clone(),
        );
        let mut tasks = vec![
            tokio::spawn(control::serve(control, Arc::clone(&answers))),
            tokio::spawn(observer),
        ];
        if let Some(address) = settings.metrics {
            tasks.push(metrics::serve(address, answers).await?);
        }
        let kept = Kept::read(&state);
        let port_mapper = PortMapper::new(settings.port_mapping, *key.expose_secret());
        let mut base = Self {
            settings,
            state,
            node_state,
            key,
            network,
            inbox,
            netlink,
            index,
            shared,
            kept,
            commands,
            away: BTreeSet::new(),
            ports,
            addresses: Vec::new(),
            signaling,
            servers,
            port_mapper,
            fwmark,
            watch: Watch::start()?,
            settle: None,
            keep: tokio::time::interval(KEEP_EVERY),
            thread,
            tasks,
        };
        base.read_addresses().await?;
        let known = base.state.servers();
        base.servers.restore(known, base.network.url());
        Ok((base, notices))
    }

    /// The next thing that both kinds do the same about. Cancel-safe.
    pub(super) async fn next(&mut self) -> anyhow::Result<Happened> {
        let settle = self.settle;
        let settled = async move {
            match settle {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.signaling.next() => Ok(Happened::Signaling(event)),
            update = self.servers.next() => Ok(Happened::Servers(update)),
            () = self.port_mapper.changed() => Ok(Happened::PortMapped),
            changed = self.watch.changed() => {
                changed?;
                Ok(Happened::Changed)
            }
            () = settled => Ok(Happened::Settled),
            _ = self.keep.tick() => Ok(Happened::Keep),
            () = self.shared.stop.notified() => Ok(Happened::Stop),
        }
    }

    /// Does it, and gives what is left to do.
    pub(super) async fn handle(&mut self, happened: Happened) -> anyhow::Result<Left> {
        match happened {
            Happened::Signaling(Some(event)) => return self.handle_signaling(event),
            Happened::Signaling(None) => {
                anyhow::bail!("the signaling client has ended: see the log above")
            }
            Happened::Servers(update) => {
                self.shared.serves(&update.stun, &update.relays);
                self.inbox.send(Command::StunServers(update.stun))?;
                self.inbox.send(Command::RelayServers(update.relays))?;
            }
            Happened::PortMapped => self.tell_port_mappings()?,
            Happened::Changed => {
                self.settle.get_or_insert_with(|| Instant::now() + SETTLE);
            }
            Happened::Settled => {
                self.settle = None;
                return Ok(Left::Interfaces(self.read_addresses().await?));
            }
            Happened::Keep => self.keep_records(),
            Happened::Stop => return Ok(Left::Stop),
        }
        Ok(Left::Nothing)
    }

    /// Our advert, as the core has made it.
    pub(super) fn publish_advert(&mut self, advert: &[u8], sequence: u64) -> anyhow::Result<()> {
        self.node_state.sequence = sequence;
        self.state.set_node(&self.node_state)?;
        self.publish(RecordKind::Advert, advert)?;
        let nat = Advert::decode_verified(advert).map(|advert| advert.nat.mapping);
        if nat.is_ok_and(|nat| self.port_mapper.nat(nat)) {
            self.tell_port_mappings()?;
        }
        Ok(())
    }

    /// WireGuard's mark is this now, and so is that of all sockets. What is connected through the tunnel is connected
    /// anew.
    pub(super) fn follow_fwmark(&self, mark: u32) -> anyhow::Result<()> {
        if self.fwmark.set(mark) {
            tracing::debug!(event = "fwmark", mark);
            self.inbox.send(Command::FwmarkChanged)?;
            self.signaling.network_changed();
        }
        Ok(())
    }

    /// Addresses that are nobody's candidates, all that there are.
    pub(super) fn exclude(&mut self, prefixes: Vec<IpPrefix>) -> anyhow::Result<()> {
        self.inbox.send(Command::Excluded(prefixes))?;
        Ok(self.inbox.send(Command::Addresses {
            addresses: self.addresses.clone(),
            changed: false,
        })?)
    }

    /// Passes on what may be lost where there is no room: signaling sends it again, or the next look tells it.
    pub(super) fn pass_on(&self, command: Command) -> anyhow::Result<()> {
        match self.inbox.send(command) {
            Err(error @ InboxError::Full) => {
                tracing::warn!(event = "overloaded", %error);
                Ok(())
            }
            sent => Ok(sent?),
        }
    }

    /// One line for a change of path.
    pub(super) async fn log_path(&self, peer: PeerSnapshot) {
        let port = self.ports.v4.unwrap_or(self.settings.port);
        transition::log_path(&self.inbox, port, peer).await;
    }

    /// Seals a record of ours and has it published.
    pub(super) fn publish(&mut self, kind: RecordKind, record: &[u8]) -> anyhow::Result<()> {
        let sealed = self.network.seal(&self.key.public_key(), kind, record)?;
        self.signaling.publish(kind, sealed);
        Ok(())
    }

    /// Ends all of it; what was begun is flushed. The control socket goes last: who has asked for the end
    /// and sees it close may use interface and state at once.
    pub(super) async fn stop(mut self) {
        // Nobody is left to hear of a loop that has ended already.
        let _ = self.inbox.send(Command::Stop);
        self.keep_records();
        self.signaling.leave().await;
        self.port_mapper.stop().await;
        let thread = self.thread;
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        drop(self.state);
        for task in self.tasks {
            task.abort();
            // It was told to end; that it did is all that counts.
            let _ = task.await;
        }
    }

    fn handle_signaling(&mut self, event: Event) -> anyhow::Result<Left> {
        match event {
            Event::Connected => {
                tracing::info!(event = "signaling-connected", url = self.network.place());
                self.shared.connected();
            }
            Event::Disconnected { reason, retry_in } => {
                transition::log_lost(&self.shared, reason, retry_in);
                self.pass_on(Command::SignalingLost)?;
            }
            Event::Refused { code, text } => {
                // Who has never been in has nothing to keep; who has keeps its paths.
                if self.network.is_newcomer(&self.settings) && !code.is_temporary() {
                    anyhow::bail!(
                        "the signaling service refuses this node ({}): {text}\n  {}",
                        code.as_str(),
                        answers::advice(code, &self.commands).unwrap_or_default()
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
                let presence = match u32::try_from(last_seen.as_secs()) {
                    Ok(0) => Presence::Connected,
                    Ok(last_seen_s) => Presence::Lost { last_seen_s },
                    Err(_) => Presence::Lost {
                        last_seen_s: u32::MAX,
                    },
                };
                self.note_presence(key, presence);
                match self.network.open(&key, kind, sealed) {
                    Ok(bytes) => {
                        return Ok(Left::Record(Record {
                            key,
                            kind,
                            bytes,
                            presence,
                        }));
                    }
                    Err(error) => tracing::debug!(event = "record-refused", %key, %error),
                }
                self.pass_on(Command::Presence(key, presence))?;
            }
            Event::Presence { key, presence } => {
                self.note_presence(key, presence);
                self.pass_on(Command::Presence(key, presence))?;
            }
            // A bridge's.
            Event::Carries | Event::NotCarried { .. } => {}
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
                self.network.keep_receipt(&self.state, receipt)?;
            }
        }
        Ok(Left::Nothing)
    }

    fn note_presence(&mut self, key: PublicKey, presence: Presence) {
        match presence {
            Presence::Connected => {
                self.away.remove(&key);
            }
            Presence::Lost { .. } | Presence::Left { .. } if self.away.len() < MAX_AWAY => {
                self.away.insert(key);
            }
            Presence::Lost { .. } | Presence::Left { .. } => {}
        }
    }

    async fn read_addresses(&mut self) -> anyhow::Result<Vec<Interface>> {
        let interfaces = self.netlink.interfaces().await?;
        let routes = self.netlink.default_routes().await?;
        // An interface that went and came back has another index.
        let own = interfaces
            .iter()
            .find(|interface| interface.name == self.settings.interface);
        self.index = own.map_or(self.index, |interface| interface.index);
        self.shared.interface_mtu(own.map_or(0, |own| own.mtu));
        let addresses = host_addresses(&interfaces, routes, self.index, self.ports);
        let gateways = self.netlink.gateways().await?;
        if self.port_mapper.network(&addresses, gateways, &interfaces) {
            self.tell_port_mappings()?;
        }
        if addresses != self.addresses {
            let changed = !self.addresses.is_empty();
            tracing::debug!(event = "addresses", ?addresses);
            self.addresses.clone_from(&addresses);
            self.inbox.send(Command::Addresses { addresses, changed })?;
            if changed {
                self.signaling.network_changed();
            }
        }
        Ok(interfaces)
    }

    fn tell_port_mappings(&self) -> anyhow::Result<()> {
        self.shared.port_mappings(self.port_mapper.reports());
        let mapped = self.port_mapper.mapped();
        Ok(self.inbox.send(Command::PortMappings(mapped))?)
    }

    fn keep_records(&mut self) {
        if let Err(error) = self.kept.write(&self.state) {
            tracing::warn!(event = "state-not-kept", %error);
        }
    }
}
