//! Keys, networks and signed records that every target starts from: made once.

use std::sync::OnceLock;
use std::time::Instant;

use wice_signaling::protocol::{
    AdminKey, Advert, Candidate, CandidateKind, Invite, NatBehavior, NetworkId, PrivateKey,
    PublicKey, RelayTransport, Session,
};

/// A network with an invite, a node of it, a peer, and a stranger to it.
pub(super) struct World {
    pub(super) start: Instant,
    pub(super) admin: AdminKey,
    pub(super) invite: Invite,
    pub(super) network: NetworkId,
    pub(super) own: PrivateKey,
    pub(super) peer: PrivateKey,
    pub(super) stranger: PrivateKey,
    /// Public halves: making one costs a multiplication.
    pub(super) own_key: PublicKey,
    pub(super) peer_key: PublicKey,
    /// X25519 of node and peer.
    pub(super) shared: [u8; 32],
    /// The peer's first advert, signed.
    pub(super) advert: Vec<u8>,
}

pub(super) const OWN_SESSION: Session = Session([1; 16]);
pub(super) const PEER_SESSION: Session = Session([2; 16]);
/// For signatures: 64 bytes that need not be random here.
pub(super) const Z: [u8; 64] = [7; 64];

pub(super) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let admin = AdminKey::from_seed(&[1; 32]);
        let network = admin.network_id();
        let lan = ["10.1.0.0/16".parse().unwrap()];
        let invite = Invite::new(&admin, &[2; 32], 1_900_000_000, "fuzz", &lan).unwrap();
        let peer = PrivateKey::from_bytes([4; 32]);
        let advert = advert_of(&peer, PEER_SESSION, 1, &candidates(), &invite, network);
        let own = PrivateKey::from_bytes([3; 32]);
        World {
            start: Instant::now(),
            shared: *own.diffie_hellman(&peer.public_key()).unwrap(),
            own_key: own.public_key(),
            peer_key: peer.public_key(),
            own,
            stranger: PrivateKey::from_bytes([5; 32]),
            advert: advert.encode_signed(&peer, &Z).unwrap(),
            peer,
            admin,
            invite,
            network,
        }
    })
}

pub(super) fn candidates() -> Vec<Candidate> {
    let of = |kind, address: &str, priority, relay_transport| Candidate {
        kind,
        address: address.parse().unwrap(),
        priority,
        relay_transport,
    };
    vec![
        of(
            CandidateKind::Host,
            "192.168.1.2:51821",
            2_130_706_431,
            None,
        ),
        of(
            CandidateKind::ServerReflexive,
            "203.0.113.2:2",
            1_694_498_815,
            None,
        ),
        of(CandidateKind::Host, "[2001:db8::2]:2", 1_694_498_814, None),
        of(
            CandidateKind::Relayed,
            "198.51.100.9:50000",
            16_777_215,
            Some(RelayTransport::Udp),
        ),
    ]
}

pub(super) fn advert_of(
    key: &PrivateKey,
    session: Session,
    sequence: u64,
    candidates: &[Candidate],
    invite: &Invite,
    network: NetworkId,
) -> Advert {
    let public = key.public_key();
    Advert {
        key: public,
        session,
        sequence,
        name: "peer".to_owned(),
        nat: NatBehavior::default(),
        candidates: candidates.to_vec(),
        membership: invite.sign_member(&network, &public).encode(),
    }
}
