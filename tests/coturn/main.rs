//! The TURN client against the real coturn and against our own server on loopback, over UDP, TCP, TLS and TLS through a proxy.

mod driver;
mod server;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use driver::{Driver, Link, echo_peer};
use server::{Kind, PASSWORD, Server, USER, Wish, time_limited};
use wice::core::turn::{AllocationEvent, AllocationState, Credentials, Failure, Family, Refusal};
use wice_signaling::protocol::RelayTransport;

/// Odd sizes show padding; the last is a full WireGuard packet.
const SIZES: [usize; 9] = [1, 2, 3, 4, 5, 7, 333, 1199, 1452];
/// A wrong password is one more round trip, not a timeout.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Each test against both servers.
macro_rules! against_both {
    ($($name:ident),* $(,)?) => {
        mod coturn {
            $(#[tokio::test] async fn $name() { super::$name(super::Kind::Coturn).await; })*
        }
        mod ours {
            $(#[tokio::test] async fn $name() { super::$name(super::Kind::Ours).await; })*
        }
    };
}

against_both! {
    udp,
    tcp,
    tls,
    tls_through_a_proxy,
    an_ipv6_address_over_an_ipv4_connection,
    time_limited_credentials,
    a_wrong_password_fails_at_once_on_every_transport,
    a_stale_nonce_is_renewed,
    a_used_up_quota_is_named,
    a_denied_peer_is_refused_alone,
    a_used_port_is_a_mismatch,
    a_restarted_server_has_lost_the_allocation,
    a_stopped_server_closes_its_streams,
}

fn alice() -> Credentials {
    Credentials::new(USER, PASSWORD).expect("valid")
}

/// Everything an allocation does, with data both ways.
async fn full_cycle(mut driver: Driver) {
    driver.allocate().await;
    let relayed = driver.allocation.relayed_address().expect("allocated");
    assert!(relayed.ip().is_loopback());
    let mapped = driver.allocation.mapped_address().expect("said");
    assert_eq!(mapped.ip(), IpAddr::from([127, 0, 0, 1]));

    let (echo, count) = echo_peer(relayed.ip()).await;
    driver.permit(echo.ip()).await;
    driver.expect_echoes(echo, &SIZES).await;
    assert_eq!(driver.channel_frames_in, 0, "Data indications so far");

    driver.allocation.bind_channel(echo, Instant::now());
    let bound = |driver: &Driver| driver.allocation.channel(echo).is_some();
    driver.until("the channel", bound).await;
    driver.expect_echoes(echo, &SIZES).await;
    assert!(
        driver.channel_frames_in >= SIZES.len(),
        "all on the channel"
    );
    let burst: Vec<usize> = (0..300).map(|n| 1 + n * 4 % 1201).collect();
    driver.expect_echoes(echo, &burst).await;
    assert!(count.load(Ordering::Relaxed) >= 18 + 300);

    driver.refresh().await;
    let rtt = driver.allocation.rtt().expect("measured");
    assert!(rtt < Duration::from_millis(500), "{rtt:?}");
    let counters = driver.allocation.counters();
    assert_eq!((counters.unauthenticated, counters.ignored), (0, 0));

    driver.allocation.close(Instant::now());
    driver
        .until("the close", |d| {
            d.allocation.state() == AllocationState::Closed
        })
        .await;
    assert_eq!(
        driver.codes,
        BTreeSet::from([401]),
        "no error but the challenge"
    );
}

async fn udp(kind: Kind) {
    let server = Server::start(kind, Wish::default()).await;
    full_cycle(Driver::new(Link::udp(&server).await, alice())).await;
}

async fn tcp(kind: Kind) {
    let server = Server::start(kind, Wish::default()).await;
    full_cycle(Driver::new(Link::tcp(&server), alice())).await;
}

async fn tls(kind: Kind) {
    let server = Server::start(kind, Wish::default()).await;
    full_cycle(Driver::new(Link::tls(&server, None), alice())).await;
}

async fn tls_through_a_proxy(kind: Kind) {
    let server = Server::start(kind, Wish::default()).await;
    let proxy = server::http_proxy().await;
    let link = Link::tls(&server, Some(proxy));
    full_cycle(Driver::new(link, alice())).await;
}

async fn an_ipv6_address_over_an_ipv4_connection(kind: Kind) {
    let server = Server::start(
        kind,
        Wish {
            ipv6: true,
            ..Wish::default()
        },
    )
    .await;
    let driver = Driver::of_family(Family::V6, Link::udp(&server).await, alice());
    full_cycle(driver).await;
    let server = Server::start(kind, Wish::default()).await;
    let mut driver = Driver::of_family(Family::V6, Link::udp(&server).await, alice());
    assert_eq!(driver.failure().await, Failure::Family(440));
}

async fn time_limited_credentials(kind: Kind) {
    let server = Server::start(
        kind,
        Wish {
            secret: Some("shared"),
            ..Wish::default()
        },
    )
    .await;
    let valid = time_limited("shared", 60);
    let mut driver = Driver::new(Link::udp(&server).await, valid);
    driver.allocate().await;
    driver.refresh().await;
    let expired = time_limited("shared", -60);
    let mut driver = Driver::new(Link::udp(&server).await, expired);
    assert_eq!(driver.failure().await, Failure::WrongCredentials);
}

async fn a_wrong_password_fails_at_once_on_every_transport(kind: Kind) {
    let server = Server::start(kind, Wish::default()).await;
    for transport in [
        RelayTransport::Udp,
        RelayTransport::Tcp,
        RelayTransport::Tls,
    ] {
        let wrong = Credentials::new(USER, "guess").expect("valid");
        let link = Link::of(transport, &server).await;
        let mut driver = Driver::new(link, wrong);
        let start = Instant::now();
        assert_eq!(driver.failure().await, Failure::WrongCredentials);
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    }
}

async fn a_stale_nonce_is_renewed(kind: Kind) {
    let server = Server::start(
        kind,
        Wish {
            nonce_seconds: Some(1),
            ..Wish::default()
        },
    )
    .await;
    let mut driver = Driver::new(Link::udp(&server).await, alice());
    driver.allocate().await;
    let start = Instant::now();
    while !driver.codes.contains(&438) {
        assert!(start.elapsed() < Duration::from_secs(6), "never stale");
        driver.pause(Duration::from_millis(700)).await;
        driver.refresh().await;
    }
    driver.refresh().await;
    assert_eq!(driver.allocation.state(), AllocationState::Allocated);
}

async fn a_used_up_quota_is_named(kind: Kind) {
    let server = Server::start(
        kind,
        Wish {
            user_quota: Some(1),
            ..Wish::default()
        },
    )
    .await;
    let mut first = Driver::new(Link::udp(&server).await, alice());
    first.allocate().await;
    let mut second = Driver::new(Link::udp(&server).await, alice());
    assert_eq!(second.failure().await, Failure::Quota);
    assert!(second.codes.contains(&486));
}

async fn a_denied_peer_is_refused_alone(kind: Kind) {
    let server = Server::start(
        kind,
        Wish {
            deny: Some("127.0.0.9"),
            ..Wish::default()
        },
    )
    .await;
    let mut driver = Driver::new(Link::tcp(&server), alice());
    driver.allocate().await;
    let (denied, allowed) = (IpAddr::from([127, 0, 0, 9]), IpAddr::from([127, 0, 0, 8]));
    driver.allocation.permit(denied, Instant::now());
    driver.permit(allowed).await;
    let refused = AllocationEvent::PermissionRefused {
        peer: denied,
        refusal: Refusal::Forbidden,
    };
    driver
        .until("the refusal", |driver| driver.events.contains(&refused))
        .await;
    let denied = SocketAddr::new(denied, 9);
    driver.allocation.bind_channel(denied, Instant::now());
    let refused = AllocationEvent::ChannelRefused {
        peer: denied,
        refusal: Refusal::Forbidden,
    };
    driver
        .until("the refusal", |driver| driver.events.contains(&refused))
        .await;
    assert_eq!(driver.allocation.state(), AllocationState::Allocated);
}

async fn a_used_port_is_a_mismatch(kind: Kind) {
    let server = Server::start(kind, Wish::default()).await;
    let mut first = Driver::new(Link::udp(&server).await, alice());
    first.allocate().await;
    // As after a crash: the server still has the allocation, the client no longer knows of it.
    let mut second = Driver::new(first.into_link(), alice());
    assert_eq!(second.failure().await, Failure::Mismatch);
}

async fn a_restarted_server_has_lost_the_allocation(kind: Kind) {
    let mut server = Server::start(kind, Wish::default()).await;
    let mut driver = Driver::new(Link::udp(&server).await, alice());
    driver.allocate().await;
    server.restart().await;
    driver.allocation.verify(Instant::now());
    assert_eq!(driver.failure().await, Failure::Mismatch);
}

async fn a_stopped_server_closes_its_streams(kind: Kind) {
    let mut server = Server::start(kind, Wish::default()).await;
    let mut driver = Driver::new(Link::tls(&server, None), alice());
    driver.allocate().await;
    server.stop();
    assert_eq!(driver.failure().await, Failure::ConnectionClosed);
}

#[tokio::test]
async fn a_web_server_is_not_taken_for_a_relay() {
    // A TCP allocation against something that answers in HTTP.
    let proxy = server::http_proxy().await;
    let mut driver = Driver::new(Link::stream(proxy, None, None), alice());
    let failure = driver.failure().await;
    assert!(
        matches!(failure, Failure::Desynchronized | Failure::ConnectionClosed),
        "{failure}"
    );
}
