use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::time::Duration;

use wice_signaling::protocol::{PrivateKey, Session};

use super::*;
use crate::core::node::{Admission, HostSocket, NodeConfig};
use crate::core::slots::slot_of;
use crate::io::packet_loop::links::RelayLink;
use crate::io::udp::{SLOTS, UdpSocket};

const KEY: PublicKey = PublicKey([5; 32]);
const PEER: PeerId = PeerId(0);
/// Longer than loopback ever takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited for what is not to come.
const SILENCE: Duration = Duration::from_millis(100);

/// A plane between a socket that plays WireGuard and one that plays the peer.
struct Rig {
    plane: BySlots,
    links: Links,
    notes: Notes,
    node: Node,
    buffers: ReceiveBuffers,
    wireguard: StdSocket,
    peer: StdSocket,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        let node = Node::new(
            NodeConfig {
                key: PrivateKey::from_bytes([9; 32]),
                session: Session([1; 16]),
                sequence: 1,
                name: "test".to_owned(),
                admission: Admission::Added,
                membership: Vec::new(),
                seed: [3; 32],
            },
            now,
        );
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let wireguard = StdSocket::bind(any).unwrap();
        let peer = StdSocket::bind(any).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        wireguard.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut plane = BySlots::new(SlotSocket::open(0).unwrap(), node.public_key());
        plane.add_peer(PEER, &KEY);
        plane.port = Some(wireguard.local_addr().unwrap().port());
        Self {
            plane,
            links: Links::new(Some(UdpSocket::bind(any).unwrap()), None),
            notes: Notes::default(),
            node,
            buffers: ReceiveBuffers::new(),
            wireguard,
            peer,
            now,
        }
    }

    fn slot(&self) -> SocketAddr {
        let port = self.plane.socket.udp().local_addr().unwrap().port();
        SocketAddr::from((slot_of(&KEY), port))
    }

    fn route(&self) -> Route {
        Route::Host {
            socket: HostSocket::Own,
            local: Ipv4Addr::LOCALHOST.into(),
            interface: 0,
            remote: self.peer.local_addr().unwrap(),
        }
    }

    fn bind(&mut self, routes: Vec<Route>) {
        self.bind_to(routes, false);
    }

    fn bind_to(&mut self, routes: Vec<Route>, native: bool) {
        let Self {
            plane,
            links,
            notes,
            now,
            ..
        } = self;
        plane.bind(PEER, routes, native, links, notes, *now);
    }

    /// Takes `datagrams` from the slots' socket, however the kernel hands them over.
    fn pump(&mut self, datagrams: u64) {
        let start = Instant::now();
        let seen = |plane: &BySlots| plane.socket.udp().counters().received;
        let wanted = seen(&self.plane) + datagrams;
        while seen(&self.plane) < wanted {
            assert!(start.elapsed() < PATIENCE, "nothing came to the slots");
            if self.plane.socket.receive(&mut self.buffers).unwrap() > 0 {
                self.plane
                    .take_slots(&self.buffers, &self.links, &mut self.notes, self.now);
            }
        }
    }

    /// The same for the shared socket.
    fn pump_host(&mut self, datagrams: u64) {
        let start = Instant::now();
        let seen = |links: &Links| links.v4.as_ref().unwrap().counters().received;
        let wanted = seen(&self.links) + datagrams;
        while seen(&self.links) < wanted {
            assert!(start.elapsed() < PATIENCE, "nothing came to the socket");
            let socket = self.links.v4.as_ref().unwrap();
            if socket.receive(&mut self.buffers).unwrap() > 0 {
                self.plane
                    .take_host(&self.buffers, &mut self.node, &mut self.notes, self.now);
            }
        }
    }

    fn counters(&self) -> crate::core::slots::SlotCounters {
        self.plane.slots.counters
    }
}

fn message(kind: u8, first: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[0] = kind;
    bytes[4..8].copy_from_slice(&first.to_le_bytes());
    bytes
}

fn receive(socket: &StdSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).expect("within the patience");
    (buffer[..len].to_vec(), from)
}

fn is_silent(socket: &StdSocket) -> bool {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let silent = socket.recv_from(&mut [0; 2048]).is_err();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    silent
}

#[test]
fn data_goes_both_ways_in_order_and_from_the_slot() {
    let mut rig = Rig::new();
    let route = rig.route();
    rig.bind(vec![route]);
    rig.wireguard
        .send_to(&message(1, 77, 148), rig.slot())
        .unwrap();
    rig.pump(1);
    assert_eq!(receive(&rig.peer).0, message(1, 77, 148));
    // Forty single datagrams, as kernel WireGuard sends them, leave in few calls.
    for number in 0..40 {
        let mut datagram = message(4, 5, 1400);
        datagram[20] = number;
        rig.wireguard.send_to(&datagram, rig.slot()).unwrap();
    }
    let before = rig.links.v4.as_ref().unwrap().counters().send_calls;
    rig.pump(40);
    let calls = rig.links.v4.as_ref().unwrap().counters().send_calls - before;
    assert!(calls <= 40 / SLOTS as u64 + 1, "{calls} calls");
    for number in 0..40 {
        assert_eq!(receive(&rig.peer).0[20], number);
    }
    // Back, told by the session that our initiation began.
    let host = rig.links.v4.as_ref().unwrap().local_addr().unwrap();
    for number in 0..20 {
        let mut datagram = message(4, 77, 1000);
        datagram[20] = number;
        rig.peer.send_to(&datagram, host).unwrap();
    }
    rig.pump_host(20);
    for number in 0..20 {
        let (datagram, from) = receive(&rig.wireguard);
        assert_eq!((datagram[20], from), (number, rig.slot()));
    }
    let stats = rig.plane.slots.stats(PEER).unwrap();
    assert_eq!(
        (stats.tx_bytes, stats.rx_bytes),
        (148 + 40 * 1400, 20 * 1000)
    );
    // Told once, whatever came how often.
    assert_eq!(rig.notes.received.len(), 1);
    assert_eq!(rig.notes.sent.len(), 2);
    assert_eq!(rig.counters(), crate::core::slots::SlotCounters::default());
}

#[test]
fn only_wireguards_port_may_send_through_a_slot() {
    let mut rig = Rig::new();
    let route = rig.route();
    rig.bind(vec![route]);
    let stranger = StdSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&message(4, 1, 64), rig.slot()).unwrap();
    // The right port is not enough.
    let port = rig.wireguard.local_addr().unwrap().port();
    let elsewhere = StdSocket::bind(("127.0.0.2", port)).unwrap();
    elsewhere.send_to(&message(4, 1, 64), rig.slot()).unwrap();
    rig.pump(2);
    assert_eq!(rig.counters().wrong_source, 2);
    assert!(is_silent(&rig.peer));
    // Nor is anybody's port while WireGuard's is not known.
    rig.plane.port = None;
    rig.wireguard
        .send_to(&message(4, 1, 64), rig.slot())
        .unwrap();
    rig.pump(1);
    assert_eq!(rig.counters().no_port, 1);
    assert!(is_silent(&rig.peer));
}

#[test]
fn what_is_no_message_and_who_is_no_peer_ends_here() {
    let mut rig = Rig::new();
    let route = rig.route();
    rig.bind(vec![route]);
    rig.wireguard.send_to(b"hello", rig.slot()).unwrap();
    let mut nobody = rig.slot();
    nobody.set_ip(Ipv4Addr::new(127, 9, 9, 9).into());
    rig.wireguard.send_to(&message(4, 1, 64), nobody).unwrap();
    rig.pump(2);
    assert_eq!(
        (rig.counters().malformed_out, rig.counters().unknown_slot),
        (1, 1)
    );
    assert!(is_silent(&rig.peer));
    let host = rig.links.v4.as_ref().unwrap().local_addr().unwrap();
    for datagram in [message(4, 1, 64), message(1, 1, 148), message(9, 1, 148)] {
        rig.peer.send_to(&datagram, host).unwrap();
    }
    rig.pump_host(3);
    let counters = rig.counters();
    assert_eq!(
        (
            counters.unknown_sender,
            counters.unknown_initiation,
            counters.malformed_in
        ),
        (1, 1, 1)
    );
    assert!(is_silent(&rig.wireguard));
}

#[test]
fn the_handshake_that_found_no_path_leaves_with_the_path() {
    let mut rig = Rig::new();
    rig.wireguard
        .send_to(&message(1, 1, 148), rig.slot())
        .unwrap();
    rig.wireguard
        .send_to(&message(1, 2, 148), rig.slot())
        .unwrap();
    rig.wireguard
        .send_to(&message(4, 2, 64), rig.slot())
        .unwrap();
    rig.pump(3);
    assert_eq!(rig.counters().no_path, 3);
    // The core hears that somebody waits.
    let waiting = (PEER, WireGuardPacket::HandshakeInitiation);
    assert!(rig.notes.sent.contains(&waiting));
    rig.bind(Vec::new());
    assert!(is_silent(&rig.peer));
    let route = rig.route();
    rig.bind(vec![route]);
    assert_eq!(receive(&rig.peer).0, message(1, 2, 148));
    rig.bind(vec![route]);
    assert!(is_silent(&rig.peer));
}

#[test]
fn an_answer_goes_back_where_the_question_came_from() {
    let mut rig = Rig::new();
    let arrival = Arrival::Host {
        socket: HostSocket::Own,
        local: Ipv4Addr::LOCALHOST.into(),
        interface: 0,
        from: rig.peer.local_addr().unwrap(),
    };
    rig.plane.slots.note_asked(PEER, arrival, rig.now);
    rig.wireguard
        .send_to(&message(2, 1, 92), rig.slot())
        .unwrap();
    rig.pump(1);
    assert_eq!(receive(&rig.peer).0, message(2, 1, 92));
    assert_eq!(rig.counters().no_path, 0);
    // Through a relay it is the core's to send, which knows of channels and permissions.
    let relay = RelayId(3);
    let from = rig.peer.local_addr().unwrap();
    let arrival = Arrival::Relay { relay, from };
    rig.plane.slots.note_asked(PEER, arrival, rig.now);
    rig.wireguard
        .send_to(&message(2, 1, 92), rig.slot())
        .unwrap();
    rig.pump(1);
    let expected = (relay, from, message(2, 1, 92));
    assert_eq!(rig.notes.relay_replies, [expected]);
}

#[test]
fn during_a_switch_both_routes_carry_it_one_of_them_relayed() {
    let mut rig = Rig::new();
    let server = StdSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let local = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let link = UdpSocket::connect(local, server.local_addr().unwrap(), None).unwrap();
    let relay = RelayId(1);
    rig.links.relays.insert(relay, RelayLink::Udp(link));
    let routes = vec![
        Route::Relayed {
            relay,
            channel: 0x4003,
        },
        rig.route(),
    ];
    rig.bind(routes);
    rig.wireguard
        .send_to(&message(4, 1, 60), rig.slot())
        .unwrap();
    rig.wireguard
        .send_to(&message(4, 1, 60), rig.slot())
        .unwrap();
    rig.pump(2);
    for _ in 0..2 {
        let framed = receive(&server).0;
        assert_eq!(framed[..4], [0x40, 0x03, 0, 60]);
        assert_eq!(framed[4..], message(4, 1, 60));
        assert_eq!(receive(&rig.peer).0, message(4, 1, 60));
    }
}

#[test]
fn a_closed_port_is_noticed_by_what_is_sent_to_it() {
    let mut rig = Rig::new();
    let port = rig.plane.port;
    rig.wireguard
        .send_to(&message(1, 77, 148), rig.slot())
        .unwrap();
    rig.pump(1);
    // Another program has the port now, and would be believed.
    rig.wireguard = StdSocket::bind("127.0.0.1:0").unwrap();
    let host = rig.links.v4.as_ref().unwrap().local_addr().unwrap();
    rig.peer.send_to(&message(4, 77, 64), host).unwrap();
    rig.pump_host(1);
    let start = Instant::now();
    let mut closed = None;
    while closed.is_none() && start.elapsed() < PATIENCE {
        closed = rig.plane.take_errors();
    }
    assert_eq!(closed, port);
    assert_eq!(rig.plane.port, None);
    rig.peer.send_to(&message(4, 77, 64), host).unwrap();
    rig.pump_host(1);
    assert_eq!(rig.counters().no_port, 1);
}

/// At the port of the peer's WireGuard nobody could drop an initiation that crosses theirs, so its wice gets it.
#[test]
fn what_could_cross_at_wireguards_own_port_goes_to_the_peers_wice() {
    let mut rig = Rig::new();
    let own = rig.node.public_key();
    for (encloses, key) in [(false, PublicKey([0; 32])), (true, PublicKey([0xff; 32]))] {
        assert_eq!(own < key, encloses);
        rig.plane.remove_peer(PEER);
        rig.plane.add_peer(PEER, &key);
        rig.plane.slots.hold(PEER, &message(1, 1, 148), rig.now);
        let route = rig.route();
        rig.bind_to(vec![route], true);
        let mut slot = rig.slot();
        slot.set_ip(slot_of(&key).into());
        // WireGuard repeats it, and again: every third one is for WireGuard, should there be no wice.
        for sender in [2, 3, 4] {
            rig.now += Duration::from_secs(5);
            let again = message(1, sender, 148);
            rig.wireguard.send_to(&again, slot).unwrap();
            rig.pump(1);
        }
        for sender in if encloses { &[3][..] } else { &[1, 2, 3, 4] } {
            assert_eq!(receive(&rig.peer).0, message(1, *sender, 148));
        }
        assert!(is_silent(&rig.peer));
        let enclosed: Vec<Vec<u8>> = rig
            .notes
            .enclosed
            .drain(..)
            .map(|(_, i)| i.to_vec())
            .collect();
        let others = [1, 2, 4].map(|sender| message(1, sender, 148));
        assert_eq!(enclosed, if encloses { &others[..] } else { &[] });
        // What follows is for WireGuard itself, and cannot cross anything.
        rig.wireguard.send_to(&message(4, 9, 64), slot).unwrap();
        rig.pump(1);
        assert_eq!(receive(&rig.peer).0, message(4, 9, 64));
    }
}

/// WireGuard has sent an initiation before it was handed the peer's, and it is still here: by its answer WireGuard has forgotten it.
#[test]
fn an_initiation_that_the_answer_has_overtaken_stays_here() {
    let mut rig = Rig::new();
    let route = rig.route();
    let arrival = Arrival::Host {
        socket: HostSocket::Own,
        local: Ipv4Addr::LOCALHOST.into(),
        interface: 0,
        from: rig.peer.local_addr().unwrap(),
    };
    let brought: [u8; INITIATION_LEN] = message(1, 7, 148).try_into().unwrap();
    let rounds = [(false, true), (true, true), (false, false), (true, false)];
    for (ours, (had_no_path, answered)) in (10..).zip(rounds) {
        let ours = message(1, ours, 148);
        // The answer of the round before is long overdue.
        rig.now += Duration::from_secs(10);
        rig.bind(if had_no_path { vec![] } else { vec![route] });
        if had_no_path {
            rig.wireguard.send_to(&ours, rig.slot()).unwrap();
            rig.pump(1);
        }
        let Rig {
            plane, notes, now, ..
        } = &mut rig;
        plane.take_enclosed(PEER, arrival, &brought, notes, *now);
        assert_eq!(receive(&rig.wireguard).0, brought);
        if had_no_path {
            rig.bind(vec![route]);
        } else {
            rig.wireguard.send_to(&ours, rig.slot()).unwrap();
            rig.pump(1);
        }
        assert!(is_silent(&rig.peer));
        let due = rig.plane.poll_timeout().unwrap();
        if answered {
            let answer = message(2, 9, 92);
            rig.wireguard.send_to(&answer, rig.slot()).unwrap();
            rig.pump(1);
            assert_eq!(receive(&rig.peer).0, answer);
        }
        assert_eq!(rig.plane.poll_timeout().is_none(), answered);
        rig.now = due;
        let Rig {
            plane,
            links,
            notes,
            now,
            ..
        } = &mut rig;
        plane.handle_timeout(links, notes, *now);
        assert_eq!(plane.poll_timeout(), None);
        if !answered {
            // The peer's was no initiation that WireGuard would answer.
            assert_eq!(receive(&rig.peer).0, ours);
        }
        rig.bind(vec![route]);
        assert!(is_silent(&rig.peer));
    }
}

#[test]
fn whether_wireguard_still_listens_is_known_within_the_call_and_not_asked_too_often() {
    let mut rig = Rig::new();
    assert_eq!(rig.plane.knock(rig.now), None, "it listens");
    let mut buffer = [0; 8];
    assert_eq!(rig.wireguard.recv(&mut buffer).unwrap(), 1, "no message");
    let port = rig.plane.port;
    // Closed, while the raw socket beside it goes on hearing what comes.
    rig.wireguard = StdSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(rig.plane.knock(rig.now), None, "too soon");
    let later = rig.now + KNOCK_EVERY;
    assert_eq!(rig.plane.knock(later), port);
    assert_eq!(rig.plane.port, None);
    assert_eq!(rig.plane.knock(later + KNOCK_EVERY), None, "told once");
}
