//! The world: hosts, routers, servers and signaling over one queue in virtual time.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use wice::core::node::{RelayServer, StunServer};
use wice_signaling::protocol::{PublicKey, RelayTransport};

use crate::host::{Host, Interface};
use crate::network::{Attached, HostId, INTERNET, Network, RealmId};
use crate::random::Random;
use crate::turn_server::{Client, Out, TurnServer, binding_success};

/// How often it is looked at whether something has come true.
pub(crate) const STEP: Duration = Duration::from_millis(5);

/// What the lines do to datagrams that cross the internet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) jitter: Duration,
}

/// What stands between two hosts, unseen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) between: (HostId, HostId),
    /// STUN passes.
    pub(crate) wireguard_only: bool,
}

pub(crate) struct Relay {
    pub(crate) server: TurnServer,
    pub(crate) alive: bool,
}

pub(crate) struct Stream {
    pub(crate) host: HostId,
    pub(crate) server: SocketAddr,
    pub(crate) seen: SocketAddr,
    pub(crate) open: bool,
}

/// An advert on its way, with the addresses in it.
pub(crate) type Record = Rc<(HostId, Vec<u8>, Vec<SocketAddr>)>;

pub(crate) struct Signaling {
    pub(crate) up: bool,
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    /// Share of messages that come a second late, as after a reconnect.
    pub(crate) late: f64,
    pub(crate) duplication: f64,
    pub(crate) records: BTreeMap<HostId, Record>,
    pub(crate) waiting: Vec<Record>,
}

#[derive(Clone)]
pub(crate) struct Packet {
    pub(crate) realm: RealmId,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// The host that sent it, not by way of a relay.
    pub(crate) origin: Option<HostId>,
    pub(crate) payload: Rc<[u8]>,
}

pub(crate) enum Happening {
    Start(HostId),
    Wake(HostId),
    Look(HostId),
    Arrive(Packet),
    Publish(Record),
    Advert(HostId, Record),
    StreamOpen(usize),
    StreamClosed(usize),
    ToServer(usize, Vec<u8>),
    ToHost(usize, Vec<u8>),
}

pub(crate) struct World {
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) random: Random,
    pub(crate) network: Network,
    pub(crate) hosts: Vec<Host>,
    pub(crate) relays: Vec<Relay>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) conditions: Conditions,
    pub(crate) signaling: Signaling,
    pub(crate) cuts: Vec<Cut>,
    pub(crate) servers: (Vec<StunServer>, Vec<RelayServer>),
    /// The one host that all others have as their only peer.
    pub(crate) hub: Option<HostId>,
    queue: BTreeMap<(Instant, u64), Happening>,
    next: u64,
    trace: DefaultHasher,
}

impl World {
    pub(crate) fn new(seed: u64, start: Instant) -> Self {
        let mut network = Network::default();
        network.add_realm(Duration::from_millis(20));
        Self {
            start,
            now: start,
            random: Random::new(seed),
            network,
            hosts: Vec::new(),
            relays: Vec::new(),
            streams: Vec::new(),
            conditions: Conditions::default(),
            signaling: Signaling {
                up: true,
                delay: Duration::from_millis(20),
                jitter: Duration::ZERO,
                late: 0.0,
                duplication: 0.0,
                records: BTreeMap::new(),
                waiting: Vec::new(),
            },
            cuts: Vec::new(),
            servers: (Vec::new(), Vec::new()),
            hub: None,
            queue: BTreeMap::new(),
            next: 0,
            trace: DefaultHasher::new(),
        }
    }

    pub(crate) fn add_stun(&mut self, address: SocketAddr) {
        self.network.attach(INTERNET, address.ip(), Attached::Stun);
        self.servers.0.push(StunServer {
            name: address.ip().to_string(),
            address,
        });
    }

    /// A TURN server at one or two addresses, over UDP, TCP and TLS.
    pub(crate) fn add_turn(&mut self, addresses: &[IpAddr]) {
        let id = self.relays.len();
        self.relays.push(Relay {
            server: TurnServer::new(addresses),
            alive: true,
        });
        for address in addresses {
            self.network.attach(INTERNET, *address, Attached::Turn(id));
            for (transport, port) in [
                (RelayTransport::Udp, 3478),
                (RelayTransport::Tcp, 3478),
                (RelayTransport::Tls, 443),
            ] {
                self.servers.1.push(RelayServer {
                    name: format!("turn-{id}-{}", if address.is_ipv4() { 4 } else { 6 }),
                    address: SocketAddr::new(*address, port),
                    transport,
                    username: crate::turn_server::USER.into(),
                    password: crate::turn_server::PASSWORD.into(),
                });
            }
        }
    }

    pub(crate) fn add_host(&mut self, interfaces: Vec<(RealmId, Vec<IpAddr>)>) -> HostId {
        let id = self.hosts.len();
        let (secret, session) = (self.random.bytes(), self.random.bytes());
        let mut host = Host::new(id, secret, session, self.now);
        for (index, (realm, addresses)) in (1..).zip(interfaces) {
            for address in &addresses {
                self.network
                    .attach(realm, *address, Attached::Host(id, index));
            }
            host.interfaces.push(Interface {
                realm,
                addresses,
                index,
            });
        }
        self.hosts.push(host);
        id
    }

    pub(crate) fn start_at(&mut self, host: HostId, after: Duration) {
        self.schedule(self.now + after, Happening::Start(host));
    }

    pub(crate) fn schedule(&mut self, at: Instant, happening: Happening) {
        self.next += 1;
        self.queue.insert((at, self.next), happening);
    }

    /// Lets everything happen that is due until `end`.
    pub(crate) fn run_until(&mut self, end: Instant) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), happening) = entry.remove_entry();
            self.now = at;
            self.happen(happening);
        }
        self.now = end;
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Runs until `done`, at most for `limit`; says how long it took.
    pub(crate) fn run_till(
        &mut self,
        limit: Duration,
        step: Duration,
        mut done: impl FnMut(&World) -> bool,
    ) -> Option<Duration> {
        let begin = self.now;
        loop {
            if done(self) {
                return Some(self.now - begin);
            }
            if self.now >= begin + limit {
                return None;
            }
            self.run_for(step);
        }
    }

    /// What has happened so far, in one number.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Start(host) => self.boot(host),
            Happening::Wake(host) => self.wake(host),
            Happening::Look(host) => self.look(host),
            Happening::Arrive(packet) => self.arrive(&packet),
            Happening::Publish(record) => self.published(record),
            Happening::Advert(host, record) => self.advert(host, &record),
            Happening::StreamOpen(stream) => self.stream_opened(stream),
            Happening::StreamClosed(stream) => self.stream_closed(stream),
            Happening::ToServer(stream, bytes) => self.stream_to_server(stream, &bytes),
            Happening::ToHost(stream, bytes) => self.stream_to_host(stream, &bytes),
        }
    }

    /// Sends a datagram from a realm.
    pub(crate) fn send(
        &mut self,
        origin: Option<HostId>,
        realm: RealmId,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
    ) {
        let elapsed = (self.now - self.start).as_nanos();
        (elapsed, origin, from, to, payload).hash(&mut self.trace);
        let Self {
            network, random, ..
        } = self;
        let Some(hop) = network.depart(realm, from, to, self.now, random) else {
            return;
        };
        let far = hop.realm == INTERNET;
        let Conditions {
            loss,
            duplication,
            jitter,
        } = self.conditions;
        let copies = if far && random.chance(duplication) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if far && self.random.chance(loss) {
                continue;
            }
            let late = if far {
                self.random.up_to(jitter)
            } else {
                Duration::ZERO
            };
            let packet = Packet {
                realm: hop.realm,
                from: hop.source,
                to,
                origin,
                payload: payload.into(),
            };
            self.schedule(self.now + hop.delay + late, Happening::Arrive(packet));
        }
    }

    fn arrive(&mut self, packet: &Packet) {
        let Packet {
            realm,
            from,
            to,
            origin,
            payload,
        } = packet;
        let Some((who, to)) = self.network.arrive(*realm, *from, *to, self.now) else {
            return;
        };
        match who {
            Attached::Host(host, interface) => {
                if !self.is_cut(*origin, host, payload) {
                    self.deliver(host, interface, *from, to, payload);
                }
            }
            Attached::Stun => {
                if let Some(answer) = binding_success(payload, *from) {
                    self.send(None, INTERNET, to, *from, &answer);
                }
            }
            Attached::Turn(relay) => self.at_turn(relay, *from, to, payload),
            Attached::Router(_) => unreachable!("routers pass or drop"),
        }
    }

    fn is_cut(&self, origin: Option<HostId>, host: HostId, payload: &[u8]) -> bool {
        let Some(origin) = origin else { return false };
        self.cuts.iter().any(|cut| {
            let meets = cut.between == (origin, host) || cut.between == (host, origin);
            meets && !(cut.wireguard_only && wice::core::stun::is_stun(payload))
        })
    }

    fn at_turn(&mut self, relay: usize, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let now = self.now;
        if !self.relays[relay].alive {
            return;
        }
        let server = &mut self.relays[relay].server;
        if to.port() == 3478 {
            let client = Client::Udp(from, to);
            let out = server.handle(client, from, payload, now);
            self.turn_says(relay, out);
        } else if let Some((client, bytes)) = server.handle_peer(to, from, payload, now) {
            self.turn_says(relay, vec![Out::ToClient(client, bytes)]);
        }
    }

    pub(crate) fn turn_says(&mut self, relay: usize, out: Vec<Out>) {
        for out in out {
            match out {
                Out::ToClient(Client::Udp(client, server), bytes) => {
                    self.send(None, INTERNET, server, client, &bytes);
                }
                Out::ToClient(Client::Stream(stream), bytes) => {
                    self.learn_relayed(self.streams[stream].host, &bytes);
                    // Streams know no messages: in two pieces.
                    let at = self.now + self.network.realms[INTERNET].delay;
                    let cut = self.random.below(bytes.len());
                    let (first, second) = bytes.split_at(cut);
                    self.schedule(at, Happening::ToHost(stream, first.to_vec()));
                    self.schedule(at, Happening::ToHost(stream, second.to_vec()));
                }
                Out::ToPeer { from, to, payload } => {
                    let own = self.network.realms[INTERNET].at.get(&to.ip());
                    if own == Some(&Attached::Turn(relay)) {
                        self.at_turn(relay, from, to, &payload);
                    } else {
                        self.send(None, INTERNET, from, to, &payload);
                    }
                }
            }
        }
    }

    fn stream_to_server(&mut self, stream: usize, bytes: &[u8]) {
        let Stream {
            server, seen, open, ..
        } = self.streams[stream];
        let at = self.network.realms[INTERNET].at.get(&server.ip());
        let Some(&Attached::Turn(relay)) = at else {
            return;
        };
        if !open {
            return;
        }
        if !self.relays[relay].alive {
            self.schedule(self.now, Happening::StreamClosed(stream));
            return;
        }
        let client = Client::Stream(stream);
        let now = self.now;
        let out = self.relays[relay].server.handle(client, seen, bytes, now);
        self.turn_says(relay, out);
    }

    /// Whether two hosts are peers: all are, but around a hub.
    pub(crate) fn knows(&self, a: HostId, b: HostId) -> bool {
        self.hub.is_none_or(|hub| hub == a || hub == b)
    }

    /// Others than this host, as WireGuard has them.
    pub(crate) fn others(&self, host: HostId) -> Vec<(HostId, PublicKey)> {
        self.hosts
            .iter()
            .filter(|other| other.id != host && self.knows(host, other.id))
            .map(|other| (other.id, other.public))
            .collect()
    }
}
