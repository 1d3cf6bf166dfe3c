//! One test for each error code and each kind of request on which it means something.

use super::*;
use stun_types::attribute::AlternateServer;
use turn_types::message::{CHANNEL_BIND, CREATE_PERMISSION, REFRESH};

/// What becomes of an Allocate that is refused with `code`.
fn allocate_refused(code: u16) -> (Failure, Duration) {
    let (mut world, request) = World::challenged(RelayTransport::Udp);
    world.refuse(&request, code);
    world.failed()
}

/// What becomes of an allocation whose refresh is refused with `code`.
fn refresh_refused(code: u16) -> World {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.verify(world.now);
    let sent = world.advance(Duration::ZERO);
    world.refuse(&sent[0], code);
    world
}

/// A CreatePermission for `ip(1)` that is refused with `code`.
fn permission_refused(code: u16) -> World {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.permit(ip(1), world.now);
    let sent = world.advance(Duration::ZERO);
    assert_eq!(method_of(&sent[0]), CREATE_PERMISSION);
    world.refuse(&sent[0], code);
    world
}

/// A ChannelBind for `peer(1)` that is refused with `code`.
fn channel_refused(code: u16) -> World {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.bind_channel(peer(1), world.now);
    for request in world.advance(Duration::ZERO) {
        if method_of(&request) == CHANNEL_BIND {
            world.refuse(&request, code);
        } else {
            world.succeed(&request);
        }
    }
    world
}

#[test]
fn wrong_credentials_fail_without_a_loop() {
    let (mut world, request) = World::challenged(RelayTransport::Udp);
    world.nonce = "nonce-2".to_owned();
    world.reply(&request, &world.challenge(&request, 401));
    assert_eq!(world.failed(), (Failure::WrongCredentials, seconds(5)));
}

#[test]
fn another_realm_is_tried_once() {
    let (mut world, request) = World::challenged(RelayTransport::Udp);
    let error = ErrorCode::builder(401).build().expect("a code");
    let mut request = request;
    for realm in ["other.example", "third.example"] {
        let realm = Realm::new(realm).expect("short");
        let nonce = Nonce::new("n").expect("short");
        let answer = world.answer(
            &request,
            MessageClass::Error,
            &[&error, &realm, &nonce],
            false,
        );
        world.reply(&request, &answer);
        match world.sent().pop() {
            Some(next) => request = next,
            None => break,
        }
    }
    assert_eq!(world.failed(), (Failure::WrongCredentials, seconds(5)));
}

#[test]
fn a_challenge_without_realm_or_nonce_fails() {
    let mut world = World::new(RelayTransport::Udp);
    world.client.handle_connected(world.now);
    let request = world.request(ALLOCATE);
    let error = ErrorCode::builder(401).build().expect("a code");
    let answer = world.answer(&request, MessageClass::Error, &[&error], false);
    world.reply(&request, &answer);
    assert_eq!(world.failed().0, Failure::BadChallenge);
}

#[test]
fn a_stale_nonce_is_renewed() {
    let (mut world, request) = World::challenged(RelayTransport::Udp);
    world.nonce = "nonce-2".to_owned();
    world.reply(&request, &world.challenge(&request, 438));
    let again = world.request(ALLOCATE);
    assert_eq!(nonce_of(&again), "nonce-2");
    assert!(has_integrity(&again));
    world.grant(&again, 600);
    assert_eq!(world.events().len(), 1);
}

#[test]
fn nonces_that_are_always_stale_end() {
    let (mut world, mut request) = World::challenged(RelayTransport::Udp);
    let mut retries = 0;
    loop {
        world.reply(&request, &world.challenge(&request, 438));
        match world.sent().pop() {
            Some(next) => request = next,
            None => break,
        }
        retries += 1;
    }
    assert_eq!(retries, 1);
    assert_eq!(world.failed().0, Failure::StaleNonce);
}

#[test]
fn a_stale_nonce_on_refresh_permission_and_channel_is_renewed() {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.verify(world.now);
    world.client.bind_channel(peer(1), world.now);
    let sent = world.advance(Duration::ZERO);
    assert_eq!(sent.len(), 3);
    // A server that counts only its last nonce makes each one start over, some twice.
    for (n, request) in sent.iter().enumerate() {
        world.nonce = format!("fresh-{n}");
        world.reply(request, &world.challenge(request, 438));
    }
    let sent = world.advance(Duration::ZERO);
    assert_eq!(sent.len(), 3);
    assert_eq!(nonce_of(&sent[2]), "fresh-2");
    world.reply(&sent[0], &world.challenge(&sent[0], 438));
    let third = world.advance(Duration::ZERO);
    assert_eq!(nonce_of(&third[0]), "fresh-2");
    for request in third.iter().chain(&sent[1..]) {
        world.succeed(request);
    }
    assert_eq!(world.events().len(), 2);
    assert!(world.client.channel(peer(1)).is_some());
}

#[test]
fn a_refresh_whose_nonces_are_always_stale_is_tried_later() {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.verify(world.now);
    let mut sent = world.advance(Duration::ZERO);
    for _ in 0..3 {
        let challenge = world.challenge(&sent[0], 438);
        world.reply(&sent[0].clone(), &challenge);
        sent.splice(0..1, world.sent());
    }
    assert!(sent.is_empty() && world.events().is_empty());
    let sent = world.advance(seconds(15));
    assert_eq!(method_of(&sent[0]), REFRESH);
}

#[test]
fn expired_credentials_lose_the_allocation() {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.verify(world.now);
    let mut request = world.advance(Duration::ZERO).remove(0);
    let mut asked = 1;
    loop {
        world.reply(&request, &world.challenge(&request, 401));
        match world.sent().pop() {
            Some(next) => request = next,
            None => break,
        }
        asked += 1;
    }
    assert_eq!(asked, 3);
    assert_eq!(world.lost(), (Failure::WrongCredentials, seconds(5)));
}

#[test]
fn allocate_errors_each_have_their_meaning() {
    let minute = seconds(60);
    assert_eq!(allocate_refused(403), (Failure::Forbidden, seconds(60)));
    let fresh = Duration::ZERO;
    assert_eq!(allocate_refused(437), (Failure::Mismatch, fresh));
    assert_eq!(allocate_refused(440), (Failure::Family(440), seconds(60)));
    assert_eq!(allocate_refused(441), (Failure::WrongUser, fresh));
    assert_eq!(allocate_refused(442), (Failure::Transport, seconds(60)));
    assert_eq!(allocate_refused(443), (Failure::Family(443), seconds(60)));
    assert_eq!(allocate_refused(486), (Failure::Quota, minute));
    assert_eq!(allocate_refused(508), (Failure::Capacity, minute));
    assert_eq!(allocate_refused(400), (Failure::Rejected(400), seconds(60)));
    assert_eq!(allocate_refused(420), (Failure::Rejected(420), seconds(60)));
    assert_eq!(allocate_refused(300), (Failure::Alternate(None), minute));
}

#[test]
fn an_alternate_server_is_reported() {
    let mut world = World::new(RelayTransport::Udp);
    world.client.handle_connected(world.now);
    let request = world.request(ALLOCATE);
    let other: SocketAddr = "192.0.2.99:3478".parse().expect("an address");
    let error = ErrorCode::builder(300).build().expect("a code");
    let answer = world.answer(
        &request,
        MessageClass::Error,
        &[&error, &AlternateServer::new(other)],
        false,
    );
    world.reply(&request, &answer);
    assert_eq!(world.failed().0, Failure::Alternate(Some(other)));
}

#[test]
fn a_server_error_on_allocate_is_retried_four_times() {
    let (mut world, mut request) = World::challenged(RelayTransport::Udp);
    let mut pauses = Vec::new();
    loop {
        world.refuse(&request, 500);
        if world.client.state() == AllocationState::Failed {
            break;
        }
        let before = world.now;
        while world.client.poll_timeout().is_some() {
            let sent = world.advance(Duration::from_millis(100));
            if let Some(next) = sent.into_iter().next() {
                request = next;
                break;
            }
        }
        pauses.push((world.now - before).as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8]);
    let expected = (Failure::ServerError(500), seconds(30));
    assert_eq!(world.failed(), expected);
}

#[test]
fn refresh_errors() {
    let fresh = Duration::ZERO;
    assert_eq!(refresh_refused(437).lost(), (Failure::Mismatch, fresh));
    assert_eq!(refresh_refused(441).lost(), (Failure::WrongUser, fresh));
    assert_eq!(
        refresh_refused(403).lost(),
        (Failure::Forbidden, seconds(60))
    );
    assert_eq!(
        refresh_refused(400).lost(),
        (Failure::Rejected(400), seconds(60))
    );
    for temporary in [500, 508] {
        let mut world = refresh_refused(temporary);
        assert!(world.events().is_empty());
        let sent = world.advance(seconds(15));
        assert_eq!(method_of(&sent[0]), REFRESH);
    }
}

#[test]
fn permission_errors_concern_the_peer_alone() {
    for (code, refusal) in [
        (403, Refusal::Forbidden),
        (443, Refusal::Family),
        (400, Refusal::Code(400)),
    ] {
        let mut world = permission_refused(code);
        let peer = ip(1);
        let event = AllocationEvent::PermissionRefused { peer, refusal };
        assert_eq!(world.events(), [event]);
        assert_eq!(world.client.state(), AllocationState::Allocated);
        let asked = |sent: Vec<Vec<u8>>| {
            let of = |r: &Vec<u8>| method_of(r) == CREATE_PERMISSION;
            sent.iter().filter(|r| of(r)).count()
        };
        let sent = world.advance(seconds(200));
        assert_eq!(asked(sent), 0, "{code} is final until forgotten");
        world.client.forget(peer);
        world.client.permit(peer, world.now);
        let sent = world.advance(Duration::ZERO);
        assert_eq!(asked(sent), 1);
    }
}

#[test]
fn a_permission_is_asked_again_a_minute_after_508() {
    let mut world = permission_refused(508);
    let event = AllocationEvent::PermissionRefused {
        peer: ip(1),
        refusal: Refusal::Temporary(508),
    };
    assert_eq!(world.events(), [event]);
    let of = |sent: &[Vec<u8>]| sent.iter().any(|r| method_of(r) == CREATE_PERMISSION);
    assert!(!of(&world.advance(seconds(59))));
    assert!(of(&world.advance(seconds(1))));
}

#[test]
fn a_mismatch_on_any_request_loses_the_allocation() {
    let fresh = Duration::ZERO;
    assert_eq!(permission_refused(437).lost(), (Failure::Mismatch, fresh));
    assert_eq!(permission_refused(441).lost(), (Failure::WrongUser, fresh));
    let mut world = channel_refused(437);
    let events = world.events();
    let lost = AllocationEvent::Lost {
        failure: Failure::Mismatch,
        retry_after: fresh,
    };
    assert_eq!(events.last(), Some(&lost));
}

#[test]
fn channel_errors_concern_the_channel_alone() {
    for (code, refusal) in [(403, Refusal::Forbidden), (400, Refusal::Code(400))] {
        let mut world = channel_refused(code);
        let peer = peer(1);
        let event = AllocationEvent::ChannelRefused { peer, refusal };
        assert_eq!(world.events().last(), Some(&event));
        assert_eq!(world.client.state(), AllocationState::Allocated);
        assert_eq!(world.client.channel(peer), None);
        let sent = world.advance(seconds(100));
        assert!(sent.iter().all(|r| method_of(r) != CHANNEL_BIND));
    }
    let mut world = channel_refused(508);
    let event = AllocationEvent::ChannelRefused {
        peer: peer(1),
        refusal: Refusal::Temporary(508),
    };
    assert_eq!(world.events().last(), Some(&event));
    let sent = world.advance(seconds(60));
    let bind = sent.iter().find(|r| method_of(r) == CHANNEL_BIND);
    world.succeed(bind.expect("asked again"));
    assert!(world.client.channel(peer(1)).is_some());
}

#[test]
fn every_failure_says_what_it_is() {
    for failure in [
        Failure::NoAnswer,
        Failure::WrongCredentials,
        Failure::Unauthenticated { code: Some(400) },
        Failure::Alternate(Some(peer(1))),
        Failure::Mismatch,
    ] {
        assert!(failure.to_string().len() > 20, "{failure}");
    }
}
