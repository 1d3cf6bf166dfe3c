//! Who comes and goes, as the others hear of it.

use std::time::{Duration, Instant};

use wice::signaling::{Event, Signaling};
use wice_signaling::protocol::{Presence, PrivateKey, PublicKey, RecordKind};

use super::lab::{self, Lab, Running, raw};

/// Nobody is told of the same node twice in this time (the service's bound), and some.
const TOLD_EVERY: Duration = Duration::from_millis(2_500);

async fn serve(lab: &Lab, grace: Duration) -> Running {
    let mut config = lab.config();
    config.limits.presence_grace = grace;
    lab.serve_with(config).await
}

async fn connected(lab: &Lab, server: &Running, key: &PrivateKey) -> Signaling {
    let mut node = lab.connect(server, key);
    lab::until_connected(&mut node).await;
    node
}

async fn next_presence(node: &mut Signaling) -> (PublicKey, Presence) {
    match lab::until(node, |event| matches!(event, Event::Presence { .. })).await {
        Event::Presence { key, presence } => (key, presence),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_farewell_reaches_the_others_within_a_second() {
    let lab = Lab::new("farewell");
    let server = serve(&lab, Duration::from_secs(3600)).await;
    let mut watcher = connected(&lab, &server, &lab.key(1)).await;
    let leaver = connected(&lab, &server, &lab.key(2)).await;
    let key = lab.key(2).public_key();
    let start = Instant::now();
    leaver.leave().await;
    let said = start.elapsed();
    let told = next_presence(&mut watcher).await;
    println!(
        "farewell said in {said:?}, heard after {:?}",
        start.elapsed()
    );
    assert_eq!(told, (key, Presence::Left { last_seen_s: 0 }));
    assert!(start.elapsed() < Duration::from_secs(1));

    let _back = connected(&lab, &server, &lab.key(2)).await;
    assert_eq!(
        next_presence(&mut watcher).await,
        (key, Presence::Connected)
    );
    server.stop().await;
}

#[tokio::test]
async fn a_farewell_that_cannot_be_said_does_not_hold_up_the_end() {
    let lab = Lab::new("farewell-down");
    let server = lab.serve().await;
    let mut node = lab.connect(&server, &lab.key(1));
    lab::until_connected(&mut node).await;
    server.stop().await;
    lab::until(&mut node, |event| {
        matches!(event, Event::Disconnected { .. })
    })
    .await;
    let start = Instant::now();
    node.leave().await;
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_lost_node_is_told_of_after_the_grace_with_its_true_time() {
    let lab = Lab::new("lost");
    let grace = Duration::from_millis(1_500);
    let server = serve(&lab, grace).await;
    let mut watcher = connected(&lab, &server, &lab.key(1)).await;
    let node = connected(&lab, &server, &lab.key(2)).await;
    let start = Instant::now();
    drop(node);
    let (key, presence) = next_presence(&mut watcher).await;
    assert_eq!(key, lab.key(2).public_key());
    assert!(start.elapsed() >= grace, "{:?}", start.elapsed());
    assert!(
        matches!(presence, Presence::Lost { last_seen_s: 1..=5 }),
        "{presence:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn reconnecting_within_the_grace_is_not_told() {
    let lab = Lab::new("grace");
    let server = serve(&lab, Duration::from_secs(2)).await;
    let mut watcher = connected(&lab, &server, &lab.key(1)).await;
    for _ in 0..3 {
        drop(connected(&lab, &server, &lab.key(2)).await);
    }
    let _node = connected(&lab, &server, &lab.key(2)).await;
    let told = tokio::time::timeout(TOLD_EVERY, next_presence(&mut watcher)).await;
    assert!(told.is_err(), "{told:?}");
    server.stop().await;
}

/// The first nodes end their connection at a frame that they do not know.
#[tokio::test]
async fn a_node_that_does_not_say_so_hears_of_nobody() {
    let lab = Lab::new("old");
    let server = serve(&lab, Duration::ZERO).await;
    let mut old = raw::connect(&server).await;
    old.hello(&lab, &lab.key(1)).await;
    assert!(old.frame().await.is_some(), "the welcome");
    let mut watcher = connected(&lab, &server, &lab.key(2)).await;
    connected(&lab, &server, &lab.key(3)).await.leave().await;
    next_presence(&mut watcher).await;
    let more = tokio::time::timeout(Duration::from_millis(500), old.frame()).await;
    assert!(more.is_err(), "{more:?}");
    server.stop().await;
}

/// A node that has lost its count learns it from what the service has of it.
#[tokio::test]
async fn a_node_gets_its_own_record_back() {
    let lab = Lab::new("own");
    let server = lab.serve().await;
    let key = lab.key(1);
    let mut node = lab.connect(&server, &key);
    node.publish(RecordKind::Advert, lab.sealed_advert(&key, 900));
    lab::until_records(&server, 1).await;
    lab::until_connected(&mut node).await;
    drop(node);
    let mut again = lab.connect(&server, &key);
    again.publish(RecordKind::Advert, lab.sealed_advert(&key, 1));
    let own = lab::next_record(&mut again).await;
    assert_eq!(lab.open_advert(&own).sequence, 900);
    server.stop().await;
}
