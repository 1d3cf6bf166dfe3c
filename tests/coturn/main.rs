//! The TURN client against the real coturn on loopback, over UDP, TCP, TLS and TLS through a proxy.

mod driver;
mod server;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use driver::{Driver, Link, echo_peer};
use server::{PASSWORD, Server, USER, time_limited};
use wice::core::turn::{AllocationEvent, AllocationState, Credentials, Failure, Family, Refusal};
use wice_signaling::protocol::RelayTransport;

/// Odd sizes show padding; the last is a full WireGuard packet.
const SIZES: [usize; 9] = [1, 2, 3, 4, 5, 7, 333, 1199, 1452];
/// A wrong password is one more round trip, not a timeout.
const AT_ONCE: Duration = Duration::from_secs(2);

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

#[tokio::test]
async fn udp() {
    let server = Server::start(&[]).await;
    full_cycle(Driver::new(Link::udp(&server).await, alice())).await;
}

#[tokio::test]
async fn tcp() {
    let server = Server::start(&[]).await;
    full_cycle(Driver::new(Link::tcp(&server), alice())).await;
}

#[tokio::test]
async fn tls() {
    let server = Server::start(&[]).await;
    full_cycle(Driver::new(Link::tls(&server, None), alice())).await;
}

#[tokio::test]
async fn tls_through_a_proxy() {
    let server = Server::start(&[]).await;
    let proxy = server::http_proxy().await;
    let link = Link::tls(&server, Some(proxy));
    full_cycle(Driver::new(link, alice())).await;
}

#[tokio::test]
async fn an_ipv6_address_over_an_ipv4_connection() {
    let server = Server::start(&["--relay-ip=::1"]).await;
    let driver = Driver::of_family(Family::V6, Link::udp(&server).await, alice());
    full_cycle(driver).await;
    let server = Server::start(&[]).await;
    let mut driver = Driver::of_family(Family::V6, Link::udp(&server).await, alice());
    assert_eq!(driver.failure().await, Failure::Family(440));
}

#[tokio::test]
async fn time_limited_credentials() {
    let server = Server::start(&["--use-auth-secret", "--static-auth-secret=shared"]).await;
    let valid = time_limited("shared", 60);
    let mut driver = Driver::new(Link::udp(&server).await, valid);
    driver.allocate().await;
    driver.refresh().await;
    let expired = time_limited("shared", -60);
    let mut driver = Driver::new(Link::udp(&server).await, expired);
    assert_eq!(driver.failure().await, Failure::WrongCredentials);
}

#[tokio::test]
async fn a_wrong_password_fails_at_once_on_every_transport() {
    let server = Server::start(&[]).await;
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

#[tokio::test]
async fn a_stale_nonce_is_renewed() {
    let server = Server::start(&["--stale-nonce=1"]).await;
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

#[tokio::test]
async fn a_used_up_quota_is_named() {
    let server = Server::start(&["--user-quota=1"]).await;
    let mut first = Driver::new(Link::udp(&server).await, alice());
    first.allocate().await;
    let mut second = Driver::new(Link::udp(&server).await, alice());
    assert_eq!(second.failure().await, Failure::Quota);
    assert!(second.codes.contains(&486));
}

#[tokio::test]
async fn a_denied_peer_is_refused_alone() {
    let server = Server::start(&["--denied-peer-ip=127.0.0.9"]).await;
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

#[tokio::test]
async fn a_used_port_is_a_mismatch() {
    let server = Server::start(&[]).await;
    let mut first = Driver::new(Link::udp(&server).await, alice());
    first.allocate().await;
    // As after a crash: the server still has the allocation, the client no longer knows of it.
    let mut second = Driver::new(first.into_link(), alice());
    assert_eq!(second.failure().await, Failure::Mismatch);
}

#[tokio::test]
async fn a_restarted_server_has_lost_the_allocation() {
    let mut server = Server::start(&[]).await;
    let mut driver = Driver::new(Link::udp(&server).await, alice());
    driver.allocate().await;
    server.restart().await;
    driver.allocation.verify(Instant::now());
    assert_eq!(driver.failure().await, Failure::Mismatch);
}

#[tokio::test]
async fn a_stopped_server_closes_its_streams() {
    let mut server = Server::start(&[]).await;
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
