//! Records of nodes that do not come by themselves: a member carries them. They are signed by their
//! nodes and sealed, so the service believes nobody; what it bounds is the room they take, and a key
//! that has ever proved itself speaks for itself alone.

use std::time::Instant;

use axum::body::Bytes;

use super::registry::{Audience, Network, Node, Registry};
use crate::protocol::{
    CarryRefusal, ErrorCode, InviteId, NetworkId, PublicKey, RecordKind, RevocationList,
    ServerFrame,
};

/// By which connection a node's records were carried last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Carrier {
    key: PublicKey,
    connection: u64,
}

/// A record that is carried.
pub(super) struct Carried {
    /// Whose it is.
    pub(super) key: PublicKey,
    pub(super) kind: RecordKind,
    pub(super) sealed: Vec<u8>,
}

impl Registry {
    /// Replaces a record that `by` carries, and tells everyone else. What is not taken is said to `by`,
    /// and its connection goes on.
    pub(super) fn carry(
        &mut self,
        network_id: &NetworkId,
        by: PublicKey,
        id: u64,
        carried: Carried,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        let own = self
            .connected(network_id, &by, id)
            .ok_or(ErrorCode::Replaced)?;
        let invite = own.invite;
        let carrier = Carrier {
            key: by,
            connection: id,
        };
        let (key, kind) = (carried.key, carried.kind);
        let news = match self.keep_carried(network_id, carrier, invite, &carried, now) {
            Ok(news) => news,
            Err(why) => {
                tracing::debug!(event = "not-carried", %key, %by, reason = why.as_str());
                let frame = ServerFrame::NotCarried { key, kind, why }.encode();
                if let Some(own) = self.connected(network_id, &by, id)
                    && let Some(connection) = &own.connection
                {
                    // One whose queue is full is put out by the next record.
                    let _ = connection.outgoing.try_send(Bytes::from(frame));
                }
                return Ok(());
            }
        };
        if news {
            let frame = ServerFrame::Record {
                key,
                kind,
                last_seen_s: 0,
                sealed: carried.sealed,
            };
            let frame = Bytes::from(frame.encode());
            self.fan_out(network_id, Audience::AllBut(&by), &frame, now);
        }
        Ok(())
    }

    /// Whether it says something new.
    fn keep_carried(
        &mut self,
        network_id: &NetworkId,
        carrier: Carrier,
        invite: InviteId,
        carried: &Carried,
        now: Instant,
    ) -> Result<bool, CarryRefusal> {
        let Carried { key, kind, sealed } = carried;
        if self.is_revoked(network_id, key, &invite) {
            return Err(CarryRefusal::Revoked);
        }
        if let Some(network) = self.networks.get(network_id)
            && let Some(node) = network.nodes.get(key)
        {
            match node.carrier {
                None => return Err(CarryRefusal::Proven),
                Some(other) if other.key != carrier.key && network.is_held(node) => {
                    return Err(CarryRefusal::Taken);
                }
                Some(_) => {}
            }
        }
        self.make_room_for_carried(network_id, carrier, carried)?;
        self.make_room(network_id, key)
            .map_err(|_| CarryRefusal::Full)?;
        let full = self.record_bytes + sealed.len() > self.limits.record_bytes;
        if full && !self.evict_until(sealed.len()) {
            return Err(CarryRefusal::Full);
        }
        // The node itself may have been among those that went.
        let network = self
            .networks
            .get_mut(network_id)
            .ok_or(CarryRefusal::Full)?;
        let node = network
            .nodes
            .entry(*key)
            .or_insert_with(|| Node::new(invite, now));
        node.invite = invite;
        node.carrier = Some(carrier);
        node.last_seen = now;
        let before = node.records.insert(*kind, sealed.clone());
        self.record_bytes += sealed.len();
        self.record_bytes -= before.as_ref().map_or(0, Vec::len);
        Ok(before.as_ref() != Some(sealed))
    }

    /// Keeps a member within its bounds. What its earlier connections carried and this one has not
    /// gives way.
    fn make_room_for_carried(
        &mut self,
        network_id: &NetworkId,
        carrier: Carrier,
        carried: &Carried,
    ) -> Result<(), CarryRefusal> {
        loop {
            let Some(network) = self.networks.get(network_id) else {
                return Ok(());
            };
            let (mut keys, mut bytes, mut stale) = (1, carried.sealed.len(), None);
            for (key, node) in &network.nodes {
                let Some(of) = node.carrier.filter(|of| of.key == carrier.key) else {
                    continue;
                };
                if *key == carried.key {
                    let others = node
                        .records
                        .iter()
                        .filter(|(kind, _)| **kind != carried.kind);
                    bytes += others.map(|(_, sealed)| sealed.len()).sum::<usize>();
                    continue;
                }
                keys += 1;
                bytes += node.record_bytes();
                if of.connection != carrier.connection {
                    let this = (node.last_seen, *key);
                    stale =
                        Some(stale.map_or(this, |oldest: (Instant, PublicKey)| oldest.min(this)));
                }
            }
            if keys <= self.limits.carried_keys && bytes <= self.limits.carried_bytes {
                return Ok(());
            }
            let (_, oldest) = stale.ok_or(CarryRefusal::TooMuch)?;
            self.forget(network_id, &oldest);
        }
    }
}

impl Network {
    /// Whether somebody who is connected carries for this node now.
    pub(super) fn is_held(&self, node: &Node) -> bool {
        let of = node.carrier.and_then(|carrier| {
            let own = self.nodes.get(&carrier.key)?.connection.as_ref()?;
            Some(own.id == carrier.connection)
        });
        of == Some(true)
    }
}

impl Node {
    /// Whether the list puts it out, or who carries for it.
    pub(super) fn is_refused_by(&self, list: &RevocationList, key: &PublicKey) -> bool {
        let by = self.carrier.map(|carrier| carrier.key);
        list.refuses_by(key, &self.invite) || by.is_some_and(|by| list.nodes().contains(&by))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::protocol::AdminKey;
    use crate::server::Limits;
    use crate::server::registry::{Joined, Kick, Member};

    const KIND: RecordKind = RecordKind::Advert;

    fn admin() -> AdminKey {
        AdminKey::from_seed(&[1; 32])
    }

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn registry(change: impl FnOnce(&mut Limits)) -> Registry {
        let mut limits = Limits::default();
        change(&mut limits);
        Registry::new(limits)
    }

    fn join(registry: &mut Registry, n: u8) -> Joined {
        let member = Member {
            network: admin().network_id(),
            key: key(n),
            invite: InviteId([n; 32]),
            listed: true,
            hears_presence: true,
        };
        registry.join(member, Instant::now()).unwrap()
    }

    fn leave(registry: &mut Registry, n: u8, joined: &Joined, now: Instant) {
        let network = admin().network_id();
        registry.leave(&network, &key(n), joined.id, (now, true), now);
    }

    fn carry(registry: &mut Registry, by: u8, joined: &Joined, whose: u8, sealed: &[u8]) {
        let carried = Carried {
            key: key(whose),
            kind: KIND,
            sealed: sealed.to_vec(),
        };
        let network = admin().network_id();
        registry
            .carry(&network, key(by), joined.id, carried, Instant::now())
            .unwrap();
    }

    fn heard(joined: &mut Joined) -> Vec<ServerFrame> {
        let frames = std::iter::from_fn(|| joined.outgoing.try_recv().ok());
        frames
            .map(|frame| ServerFrame::decode(&frame).unwrap())
            .collect()
    }

    /// What a node is told of the others when it joins.
    fn present(joined: &Joined) -> Vec<ServerFrame> {
        let frames = joined.present.iter();
        frames
            .map(|frame| ServerFrame::decode(frame).unwrap())
            .collect()
    }

    fn record(whose: u8, sealed: &[u8]) -> ServerFrame {
        ServerFrame::Record {
            key: key(whose),
            kind: KIND,
            last_seen_s: 0,
            sealed: sealed.to_vec(),
        }
    }

    fn not_carried(whose: u8, why: CarryRefusal) -> ServerFrame {
        ServerFrame::NotCarried {
            key: key(whose),
            kind: KIND,
            why,
        }
    }

    fn bytes(registry: &Registry) -> usize {
        registry.gauges()[4].2
    }

    fn carried(registry: &Registry) -> usize {
        registry.gauges()[5].2
    }

    #[test]
    fn what_is_carried_reaches_all_others_once_and_outlives_its_carrier() {
        let mut registry = registry(|_| {});
        let (mut bridge, mut other) = (join(&mut registry, 1), join(&mut registry, 2));
        for _ in 0..2 {
            carry(&mut registry, 1, &bridge, 9, b"a");
        }
        assert_eq!(heard(&mut other), [record(9, b"a")]);
        assert_eq!(heard(&mut bridge), [], "its own");
        let later = Instant::now() + registry.limits.presence_grace * 2;
        leave(&mut registry, 1, &bridge, later);
        registry.tell_presence(later);
        let told = heard(&mut other);
        let [ServerFrame::Presence(gone)] = told.as_slice() else {
            panic!("{told:?}");
        };
        assert_eq!(gone.len(), 1, "the bridge alone");
        assert_eq!(gone[0].0, key(1));
        let late = join(&mut registry, 3);
        assert_eq!(present(&late), [record(9, b"a")], "as connected as before");
        assert_eq!((bytes(&registry), carried(&registry)), (1, 1));
    }

    #[test]
    fn who_has_proved_itself_is_not_carried_for() {
        let mut registry = registry(|_| {});
        let mut bridge = join(&mut registry, 1);
        let node = join(&mut registry, 9);
        carry(&mut registry, 1, &bridge, 9, b"a");
        assert_eq!(heard(&mut bridge), [not_carried(9, CarryRefusal::Proven)]);
        leave(&mut registry, 9, &node, Instant::now());
        carry(&mut registry, 1, &bridge, 9, b"a");
        carry(&mut registry, 1, &bridge, 1, b"a");
        let told = [9, 1].map(|n| not_carried(n, CarryRefusal::Proven));
        assert_eq!(
            heard(&mut bridge),
            told,
            "while it is known; nor for itself"
        );
        assert_eq!(bytes(&registry), 0);
    }

    #[test]
    fn an_owner_that_comes_gets_what_was_carried_and_replaces_it() {
        let mut registry = registry(|_| {});
        let mut bridge = join(&mut registry, 1);
        carry(&mut registry, 1, &bridge, 9, b"carried");
        let owner = join(&mut registry, 9);
        let own = ServerFrame::decode(&owner.present[0]);
        assert_eq!(own, Ok(record(9, b"carried")), "its count goes on above it");
        assert_eq!((bytes(&registry), carried(&registry)), (0, 0));
        let (network, now) = (admin().network_id(), Instant::now());
        let own = b"own".to_vec();
        registry
            .publish(&network, key(9), owner.id, KIND, own, now)
            .unwrap();
        carry(&mut registry, 1, &bridge, 9, b"late");
        let told = [record(9, b"own"), not_carried(9, CarryRefusal::Proven)];
        assert_eq!(heard(&mut bridge), told);
        assert_eq!(bytes(&registry), 3);
    }

    #[test]
    fn a_key_has_one_carrier_that_is_connected() {
        let mut registry = registry(|_| {});
        let bridge = join(&mut registry, 1);
        let mut rival = join(&mut registry, 2);
        carry(&mut registry, 1, &bridge, 9, b"a");
        carry(&mut registry, 2, &rival, 9, b"b");
        let told = [record(9, b"a"), not_carried(9, CarryRefusal::Taken)];
        assert_eq!(heard(&mut rival), told);
        leave(&mut registry, 1, &bridge, Instant::now());
        carry(&mut registry, 2, &rival, 9, b"b");
        assert_eq!(heard(&mut rival), []);
        let late = join(&mut registry, 3);
        assert_eq!(ServerFrame::decode(&late.present[0]), Ok(record(9, b"b")));
    }

    #[test]
    fn a_member_carries_so_many_keys_and_bytes_and_its_earlier_ones_give_way() {
        let mut registry = registry(|limits| {
            limits.carried_keys = 2;
            limits.carried_bytes = 10;
        });
        let mut bridge = join(&mut registry, 1);
        carry(&mut registry, 1, &bridge, 8, b"1234");
        carry(&mut registry, 1, &bridge, 9, b"1234");
        carry(&mut registry, 1, &bridge, 10, b"1");
        carry(&mut registry, 1, &bridge, 9, b"1234567");
        carry(&mut registry, 1, &bridge, 9, b"123456");
        let told = [10, 9].map(|n| not_carried(n, CarryRefusal::TooMuch));
        assert_eq!(heard(&mut bridge), told);
        assert_eq!((bytes(&registry), carried(&registry)), (10, 2));
        // After a reconnect the nodes that are no more make room for those that are.
        leave(&mut registry, 1, &bridge, Instant::now());
        let mut bridge = join(&mut registry, 1);
        carry(&mut registry, 1, &bridge, 9, b"123456");
        carry(&mut registry, 1, &bridge, 10, b"1");
        assert_eq!(heard(&mut bridge), []);
        assert_eq!((bytes(&registry), carried(&registry)), (7, 2));
        let late = join(&mut registry, 3);
        assert_eq!(present(&late), [record(9, b"123456"), record(10, b"1")]);
    }

    #[test]
    fn a_full_service_says_so_and_who_is_carried_now_goes_last() {
        let mut registry = registry(|limits| limits.nodes_per_network = 3);
        let mut bridge = join(&mut registry, 1);
        carry(&mut registry, 1, &bridge, 9, b"a");
        let away = join(&mut registry, 2);
        let later = Instant::now() + std::time::Duration::from_secs(1);
        leave(&mut registry, 2, &away, later);
        let _third = join(&mut registry, 3);
        assert_eq!(carried(&registry), 1, "who is away went, though later");
        let _fourth = join(&mut registry, 4);
        assert_eq!(carried(&registry), 0, "who comes by itself has a place");
        heard(&mut bridge);
        carry(&mut registry, 1, &bridge, 9, b"a");
        assert_eq!(heard(&mut bridge), [not_carried(9, CarryRefusal::Full)]);

        let mut registry = self::registry(|limits| limits.record_bytes = 3);
        let mut bridge = join(&mut registry, 1);
        carry(&mut registry, 1, &bridge, 9, b"1234");
        assert_eq!(heard(&mut bridge), [not_carried(9, CarryRefusal::Full)]);
        carry(&mut registry, 1, &bridge, 9, b"123");
        carry(&mut registry, 1, &bridge, 8, b"12");
        assert_eq!((heard(&mut bridge), bytes(&registry)), (vec![], 2));
    }

    #[test]
    fn revoked_keys_are_not_carried_and_what_a_revoked_member_carried_goes() {
        let network = admin().network_id();
        let list = |sequence, nodes: &[PublicKey], invites: &[InviteId]| {
            let invites: BTreeSet<_> = invites.iter().copied().collect();
            let nodes = nodes.iter().copied().collect();
            RevocationList::sign(&admin(), sequence, nodes, invites).unwrap()
        };
        let mut registry = registry(|_| {});
        let (mut bridge, second) = (join(&mut registry, 1), join(&mut registry, 2));
        carry(&mut registry, 1, &bridge, 8, b"a");
        carry(&mut registry, 1, &bridge, 9, b"a");
        carry(&mut registry, 2, &second, 7, b"a");
        let now = Instant::now();
        assert!(registry.revoke(network, list(1, &[key(9)], &[]), true, now));
        assert_eq!(carried(&registry), 2);
        heard(&mut bridge);
        carry(&mut registry, 1, &bridge, 9, b"b");
        assert_eq!(heard(&mut bridge), [not_carried(9, CarryRefusal::Revoked)]);
        let both = list(2, &[key(9), key(1)], &[InviteId([2; 32])]);
        assert!(registry.revoke(network, both, true, now));
        assert_eq!(
            bridge.kicked.try_recv(),
            Ok(Kick::Refused(ErrorCode::Revoked))
        );
        assert_eq!((bytes(&registry), carried(&registry)), (0, 0));
    }

    #[test]
    fn an_older_connection_carries_no_more() {
        let mut registry = registry(|_| {});
        let old = join(&mut registry, 1);
        let _new = join(&mut registry, 1);
        let carried = Carried {
            key: key(9),
            kind: KIND,
            sealed: vec![1],
        };
        let network = admin().network_id();
        let done = registry.carry(&network, key(1), old.id, carried, Instant::now());
        assert_eq!(done, Err(ErrorCode::Replaced));
    }
}
