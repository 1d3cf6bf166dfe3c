//! Allocate, refresh, keep alive, close; what happens when nobody answers.

use super::*;
use crate::core::timing::RELAY_SILENT;
use crate::core::turn::allocation::{ALLOCATE_TIMEOUT, CLOSE_TIMEOUT};
use crate::core::turn::message::MAX_RESPONSE;
use crate::core::turn::requests::{KEEPALIVE_STREAM, KEEPALIVE_UDP};
use crate::core::turn::transaction::TI;
use stun_types::attribute::{AttributeStaticType, PasswordAlgorithmValue, RawAttribute};
use stun_types::message::BINDING;
use turn_types::message::{CREATE_PERMISSION, REFRESH};

#[test]
fn an_allocation_is_challenged_granted_refreshed_and_closed() {
    for transport in [
        RelayTransport::Udp,
        RelayTransport::Tcp,
        RelayTransport::Tls,
    ] {
        let mut world = World::allocated(transport);
        assert_eq!(world.client.relayed_address(), Some(RELAYED.into()));
        assert_eq!(world.client.mapped_address(), Some(MAPPED.into()));
        let mut refreshed = None;
        let start = world.now;
        while refreshed.is_none() {
            for request in world.advance(seconds(1)) {
                match method_of(&request) {
                    REFRESH => refreshed = Some(world.now - start),
                    BINDING => {}
                    method => panic!("unexpected {method}"),
                }
                world.succeed(&request);
            }
        }
        assert_eq!(refreshed, Some(seconds(300)), "half of the lifetime");
        world.client.close(world.now);
        let request = world.request(REFRESH);
        let message = Message::from_bytes(&request).expect("STUN");
        let lifetime = message.attribute::<Lifetime>().expect("there");
        assert_eq!(lifetime.seconds(), 0);
        world.succeed(&request);
        assert_eq!(world.events(), [AllocationEvent::Closed]);
        assert_eq!(world.client.state(), AllocationState::Closed);
        assert!(world.client.poll_timeout().is_none());
    }
}

#[test]
fn closing_does_not_wait_for_a_silent_server() {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.close(world.now);
    assert_eq!(world.advance(CLOSE_TIMEOUT).len(), 3);
    assert_eq!(world.events(), [AllocationEvent::Closed]);
    let (mut world, _) = World::challenged(RelayTransport::Tcp);
    world.client.close(world.now);
    world
        .client
        .handle_closed(Failure::ConnectionClosed, world.now);
    assert_eq!(world.events(), [AllocationEvent::Closed]);
}

#[test]
fn silence_fails_after_seven_sendings_over_udp_and_one_over_tcp() {
    for (transport, sendings) in [(RelayTransport::Udp, 7), (RelayTransport::Tcp, 1)] {
        let mut world = World::new(transport);
        world.client.handle_connected(world.now);
        assert_eq!(world.advance(TI - seconds(1)).len(), sendings);
        assert!(world.events().is_empty());
        assert!(world.client.unanswered_since().is_some());
        world.advance(seconds(1));
        let expected = (Failure::NoAnswer, seconds(30));
        assert_eq!(world.failed(), expected);
    }
}

#[test]
fn the_allocate_timeout_bounds_challenge_and_answer_together() {
    let mut world = World::new(RelayTransport::Udp);
    world.client.handle_connected(world.now);
    world.advance(seconds(31));
    let first = {
        let mut again = World::new(RelayTransport::Udp);
        again.client.handle_connected(world.now);
        again.request(ALLOCATE)
    };
    // The same seed gives the same id.
    let challenge = world.challenge(&first, 401);
    world.receive(&challenge);
    world.advance(ALLOCATE_TIMEOUT - seconds(31));
    assert_eq!(world.failed().0, Failure::NoAnswer);
}

#[test]
fn rtt_comes_from_requests_answered_at_once() {
    let mut world = World::new(RelayTransport::Udp);
    world.client.handle_connected(world.now);
    let first = world.request(ALLOCATE);
    world.advance(Duration::from_millis(80));
    world.reply(&first, &world.challenge(&first, 401));
    assert_eq!(world.client.rtt(), Some(Duration::from_millis(80)));
    let second = world.request(ALLOCATE);
    world.advance(Duration::from_millis(600));
    world.grant(&second, 600);
    assert_eq!(world.client.rtt(), Some(Duration::from_millis(80)), "Karn");
}

#[test]
fn an_idle_allocation_is_kept_alive() {
    for (transport, pause) in [
        (RelayTransport::Udp, KEEPALIVE_UDP),
        (RelayTransport::Tls, KEEPALIVE_STREAM),
    ] {
        let mut world = World::allocated(transport);
        assert!(world.advance(pause - seconds(1)).is_empty());
        let sent = world.advance(seconds(1));
        assert_eq!(sent.len(), 1);
        assert_eq!(method_of(&sent[0]), BINDING);
        // That one is lost says little; the server is asked by what is repeated until it answers.
        let wait = seconds(10);
        assert!(world.advance(wait - Duration::from_millis(1)).is_empty());
        assert!(world.client.unanswered_since().is_none());
        let asked = world.advance(Duration::from_millis(1));
        assert_eq!(method_of(&asked[0]), REFRESH);
        let since = world.client.unanswered_since();
        assert_eq!(since, Some(world.now));
        assert!(!world.client.is_silent(world.now + RELAY_SILENT / 2));
        assert!(world.client.is_silent(world.now + RELAY_SILENT));
        world.succeed(&asked[0]);
        assert!(world.client.unanswered_since().is_none());
    }
}

#[test]
fn an_outage_shorter_than_the_lifetime_costs_nothing() {
    let mut world = World::allocated(RelayTransport::Udp);
    let sent = world.advance(seconds(590));
    assert!(world.events().is_empty());
    let last = sent
        .iter()
        .rfind(|request| method_of(request) == REFRESH)
        .expect("still trying");
    world.succeed(last);
    assert!(world.client.unanswered_since().is_none());
    world.advance(seconds(299));
    assert_eq!(world.client.state(), AllocationState::Allocated);
}

#[test]
fn an_allocation_without_refresh_expires() {
    let mut world = World::allocated(RelayTransport::Udp);
    world.advance(seconds(600));
    assert_eq!(world.lost(), (Failure::Expired, Duration::ZERO));
}

#[test]
fn verify_asks_at_once() {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.verify(world.now);
    let sent = world.advance(Duration::ZERO);
    assert_eq!(sent.len(), 1);
    assert_eq!(method_of(&sent[0]), REFRESH);
    world.client.verify(world.now);
    assert!(world.advance(Duration::ZERO).is_empty(), "one in flight");
}

#[test]
fn a_lost_connection_ends_it() {
    let mut world = World::new(RelayTransport::Tcp);
    world
        .client
        .handle_closed(Failure::ConnectionClosed, world.now);
    assert_eq!(world.failed().0, Failure::ConnectionClosed);
    let mut world = World::allocated(RelayTransport::Tcp);
    world
        .client
        .handle_closed(Failure::ConnectionClosed, world.now);
    assert_eq!(world.lost(), (Failure::ConnectionClosed, seconds(1)));
}

#[test]
fn sha256_is_used_when_the_server_offers_it() {
    let mut world = World::new(RelayTransport::Udp);
    world.nonce = "obMatJos2gAAAnonce".to_owned();
    world.algorithm = IntegrityAlgorithm::Sha256;
    world.client.handle_connected(world.now);
    let first = world.request(ALLOCATE);
    let offer =
        PasswordAlgorithms::new(&[PasswordAlgorithmValue::SHA256, PasswordAlgorithmValue::MD5]);
    let error = ErrorCode::builder(401).build().expect("a code");
    let realm = Realm::new(REALM).expect("short");
    let nonce = Nonce::new(&world.nonce).expect("short");
    let answer = world.answer(
        &first,
        MessageClass::Error,
        &[&error, &realm, &nonce, &offer],
        false,
    );
    world.reply(&first, &answer);
    let second = world.request(ALLOCATE);
    let message = Message::from_bytes(&second).expect("STUN");
    let key = LongTermKeyCredentials::new(USER.into(), PASSWORD.into(), REALM.into());
    let algorithm = message.validate_integrity(&key.into()).expect("signed");
    assert_eq!(algorithm, IntegrityAlgorithm::Sha256);
    let chosen = message.attribute::<PasswordAlgorithm>().expect("there");
    assert_eq!(chosen.algorithm(), PasswordAlgorithmValue::SHA256);
    assert_eq!(
        message.attribute::<PasswordAlgorithms>().as_ref(),
        Ok(&offer)
    );
    // An answer under the weaker algorithm is not ours.
    world.algorithm = IntegrityAlgorithm::Sha1;
    world.grant(&second, 600);
    assert!(world.events().is_empty());
    world.algorithm = IntegrityAlgorithm::Sha256;
    world.grant(&second, 600);
    assert_eq!(world.events().len(), 1);
}

#[test]
fn a_bid_down_is_not_answered() {
    let mut world = World::new(RelayTransport::Udp);
    world.nonce = "obMatJos2gAAAnonce".to_owned();
    world.client.handle_connected(world.now);
    let first = world.request(ALLOCATE);
    world.reply(&first, &world.challenge(&first, 401));
    assert_eq!(world.failed().0, Failure::BadChallenge);
}

#[test]
fn responses_without_our_integrity_are_ignored() {
    let (mut world, request) = World::challenged(RelayTransport::Udp);
    world.password = "guess";
    for _ in 0..100 {
        world.grant(&request, 600);
        world.refuse(&request, 437);
    }
    assert!(world.events().is_empty());
    assert_eq!(world.client.counters().unauthenticated, 200);
    world.advance(TI);
    let failure = Failure::Unauthenticated { code: Some(437) };
    assert_eq!(world.failed().0, failure);
}

#[test]
fn forgeries_within_reason_do_not_stop_the_true_answer() {
    let (mut world, request) = World::challenged(RelayTransport::Udp);
    world.password = "guess";
    for _ in 0..10 {
        world.grant(&request, 600);
    }
    world.password = PASSWORD;
    world.grant(&request, 600);
    assert_eq!(world.client.state(), AllocationState::Allocated);
    assert_eq!(world.events().len(), 1);
    // And nothing twice.
    world.grant(&request, 600);
    assert!(world.events().is_empty());
}

#[test]
fn attributes_after_the_integrity_are_not_read() {
    let (mut world, request) = World::challenged(RelayTransport::Udp);
    let id = Message::from_bytes(&request)
        .expect("STUN")
        .transaction_id();
    let mut answer = world.success(
        &request,
        &[
            &XorRelayedAddress::new(RELAYED.into(), id),
            &Lifetime::new(600),
        ],
    );
    let appended = RawAttribute::new(XorMappedAddress::TYPE, &[0, 1, 2, 3, 4, 5, 6, 7]);
    answer.extend(appended.to_bytes());
    let length = u16::try_from(answer.len() - 20).expect("short");
    answer[2..4].copy_from_slice(&length.to_be_bytes());
    world.reply(&request, &answer);
    assert_eq!(world.client.state(), AllocationState::Allocated);
    assert_eq!(world.client.mapped_address(), None);
}

#[test]
fn answers_that_make_no_sense_fail() {
    let bad = |relayed: &str, lifetime: u32| {
        let (mut world, request) = World::challenged(RelayTransport::Udp);
        let id = Message::from_bytes(&request)
            .expect("STUN")
            .transaction_id();
        let address: SocketAddr = relayed.parse().expect("an address");
        let relayed = XorRelayedAddress::new(address, id);
        let answer = world.success(&request, &[&relayed, &Lifetime::new(lifetime)]);
        world.reply(&request, &answer);
        world.failed().0
    };
    assert_eq!(bad("0.0.0.0:50000", 600), Failure::BadAnswer);
    assert_eq!(bad("198.51.100.7:0", 600), Failure::BadAnswer);
    assert_eq!(bad("198.51.100.7:50000", 0), Failure::BadAnswer);
    assert_eq!(bad("[2001:db8::1]:50000", 600), Failure::Family(440));
    let (mut world, request) = World::challenged(RelayTransport::Udp);
    world.succeed(&request);
    assert_eq!(world.failed().0, Failure::BadAnswer);
}

#[test]
fn an_oversized_response_is_ignored() {
    let (mut world, request) = World::challenged(RelayTransport::Tcp);
    let filler = vec![0; MAX_RESPONSE];
    let filler = RawAttribute::new(0x8022.into(), &filler);
    let answer = world.success(&request, &[&filler]);
    world.reply(&request, &answer);
    assert!(world.events().is_empty());
    assert_eq!(world.client.counters().ignored, 1);
}

#[test]
fn a_stream_out_of_step_fails() {
    let mut world = World::new(RelayTransport::Tcp);
    world.client.handle_connected(world.now);
    world.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    assert_eq!(world.failed().0, Failure::Desynchronized);
    let (mut world, _) = World::with_channel(RelayTransport::Tls);
    world.receive(&[0xff]);
    assert_eq!(world.lost().0, Failure::Desynchronized);
}

#[test]
fn a_machine_that_slept_sends_each_request_once() {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.permit(ip(1), world.now);
    world.now += seconds(590);
    world.client.handle_timeout(world.now);
    let sent = world.sent();
    assert_eq!(
        sent.iter().map(|r| method_of(r)).collect::<Vec<_>>(),
        [REFRESH, CREATE_PERMISSION]
    );
}

#[test]
fn an_ipv6_allocation_asks_for_its_family() {
    let config = AllocationConfig {
        transport: RelayTransport::Udp,
        credentials: Credentials::new(USER, PASSWORD).expect("valid"),
        family: Family::V6,
    };
    let mut client = Allocation::new(config, [1; 32]);
    let now = Instant::now();
    client.handle_connected(now);
    let request = client.poll_transmit().expect("a request").data;
    let message = Message::from_bytes(&request).expect("STUN");
    let family = message.attribute::<turn_types::attribute::RequestedAddressFamily>();
    assert_eq!(
        family.expect("there").family(),
        stun_types::AddressFamily::IPV6
    );
    client.permit(ip(1), now);
    let event = AllocationEvent::PermissionRefused {
        peer: ip(1),
        refusal: Refusal::Family,
    };
    assert_eq!(client.poll_event(), Some(event));
}

#[test]
fn secrets_are_not_printed() {
    let world = World::new(RelayTransport::Udp);
    assert!(!format!("{:?}", world.client.config()).contains(PASSWORD));
    assert!(Credentials::new("", "x").is_err());
    assert!(Credentials::new(&"u".repeat(509), "x").is_err());
}
