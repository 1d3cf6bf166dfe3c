//! Who is not let in, and what cannot be done to the others.

use std::time::{Duration, Instant};

use futures_util::SinkExt as _;
use tokio_tungstenite::tungstenite::Message;
use wice::signaling::Event;
use wice_signaling::protocol::{
    ClientFrame, ErrorCode, Hello, MAX_FRAME_LEN, MAX_SEALED_LEN, NetworkId, RecordKind,
    ServerFrame,
};
use wice_signaling::server::Networks;

use super::lab::{self, Lab, raw};

#[tokio::test]
async fn nothing_is_taken_before_the_proof() {
    let lab = Lab::new("before");
    let server = lab.serve().await;
    let publish = ClientFrame::Publish {
        kind: RecordKind::Advert,
        sealed: vec![1],
    };
    let mut client = raw::connect(&server).await;
    client.send(publish.encode()).await;
    assert_eq!(client.refused().await, ErrorCode::BadFrame);
    for garbage in [vec![], vec![0], vec![1; 10], vec![0xff; 600], vec![1; 5000]] {
        let mut client = raw::connect(&server).await;
        client.send(garbage).await;
        assert_eq!(client.refused().await, ErrorCode::BadFrame);
    }
    let mut client = raw::connect(&server).await;
    client
        .socket
        .send(Message::Text("hello".into()))
        .await
        .unwrap();
    assert_eq!(client.refused().await, ErrorCode::BadFrame);
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_proof_or_a_stranger_is_refused() {
    let lab = Lab::new("stranger");
    let server = lab.serve().await;
    let key = lab.key(1);
    let member = lab.membership(&key);
    let hello = |network, membership, challenge: &[u8; 32]| {
        ClientFrame::Hello(Hello::sign(
            &key, network, membership, None, challenge, &[6; 64],
        ))
    };
    // A proof for another challenge: a replay.
    let mut client = raw::connect(&server).await;
    client
        .send(hello(lab.network, member.clone(), &[0; 32]).encode())
        .await;
    assert_eq!(client.refused().await, ErrorCode::WrongProof);
    // Another node's membership.
    let mut client = raw::connect(&server).await;
    let others = lab.membership(&lab.key(2));
    client
        .send(hello(lab.network, others, &client.challenge.clone()).encode())
        .await;
    assert_eq!(client.refused().await, ErrorCode::NotMember);
    // A membership of another network.
    let mut client = raw::connect(&server).await;
    let foreign = hello(NetworkId([9; 32]), member, &client.challenge.clone());
    client.send(foreign.encode()).await;
    assert_eq!(client.refused().await, ErrorCode::NotMember);
    raw::until_metric(
        &server,
        "wice_signal_refusals_total{cause=\"not-member\"} 2",
    )
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_network_that_is_not_served_is_refused() {
    let lab = Lab::new("closed");
    let mut config = lab.config();
    config.networks = Networks::listed([NetworkId([9; 32])].into());
    let server = lab.serve_with(config).await;
    let mut client = raw::connect(&server).await;
    client.hello(&lab, &lab.key(1)).await;
    assert_eq!(client.refused().await, ErrorCode::NetworkNotAllowed);
    server.stop().await;
}

#[tokio::test]
async fn frames_too_large_end_the_connection_only() {
    let lab = Lab::new("large");
    let server = lab.serve().await;
    let mut bystander = lab.connect(&server, &lab.key(2));
    lab::until_connected(&mut bystander).await;
    for len in [MAX_SEALED_LEN + 1, MAX_FRAME_LEN + 1] {
        let mut client = raw::connect(&server).await;
        client.hello(&lab, &lab.key(1)).await;
        assert!(matches!(
            client.frame().await,
            Some(ServerFrame::Welcome { .. })
        ));
        let sealed = vec![7; len];
        client
            .send(
                ClientFrame::Publish {
                    kind: RecordKind::Advert,
                    sealed,
                }
                .encode(),
            )
            .await;
        assert_eq!(client.refused().await, ErrorCode::BadFrame);
    }
    bystander.publish(RecordKind::Advert, vec![1]);
    lab::until_records(&server, 1).await;
    server.stop().await;
}

#[tokio::test]
async fn who_says_nothing_is_put_out() {
    let lab = Lab::new("silent");
    let mut config = lab.config();
    config.limits.handshake_timeout = Duration::from_millis(300);
    let server = lab.serve_with(config).await;
    let start = Instant::now();
    let mut client = raw::connect(&server).await;
    assert_eq!(client.refused().await, ErrorCode::TimedOut);
    assert!(start.elapsed() < Duration::from_secs(3));
    // Not even TLS.
    let address = ("127.0.0.1", server.address.port());
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut byte = [0; 1];
    let read = tokio::io::AsyncReadExt::read(&mut tcp, &mut byte);
    assert!(
        tokio::time::timeout(lab::SOON, read)
            .await
            .unwrap()
            .is_ok_and(|len| len == 0)
    );
    server.stop().await;
}

#[tokio::test]
async fn connections_of_one_source_are_bounded() {
    let lab = Lab::new("source");
    let mut config = lab.config();
    config.limits.connections_per_source = 3;
    let server = lab.serve_with(config).await;
    let address = ("127.0.0.1", server.address.port());
    let open = async || tokio::net::TcpStream::connect(address).await.unwrap();
    let held = [open().await, open().await, open().await];
    let mut fourth = open().await;
    let mut byte = [0; 1];
    let read = tokio::io::AsyncReadExt::read(&mut fourth, &mut byte);
    let end = tokio::time::timeout(lab::SOON, read).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)));
    drop(held);
    // Places are given back when the service has seen the ends.
    tokio::time::sleep(Duration::from_millis(300)).await;
    raw::until_metric(
        &server,
        "wice_signal_refusals_total{cause=\"too-many-from-source\"} 1",
    )
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_source_that_connects_again_and_again_is_refused_for_a_while() {
    let lab = Lab::new("connects");
    let mut config = lab.config();
    config.limits.connects_burst = 2;
    config.limits.connects_interval = Duration::from_millis(400);
    let server = lab.serve_with(config).await;
    let start = Instant::now();
    let mut served = 0;
    while start.elapsed() < Duration::from_secs(3) {
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", server.address.port())).await;
        let mut tcp = tcp.unwrap();
        // Who is refused is closed at once, who is served is waited for.
        let read = tokio::io::AsyncReadExt::read_u8(&mut tcp);
        if tokio::time::timeout(Duration::from_millis(50), read)
            .await
            .is_err()
        {
            served += 1;
        }
    }
    assert!(
        (4..=10).contains(&served),
        "{served} in {:?}",
        start.elapsed()
    );
    server.stop().await;
}

#[tokio::test]
async fn a_slow_reader_is_put_out_and_harms_nobody() {
    let lab = Lab::new("slow");
    let mut config = lab.config();
    config.limits.queue = 8;
    config.limits.write_timeout = Duration::from_millis(500);
    let server = lab.serve_with(config).await;
    let mut slow = raw::connect(&server).await;
    slow.hello(&lab, &lab.key(1)).await;
    assert!(matches!(
        slow.frame().await,
        Some(ServerFrame::Welcome { .. })
    ));

    let mut fast = raw::connect(&server).await;
    fast.hello(&lab, &lab.key(2)).await;
    assert!(matches!(
        fast.frame().await,
        Some(ServerFrame::Welcome { .. })
    ));
    // More than all socket buffers on the way hold; different each time.
    for n in 0..8_000u32 {
        let mut sealed = vec![0; MAX_SEALED_LEN];
        sealed[..4].copy_from_slice(&n.to_be_bytes());
        fast.send(
            ClientFrame::Publish {
                kind: RecordKind::Advert,
                sealed,
            }
            .encode(),
        )
        .await;
    }
    raw::until_metric(
        &server,
        "wice_signal_refusals_total{cause=\"slow-reader\"} 1",
    )
    .await;
    raw::until_metric(&server, "wice_signal_nodes_connected 1").await;

    // It comes again and gets what there is.
    let mut again = lab.connect(&server, &lab.key(1));
    let record = lab::next_record(&mut again).await;
    assert!(matches!(record, Event::Record { sealed, .. } if sealed.len() == MAX_SEALED_LEN));
    server.stop().await;
}

#[tokio::test]
async fn publishing_too_often_is_slowed_down_and_the_last_record_wins() {
    let lab = Lab::new("throttle");
    let mut config = lab.config();
    config.limits.publish_burst = 4;
    config.limits.publish_interval = Duration::from_millis(100);
    let server = lab.serve_with(config).await;
    let mut watcher = lab.connect(&server, &lab.key(2));
    lab::until_connected(&mut watcher).await;
    let mut client = raw::connect(&server).await;
    client.hello(&lab, &lab.key(1)).await;
    let start = Instant::now();
    for n in 0..14 {
        let frame = ClientFrame::Publish {
            kind: RecordKind::Advert,
            sealed: vec![n],
        };
        client.send(frame.encode()).await;
    }
    let last = |event: &Event| matches!(event, Event::Record { sealed, .. } if sealed == &[13]);
    lab::until(&mut watcher, last).await;
    // Four at once, ten at ten a second.
    assert!(
        start.elapsed() >= Duration::from_millis(950),
        "{:?}",
        start.elapsed()
    );
    server.stop().await;
}

#[tokio::test]
async fn a_full_network_forgets_who_is_away_before_it_refuses() {
    let lab = Lab::new("full");
    let mut config = lab.config();
    config.limits.nodes_per_network = 2;
    let server = lab.serve_with(config).await;
    let (mut a, mut b) = (
        lab.connect(&server, &lab.key(1)),
        lab.connect(&server, &lab.key(2)),
    );
    lab::until_connected(&mut a).await;
    lab::until_connected(&mut b).await;
    let mut third = raw::connect(&server).await;
    third.hello(&lab, &lab.key(3)).await;
    assert_eq!(third.refused().await, ErrorCode::NetworkFull);
    drop(b);
    raw::until_metric(&server, "wice_signal_nodes_connected 1").await;
    let mut third = raw::connect(&server).await;
    third.hello(&lab, &lab.key(3)).await;
    assert!(matches!(
        third.frame().await,
        Some(ServerFrame::Welcome { .. })
    ));
    server.stop().await;
}
