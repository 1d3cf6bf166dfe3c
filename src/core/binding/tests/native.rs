//! Paths that begin at WireGuard's own port: their endpoint is the peer's address.

use super::*;

/// What WireGuard sends to say no more than that it is there.
const KEEPALIVE: u64 = 32;

/// The peer's address by a path from WireGuard's own port.
fn direct() -> SocketAddr {
    "198.51.100.7:51820".parse().unwrap()
}

impl Interface {
    fn ready(&mut self, endpoint: Option<SocketAddr>) {
        let path = PathState {
            advert: true,
            ready: endpoint,
        };
        self.binder.handle_path(&KEY, path, self.now);
        self.settle();
    }

    /// WireGuard has taken a packet that came from there.
    fn roam(&mut self, endpoint: SocketAddr) {
        self.peer.endpoint = Some(endpoint);
        self.receive(DATA);
        self.later(SECOND);
    }

    fn sets(&self) -> usize {
        let set = |event: &&Event| matches!(event, Event::SetEndpoint { .. });
        self.told.iter().filter(set).count()
    }
}

#[test]
fn a_path_that_moves_takes_the_endpoint_along_at_once() {
    let mut interface = Interface::on_slot();
    for ready in [direct(), slot(), direct(), elsewhere(), slot()] {
        interface.ready(Some(ready));
        assert_eq!(interface.peer.endpoint, Some(ready));
        interface.receive(DATA);
        interface.later(SECOND);
        assert_eq!(interface.peer.endpoint, Some(ready));
    }
    assert_eq!(interface.binder.resets(&KEY), 0);
    assert_eq!(interface.binder.originals()[&KEY], native());
}

/// The peer still sends through its proxy: WireGuard roams to the slot, again and again.
#[test]
fn what_roams_to_the_slot_is_moved_back_ever_more_seldom() {
    let mut interface = Interface::on_slot();
    interface.ready(Some(direct()));
    interface.told.clear();
    for _ in 0..60 {
        interface.roam(slot());
    }
    let sets = interface.sets();
    assert!((5..=8).contains(&sets), "{sets} in a minute");
    assert_eq!(interface.binder.resets(&KEY), 0, "nobody's fault");
    // Once the peer has moved too, it stays.
    interface.ready(Some(slot()));
    interface.ready(Some(direct()));
    interface.told.clear();
    for _ in 0..30 {
        interface.receive(DATA);
        interface.later(SECOND);
    }
    assert_eq!(interface.peer.endpoint, Some(direct()));
    assert_eq!(interface.sets(), 0);
}

/// WireGuard found the address itself, or somebody configured it: there is nothing to set, and when
/// the path goes elsewhere the endpoint follows without the patience that foreign ones have.
#[test]
fn an_endpoint_that_is_the_paths_own_is_ours() {
    let mut interface = Interface::new(Some(direct()));
    interface.handshake();
    interface.later(SECOND);
    interface.ready(Some(direct()));
    assert_eq!(interface.sets(), 0);
    assert_eq!(interface.binder.standing(&KEY), Some(Standing::Ours));
    interface.ready(Some(slot()));
    assert_eq!(interface.peer.endpoint, Some(slot()));
    assert_eq!(interface.binder.originals()[&KEY], direct());
}

#[test]
fn a_daemon_that_starts_again_knows_what_it_gave() {
    let mut before = Interface::on_slot();
    before.ready(Some(direct()));
    before.later(SECOND);
    assert!(before.binder.take_changed());
    let given = before.binder.given();
    assert_eq!(given, BTreeMap::from([(KEY, direct())]));
    let mut binder = Binder::new(slot_of, before.binder.originals(), given);
    binder.handle_device(&[before.peer], before.now);
    assert_eq!(binder.standing(&KEY), Some(Standing::Ours));
    assert_eq!(binder.restore().0, [(KEY, native())]);
    // Without that it would be somebody else's, and be gone back to.
    let mut forgetful = Binder::new(slot_of, BTreeMap::new(), BTreeMap::new());
    forgetful.handle_device(&[before.peer], before.now);
    assert_eq!(forgetful.originals()[&KEY], direct());
}

#[test]
fn without_a_path_for_long_theirs_is_tried_once() {
    let mut interface = Interface::on_slot();
    interface.ready(Some(direct()));
    interface.later(SECOND);
    interface.ready(None);
    interface.told.clear();
    interface.sending(DATA, 40);
    assert_eq!(interface.peer.endpoint, Some(native()));
    assert_eq!(interface.sets(), 1);
}

/// The peer's initiation came from its native address, and its end of the handshake is on the way: nobody has
/// reset anything.
#[test]
fn wireguard_that_roams_by_half_a_handshake_was_not_reset() {
    let mut interface = Interface::new(None);
    interface.path(true);
    interface.send(INITIATION);
    interface.later(SECOND);
    assert_eq!(interface.peer.endpoint, Some(slot()));
    interface.told.clear();
    interface.peer.endpoint = Some(direct());
    interface.peer.rx_bytes += INITIATION;
    interface.send(92);
    interface.look();
    assert_eq!(interface.sets(), 0);
    let next = interface.binder.poll_timeout(interface.now).unwrap();
    assert_eq!(next, interface.now + RESET_TRIAL);
    interface.handshake();
    interface.later(RESET_TRIAL);
    assert_eq!(interface.sets(), 0);
    assert_eq!(interface.binder.resets(&KEY), 0);
    assert_eq!(interface.binder.poll_timeout(interface.now), None);
}

/// A slot's packets pass through wice, and of an interface at rest nothing is to be learned.
#[test]
fn what_wireguard_sends_from_its_own_port_is_looked_at_twice_a_second() {
    let mut interface = Interface::on_slot();
    interface.sending(DATA, 1);
    assert_eq!(interface.binder.poll_timeout(interface.now), None);
    interface.ready(Some(direct()));
    interface.sending(DATA, 1);
    let next = interface.binder.poll_timeout(interface.now);
    assert_eq!(next, Some(interface.now + LOOK_SENDING));
    interface.sending(KEEPALIVE, 1);
    assert_eq!(interface.binder.poll_timeout(interface.now), None);
    interface.later(SECOND);
    assert_eq!(interface.binder.poll_timeout(interface.now), None);
}

/// WireGuard shows the handshakes of the key that it had before: at WireGuard's own port the next would cross the peer's,
/// again and again.
#[test]
fn with_another_key_the_first_handshake_goes_by_the_slot() {
    let mut interface = Interface::with(Some(direct()), Some(15 * SECOND), BTreeMap::new());
    let given = BTreeMap::from([(KEY, direct())]);
    for is_other_key in [false, true] {
        interface.binder = Binder::new(slot_of, BTreeMap::new(), given.clone());
        if is_other_key {
            interface.binder.forget_sessions(interface.now);
        }
        interface.look();
        interface.ready(Some(direct()));
        let expected = if is_other_key { slot() } else { direct() };
        assert_eq!(interface.peer.endpoint, Some(expected));
    }
    interface.handshake();
    interface.later(SECOND);
    assert_eq!(interface.peer.endpoint, Some(direct()));
}

/// Two initiations have crossed at WireGuard's own ports: the next go by the slot, where one can wait.
#[test]
fn a_native_endpoint_without_a_session_gives_way_to_the_slot() {
    let mut interface = Interface::new(None);
    interface.ready(Some(direct()));
    assert_eq!(interface.peer.endpoint, Some(slot()));
    interface.send(INITIATION + 92);
    interface.peer.rx_bytes += INITIATION;
    interface.peer.endpoint = Some(direct());
    interface.later(SECOND);
    interface.later(SECOND);
    assert_eq!(interface.peer.endpoint, Some(slot()));
    interface.handshake();
    interface.later(SECOND);
    assert_eq!(
        interface.peer.endpoint,
        Some(direct()),
        "with one it is native"
    );
    assert_eq!(interface.binder.resets(&KEY), 0);
}

/// WireGuard has gone by itself where the path leads, to a relay's address say, before or after the path was told:
/// that is dead once the daemon has ended, and nobody's wish.
#[test]
fn where_wireguard_went_along_with_the_path_is_ours_after_a_restart_too() {
    for told_before in [true, false] {
        let mut before = Interface::new(None);
        before.path(true);
        before.handshake();
        before.later(SECOND);
        if told_before {
            before.deaf = true;
            before.ready(Some(direct()));
            before.deaf = false;
        }
        before.roam(direct());
        before.ready(Some(direct()));
        before.later(SECOND);
        assert_eq!(before.peer.endpoint, Some(direct()), "{told_before}");
        let (originals, given) = (before.binder.originals(), before.binder.given());
        assert_eq!(originals, BTreeMap::new(), "{told_before}");
        assert_eq!(given, BTreeMap::from([(KEY, direct())]), "{told_before}");
        assert_eq!(before.binder.resets(&KEY), 0);

        let mut again = Interface::new(None);
        again.binder = Binder::new(slot_of, originals, given);
        again.peer = Sighting {
            handshake_age: Some(SECOND),
            ..before.peer
        };
        again.now = before.now;
        again.look();
        assert_eq!(again.binder.restore(), (Vec::new(), vec![KEY]));
        again.ready(Some(elsewhere()));
        assert_eq!(again.peer.endpoint, Some(elsewhere()), "without patience");
    }
}

/// What the owner configured stays theirs, also where the path leads there.
#[test]
fn a_configured_endpoint_that_the_path_leads_to_is_gone_back_to() {
    let mut interface = Interface::new(Some(direct()));
    interface.handshake();
    interface.later(SECOND);
    interface.ready(Some(direct()));
    interface.later(SECOND);
    assert_eq!(interface.binder.given(), BTreeMap::new());
    interface.ready(Some(slot()));
    assert_eq!(interface.binder.restore().0, [(KEY, direct())]);
}

/// The path has moved, and what the peer had sent to the old end was still on its way: nobody has reset anything.
#[test]
fn wireguard_that_goes_back_for_a_moment_was_not_reset() {
    let mut interface = Interface::on_slot();
    interface.ready(Some(elsewhere()));
    interface.later(SECOND);
    interface.ready(Some(direct()));
    interface.later(SECOND);
    interface.told.clear();
    interface.roam(elsewhere());
    interface.later(SECOND);
    assert_eq!(interface.peer.endpoint, Some(direct()));
    assert_eq!(interface.binder.resets(&KEY), 0);
}

/// The peer's wice sends from a port of its own, by the way of before: WireGuard goes there, and nobody has set it.
#[test]
fn wireguard_that_hears_the_same_host_from_another_port_was_not_reset() {
    for (beside, resets) in [(SocketAddr::new(direct().ip(), 51821), 0), (elsewhere(), 1)] {
        let mut interface = Interface::on_slot();
        interface.ready(Some(direct()));
        interface.later(SECOND);
        interface.receive(DATA);
        interface.later(SECOND);
        interface.peer.endpoint = Some(beside);
        interface.peer.rx_bytes += DATA;
        interface.send(DATA);
        interface.later(SECOND);
        for _ in 0..3 {
            interface.send(DATA);
            interface.later(SECOND);
        }
        assert_eq!(interface.peer.endpoint, Some(direct()), "{beside}");
        assert_eq!(interface.binder.resets(&KEY), resets, "{beside}");
    }
}

/// Half a handshake took WireGuard to an address where the other half gets nowhere: the slot again, and nobody's fault.
#[test]
fn half_a_handshake_that_stays_one_was_no_reset() {
    let mut interface = Interface::new(None);
    interface.path(true);
    interface.send(INITIATION);
    interface.later(SECOND);
    interface.peer.endpoint = Some(elsewhere());
    interface.peer.rx_bytes += INITIATION;
    interface.send(92);
    interface.look();
    interface.told.clear();
    interface.send(INITIATION);
    interface.later(SECOND);
    interface.later(SECOND);
    assert_eq!(interface.peer.endpoint, Some(slot()));
    assert_eq!(interface.binder.resets(&KEY), 0);
}

/// The peer sends to WireGuard's own port by another path than ours, as both do when paths change: WireGuard roams there, and
/// nobody has set that. Somebody has where nothing came from the peer, or paths have long been the same.
#[test]
fn an_address_where_the_peer_was_met_is_nobodys_doing_when_paths_change() {
    for (heard, calm, resets) in [(true, 0, 0), (false, 0, 1), (true, 60, 1)] {
        let mut interface = Interface::on_slot();
        interface.ready(Some(direct()));
        interface.ready(Some(slot()));
        interface.sending(0, calm);
        interface.binder.handle_met_at(&KEY, &[elsewhere()]);
        interface.peer.endpoint = Some(elsewhere());
        if heard {
            interface.receive(DATA);
        }
        interface.later(SECOND / 2);
        interface.sending(DATA, 10);
        assert_eq!(interface.peer.endpoint, Some(slot()), "{heard} {calm}");
        assert_eq!(interface.binder.resets(&KEY), resets, "{heard} {calm}");
    }
}

/// An address that WireGuard had found was a path's, and WireGuard left it before the next look. When all paths are gone it is
/// tried again once, not every second.
#[test]
fn what_is_tried_again_is_tried_once_also_where_a_path_led_there_before() {
    let mut interface = Interface::on_slot();
    interface.roam(elsewhere());
    interface.roam(slot());
    interface.ready(Some(elsewhere()));
    interface.ready(Some(direct()));
    interface.roam(direct());
    interface.told.clear();
    interface.ready(None);
    interface.sending(DATA, 120);
    let retries = interface.causes();
    let retries = retries.iter().filter(|cause| **cause == Cause::Retry);
    assert!(retries.count() <= 2, "{:?}", interface.causes());
}

/// Somebody has taken the endpoint out of the configuration, and the interface anew.
#[test]
fn an_endpoint_that_is_no_longer_configured_is_forgotten() {
    let remembered = BTreeMap::from([(KEY, native())]);
    let mut interface = Interface::with(None, None, remembered);
    interface.path(true);
    interface.sending(DATA, 2);
    assert_eq!(interface.peer.endpoint, Some(slot()));
    assert!(interface.binder.originals().is_empty());
    assert_eq!(interface.binder.restore(), (vec![], vec![KEY]));
    // Also while the daemon runs.
    let mut interface = Interface::on_slot();
    interface.replace(None);
    interface.later(SECOND);
    assert!(interface.binder.originals().is_empty());
    interface.path(false);
    interface.sending(DATA, 60);
    assert!(
        !interface.causes().contains(&Cause::Retry),
        "{:?}",
        interface.causes()
    );
}
