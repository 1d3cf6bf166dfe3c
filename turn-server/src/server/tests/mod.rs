//! The server with a shell of its own: sockets are names, time is what a test says.

mod allocations;
mod credentials;
mod discovery;
mod fuzz;
mod hostile;
mod mobility;
mod notices;
mod peers;
mod tcp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;

pub(super) const REALM: &str = "example.org";
const START: u64 = 1_800_000_000;

/// Server, shell and clock.
pub(super) struct World {
    pub(super) server: Server,
    pub(super) shared: Shared,
    pub(super) now: Now,
    pub(super) relays: BTreeMap<RelayId, SocketAddr>,
    pub(super) sent: Vec<(ClientAddr, Vec<u8>)>,
    /// Connections to peers: begun, joined, ended.
    pub(super) connects: Vec<(ConnectionId, SocketAddr)>,
    pub(super) joined: Vec<(ConnectionId, ClientAddr)>,
    pub(super) closed: Vec<ConnectionId>,
    /// What went to other threads.
    pub(super) handed: Vec<(u8, Handover)>,
    /// Ports that other programs have.
    pub(super) busy: Vec<u16>,
    /// Bound, and no relay's yet.
    pub(super) kept: BTreeSet<SocketAddr>,
    next: u64,
}

/// Somebody who asks.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) addr: ClientAddr,
    pub(super) username: String,
    pub(super) password: String,
    pub(super) nonce: Vec<u8>,
    pub(super) sha256: bool,
    pub(super) by_hash: bool,
}

/// An attribute of a request.
#[derive(Clone)]
pub(super) enum Attr {
    Raw(u16, Vec<u8>),
    /// XOR-PEER-ADDRESS.
    Peer(SocketAddr),
}

impl Attr {
    fn add(&self, writer: &mut Writer) {
        match self {
            Self::Raw(kind, value) => writer.add(*kind, value),
            Self::Peer(peer) => writer.add_xor_address(attribute::XOR_PEER_ADDRESS, *peer),
        };
    }
}

/// A response: 0 for success, or the error code; and its bytes.
pub(super) struct Response {
    pub(super) code: u16,
    pub(super) bytes: Vec<u8>,
}

impl Response {
    pub(super) fn get(&self, kind: u16) -> Option<Vec<u8>> {
        self.message().get(kind).map(<[u8]>::to_vec)
    }

    pub(super) fn addresses(&self, kind: u16) -> Vec<SocketAddr> {
        let message = self.message();
        let all = message.attributes().filter(|(k, _)| *k == kind);
        all.map(|(_, value)| message.xor_address(value).unwrap())
            .collect()
    }

    pub(super) fn relayed(&self) -> SocketAddr {
        self.addresses(attribute::XOR_RELAYED_ADDRESS)[0]
    }

    pub(super) fn lifetime(&self) -> u32 {
        u32::from_be_bytes(self.get(attribute::LIFETIME).unwrap().try_into().unwrap())
    }

    pub(super) fn message(&self) -> Message<'_> {
        Message::parse(&self.bytes).unwrap()
    }
}

pub(super) fn config() -> Config {
    let relay = |ip: &str, external: &str| RelayConfig {
        local: ip.parse().unwrap(),
        external: external.parse().unwrap(),
        ports: Arc::new(Ports::new(50_000..=50_099)),
    };
    Config {
        realm: REALM.into(),
        credentials: Credentials::new(
            REALM,
            [("alice", "wonderland"), ("bob", "builder")],
            ["north", "south"],
        ),
        nonce_keys: vec![nonce_key(b"test")],
        nonce_lifetime: NONCE_LIFETIME,
        relay_v4: Some(relay("10.0.0.5", "8.1.1.1")),
        relay_v6: Some(relay("2a00::5", "2a00::5")),
        policy: PeerPolicy {
            own: ["10.0.0.5", "8.1.1.1", "2a00::5"]
                .map(|ip| ip.parse().unwrap())
                .to_vec(),
            relay: ["8.1.1.1", "2a00::5"]
                .map(|ip| ip.parse().unwrap())
                .to_vec(),
            ..PeerPolicy::default()
        },
        quotas: DEFAULT_QUOTAS,
        challenges: DEFAULT_CHALLENGES,
        tcp_relay: false,
        max_permissions: 8,
        max_channels: 4,
        old_clients: false,
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    pub(super) fn with(config: Config) -> Self {
        let now = Now {
            instant: Instant::now(),
            unix: START,
        };
        Self::of_thread(0, Arc::new(config), Shared::new(now.instant), now)
    }

    /// Two threads of one service.
    pub(super) fn pair(config: Config) -> [Self; 2] {
        let now = Now {
            instant: Instant::now(),
            unix: START,
        };
        let (config, shared) = (Arc::new(config), Shared::new(now.instant));
        [0, 1].map(|shard| Self::of_thread(shard, Arc::clone(&config), shared.clone(), now))
    }

    fn of_thread(shard: u8, config: Arc<Config>, shared: Shared, now: Now) -> Self {
        Self {
            server: Server::new(config, shared.clone(), shard, [7 + shard; 32], now),
            shared,
            now,
            relays: BTreeMap::new(),
            sent: Vec::new(),
            connects: Vec::new(),
            joined: Vec::new(),
            closed: Vec::new(),
            handed: Vec::new(),
            busy: Vec::new(),
            kept: BTreeSet::new(),
            next: 1,
        }
    }

    pub(super) fn ports(&self) -> usize {
        let config = &self.server.config;
        let relays = config.relay_v4.iter().chain(&config.relay_v6);
        relays.map(|relay| relay.ports.taken()).sum()
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.now.unix += seconds;
        self.server.handle_timeout(self.now.instant);
        self.obey();
    }

    /// Does what the server says, as a shell would.
    pub(super) fn obey(&mut self) {
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Send { client, message } => self.sent.push((client, message)),
                Command::OpenRelay {
                    relay,
                    local,
                    keeps_next,
                    ..
                } => {
                    let next = SocketAddr::new(local.ip(), local.port() + 1);
                    let busy = |at: SocketAddr| self.busy.contains(&at.port());
                    let result = if busy(local) || keeps_next && busy(next) {
                        Err(OpenError::PortInUse)
                    } else {
                        self.kept.remove(&local);
                        self.kept.extend(keeps_next.then_some(next));
                        assert!(
                            self.relays.insert(relay, local).is_none(),
                            "{relay:?} twice"
                        );
                        Ok(())
                    };
                    self.server
                        .handle_relay_opened(relay, result, self.now.instant);
                }
                Command::ReleasePort { local } => assert!(self.kept.remove(&local), "{local}"),
                Command::ConnectPeer { connection, to, .. } => self.connects.push((connection, to)),
                Command::Join { connection, client } => self.joined.push((connection, client)),
                Command::ClosePeer { connection } => self.closed.push(connection),
                Command::HandOver { shard, handover } => self.handed.push((shard, *handover)),
                Command::CloseRelay { relay } => {
                    assert!(
                        self.relays.remove(&relay).is_some(),
                        "{relay:?} is not open"
                    );
                }
            }
        }
    }

    pub(super) fn id(&mut self) -> TransactionId {
        self.next += 1;
        let mut id = [0; 12];
        id[4..].copy_from_slice(&self.next.to_be_bytes());
        TransactionId(id)
    }

    pub(super) fn client(&self, n: u16) -> Client {
        Client {
            addr: ClientAddr {
                transport: Transport::Udp,
                remote: SocketAddr::from(([9, 9, (n >> 8) as u8, n as u8], 4000)),
                local: "8.1.1.1:3478".parse().unwrap(),
                link: 0,
            },
            username: "alice".into(),
            password: "wonderland".into(),
            nonce: Vec::new(),
            sha256: false,
            by_hash: false,
        }
    }

    /// The response to raw bytes, if there is one.
    pub(super) fn raw(&mut self, addr: &ClientAddr, bytes: &[u8]) -> Option<Response> {
        let before = self.sent.len();
        assert!(self.server.handle_client(addr, bytes, self.now).is_none());
        self.obey();
        let mut new = self.sent.split_off(before);
        assert!(new.len() <= 1, "one response at most");
        let (to, bytes) = new.pop()?;
        assert_eq!(to, *addr);
        let message = Message::parse(&bytes).unwrap();
        let code = match message.get(attribute::ERROR_CODE) {
            Some(value) => u16::from(value[2]) * 100 + u16::from(value[3]),
            None => 0,
        };
        assert_eq!(message.class() == Class::Success, code == 0);
        Some(Response { code, bytes })
    }

    /// A signed request; a challenge is answered, as clients do.
    pub(super) fn ask(
        &mut self,
        client: &mut Client,
        method: u16,
        attributes: &[Attr],
    ) -> Response {
        if client.nonce.is_empty() {
            let id = self.id();
            let bytes = plain(method, id, attributes);
            let challenge = self.raw(&client.addr, &bytes).unwrap();
            assert_eq!(challenge.code, 401);
            client.nonce = challenge.get(attribute::NONCE).unwrap();
        }
        let id = self.id();
        let bytes = client.sign(method, id, attributes, &[]);
        let response = self.raw(&client.addr, &bytes).expect("a response");
        if !matches!(response.code, 401 | 438) && response.code != 400 {
            let message = response.message();
            assert!(message.is_authentic(&client.key()), "sealed as the request");
        }
        response
    }

    pub(super) fn allocate(&mut self, client: &mut Client) -> SocketAddr {
        let response = self.ask(client, method::ALLOCATE, &[udp()]);
        assert_eq!(response.code, 0);
        response.relayed()
    }

    pub(super) fn permit(&mut self, client: &mut Client, peer: &str) -> u16 {
        let peer = Attr::Peer(peer.parse().unwrap());
        self.ask(client, method::CREATE_PERMISSION, &[peer]).code
    }

    pub(super) fn bind(&mut self, client: &mut Client, number: u16, peer: &str) -> u16 {
        let peer = Attr::Peer(peer.parse().unwrap());
        self.ask(client, method::CHANNEL_BIND, &[channel(number), peer])
            .code
    }

    /// Where a payload of a client goes.
    pub(super) fn send(&mut self, client: &Client, peer: &str, payload: &[u8]) -> Option<Forward> {
        let mut writer = Writer::new(Class::Indication, method::SEND, self.id());
        Attr::Peer(peer.parse().unwrap()).add(&mut writer);
        writer.add(attribute::DATA, payload);
        let bytes = writer.finish(None, false);
        let (forward, data) = self.server.handle_client(&client.addr, &bytes, self.now)?;
        assert_eq!(data, payload);
        Some(forward)
    }

    pub(super) fn send_on(
        &mut self,
        client: &Client,
        number: u16,
        payload: &[u8],
    ) -> Option<Forward> {
        let header = crate::codec::channel_header(number, payload.len()).unwrap();
        let bytes = [&header[..], payload].concat();
        let (forward, data) = self.server.handle_client(&client.addr, &bytes, self.now)?;
        assert_eq!(data, payload);
        Some(forward)
    }

    /// How a payload that arrives at a relayed address goes on; `at` is what the socket is bound to.
    pub(super) fn arrive(&mut self, at: SocketAddr, from: &str) -> Option<ToClient> {
        let (relay, _) = self
            .relays
            .iter()
            .find(|(_, local)| local.port() == at.port() && local.is_ipv4() == at.is_ipv4())?;
        let (relay, from) = (*relay, from.parse().unwrap());
        self.server
            .handle_peer(relay, from, (1, 100), self.now.instant)
            .map(|(to, _)| to)
    }
}

impl Client {
    pub(super) fn key(&self) -> Key {
        if self.sha256 {
            Key::sha256(&self.username, REALM, &self.password)
        } else {
            Key::md5(&self.username, REALM, &self.password)
        }
    }

    /// A signed request, with attributes before and `after` the integrity.
    pub(super) fn sign(
        &self,
        method: u16,
        id: TransactionId,
        attributes: &[Attr],
        after: &[(u16, Vec<u8>)],
    ) -> Vec<u8> {
        let mut writer = Writer::new(Class::Request, method, id);
        for attribute in attributes {
            attribute.add(&mut writer);
        }
        if self.by_hash {
            use sha2::Digest as _;
            let hash = sha2::Sha256::digest(format!("{}:{REALM}", self.username));
            writer.add(attribute::USERHASH, &hash);
        } else {
            writer.add(attribute::USERNAME, self.username.as_bytes());
        }
        writer.add(attribute::REALM, REALM.as_bytes());
        writer.add(attribute::NONCE, &self.nonce);
        if self.sha256 {
            writer.add(attribute::PASSWORD_ALGORITHMS, &[0, 2, 0, 0, 0, 1, 0, 0]);
            writer.add(attribute::PASSWORD_ALGORITHM, &[0, 2, 0, 0]);
        }
        let hash = if self.sha256 {
            Hash::Sha256
        } else {
            Hash::Sha1
        };
        let mut bytes = writer.finish(Some((&self.key(), hash)), false);
        for (kind, value) in after {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((value.len() as u16).to_be_bytes());
            bytes.extend_from_slice(value);
        }
        let len = (bytes.len() - 20) as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes
    }
}

pub(super) fn plain(method: u16, id: TransactionId, attributes: &[Attr]) -> Vec<u8> {
    let mut writer = Writer::new(Class::Request, method, id);
    for attribute in attributes {
        attribute.add(&mut writer);
    }
    writer.finish(None, false)
}

pub(super) fn udp() -> Attr {
    Attr::Raw(attribute::REQUESTED_TRANSPORT, vec![17, 0, 0, 0])
}

pub(super) fn lifetime(seconds: u32) -> Attr {
    Attr::Raw(attribute::LIFETIME, seconds.to_be_bytes().to_vec())
}

pub(super) fn channel(number: u16) -> Attr {
    let [high, low] = number.to_be_bytes();
    Attr::Raw(attribute::CHANNEL_NUMBER, vec![high, low, 0, 0])
}

pub(super) fn raw(kind: u16, value: &[u8]) -> Attr {
    Attr::Raw(kind, value.to_vec())
}
