//! A node of a network, its peer, and those who would like to be one.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use wice::core::credentials::{End, derive};
use wice::core::ice::Credentials;
use wice::core::node::{
    Admission, Arrival, Counters, HostAddress, HostSocket, Inbound, Node, NodeConfig,
    RecordOutcome, RecordRefusal, Transmit, Via,
};
use wice::core::stun::{Check, RoleClaim, TransactionId, integrity_key};
use wice_signaling::protocol::{
    AdminKey, Advert, Candidate, CandidateKind, Invite, NatBehavior, PrivateKey, Session,
};

pub(crate) const OWN_SESSION: Session = Session([1; 16]);
pub(crate) const FIRST: Session = Session([2; 16]);
pub(crate) const SECOND: Session = Session([3; 16]);
pub(crate) const Z: [u8; 64] = [7; 64];
/// Where lies come from.
pub(crate) const ATTACKER: ([u8; 4], u16) = ([203, 0, 113, 66], 6666);
const LOCAL: [u8; 4] = [192, 168, 1, 10];

pub(crate) struct Victim {
    pub(crate) node: Node,
    pub(crate) now: Instant,
    pub(crate) admin: AdminKey,
    pub(crate) invite: Invite,
    pub(crate) own: PrivateKey,
    pub(crate) peer: PrivateKey,
    /// In no network.
    pub(crate) stranger: PrivateKey,
}

impl Victim {
    /// It knows the peer by an advert of [`FIRST`] with sequence 5.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let admin = AdminKey::from_seed(&[1; 32]);
        let invite = Invite::new(&admin, &[2; 32], 1_900_000_000, "lab", &[]).unwrap();
        let own = PrivateKey::from_bytes([3; 32]);
        let network = admin.network_id();
        let config = NodeConfig {
            key: own.clone(),
            session: OWN_SESSION,
            sequence: 1,
            name: "victim".to_owned(),
            admission: Admission::Members(network),
            membership: invite.sign_member(&network, &own.public_key()).encode(),
            seed: [9; 32],
        };
        let mut victim = Self {
            node: Node::new(config, now),
            now,
            admin,
            invite,
            own,
            peer: PrivateKey::from_bytes([4; 32]),
            stranger: PrivateKey::from_bytes([5; 32]),
        };
        let address = HostAddress {
            address: SocketAddr::from((LOCAL, 51_821)),
            interface: 1,
        };
        victim.node.handle_addresses(&[address], now);
        let record = victim.sealed(&victim.advert(&victim.peer, FIRST, 5), &victim.peer);
        let outcome = victim.node.handle_advert(&record, now);
        assert!(matches!(outcome, Ok(RecordOutcome::Updated(_))));
        victim.drain();
        victim
    }

    /// With a membership by the network's invite.
    pub(crate) fn advert(&self, key: &PrivateKey, session: Session, sequence: u64) -> Advert {
        let network = self.admin.network_id();
        let candidate = Candidate {
            kind: CandidateKind::Host,
            address: "192.168.1.20:51821".parse().unwrap(),
            priority: 2_130_706_431,
            relay_transport: None,
        };
        Advert {
            key: key.public_key(),
            session,
            sequence,
            name: "peer".to_owned(),
            nat: NatBehavior::default(),
            candidates: vec![candidate],
            membership: self
                .invite
                .sign_member(&network, &key.public_key())
                .encode(),
        }
    }

    pub(crate) fn sealed(&self, advert: &Advert, key: &PrivateKey) -> Vec<u8> {
        advert.encode_signed(key, &Z).unwrap()
    }

    pub(crate) fn take(&mut self, record: &[u8]) -> Result<RecordOutcome, RecordRefusal> {
        self.node.handle_advert(record, self.now)
    }

    /// The victim's credentials towards a key, and that key's.
    pub(crate) fn credentials(
        &self,
        key: &PrivateKey,
        session: Session,
    ) -> (Credentials, Credentials) {
        let shared = self.own.diffie_hellman(&key.public_key()).unwrap();
        let end = |key: &PrivateKey, session| End {
            key: key.public_key(),
            session,
        };
        derive(&shared, &end(&self.own, OWN_SESSION), &end(key, session))
    }

    /// An authentic check under a session.
    pub(crate) fn check(&self, key: &PrivateKey, session: Session, id: u128) -> Vec<u8> {
        let (own, other) = self.credentials(key, session);
        let username = format!("{}:{}", own.ufrag, other.ufrag);
        check(id, &username, &own.password)
    }

    /// Hands over a datagram from [`ATTACKER`]; returns all that goes back there.
    pub(crate) fn hears(&mut self, datagram: &[u8]) -> Vec<Transmit> {
        self.hears_at(datagram, LOCAL.into())
    }

    pub(crate) fn hears_at(&mut self, datagram: &[u8], local: IpAddr) -> Vec<Transmit> {
        self.drain();
        let arrival = Arrival::Host {
            socket: HostSocket::Own,
            local,
            interface: 1,
            from: ATTACKER.into(),
        };
        let inbound = self.node.handle_datagram(arrival, datagram, self.now);
        assert_eq!(inbound, Inbound::Consumed);
        let back = |transmit: &Transmit| match transmit.via {
            Via::Host { remote, .. } => remote == ATTACKER.into(),
            Via::Relay { .. } => true,
        };
        let sent = std::iter::from_fn(|| self.node.poll_transmit());
        sent.filter(back).collect()
    }

    pub(crate) fn arrival(from: SocketAddr) -> Arrival {
        Arrival::Host {
            socket: HostSocket::Own,
            local: LOCAL.into(),
            interface: 1,
            from,
        }
    }

    /// Fetches what an owner fetches; returns how much it was.
    pub(crate) fn drain(&mut self) -> usize {
        let transmits = std::iter::from_fn(|| self.node.poll_transmit()).count();
        transmits + std::iter::from_fn(|| self.node.poll_event()).count()
    }

    /// All that can be seen of the node, but for what it has counted.
    pub(crate) fn looks(&self) -> String {
        let mut snapshot = self.node.snapshot(self.now);
        snapshot.counters = Counters::default();
        let ids = snapshot.peers.iter().map(|peer| peer.id);
        let adverts: Vec<_> = ids.map(|id| self.node.advert_of(id)).collect();
        format!("{snapshot:?} {adverts:?}")
    }
}

pub(crate) fn check(id: u128, username: &str, password: &str) -> Vec<u8> {
    let check = Check {
        id: TransactionId::from(id),
        username,
        priority: 7,
        role: RoleClaim::Controlling(1),
        use_candidate: true,
        nomination: Some(1),
    };
    check.encode(&integrity_key(password))
}
