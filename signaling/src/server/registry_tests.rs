//! Bounds of what is kept, and who goes first.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Limits;
use super::registry::{Joined, Kick, Member, Registry};
use crate::protocol::{
    AdminKey, ErrorCode, InviteId, NetworkId, PublicKey, RecordKind, RevocationList,
};

const INVITE: InviteId = InviteId([5; 32]);

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn network(n: u8) -> NetworkId {
    NetworkId([n; 32])
}

fn registry(change: impl FnOnce(&mut Limits)) -> Registry {
    let mut limits = Limits::default();
    change(&mut limits);
    Registry::new(limits)
}

fn join(registry: &mut Registry, n: u8, k: u8, now: Instant) -> Result<Joined, ErrorCode> {
    registry.join(member(network(n), k), now)
}

fn member(network: NetworkId, k: u8) -> Member {
    Member {
        network,
        key: key(k),
        invite: INVITE,
        listed: false,
        hears_presence: true,
    }
}

fn publish(
    registry: &mut Registry,
    n: u8,
    k: u8,
    id: u64,
    sealed: Vec<u8>,
) -> Result<(), ErrorCode> {
    let now = Instant::now();
    registry.publish(&network(n), key(k), id, RecordKind::Advert, sealed, now)
}

fn bytes(registry: &Registry) -> usize {
    registry.gauges()[4].2
}

#[test]
fn records_are_bounded_in_bytes_and_the_longest_away_goes_first() {
    let start = Instant::now();
    let mut registry = registry(|limits| limits.record_bytes = 250);
    for k in 1..=2 {
        let now = start + Duration::from_secs(k.into());
        let id = join(&mut registry, 1, k, now).unwrap().id;
        publish(&mut registry, 1, k, id, vec![k; 100]).unwrap();
        registry.leave(&network(1), &key(k), id, (now, false), now);
    }
    let id = join(&mut registry, 2, 3, start).unwrap().id;
    let advert = |registry: &mut Registry, len| publish(registry, 2, 3, id, vec![3; len]);
    advert(&mut registry, 100).unwrap();
    assert_eq!(bytes(&registry), 200);
    let mut watcher = join(&mut registry, 1, 9, start).unwrap();
    assert_eq!(watcher.present.len(), 1, "node 1 was away the longest");
    assert!(watcher.outgoing.try_recv().is_err());
    advert(&mut registry, 250).unwrap();
    assert_eq!(bytes(&registry), 250);
    assert_eq!(advert(&mut registry, 251), Err(ErrorCode::NetworkFull));
    assert_eq!(bytes(&registry), 250);
    advert(&mut registry, 1).unwrap();
    assert_eq!(bytes(&registry), 1);
}

#[test]
fn networks_are_bounded_and_those_with_revocations_stay() {
    let now = Instant::now();
    let mut registry = registry(|limits| limits.networks = 2);
    let admin = AdminKey::from_seed(&[1; 32]);
    let list = RevocationList::sign(&admin, 1, BTreeSet::new(), BTreeSet::new()).unwrap();
    registry.revoke(admin.network_id(), list, true, now);
    let id = join(&mut registry, 8, 1, now).unwrap().id;
    assert_eq!(
        join(&mut registry, 9, 1, now).err(),
        Some(ErrorCode::NetworkFull)
    );
    registry.leave(&network(8), &key(1), id, (now, false), now);
    assert!(join(&mut registry, 9, 1, now).is_ok());
    assert_eq!(
        join(&mut registry, 10, 1, now).err(),
        Some(ErrorCode::NetworkFull)
    );
}

#[test]
fn an_older_connection_can_no_longer_publish_or_leave() {
    let now = Instant::now();
    let mut registry = registry(|_| {});
    let mut old = join(&mut registry, 1, 1, now).unwrap();
    let new = join(&mut registry, 1, 1, now).unwrap();
    assert_eq!(
        old.kicked.try_recv(),
        Ok(Kick::Refused(ErrorCode::Replaced))
    );
    let stale = publish(&mut registry, 1, 1, old.id, vec![1]);
    assert_eq!(stale, Err(ErrorCode::Replaced));
    registry.leave(&network(1), &key(1), old.id, (now, false), now);
    assert_eq!(registry.gauges()[2].2, 1);
    assert!(publish(&mut registry, 1, 1, new.id, vec![1]).is_ok());
}

#[test]
fn a_record_goes_to_all_others_of_its_network_and_once() {
    let now = Instant::now();
    let mut registry = registry(|_| {});
    let mut own = join(&mut registry, 1, 1, now).unwrap();
    let mut other = join(&mut registry, 1, 2, now).unwrap();
    let mut foreign = join(&mut registry, 2, 3, now).unwrap();
    for _ in 0..2 {
        publish(&mut registry, 1, 1, own.id, vec![1]).unwrap();
    }
    assert!(other.outgoing.try_recv().is_ok());
    assert!(
        other.outgoing.try_recv().is_err(),
        "an unchanged record was sent again"
    );
    assert!(own.outgoing.try_recv().is_err() && foreign.outgoing.try_recv().is_err());
}

#[test]
fn a_full_queue_puts_its_reader_out_and_no_other() {
    let now = Instant::now();
    let mut registry = registry(|limits| limits.queue = 2);
    let writer = join(&mut registry, 1, 1, now).unwrap();
    let mut slow = join(&mut registry, 1, 2, now).unwrap();
    let mut fast = join(&mut registry, 1, 3, now).unwrap();
    for n in 0..3 {
        publish(&mut registry, 1, 1, writer.id, vec![n]).unwrap();
        assert!(fast.outgoing.try_recv().is_ok());
    }
    assert_eq!(slow.kicked.try_recv(), Ok(Kick::SlowReader));
    assert!(fast.kicked.try_recv().is_err());
}

#[test]
fn a_list_that_is_not_newer_changes_nothing() {
    let now = Instant::now();
    let mut registry = registry(|_| {});
    let admin = AdminKey::from_seed(&[1; 32]);
    let id = admin.network_id();
    let list = |sequence, nodes: &[PublicKey]| {
        let nodes = nodes.iter().copied().collect();
        RevocationList::sign(&admin, sequence, nodes, BTreeSet::new()).unwrap()
    };
    assert!(registry.revoke(id, list(2, &[]), true, now));
    assert!(!registry.revoke(id, list(2, &[key(1)]), true, now));
    assert!(!registry.revoke(id, list(1, &[key(1)]), true, now));
    let mut node = registry.join(member(id, 1), now).unwrap();
    registry
        .publish(&id, key(1), node.id, RecordKind::Advert, vec![1], now)
        .unwrap();
    assert!(registry.revoke(id, list(3, &[key(1)]), true, now));
    assert_eq!(
        node.kicked.try_recv(),
        Ok(Kick::Refused(ErrorCode::Revoked))
    );
    assert_eq!(bytes(&registry), 0);
    assert_eq!(
        registry.join(member(id, 1), now).err(),
        Some(ErrorCode::Revoked)
    );
}

/// Anyone can make networks for an open service: their lists take at most half of its places, and
/// give way to others'.
#[test]
fn networks_that_anyone_makes_cannot_fill_the_service_with_lists() {
    let start = Instant::now();
    let mut registry = registry(|limits| limits.networks = 4);
    let empty = |admin: &AdminKey| {
        RevocationList::sign(admin, 1, BTreeSet::new(), BTreeSet::new()).unwrap()
    };
    let made: Vec<AdminKey> = (1..=20).map(|n| AdminKey::from_seed(&[n; 32])).collect();
    for (second, admin) in (0..).zip(&made) {
        let now = start + Duration::from_secs(second);
        let list = empty(admin);
        assert!(registry.revoke(admin.network_id(), list, false, now));
    }
    assert_eq!(registry.gauges()[0].2, 2, "half of four");
    let forgotten = registry.take_forgotten();
    assert_eq!(forgotten.len(), 18);
    assert!(
        forgotten.contains(&made[0].network_id()),
        "the oldest went first"
    );
    let newcomers = [21, 22, 23];
    for n in newcomers {
        assert!(join(&mut registry, n, 1, start).is_ok(), "{n}");
    }
    assert_eq!(registry.gauges()[0].2, 4);
    // One whose nodes are connected stays; a further list has no place then.
    let mut registry = self::registry(|limits| limits.networks = 2);
    let first = made[0].network_id();
    assert!(registry.revoke(first, empty(&made[0]), false, start));
    registry.join(member(first, 1), start).unwrap();
    assert!(!registry.revoke(made[1].network_id(), empty(&made[1]), false, start));
}

#[test]
fn a_node_that_comes_back_gets_its_own_record_too() {
    let now = Instant::now();
    let mut registry = registry(|_| {});
    let id = join(&mut registry, 1, 1, now).unwrap().id;
    publish(&mut registry, 1, 1, id, vec![1]).unwrap();
    let again = join(&mut registry, 1, 1, now).unwrap();
    assert_eq!(again.present.len(), 1);
}
