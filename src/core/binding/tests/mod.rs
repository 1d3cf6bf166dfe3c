mod native;

use super::*;

const KEY: PublicKey = PublicKey([7; 32]);
const OTHER: PublicKey = PublicKey([8; 32]);
const SECOND: Duration = Duration::from_secs(1);
/// A handshake initiation, and a data packet.
const INITIATION: u64 = 148;
const DATA: u64 = 128;

fn slot_of(key: &PublicKey) -> SocketAddr {
    SocketAddr::from(([127, 1, 0, key.0[0]], 51822))
}

fn slot() -> SocketAddr {
    slot_of(&KEY)
}

fn native() -> SocketAddr {
    "192.0.2.1:51820".parse().unwrap()
}

fn elsewhere() -> SocketAddr {
    "203.0.113.9:51820".parse().unwrap()
}

/// An interface with one peer, in virtual time. What the binder sets is set.
struct Interface {
    binder: Binder,
    now: Instant,
    peer: Sighting,
    told: Vec<Event>,
    deaf: bool,
    handshaken: Option<Instant>,
}

impl Interface {
    fn new(endpoint: Option<SocketAddr>) -> Self {
        Self::with(endpoint, None, BTreeMap::new())
    }

    fn with(
        endpoint: Option<SocketAddr>,
        handshake_age: Option<Duration>,
        remembered: BTreeMap<PublicKey, SocketAddr>,
    ) -> Self {
        let mut interface = Self {
            binder: Binder::new(slot_of, remembered, BTreeMap::new()),
            now: Instant::now(),
            peer: Sighting {
                key: KEY,
                endpoint,
                handshake: handshake_age.map(|_| Duration::from_secs(1)),
                handshake_age,
                rx_bytes: 0,
                tx_bytes: 0,
            },
            told: Vec::new(),
            deaf: false,
            handshaken: None,
        };
        interface.handshaken = handshake_age.map(|_| interface.now);
        interface.look();
        interface
    }

    /// A session by way of the slot, with the native endpoint known to be dead.
    fn on_slot() -> Self {
        let mut interface = Self::new(Some(native()));
        interface.path(true);
        for _ in 0..6 {
            interface.send(INITIATION);
            interface.later(SECOND);
        }
        assert_eq!(interface.peer.endpoint, Some(slot()));
        interface.handshake();
        interface.later(SECOND);
        interface.told.clear();
        interface
    }

    fn look(&mut self) {
        self.binder.handle_device(&[self.peer], self.now);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(event) = self.binder.poll_event() {
            if let Event::SetEndpoint { endpoint, .. } = event
                && !self.deaf
            {
                self.peer.endpoint = Some(endpoint);
            }
            self.told.push(event);
        }
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
        self.look();
    }

    /// Looks once a second for so long, sending `bytes` before each.
    fn sending(&mut self, bytes: u64, seconds: u32) {
        for _ in 0..seconds {
            self.send(bytes);
            self.later(SECOND);
        }
    }

    fn path(&mut self, ready: bool) {
        let path = PathState {
            advert: true,
            ready: ready.then(slot),
        };
        self.binder.handle_path(&KEY, path, self.now);
        self.settle();
    }

    fn send(&mut self, bytes: u64) {
        self.peer.tx_bytes += bytes;
    }

    /// In a session, which WireGuard renews every 120 s (paper §6.1) while there is traffic.
    fn receive(&mut self, bytes: u64) {
        let old = |at: Instant| self.now >= at + SECOND * 60;
        if self.handshaken.is_some_and(old) {
            self.handshake();
        }
        self.peer.rx_bytes += bytes;
    }

    fn handshake(&mut self) {
        let at = self.peer.handshake.unwrap_or_default() + SECOND;
        self.peer.handshake = Some(at);
        self.peer.rx_bytes += 92;
        self.handshaken = Some(self.now);
    }

    /// Another program removes the peer and puts it there again.
    fn replace(&mut self, endpoint: Option<SocketAddr>) {
        self.peer = Sighting {
            endpoint,
            handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            ..self.peer
        };
    }

    fn causes(&self) -> Vec<Cause> {
        let cause = |event: &Event| match event {
            Event::SetEndpoint { cause, .. } => Some(*cause),
            Event::Added(_) | Event::Removed(_) | Event::Left { .. } => None,
        };
        self.told.iter().filter_map(cause).collect()
    }
}

#[test]
fn a_native_endpoint_that_works_is_left_alone() {
    let mut interface = Interface::with(Some(native()), Some(SECOND * 100), BTreeMap::new());
    interface.path(true);
    for _ in 0..600 {
        interface.send(DATA);
        interface.receive(DATA);
        interface.later(SECOND);
    }
    assert_eq!(interface.causes(), []);
    let works = Standing::Theirs {
        endpoint: native(),
        works: true,
        idle: true,
    };
    assert_eq!(interface.binder.standing(&KEY), Some(works));
}

#[test]
fn an_idle_native_endpoint_is_left_alone_and_so_are_keepalives() {
    for age in [None, Some(SECOND * 100), Some(SECOND * 10_000)] {
        let mut interface = Interface::with(Some(native()), age, BTreeMap::new());
        interface.path(true);
        interface.sending(0, 600);
        // Keepalives are never answered.
        for _ in 0..40 {
            interface.send(32);
            interface.later(SECOND * 25);
        }
        assert_eq!(interface.causes(), [], "{age:?}");
    }
}

#[test]
fn a_native_endpoint_that_never_answers_is_replaced_before_the_second_handshake() {
    let mut interface = Interface::new(Some(native()));
    interface.path(true);
    interface.later(SECOND * 7);
    interface.send(INITIATION);
    let asked = interface.now;
    while interface.peer.endpoint != Some(slot()) {
        interface.later(SECOND);
    }
    let took = interface.now - asked;
    assert!(
        took < Duration::from_secs(5),
        "WireGuard's own retry comes after 5 s, ours after {took:?}"
    );
    assert_eq!(interface.causes(), [Cause::Failed]);
}

/// The handshake went out before we came.
#[test]
fn an_endpoint_that_was_tried_before_we_came_has_had_its_first_packet() {
    let mut interface = Interface::new(None);
    interface.peer = Sighting {
        key: OTHER,
        endpoint: Some(native()),
        tx_bytes: INITIATION,
        ..interface.peer
    };
    interface.look();
    let path = PathState {
        advert: true,
        ready: Some(slot_of(&OTHER)),
    };
    let now = interface.now;
    interface.binder.handle_path(&OTHER, path, now);
    interface.sending(0, 4);
    assert_eq!(interface.causes(), [Cause::Failed]);
}

#[test]
fn a_native_endpoint_that_answers_in_its_trial_is_kept() {
    let mut interface = Interface::new(Some(native()));
    interface.path(true);
    interface.send(INITIATION);
    interface.later(SECOND * 3);
    interface.handshake();
    interface.later(SECOND);
    for _ in 0..300 {
        interface.send(DATA);
        interface.receive(DATA);
        interface.later(SECOND);
    }
    assert_eq!(interface.causes(), []);
}

#[test]
fn a_native_endpoint_that_stops_working_is_replaced_when_wireguard_gives_it_up() {
    let mut interface = Interface::with(Some(native()), Some(SECOND), BTreeMap::new());
    interface.path(true);
    interface.sending(DATA, 14);
    assert_eq!(interface.causes(), []);
    interface.sending(DATA, 2);
    assert_eq!(interface.causes(), [Cause::Failed]);
}

/// The peer's handshakes come in, and our answers are lost: the way there is closed.
#[test]
fn handshakes_that_come_in_are_no_sign_that_an_endpoint_works() {
    let mut interface = Interface::new(Some(native()));
    interface.path(true);
    for _ in 0..2 {
        interface.peer.rx_bytes += INITIATION;
        interface.sending(INITIATION + 92, 1);
        interface.sending(0, 4);
    }
    assert_eq!(interface.causes(), [Cause::Failed]);
}

/// A stream one way: what comes back is a keepalive every 10 s.
#[test]
fn a_one_way_stream_over_a_native_endpoint_is_left_alone() {
    let mut interface = Interface::with(Some(native()), Some(SECOND), BTreeMap::new());
    interface.path(true);
    for second in 0..300 {
        interface.send(100 * DATA);
        if second % 10 == 9 {
            interface.receive(32);
        }
        interface.later(SECOND);
    }
    assert_eq!(interface.causes(), []);
}

#[test]
fn without_a_path_a_dead_native_endpoint_is_kept_until_there_is_one() {
    let mut interface = Interface::new(Some(native()));
    interface.path(false);
    interface.sending(INITIATION, 60);
    assert_eq!(interface.causes(), []);
    interface.path(true);
    assert_eq!(
        interface.causes(),
        [Cause::Failed],
        "at once: it has had its trial"
    );
}

#[test]
fn a_peer_without_an_endpoint_gets_its_slot_once_wice_runs_there() {
    let mut interface = Interface::new(None);
    interface.sending(INITIATION, 60);
    assert_eq!(interface.causes(), [], "nobody there to talk to");
    interface.path(false);
    assert_eq!(interface.causes(), [Cause::Unset], "an advert is enough");
    assert_eq!(interface.peer.endpoint, Some(slot()));
    let (back, stay) = {
        interface.later(SECOND);
        interface.binder.restore()
    };
    assert_eq!((back, stay), (vec![], vec![KEY]));
}

#[test]
fn an_endpoint_that_is_reset_is_put_right_within_two_seconds_and_counted() {
    for traffic in [0, DATA] {
        let mut interface = Interface::on_slot();
        for times in 1..=3 {
            interface.peer.endpoint = Some(native());
            let reset = interface.now;
            while interface.peer.endpoint != Some(slot()) {
                interface.send(traffic);
                interface.later(SECOND);
            }
            assert!(interface.now - reset <= SECOND * 2);
            let cause = Cause::Reset { times, every: None };
            assert_eq!(interface.causes(), [cause]);
            interface.told.clear();
            interface.handshake();
            interface.later(SECOND * 5 * times as u32);
        }
        assert_eq!(interface.binder.resets(&KEY), 3);
    }
}

/// Traffic in the moment of the reset looks like roaming for one look.
#[test]
fn a_reset_under_traffic_is_put_right_within_two_seconds() {
    let mut interface = Interface::on_slot();
    interface.send(DATA);
    interface.receive(DATA);
    interface.peer.endpoint = Some(native());
    let reset = interface.now;
    while interface.peer.endpoint != Some(slot()) {
        interface.later(SECOND);
        interface.send(DATA);
    }
    assert!(interface.now - reset <= SECOND * 2);
    // An address that was never tried gets its trial, and no more.
    interface.handshake();
    interface.later(SECOND);
    interface.peer.endpoint = Some(elsewhere());
    let reset = interface.now;
    while interface.peer.endpoint != Some(slot()) {
        interface.send(DATA);
        interface.later(SECOND);
    }
    assert!(interface.now - reset <= SECOND * 2);
    assert_eq!(interface.binder.resets(&KEY), 2);
}

#[test]
fn a_program_that_resets_regularly_is_told_by_its_distance() {
    let mut interface = Interface::on_slot();
    for _ in 0..6 {
        interface.replace(Some(native()));
        interface.sending(INITIATION, 1);
        interface.handshake();
        interface.sending(0, 9);
    }
    let last = interface.causes().pop().unwrap();
    let Cause::Reset { times: 6, every } = last else {
        panic!("{last:?}");
    };
    assert_eq!(every, Some(SECOND * 10));
}

/// All peers replaced: the endpoint is what the file says, or none; counters begin anew.
#[test]
fn a_peer_that_is_replaced_is_put_right_at_the_next_look() {
    for configured in [Some(native()), None] {
        let mut interface = Interface::on_slot();
        interface.receive(1 << 30);
        interface.send(1 << 30);
        interface.later(SECOND);
        interface.replace(configured);
        interface.send(INITIATION);
        interface.later(SECOND);
        assert_eq!(interface.peer.endpoint, Some(slot()), "{configured:?}");
        assert_eq!(interface.binder.resets(&KEY), 1);
    }
}

#[test]
fn an_endpoint_that_wireguard_roamed_to_is_left_while_something_comes() {
    let mut interface = Interface::on_slot();
    interface.receive(DATA);
    interface.peer.endpoint = Some(elsewhere());
    for _ in 0..60 {
        interface.later(SECOND);
        interface.send(DATA);
        interface.receive(DATA);
    }
    assert_eq!(interface.causes(), []);
    assert_eq!(
        interface.told,
        [Event::Left {
            key: KEY,
            endpoint: elsewhere()
        }]
    );
    // Somebody's roaming is not somebody's will: a detach goes back to what was configured.
    assert_eq!(
        interface.binder.originals(),
        BTreeMap::from([(KEY, native())])
    );
    // It dies: the slot again, and that is no reset.
    interface.sending(DATA, 17);
    assert_eq!(interface.causes(), [Cause::Failed]);
    assert_eq!(interface.binder.resets(&KEY), 0);
}

/// Even where nothing was ever heard from the same address before.
#[test]
fn a_dead_endpoint_that_comes_to_life_is_roamed_to() {
    let mut interface = Interface::on_slot();
    interface.receive(DATA);
    interface.peer.endpoint = Some(native());
    interface.later(Duration::from_millis(500));
    for _ in 0..10 {
        interface.send(DATA);
        interface.receive(DATA);
        interface.later(SECOND);
    }
    assert_eq!(interface.causes(), []);
}

#[test]
fn an_endpoint_that_somebody_sets_and_that_works_is_left() {
    let mut interface = Interface::on_slot();
    interface.peer.endpoint = Some(elsewhere());
    interface.later(SECOND);
    assert_eq!(interface.causes(), [], "idle: nobody misses anything");
    for _ in 0..30 {
        interface.send(DATA);
        interface.receive(DATA);
        interface.later(SECOND);
    }
    assert_eq!(interface.causes(), []);
    assert_eq!(
        interface.binder.originals(),
        BTreeMap::from([(KEY, elsewhere())])
    );
}

#[test]
fn without_a_path_the_native_endpoint_is_tried_again_after_30_s() {
    let mut interface = Interface::on_slot();
    interface.path(false);
    interface.sending(DATA, 28);
    assert_eq!(interface.causes(), []);
    interface.sending(DATA, 4);
    assert_eq!(interface.causes(), [Cause::Retry]);
    assert_eq!(interface.peer.endpoint, Some(native()));
    // Nothing answers there either: it stays, until a path is ready.
    interface.sending(INITIATION, 100);
    assert_eq!(interface.causes(), [Cause::Retry]);
    interface.path(true);
    assert_eq!(interface.causes(), [Cause::Retry, Cause::Failed]);
    assert_eq!(interface.binder.resets(&KEY), 0, "it was our own doing");
}

#[test]
fn a_retry_that_works_is_kept() {
    let mut interface = Interface::on_slot();
    interface.path(false);
    interface.sending(DATA, 32);
    interface.handshake();
    interface.later(SECOND);
    interface.path(true);
    for _ in 0..60 {
        interface.send(DATA);
        interface.receive(DATA);
        interface.later(SECOND);
    }
    assert_eq!(interface.causes(), [Cause::Retry]);
}

#[test]
fn after_a_restart_the_original_is_remembered_and_the_slot_is_ours() {
    let remembered = BTreeMap::from([(KEY, native())]);
    let mut interface = Interface::with(Some(slot()), Some(SECOND), remembered);
    assert_eq!(interface.binder.standing(&KEY), Some(Standing::Ours));
    assert_eq!(interface.binder.restore().0, [(KEY, native())]);
    interface.path(true);
    interface.sending(DATA, 60);
    assert_eq!(interface.causes(), []);
    // Nobody publishes for it, and there is no path: its own endpoint is tried.
    let remembered = BTreeMap::from([(KEY, native())]);
    let mut interface = Interface::with(Some(slot()), None, remembered);
    interface.sending(0, 12);
    assert_eq!(interface.causes(), [Cause::Retry]);
}

/// A path that needs no proxy has an endpoint of its own.
#[test]
fn an_endpoint_follows_the_path() {
    let mut interface = Interface::on_slot();
    let direct = |ready| PathState {
        advert: true,
        ready: Some(ready),
    };
    interface
        .binder
        .handle_path(&KEY, direct(elsewhere()), interface.now);
    interface.settle();
    assert_eq!(interface.peer.endpoint, Some(elsewhere()));
    interface.later(SECOND);
    assert_eq!(interface.binder.standing(&KEY), Some(Standing::Ours));
    interface
        .binder
        .handle_path(&KEY, direct(slot()), interface.now);
    interface.settle();
    interface.later(SECOND);
    assert_eq!(interface.causes(), [Cause::Moved, Cause::Moved]);
    assert_eq!(interface.binder.restore().0, [(KEY, native())]);
}

/// What cannot be set is tried at every look, and counted once.
#[test]
fn a_reset_that_cannot_be_answered_is_counted_once() {
    let mut interface = Interface::on_slot();
    interface.deaf = true;
    interface.peer.endpoint = Some(native());
    interface.sending(DATA, 10);
    assert_eq!(interface.causes().len(), 10);
    assert_eq!(interface.binder.resets(&KEY), 1);
}

#[test]
fn peers_come_and_go() {
    let mut interface = Interface::new(Some(native()));
    assert_eq!(interface.told, [Event::Added(KEY)]);
    assert!(interface.binder.take_changed() && !interface.binder.take_changed());
    interface.told.clear();
    let other = Sighting {
        key: OTHER,
        ..interface.peer
    };
    let now = interface.now;
    interface.binder.handle_device(&[other], now);
    interface.settle();
    assert_eq!(interface.told, [Event::Removed(KEY), Event::Added(OTHER)]);
    assert_eq!(interface.binder.standing(&KEY), None);
    // A path of one that is gone is nobody's.
    let path = PathState {
        advert: true,
        ready: Some(slot()),
    };
    interface.binder.handle_path(&KEY, path, now);
    assert_eq!(interface.binder.poll_event(), None);
}

/// Counters that jump, stand still, go back and overflow cause no panic, and no endpoint that is
/// neither theirs nor ours.
#[test]
fn hostile_counters_do_no_harm() {
    let mut state = 0x9e37_79b9_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut interface = Interface::new(Some(native()));
    for _ in 0..20_000 {
        let edge = [0, 1, 31, 32, 33, 148, u64::MAX - 1, u64::MAX];
        interface.peer.rx_bytes = edge[(random() % 8) as usize];
        interface.peer.tx_bytes = edge[(random() % 8) as usize];
        interface.peer.handshake = match random() % 4 {
            0 => None,
            1 => Some(Duration::MAX),
            _ => Some(Duration::from_secs(random() % 3)),
        };
        match random() % 20 {
            0 => interface.peer.endpoint = None,
            1 => interface.peer.endpoint = Some(elsewhere()),
            2 => interface.peer.endpoint = Some(native()),
            3 => interface.path(true),
            4 => interface.path(false),
            _ => {}
        }
        interface.later(Duration::from_millis(random() % 3000));
        interface.told.clear();
        let allowed = [None, Some(native()), Some(elsewhere()), Some(slot())];
        assert!(allowed.contains(&interface.peer.endpoint));
    }
}
