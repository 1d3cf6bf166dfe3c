//! The backend itself: two watches, two annotations, and what the daemon wants known.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use rand_core::TryRngCore as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep_until, timeout};
use wice_signaling::protocol::{Presence, RecordKind};

use super::access::{Access, explain};
use super::state::{Change, Names, ObjectName, Objects, Pace, Source, encode};
use super::view::{ClusterView, OwnNode};
use super::watched::{Seen, Told, Watched, streams};
use super::writer::{Done, Writer};
use crate::io::dial::SocketHook;
use crate::signaling::{Event, Outbox, SignalingBackend};

/// Field managers, one a record.
const ADVERT_MANAGER: &str = "wice";
const KEEPALIVE_MANAGER: &str = "wice-keepalive";

/// What is asked once at the start: the server's version, the own Node.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Who this node is, and how it reaches the API server.
#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    /// The way there.
    pub access: Access,
    /// The own Node.
    pub node: String,
    /// Names of annotations.
    pub names: Names,
    /// Seconds that the own Node's keepalive annotation is set to if it has none; none to leave it.
    pub set_keepalive: Option<u16>,
}

/// Signaling by annotations.
pub struct KubernetesBackend {
    config: KubernetesConfig,
    own: ObjectName,
    objects: Objects,
    advert: Writer,
    keepalive: Option<Writer>,
    view: watch::Sender<ClusterView>,
    pace: Pace,
    connected: bool,
    hook: Option<SocketHook>,
}

/// Why a session ended.
enum End {
    /// The daemon wants no more events, or ends.
    Unwanted,
    /// Its addresses have changed: connections may be dead.
    NetworkChanged,
}

impl KubernetesBackend {
    /// A client that connects when it is run, and what it will know of the cluster. Fails where the system gives no random bytes.
    pub fn new(
        config: KubernetesConfig,
    ) -> Result<(Self, watch::Receiver<ClusterView>), rand_core::OsError> {
        let (view, receiver) = watch::channel(ClusterView::default());
        let keepalive = match (&config.names.keepalive, config.set_keepalive) {
            (Some(name), Some(seconds)) => {
                let mut writer = Writer::new(name.clone(), KEEPALIVE_MANAGER, false, seed()?);
                let value = seconds.to_string();
                writer.publisher.handle_wanted(value, Instant::now());
                Some(writer)
            }
            (None, _) | (_, None) => None,
        };
        let backend = Self {
            own: ObjectName {
                source: Source::Nodes,
                name: config.node.clone(),
            },
            objects: Objects::new(config.names.clone()),
            advert: Writer::new(config.names.advert(), ADVERT_MANAGER, true, seed()?),
            keepalive,
            view,
            pace: Pace::new(seed()?),
            connected: false,
            hook: None,
            config,
        };
        Ok((backend, receiver))
    }

    /// Prepares every socket with this before it connects.
    #[must_use]
    pub fn with_socket_hook(self, hook: Option<SocketHook>) -> Self {
        Self { hook, ..self }
    }
}

impl SignalingBackend for KubernetesBackend {
    async fn run(mut self, mut outbox: watch::Receiver<Outbox>, events: mpsc::Sender<Event>) {
        loop {
            let client = match self.config.access.client_by(self.hook.clone()).await {
                Ok(client) => client,
                Err(error) => {
                    // Files may be mended meanwhile.
                    let retry_in = self.pace.fail();
                    let reason = error.to_string();
                    let lost = Event::Disconnected { reason, retry_in };
                    if events.send(lost).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(retry_in).await;
                    continue;
                }
            };
            self.pace.works();
            let Ok(session) = session(&client, self.config.names.peers).await else {
                return;
            };
            match self.serve(&client, session, &mut outbox, &events).await {
                End::Unwanted => return,
                End::NetworkChanged => {}
            }
        }
    }
}

/// The watches of one client.
pub(super) struct Session {
    pub(super) nodes: Watched,
    pub(super) peers: Option<Watched>,
}

/// Two watches, not begun yet. `peers` says whether there are Peers.
pub(super) async fn session(
    client: &kube::Client,
    peers: bool,
) -> Result<Session, rand_core::OsError> {
    let streaming = timeout(ASK_TIMEOUT, streams(client)).await.unwrap_or(false);
    let watched = |source| -> Result<Watched, rand_core::OsError> {
        let pace = Pace::new(seed()?);
        Ok(Watched::new(source, client.clone(), streaming, pace))
    };
    Ok(Session {
        nodes: watched(Source::Nodes)?,
        peers: peers.then(|| watched(Source::Peers)).transpose()?,
    })
}

impl KubernetesBackend {
    async fn serve(
        &mut self,
        client: &kube::Client,
        mut session: Session,
        outbox: &mut watch::Receiver<Outbox>,
        events: &mpsc::Sender<Event>,
    ) -> End {
        let network_changes = outbox.borrow().network_changes;
        self.take_wanted(outbox);
        loop {
            let now = Instant::now();
            if self.may_write() {
                self.advert.begin(client, &self.config.node, now);
                if let Some(keepalive) = &mut self.keepalive {
                    keepalive.begin(client, &self.config.node, now);
                }
            }
            let due = self.due();
            tokio::select! {
                told = session.nodes.next() => {
                    if self.handle_nodes(told, client, events).await.is_err() {
                        return End::Unwanted;
                    }
                }
                told = next_of(&mut session.peers) => {
                    if self.handle_peers(told, events).await.is_err() {
                        return End::Unwanted;
                    }
                }
                done = self.advert.done() => self.handle_advert_done(done),
                done = done_of(&mut self.keepalive) => self.handle_keepalive_done(done),
                changed = outbox.changed() => {
                    if changed.is_err() || outbox.borrow().leaving {
                        return End::Unwanted;
                    }
                    self.take_wanted(outbox);
                    if outbox.borrow().network_changes != network_changes {
                        return End::NetworkChanged;
                    }
                }
                () = at(due) => {}
            }
        }
    }

    /// Before the own Node was seen, what stands there is unknown: a node that lost its state must go on above it. One that was
    /// deleted is not made by us, and comes back without annotations.
    fn may_write(&self) -> bool {
        self.objects.is_listed(Source::Nodes) && self.objects.facts(&self.own).is_some()
    }

    /// The next write, if there may be one.
    fn due(&self) -> Option<Instant> {
        if !self.may_write() {
            return None;
        }
        let keepalive = self.keepalive.as_ref();
        let keepalive = keepalive.and_then(|writer| writer.publisher.poll_timeout());
        let advert = self.advert.publisher.poll_timeout();
        advert.into_iter().chain(keepalive).min()
    }

    fn take_wanted(&mut self, outbox: &mut watch::Receiver<Outbox>) {
        let wanted = outbox.borrow_and_update();
        let Some(advert) = wanted.records.get(&RecordKind::Advert) else {
            return;
        };
        match encode(advert) {
            Ok(value) => self.advert.publisher.handle_wanted(value, Instant::now()),
            Err(error) => tracing::warn!(event = "advert-not-written", reason = %error),
        }
    }

    async fn handle_nodes(
        &mut self,
        told: Told,
        client: &kube::Client,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Gone> {
        match told {
            Told::List => self.objects.handle_list(Source::Nodes),
            Told::Object(seen) => {
                let own = seen.name() == self.config.node;
                self.objects.handle_object(Source::Nodes, seen.object());
                if own {
                    self.see_own(&seen);
                }
            }
            Told::Deleted(seen) => self.objects.handle_deleted(Source::Nodes, seen.name()),
            Told::Listed => {
                self.objects.handle_listed(Source::Nodes);
                if self.objects.facts(&self.own).is_none() {
                    let problem = format!(
                        "there is no Node {:?} in this cluster\n  give the Node's own name: --node-name, or NODE_NAME by fieldRef spec.nodeName",
                        self.config.node
                    );
                    self.set_problem(Some(problem));
                }
                let own = own_node(&self.config.node, client).await;
                self.view.send_modify(|view| {
                    view.listed = true;
                    view.own = own.unwrap_or(std::mem::take(&mut view.own));
                });
                self.tell_connected(events).await?;
            }
            Told::Lost {
                reason, retry_in, ..
            } => {
                self.connected = false;
                emit(events, Event::Disconnected { reason, retry_in }).await?;
            }
        }
        self.pass_on(events).await
    }

    async fn handle_peers(&mut self, told: Told, events: &mpsc::Sender<Event>) -> Result<(), Gone> {
        match told {
            Told::List => self.objects.handle_list(Source::Peers),
            Told::Object(seen) => self.objects.handle_object(Source::Peers, seen.object()),
            Told::Deleted(seen) => self.objects.handle_deleted(Source::Peers, seen.name()),
            Told::Listed => self.objects.handle_listed(Source::Peers),
            // Nodes say whether the API is there; without Peers the mesh of the Nodes is whole.
            Told::Lost {
                reason, retry_in, ..
            } => {
                tracing::info!(event = "peers-not-watched", reason, ?retry_in);
            }
        }
        self.pass_on(events).await
    }

    /// What the own Node has now.
    fn see_own(&mut self, seen: &Seen) {
        let now = Instant::now();
        let annotations = seen.object().annotations;
        let advert = annotations.get(&self.config.names.advert());
        self.advert
            .publisher
            .handle_seen(advert.map(String::as_str), now);
        let Some(keepalive) = &mut self.keepalive else {
            return;
        };
        let name = self.config.names.keepalive.as_ref();
        let present = name.is_some_and(|name| annotations.contains_key(name));
        let wanted = self.config.set_keepalive.map(|seconds| seconds.to_string());
        // Somebody's own choice is as good as ours.
        let value = wanted.filter(|_| present);
        keepalive.publisher.handle_seen(value.as_deref(), now);
    }

    /// Records and facts go out.
    async fn pass_on(&mut self, events: &mpsc::Sender<Event>) -> Result<(), Gone> {
        while let Some(change) = self.objects.poll_change() {
            match change {
                Change::Advert { key, advert } => {
                    let record = Event::Record {
                        key,
                        kind: RecordKind::Advert,
                        sealed: advert,
                        last_seen: Duration::ZERO,
                    };
                    emit(events, record).await?;
                }
                Change::Gone(key) => {
                    let presence = Presence::Lost { last_seen_s: 0 };
                    emit(events, Event::Presence { key, presence }).await?;
                }
                Change::Facts(name) => {
                    let facts = self.objects.facts(&name).cloned();
                    if let Some(error) = facts.as_ref().and_then(|facts| facts.bad_advert.as_ref())
                    {
                        tracing::warn!(event = "advert-unreadable", object = %name, error);
                    }
                    self.view.send_modify(|view| {
                        match facts {
                            Some(facts) => view.objects.insert(name, facts),
                            None => view.objects.remove(&name),
                        };
                    });
                }
            }
        }
        Ok(())
    }

    async fn tell_connected(&mut self, events: &mpsc::Sender<Event>) -> Result<(), Gone> {
        let now = Instant::now();
        self.advert.publisher.handle_connected(now);
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.publisher.handle_connected(now);
        }
        if std::mem::replace(&mut self.connected, true) {
            return Ok(());
        }
        emit(events, Event::Connected).await
    }

    fn handle_advert_done(&mut self, done: Done) {
        match done {
            Done::Written => {
                tracing::debug!(event = "advert-written", node = self.config.node);
                self.view
                    .send_if_modified(|view| !std::mem::replace(&mut view.published, true));
                self.set_problem(None);
            }
            Done::Conflict(reason) | Done::Refused(reason) => {
                let hint = "tried again within 90 s";
                tracing::warn!(event = "advert-not-written", reason, hint);
                self.set_problem(Some(reason));
            }
        }
    }

    fn handle_keepalive_done(&mut self, done: Done) {
        match done {
            Done::Written => {
                tracing::info!(event = "keepalive-set", node = self.config.node);
            }
            // Somebody was faster: theirs stands.
            Done::Conflict(reason) => tracing::debug!(event = "keepalive-theirs", reason),
            Done::Refused(reason) => tracing::warn!(event = "keepalive-not-set", reason),
        }
    }

    fn set_problem(&self, problem: Option<String>) {
        self.view.send_if_modified(|view| {
            let changed = view.problem != problem;
            view.problem = problem;
            changed
        });
    }
}

/// What metadata lack. The mesh works without it.
async fn own_node(name: &str, client: &kube::Client) -> Option<OwnNode> {
    let api: Api<Node> = Api::all(client.clone());
    let node = match timeout(ASK_TIMEOUT, api.get_opt(name)).await {
        Ok(Ok(node)) => node?,
        Ok(Err(error)) => {
            tracing::warn!(event = "own-node-unknown", reason = explain(&error));
            return None;
        }
        Err(_) => return None,
    };
    let spec = node.spec.unwrap_or_default();
    let cidrs = spec.pod_cidrs.unwrap_or_default();
    let pod_cidrs = cidrs.iter().chain(&spec.pod_cidr);
    let mut pod_cidrs: Vec<_> = pod_cidrs.filter_map(|text| text.parse().ok()).collect();
    pod_cidrs.sort();
    pod_cidrs.dedup();
    Some(OwnNode { pod_cidrs })
}

/// The daemon wants no more events.
struct Gone;

async fn emit(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Gone> {
    events.send(event).await.map_err(|_| Gone)
}

pub(super) async fn next_of(watched: &mut Option<Watched>) -> Told {
    match watched {
        Some(watched) => watched.next().await,
        None => std::future::pending().await,
    }
}

async fn done_of(writer: &mut Option<Writer>) -> Done {
    match writer {
        Some(writer) => writer.done().await,
        None => std::future::pending().await,
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

pub(super) fn seed() -> Result<[u8; 32], rand_core::OsError> {
    let mut seed = [0; 32];
    rand_core::OsRng.try_fill_bytes(&mut seed)?;
    Ok(seed)
}
