//! What Kilo's `kg` does to a node's WireGuard interface, routes and annotations: `kg` itself cannot be had as a dependency (README).
//! It goes by the same events, timers and rules (Kilo's `pkg/mesh/mesh.go`), one node in one thread.

mod device;
mod objects;
mod topology;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, WatchEvent, WatchParams,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval_at, sleep, timeout};
use wice::lab::NetNs;
use wice::signaling::kubernetes::Access;

use crate::Cluster;
use device::Machine;
use topology::{Node, Outside, Topology};

/// Kilo's interface.
pub const INTERFACE: &str = "kilo0";
/// Kilo's port.
pub(crate) const PORT: u16 = 51820;
/// `--resync-period=10s`.
const RESYNC: Duration = Duration::from_secs(10);
/// How often it tells that it lives, and what it has discovered.
const CHECK_IN: Duration = Duration::from_secs(30);
/// A watch that has ended begins again after this.
const WATCH_AGAIN: Duration = Duration::from_secs(1);
/// A write that hangs is given up, as a connection is that nobody answers on.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a `kg` finds out about its machine.
#[derive(Clone, Debug)]
pub struct Local {
    /// Where it thinks that others reach it.
    pub endpoint: SocketAddr,
    /// Its address in its own network; none with `force-internal-ip: -`.
    pub internal_ip: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    /// SIGKILL: all stays.
    Killed,
    /// SIGTERM with `--clean-up`, the default: its annotations and routes go.
    Terminated,
}

struct Running {
    replaced: Arc<AtomicUsize>,
    end: oneshot::Sender<Ending>,
    thread: JoinHandle<()>,
}

/// One a node; all end when this is dropped.
#[derive(Default)]
pub struct MeshAgents {
    running: BTreeMap<String, Running>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl MeshAgents {
    /// Starts that of a Node in namespace `ns`, whose interface is there. It reaches the API from the namespace `api`.
    pub fn start(
        &mut self,
        cluster: &Cluster,
        api: &NetNs,
        ns: &NetNs,
        node: &str,
        local: Local,
    ) -> Result<()> {
        let access = Access {
            server: Some(cluster.url()),
            ca_file: Some(cluster.ca_file()),
            token_file: Some(cluster.admin_token()?),
            ..Access::default()
        };
        let (end, ended) = oneshot::channel();
        let replaced = Arc::new(AtomicUsize::new(0));
        let (count, errors) = (Arc::clone(&replaced), Arc::clone(&self.errors));
        let (api, machine) = (api.clone(), Machine::new(ns.clone()));
        let name = node.to_owned();
        let thread = std::thread::spawn(move || {
            let told = errors.clone();
            let run = || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let client = access.client().await?;
                    let agent = Agent {
                        nodes: Api::all_with(
                            client.clone(),
                            &ApiResource::erase::<NodeObject>(&()),
                        ),
                        key: machine.public_key()?,
                        machine,
                        name: name.clone(),
                        local,
                        known: Topology::default(),
                        wireguard_ip: String::new(),
                        replaced: count,
                        errors,
                    };
                    agent.run(client, ended).await
                })
            };
            let result: Result<()> = api.run(run).map_err(Into::into).and_then(|result| result);
            if let Err(error) = result {
                note(&told, &name, &error);
            }
        });
        let running = Running {
            replaced,
            end,
            thread,
        };
        self.running.insert(node.to_owned(), running);
        Ok(())
    }

    /// Ends that of a Node at once; nothing else changes.
    pub fn kill(&mut self, node: &str) {
        self.end(node, Ending::Killed);
    }

    /// Ends it as a DaemonSet's update does: it takes away what it has written.
    pub fn terminate(&mut self, node: &str) {
        self.end(node, Ending::Terminated);
    }

    /// How often that of a Node has replaced all peers, which ends their sessions.
    #[must_use]
    pub fn replaced(&self, node: &str) -> usize {
        self.running
            .get(node)
            .map_or(0, |running| running.replaced.load(Ordering::Relaxed))
    }

    /// What went wrong; an API server that is away is no error of theirs.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn end(&mut self, node: &str, ending: Ending) {
        let Some(running) = self.running.remove(node) else {
            return;
        };
        // One that has ended by itself has said why.
        let _ = running.end.send(ending);
        if running.thread.join().is_err() {
            note(&self.errors, node, &anyhow::anyhow!("it panicked"));
        }
    }
}

impl Drop for MeshAgents {
    fn drop(&mut self) {
        for node in self.running.keys().cloned().collect::<Vec<_>>() {
            self.kill(&node);
        }
    }
}

fn note(errors: &Mutex<Vec<String>>, node: &str, error: &anyhow::Error) {
    errors
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(format!("{node}: {error:#}"));
}

enum Event {
    Node(String, Option<Node>),
    Peer(String, Option<Outside>),
}

struct Agent {
    nodes: Api<DynamicObject>,
    name: String,
    key: String,
    local: Local,
    machine: Machine,
    known: Topology,
    /// As it was last configured, which is what is told.
    wireguard_ip: String,
    replaced: Arc<AtomicUsize>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    async fn run(
        mut self,
        client: kube::Client,
        mut ended: oneshot::Receiver<Ending>,
    ) -> Result<()> {
        // As unbuffered as that of kg: one event at a time, each with all that follows from it.
        let (events, mut told) = mpsc::channel(1);
        let peers = GroupVersionKind::gvk("kilo.squat.ai", "v1alpha1", "Peer");
        let peers = ApiResource::from_gvk_with_plural(&peers, "peers");
        let node_event =
            |name, object: Option<&DynamicObject>| Event::Node(name, object.map(objects::node));
        let peer_event = |name, object: Option<&DynamicObject>| {
            Event::Peer(name, object.and_then(objects::outside))
        };
        tokio::spawn(watch(self.nodes.clone(), events.clone(), node_event));
        tokio::spawn(watch(Api::all_with(client, &peers), events, peer_event));
        let mut resync = interval_at(Instant::now() + RESYNC, RESYNC);
        let mut check_in = interval_at(Instant::now() + CHECK_IN, CHECK_IN);
        loop {
            let done = tokio::select! {
                event = told.recv() => match event {
                    Some(Event::Node(name, node)) => self.node_changed(name, node).await,
                    Some(Event::Peer(name, peer)) => self.peer_changed(name, peer),
                    None => anyhow::bail!("nothing is watched any more"),
                },
                _ = resync.tick() => self.apply(),
                _ = check_in.tick() => self.check_in().await,
                ending = &mut ended => return match ending {
                    Ok(Ending::Terminated) => self.clean_up().await,
                    Ok(Ending::Killed) | Err(_) => Ok(()),
                },
            };
            if let Err(error) = done {
                note(&self.errors, &self.name, &error);
            }
        }
    }

    /// `syncNodes`.
    async fn node_changed(&mut self, name: String, node: Option<Node>) -> Result<()> {
        let Some(node) = node else {
            self.known.nodes.remove(&name);
            return self.apply();
        };
        if name == self.name {
            return self.own_changed(node).await;
        }
        let known = self.known.nodes.insert(name, node.clone());
        if known.is_some_and(|known| known.equals(&node, now())) {
            return Ok(());
        }
        self.apply()
    }

    /// `syncPeers`.
    fn peer_changed(&mut self, name: String, peer: Option<Outside>) -> Result<()> {
        let known = match peer.clone() {
            Some(peer) => self.known.outside.insert(name, peer),
            None => self.known.outside.remove(&name),
        };
        if known == peer { Ok(()) } else { self.apply() }
    }

    /// `handleLocal`: what its own Node tells is made what it shall tell.
    async fn own_changed(&mut self, mut told: Node) -> Result<()> {
        told.endpoint = told.endpoint.or(Some(self.local.endpoint));
        told.internal_ip = told.internal_ip.or(self.local.internal_ip);
        let local = Node {
            key: self.key.clone(),
            last_seen: now(),
            wireguard_ip: self.wireguard_ip.clone(),
            ..told.clone()
        };
        if !told.equals(&local, now()) && !self.write(&objects::written(&local)).await? {
            return Ok(());
        }
        let known = self.known.nodes.get(&self.name);
        if known.is_some_and(|known| known.equals(&local, now())) {
            return Ok(());
        }
        self.known.nodes.insert(self.name.clone(), local);
        self.apply()
    }

    /// `checkIn`.
    async fn check_in(&mut self) -> Result<()> {
        let Some(own) = self.known.nodes.get(&self.name) else {
            return Ok(());
        };
        let (last_seen, wireguard_ip) = (now(), self.wireguard_ip.clone());
        let own = Node {
            last_seen,
            wireguard_ip,
            ..own.clone()
        };
        if self.write(&objects::written(&own)).await? {
            self.known.nodes.insert(self.name.clone(), own);
        }
        Ok(())
    }

    /// `applyTopology`.
    fn apply(&mut self) -> Result<()> {
        let device = self.machine.read()?;
        let Some(wanted) = self.known.wanted(&self.name, &device, now()) else {
            return Ok(());
        };
        self.wireguard_ip.clone_from(&wanted.address);
        if self.machine.apply(&device, wanted)? {
            self.replaced.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn clean_up(&mut self) -> Result<()> {
        self.machine.clean_up()?;
        self.write(&objects::removed()).await.map(drop)
    }

    /// False where the API is away.
    async fn write(&self, patch: &serde_json::Value) -> Result<bool> {
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
        let write = self.nodes.patch(&self.name, &parameters, &patch);
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(error @ kube::Error::Api(_))) => Err(error).context("its own Node"),
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }
}

/// Tells everything that is there, and what changes, for ever.
async fn watch<E>(objects: Api<DynamicObject>, events: mpsc::Sender<Event>, event: E)
where
    E: Fn(String, Option<&DynamicObject>) -> Event,
{
    loop {
        if let Ok(stream) = objects.watch(&WatchParams::default(), "0").await {
            let mut stream = std::pin::pin!(stream);
            while let Some(Ok(change)) = stream.next().await {
                let name = |object: &DynamicObject| object.metadata.name.clone();
                let told = match &change {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        name(object).map(|name| event(name, Some(object)))
                    }
                    WatchEvent::Deleted(object) => name(object).map(|name| event(name, None)),
                    WatchEvent::Bookmark(_) | WatchEvent::Error(_) => None,
                };
                let Some(told) = told else { continue };
                if events.send(told).await.is_err() {
                    return;
                }
            }
        }
        sleep(WATCH_AGAIN).await;
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
