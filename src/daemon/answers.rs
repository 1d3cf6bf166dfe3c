//! What the daemon answers on its control socket.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use wice_signaling::protocol::{ErrorCode, PublicKey, RelayTransport};

use super::attached::Publication;
use super::binding::InterfaceView;
use super::control::{ControlError, ErrorKind, Handler, Probe, Servers, TurnLogin};
use crate::core::node::{NodeSnapshot, PeerSnapshot, RelayServer, StunServer};
use crate::core::overlay::Overlay;
use crate::core::portmap;
use crate::io::echo::echo;
use crate::io::packet_loop::{self, Command, Inbox, PlaneView};
use crate::report::{
    Inputs, PathKind, PathMtu, PeerInputs, PingEvent, PortMapping, SCHEMA, Signaling, Status,
    Stranger, Why,
};
use crate::wireguard::inprocess::Tunnels;

/// The packet loop answers within this, or something is very wrong.
pub(super) const INSPECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A ping that has no reply by then is lost; the next follows at once.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// What the daemon's parts share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<SharedState>,
    /// Somebody wants the daemon to stop.
    pub(super) stop: Notify,
}

/// What was known of signaling before it was found to be away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// It was connected.
    Connected,
    /// It was away, for the same reason.
    Same,
    /// It was away, for another reason, or had not been tried.
    Otherwise,
}

#[derive(Debug)]
struct SharedState {
    url: String,
    signaling: Result<Instant, (Instant, String)>,
    /// At least once since the daemon began.
    was_connected: bool,
    /// Why the service refuses this node for good.
    refused: Option<ErrorCode>,
    /// Where adverts are written by us: how that goes.
    publication: Option<Publication>,
    stun: Vec<StunServer>,
    relays: Vec<RelayServer>,
    port_mappings: Vec<portmap::Report>,
    /// Bytes; 0 while it is not known.
    mtu: u32,
    paths: BTreeMap<PublicKey, PathMtu>,
}

impl Shared {
    pub(super) fn new(url: String) -> Self {
        let state = SharedState {
            url,
            signaling: Err((Instant::now(), "connecting".to_owned())),
            was_connected: false,
            refused: None,
            publication: None,
            stun: Vec::new(),
            relays: Vec::new(),
            port_mappings: Vec::new(),
            mtu: 0,
            paths: BTreeMap::new(),
        };
        Self {
            state: Mutex::new(state),
            stop: Notify::new(),
        }
    }

    pub(super) fn connected(&self) {
        self.with(|state| {
            state.signaling = Ok(Instant::now());
            state.was_connected = true;
            state.refused = None;
        });
    }

    /// Tells what was the case until now. The time of the first loss stays: tries that fail do not start it anew.
    pub(super) fn disconnected(&self, reason: String) -> Before {
        self.with(|state| {
            let (since, before) = match &state.signaling {
                Ok(_) => (Instant::now(), Before::Connected),
                Err((since, known)) if *known == reason => (*since, Before::Same),
                Err((since, _)) => (*since, Before::Otherwise),
            };
            state.signaling = Err((since, reason));
            before
        })
    }

    pub(super) fn refused(&self, code: ErrorCode) {
        self.with(|state| state.refused = Some(code));
    }

    /// Why the service refuses this node for good, or has refused it just now.
    pub(super) fn refusal(&self) -> Option<ErrorCode> {
        self.with(|state| match state.refused {
            Some(code) if code.is_temporary() => state.refused.take(),
            other => other,
        })
    }

    pub(super) fn published(&self, publication: Option<Publication>) {
        self.with(|state| state.publication = publication);
    }

    pub(super) fn serves(&self, stun: &[StunServer], relays: &[RelayServer]) {
        self.with(|state| {
            state.stun = stun.to_vec();
            state.relays = relays.to_vec();
        });
    }

    pub(super) fn port_mappings(&self, reports: Vec<portmap::Report>) {
        self.with(|state| state.port_mappings = reports);
    }

    /// The interface's MTU.
    pub(super) fn interface_mtu(&self, mtu: u32) {
        self.with(|state| state.mtu = mtu);
    }

    /// What paths carry. Gives the interface's MTU, and the least that one of them carries.
    pub(super) fn measured(&self, paths: BTreeMap<PublicKey, PathMtu>) -> Option<(u32, u32)> {
        self.with(|state| {
            state.paths = paths;
            let least = state.paths.values().map(|path| path.inner).min()?;
            (state.mtu > 0).then_some((state.mtu, least))
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut SharedState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Answers clients of the control socket.
pub(super) struct Answers {
    pub(super) interface: String,
    pub(super) port: u16,
    pub(super) started: Instant,
    pub(super) inbox: Inbox,
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Commands,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) view: View,
}

/// What reports are made of beside the core.
pub(super) enum View {
    /// Managed mode: the packet loop's own WireGuard.
    InProcess,
    /// Managed mode: what the kernel's says.
    Kernel(Arc<Mutex<InterfaceView>>),
    /// Attached mode: what another program's says.
    Attached(Arc<Mutex<InterfaceView>>),
}

/// Everything that reports are made of.
struct Seen {
    node: NodeSnapshot,
    addresses: Vec<IpAddr>,
    peers: BTreeMap<PublicKey, PeerInputs>,
    signaling: Signaling,
    port_mappings: Vec<PortMapping>,
    problem: Option<String>,
    strangers: Vec<Stranger>,
    mtu: u32,
}

impl Answers {
    async fn look(&self) -> Result<Seen, ControlError> {
        let look = |view: &packet_loop::View<'_>| {
            let node = view.node.snapshot(view.now);
            let tunnels = match view.plane {
                PlaneView::InProcess(tunnels) => Some(tunnels),
                PlaneView::BySlots(_) => None,
            };
            let (peers, addresses) = match view.overlay {
                Some(overlay) => managed_inputs(&node, tunnels, overlay, view.now),
                None => (BTreeMap::new(), Vec::new()),
            };
            (node, peers, addresses)
        };
        let (mut node, mut peers, mut addresses) = self.inspect(look).await?;
        let port_mappings = self
            .shared
            .with(|state| state.port_mappings.iter().map(PortMapping::from).collect());
        let (mut problem, mut strangers) = (None, Vec::new());
        match &self.view {
            View::InProcess => {}
            View::Kernel(view) => {
                let view = view.lock().unwrap_or_else(PoisonError::into_inner);
                for (key, seen) in &view.peers {
                    let inputs = peers.entry(*key).or_default();
                    let addresses = std::mem::take(&mut inputs.addresses);
                    *inputs = PeerInputs {
                        addresses,
                        ..seen.clone()
                    };
                }
                problem.clone_from(&view.problem);
            }
            View::Attached(view) => {
                let view = view.lock().unwrap_or_else(PoisonError::into_inner);
                peers.clone_from(&view.peers);
                addresses.clone_from(&view.addresses);
                problem.clone_from(&view.problem);
                strangers = view.strangers.values().cloned().collect();
                for key in &view.lacking {
                    peers.entry(*key).or_default().lacks_us = true;
                }
                for peer in node.peers.iter_mut().filter(|peer| peer.name.is_some()) {
                    let name = view.names.get(&peer.key).cloned();
                    peer.name = name.or(peer.name.take());
                }
            }
        }
        let (mtu, paths) = self.shared.with(|state| (state.mtu, state.paths.clone()));
        for peer in &node.peers {
            let inputs = peers.entry(peer.key).or_default();
            inputs.mtu = paths.get(&peer.key).copied();
            inputs.checking_for = peer.looking;
            inputs.last_seen = peer.last_seen;
        }
        let signaling = self.shared.with(|state| {
            let (connected, since, error) = match &state.signaling {
                Ok(since) => {
                    let publication = state.publication.as_ref();
                    let problem = publication.and_then(|publication| publication.problem.clone());
                    (true, *since, problem)
                }
                Err((since, error)) => (false, *since, Some(error.clone())),
            };
            let since_s = since.elapsed().as_secs();
            let (error, hint) = match error.as_deref().map(said) {
                Some((error, hint)) => (Some(error), hint),
                None => (None, None),
            };
            let for_good = |code: &ErrorCode| !connected && !code.is_temporary();
            let refused = state.refused.filter(for_good);
            Signaling {
                url: state.url.clone(),
                connected,
                since_s,
                error,
                hint: refused
                    .and_then(|code| advice(code, &self.commands))
                    .or(hint),
                refused: refused.map(|code| code.as_str().to_owned()),
            }
        });
        Ok(Seen {
            node,
            addresses,
            peers,
            signaling,
            port_mappings,
            problem,
            strangers,
            mtu,
        })
    }

    /// What the packet loop shows.
    async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&packet_loop::View<'_>) -> T + Send + 'static,
    ) -> Result<T, ControlError> {
        let (sender, receiver) = oneshot::channel();
        let inspect = Command::Inspect(Box::new(move |view| {
            // Fails only when the client has given up.
            let _ = sender.send(look(view));
        }));
        self.inbox
            .send(inspect)
            .map_err(|error| failed(error.to_string()))?;
        let answer = tokio::time::timeout(INSPECT_TIMEOUT, receiver).await;
        let Ok(Ok(seen)) = answer else {
            return Err(failed(
                "the packet loop does not answer: see the daemon's log".into(),
            ));
        };
        Ok(seen)
    }

    async fn echo(
        &self,
        to: IpAddr,
        identifier: u16,
        sequence: u16,
    ) -> Result<Option<Duration>, ControlError> {
        let sent =
            tokio::task::spawn_blocking(move || echo(to, identifier, sequence, PING_TIMEOUT));
        sent.await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(format!("cannot ping {to}: {error}")))
    }

    fn inputs<'a>(&'a self, seen: &'a Seen) -> Inputs<'a> {
        Inputs {
            interface: &self.interface,
            managed: !matches!(self.view, View::Attached(_)),
            problem: seen.problem.as_deref(),
            addresses: &seen.addresses,
            listen_port: self.port,
            mtu: seen.mtu,
            uptime: self.started.elapsed(),
            relay_only: false,
            node: &seen.node,
            signaling: &seen.signaling,
            peers: &seen.peers,
            port_mappings: &seen.port_mappings,
            strangers: &seen.strangers,
        }
    }
}

impl Handler for Answers {
    async fn status(&self) -> Result<Status, ControlError> {
        Ok(self.inputs(&self.look().await?).status())
    }

    async fn why(&self, peer: &str) -> Result<Why, ControlError> {
        let seen = self.look().await?;
        let why = self.inputs(&seen).why(peer);
        why.map_err(|message| ControlError::new(ErrorKind::NoSuchPeer, message))
    }

    async fn ping(
        &self,
        peer: &str,
        count: u32,
        events: mpsc::Sender<PingEvent>,
    ) -> Result<(), ControlError> {
        let started = Instant::now();
        let identifier = std::process::id() as u16;
        for sequence in 1..=count {
            let seen = self.look().await?;
            let inputs = self.inputs(&seen);
            let no_peer = |message: String| ControlError::new(ErrorKind::NoSuchPeer, message);
            let snapshot = inputs.find(peer).map_err(no_peer)?;
            let to = seen.peers.get(&snapshot.key);
            let to = to.and_then(|peer| peer.addresses.first()).copied();
            let by_checks = snapshot.path.as_ref().and_then(|path| path.pair.rtt);
            let rtt = match (to, &self.view) {
                (Some(to), View::InProcess | View::Kernel(_)) => {
                    self.echo(to, identifier, sequence as u16).await?
                }
                // Without the right to ping there is still what checks say.
                (Some(to), View::Attached(_)) => {
                    let answer = self.echo(to, identifier, sequence as u16).await;
                    answer.unwrap_or(by_checks)
                }
                // What the interface lets through to it is a network: its nodes' addresses are not
                // known, but the path's own round trip is.
                (None, View::Attached(_)) => by_checks,
                (None, View::InProcess | View::Kernel(_)) => {
                    return Err(no_peer(format!("{peer} has no address in the overlay")));
                }
            };
            let seen = self.look().await?;
            let inputs = self.inputs(&seen);
            let report = inputs.peer(inputs.find(peer).map_err(no_peer)?);
            let direct = matches!(report.path.kind, PathKind::Direct | PathKind::Native);
            let event = match rtt {
                Some(rtt) => PingEvent::Pong {
                    schema: SCHEMA,
                    peer: report.name.clone(),
                    sequence,
                    rtt_ms: rtt.as_secs_f64() * 1000.0,
                    path: report.path,
                },
                None => PingEvent::Lost {
                    schema: SCHEMA,
                    peer: report.name.clone(),
                    sequence,
                    reason: report.reason.clone(),
                    summary: report.summary.clone(),
                },
            };
            let answered = rtt.is_some();
            let last = sequence == count;
            let end = if direct && answered {
                let after_s = if sequence == 1 {
                    0.0
                } else {
                    started.elapsed().as_secs_f64()
                };
                Some(PingEvent::Direct {
                    schema: SCHEMA,
                    after_s,
                })
            } else if last {
                Some(PingEvent::NotDirect {
                    schema: SCHEMA,
                    reason: report.reason,
                    summary: report.summary,
                    hint: report.hint,
                })
            } else {
                None
            };
            let done = end.is_some();
            for event in std::iter::once(event).chain(end) {
                if events.send(event).await.is_err() {
                    return Ok(());
                }
            }
            if done {
                return Ok(());
            }
            if answered {
                tokio::time::sleep(PING_TIMEOUT).await;
            }
        }
        Ok(())
    }

    async fn servers(&self) -> Result<Servers, ControlError> {
        Ok(self.shared.with(|state| Servers {
            stun: state
                .stun
                .iter()
                .map(|server| format!("stun:{}", server.address))
                .collect(),
            turn: state.relays.iter().map(login).collect(),
            ca_file: self.ca_file.clone(),
        }))
    }

    async fn probe(&self, probe: Probe) -> Result<(), ControlError> {
        self.inspect(|_| ()).await?;
        match probe {
            Probe::Live => Ok(()),
            Probe::Ready => self.shared.with(|state| match &state.signaling {
                Err((_, error)) if !state.was_connected => Err(failed(format!(
                    "not ready: {} has not answered yet: {error}",
                    state.url
                ))),
                Ok(_) | Err(_) => match &state.publication {
                    Some(Publication {
                        done: false,
                        problem,
                    }) => Err(failed(format!(
                        "not ready: this node's advert has not been written yet{}",
                        problem
                            .iter()
                            .map(|why| format!(": {why}"))
                            .collect::<String>()
                    ))),
                    Some(_) | None => Ok(()),
                },
            }),
        }
    }

    async fn down(&self) -> Result<(), ControlError> {
        self.shared.stop.notify_one();
        Ok(())
    }
}

fn failed(message: String) -> ControlError {
    ControlError::new(ErrorKind::Failed, message)
}

/// Which commands start this node and make it another one.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    /// `wice up`, or `wice attach wg0`.
    pub(super) start: String,
    /// What forgets a key that was revoked.
    pub(super) forget: String,
}

impl Commands {
    /// Of the node of `interface`: in attached mode its state is in `attached`, and its key is the interface's.
    pub(super) fn new(interface: &str, attached: Option<&Path>) -> Self {
        match attached {
            None => Self {
                start: "wice up".to_owned(),
                forget: "wice down; wice leave --yes (forgets the revoked key)".to_owned(),
            },
            Some(folder) => Self {
                start: format!("wice attach {interface}"),
                forget: format!(
                    "wice down --interface {interface}; wice leave --yes --state-dir {}; a new private key for {interface} (wg genkey)",
                    folder.display()
                ),
            },
        }
    }
}

/// What to do where the service refuses this node for good.
pub(super) fn advice(code: ErrorCode, commands: &Commands) -> Option<String> {
    let Commands { start, forget } = commands;
    match code {
        ErrorCode::Revoked => Some(format!(
            "ask for a new invite, then: {forget}; {start} TOKEN"
        )),
        ErrorCode::InviteExpired => Some(format!("ask for a new invite, then: {start} TOKEN")),
        ErrorCode::NotMember => Some(format!(
            "ask for an invite into this network, then: {start} TOKEN"
        )),
        ErrorCode::NetworkNotAllowed => Some(
            "where the service runs: start it with --network ID (wice network show tells the id)"
                .to_owned(),
        ),
        ErrorCode::BadFrame
        | ErrorCode::WrongProof
        | ErrorCode::Replaced
        | ErrorCode::NetworkFull
        | ErrorCode::TimedOut
        | ErrorCode::Busy => None,
    }
}

/// What happened and what to do: messages have the latter on lines of their own.
pub(super) fn said(message: &str) -> (String, Option<String>) {
    let mut lines = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let what = lines.next().unwrap_or_default().to_owned();
    let hint: Vec<&str> = lines.collect();
    (what, (!hint.is_empty()).then(|| hint.join("; ")))
}

/// Peers' overlay addresses, counters of the packet loop's own WireGuard, and our addresses.
fn managed_inputs(
    node: &NodeSnapshot,
    tunnels: Option<&Tunnels>,
    overlay: &Overlay,
    now: Instant,
) -> (BTreeMap<PublicKey, PeerInputs>, Vec<IpAddr>) {
    let of = |peer: &PeerSnapshot| {
        let stats = tunnels.and_then(|tunnels| tunnels.stats(tunnels.find(&peer.key)?, now));
        let owned = overlay.owned(&peer.key).cloned().unwrap_or_default();
        let hosts = owned.prefixes.first().map(|prefix| prefix.address());
        let inputs = PeerInputs {
            addresses: owned
                .ipv4
                .map(IpAddr::V4)
                .into_iter()
                .chain(hosts)
                .collect(),
            stats: stats.unwrap_or_default(),
            ..PeerInputs::default()
        };
        (peer.key, inputs)
    };
    let (v4, v6) = overlay.own_addresses();
    let peers = node.peers.iter().map(of).collect();
    (peers, vec![IpAddr::V4(v4), IpAddr::V6(v6)])
}

fn login(server: &RelayServer) -> TurnLogin {
    let address = server.address;
    let url = match server.transport {
        RelayTransport::Udp => format!("turn:{address}?transport=udp"),
        RelayTransport::Tcp => format!("turn:{address}?transport=tcp"),
        // A certificate is for the name; an IPv6 address is none.
        RelayTransport::Tls if server.name.contains(':') => {
            format!("turns:{address}?transport=tcp")
        }
        RelayTransport::Tls => {
            format!("turns:{}:{}?transport=tcp", server.name, address.port())
        }
    };
    TurnLogin {
        url,
        username: server.username.clone(),
        password: server.password.clone(),
    }
}
