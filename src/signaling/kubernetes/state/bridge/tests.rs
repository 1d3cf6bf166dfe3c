//! What is carried, what is written, and what is not.

use std::collections::BTreeSet;

use wice_signaling::protocol::{
    AdminKey, Invite, NatBehavior, PrivateKey, SEAL_NONCE_LEN, Session,
};

use super::*;
use crate::signaling::kubernetes::state::{MeshAgent, encode, encode_at};

const ADVERT: &str = "wice.riasc.eu/advert";
const KEY: &str = "kilo.squat.ai/key";
/// Past every wait of a first write, and of what is read first.
const SETTLED: Duration = Duration::from_secs(5);

fn admin(seed: u8) -> AdminKey {
    AdminKey::from_seed(&[seed; 32])
}

fn invite(of: &AdminKey, seed: u8) -> Invite {
    Invite::new(of, &[seed; 32], 1_800_000_000, "", &[]).unwrap()
}

fn private(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn key(seed: u8) -> PublicKey {
    private(seed).public_key()
}

fn advert(seed: u8, sequence: u64, membership: Vec<u8>) -> Vec<u8> {
    let advert = Advert {
        key: key(seed),
        session: Session([seed; 16]),
        sequence,
        name: format!("n{seed}"),
        nat: NatBehavior::default(),
        candidates: Vec::new(),
        membership,
    };
    advert.encode_signed(&private(seed), &[7; 64]).unwrap()
}

/// Of a member by invite 5.
fn member(seed: u8, sequence: u64) -> Vec<u8> {
    let admin = admin(1);
    let member = invite(&admin, 5).sign_member(&admin.network_id(), &key(seed));
    advert(seed, sequence, member.encode())
}

/// Of a Node, which proves nothing.
fn node(seed: u8, sequence: u64) -> Vec<u8> {
    advert(seed, sequence, Vec::new())
}

fn network_key() -> NetworkKey {
    NetworkKey::from_bytes([9; 32])
}

fn sealed(seed: u8, record: &[u8]) -> Vec<u8> {
    let (network, nonce) = (admin(1).network_id(), [3; SEAL_NONCE_LEN]);
    let kind = RecordKind::Advert;
    network_key()
        .seal(&network, &key(seed), kind, &nonce, record)
        .unwrap()
}

struct World {
    bridge: Bridge,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let bridged = Bridged {
            network: admin(1).network_id(),
            network_key: network_key(),
            own: key(100),
        };
        Self {
            bridge: Bridge::new(bridged, Names::of(MeshAgent::Kilo), [1; 32]),
            now: Instant::now(),
        }
    }

    /// With empty lists and a service that carries.
    fn ready() -> Self {
        let mut world = Self::new();
        for source in [Source::Nodes, Source::Peers] {
            world.bridge.handle_list(source);
            world.bridge.handle_listed(source, world.now);
        }
        world.bridge.handle_connected(true, world.now);
        world
    }

    fn node(&mut self, name: &str, key: Option<PublicKey>, text: Option<&str>) {
        let key = key.map(|key| key.to_string());
        let entries = [(KEY, key.as_deref()), (ADVERT, text)];
        let entries = entries
            .iter()
            .filter_map(|(name, value)| Some(((*name).to_owned(), (*value)?.to_owned())));
        let object = Object {
            name,
            annotations: &entries.collect(),
            public_key: None,
            keepalive: None,
        };
        self.bridge.handle_object(Source::Nodes, object, self.now);
    }

    fn node_of(&mut self, name: &str, seed: u8, sequence: u64) {
        let text = encode(&node(seed, sequence)).unwrap();
        self.node(name, Some(key(seed)), Some(&text));
    }

    fn peer(&mut self, name: &str, seed: u8, text: Option<&str>) {
        let public = key(seed).to_string();
        let entries = text.map(|text| (ADVERT.to_owned(), text.to_owned()));
        let object = Object {
            name,
            annotations: &entries.into_iter().collect(),
            public_key: Some(&public),
            keepalive: Some(25),
        };
        self.bridge.handle_object(Source::Peers, object, self.now);
    }

    fn told(&mut self, seed: u8, record: &[u8]) -> Result<(), String> {
        let sealed = sealed(seed, record);
        self.bridge
            .handle_record(key(seed), RecordKind::Advert, sealed, self.now)
    }

    fn revoke(&mut self, sequence: u64, nodes: &[PublicKey], invites: &[InviteId]) {
        let nodes: BTreeSet<_> = nodes.iter().copied().collect();
        let invites: BTreeSet<_> = invites.iter().copied().collect();
        let list = RevocationList::sign(&admin(1), sequence, nodes, invites).unwrap();
        self.bridge.handle_revocations(list, self.now);
    }

    /// All that is carried by and by, opened: key and advert.
    fn carried(&mut self) -> Vec<(PublicKey, Vec<u8>)> {
        let mut all = Vec::new();
        for _ in 0..200 {
            self.now += Duration::from_secs(2);
            while let Some(carry) = self.bridge.poll_carry(self.now) {
                let network = admin(1).network_id();
                let opened =
                    network_key().open(&network, &carry.key, RecordKind::Advert, &carry.sealed);
                all.push((carry.key, opened.unwrap()));
            }
        }
        all
    }

    /// What is written by and by, each write done and seen.
    fn written(&mut self) -> Vec<(String, Option<String>)> {
        let mut all = Vec::new();
        for _ in 0..10 {
            self.now += SETTLED;
            while let Some(write) = self.bridge.poll_write(self.now) {
                self.bridge.handle_written(self.now);
                all.push((write.peer, write.value));
            }
        }
        all
    }

    fn news(&mut self) -> Vec<News> {
        std::iter::from_fn(|| self.bridge.poll_news()).collect()
    }
}

fn text(record: &[u8]) -> String {
    encode_at(Source::Peers, record).unwrap()
}

#[test]
fn a_peer_gets_the_advert_of_its_member_as_it_is() {
    let mut world = World::ready();
    world.told(1, &member(1, 4)).unwrap();
    world.told(2, &member(2, 4)).unwrap();
    assert_eq!(world.written(), [], "nobody's Peer");
    world.peer("box", 1, None);
    let wrote = ("box".to_owned(), Some(text(&member(1, 4))));
    assert_eq!(world.written(), std::slice::from_ref(&wrote));
    let told = News::Wrote { peer: "box".into() };
    assert_eq!(world.news(), std::slice::from_ref(&told));
    // The same again is none, a newer one is.
    world.told(1, &member(1, 4)).unwrap();
    let stands = wrote.1.clone();
    world.peer("box", 1, stands.as_deref());
    assert_eq!(world.written(), []);
    world.told(1, &member(1, 5)).unwrap();
    let newer = ("box".to_owned(), Some(text(&member(1, 5))));
    assert_eq!(world.written(), [newer]);
    // Somebody takes it away.
    world.peer("box", 1, None);
    assert_eq!(world.written().len(), 1);
    assert_eq!(world.bridge.counts().members, 2);
}

#[test]
fn a_lower_sequence_replaces_nothing_and_what_was_altered_does_not_count() {
    let mut world = World::ready();
    let stands = text(&member(1, 9));
    world.peer("box", 1, Some(&stands));
    world.told(1, &member(1, 8)).unwrap();
    assert_eq!(world.written(), []);
    world.told(1, &member(1, 10)).unwrap();
    assert_eq!(
        world.written(),
        [("box".into(), Some(text(&member(1, 10))))]
    );
    let older = world.told(1, &member(1, 9));
    assert!(older.unwrap_err().contains("newer"));
    // A hand that writes a higher number cannot sign it.
    let mut forged = member(1, 99);
    forged[60] ^= 1;
    let wanted = [("box".into(), Some(text(&member(1, 10))))];
    for theirs in [text(&forged), text(&member(2, 99)), "by hand".to_owned()] {
        world.peer("box", 1, Some(&theirs));
        assert_eq!(world.written(), wanted, "{theirs}");
    }
}

#[test]
fn a_peer_whose_key_changes_gets_the_advert_of_its_new_key() {
    let mut world = World::ready();
    world.told(1, &member(1, 4)).unwrap();
    world.peer("box", 1, None);
    world.written();
    world.peer("box", 2, Some(&text(&member(1, 4))));
    assert_eq!(world.written(), [], "nothing is known of the new one");
    world.told(2, &member(2, 1)).unwrap();
    assert_eq!(world.written(), [("box".into(), Some(text(&member(2, 1))))]);
}

#[test]
fn what_does_not_hold_is_not_written() {
    let mut world = World::ready();
    world.peer("box", 1, None);
    let other = admin(2);
    let stranger = invite(&other, 5).sign_member(&other.network_id(), &key(1));
    let refused = world.told(1, &advert(1, 1, stranger.encode()));
    assert!(refused.unwrap_err().contains("no member"));
    let refused = world.told(1, &member(2, 1));
    assert!(refused.unwrap_err().contains("another node's"));
    let mut forged = member(1, 1);
    *forged.last_mut().unwrap() ^= 1;
    assert!(world.told(1, &forged).is_err());
    let sealed = sealed(2, &member(1, 1));
    let mut take = |kind, sealed| world.bridge.handle_record(key(1), kind, sealed, world.now);
    assert!(
        take(RecordKind::Advert, sealed.clone()).is_err(),
        "sealed for another"
    );
    assert_eq!(take(RecordKind::Routes, sealed), Ok(()), "not its business");
    assert_eq!(world.written(), []);
    // One that another bridge carries proves nothing; the Peer object says that it is trusted.
    world.told(1, &node(1, 1)).unwrap();
    assert_eq!(world.written().len(), 1);
}

#[test]
fn a_revoked_machine_is_taken_away_and_stays_so() {
    let mut world = World::ready();
    for (name, seed) in [("box", 1), ("lamp", 2), ("desk", 3)] {
        world.peer(name, seed, None);
        world.told(seed, &member(seed, 4)).unwrap();
    }
    for (name, value) in world.written() {
        let seed = match name.as_str() {
            "box" => 1,
            "lamp" => 2,
            _ => 3,
        };
        world.peer(&name, seed, value.as_deref());
    }
    world.news();
    world.revoke(2, &[key(1)], &[]);
    assert_eq!(world.written(), [("box".into(), None)]);
    assert_eq!(world.news(), [News::Cleared { peer: "box".into() }]);
    world.peer("box", 1, None);
    assert!(
        world
            .told(1, &member(1, 5))
            .unwrap_err()
            .contains("revoked")
    );
    assert_eq!(world.written(), []);
    world.revoke(1, &[], &[]);
    assert!(world.told(1, &member(1, 5)).is_err(), "an older list");
    // By its invite, whether its advert came from the service or stands there from before.
    let id = invite(&admin(1), 5).certificate().id;
    world.revoke(3, &[key(1)], &[id]);
    let mut gone: Vec<_> = world.written().into_iter().map(|(name, _)| name).collect();
    gone.sort();
    assert_eq!(gone, ["desk", "lamp"]);
}

#[test]
fn a_key_that_is_a_nodes_is_written_by_the_node_alone() {
    let mut world = World::ready();
    world.node_of("a", 1, 1);
    world.peer("a-too", 1, None);
    world.told(1, &member(1, 4)).unwrap();
    assert_eq!(world.written(), []);
    world.bridge.handle_deleted(Source::Nodes, "a", world.now);
    assert_eq!(world.written().len(), 1);
}

#[test]
fn nothing_is_written_before_the_nodes_are_known() {
    let mut world = World::new();
    world.bridge.handle_list(Source::Peers);
    world.peer("box", 1, None);
    world.bridge.handle_listed(Source::Peers, world.now);
    world.told(1, &member(1, 4)).unwrap();
    assert_eq!(world.written(), []);
    assert_eq!(world.bridge.poll_timeout(), None);
    world.bridge.handle_list(Source::Nodes);
    world.bridge.handle_listed(Source::Nodes, world.now);
    assert_eq!(world.written().len(), 1);
}

#[test]
fn one_write_at_a_time_and_a_refused_one_comes_again() {
    let mut world = World::ready();
    for (name, seed) in [("box", 1), ("lamp", 2)] {
        world.peer(name, seed, None);
        world.told(seed, &member(seed, 4)).unwrap();
    }
    world.now += SETTLED;
    assert_eq!(world.bridge.poll_write(world.now).unwrap().peer, "box");
    assert_eq!(world.bridge.poll_write(world.now), None);
    assert_eq!(world.bridge.poll_timeout(), None);
    world.bridge.handle_refused(Refusal::ForNow, world.now);
    assert_eq!(world.bridge.poll_write(world.now).unwrap().peer, "lamp");
    world.bridge.handle_written(world.now);
    let due = world.bridge.poll_timeout().unwrap();
    assert!(due > world.now);
    assert_eq!(world.bridge.poll_write(due).unwrap().peer, "box");
    assert_eq!(
        world.news(),
        [News::Wrote {
            peer: "lamp".into()
        }]
    );
}

#[test]
fn adverts_of_nodes_are_carried_and_said_once() {
    let mut world = World::ready();
    world.node_of("a", 1, 1);
    world.node_of("b", 2, 1);
    world.peer("box", 3, Some(&text(&member(3, 1))));
    assert_eq!(world.bridge.poll_carry(world.now), None, "looks first");
    assert_eq!(world.bridge.poll_timeout(), Some(world.now + LOOK_FIRST));
    let mut both = world.carried();
    both.sort();
    let mut expected = [1, 2].map(|seed| (key(seed), node(seed, 1)));
    expected.sort();
    assert_eq!(both, expected);
    assert_eq!(world.news(), [News::Carrying { nodes: 2 }]);
    assert_eq!(world.bridge.poll_timeout(), None);
    // Heartbeats of the mesh agent, then a change.
    world.node_of("a", 1, 1);
    assert_eq!(world.carried(), []);
    world.node_of("a", 1, 2);
    assert_eq!(world.carried(), [(key(1), node(1, 2))]);
    assert_eq!(world.news(), [], "as many as before");
    world.bridge.handle_deleted(Source::Nodes, "b", world.now);
    assert_eq!(world.carried(), []);
    assert_eq!(world.news(), [News::Carrying { nodes: 1 }]);
}

#[test]
fn only_what_maps_to_its_node_is_carried() {
    let mut world = World::ready();
    let theirs = encode(&node(2, 1)).unwrap();
    let mut forged = node(1, 1);
    *forged.last_mut().unwrap() ^= 1;
    let forged = encode(&forged).unwrap();
    for text in [theirs.as_str(), &forged, "by hand"] {
        for _ in 0..2 {
            world.node("a", Some(key(1)), Some(text));
        }
        assert_eq!(world.carried(), [], "{text}");
        let news = world.news();
        assert!(
            matches!(news.as_slice(), [News::NotOfItsKey { node, .. }] if node == "a"),
            "{news:?}"
        );
    }
    world.node_of("a", 1, 1);
    assert_eq!(world.carried().len(), 1);
    world.node("a", Some(key(1)), None);
    assert_eq!(world.bridge.counts().nodes, 0);
}

#[test]
fn what_the_service_has_is_not_sealed_anew_and_what_is_older_not_carried() {
    let mut world = World::ready();
    world.node_of("a", 1, 3);
    world.node_of("b", 2, 3);
    world.told(1, &node(1, 3)).unwrap();
    world.told(2, &node(2, 4)).unwrap();
    world.now += LOOK_FIRST;
    let carry = world.bridge.poll_carry(world.now).unwrap();
    assert_eq!((carry.key, carry.sealed), (key(1), sealed(1, &node(1, 3))));
    assert_eq!(world.carried(), [], "what stands at b is older");
    // After a reconnect the same bytes, so that nobody hears of it again.
    world.node_of("c", 4, 1);
    let first = world.bridge.poll_carry(world.now).unwrap();
    world.bridge.handle_disconnected();
    assert_eq!(world.carried(), []);
    world.bridge.handle_connected(true, world.now);
    world.now += LOOK_FIRST;
    assert_eq!(
        world.bridge.poll_carry(world.now),
        Some(first),
        "news first"
    );
    assert_eq!(world.bridge.poll_carry(world.now).unwrap().key, key(1));
}

#[test]
fn the_services_pace_is_kept() {
    let mut world = World::ready();
    for seed in 1..=30 {
        world.node_of(&format!("n{seed}"), seed, 1);
    }
    world.now += LOOK_FIRST;
    let start = world.now;
    let mut times = Vec::new();
    while times.len() < 30 {
        match world.bridge.poll_carry(world.now) {
            Some(_) => times.push(world.now - start),
            None => world.now = world.bridge.poll_timeout().unwrap(),
        }
    }
    assert_eq!(times[11], Duration::ZERO, "the burst");
    for (n, time) in times.iter().enumerate().skip(12) {
        // A token bucket of 16 and one a second, the Hello's frame not counted.
        let allowed = 16 + time.as_secs();
        assert!((n as u64) < allowed, "{n} at {time:?}");
    }
    assert!(times[29] < Duration::from_secs(25), "{:?}", times[29]);
}

#[test]
fn who_is_not_carried_is_said_once_and_not_asked_again_before_a_change() {
    let mut world = World::ready();
    world.node_of("a", 1, 1);
    world.carried();
    world.news();
    for _ in 0..2 {
        let why = CarryRefusal::TooMuch;
        world.bridge.handle_not_carried(&key(1), why, world.now);
    }
    let told = |why| News::NotCarried {
        node: "a".into(),
        why,
    };
    assert_eq!(world.news(), [told(CarryRefusal::TooMuch)]);
    assert_eq!(world.carried(), []);
    assert_eq!(world.news(), [News::Carrying { nodes: 0 }]);
    world.node_of("a", 1, 2);
    assert_eq!(world.carried().len(), 1);
    // An owner that is there by itself is so whatever its Node says.
    world
        .bridge
        .handle_not_carried(&key(1), CarryRefusal::Proven, world.now);
    world.node_of("a", 1, 3);
    assert_eq!(world.bridge.counts().carried, 0);
}

/// A bridge before this one, whose connection the service has not given up yet.
#[test]
fn what_may_pass_is_tried_once_more() {
    let mut world = World::ready();
    world.node_of("a", 1, 1);
    world.now += LOOK_FIRST;
    for _ in 0..2 {
        assert!(world.bridge.poll_carry(world.now).is_some());
        let why = CarryRefusal::Taken;
        world.bridge.handle_not_carried(&key(1), why, world.now);
        assert_eq!(world.bridge.poll_carry(world.now), None);
        let Some(again) = world.bridge.poll_timeout() else {
            break;
        };
        assert!(again > world.now + Duration::from_secs(60));
        world.now = again;
    }
    assert_eq!(world.bridge.poll_timeout(), None, "and not for ever");
    assert_eq!(world.carried(), []);
    world.bridge.handle_disconnected();
    world.bridge.handle_connected(true, world.now);
    assert_eq!(world.carried().len(), 1);
}

#[test]
fn a_service_that_does_not_carry_gets_nothing_and_peers_all_the_same() {
    let mut world = World::ready();
    world.bridge.handle_disconnected();
    world.bridge.handle_connected(false, world.now);
    world.node_of("a", 1, 1);
    world.peer("box", 2, None);
    world.told(2, &member(2, 1)).unwrap();
    assert_eq!(world.carried(), []);
    assert_eq!(world.written().len(), 1);
    assert_eq!(world.bridge.poll_timeout(), None);
}

#[test]
fn revoked_nodes_and_the_bridge_itself_are_not_carried() {
    let mut world = World::ready();
    world.node_of("a", 1, 1);
    world.node_of("own", 100, 1);
    world.revoke(1, &[key(1)], &[]);
    assert_eq!(world.carried(), []);
    assert_eq!(world.told(100, &member(100, 1)), Ok(()));
    assert_eq!(world.bridge.counts().members, 0);
}

#[test]
fn what_a_broken_watch_no_longer_lists_is_gone() {
    let mut world = World::ready();
    world.node_of("a", 1, 1);
    world.peer("box", 2, None);
    for source in [Source::Nodes, Source::Peers] {
        world.bridge.handle_list(source);
        world.bridge.handle_listed(source, world.now);
    }
    let counts = world.bridge.counts();
    assert_eq!((counts.nodes, counts.peers), (0, 0));
    world.told(2, &member(2, 1)).unwrap();
    assert_eq!(world.written(), []);
}
