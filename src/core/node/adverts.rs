//! Peers come and go by their adverts.

use std::time::Instant;

use wice_signaling::protocol::{
    Advert, Membership, PublicKey, RecordError, RevocationList, Session,
};

use super::peer::{MAX_AGENTS, Peer, Slot};
use super::scheduler::{AgentRef, Timer};
use super::{Admission, Event, Node, PeerId};
use crate::core::credentials::{End, derive};
use crate::core::ice::{Agent, AgentConfig, Nomination, Role};

/// The most peers of one node.
const MAX_PEERS: usize = 4096;

/// What a record has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordOutcome {
    /// The peer's advert is newer than the one before.
    Updated(PeerId),
    /// It is our own, read back.
    Own,
    /// We have it already.
    Known,
}

/// Why a record was refused; each is counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordRefusal {
    /// Malformed, or not signed by the key that it names.
    #[error("the record is malformed or forged: {0}")]
    Invalid(#[from] RecordError),
    /// The key is not a peer of this WireGuard interface.
    #[error("{0} is not a peer of this interface: add it there first")]
    Stranger(PublicKey),
    /// The proof of membership does not hold.
    #[error("{0} does not prove to be a member of this network")]
    NotMember(PublicKey),
    /// The node or its invite was revoked.
    #[error("{0} was revoked")]
    Revoked(PublicKey),
    /// Its sequence is lower than that of the advert that we have.
    #[error("{0} sent an old advert again")]
    Stale(PublicKey),
    /// The key cannot be used for a key agreement.
    #[error("{0} is not a usable WireGuard key")]
    WeakKey(PublicKey),
    /// More peers than a node keeps.
    #[error("more than {MAX_PEERS} peers")]
    TooMany,
}

impl Node {
    /// A signed advert, from signaling or from the state folder. `now` is the only clock: UNIX time
    /// never gates acceptance.
    pub fn handle_advert(
        &mut self,
        record: &[u8],
        now: Instant,
    ) -> Result<RecordOutcome, RecordRefusal> {
        self.now = now;
        let outcome = self.accept(record);
        match &outcome {
            Ok(_) => self.counters.adverts_accepted += 1,
            Err(_) => self.counters.adverts_refused += 1,
        }
        self.pump();
        outcome
    }

    /// Attached mode: this key is on the interface.
    pub fn add_peer(&mut self, key: PublicKey, now: Instant) -> Result<PeerId, RecordRefusal> {
        self.now = now;
        match self.by_key.get(&key) {
            Some(peer) => Ok(*peer),
            None => self.new_peer(key),
        }
    }

    /// The key is no longer a peer.
    pub fn remove_peer(&mut self, key: &PublicKey, now: Instant) {
        self.now = now;
        let Some(id) = self.by_key.remove(key) else {
            return;
        };
        self.by_hash.remove(&key.key_hash());
        self.let_go(id);
        self.peers.remove(&id);
    }

    /// A verified revocation list: revoked peers are gone at once. In attached mode their WireGuard peers are
    /// somebody else's: they stay known as revoked. Returns whether it is news.
    pub fn handle_revocations(&mut self, list: RevocationList, now: Instant) -> bool {
        self.now = now;
        if self
            .revoked
            .as_ref()
            .is_some_and(|known| known.sequence() >= list.sequence())
        {
            return false;
        }
        let network = self.network();
        let revoked: Vec<(PeerId, PublicKey)> = self
            .peers
            .values()
            .filter(|peer| match (&peer.advert, network) {
                (Some(advert), Some(network)) => {
                    Membership::decode_verified(&advert.membership, &network, &peer.key)
                        .map_or(true, |membership| list.refuses(&peer.key, &membership))
                }
                (Some(advert), None) => refuses(&list, &peer.key, &advert.membership),
                (None, _) => list.nodes().contains(&peer.key),
            })
            .map(|peer| (peer.id, peer.key))
            .collect();
        self.revoked = Some(list);
        for (id, key) in revoked {
            match self.admission {
                Admission::Members(_) => self.remove_peer(&key, now),
                Admission::Added | Admission::AddedIn(_) => self.shut_out(id),
            }
        }
        true
    }

    /// What a peer has published last.
    pub fn advert_of(&self, peer: PeerId) -> Option<&Advert> {
        self.peers.get(&peer)?.advert.as_ref()
    }

    fn accept(&mut self, record: &[u8]) -> Result<RecordOutcome, RecordRefusal> {
        let advert = Advert::decode_verified(record)?;
        let key = advert.key;
        if key == self.own.key {
            let same_session = advert.session == self.own.session;
            self.publisher
                .read_back(advert.sequence, same_session, self.now);
            return Ok(RecordOutcome::Own);
        }
        let known = self.by_key.get(&key).copied();
        match self.admission {
            Admission::Added | Admission::AddedIn(_) => {
                if known.is_none() {
                    return Err(RecordRefusal::Stranger(key));
                }
                let claim = &advert.membership;
                if let Admission::AddedIn(network) = self.admission
                    && !claim.is_empty()
                    && Membership::decode_verified(claim, &network, &key).is_err()
                {
                    return Err(RecordRefusal::NotMember(key));
                }
                let list = self.revoked.as_ref();
                let refused = list.is_some_and(|list| refuses(list, &key, &advert.membership));
                if let Some(id) = known.filter(|_| refused) {
                    self.shut_out(id);
                    return Err(RecordRefusal::Revoked(key));
                }
            }
            Admission::Members(network) => {
                let membership = Membership::decode_verified(&advert.membership, &network, &key)
                    .map_err(|_| RecordRefusal::NotMember(key))?;
                if self
                    .revoked
                    .as_ref()
                    .is_some_and(|list| list.refuses(&key, &membership))
                {
                    return Err(RecordRefusal::Revoked(key));
                }
            }
        }
        let id = match known {
            Some(id) => id,
            None => self.new_peer(key)?,
        };
        let Some(peer) = self.peers.get_mut(&id) else {
            return Err(RecordRefusal::TooMany);
        };
        if let Some(before) = &peer.advert {
            if advert == *before {
                return Ok(RecordOutcome::Known);
            }
            if advert.sequence <= before.sequence || peer.is_superseded(advert.session) {
                return Err(RecordRefusal::Stale(key));
            }
        }
        self.apply(id, advert);
        Ok(RecordOutcome::Updated(id))
    }

    fn apply(&mut self, id: PeerId, advert: Advert) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let session = advert.session;
        let before = peer.advert.replace(advert).map(|before| before.session);
        if let Some(before) = before.filter(|before| *before != session) {
            peer.supersede(before);
        }
        let candidates = peer.remote_candidates(&self.excluded);
        let agent = match peer.slots.iter_mut().find(|slot| slot.session == session) {
            Some(slot) => {
                slot.provisional = false;
                slot.agent.set_remote_candidates(&candidates);
                slot.agent.suspect_withdrawn(self.now);
                AgentRef {
                    peer: id,
                    generation: slot.generation,
                }
            }
            None => self.start_agent(id, session, false),
        };
        self.ask_permissions(agent);
        self.touch(agent);
    }

    fn new_peer(&mut self, key: PublicKey) -> Result<PeerId, RecordRefusal> {
        if self.peers.len() >= MAX_PEERS {
            return Err(RecordRefusal::TooMany);
        }
        let shared = self
            .key
            .diffie_hellman(&key)
            .ok_or(RecordRefusal::WeakKey(key))?;
        let id = PeerId(self.next_peer);
        self.next_peer += 1;
        self.peers.insert(id, Peer::new(id, key, shared, self.now));
        self.by_key.insert(key, id);
        self.by_hash.insert(key.key_hash(), id);
        self.events.push(Event::PeerAdded { peer: id, key });
        let list = self.revoked.as_ref();
        if list.is_some_and(|list| list.nodes().contains(&key)) {
            self.shut_out(id);
        }
        Ok(id)
    }

    /// The peer was revoked, and whoever owns the interface has it still.
    fn shut_out(&mut self, id: PeerId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut peer.revoked, true) {
            return;
        }
        peer.path.select(None, now);
        self.let_go(id);
        self.events.push(Event::PathChanged { peer: id, at: now });
    }

    /// Nothing is done for the peer any more.
    fn let_go(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let key = peer.key;
        let wishes = std::mem::take(&mut peer.wishes);
        let slots = std::mem::take(&mut peer.slots);
        self.scheduler.arm(Timer::Path(id), None);
        for (relay, address) in wishes {
            self.relays.unwish(relay, address, id);
        }
        for slot in slots {
            self.retire(AgentRef {
                peer: id,
                generation: slot.generation,
            });
        }
        self.events.push(Event::PeerRemoved { peer: id, key });
    }

    /// Starts an agent towards a session of the peer, beside the one that is there.
    pub(super) fn start_agent(
        &mut self,
        id: PeerId,
        session: Session,
        provisional: bool,
    ) -> AgentRef {
        let generation = self.next_generation;
        self.next_generation += 1;
        let agent = AgentRef {
            peer: id,
            generation,
        };
        let seed = self.next_seed();
        let now = self.now;
        let bases: Vec<_> = self.bases.iter().cloned().collect();
        let Some(peer) = self.peers.get_mut(&id) else {
            return agent;
        };
        let theirs = End {
            key: peer.key,
            session,
        };
        let (local, remote) = derive(&peer.shared, &self.own, &theirs);
        let role = if self.own.key > peer.key {
            Role::Controlling
        } else {
            Role::Controlled
        };
        let mut engine = Agent::new(AgentConfig {
            local,
            remote: Some(remote),
            role,
            nomination: Nomination::Repeated,
            seed,
        });
        engine.set_traffic(peer.path.has_traffic(self.now), self.now);
        engine.set_away(peer.is_away(now));
        for base in bases {
            engine.set_base(base);
        }
        if peer
            .advert
            .as_ref()
            .is_some_and(|advert| advert.session == session)
        {
            engine.set_remote_candidates(&peer.remote_candidates(&self.excluded));
        }
        let evicted = (peer.slots.len() >= MAX_AGENTS).then(|| {
            // The oldest that is not the only one with a working pair.
            let works = |slot: &Slot| slot.agent.pairs().any(|pair| pair.is_valid());
            let idle = peer
                .slots
                .iter()
                .position(|slot| slot.provisional || !works(slot));
            peer.slots.remove(idle.unwrap_or(0)).generation
        });
        peer.slots.push(Slot {
            generation,
            session,
            agent: engine,
            started: now,
            provisional,
        });
        if let Some(generation) = evicted {
            self.retire(AgentRef {
                peer: id,
                generation,
            });
        }
        agent
    }

    /// An agent has a working pair: those before it end, and a session that was only heard of by
    /// checks is the peer's present one.
    pub(super) fn promote(&mut self, at: AgentRef) {
        let Some(peer) = self.peers.get_mut(&at.peer) else {
            return;
        };
        let Some(slot) = peer.slot_mut(at.generation) else {
            return;
        };
        slot.provisional = false;
        let (older, slots): (Vec<Slot>, Vec<Slot>) = std::mem::take(&mut peer.slots)
            .into_iter()
            .partition(|slot| slot.generation < at.generation);
        peer.slots = slots;
        for slot in &older {
            peer.supersede(slot.session);
        }
        for slot in older {
            self.retire(AgentRef {
                peer: at.peer,
                generation: slot.generation,
            });
        }
    }

    /// All agents, by peer.
    pub(super) fn agents(&self) -> Vec<AgentRef> {
        let of = |peer: &Peer| {
            let id = peer.id;
            peer.slots
                .iter()
                .map(move |slot| AgentRef {
                    peer: id,
                    generation: slot.generation,
                })
                .collect::<Vec<_>>()
        };
        self.peers.values().flat_map(of).collect()
    }

    /// Forgets what the node keeps for an agent that is gone.
    fn retire(&mut self, agent: AgentRef) {
        self.scheduler.remove(agent);
        self.transactions.retain(|_, owner| *owner != agent);
    }
}

/// Whether the list puts out the node of `key`, by itself or by the invite that its advert names. Its own word
/// for that is enough: who hides a revoked invite is refused by the service.
fn refuses(list: &RevocationList, key: &PublicKey, membership: &[u8]) -> bool {
    list.nodes().contains(key)
        || Membership::claimed_invite(membership).is_some_and(|id| list.refuses_by(key, &id))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use wice_signaling::protocol::{AdminKey, Invite, NatBehavior, PrivateKey};

    use super::*;
    use crate::core::node::NodeConfig;

    fn key() -> PrivateKey {
        PrivateKey::from_bytes([2; 32])
    }

    fn admin(seed: u8) -> AdminKey {
        AdminKey::from_seed(&[seed; 32])
    }

    fn node(admission: Admission) -> Node {
        let config = NodeConfig {
            key: PrivateKey::from_bytes([1; 32]),
            session: Session([1; 16]),
            sequence: 0,
            name: "own".to_owned(),
            admission,
            membership: Vec::new(),
            seed: [3; 32],
        };
        Node::new(config, Instant::now())
    }

    fn record(membership: Vec<u8>, sequence: u64) -> Vec<u8> {
        let advert = Advert {
            key: key().public_key(),
            session: Session([2; 16]),
            sequence,
            name: "n1".to_owned(),
            nat: NatBehavior::default(),
            candidates: Vec::new(),
            membership,
        };
        advert.encode_signed(&key(), &[4; 64]).unwrap()
    }

    fn membership(of: &AdminKey) -> Vec<u8> {
        let invite = Invite::new(of, &[5; 32], 1_800_000_000, "", &[]).unwrap();
        invite
            .sign_member(&of.network_id(), &key().public_key())
            .encode()
    }

    fn handle(node: &mut Node, record: &[u8]) -> Result<(), RecordRefusal> {
        node.handle_advert(record, Instant::now()).map(drop)
    }

    #[test]
    fn a_managed_node_takes_members_alone() {
        let mut node = node(Admission::Members(admin(1).network_id()));
        let refused = Err(RecordRefusal::NotMember(key().public_key()));
        assert_eq!(handle(&mut node, &record(Vec::new(), 1)), refused);
        assert_eq!(
            handle(&mut node, &record(membership(&admin(9)), 1)),
            refused
        );
        assert_eq!(handle(&mut node, &record(membership(&admin(1)), 1)), Ok(()));
        assert_eq!(handle(&mut node, &record(Vec::new(), 2)), refused);
    }

    #[test]
    fn an_attached_node_takes_its_peers_unless_they_claim_what_is_wrong() {
        let network = admin(1).network_id();
        let mut node = node(Admission::AddedIn(network));
        let whose = key().public_key();
        let stranger = Err(RecordRefusal::Stranger(whose));
        assert_eq!(handle(&mut node, &record(Vec::new(), 1)), stranger);
        node.add_peer(whose, Instant::now()).unwrap();
        assert_eq!(handle(&mut node, &record(Vec::new(), 1)), Ok(()));
        assert_eq!(handle(&mut node, &record(membership(&admin(1)), 2)), Ok(()));
        let refused = Err(RecordRefusal::NotMember(whose));
        for wrong in [membership(&admin(9)), vec![7; 20]] {
            assert_eq!(handle(&mut node, &record(wrong, 3)), refused);
        }
        let nodes = BTreeSet::from([whose]);
        let list = RevocationList::sign(&admin(1), 1, nodes, BTreeSet::new()).unwrap();
        assert!(node.handle_revocations(list, Instant::now()));
        let refused = Err(RecordRefusal::Revoked(whose));
        assert_eq!(handle(&mut node, &record(Vec::new(), 4)), refused);
    }
}
