//! What the bridge between a signaling service and a cluster decides: of machines outside, which adverts stand at which Peer
//! objects; of the cluster's Nodes, which adverts are carried to the service. Adverts pass as their nodes have signed them:
//! the bridge can withhold them, and can neither make nor alter one.

mod carrying;
mod peers;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use wice_signaling::protocol::{
    Advert, CarryRefusal, InviteId, Membership, NetworkId, NetworkKey, PublicKey, RecordKind,
    RevocationList,
};

use super::annotation::decode_at;
use super::{Change, Names, Object, ObjectName, Objects, Publisher, Refusal, Source};

/// Members whose adverts are kept, for Peers that are made later: as many as a node keeps. Past them the first come stay.
const MAX_MEMBERS: usize = 4096;

/// What the service has comes at once after its welcome, and what is there need not be sealed anew, which would be news to all.
const LOOK_FIRST: Duration = Duration::from_secs(2);

/// The network that is bridged.
#[derive(Clone, Debug)]
pub struct Bridged {
    /// Its id.
    pub network: NetworkId,
    /// What its records are sealed under.
    pub network_key: NetworkKey,
    /// The bridge itself, a member.
    pub own: PublicKey,
}

/// A record to carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry {
    /// Whose.
    pub key: PublicKey,
    /// Sealed.
    pub sealed: Vec<u8>,
}

/// An annotation to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerWrite {
    /// Of this Peer.
    pub peer: String,
    /// None to take it away.
    pub value: Option<String>,
}

/// What its operator should know, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// All that can be carried is, for so many Nodes.
    Carrying {
        /// Nodes.
        nodes: usize,
    },
    /// The service does not carry for this Node.
    NotCarried {
        /// Its name.
        node: String,
        /// Why.
        why: CarryRefusal,
    },
    /// What stands at this Node is not what its key has signed.
    NotOfItsKey {
        /// Its name.
        node: String,
        /// Why, for people.
        why: String,
    },
    /// A Peer has its machine's advert.
    Wrote {
        /// Its name.
        peer: String,
    },
    /// A Peer's advert was taken away: its machine is revoked.
    Cleared {
        /// Its name.
        peer: String,
    },
}

/// For metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes whose advert the service has taken.
    pub carried: usize,
    /// Nodes with an advert of their own.
    pub nodes: usize,
    /// Peers.
    pub peers: usize,
    /// Peers with an advert of their own key.
    pub peers_with_advert: usize,
    /// Members whose adverts the service has told.
    pub members: usize,
}

/// A member's advert, as the service told it.
#[derive(Debug)]
struct Told {
    sequence: u64,
    invite: Option<InviteId>,
    record: Vec<u8>,
    sealed: Vec<u8>,
}

/// A Node's advert, as it stands there.
#[derive(Debug)]
struct Standing {
    node: String,
    text: String,
    sequence: u64,
    record: Vec<u8>,
    sealed: Option<Vec<u8>>,
    /// On this connection.
    carried: bool,
    refused: Option<CarryRefusal>,
    /// When it is tried once more.
    again: Option<Instant>,
    tried_again: bool,
}

/// A Peer object.
#[derive(Debug)]
struct Peer {
    key: Option<PublicKey>,
    /// The annotation, and what it is if its key has signed it.
    text: Option<String>,
    advert: Option<(PublicKey, u64, Option<InviteId>)>,
    publisher: Publisher,
}

/// The service, while it is connected.
#[derive(Debug)]
struct Service {
    carries: bool,
    begin: Instant,
    /// When the whole burst may be carried again.
    full_at: Instant,
}

/// The bridge. Objects, records and instants come in; records to carry and annotations to write go out.
#[derive(Debug)]
pub struct Bridge {
    bridged: Bridged,
    objects: Objects,
    rng: ChaCha8Rng,
    members: BTreeMap<PublicKey, Told>,
    nodes: BTreeMap<PublicKey, Standing>,
    /// Texts at Nodes that are no adverts of theirs, said already.
    wrong: BTreeMap<String, String>,
    peers: BTreeMap<String, Peer>,
    revoked: Option<RevocationList>,
    service: Option<Service>,
    writing: Option<PeerWrite>,
    carrying: usize,
    news: VecDeque<News>,
}

impl Bridge {
    /// Knows nothing yet. `seed` is 32 random bytes.
    #[must_use]
    pub fn new(bridged: Bridged, names: Names, seed: [u8; 32]) -> Self {
        Self {
            bridged,
            objects: Objects::new(names),
            rng: ChaCha8Rng::from_seed(seed),
            members: BTreeMap::new(),
            nodes: BTreeMap::new(),
            wrong: BTreeMap::new(),
            peers: BTreeMap::new(),
            revoked: None,
            service: None,
            writing: None,
            carrying: 0,
            news: VecDeque::new(),
        }
    }

    /// A list of objects begins.
    pub fn handle_list(&mut self, source: Source) {
        self.objects.handle_list(source);
    }

    /// An object, listed or changed.
    pub fn handle_object(&mut self, source: Source, object: Object<'_>, now: Instant) {
        self.objects.handle_object(source, object);
        let name = ObjectName {
            source,
            name: object.name.to_owned(),
        };
        self.drain(now);
        match source {
            Source::Nodes => self.look_at_node(&name),
            Source::Peers => self.look_at_peer(&name, now),
        }
    }

    /// An object was deleted.
    pub fn handle_deleted(&mut self, source: Source, name: &str, now: Instant) {
        self.objects.handle_deleted(source, name);
        self.drain(now);
    }

    /// The list is complete; the API answers.
    pub fn handle_listed(&mut self, source: Source, now: Instant) {
        self.objects.handle_listed(source);
        self.drain(now);
        if source == Source::Peers {
            for peer in self.peers.values_mut() {
                peer.publisher.handle_connected(now);
            }
        }
    }

    /// The service has let the bridge in; `carries` says whether it takes what is carried.
    pub fn handle_connected(&mut self, carries: bool, now: Instant) {
        self.service = Some(Service {
            carries,
            begin: now + LOOK_FIRST,
            full_at: now,
        });
    }

    /// The service is away. It may have forgotten everything when it is back.
    pub fn handle_disconnected(&mut self) {
        self.service = None;
        for standing in self.nodes.values_mut() {
            standing.carried = false;
            standing.refused = None;
            standing.again = None;
            standing.tried_again = false;
        }
    }

    /// A record of a node, as the service has it. What does not hold is not heeded; gives why.
    pub fn handle_record(
        &mut self,
        key: PublicKey,
        kind: RecordKind,
        sealed: Vec<u8>,
        now: Instant,
    ) -> Result<(), String> {
        if kind != RecordKind::Advert || key == self.bridged.own {
            return Ok(());
        }
        let Bridged {
            network,
            network_key,
            ..
        } = &self.bridged;
        let record = network_key.open(network, &key, kind, &sealed);
        let record = record.map_err(|error| error.to_string())?;
        let advert = Advert::decode_verified(&record).map_err(|error| error.to_string())?;
        if advert.key != key {
            return Err("it is another node's".to_owned());
        }
        let claim = &advert.membership;
        // Who proves nothing was carried here by a bridge of another cluster: a Peer object says whether it is trusted.
        if !claim.is_empty() && Membership::decode_verified(claim, network, &key).is_err() {
            return Err("its node is no member of this network".to_owned());
        }
        let invite = Membership::claimed_invite(claim);
        if self.is_out(&key, invite) {
            return Err("its node is revoked".to_owned());
        }
        match self.members.get(&key) {
            Some(known) if advert.sequence < known.sequence => {
                return Err("a newer one is known".to_owned());
            }
            None if self.members.len() >= MAX_MEMBERS => {
                return Err(format!("more than {MAX_MEMBERS} members"));
            }
            Some(_) | None => {}
        }
        let told = Told {
            sequence: advert.sequence,
            invite,
            record,
            sealed,
        };
        self.members.insert(key, told);
        self.plan_peers(|peer| peer.key == Some(key), now);
        Ok(())
    }

    /// A verified list of revocations.
    pub fn handle_revocations(&mut self, list: RevocationList, now: Instant) {
        let known = self.revoked.as_ref();
        if known.is_some_and(|known| known.sequence() >= list.sequence()) {
            return;
        }
        self.revoked = Some(list);
        self.plan_peers(|_| true, now);
        let list = self.revoked.as_ref();
        self.members
            .retain(|key, told| !is_out(list, key, told.invite));
    }

    /// The next annotation to write now, if any; one write at a time, answered by [`Bridge::handle_written`] or
    /// [`Bridge::handle_refused`].
    pub fn poll_write(&mut self, now: Instant) -> Option<PeerWrite> {
        if self.writing.is_some() || !self.objects.is_listed(Source::Nodes) {
            return None;
        }
        let mut peers = self.peers.iter_mut();
        let write = peers.find_map(|(name, peer)| {
            let value = peer.publisher.poll_write(now)?;
            Some(PeerWrite {
                peer: name.clone(),
                value: (!value.is_empty()).then(|| value.to_owned()),
            })
        });
        self.writing.clone_from(&write);
        write
    }

    /// The write is done.
    pub fn handle_written(&mut self, now: Instant) {
        let Some(PeerWrite { peer: name, value }) = self.writing.take() else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&name) {
            peer.publisher.handle_written(now);
        }
        self.news.push_back(match value {
            Some(_) => News::Wrote { peer: name },
            None => News::Cleared { peer: name },
        });
    }

    /// It has failed.
    pub fn handle_refused(&mut self, refusal: Refusal, now: Instant) {
        if let Some(write) = self.writing.take()
            && let Some(peer) = self.peers.get_mut(&write.peer)
        {
            peer.publisher.handle_refused(refusal, now);
        }
    }

    /// When to come back.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let listed = self.writing.is_none() && self.objects.is_listed(Source::Nodes);
        let publishers = self.peers.values().filter(|_| listed);
        let write = publishers.filter_map(|peer| peer.publisher.poll_timeout());
        let told = self.counts().carried == self.carrying;
        let carry = self
            .carry_due()
            .filter(|_| self.next_to_carry().is_some() || !told);
        let again = self.nodes.values().filter_map(|standing| standing.again);
        let again = self.carry_due().zip(again.min());
        let again = again.map(|(due, again)| due.max(again));
        write.chain(carry).chain(again).min()
    }

    /// What its operator should know next.
    pub fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// For metrics.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let is_carried = |standing: &&Standing| standing.carried && standing.refused.is_none();
        let has_own = |peer: &&Peer| {
            let whose = peer.advert.as_ref().map(|(key, _, _)| *key);
            whose.is_some() && whose == peer.key
        };
        Counts {
            carried: self.nodes.values().filter(is_carried).count(),
            nodes: self.nodes.len(),
            peers: self.peers.len(),
            peers_with_advert: self.peers.values().filter(has_own).count(),
            members: self.members.len(),
        }
    }

    /// Objects that are gone.
    fn drain(&mut self, now: Instant) {
        while let Some(change) = self.objects.poll_change() {
            let Change::Facts(name) = change else {
                continue; // looked at where the object is
            };
            if self.objects.facts(&name).is_some() {
                continue;
            }
            match name.source {
                Source::Nodes => {
                    self.nodes.retain(|_, standing| standing.node != name.name);
                    self.wrong.remove(&name.name);
                    // A Peer of the same key is no longer a Node's.
                    self.plan_peers(|_| true, now);
                }
                Source::Peers => {
                    self.peers.remove(&name.name);
                }
            }
        }
    }

    fn is_out(&self, key: &PublicKey, invite: Option<InviteId>) -> bool {
        is_out(self.revoked.as_ref(), key, invite)
    }
}

fn is_out(list: Option<&RevocationList>, key: &PublicKey, invite: Option<InviteId>) -> bool {
    list.is_some_and(|list| {
        list.nodes().contains(key) || invite.is_some_and(|id| list.invites().contains(&id))
    })
}

/// The advert in an annotation, if the key that it names has signed it, and its bytes.
fn verified(source: Source, text: &str) -> Result<(Advert, Vec<u8>), String> {
    let (_, record) = decode_at(source, text).map_err(|error| error.to_string())?;
    let advert = Advert::decode_verified(&record).map_err(|error| error.to_string())?;
    Ok((advert, record))
}

#[cfg(test)]
mod tests;
