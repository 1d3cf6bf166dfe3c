//! Frames in any order and of any content, at the service and at the node.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use wice::signaling::{Event, Signaling, WebSocketBackend, WebSocketConfig};
use wice_signaling::protocol::{
    ClientFrame, ErrorCode, Presence, PublicKey, RecordKind, RevocationList, SUBPROTOCOL,
    ServerFrame, Servers, TurnCredentials,
};

use super::lab::{self, Lab, raw};

/// Deterministic choices: xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(mixed).unwrap() % end
    }

    /// Some bytes changed, cut off, or added.
    fn damage(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        match self.below(4) {
            0 => {}
            1 => bytes.truncate(self.below(bytes.len() + 1)),
            2 => bytes.extend((0..self.below(40)).map(|n| n as u8)),
            _ => {
                for _ in 0..self.below(4) {
                    let at = self.below(bytes.len().max(1));
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = self.below(256) as u8;
                    }
                }
            }
        }
        bytes
    }
}

/// What members send, in any order, damaged or not: the service ends their connections at most, and
/// serves the others.
#[tokio::test]
async fn the_service_outlives_any_sequence_of_frames() {
    let lab = Lab::new("sequences");
    let server = lab.serve().await;
    let mut witness = lab.connect(&server, &lab.key(200));
    lab::until_connected(&mut witness).await;
    let nodes = [lab.key(90).public_key()].into();
    let list = RevocationList::sign(&lab.admin, 3, nodes, Default::default()).unwrap();
    let mut random = Random(7);
    for n in 1..=60 {
        let mut client = raw::connect(&server).await;
        let key = lab.key(n);
        if random.below(8) > 0 {
            client.hello(&lab, &key).await;
        }
        for _ in 0..random.below(12) {
            let frame = match random.below(8) {
                0 => ClientFrame::PublishRevocations(list.encoded().to_vec()),
                1 => ClientFrame::Leave,
                2 => ClientFrame::PublishRevocations(vec![9; 40]),
                3 | 4 => ClientFrame::Carry {
                    key: PublicKey([random.below(256) as u8; 32]),
                    kind: RecordKind::ALL[random.below(2)],
                    sealed: vec![n; random.below(300)],
                },
                _ => ClientFrame::Publish {
                    kind: RecordKind::ALL[random.below(2)],
                    sealed: vec![n; random.below(300)],
                },
            };
            let bytes = random.damage(frame.encode());
            // The service may have ended the connection.
            if client
                .socket
                .send(Message::Binary(bytes.into()))
                .await
                .is_err()
            {
                break;
            }
        }
    }
    raw::until_metric(&server, "wice_signal_nodes_connected 1").await;
    let key = lab.key(201);
    let mut late = lab.connect(&server, &key);
    late.publish(RecordKind::Advert, lab.sealed_advert(&key, 1));
    lab::until_connected(&mut late).await;
    lab::until(
        &mut witness,
        |event| matches!(event, Event::Record { key: of, .. } if *of == key.public_key()),
    )
    .await;
    server.stop().await;
}

/// A service that sends whatever `frames` gives, to one connection after the other.
async fn hostile_service(mut frames: impl FnMut() -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            #[allow(clippy::result_large_err, reason = "the library's callback")]
            let upgrade = |_: &Request, mut response: Response| {
                let headers = response.headers_mut();
                let protocol = HeaderValue::from_static(SUBPROTOCOL);
                headers.insert("sec-websocket-protocol", protocol);
                let challenge = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
                headers.insert("wice-challenge", HeaderValue::from_static(challenge));
                Ok(response)
            };
            let accepted = tokio_tungstenite::accept_hdr_async(stream, upgrade).await;
            let Ok(mut socket) = accepted else { continue };
            for frame in frames() {
                if socket.send(Message::Binary(frame.into())).await.is_err() {
                    break;
                }
            }
            let _ = socket.close(None).await;
            while let Some(Ok(_)) = socket.next().await {}
        }
    });
    address
}

fn node(lab: &Lab, address: SocketAddr) -> Signaling {
    let key = lab.key(1);
    Signaling::start(WebSocketBackend::new(WebSocketConfig {
        url: format!("ws://{address}").parse().unwrap(),
        pin: None,
        network: lab.network,
        membership: lab.membership(&key),
        key,
        receipt: None,
        proxy: None,
        ca_file: None,
        socket_hook: None,
    }))
}

fn welcome() -> ServerFrame {
    ServerFrame::Welcome {
        receipt: None,
        revocations: None,
        servers: Servers::default(),
    }
}

/// What a service sends, in any order, damaged or not: the node ends the connection at most, and
/// tries again.
#[tokio::test]
async fn a_node_outlives_any_sequence_of_frames() {
    let lab = Lab::new("hostile-service");
    let list = RevocationList::sign(&lab.admin, 1, Default::default(), Default::default());
    let list = list.unwrap();
    let mut random = Random(9);
    let (told, mut connections) = mpsc::unbounded_channel();
    let address = hostile_service(move || {
        let _ = told.send(());
        let key = PublicKey([random.below(256) as u8; 32]);
        let mut frames = Vec::new();
        if random.below(4) > 0 {
            frames.push(welcome().encode());
        }
        for _ in 0..random.below(20) {
            let frame = match random.below(8) {
                0 => welcome(),
                1 => ServerFrame::Revocations(list.encoded().to_vec()),
                2 => ServerFrame::Servers(Servers {
                    addresses: Vec::new(),
                    credentials: Some(TurnCredentials {
                        username: "u".to_owned(),
                        password: "p".to_owned(),
                        lifetime_s: 0,
                    }),
                }),
                3 => ServerFrame::Error {
                    code: ErrorCode::Busy,
                    text: "x".to_owned(),
                },
                4 => ServerFrame::Presence(vec![(key, Presence::Lost { last_seen_s: 1 }); 100]),
                _ => ServerFrame::Record {
                    key,
                    kind: RecordKind::Advert,
                    last_seen_s: u32::MAX,
                    sealed: vec![1; random.below(100)],
                },
            };
            frames.push(random.damage(frame.encode()));
        }
        frames
    })
    .await;
    let mut node = node(&lab, address);
    let mut seen = 0;
    let enough = async {
        while seen < 12 {
            tokio::select! {
                event = node.next() => assert!(event.is_some(), "the client has ended"),
                connection = connections.recv() => {
                    connection.unwrap();
                    seen += 1;
                    // Its back-off would take minutes.
                    node.network_changed();
                }
            }
            node.network_changed();
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(60), enough).await;
    assert!(done.is_ok(), "{seen} connections");
}

/// Frames of a later version are skipped, not a reason to end the connection.
#[tokio::test]
async fn a_frame_of_a_later_version_is_skipped() {
    let lab = Lab::new("later");
    let key = PublicKey([7; 32]);
    let address = hostile_service(move || {
        let presence = ServerFrame::Presence(vec![(key, Presence::Connected)]);
        vec![welcome().encode(), vec![99, 1, 2, 3], presence.encode()]
    })
    .await;
    let mut node = node(&lab, address);
    let wanted = |event: &Event| {
        assert!(!matches!(event, Event::Disconnected { .. }), "{event:?}");
        matches!(event, Event::Presence { key: of, .. } if *of == key)
    };
    lab::until(&mut node, wanted).await;
}
