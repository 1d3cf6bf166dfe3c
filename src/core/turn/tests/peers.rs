//! Permissions, channels, and data in both directions.

use super::*;
use turn_types::message::{CHANNEL_BIND, CREATE_PERMISSION, SEND};

fn of_method(sent: &[Vec<u8>], method: Method) -> Vec<Vec<u8>> {
    let of = |bytes: &&Vec<u8>| bytes[0] < 0x40 && method_of(bytes) == method;
    sent.iter().filter(of).cloned().collect()
}

#[test]
fn permissions_are_batched_and_refreshed_every_four_minutes() {
    let mut world = World::allocated(RelayTransport::Udp);
    for last in 1..=40 {
        world.client.permit(ip(last), world.now);
    }
    let sent = world.advance(Duration::ZERO);
    let sizes: Vec<usize> = sent.iter().map(|r| peers_of(r).len()).collect();
    assert_eq!(sizes, [16, 16, 8]);
    assert!(sent.iter().all(|request| request.len() < 1280));
    for request in &sent {
        world.succeed(request);
    }
    assert_eq!(world.events().len(), 40);
    assert!(world.client.permitted(ip(40)));
    world.client.forget(ip(40));
    let quiet = of_method(&world.advance(seconds(239)), CREATE_PERMISSION);
    assert!(quiet.is_empty());
    let sent = of_method(&world.advance(seconds(1)), CREATE_PERMISSION);
    assert_eq!(sent.iter().map(|r| peers_of(r).len()).sum::<usize>(), 39);
    for request in &sent {
        world.succeed(request);
    }
    assert!(world.events().is_empty(), "a refresh is no news");
}

#[test]
fn wishes_before_the_allocation_are_kept() {
    let (mut world, request) = World::challenged(RelayTransport::Udp);
    world.client.permit(ip(1), world.now);
    assert!(world.advance(Duration::ZERO).is_empty());
    world.grant(&request, 600);
    let sent = world.advance(Duration::ZERO);
    assert_eq!(peers_of(&sent[0]), [ip(1)]);
}

#[test]
fn one_denied_peer_does_not_take_its_batch_along() {
    let mut world = World::allocated(RelayTransport::Udp);
    for last in 1..=3 {
        world.client.permit(ip(last), world.now);
    }
    let sent = world.advance(Duration::ZERO);
    world.refuse(&sent[0], 403);
    let sent = world.advance(Duration::ZERO);
    assert_eq!(sent.len(), 3);
    for request in sent {
        if peers_of(&request) == [ip(2)] {
            world.refuse(&request, 403);
        } else {
            world.succeed(&request);
        }
    }
    let refused = AllocationEvent::PermissionRefused {
        peer: ip(2),
        refusal: Refusal::Forbidden,
    };
    assert_eq!(
        world.events(),
        [
            AllocationEvent::PermissionInstalled(ip(1)),
            refused,
            AllocationEvent::PermissionInstalled(ip(3)),
        ]
    );
}

#[test]
fn an_unanswered_permission_is_asked_again_and_expires_meanwhile() {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.permit(ip(1), world.now);
    let sent = world.advance(Duration::ZERO);
    world.succeed(&sent[0]);
    world.events();
    for request in world.advance(seconds(299)) {
        if method_of(&request) != CREATE_PERMISSION {
            world.succeed(&request);
        }
    }
    assert!(world.client.permitted(ip(1)));
    let sent = world.advance(seconds(1));
    assert!(!world.client.permitted(ip(1)));
    let event = AllocationEvent::PermissionRefused {
        peer: ip(1),
        refusal: Refusal::NoAnswer,
    };
    assert_eq!(world.events(), [event]);
    drop(sent);
    let asked = of_method(&world.advance(seconds(30)), CREATE_PERMISSION);
    world.succeed(asked.last().expect("asked again"));
    let event = AllocationEvent::PermissionInstalled(ip(1));
    assert_eq!(world.events().last(), Some(&event));
}

#[test]
fn the_table_of_permissions_is_bounded_and_few_requests_are_in_flight() {
    let mut world = World::allocated(RelayTransport::Udp);
    for n in 0..2000_u32 {
        world
            .client
            .permit(IpAddr::from((0x0a00_0000 + n).to_be_bytes()), world.now);
    }
    let refused = world.events();
    assert_eq!(refused.len(), 2000 - MAX_PERMISSIONS);
    let mut requests = 0;
    loop {
        let sent = world.advance(Duration::ZERO);
        assert!(sent.len() <= 4);
        if sent.is_empty() {
            break;
        }
        requests += sent.len();
        for request in sent {
            world.succeed(&request);
        }
    }
    assert_eq!(requests, MAX_PERMISSIONS / 16);
    assert_eq!(world.events().len(), MAX_PERMISSIONS);
}

#[test]
fn data_goes_by_send_indication_until_a_channel_is_bound() {
    let mut world = World::allocated(RelayTransport::Udp);
    let now = world.now;
    assert_eq!(
        world.client.send(peer(1), b"x", now),
        Err(SendError::NoPermission)
    );
    world.client.permit(ip(1), now);
    let sent = world.advance(Duration::ZERO);
    world.succeed(&sent[0]);
    world.client.send(peer(1), b"check", now).expect("sent");
    let transmit = world.client.poll_transmit().expect("there");
    assert!(transmit.droppable);
    let message = Message::from_bytes(&transmit.data).expect("STUN");
    assert!(message.has_method(SEND) && message.has_class(MessageClass::Indication));
    let data = message.attribute::<Data>().expect("there");
    assert_eq!(data.data(), b"check");
    assert_eq!(peers_of(&transmit.data), [ip(1)]);
    world.client.bind_channel(peer(1), now);
    world.client.send(peer(1), b"still", now).expect("sent");
    let sent = world.advance(Duration::ZERO);
    assert_eq!(of_method(&sent, SEND).len(), 1);
    world.succeed(&of_method(&sent, CHANNEL_BIND)[0]);
    world.client.send(peer(1), b"check", now).expect("sent");
    let frame = world.client.poll_transmit().expect("there").data;
    assert_eq!(frame, b"\x40\x00\x00\x05check");
    let large = vec![0; 65_501];
    let error = world.client.send(peer(1), &large, now);
    assert_eq!(error, Err(SendError::TooLarge(65_501)));
}

#[test]
fn channel_data_is_padded_on_streams_and_parsed_with_padding() {
    let (mut world, number) = World::with_channel(RelayTransport::Tls);
    for size in 0..9_u16 {
        let payload = vec![7; usize::from(size)];
        world
            .client
            .send(peer(1), &payload, world.now)
            .expect("sent");
        let frame = world.client.poll_transmit().expect("there").data;
        assert_eq!(frame.len() % 4, 0);
        assert_eq!(frame[..4], channel_data_header(number, size));
        assert_eq!(frame[4..][..usize::from(size)], payload);
        assert_eq!(world.receive(&frame), [(peer(1), payload)]);
    }
}

#[test]
fn data_is_taken_from_wanted_peers_only() {
    let (mut world, number) = World::with_channel(RelayTransport::Udp);
    let frame = [&channel_data_header(number, 2)[..], b"hi"].concat();
    assert_eq!(world.receive(&frame), [(peer(1), b"hi".to_vec())]);
    let by_indication = data_indication(peer(1), b"hi");
    assert_eq!(world.receive(&by_indication), [(peer(1), b"hi".to_vec())]);
    assert!(world.receive(&data_indication(peer(9), b"hi")).is_empty());
    let other = [&channel_data_header(number + 1, 2)[..], b"hi"].concat();
    assert!(world.receive(&other).is_empty());
    assert_eq!(world.client.counters().strangers, 2);
    let truncated = [&channel_data_header(number, 3)[..], b"hi"].concat();
    assert!(world.receive(&truncated).is_empty());
    world.client.unbind_channel(peer(1));
    assert!(world.receive(&frame).is_empty());
    assert!(world.receive(&by_indication).is_empty());
}

#[test]
fn a_channel_that_is_no_longer_wanted_still_delivers_what_is_permitted() {
    let (mut world, number) = World::with_channel(RelayTransport::Udp);
    world.client.permit(ip(1), world.now);
    world.client.unbind_channel(peer(1));
    let frame = [&channel_data_header(number, 2)[..], b"hi"].concat();
    assert_eq!(world.receive(&frame), [(peer(1), b"hi".to_vec())]);
    assert_eq!(world.client.channel(peer(1)), None);
}

#[test]
fn data_may_overtake_the_answer_that_allows_it() {
    let mut world = World::allocated(RelayTransport::Udp);
    world.client.bind_channel(peer(1), world.now);
    world.advance(Duration::ZERO);
    let frame = [&channel_data_header(0x4000, 2)[..], b"hi"].concat();
    assert_eq!(world.receive(&frame).len(), 1);
    assert_eq!(world.client.channel(peer(1)), None);
}

#[test]
fn ipv4_mapped_addresses_are_ipv4() {
    let mut world = World::allocated(RelayTransport::Udp);
    let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("an address");
    world.client.permit(mapped, world.now);
    let sent = world.advance(Duration::ZERO);
    assert_eq!(peers_of(&sent[0]), [ip(1)]);
    world.succeed(&sent[0]);
    assert!(world.client.permitted(mapped) && world.client.permitted(ip(1)));
}

#[test]
fn a_channel_keeps_its_permission_and_is_refreshed_before_ten_minutes() {
    let (mut world, number) = World::with_channel(RelayTransport::Udp);
    world.client.permit(ip(1), world.now);
    world.client.forget(ip(1));
    let (mut permissions, mut bindings) = (0, 0);
    for _ in 0..1200 {
        for request in world.advance(seconds(1)) {
            match method_of(&request) {
                CREATE_PERMISSION => permissions += 1,
                CHANNEL_BIND => bindings += 1,
                _ => {}
            }
            world.succeed(&request);
        }
        assert_eq!(world.client.channel(peer(1)), Some(number));
        assert!(world.client.permitted(ip(1)));
    }
    assert_eq!(bindings, 2, "at 480 and 960 s");
    assert_eq!(permissions, 5, "every 240 s");
    world.client.unbind_channel(peer(1));
    assert!(!world.client.permitted(ip(1)));
}

#[test]
fn a_channel_that_is_not_refreshed_ends() {
    let (mut world, _) = World::with_channel(RelayTransport::Udp);
    for _ in 0..599 {
        for request in world.advance(seconds(1)) {
            if method_of(&request) != CHANNEL_BIND {
                world.succeed(&request);
            }
        }
    }
    assert!(world.client.channel(peer(1)).is_some());
    world.advance(seconds(1));
    assert!(world.client.channel(peer(1)).is_none());
    let event = AllocationEvent::ChannelRefused {
        peer: peer(1),
        refusal: Refusal::NoAnswer,
    };
    assert_eq!(world.events(), [event]);
    assert_eq!(world.client.channel_peer(0x4000), Some(peer(1)));
}

#[test]
fn the_queue_is_bounded_and_requests_go_first() {
    let (mut world, _) = World::with_channel(RelayTransport::Tcp);
    let payload = vec![0; 1000];
    let mut sent = 0;
    while world.client.send(peer(1), &payload, world.now).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 256 * 1024 / 1004);
    assert_eq!(world.client.counters().dropped, 1);
    world.client.verify(world.now);
    world.client.handle_timeout(world.now);
    assert!(!world.client.poll_transmit().expect("there").droppable);
}
