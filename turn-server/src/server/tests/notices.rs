//! What the operator is told of refusals.

use super::*;

/// All that is told since the last time.
fn told(world: &mut World) -> Vec<(Refusal, Option<String>, u32)> {
    let notices = std::iter::from_fn(|| world.server.poll_notice());
    notices
        .map(|notice| {
            let user = notice.user.map(String::from);
            (notice.refusal, user, notice.repeated)
        })
        .collect()
}

fn one(world: &mut World) -> Refusal {
    let told = told(world);
    assert_eq!(told.len(), 1, "{told:?}");
    told[0].0
}

#[test]
fn each_way_to_fail_to_log_in_has_its_own_reason() {
    let mut world = World::new();
    let mut try_as = |name: &str, password: &str, n: u16| {
        let mut client = world.client(n);
        (client.username, client.password) = (name.into(), password.into());
        let response = world.ask(&mut client, method::ALLOCATE, &[udp()]);
        assert_eq!(response.code, 401, "{name}");
        one(&mut world)
    };
    assert_eq!(try_as("alice", "wrong", 1), Refusal::WrongPassword);
    assert_eq!(try_as("mallory", "x", 2), Refusal::UnknownUser);
    let (name, password) = mint("elsewhere", "carol", START + 60);
    assert_eq!(try_as(&name, &password, 3), Refusal::WrongSecret);
    let (name, password) = mint("north", "carol", START - 1);
    assert_eq!(try_as(&name, &password, 4), Refusal::Expired);
}

#[test]
fn a_first_challenge_and_a_stale_nonce_are_nothing_to_tell() {
    let mut world = World::new();
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    world.pass(NONCE_LIFETIME.as_secs() - 1);
    assert_eq!(world.permit(&mut alice, "8.8.8.8:1"), 437);
    world.pass(2);
    assert_eq!(world.permit(&mut alice, "8.8.8.8:1"), 438);
    assert_eq!(told(&mut world), []);
}

#[test]
fn denied_peers_quotas_and_drains_are_told_with_what_it_was() {
    let mut config = config();
    config.quotas.user = 1;
    let mut world = World::with(config);
    let mut alice = world.client(1);
    world.allocate(&mut alice);
    assert_eq!(world.permit(&mut alice, "10.1.2.3:1"), 403);
    let peer = Refusal::PeerDenied([10, 1, 2, 3].into());
    assert_eq!(told(&mut world), [(peer, Some("alice".into()), 0)]);
    let mut again = world.client(2);
    assert_eq!(world.ask(&mut again, method::ALLOCATE, &[udp()]).code, 486);
    assert_eq!(one(&mut world), Refusal::Quota(Exceeded::User));
    assert_eq!(world.ask(&mut again, method::ALLOCATE, &[]).code, 400);
    assert_eq!(one(&mut world), Refusal::Plain(ErrorCode::BadRequest));
    world.server.drain();
    let mut bob = world.client(3);
    (bob.username, bob.password) = ("bob".into(), "builder".into());
    assert_eq!(world.ask(&mut bob, method::ALLOCATE, &[udp()]).code, 508);
    assert_eq!(one(&mut world), Refusal::Draining);
}

#[test]
fn ports_that_are_out_are_told_with_the_user() {
    let mut world = World::new();
    world.busy = (50_000..=50_099).collect();
    let mut alice = world.client(1);
    assert_eq!(world.ask(&mut alice, method::ALLOCATE, &[udp()]).code, 508);
    let told = told(&mut world);
    assert_eq!(told, [(Refusal::NoSocket, Some("alice".into()), 0)]);
}

#[test]
fn a_source_is_told_of_once_a_minute_and_a_flood_fills_no_log() {
    let mut world = World::new();
    let mut mallory = world.client(1);
    mallory.password = "wrong".into();
    for _ in 0..10 {
        world.ask(&mut mallory, method::ALLOCATE, &[udp()]);
    }
    assert_eq!(told(&mut world).len(), 1);
    world.pass(61);
    world.ask(&mut mallory, method::ALLOCATE, &[udp()]);
    let told_again = told(&mut world);
    assert_eq!(
        told_again,
        [(Refusal::WrongPassword, Some("alice".into()), 9)]
    );
    // As many sources as one likes: what waits is bounded, and so is what passes in a second.
    for n in 0..2000 {
        let mut client = world.client(1000 + n);
        client.password = "wrong".into();
        world.ask(&mut client, method::ALLOCATE, &[udp()]);
    }
    let flood = told(&mut world).len();
    assert!((10..=64).contains(&flood), "{flood}");
}

#[test]
fn a_name_that_was_sent_is_cut_and_without_control_characters() {
    let mut world = World::new();
    let mut client = world.client(1);
    client.username = "x".repeat(500);
    world.ask(&mut client, method::ALLOCATE, &[udp()]);
    let told_of = told(&mut world);
    assert_eq!(told_of[0].1.as_ref().map(String::len), Some(64));
    client.username = "a\nevent=turn-stopped".into();
    world.ask(&mut client, method::ALLOCATE, &[udp()]);
    assert_eq!(told(&mut world)[0].1, None);
}

#[test]
fn a_source_without_answers_is_told_of() {
    let mut world = World::new();
    let client = world.client(1);
    for _ in 0..DEFAULT_CHALLENGES.burst + 5 {
        let id = world.id();
        world.raw(&client.addr, &plain(method::ALLOCATE, id, &[]));
    }
    assert_eq!(told(&mut world), [(Refusal::Rationed, None, 0)]);
}
