//! The tie between the node's paths and a WireGuard interface, wice's own or another program's: what the
//! interface says every second goes to the core's binder, what that decides goes to the interface, and
//! WireGuard's port is shared. Only endpoints are touched here; whose interface it is, and which peers it
//! has, is for others to say.

mod counted;
mod culprit;
mod direct;
mod held;
mod local;
mod overhear;
mod port;
mod underlay;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use wice_signaling::protocol::PublicKey;

use super::base::Base;
use super::state::State;
use crate::core::binding::{Binder, Cause, Event, PathState, Sighting, Standing};
use crate::core::node::{PeerSnapshot, Way};
use crate::core::overlay::{Overlay, Owned};
use crate::core::slots::{SLOT_PORT, slot_of};
use crate::io::packet_loop::{Command, Inbox, InboxError};
use crate::report::{PeerInputs, Stranger};
use crate::wireguard::backend::{AnyBackend, BackendError, Device, DevicePeer};
use crate::wireguard::inprocess::PeerStats;
use crate::wireguard::netlink::{Interface, Netlink};
use counted::Counted;
use culprit::culprit;
use direct::Sharing;
use local::LocalChanges;
use overhear::Overhearing;
use port::{is_bound, unbound};
use underlay::Underlay;
use watcher::{Report, Watcher};

pub use direct::Direct;
pub(super) use direct::share;
pub(super) use held::Held;

/// Who resets endpoints is looked for at most this often: it reads the list of processes.
const LOOK_FOR_CULPRIT: Duration = Duration::from_secs(10);
/// The same error about endpoints is logged at most this often.
const REPEAT_ERROR: Duration = Duration::from_secs(60);
/// Pictures of the core on their way from the packet loop.
const PICTURES: usize = 1;

/// What the control socket tells of the interface.
#[derive(Debug, Default)]
pub(super) struct InterfaceView {
    /// What WireGuard says of the peers.
    pub(super) peers: BTreeMap<PublicKey, PeerInputs>,
    /// The interface's own addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Attached mode: peers that say that their interface lacks this node.
    pub(super) lacking: BTreeSet<PublicKey>,
    /// Attached mode: nodes that seek this one, and are no peers of the interface.
    pub(super) strangers: BTreeMap<PublicKey, Stranger>,
    /// Attached mode: what peers are called, where that is not what they call themselves.
    pub(super) names: BTreeMap<PublicKey, String>,
    /// Why the interface cannot be used.
    pub(super) problem: Option<String>,
}

/// The whole truth of the core, once a second: notices may be lost where there are too many.
#[derive(Debug)]
pub(super) struct Picture {
    /// Of every peer.
    pub(super) ways: Vec<Way>,
    /// Managed mode: which inner addresses are whose. A peer that has just come may lack.
    pub(super) owned: BTreeMap<PublicKey, Owned>,
}

/// What has happened; see [`Binding::handle`].
pub(super) struct Happened(What);

enum What {
    Report(Report),
    Picture(Picture),
    LocalChange,
}

/// What the interface's side of it is: for whoever knows whose it is.
pub(super) enum Seen {
    /// Nothing.
    Nothing,
    /// It has this key now, which is not the node's; nothing else was heeded.
    OtherKey,
    /// It is like this now.
    Device(Device),
    /// It cannot be asked.
    Lost(BackendError),
    /// The core is like this now.
    Picture(Picture),
}

/// A peer that has come to the interface, or has gone from it.
pub(super) enum PeerChange {
    Added(PublicKey),
    Removed(PublicKey),
}

/// Whose interface it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// wice's: an endpoint that is not ours is where WireGuard has roamed to.
    Wice,
    /// Another program's, which may set endpoints as well.
    Another,
    /// A mesh agent's, which also routes addresses of nodes into it.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code))]
    MeshAgent,
}

/// The tie between paths and one interface.
pub(super) struct Binding {
    interface: String,
    whose: Whose,
    binder: Binder,
    watcher: Watcher,
    paths: BTreeMap<PublicKey, PathState>,
    held: Held,
    /// The port that the packet loop was told.
    port: Option<u16>,
    sharing: Sharing,
    overhearing: Overhearing,
    /// The kernel's number of the interface, while it is there.
    index: Option<u32>,
    underlay: Underlay,
    local: LocalChanges,
    inbox: Inbox,
    counted: Counted,
    view: Arc<Mutex<InterfaceView>>,
    pictures: (mpsc::Sender<Picture>, mpsc::Receiver<Picture>),
    changes: Vec<PeerChange>,
    culprit: Option<(Instant, String)>,
    refused: Option<(Instant, String)>,
}

impl Binding {
    /// Begins to follow an interface. What was kept of its endpoints is in the state folder.
    pub(super) fn start(
        interface: String,
        whose: Whose,
        backend: AnyBackend,
        base: &Base,
        direct: Direct,
        view: Arc<Mutex<InterfaceView>>,
    ) -> Self {
        Self {
            binder: binder(&base.state),
            watcher: Watcher::start(interface.clone(), backend),
            interface,
            whose,
            paths: BTreeMap::new(),
            held: Held::default(),
            port: None,
            sharing: Sharing::new(direct),
            overhearing: Overhearing::default(),
            index: None,
            underlay: Underlay::default(),
            local: LocalChanges::start(),
            inbox: base.inbox.clone(),
            counted: Counted::default(),
            view,
            pictures: mpsc::channel(PICTURES),
            changes: Vec::new(),
            culprit: None,
            refused: None,
        }
    }

    /// The next thing that happens to the interface. Cancel-safe.
    pub(super) async fn next(&mut self) -> anyhow::Result<Happened> {
        let what = tokio::select! {
            report = self.watcher.next() => What::Report(report.ok_or_else(|| {
                anyhow::anyhow!("the watch of the interface has ended: see the log above")
            })?),
            Some(picture) = self.pictures.1.recv() => What::Picture(picture),
            () = self.local.due() => What::LocalChange,
        };
        Ok(Happened(what))
    }

    /// Does what is to be done about it, and tells what it was. [`Self::take_changes`] has something
    /// to tell afterwards.
    pub(super) async fn handle(&mut self, happened: Happened, base: &Base) -> anyhow::Result<Seen> {
        match happened.0 {
            What::Report(Report::Device { device, port }) => {
                self.handle_device(device, port, base).await
            }
            What::Report(Report::Between(device)) => {
                let own = base.key.public_key();
                if device.public_key.is_none_or(|key| key == own) {
                    self.handle_peers(&device, base)?;
                }
                Ok(Seen::Nothing)
            }
            What::Report(Report::Lost(error)) => {
                // What it still does is forwarded as long as its port is there.
                let port = self.port.filter(|port| is_bound(*port));
                self.tell_port(port, base).await?;
                self.tell_problem(Some(error.to_string()));
                Ok(Seen::Lost(error))
            }
            What::Report(Report::NotSet { key, error }) => {
                self.handle_not_set(&key, &error);
                Ok(Seen::Nothing)
            }
            What::Picture(picture) => {
                for way in &picture.ways {
                    let ready = way.has_path.then(|| endpoint_of(&way.key, way.native));
                    let advert = way.advert;
                    self.set_path(way.key, PathState { advert, ready });
                    if way.advert {
                        self.binder.handle_met_at(&way.key, &way.met_at);
                    }
                }
                Ok(Seen::Picture(picture))
            }
            What::LocalChange => {
                base.pass_on(Command::LocalChange)?;
                Ok(Seen::Nothing)
            }
        }
    }

    /// See [`Binder::forget_sessions`].
    pub(super) fn forget_sessions(&mut self) {
        self.binder.forget_sessions(Instant::now());
    }

    /// Peers that have come and gone since this was asked last.
    pub(super) fn take_changes(&mut self) -> Vec<PeerChange> {
        std::mem::take(&mut self.changes)
    }

    /// Whether the interface has this peer.
    pub(super) fn has(&self, key: &PublicKey) -> bool {
        self.binder.standing(key).is_some()
    }

    /// Whether the peer's own endpoint works, without wice.
    pub(super) fn works_natively(&self, key: &PublicKey) -> bool {
        matches!(
            self.binder.standing(key),
            Some(Standing::Theirs { works: true, .. })
        )
    }

    /// An advert was taken: wice runs there.
    pub(super) fn handle_advert(&mut self, record: &[u8]) {
        // The key stands after the version (see the advert's layout).
        let key = record.get(1..33).and_then(|key| key.try_into().ok());
        if let Some(key) = key.map(PublicKey) {
            let ready = self.paths.get(&key).and_then(|path| path.ready);
            let advert = true;
            self.set_path(key, PathState { advert, ready });
        }
    }

    /// A peer's path has changed.
    pub(super) fn handle_path(&mut self, peer: &PeerSnapshot) {
        let path = PathState {
            advert: peer.name.is_some(),
            ready: peer.path.as_ref().map(|path| {
                let native = path.native.then_some(path.pair.remote);
                endpoint_of(&peer.key, native)
            }),
        };
        self.set_path(peer.key, path);
    }

    /// Nobody listens at WireGuard's port any more.
    pub(super) fn handle_port_closed(&mut self, port: u16) {
        tracing::debug!(event = "wireguard-port-closed", port);
        self.port = None;
        self.watcher.look();
    }

    /// Interfaces have changed.
    pub(super) async fn handle_interfaces(
        &mut self,
        interfaces: &[Interface],
        base: &Base,
    ) -> anyhow::Result<()> {
        let own = interfaces.iter().find(|i| i.name == self.interface);
        self.index = own.map(|own| own.index);
        let addresses = own.map(|own| own.addresses.iter().map(|a| a.ip).collect());
        self.with_view(|view| view.addresses = addresses.unwrap_or_default());
        // Up or down, gone or back: the next look is due now.
        self.watcher.look();
        self.local.note(tokio::time::Instant::now());
        self.follow_port(&base.netlink).await
    }

    async fn follow_port(&mut self, netlink: &Netlink) -> anyhow::Result<()> {
        let routes = netlink.default_routes().await?;
        self.overhearing.follow(self.port, routes);
        match self.whose {
            Whose::MeshAgent => {
                let at = self.index.zip(self.port);
                self.underlay.follow(at, routes, netlink).await;
            }
            Whose::Wice | Whose::Another => {}
        }
        Ok(())
    }

    /// From now on these peers' endpoints are left alone.
    pub(super) fn hold(&mut self, held: Held) {
        self.held = held;
        for (key, path) in self.paths.clone() {
            self.set_path(key, path);
        }
    }

    /// Looks at the interface at once.
    pub(super) fn look(&self) {
        self.watcher.look();
    }

    async fn handle_device(
        &mut self,
        device: Device,
        port: Option<u16>,
        base: &Base,
    ) -> anyhow::Result<Seen> {
        let key = device.public_key;
        if key.is_some_and(|key| key != base.key.public_key()) {
            return Ok(Seen::OtherKey);
        }
        let problem = match (key, port) {
            (None, _) => {
                Some("it has no private key: wg set INTERFACE private-key FILE".to_owned())
            }
            (Some(_), None) => Some(unbound(&self.interface, device.listen_port)),
            (Some(_), Some(_)) => None,
        };
        self.tell_port(port, base).await?;
        self.tell_problem(problem);
        base.follow_fwmark(device.fwmark)?;
        self.handle_peers(&device, base)?;
        let peers = device
            .peers
            .iter()
            .map(|peer| (peer.key, self.inputs(peer)));
        let peers: BTreeMap<PublicKey, PeerInputs> = peers.collect();
        self.with_view(|view| view.peers = peers);
        self.ask_picture(base)?;
        Ok(Seen::Device(device))
    }

    /// What endpoints and counters tell.
    fn handle_peers(&mut self, device: &Device, base: &Base) -> anyhow::Result<()> {
        let now = Instant::now();
        for counted in self.counted.look(device, now) {
            base.pass_on(counted)?;
        }
        self.overhearing.fetch(now);
        let sightings: Vec<Sighting> = device.peers.iter().map(sighting).collect();
        self.binder.handle_device(&sightings, now);
        self.drain();
        if let Some(at) = self.binder.poll_timeout(now) {
            self.watcher.look_at(at);
        }
        if self.binder.take_changed() {
            base.state.set_endpoints(&self.binder.originals())?;
            base.state.set_given(&self.binder.given())?;
        }
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

    fn set_path(&mut self, key: PublicKey, path: PathState) {
        if !self.has(&key) {
            return;
        }
        self.paths.insert(key, path);
        // Ours is not taken back: who held it then had no reason to.
        let ours = self.binder.standing(&key) == Some(Standing::Ours);
        let held = !ours && self.held.holds(&key);
        // As if wice did not run there: the binder gives even a peer without any endpoint ours otherwise.
        let path = if held { PathState::default() } else { path };
        self.binder.handle_path(&key, path, Instant::now());
        self.drain();
    }

    /// Does what the binder has decided.
    fn drain(&mut self) {
        while let Some(event) = self.binder.poll_event() {
            match event {
                Event::Added(key) => self.changes.push(PeerChange::Added(key)),
                Event::Removed(key) => {
                    self.paths.remove(&key);
                    self.changes.push(PeerChange::Removed(key));
                }
                Event::SetEndpoint {
                    key,
                    endpoint,
                    instead_of,
                    cause,
                } => {
                    self.log_cause(&key, endpoint, instead_of, cause);
                    self.watcher.set(key, endpoint);
                    self.repeat_initiation(&key, endpoint, cause);
                }
                Event::Left { key, endpoint } => {
                    tracing::info!(event = "endpoint-left", peer = %key, %endpoint, "it works");
                }
            }
        }
    }

    /// A handshake that was begun at an endpoint which is dead, or came to nothing so that the slot takes its place, goes by the
    /// path, without waiting for WireGuard to repeat it.
    fn repeat_initiation(&mut self, key: &PublicKey, endpoint: SocketAddr, cause: Cause) {
        match cause {
            Cause::Failed | Cause::Reset { .. } => {}
            Cause::Moved if endpoint == slot_endpoint(key) => {}
            Cause::Unset | Cause::Moved | Cause::Retry => return,
        }
        let Some(initiation) = self.overhearing.take(key, Instant::now()) else {
            return;
        };
        match self.inbox.send(Command::Initiation(*key, initiation)) {
            // WireGuard repeats it by itself; of a loop that has ended a notice tells.
            Ok(()) | Err(InboxError::Full | InboxError::Ended) => {}
        }
    }

    fn log_cause(
        &mut self,
        key: &PublicKey,
        endpoint: SocketAddr,
        instead_of: Option<SocketAddr>,
        cause: Cause,
    ) {
        match cause {
            Cause::Reset { .. } if self.whose == Whose::Wice => {
                tracing::debug!(event = "endpoint-set", peer = %key, %endpoint, reason = "roamed");
            }
            Cause::Reset { times, every } => {
                let culprit = self.find_culprit(every);
                let set_to = instead_of.map_or("none".to_owned(), |at| at.to_string());
                tracing::warn!(event = "endpoint-reset", peer = %key, set_to, times, culprit);
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

    async fn tell_port(&mut self, port: Option<u16>, base: &Base) -> anyhow::Result<()> {
        if port != self.port || self.sharing.is_due(Instant::now()) {
            self.port = port;
            let shared = match port {
                Some(port) => self.sharing.open(port).await,
                None => Vec::new(),
            };
            base.inbox.send(Command::WireGuardPort(port, shared))?;
            tracing::debug!(event = "wireguard-port", port);
            self.follow_port(&base.netlink).await?;
        }
        Ok(())
    }

    /// Says what is wrong with the interface once, and that it is right again.
    fn tell_problem(&mut self, problem: Option<String>) {
        let before = self.with_view(|view| std::mem::replace(&mut view.problem, problem.clone()));
        if before == problem {
            return;
        }
        let interface = &self.interface;
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
            endpoint_resets: match self.whose {
                Whose::Wice => 0,
                Whose::Another | Whose::MeshAgent => self.binder.resets(&peer.key),
            },
            ..PeerInputs::default()
        }
    }

    fn ask_picture(&self, base: &Base) -> anyhow::Result<()> {
        let sender = self.pictures.0.clone();
        let look = Command::Inspect(Box::new(move |view| {
            let members = view.overlay.into_iter().flat_map(Overlay::members);
            // A picture that nobody has fetched yet is as good.
            let _ = sender.try_send(Picture {
                ways: view.node.ways().collect(),
                owned: members.map(|(key, owned)| (key, owned.clone())).collect(),
            });
        }));
        base.pass_on(look)
    }

    /// Changes what the control socket tells.
    pub(super) fn with_view<T>(&self, change: impl FnOnce(&mut InterfaceView) -> T) -> T {
        change(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Binds the peers of an interface, with what was kept of their endpoints.
pub(super) fn binder(state: &State) -> Binder {
    Binder::new(slot_endpoint, state.endpoints(), state.given())
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

pub(super) fn sighting(peer: &DevicePeer) -> Sighting {
    Sighting {
        key: peer.key,
        endpoint: peer.endpoint,
        handshake: peer.last_handshake,
        handshake_age: peer.handshake_age(),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
    }
}
