//! The daemon of attached mode: another program owns the WireGuard interface; this follows what it
//! does there, and touches endpoints alone.

mod adverts;
mod counted;
mod culprit;
mod detach;
mod direct;
mod guidance;
mod port;
mod seeking;
mod start;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use wice_signaling::protocol::{PublicKey, RecordKind};

use super::base::{Base, Left, Record};
use super::{ASKED, LOOP_ENDED, SIGNAL, Settings, Signals, log_stopping};
use crate::core::binding::{Binder, Cause, Event, LOOK_EVERY, PathState, Sighting, Standing};
use crate::core::node::Way;
use crate::core::seeking::Seeker;
use crate::core::slots::{SLOT_PORT, slot_of};
use crate::io::packet_loop::{Command, Notice};
use crate::report::{PeerInputs, Stranger};
use crate::wireguard::backend::{BackendError, Device, DevicePeer};
use crate::wireguard::inprocess::PeerStats;
use crate::wireguard::netlink::Interface;
use adverts::Adverts;
use counted::Counted;
use culprit::culprit;
use direct::Sharing;
use guidance::Guide;
use port::is_bound;
use watcher::{Report, Watcher};

pub use detach::{Detached, detach};
pub use direct::Direct;
#[cfg(feature = "kubernetes")]
pub(super) use guidance::{Guidance, Held};
pub use start::AttachError;

/// Who resets endpoints is looked for at most this often: it reads the list of processes.
const LOOK_FOR_CULPRIT: Duration = Duration::from_secs(10);
/// The same error about endpoints is logged at most this often.
const REPEAT_ERROR: Duration = Duration::from_secs(60);
/// Pictures of all paths on their way from the packet loop.
const WAYS: usize = 1;

/// What the control socket tells of the interface.
#[derive(Debug, Default)]
pub(super) struct InterfaceView {
    /// What WireGuard says of the peers.
    pub(super) peers: BTreeMap<PublicKey, PeerInputs>,
    /// The interface's own addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Peers that say that their interface lacks this node.
    pub(super) lacking: BTreeSet<PublicKey>,
    /// Nodes that seek this one, and are no peers of the interface.
    pub(super) strangers: BTreeMap<PublicKey, Stranger>,
    /// Why the interface cannot be used.
    pub(super) problem: Option<String>,
}

/// A running daemon.
struct Attached {
    base: Base,
    binder: Binder,
    watcher: Watcher,
    adverts: Adverts,
    guide: Guide,
    seeker: Seeker,
    paths: BTreeMap<PublicKey, PathState>,
    /// The port that the packet loop was told.
    port: Option<u16>,
    sharing: Sharing,
    counted: Counted,
    view: Arc<Mutex<InterfaceView>>,
    ways: (mpsc::Sender<Ways>, mpsc::Receiver<Ways>),
    culprit: Option<(Instant, String)>,
    refused: Option<(Instant, String)>,
}

/// Of every peer.
type Ways = Vec<Way>;

/// Why serving has ended.
enum End {
    Stop,
    /// The interface has another key: another node.
    NewKey,
}

/// Attaches to an interface and runs until told to stop. Endpoints stay as they are then.
pub async fn attach(settings: Settings) -> anyhow::Result<()> {
    run(settings, Meet::Token).await
}

/// Where the peers are met.
pub(super) enum Meet {
    /// At the signaling service of a network that a token lets in.
    Token,
    /// In a cluster.
    #[cfg(feature = "kubernetes")]
    Cluster(Box<crate::signaling::kubernetes::KubernetesConfig>),
}

impl Meet {
    /// Whether the interface is waited for at the start: nobody is there who could be told to make it.
    fn waits(&self) -> bool {
        match self {
            Self::Token => false,
            #[cfg(feature = "kubernetes")]
            Self::Cluster(_) => true,
        }
    }
}

/// Whether the interface, or its key, may still come.
fn is_not_yet(error: &anyhow::Error) -> bool {
    error.is::<BackendError>()
        || matches!(
            error.downcast_ref::<AttachError>(),
            Some(AttachError::NoKey { .. })
        )
}

/// As [`attach`], wherever peers are met.
pub(super) async fn run(settings: Settings, meet: Meet) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut missing: Option<String> = None;
    let mut first = true;
    loop {
        let started = Attached::start(settings.clone(), &meet).await;
        let (mut attached, mut notices) = match started {
            Ok(started) => started,
            // An interface that changes its key may be away for a moment, and a mesh agent makes its own when it can.
            Err(error) if (!first || meet.waits()) && is_not_yet(&error) => {
                let text = error.to_string();
                if missing.as_ref() != Some(&text) {
                    tracing::warn!(event = "interface-lost", error = text, "waiting for it");
                    missing = Some(text);
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => continue,
                    () = signals.stop() => return Ok(()),
                }
            }
            Err(error) => return Err(error),
        };
        first = false;
        missing = None;
        let ended = attached.serve(&mut notices).await;
        let Attached { base, watcher, .. } = attached;
        drop(watcher);
        base.stop().await;
        match ended? {
            End::Stop => return Ok(()),
            End::NewKey => tracing::warn!(
                event = "key-changed",
                interface = settings.interface,
                "a new key is a new node: starting afresh"
            ),
        }
    }
}

impl Attached {
    async fn serve(&mut self, notices: &mut mpsc::Receiver<Notice>) -> anyhow::Result<End> {
        let mut signals = Signals::new()?;
        loop {
            tokio::select! {
                notice = notices.recv() => match notice {
                    Some(notice) => self.handle_notice(notice).await?,
                    None => anyhow::bail!(LOOP_ENDED),
                },
                report = self.watcher.next() => match report {
                    Some(Report::Device { device, port }) => {
                        if self.handle_device(&device, port).await? {
                            return Ok(End::NewKey);
                        }
                    }
                    Some(Report::Lost(error)) => self.handle_lost(&error).await?,
                    Some(Report::NotSet { key, error }) => self.handle_not_set(&key, &error),
                    None => anyhow::bail!("the watch of the interface has ended: see the log above"),
                },
                () = self.guide.changed() => self.handle_guidance()?,
                Some(ways) = self.ways.1.recv() => self.handle_ways(ways)?,
                happened = self.base.next() => match self.base.handle(happened?).await? {
                    Left::Record(record) => self.handle_record(record)?,
                    Left::Interfaces(interfaces) => self.handle_interfaces(&interfaces),
                    Left::Stop => {
                        log_stopping(ASKED);
                        return Ok(End::Stop);
                    }
                    Left::Nothing => {}
                },
                () = signals.stop() => {
                    log_stopping(SIGNAL);
                    return Ok(End::Stop);
                }
            }
        }
    }

    async fn handle_notice(&mut self, notice: Notice) -> anyhow::Result<()> {
        match notice {
            Notice::Publish { advert, sequence } => self.base.publish_advert(&advert, sequence)?,
            Notice::Accepted(record) => {
                // The key stands after the version (see the advert's layout).
                let key = record.get(1..33).and_then(|key| key.try_into().ok());
                if let Some(key) = key.map(PublicKey) {
                    let ready = self.paths.get(&key).and_then(|path| path.ready);
                    let advert = true;
                    self.set_path(key, PathState { advert, ready })?;
                }
            }
            Notice::Path(peer) => {
                let path = PathState {
                    advert: peer.name.is_some(),
                    ready: peer.path.as_ref().map(|path| {
                        let native = path.native.then_some(path.pair.remote);
                        endpoint_of(&peer.key, native)
                    }),
                };
                self.set_path(peer.key, path)?;
                self.base.log_path(*peer).await;
            }
            Notice::PortClosed(port) => {
                tracing::debug!(event = "wireguard-port-closed", port);
                self.port = None;
                self.watcher.look();
            }
            // Managed mode's.
            Notice::AcceptedRoutes(_) | Notice::Owned { .. } | Notice::DeviceLost(_) => {}
        }
        Ok(())
    }

    /// The interface as it is. True when it has become another node's.
    async fn handle_device(&mut self, device: &Device, port: Option<u16>) -> anyhow::Result<bool> {
        let now = Instant::now();
        let key = device.public_key;
        if key.is_some_and(|key| key != self.base.key.public_key()) {
            return Ok(true);
        }
        let problem = match (key, port) {
            (None, _) => {
                Some("it has no private key: wg set INTERFACE private-key FILE".to_owned())
            }
            (Some(_), None) => Some(unbound(&self.base.settings.interface, device.listen_port)),
            (Some(_), Some(_)) => None,
        };
        self.tell_port(port).await?;
        self.tell_problem(problem);
        for counted in self.counted.look(device) {
            self.base.pass_on(counted)?;
        }
        let sightings: Vec<Sighting> = device.peers.iter().map(sighting).collect();
        self.binder.handle_device(&sightings, now);
        self.drain()?;
        if self.binder.take_changed() {
            self.keep_endpoints()?;
        }
        let peers = device
            .peers
            .iter()
            .map(|peer| (peer.key, self.inputs(peer)));
        let peers: BTreeMap<PublicKey, PeerInputs> = peers.collect();
        self.with_view(|view| view.peers = peers);
        self.ask_ways()?;
        Ok(false)
    }

    /// The interface cannot be asked: what is known is kept for its return. What it still does is
    /// forwarded as long as its port is there.
    async fn handle_lost(&mut self, error: &BackendError) -> anyhow::Result<()> {
        self.tell_port(self.port.filter(|port| is_bound(*port)))
            .await?;
        self.tell_problem(Some(error.to_string()));
        Ok(())
    }

    fn handle_not_set(&mut self, key: &PublicKey, error: &BackendError) {
        if let BackendError::NoSuchPeer(_) = error {
            return; // the next look shows it
        }
        let text = error.to_string();
        let repeated =
            |(at, before): &(Instant, String)| *before == text && at.elapsed() < REPEAT_ERROR;
        if !self.refused.as_ref().is_some_and(repeated) {
            tracing::warn!(event = "endpoint-not-set", peer = %key, error = text);
            self.refused = Some((Instant::now(), text));
        }
    }

    /// Notices may be lost where there are too many; this is the whole truth, once a second.
    fn handle_ways(&mut self, ways: Ways) -> anyhow::Result<()> {
        self.seek(&ways)?;
        for way in ways {
            let (key, advert) = (way.key, way.advert);
            let ready = way.has_path.then(|| endpoint_of(&key, way.native));
            self.set_path(key, PathState { advert, ready })?;
        }
        Ok(())
    }

    fn handle_record(&mut self, record: Record) -> anyhow::Result<()> {
        match record.kind {
            RecordKind::Advert => {
                let bytes = record.bytes.clone();
                let own = record.key == self.base.key.public_key();
                let taken = !own && self.adverts.take(Some(record.key), bytes).is_some();
                if taken {
                    let record = record.bytes.clone();
                    self.base.kept.keep(RecordKind::Advert, record);
                }
                let is_peer = self.binder.standing(&record.key).is_some();
                if own || is_peer {
                    self.base.pass_on(Command::Advert(record.bytes))?;
                }
            }
            RecordKind::Routes => self.handle_seeking(&record.key, &record.bytes),
        }
        self.base
            .pass_on(Command::Presence(record.key, record.presence))
    }

    fn handle_interfaces(&mut self, interfaces: &[Interface]) {
        let name = &self.base.settings.interface;
        let own = interfaces.iter().find(|interface| interface.name == *name);
        let addresses = own.map(|own| own.addresses.iter().map(|a| a.ip).collect());
        self.with_view(|view| view.addresses = addresses.unwrap_or_default());
        // Up or down, gone or back: the next look is due now.
        self.watcher.look();
    }

    fn set_path(&mut self, key: PublicKey, path: PathState) -> anyhow::Result<()> {
        if self.binder.standing(&key).is_none() {
            return Ok(());
        }
        self.paths.insert(key, path);
        // Ours is not taken back: who held it then had no reason to.
        let ours = self.binder.standing(&key) == Some(Standing::Ours);
        let held = !ours && self.guide.guidance().held.holds(&key);
        // As if wice did not run there: the binder gives even a peer without any endpoint ours otherwise.
        let path = if held { PathState::default() } else { path };
        self.binder.handle_path(&key, path, Instant::now());
        self.drain()
    }

    fn handle_guidance(&mut self) -> anyhow::Result<()> {
        let excluded = self.guide.guidance().excluded.clone();
        self.base.exclude(excluded)?;
        for (key, path) in self.paths.clone() {
            self.set_path(key, path)?;
        }
        Ok(())
    }

    /// Does what the binder has decided.
    fn drain(&mut self) -> anyhow::Result<()> {
        while let Some(event) = self.binder.poll_event() {
            match event {
                Event::Added(key) => {
                    tracing::info!(event = "peer-added", peer = %key);
                    self.base.inbox.send(Command::AddPeer(key))?;
                    if let Some(record) = self.adverts.of(&key) {
                        self.base.inbox.send(Command::Advert(record.to_vec()))?;
                    }
                }
                Event::Removed(key) => {
                    tracing::info!(event = "peer-removed", peer = %key);
                    self.paths.remove(&key);
                    self.base.inbox.send(Command::RemovePeer(key))?;
                }
                Event::SetEndpoint {
                    key,
                    endpoint,
                    cause,
                } => {
                    self.log_cause(&key, endpoint, cause);
                    self.watcher.set(key, endpoint);
                }
                Event::Left { key, endpoint } => {
                    tracing::info!(event = "endpoint-left", peer = %key, %endpoint, "it works");
                }
            }
        }
        Ok(())
    }

    fn log_cause(&mut self, key: &PublicKey, endpoint: SocketAddr, cause: Cause) {
        match cause {
            Cause::Reset { times, every } => {
                let culprit = self.find_culprit(every);
                tracing::warn!(event = "endpoint-reset", peer = %key, times, culprit);
            }
            Cause::Unset => {
                tracing::info!(event = "endpoint-set", peer = %key, %endpoint, reason = "unset");
            }
            Cause::Failed => {
                let reason = "native-unanswered";
                tracing::info!(event = "endpoint-set", peer = %key, %endpoint, reason);
            }
            Cause::Moved => {
                tracing::debug!(event = "endpoint-set", peer = %key, %endpoint, reason = "moved");
            }
            Cause::Retry => {
                let reason = "no-path";
                tracing::info!(event = "native-tried-again", peer = %key, %endpoint, reason);
            }
        }
    }

    fn find_culprit(&mut self, every: Option<Duration>) -> String {
        match &self.culprit {
            Some((at, text)) if at.elapsed() < LOOK_FOR_CULPRIT => text.clone(),
            Some(_) | None => {
                let text = culprit(every);
                self.culprit = Some((Instant::now(), text.clone()));
                text
            }
        }
    }

    async fn tell_port(&mut self, port: Option<u16>) -> anyhow::Result<()> {
        if port != self.port || self.sharing.is_due(Instant::now()) {
            self.port = port;
            let shared = match port {
                Some(port) => self.sharing.open(port).await,
                None => Vec::new(),
            };
            let command = Command::WireGuardPort(port, shared);
            self.base.inbox.send(command)?;
            tracing::debug!(event = "wireguard-port", port);
        }
        Ok(())
    }

    /// Says what is wrong with the interface once, and that it is right again.
    fn tell_problem(&mut self, problem: Option<String>) {
        let before = self.with_view(|view| std::mem::replace(&mut view.problem, problem.clone()));
        if before == problem {
            return;
        }
        let interface = &self.base.settings.interface;
        match problem {
            Some(problem) => tracing::warn!(event = "interface-lost", interface, problem),
            None => tracing::info!(event = "interface-back", interface),
        }
    }

    fn inputs(&self, peer: &DevicePeer) -> PeerInputs {
        let addresses = peer.allowed_ips.iter().filter(|prefix| {
            let whole = if prefix.address().is_ipv4() { 32 } else { 128 };
            prefix.prefix_len() == whole
        });
        let (native, native_works) = match self.binder.standing(&peer.key) {
            Some(Standing::Theirs {
                endpoint,
                works,
                idle,
            }) if works || idle => (Some(endpoint), works),
            Some(Standing::Theirs { .. } | Standing::Ours | Standing::Unset) | None => {
                (None, false)
            }
        };
        PeerInputs {
            addresses: addresses.map(|prefix| prefix.address()).collect(),
            stats: PeerStats {
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
                last_handshake: peer.handshake_age(),
            },
            native,
            native_works,
            endpoint_resets: self.binder.resets(&peer.key),
            ..PeerInputs::default()
        }
    }

    fn ask_ways(&self) -> anyhow::Result<()> {
        let sender = self.ways.0.clone();
        self.base
            .inbox
            .send(Command::Inspect(Box::new(move |view| {
                // A picture that nobody has fetched yet is as good.
                let _ = sender.try_send(view.node.ways().collect());
            })))?;
        Ok(())
    }

    fn keep_endpoints(&self) -> anyhow::Result<()> {
        let state = &self.base.state;
        state.set_endpoints(&self.binder.originals())?;
        Ok(state.set_given(&self.binder.given())?)
    }

    fn with_view<T>(&self, change: impl FnOnce(&mut InterfaceView) -> T) -> T {
        change(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// By which endpoint WireGuard uses a peer's path: the address that a path from WireGuard's own port
/// leads to, else the proxy's slot.
fn endpoint_of(key: &PublicKey, native: Option<SocketAddr>) -> SocketAddr {
    native.unwrap_or_else(|| slot_endpoint(key))
}

/// Where this node stands in for a peer.
pub(super) fn slot_endpoint(key: &PublicKey) -> SocketAddr {
    SocketAddr::from((slot_of(key), SLOT_PORT))
}

fn sighting(peer: &DevicePeer) -> Sighting {
    Sighting {
        key: peer.key,
        endpoint: peer.endpoint,
        handshake: peer.last_handshake,
        handshake_age: peer.handshake_age(),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
    }
}

fn unbound(interface: &str, port: u16) -> String {
    if port == 0 {
        return format!(
            "{interface} has no listen port yet: bring it up (ip link set {interface} up)"
        );
    }
    format!(
        "WireGuard's port {port} is not open in this network namespace: {interface} is down (ip link set {interface} up), or was made in another namespace, where its socket stays: run wice there"
    )
}
