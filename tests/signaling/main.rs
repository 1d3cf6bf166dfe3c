//! Service and client end to end, on loopback.

// The lints know tests by their attribute only; here all is test.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, unreachable_pub)]

mod carry;
mod frames;
mod hostile;
mod lab;
mod paths;
mod presence;

use std::time::{Duration, Instant};

use lab::{Lab, SOON, raw};
use wice::signaling::{Event, Signaling};
use wice_signaling::protocol::{ErrorCode, RecordKind, RevocationList, ServerKind};
use wice_signaling::server::{Networks, Transport, TurnSecrets};

/// Waits until the service refuses this node for this reason.
async fn until_refused(node: &mut Signaling, wanted: ErrorCode) {
    lab::until(
        node,
        |event| matches!(event, Event::Refused { code, .. } if *code == wanted),
    )
    .await;
}

#[tokio::test]
async fn two_nodes_exchange_sealed_adverts() {
    let lab = Lab::new("exchange");
    let server = lab.serve().await;
    let (key_a, key_b) = (lab.key(1), lab.key(2));
    let mut a = lab.connect(&server, &key_a);
    a.publish(RecordKind::Advert, lab.sealed_advert(&key_a, 1));
    lab::until_connected(&mut a).await;

    let start = Instant::now();
    let mut b = lab.connect(&server, &key_b);
    b.publish(RecordKind::Advert, lab.sealed_advert(&key_b, 1));
    let at_b = lab::next_record(&mut b).await;
    let at_a = lab::next_record(&mut a).await;
    let took = start.elapsed();
    println!("second node's start to both having both adverts: {took:?}");
    assert_eq!(lab.open_advert(&at_b).key, key_a.public_key());
    assert_eq!(lab.open_advert(&at_a).key, key_b.public_key());
    // Some 5 ms on an idle machine; the bound is for a busy one.
    assert!(took < Duration::from_secs(1), "{took:?}");

    // A change reaches the other; a record that did not change is not sent again.
    a.publish(RecordKind::Advert, lab.sealed_advert(&key_a, 2));
    let changed = lab::next_record(&mut b).await;
    assert_eq!(lab.open_advert(&changed).sequence, 2);
    server.stop().await;
}

#[tokio::test]
async fn a_late_node_gets_everything_and_how_long_others_are_away() {
    let lab = Lab::new("late");
    let mut config = lab.config();
    config.limits.presence_grace = Duration::ZERO;
    let server = lab.serve_with(config).await;
    let (key_a, key_b) = (lab.key(1), lab.key(2));
    let mut a = lab.connect(&server, &key_a);
    a.publish(RecordKind::Advert, lab.sealed_advert(&key_a, 1));
    a.publish(RecordKind::Routes, vec![1, 2, 3]);
    lab::until_connected(&mut a).await;
    lab::until_records(&server, 2).await;
    drop(a);
    raw::until_metric(&server, "wice_signal_nodes_connected 0").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;

    let mut b = lab.connect(&server, &key_b);
    for kind in RecordKind::ALL {
        let Event::Record {
            key,
            kind: got,
            last_seen,
            ..
        } = lab::next_record(&mut b).await
        else {
            unreachable!()
        };
        assert_eq!((key, got), (key_a.public_key(), kind));
        assert!(last_seen >= Duration::from_secs(1), "{last_seen:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn after_a_restart_the_receipt_lets_in_whom_the_expired_invite_would_not() {
    let lab = Lab::expiring("restart", 2);
    let server = lab.serve().await;
    let key = lab.key(1);
    let mut a = lab.connect(&server, &key);
    a.publish(RecordKind::Advert, lab.sealed_advert(&key, 1));
    lab::until_connected(&mut a).await;
    let address = server.address;
    server.stop().await;
    lab::until(&mut a, |event| matches!(event, Event::Disconnected { .. })).await;
    tokio::time::sleep(Duration::from_secs(3)).await;

    let server = lab.serve_at(address).await;
    lab::until_connected(&mut a).await;
    // Published again without being asked.
    lab::until_records(&server, 1).await;

    let mut late = lab.connect(&server, &lab.key(2));
    lab::until(&mut late, |event| {
        matches!(
            event,
            Event::Refused {
                code: ErrorCode::InviteExpired,
                ..
            }
        )
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_node_is_out_within_a_second_and_stays_out() {
    let lab = Lab::new("revoke");
    let server = lab.serve().await;
    let (key_a, key_b) = (lab.key(1), lab.key(2));
    let (mut a, mut b) = (lab.connect(&server, &key_a), lab.connect(&server, &key_b));
    a.publish(RecordKind::Advert, lab.sealed_advert(&key_a, 1));
    b.publish(RecordKind::Advert, lab.sealed_advert(&key_b, 1));
    lab::until_connected(&mut a).await;
    lab::until_connected(&mut b).await;
    lab::until_records(&server, 2).await;

    let list = |sequence, key| {
        RevocationList::sign(&lab.admin, sequence, [key].into(), Default::default()).unwrap()
    };
    let start = Instant::now();
    a.push_revocations(list(5, key_b.public_key()));
    lab::until(&mut b, |event| {
        matches!(
            event,
            Event::Refused {
                code: ErrorCode::Revoked,
                ..
            }
        )
    })
    .await;
    println!("pushed to the revoked node out: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1));
    lab::until(
        &mut a,
        |event| matches!(event, Event::Revocations(list) if list.sequence() == 5),
    )
    .await;
    lab::until_records(&server, 1).await;

    // An older list changes nothing; a restart forgets nothing.
    a.push_revocations(list(4, key_a.public_key()));
    let address = server.address;
    server.stop().await;
    let server = lab.serve_at(address).await;
    let mut again = lab.connect(&server, &key_b);
    lab::until(&mut again, |event| {
        matches!(
            event,
            Event::Refused {
                code: ErrorCode::Revoked,
                ..
            }
        )
    })
    .await;
    lab::until_connected(&mut a).await;
    server.stop().await;
}

#[tokio::test]
async fn revocations_that_were_signed_while_the_service_was_down_count_from_its_start() {
    let lab = Lab::new("signed-before");
    let nodes = [lab.key(9).public_key()].into();
    let list = RevocationList::sign(&lab.admin, 1, nodes, Default::default()).unwrap();
    let mut config = lab.config();
    config.revocations = vec![(lab.network, list)];
    let server = lab.serve_with(config).await;
    let mut revoked = lab.connect(&server, &lab.key(9));
    until_refused(&mut revoked, ErrorCode::Revoked).await;
    server.stop().await;
}

#[tokio::test]
async fn a_service_that_lost_the_revocations_gets_them_from_a_node() {
    let lab = Lab::new("regain");
    let server = lab.serve().await;
    let mut a = lab.connect(&server, &lab.key(1));
    lab::until_connected(&mut a).await;
    let nodes = [lab.key(9).public_key()].into();
    a.push_revocations(RevocationList::sign(&lab.admin, 1, nodes, Default::default()).unwrap());
    lab::until(&mut a, |event| matches!(event, Event::Revocations(_))).await;
    let address = server.address;
    server.stop().await;
    std::fs::remove_dir_all(lab.state_dir().join("revocations")).unwrap();

    let server = lab.serve_at(address).await;
    lab::until_connected(&mut a).await;
    let mut revoked = lab.connect(&server, &lab.key(9));
    until_refused(&mut revoked, ErrorCode::Revoked).await;
    server.stop().await;
}

#[tokio::test]
async fn the_newest_connection_of_a_key_wins() {
    let lab = Lab::new("replaced");
    let server = lab.serve().await;
    let mut first = lab.connect(&server, &lab.key(1));
    lab::until_connected(&mut first).await;
    let mut second = lab.connect(&server, &lab.key(1));
    lab::until_connected(&mut second).await;
    lab::until(&mut first, |event| {
        matches!(
            event,
            Event::Refused {
                code: ErrorCode::Replaced,
                ..
            }
        )
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn turn_credentials_come_for_named_networks_and_are_refreshed() {
    let lab = Lab::new("turn");
    let mut config = lab.config();
    config.turn_secrets = TurnSecrets::new(vec!["north".to_owned()]);
    config.servers = vec!["turn:relay.lab:3478?transport=udp".parse().unwrap()];
    config.limits.credential_lifetime = Duration::from_secs(2);
    let open = lab.serve_with(config.clone()).await;
    let mut a = lab.connect(&open, &lab.key(1));
    // Before the welcome: addresses; with it, for a network that anyone may make: no credentials.
    for _ in 0..2 {
        let servers = lab::next_servers(&mut a).await;
        assert_eq!(servers.credentials, None);
        assert_eq!(servers.addresses[0].kind, ServerKind::Stun);
        assert_eq!(servers.addresses[0].host, "127.0.0.1");
        assert_eq!(servers.addresses[0].port, open.address.port());
        assert_eq!(
            servers.addresses[1].to_string(),
            "turn:relay.lab:3478?transport=udp"
        );
    }
    open.stop().await;

    config.networks = Networks::listed([lab.network].into());
    let named = lab.serve_with(config).await;
    let mut b = lab.connect(&named, &lab.key(2));
    assert_eq!(lab::next_servers(&mut b).await.credentials, None);
    let first = lab::next_servers(&mut b).await.credentials.unwrap();
    assert_eq!(first.lifetime_s, 2);
    let start = Instant::now();
    let second = lab::next_servers(&mut b).await.credentials.unwrap();
    assert!(
        start.elapsed() < Duration::from_millis(1900),
        "{:?}",
        start.elapsed()
    );
    assert_ne!(first.username, second.username);
    named.stop().await;
}

#[tokio::test]
async fn a_replaced_turn_secret_reaches_connected_nodes_at_once() {
    let lab = Lab::new("rotation");
    let mut config = lab.config();
    let secrets = TurnSecrets::new(vec!["north".to_owned()]);
    config.turn_secrets = secrets.clone();
    config.servers = vec!["turn:relay.lab:3478?transport=udp".parse().unwrap()];
    config.networks = Networks::listed([lab.network].into());
    let server = lab.serve_with(config).await;
    let mut node = lab.connect(&server, &lab.key(1));
    assert_eq!(lab::next_servers(&mut node).await.credentials, None);
    let first = lab::next_servers(&mut node).await.credentials.unwrap();
    let start = Instant::now();
    secrets.replace(vec!["south".to_owned(), "north".to_owned()]);
    let second = lab::next_servers(&mut node).await.credentials.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_ne!(first.password, second.password);
    server.stop().await;
}

#[tokio::test]
async fn health_and_metrics() {
    let lab = Lab::new("metrics");
    let mut config = lab.config();
    config.transport = Transport::Plain;
    config.metrics_public = true;
    let server = lab.serve_with(config).await;
    assert!(raw::get(&server, "/healthz").await.ends_with("ok\n"));
    let mut a = lab.connect(&server, &lab.key(1));
    a.publish(RecordKind::Advert, vec![1]);
    lab::until_connected(&mut a).await;
    lab::until_records(&server, 1).await;
    let metrics = raw::get(&server, "/metrics").await;
    for line in [
        "wice_signal_nodes_connected 1",
        "wice_signal_record_bytes 1",
        "wice_signal_joins_total 1",
        "wice_signal_publishes_total 1",
        "wice_signal_refusals_total{cause=\"wrong-proof\"} 0",
    ] {
        assert!(
            metrics.contains(&format!("\n{line}\n")),
            "{line} not in {metrics}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn stun_is_answered_on_the_same_port() {
    let lab = Lab::new("stun");
    let server = lab.serve().await;
    // 127.0.0.2: the answer must come from the address that was asked.
    for target in ["127.0.0.1", "127.0.0.2"] {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket
            .connect((target, server.address.port()))
            .await
            .unwrap();
        let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        request.extend_from_slice(&[7; 12]);
        socket.send(&request).await.unwrap();
        let mut answer = [0; 64];
        let len = tokio::time::timeout(SOON, socket.recv(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(len, 32);
        assert_eq!(answer[8..20], request[8..20]);
        let port = u16::from_be_bytes([answer[26], answer[27]]) ^ 0x2112;
        assert_eq!(port, socket.local_addr().unwrap().port());
    }
    server.stop().await;
}
