//! Frames: round trips, bounds, hostile bytes.

use super::testing::Random;
use super::*;

fn servers() -> Servers {
    Servers {
        addresses: vec![
            "stun:a.example:3478".parse().unwrap(),
            "turns:[2001:db8::1]:443?transport=tcp".parse().unwrap(),
        ],
        credentials: Some(TurnCredentials {
            username: "1800000000:AAAAAAAA".to_owned(),
            password: "secret".to_owned(),
            lifetime_s: 3600,
        }),
    }
}

fn hello(key: &PrivateKey) -> Hello {
    let membership = vec![7; MAX_MEMBERSHIP_LEN];
    let receipt = Some(JoinReceipt([8; 32]));
    Hello::sign(
        key,
        NetworkId([1; 32]),
        membership,
        receipt,
        &[2; 32],
        &[3; 64],
    )
}

fn client_frames() -> Vec<ClientFrame> {
    vec![
        ClientFrame::Hello(hello(&PrivateKey::from_bytes([1; 32]))),
        ClientFrame::Publish {
            kind: RecordKind::Routes,
            sealed: vec![1; MAX_SEALED_LEN],
        },
        ClientFrame::PublishRevocations(vec![1; MAX_REVOCATION_LEN]),
        ClientFrame::Leave,
        ClientFrame::Carry {
            key: PublicKey([4; 32]),
            kind: RecordKind::Advert,
            sealed: vec![1; MAX_SEALED_LEN],
        },
    ]
}

fn server_frames() -> Vec<ServerFrame> {
    let record = ServerFrame::Record {
        key: PublicKey([1; 32]),
        kind: RecordKind::Advert,
        last_seen_s: 5,
        sealed: vec![1; MAX_SEALED_LEN],
    };
    let mut frames = vec![
        ServerFrame::Welcome {
            receipt: None,
            revocations: None,
            servers: Servers::default(),
        },
        ServerFrame::Welcome {
            receipt: Some(JoinReceipt([1; 32])),
            revocations: Some(vec![1; MAX_REVOCATION_LEN]),
            servers: servers(),
        },
        record,
        ServerFrame::Revocations(vec![1; MAX_REVOCATION_LEN]),
        ServerFrame::Servers(servers()),
        ServerFrame::Presence(vec![(PublicKey([1; 32]), Presence::Connected)]),
        ServerFrame::Presence(vec![
            (PublicKey([2; 32]), Presence::Lost { last_seen_s: 7 });
            MAX_PRESENCES
        ]),
        ServerFrame::Presence(vec![(
            PublicKey([3; 32]),
            Presence::Left { last_seen_s: 0 },
        )]),
    ];
    frames.extend(CarryRefusal::ALL.map(|why| ServerFrame::NotCarried {
        key: PublicKey([4; 32]),
        kind: RecordKind::Routes,
        why,
    }));
    frames.extend(ErrorCode::ALL.map(|code| ServerFrame::Error {
        code,
        text: code.as_str().to_owned(),
    }));
    frames
}

#[test]
fn frames_round_trip_and_truncations_are_refused() {
    for frame in client_frames() {
        let bytes = frame.encode();
        assert!(bytes.len() <= MAX_FRAME_LEN);
        assert_eq!(ClientFrame::decode(&bytes), Ok(frame));
        for len in 0..bytes.len() {
            assert!(ClientFrame::decode(&bytes[..len]).is_err());
        }
        assert_eq!(
            ClientFrame::decode(&[bytes, vec![0]].concat()),
            Err(RecordError::TrailingBytes)
        );
    }
    for frame in server_frames() {
        let bytes = frame.encode();
        assert!(bytes.len() <= MAX_FRAME_LEN);
        assert_eq!(ServerFrame::decode(&bytes), Ok(frame));
        for len in 0..bytes.len() {
            assert!(ServerFrame::decode(&bytes[..len]).is_err());
        }
        assert_eq!(
            ServerFrame::decode(&[bytes, vec![0]].concat()),
            Err(RecordError::TrailingBytes)
        );
    }
}

#[test]
fn the_largest_hello_is_within_its_bound() {
    let bytes = client_frames()[0].encode();
    assert_eq!(bytes.len(), MAX_HELLO_LEN);
}

#[test]
fn the_largest_welcome_is_within_a_frame() {
    let longest = format!("turns:{}:65535?transport=tcp", "h".repeat(253));
    let welcome = ServerFrame::Welcome {
        receipt: Some(JoinReceipt([1; 32])),
        revocations: Some(vec![0; MAX_REVOCATION_LEN]),
        servers: Servers {
            addresses: vec![longest.parse().unwrap(); MAX_SERVERS],
            credentials: Some(TurnCredentials {
                username: "u".repeat(255),
                password: "p".repeat(255),
                lifetime_s: 1,
            }),
        },
    };
    assert!(welcome.encode().len() <= MAX_FRAME_LEN);
}

#[test]
fn a_proof_holds_for_its_key_network_and_challenge() {
    let key = PrivateKey::from_bytes([1; 32]);
    let hello = hello(&key);
    assert!(hello.proves(&[2; 32]));
    assert!(!hello.proves(&[9; 32]));
    assert!(
        !Hello {
            network: NetworkId([9; 32]),
            ..hello.clone()
        }
        .proves(&[2; 32])
    );
    let other = PrivateKey::from_bytes([2; 32]).public_key();
    assert!(
        !Hello {
            key: other,
            ..hello
        }
        .proves(&[2; 32])
    );
}

#[test]
fn hostile_frames_never_panic_and_decode_to_themselves() {
    let mut random = Random::new(20);
    let valid: Vec<Vec<u8>> = client_frames()
        .iter()
        .map(ClientFrame::encode)
        .chain(server_frames().iter().map(ServerFrame::encode))
        .collect();
    for _ in 0..20_000 {
        let mut bytes = valid[random.below(valid.len())].clone();
        bytes.truncate(1 + random.below(200.min(bytes.len())));
        for _ in 0..random.below(8) {
            let at = random.below(bytes.len());
            bytes[at] = random.array::<1>()[0];
        }
        if let Ok(frame) = ClientFrame::decode(&bytes) {
            assert_eq!(frame.encode(), bytes);
        }
        if let Ok(frame) = ServerFrame::decode(&bytes) {
            assert_eq!(ServerFrame::decode(&frame.encode()), Ok(frame));
        }
    }
}

#[test]
fn servers_travel_in_a_header() {
    let addresses = servers().addresses;
    assert_eq!(
        servers_from_header(&servers_to_header(&addresses)),
        addresses
    );
    assert_eq!(
        servers_from_header("nonsense, stun:a:1 ,,"),
        ["stun:a:1".parse().unwrap()]
    );
    assert_eq!(
        servers_from_header(&"stun:a:1,".repeat(100)).len(),
        MAX_SERVERS
    );
    assert_eq!(servers_from_header(""), []);
}
