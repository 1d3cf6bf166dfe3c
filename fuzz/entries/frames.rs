//! Tokens and signaling frames.

use wice_signaling::protocol::{
    CarryRefusal, ClientFrame, ErrorCode, Hello, JoinReceipt, MAX_PRESENCES, MAX_SERVERS,
    NetworkKey, Presence, RecordKind, ServerFrame, ServerPin, Servers, Token, TurnCredentials,
};

use super::Fed;
use super::records;
use super::world::{Z, world};

pub(super) fn token(data: &[u8]) -> Fed {
    let text = String::from_utf8_lossy(data);
    let Ok(token) = text.parse::<Token>() else {
        return Fed::one(false);
    };
    let again = token.encode().unwrap();
    let bare: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    assert_eq!(*again, bare);
    Fed::one(true)
}

pub(super) fn token_seeds() -> Vec<Vec<u8>> {
    let world = world();
    let encode = |url: &str, pin| {
        let token = Token {
            url: url.parse().unwrap(),
            pin,
            network: world.network,
            network_key: NetworkKey::from_bytes([6; 32]),
            network_name: "fuzz".to_owned(),
            invite: world.invite.clone(),
        };
        token.encode().unwrap().as_bytes().to_vec()
    };
    let pinned = encode("wss://signal.example:8443", Some(ServerPin([9; 32])));
    let broken = [&pinned[..100], b"\r\n  ", &pinned[100..]].concat();
    vec![pinned, broken, encode("ws://[2001:db8::1]/x", None)]
}

pub(super) fn client_frame(data: &[u8]) -> Fed {
    let Ok(frame) = ClientFrame::decode(data) else {
        return Fed::one(false);
    };
    assert_eq!(frame.encode(), data);
    Fed::one(true)
}

pub(super) fn client_frame_seeds() -> Vec<Vec<u8>> {
    let world = world();
    let key = &world.peer;
    let member = world.invite.sign_member(&world.network, &key.public_key());
    let hello = |receipt| {
        let hello = Hello::sign(key, world.network, member.encode(), receipt, &[1; 32], &Z);
        ClientFrame::Hello(hello).encode()
    };
    let publish = ClientFrame::Publish {
        kind: RecordKind::Routes,
        sealed: vec![3; 90],
    };
    let list = records::revocations_seeds().remove(0);
    vec![
        hello(Some(JoinReceipt([5; 32]))),
        hello(None),
        publish.encode(),
        ClientFrame::PublishRevocations(list).encode(),
        ClientFrame::Leave.encode(),
        ClientFrame::Carry {
            key: world.peer.public_key(),
            kind: RecordKind::Advert,
            sealed: vec![3; 90],
        }
        .encode(),
    ]
}

pub(super) fn server_frame(data: &[u8]) -> Fed {
    let Ok(frame) = ServerFrame::decode(data) else {
        return Fed::one(false);
    };
    match &frame {
        ServerFrame::Welcome { servers, .. } | ServerFrame::Servers(servers) => {
            assert!(servers.addresses.len() <= MAX_SERVERS);
        }
        ServerFrame::Presence(nodes) => assert!((1..=MAX_PRESENCES).contains(&nodes.len())),
        ServerFrame::Record { .. }
        | ServerFrame::Revocations(_)
        | ServerFrame::Error { .. }
        | ServerFrame::NotCarried { .. } => {}
    }
    // A URI may be written in several ways; what it means comes back.
    assert_eq!(ServerFrame::decode(&frame.encode()), Ok(frame));
    Fed::one(true)
}

pub(super) fn server_frame_seeds() -> Vec<Vec<u8>> {
    let servers = || Servers {
        addresses: [
            "stun:signal.example:8443",
            "turn:198.51.100.1:3478?transport=tcp",
            "turns:[2001:db8::1]:443",
        ]
        .map(|uri| uri.parse().unwrap())
        .to_vec(),
        credentials: Some(TurnCredentials {
            username: "1900000000:node".to_owned(),
            password: "c2VjcmV0".to_owned(),
            lifetime_s: 86_400,
        }),
    };
    let list = records::revocations_seeds().remove(0);
    let record = ServerFrame::Record {
        key: world().peer.public_key(),
        kind: RecordKind::Advert,
        last_seen_s: 3,
        sealed: vec![1; 60],
    };
    let error = ServerFrame::Error {
        code: ErrorCode::Revoked,
        text: ErrorCode::Revoked.message().to_owned(),
    };
    let welcome = ServerFrame::Welcome {
        receipt: Some(JoinReceipt([5; 32])),
        revocations: Some(list.clone()),
        servers: servers(),
    };
    vec![
        welcome.encode(),
        record.encode(),
        ServerFrame::Revocations(list).encode(),
        ServerFrame::Servers(servers()).encode(),
        error.encode(),
        ServerFrame::Presence(vec![
            (world().peer.public_key(), Presence::Connected),
            (world().peer.public_key(), Presence::Lost { last_seen_s: 9 }),
            (world().peer.public_key(), Presence::Left { last_seen_s: 0 }),
        ])
        .encode(),
        ServerFrame::NotCarried {
            key: world().peer.public_key(),
            kind: RecordKind::Advert,
            why: CarryRefusal::Taken,
        }
        .encode(),
    ]
}
