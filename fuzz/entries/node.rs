//! A whole node of a network, with anything from anyone between what its peer, its STUN server and
//! its relay say.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use stun_types::attribute::AttributeStaticType as _;
use stun_types::message::{Message, MessageClass};
use turn_types::attribute::{Data, XorPeerAddress};
use turn_types::message::SEND;
use wice::core::credentials::{End, derive};
use wice::core::ice::Credentials;
use wice::core::node::{
    Admission, Arrival, Event, HostAddress, HostSocket, Node, NodeConfig, RelayId, RelayServer,
    StunServer, Via, WireGuardPacket,
};
use wice::core::stun::{
    Binding, BindingClass, Check, RoleClaim, TransactionId, encode_error, encode_success,
    integrity_key, is_stun,
};
use wice_signaling::protocol::{
    Presence, PrivateKey, RelayTransport, RevocationList, Session, normalize_candidates,
};

use super::Fed;
use super::relay::{Answer, PASSWORD, USER, respond};
use super::script::Script;
use super::world::{OWN_SESSION, PEER_SESSION, Z, advert_of, candidates, world};

/// Messages of the node that answers may come to.
const MAX_KEPT: usize = 12;
/// The owner is called this often at one moment at most.
const MAX_WAKES: u32 = 100;
/// A step passes over at most so many of the node's own stops.
const MAX_STOPS: usize = 16;
const PORT: u16 = 51_821;

struct Rig {
    node: Node,
    now: Instant,
    /// Checks and gathering requests, with where an answer comes in.
    asked: Vec<(Arrival, Vec<u8>)>,
    /// Requests to relays.
    asked_relays: Vec<(RelayId, Vec<u8>)>,
    relays: Vec<RelayId>,
    /// Answers to others' checks since they were last looked at.
    replies: usize,
    next_id: u128,
    fed: Fed,
}

pub(super) fn node(data: &[u8]) -> Fed {
    let mut script = Script::new(data);
    let mut rig = Rig::new();
    while let Some(step) = script.step() {
        rig.step(step % 48, &mut script);
        rig.collect();
    }
    let snapshot = rig.node.snapshot(rig.now);
    assert!(snapshot.peers.len() <= 2, "the peer and the second member");
    rig.fed
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // Time, answers to all that was asked, checks of the peer, data.
    let calm = [
        0, 20, 2, 20, 0, 0, 0, 0, 1, 0, 0, 1, 20, 1, 0, 0, 1, 1, 0, 0, 1, 9, 0, 0, 1, 0, 0, 0, 9,
        1, 1, 1, 3, 1, 2, 0, 1, 42, 3, 1, 42, 0, 0, 1, 0, 100, 5,
    ];
    let relay = [
        31, 0, 0, 34, 0, 0, 0, 0, 0, 0, 0, 34, 1, 0, 0, 0, 200, 0, 2, 0, 0, 0, 0, 0, 100, 1,
    ];
    let rising: Vec<u8> = (0..=255).collect();
    let adverts: Vec<u8> = (0..40)
        .flat_map(|n| [29, 0, n, n, 3, 1, 2, 3, 2, 0, n % 5])
        .collect();
    vec![
        calm.repeat(20),
        [&relay[..], &calm.repeat(10)].concat(),
        rising.repeat(4),
        adverts,
    ]
}

fn hosts(script: &mut Script<'_>) -> Vec<HostAddress> {
    let of = |text: &str, interface| HostAddress {
        address: SocketAddr::new(text.parse().unwrap(), PORT),
        interface,
    };
    let all = [
        of("192.168.1.10", 1),
        of("2001:db8::10", 1),
        of("203.0.113.77", 2),
        of("127.0.0.1", 3),
    ];
    let mask = script.byte() | 1;
    let chosen = |(n, host): (usize, HostAddress)| (mask & 1 << n != 0).then_some(host);
    all.into_iter().enumerate().filter_map(chosen).collect()
}

fn relay_servers() -> Vec<RelayServer> {
    let of = |transport| RelayServer {
        name: "relay.example".to_owned(),
        address: SocketAddr::from(([198, 51, 100, 9], 3478)),
        transport,
        username: USER.to_owned(),
        password: PASSWORD.to_owned(),
    };
    vec![of(RelayTransport::Udp), of(RelayTransport::Tcp)]
}

fn stun_servers(count: usize) -> Vec<StunServer> {
    let of = |n: u8| StunServer {
        name: format!("stun-{n}"),
        address: SocketAddr::from(([198, 51, 100, 3 + n], 3478)),
    };
    (0..count as u8).map(of).collect()
}

impl Rig {
    fn new() -> Self {
        let world = world();
        let own = world.own_key;
        let config = NodeConfig {
            key: world.own.clone(),
            session: OWN_SESSION,
            sequence: 1,
            name: "own".to_owned(),
            admission: Admission::Members(world.network),
            membership: world.invite.sign_member(&world.network, &own).encode(),
            seed: [9; 32],
        };
        let now = world.start;
        let mut node = Node::new(config, now);
        node.handle_advert(&world.advert, now).unwrap();
        node.handle_addresses(&hosts(&mut Script::new(&[7])), now);
        node.handle_stun_servers(&stun_servers(1), now);
        node.handle_relay_servers(&relay_servers(), now);
        let mut rig = Self {
            node,
            now,
            asked: Vec::new(),
            asked_relays: Vec::new(),
            relays: Vec::new(),
            replies: 0,
            next_id: 1 << 80,
            fed: Fed::default(),
        };
        rig.collect();
        rig
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        match step {
            0..=4 => self.pass(script.time()),
            5..=8 => {
                let bytes = script.bytes(255);
                self.receive(bytes, false, script);
            }
            9..=19 => {
                let whole = self.check(script);
                let mut bytes = whole.clone();
                if script.below(4) == 0 {
                    script.damage(&mut bytes);
                }
                self.receive(&bytes, bytes == whole, script);
            }
            20..=27 => self.answer(script),
            // Signatures cost most: few of them.
            28 => {
                let mut record = world().advert.clone();
                script.damage(&mut record);
                self.advert(&record);
            }
            29 => {
                let record = self.fresh_advert(script);
                self.advert(&record);
            }
            30 => self.revoke(script),
            31..=33 => self.relay(script),
            34..=39 => self.answer_relay(script),
            40 => self.node.handle_addresses(&hosts(script), self.now),
            41 => match script.below(7) {
                4 => self.presence(script),
                5 => self.node.handle_signaling_lost(self.now),
                6 => {
                    let server = SocketAddr::from(([198, 51, 100, 3], 3478));
                    self.node.handle_refused(server, self.now);
                }
                0 => self.node.handle_network_change(self.now),
                1 => {
                    let servers = stun_servers(script.below(4));
                    self.node.handle_stun_servers(&servers, self.now);
                }
                2 => self.node.handle_relay_servers(&[], self.now),
                _ => self.node.handle_relay_servers(&relay_servers(), self.now),
            },
            42..=45 => self.traffic(script),
            46 => {
                let quoted = match self.asked.get(script.below(MAX_KEPT)) {
                    Some((_, payload)) => payload.clone(),
                    None => script.bytes(40).to_vec(),
                };
                self.node.handle_unreachable(&quoted, self.now);
            }
            _ => {
                // The record as it was, or an old one again.
                self.advert(&world().advert);
            }
        }
    }

    fn presence(&mut self, script: &mut Script<'_>) {
        let last_seen_s = script.u32();
        let presence = [
            Presence::Connected,
            Presence::Lost { last_seen_s },
            Presence::Left { last_seen_s },
        ][script.below(3)];
        let keys = [world().peer_key, world().own_key];
        let key = keys[usize::from(script.below(8) == 0)];
        self.node.handle_presence(&key, presence, self.now);
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut wakes = 0;
        for _ in 0..MAX_STOPS {
            let Some((at, why)) = self.node.poll_timeout().filter(|(at, _)| *at <= end) else {
                break;
            };
            wakes = if at > self.now { 0 } else { wakes + 1 };
            assert!(wakes < MAX_WAKES, "{why} never comes to rest");
            self.now = self.now.max(at);
            self.node.handle_timeout(self.now);
            self.fed.count(false);
            self.collect();
        }
        self.now = end;
        self.node.handle_timeout(end);
    }

    fn collect(&mut self) {
        while let Some(transmit) = self.node.poll_transmit() {
            match transmit.via {
                Via::Host {
                    socket,
                    local,
                    interface,
                    remote,
                } => {
                    let arrival = Arrival::Host {
                        socket,
                        local,
                        interface,
                        from: remote,
                    };
                    let class = Binding::parse(&transmit.payload).map(|m| m.class());
                    if class == Some(BindingClass::Request) {
                        keep(&mut self.asked, (arrival, transmit.payload));
                    } else {
                        self.replies += 1;
                    }
                }
                Via::Relay { relay, .. } => self.collect_relayed(relay, transmit.payload),
            }
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::OpenRelay { relay, .. } => keep(&mut self.relays, relay),
                Event::CloseRelay(gone) => self.relays.retain(|relay| *relay != gone),
                Event::Bind { routes, .. } => assert!(routes.len() <= 2),
                Event::Publish { .. }
                | Event::PeerAdded { .. }
                | Event::PeerRemoved { .. }
                | Event::PathChanged { .. }
                | Event::Initiation { .. } => {}
            }
        }
    }

    fn collect_relayed(&mut self, relay: RelayId, payload: Vec<u8>) {
        if payload[0] >= 0x40 {
            return;
        }
        let message = Message::from_bytes(&payload).expect("our own message");
        if message.class() != MessageClass::Indication || !message.has_method(SEND) {
            return keep(&mut self.asked_relays, (relay, payload));
        }
        let peer = message.attribute::<XorPeerAddress>();
        let data = message.raw_attribute(Data::TYPE);
        if let (Ok(peer), Some(data)) = (peer, data) {
            let from = peer.addr(message.transaction_id());
            let arrival = Arrival::Relay { relay, from };
            let check = data.value.to_vec();
            if Binding::parse(&check).is_some_and(|m| m.class() == BindingClass::Request) {
                keep(&mut self.asked, (arrival, check));
            }
        }
    }

    /// The peer's credentials and ours under one of its sessions.
    fn credentials(&self, session: Session) -> (Credentials, Credentials) {
        let world = world();

        let end = |key, session| End { key, session };
        derive(
            &world.shared,
            &end(world.own_key, OWN_SESSION),
            &end(world.peer_key, session),
        )
    }

    fn check(&mut self, script: &mut Script<'_>) -> Vec<u8> {
        let session = session(script);
        let (own, peer) = self.credentials(session);
        self.next_id += u128::from(script.flag());
        let tie_breaker = [1, 7, u64::MAX][script.below(3)];
        let check = Check {
            id: TransactionId::from(self.next_id),
            username: &format!("{}:{}", own.ufrag, peer.ufrag),
            priority: script.u32(),
            role: match script.flag() {
                true => RoleClaim::Controlling(tie_breaker),
                false => RoleClaim::Controlled(tie_breaker),
            },
            use_candidate: script.flag(),
            nomination: script.flag().then(|| u32::from(script.u16())),
        };
        check.encode(&integrity_key(&own.password))
    }

    fn receive(&mut self, bytes: &[u8], authentic: bool, script: &mut Script<'_>) {
        let arrival = self.arrival(script);
        self.collect();
        self.replies = 0;
        self.node.handle_datagram(arrival, bytes, self.now);
        self.collect();
        assert!(self.replies == 0 || authentic, "a stranger got a reply");
        assert!(self.replies <= 1);
        self.fed.count(self.replies > 0);
    }

    fn arrival(&self, script: &mut Script<'_>) -> Arrival {
        let from = script.address();
        match self.relays.get(script.below(8)) {
            Some(relay) => Arrival::Relay {
                relay: *relay,
                from,
            },
            None => Arrival::Host {
                socket: HostSocket::Own,
                local: IpAddr::from([192, 168, 1, 10 + u8::from(script.below(16) == 0)]),
                interface: 1,
                from,
            },
        }
    }

    /// An answer to a check or a gathering request.
    fn answer(&mut self, script: &mut Script<'_>) {
        let choice = script.below(MAX_KEPT);
        let newest = self.asked.len().saturating_sub(1);
        let Some((arrival, payload)) = self.asked.get(newest.saturating_sub(choice)) else {
            return;
        };
        let (arrival, payload) = (*arrival, payload.clone());
        let Some(request) = Binding::parse(&payload).filter(|_| is_stun(&payload)) else {
            return;
        };
        let session = session(script);
        let (_, peer) = self.credentials(session);
        let twist = script.byte();
        let key = match twist & 7 {
            7 => integrity_key("not the password of the other"),
            _ => integrity_key(&peer.password),
        };
        let bytes = match twist & 0x18 {
            0x18 => encode_error(request.id(), 300 + script.u16() % 400, &key),
            _ => encode_success(request.id(), script.address(), &key),
        };
        let before = self.node.counters();
        self.node.handle_datagram(arrival, &bytes, self.now);
        let after = self.node.counters();
        self.fed
            .count((before.unauthentic, before.strangers) == (after.unauthentic, after.strangers));
    }

    fn advert(&mut self, record: &[u8]) {
        let before = self.node.counters();
        let outcome = self.node.handle_advert(record, self.now);
        let after = self.node.counters();
        let (accepted, refused) = (u64::from(outcome.is_ok()), u64::from(outcome.is_err()));
        assert_eq!(after.adverts_accepted, before.adverts_accepted + accepted);
        assert_eq!(after.adverts_refused, before.adverts_refused + refused);
        self.fed.count(outcome.is_ok());
    }

    fn fresh_advert(&mut self, script: &mut Script<'_>) -> Vec<u8> {
        let world = world();
        let key = [&world.peer, &world.stranger, &world.own][script.below(3)];
        let sequence = match script.byte() {
            255 => u64::MAX,
            sequence => u64::from(sequence),
        };
        let mut given = candidates();
        for candidate in &mut given {
            candidate.address = script.address();
            candidate.priority = script.u32();
        }
        let session = session(script);
        let given = normalize_candidates(&given);
        let mut advert = advert_of(key, session, sequence, &given, &world.invite, world.network);
        if script.below(4) == 0 {
            advert.membership.pop();
        }
        advert.encode_signed(key, &Z).unwrap()
    }

    fn revoke(&mut self, script: &mut Script<'_>) {
        let world = world();
        let nodes: BTreeSet<_> = [&world.stranger, &world.peer]
            .into_iter()
            .take(script.below(3))
            .map(PrivateKey::public_key)
            .collect();
        let sequence = u64::from(script.byte());
        let list = RevocationList::sign(&world.admin, sequence, nodes, BTreeSet::new());
        let news = self.node.handle_revocations(list.unwrap(), self.now);
        self.fed.count(news);
    }

    fn relay(&mut self, script: &mut Script<'_>) {
        let Some(relay) = self.relays.get(script.below(4)).copied() else {
            return;
        };
        match script.below(4) {
            0 | 1 => self.node.handle_relay_connected(relay, self.now),
            2 if script.below(8) == 0 => self.node.handle_relay_closed(
                relay,
                wice::core::turn::Failure::ConnectionClosed,
                self.now,
            ),
            _ => {
                let bytes = script.bytes(200);
                self.relay_says(relay, bytes);
            }
        }
    }

    fn relay_says(&mut self, relay: RelayId, bytes: &[u8]) {
        let mut delivered = 0;
        if bytes.len().is_multiple_of(2) {
            let data = self.node.handle_relay_datagram(relay, bytes, self.now);
            delivered += usize::from(data.is_some());
        } else {
            let deliver = |_, _: &[u8]| delivered += 1;
            self.node
                .handle_relay_stream(relay, bytes, self.now, deliver);
        }
        self.fed.count(delivered > 0);
    }

    fn answer_relay(&mut self, script: &mut Script<'_>) {
        let choice = script.below(MAX_KEPT);
        let newest = self.asked_relays.len().saturating_sub(1);
        let Some((relay, request)) = self.asked_relays.get(newest.saturating_sub(choice)) else {
            return;
        };
        let kind = [
            Answer::Challenge,
            Answer::Success,
            Answer::Success,
            Answer::Refusal,
        ];
        let (relay, bytes) = (*relay, respond(request, kind[script.below(4)], script));
        self.node.handle_relay_datagram(relay, &bytes, self.now);
        self.fed.count(true);
    }

    fn traffic(&mut self, script: &mut Script<'_>) {
        let Some(peer) = self.node.peer_of(&world().peer_key) else {
            return;
        };
        let packets = [
            WireGuardPacket::HandshakeInitiation,
            WireGuardPacket::HandshakeResponse,
            WireGuardPacket::Keepalive,
            WireGuardPacket::Data,
        ];
        let packet = packets[script.below(4)];
        if script.flag() {
            self.node.note_sent(peer, packet, self.now);
        } else {
            let arrival = match self.asked.get(script.below(MAX_KEPT)) {
                Some((arrival, _)) => *arrival,
                None => self.arrival(script),
            };
            self.node.note_received(peer, arrival, packet, self.now);
        }
    }
}

fn session(script: &mut Script<'_>) -> Session {
    match script.below(4) {
        0 | 1 => PEER_SESSION,
        _ => Session([2 + script.byte() % 12; 16]),
    }
}

fn keep<T>(kept: &mut Vec<T>, item: T) {
    if kept.len() == MAX_KEPT {
        kept.remove(0);
    }
    kept.push(item);
}
