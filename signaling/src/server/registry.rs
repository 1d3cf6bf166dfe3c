//! Who is connected, what they published: all that the service knows, in memory. No I/O; `now`
//! is passed in.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::body::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::config::Limits;
use crate::protocol::{
    ErrorCode, InviteId, NetworkId, PublicKey, RecordKind, RevocationList, ServerFrame,
};

/// Why the service closes a connection that was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kick {
    /// It may no longer be in.
    Refused(ErrorCode),
    /// Its queue is full.
    SlowReader,
}

/// A node that came in.
pub(super) struct Joined {
    /// Tells this connection from a later one of the same node.
    pub(super) id: u64,
    /// Frames to send.
    pub(super) outgoing: mpsc::Receiver<Bytes>,
    /// Fires once when the connection is to be closed.
    pub(super) kicked: oneshot::Receiver<Kick>,
    /// The network's list, encoded.
    pub(super) revocations: Option<Vec<u8>>,
    /// Everyone else's records, as frames.
    pub(super) present: Vec<Bytes>,
}

pub(super) struct Registry {
    limits: Limits,
    networks: BTreeMap<NetworkId, Network>,
    record_bytes: usize,
    last_id: u64,
}

#[derive(Default)]
struct Network {
    nodes: BTreeMap<PublicKey, Node>,
    revocations: Option<RevocationList>,
}

struct Node {
    invite: InviteId,
    records: BTreeMap<RecordKind, Vec<u8>>,
    connection: Option<Connection>,
    last_seen: Instant,
}

struct Connection {
    id: u64,
    outgoing: mpsc::Sender<Bytes>,
    kick: oneshot::Sender<Kick>,
}

impl Registry {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            networks: BTreeMap::new(),
            record_bytes: 0,
            last_id: 0,
        }
    }

    /// Networks, nodes, nodes connected, records, bytes of records.
    pub(super) fn gauges(&self) -> [(&'static str, &'static str, usize); 5] {
        let nodes = || {
            self.networks
                .values()
                .flat_map(|network| network.nodes.values())
        };
        [
            ("networks", "Networks known.", self.networks.len()),
            ("nodes", "Nodes known.", nodes().count()),
            (
                "nodes_connected",
                "Nodes connected.",
                nodes().filter(|node| node.connection.is_some()).count(),
            ),
            (
                "records",
                "Records kept.",
                nodes().map(|node| node.records.len()).sum(),
            ),
            ("record_bytes", "Bytes of records kept.", self.record_bytes),
        ]
    }

    /// Whether the node, or its invite, is out: asked before a receipt is given.
    pub(super) fn is_revoked(&self, network: &NetworkId, key: &PublicKey, id: &InviteId) -> bool {
        let list = self
            .networks
            .get(network)
            .and_then(|network| network.revocations.as_ref());
        list.is_some_and(|list| list.refuses_by(key, id))
    }

    /// Lets a proven member in; an older connection of the same node is closed.
    pub(super) fn join(
        &mut self,
        network_id: NetworkId,
        key: PublicKey,
        invite: InviteId,
        now: Instant,
    ) -> Result<Joined, ErrorCode> {
        if self.is_revoked(&network_id, &key, &invite) {
            return Err(ErrorCode::Revoked);
        }
        self.make_room(&network_id, &key)?;
        self.last_id += 1;
        let id = self.last_id;
        let (outgoing_tx, outgoing) = mpsc::channel(self.limits.queue.max(1));
        let (kick, kicked) = oneshot::channel();
        let connection = Connection {
            id,
            outgoing: outgoing_tx,
            kick,
        };

        let network = self.networks.entry(network_id).or_default();
        let node = network.nodes.entry(key).or_insert_with(|| Node {
            invite,
            records: BTreeMap::new(),
            connection: None,
            last_seen: now,
        });
        node.invite = invite;
        node.last_seen = now;
        if let Some(older) = node.connection.replace(connection) {
            let _ = older.kick.send(Kick::Refused(ErrorCode::Replaced));
        }
        let others = network.nodes.iter().filter(|(other, _)| **other != key);
        let present = others
            .flat_map(|(other, node)| node.frames(*other, now))
            .collect();
        let revocations = network
            .revocations
            .as_ref()
            .map(|list| list.encoded().to_vec());
        Ok(Joined {
            id,
            outgoing,
            kicked,
            revocations,
            present,
        })
    }

    /// The connection ended; its node's records stay.
    pub(super) fn leave(&mut self, network: &NetworkId, key: &PublicKey, id: u64, now: Instant) {
        if let Some(node) = self.connected(network, key, id) {
            node.connection = None;
            node.last_seen = now;
        }
    }

    /// Replaces a record and tells everyone else.
    pub(super) fn publish(
        &mut self,
        network_id: &NetworkId,
        key: PublicKey,
        id: u64,
        kind: RecordKind,
        sealed: Vec<u8>,
    ) -> Result<(), ErrorCode> {
        let node = self
            .connected(network_id, &key, id)
            .ok_or(ErrorCode::Replaced)?;
        let before = node.records.get(&kind).map_or(0, Vec::len);
        if node.records.get(&kind) == Some(&sealed) {
            return Ok(());
        }
        let grown = self.record_bytes - before + sealed.len();
        if grown > self.limits.record_bytes
            && !self.evict_until(sealed.len() - before.min(sealed.len()))
        {
            return Err(ErrorCode::NetworkFull);
        }
        self.record_bytes = self.record_bytes - before + sealed.len();
        if let Some(node) = self.connected(network_id, &key, id) {
            node.records.insert(kind, sealed.clone());
        }
        let frame = ServerFrame::Record {
            key,
            kind,
            last_seen_s: 0,
            sealed,
        }
        .encode();
        self.fan_out(network_id, Some(&key), Bytes::from(frame));
        Ok(())
    }

    /// Takes a list that is newer than the present one: puts its nodes out and tells all others.
    /// False when it is not newer.
    pub(super) fn revoke(&mut self, network_id: NetworkId, list: RevocationList) -> bool {
        let network = self.networks.entry(network_id).or_default();
        if network
            .revocations
            .as_ref()
            .is_some_and(|old| old.sequence() >= list.sequence())
        {
            return false;
        }
        let out = network
            .nodes
            .extract_if(.., |key, node| list.refuses_by(key, &node.invite));
        for (_, node) in out {
            self.record_bytes -= node.record_bytes();
            if let Some(connection) = node.connection {
                let _ = connection.kick.send(Kick::Refused(ErrorCode::Revoked));
            }
        }
        let frame = ServerFrame::Revocations(list.encoded().to_vec()).encode();
        network.revocations = Some(list);
        self.fan_out(&network_id, None, Bytes::from(frame));
        true
    }

    fn connected(&mut self, network: &NetworkId, key: &PublicKey, id: u64) -> Option<&mut Node> {
        let node = self.networks.get_mut(network)?.nodes.get_mut(key)?;
        node.connection
            .as_ref()
            .is_some_and(|own| own.id == id)
            .then_some(node)
    }

    /// Queues a frame to all but `except`. Whose queue is full is put out: it comes again and
    /// gets everything.
    fn fan_out(&mut self, network: &NetworkId, except: Option<&PublicKey>, frame: Bytes) {
        let Some(network) = self.networks.get_mut(network) else {
            return;
        };
        for (key, node) in &mut network.nodes {
            let full = |own: &Connection| own.outgoing.try_send(frame.clone()).is_err();
            if Some(key) != except
                && node.connection.as_ref().is_some_and(full)
                && let Some(slow) = node.connection.take()
            {
                let _ = slow.kick.send(Kick::SlowReader);
            }
        }
    }

    /// Makes room for a node that is not known yet, if need be by forgetting one that is away.
    fn make_room(&mut self, network_id: &NetworkId, key: &PublicKey) -> Result<(), ErrorCode> {
        let Some(network) = self.networks.get(network_id) else {
            if self.networks.len() >= self.limits.networks && !self.evict_network() {
                return Err(ErrorCode::NetworkFull);
            }
            return Ok(());
        };
        if network.nodes.contains_key(key) || network.nodes.len() < self.limits.nodes_per_network {
            return Ok(());
        }
        let away = network
            .nodes
            .iter()
            .filter(|(_, node)| node.connection.is_none());
        let longest = away
            .min_by_key(|(_, node)| node.last_seen)
            .map(|(key, _)| *key);
        let longest = longest.ok_or(ErrorCode::NetworkFull)?;
        self.forget(network_id, &longest);
        Ok(())
    }

    /// Forgets a network without connections and without revocations (those must not be lost).
    fn evict_network(&mut self) -> bool {
        let idle = |network: &Network| {
            network.revocations.is_none()
                && network.nodes.values().all(|node| node.connection.is_none())
        };
        let found = self
            .networks
            .iter()
            .find(|(_, network)| idle(network))
            .map(|(id, _)| *id);
        let Some(network) = found.and_then(|id| self.networks.remove(&id)) else {
            return false;
        };
        self.record_bytes -= network
            .nodes
            .values()
            .map(Node::record_bytes)
            .sum::<usize>();
        true
    }

    /// Forgets nodes that are away, the longest first, until `wanted` bytes are free.
    fn evict_until(&mut self, wanted: usize) -> bool {
        while self.record_bytes + wanted > self.limits.record_bytes {
            let away = self.networks.iter().flat_map(|(id, network)| {
                let away = network
                    .nodes
                    .iter()
                    .filter(|(_, node)| node.connection.is_none());
                away.map(move |(key, node)| (node.last_seen, *id, *key))
            });
            let Some((_, network, key)) = away.min() else {
                return false;
            };
            self.forget(&network, &key);
        }
        true
    }

    fn forget(&mut self, network: &NetworkId, key: &PublicKey) {
        let nodes = self
            .networks
            .get_mut(network)
            .map(|network| &mut network.nodes);
        if let Some(node) = nodes.and_then(|nodes| nodes.remove(key)) {
            self.record_bytes -= node.record_bytes();
        }
    }
}

impl Node {
    fn record_bytes(&self) -> usize {
        self.records.values().map(Vec::len).sum()
    }

    fn frames(&self, key: PublicKey, now: Instant) -> impl Iterator<Item = Bytes> {
        let away = match self.connection {
            Some(_) => 0,
            None => now.saturating_duration_since(self.last_seen).as_secs(),
        };
        let last_seen_s = u32::try_from(away).unwrap_or(u32::MAX);
        self.records.iter().map(move |(kind, sealed)| {
            let sealed = sealed.clone();
            Bytes::from(
                ServerFrame::Record {
                    key,
                    kind: *kind,
                    last_seen_s,
                    sealed,
                }
                .encode(),
            )
        })
    }
}
