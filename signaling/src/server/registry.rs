//! Who is connected, what they published: all that the service knows, in memory. No I/O; `now`
//! is passed in.

use std::collections::BTreeMap;
use std::mem;
use std::time::Instant;

use axum::body::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::carry::Carrier;
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
    /// All records as frames, the node's own among them: one that has lost its state learns from
    /// them how far it had counted.
    pub(super) present: Vec<Bytes>,
}

/// A proven member that comes in.
#[derive(Clone, Copy)]
pub(super) struct Member {
    pub(super) network: NetworkId,
    pub(super) key: PublicKey,
    pub(super) invite: InviteId,
    /// Its network is one that the service was told to serve, not one that anyone has made.
    pub(super) listed: bool,
    /// It understands [`ServerFrame::Presence`].
    pub(super) hears_presence: bool,
}

pub(super) struct Registry {
    pub(super) limits: Limits,
    pub(super) networks: BTreeMap<NetworkId, Network>,
    /// Nodes of whom the others know otherwise, and when they are to be told.
    pub(super) untold: BTreeMap<(NetworkId, PublicKey), Instant>,
    pub(super) record_bytes: usize,
    last_id: u64,
    forgotten: Vec<NetworkId>,
}

pub(super) struct Network {
    pub(super) nodes: BTreeMap<PublicKey, Node>,
    revocations: Option<RevocationList>,
    listed: bool,
    /// When a node last came or revoked another.
    touched: Instant,
}

pub(super) struct Node {
    /// By which it, or who carries for it, is in.
    pub(super) invite: InviteId,
    pub(super) records: BTreeMap<RecordKind, Vec<u8>>,
    /// Who carries its records, if it has not come by itself.
    pub(super) carrier: Option<Carrier>,
    pub(super) connection: Option<Connection>,
    pub(super) last_seen: Instant,
    /// It said that it goes.
    pub(super) left: bool,
    /// The others know that it is away.
    pub(super) told_away: bool,
    pub(super) told_at: Option<Instant>,
}

pub(super) struct Connection {
    pub(super) id: u64,
    hears_presence: bool,
    pub(super) outgoing: mpsc::Sender<Bytes>,
    kick: oneshot::Sender<Kick>,
}

/// Who a frame is for.
#[derive(Clone, Copy)]
pub(super) enum Audience<'a> {
    All,
    AllBut(&'a PublicKey),
    /// Those who understand [`ServerFrame::Presence`].
    HearsPresence,
}

impl Registry {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            networks: BTreeMap::new(),
            untold: BTreeMap::new(),
            record_bytes: 0,
            last_id: 0,
            forgotten: Vec::new(),
        }
    }

    /// Networks, nodes, nodes connected, records, bytes of records, nodes carried.
    pub(super) fn gauges(&self) -> [(&'static str, &'static str, usize); 6] {
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
            (
                "nodes_carried",
                "Nodes whose records another carries.",
                nodes().filter(|node| node.carrier.is_some()).count(),
            ),
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
    pub(super) fn join(&mut self, member: Member, now: Instant) -> Result<Joined, ErrorCode> {
        let Member {
            network: network_id,
            key,
            invite,
            listed,
            hears_presence,
        } = member;
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
            hears_presence,
            outgoing: outgoing_tx,
            kick,
        };

        let network = self.networks.entry(network_id).or_insert_with(|| Network {
            nodes: BTreeMap::new(),
            revocations: None,
            listed,
            touched: now,
        });
        network.listed = listed;
        network.touched = now;
        let node = network
            .nodes
            .entry(key)
            .or_insert_with(|| Node::new(invite, now));
        node.invite = invite;
        node.last_seen = now;
        node.left = false;
        if let Some(older) = node.connection.replace(connection) {
            let _ = older.kick.send(Kick::Refused(ErrorCode::Replaced));
        }
        let present = network
            .nodes
            .iter()
            .flat_map(|(other, node)| node.frames(*other, now))
            .collect();
        // Its own counts from now on; what was carried it has got back, as it would its own.
        if let Some(node) = network.nodes.get_mut(&key)
            && node.carrier.take().is_some()
        {
            self.record_bytes -= node.record_bytes();
            node.records.clear();
        }
        let revocations = network
            .revocations
            .as_ref()
            .map(|list| list.encoded().to_vec());
        self.note_presence(&network_id, &key, now);
        Ok(Joined {
            id,
            outgoing,
            kicked,
            revocations,
            present,
        })
    }

    /// The connection ended; its node's records stay. It was last heard at `heard`, and may have said
    /// that it goes.
    pub(super) fn leave(
        &mut self,
        network: &NetworkId,
        key: &PublicKey,
        id: u64,
        (heard, left): (Instant, bool),
        now: Instant,
    ) {
        if let Some(node) = self.connected(network, key, id) {
            node.connection = None;
            node.last_seen = heard;
            node.left = left;
            self.note_presence(network, key, now);
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
        now: Instant,
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
        self.fan_out(network_id, Audience::AllBut(&key), &Bytes::from(frame), now);
        Ok(())
    }

    /// Takes a list that is newer than the present one: puts its nodes out and tells all others.
    /// False when it is not newer, or of one more network that anyone may have made than lists are
    /// kept of: its nodes carry it, and bring it again.
    pub(super) fn revoke(
        &mut self,
        network_id: NetworkId,
        list: RevocationList,
        listed: bool,
        now: Instant,
    ) -> bool {
        let known = self.networks.get(&network_id);
        let before = known.and_then(|network| network.revocations.as_ref());
        if before.is_some_and(|old| old.sequence() >= list.sequence()) {
            return false;
        }
        if !listed && before.is_none() && !self.make_room_for_list(&network_id) {
            return false;
        }
        let network = self.networks.entry(network_id).or_insert_with(|| Network {
            nodes: BTreeMap::new(),
            revocations: None,
            listed,
            touched: now,
        });
        network.listed = listed;
        network.touched = now;
        let out = network
            .nodes
            .extract_if(.., |key, node| node.is_refused_by(&list, key));
        for (key, node) in out {
            self.record_bytes -= node.record_bytes();
            self.untold.remove(&(network_id, key));
            if let Some(connection) = node.connection {
                let _ = connection.kick.send(Kick::Refused(ErrorCode::Revoked));
            }
        }
        let frame = ServerFrame::Revocations(list.encoded().to_vec()).encode();
        network.revocations = Some(list);
        self.fan_out(&network_id, Audience::All, &Bytes::from(frame), now);
        true
    }

    /// Networks that were forgotten with their lists since the last call.
    pub(super) fn take_forgotten(&mut self) -> Vec<NetworkId> {
        mem::take(&mut self.forgotten)
    }

    pub(super) fn connected(
        &mut self,
        network: &NetworkId,
        key: &PublicKey,
        id: u64,
    ) -> Option<&mut Node> {
        let node = self.networks.get_mut(network)?.nodes.get_mut(key)?;
        node.connection
            .as_ref()
            .is_some_and(|own| own.id == id)
            .then_some(node)
    }

    /// Queues a frame. Whose queue is full is put out: it comes again and gets everything.
    pub(super) fn fan_out(
        &mut self,
        network_id: &NetworkId,
        audience: Audience<'_>,
        frame: &Bytes,
        now: Instant,
    ) {
        let Some(network) = self.networks.get_mut(network_id) else {
            return;
        };
        let mut put_out = Vec::new();
        for (key, node) in &mut network.nodes {
            let wanted = |own: &Connection| match audience {
                Audience::All => true,
                Audience::AllBut(except) => key != except,
                Audience::HearsPresence => own.hears_presence,
            };
            let full =
                |own: &Connection| wanted(own) && own.outgoing.try_send(frame.clone()).is_err();
            if let Some(slow) = node.connection.take_if(|own| full(own)) {
                node.last_seen = now;
                put_out.push(*key);
                let _ = slow.kick.send(Kick::SlowReader);
            }
        }
        for key in put_out {
            self.note_presence(network_id, &key, now);
        }
    }

    /// Makes room for a node that is not known yet, if need be by forgetting one that is away.
    pub(super) fn make_room(
        &mut self,
        network_id: &NetworkId,
        key: &PublicKey,
    ) -> Result<(), ErrorCode> {
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
            .min_by_key(|(_, node)| (network.is_held(node), node.last_seen))
            .map(|(key, _)| *key);
        let longest = longest.ok_or(ErrorCode::NetworkFull)?;
        self.forget(network_id, &longest);
        Ok(())
    }

    /// Forgets a network without connections: one without revocations, else the longest untouched of
    /// those that anyone may have made. What a listed network has revoked is never lost.
    fn evict_network(&mut self) -> bool {
        let idle = self
            .networks
            .iter()
            .filter(|(_, network)| network.is_idle());
        let expendable =
            idle.filter(|(_, network)| network.revocations.is_none() || !network.listed);
        let found = expendable
            .min_by_key(|(_, network)| (network.revocations.is_some(), network.touched))
            .map(|(id, _)| *id);
        found.is_some_and(|id| self.forget_network(&id))
    }

    /// Makes room for the list of a network that anyone may have made: at most half of the networks
    /// have one, so that whoever makes networks cannot fill the service with what is not forgotten.
    fn make_room_for_list(&mut self, network: &NetworkId) -> bool {
        let kept = |network: &Network| network.revocations.is_some() && !network.listed;
        let lists = self
            .networks
            .values()
            .filter(|network| kept(network))
            .count();
        let known = self.networks.contains_key(network);
        if !known && self.networks.len() >= self.limits.networks && !self.evict_network() {
            return false;
        }
        if lists < (self.limits.networks / 2).max(1) {
            return true;
        }
        let idle = self
            .networks
            .iter()
            .filter(|(id, other)| kept(other) && other.is_idle() && *id != network);
        let longest = idle
            .min_by_key(|(_, network)| network.touched)
            .map(|(id, _)| *id);
        longest.is_some_and(|id| self.forget_network(&id))
    }

    fn forget_network(&mut self, id: &NetworkId) -> bool {
        let Some(network) = self.networks.remove(id) else {
            return false;
        };
        self.record_bytes -= network
            .nodes
            .values()
            .map(Node::record_bytes)
            .sum::<usize>();
        self.untold.retain(|(of, _), _| of != id);
        if network.revocations.is_some() {
            self.forgotten.push(*id);
        }
        true
    }

    /// Forgets nodes that are away, the longest first and last those that others carry now, until `wanted`
    /// bytes are free.
    pub(super) fn evict_until(&mut self, wanted: usize) -> bool {
        while self.record_bytes + wanted > self.limits.record_bytes {
            let away = self.networks.iter().flat_map(|(id, network)| {
                let away = network
                    .nodes
                    .iter()
                    .filter(|(_, node)| node.connection.is_none());
                away.map(move |(key, node)| (network.is_held(node), node.last_seen, *id, *key))
            });
            let Some((_, _, network, key)) = away.min() else {
                return false;
            };
            self.forget(&network, &key);
        }
        true
    }

    pub(super) fn forget(&mut self, network: &NetworkId, key: &PublicKey) {
        let nodes = self
            .networks
            .get_mut(network)
            .map(|network| &mut network.nodes);
        if let Some(node) = nodes.and_then(|nodes| nodes.remove(key)) {
            self.record_bytes -= node.record_bytes();
            self.untold.remove(&(*network, *key));
        }
    }
}

impl Network {
    fn is_idle(&self) -> bool {
        self.nodes.values().all(|node| node.connection.is_none())
    }
}

impl Node {
    /// One of which nothing is known yet.
    pub(super) fn new(invite: InviteId, now: Instant) -> Self {
        Self {
            invite,
            records: BTreeMap::new(),
            carrier: None,
            connection: None,
            last_seen: now,
            left: false,
            told_away: false,
            told_at: None,
        }
    }

    pub(super) fn record_bytes(&self) -> usize {
        self.records.values().map(Vec::len).sum()
    }

    fn frames(&self, key: PublicKey, now: Instant) -> impl Iterator<Item = Bytes> {
        // As the others know it: who comes back within the grace was never away to anybody.
        let away = self.told_away && self.connection.is_none();
        let last_seen_s = if away { self.away_s(now).max(1) } else { 0 };
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

    /// Seconds since it was last heard.
    pub(super) fn away_s(&self, now: Instant) -> u32 {
        let away = now.saturating_duration_since(self.last_seen).as_secs();
        u32::try_from(away).unwrap_or(u32::MAX)
    }
}
