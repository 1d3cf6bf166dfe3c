//! What comes in: strangers, forgers, repetitions, answers from the wrong place.

use std::time::Duration;

use super::net::*;
use crate::core::ice::*;
use crate::core::stun::{
    BAD_REQUEST, Binding, BindingClass, Check, IntegrityKey, RoleClaim, TransactionId,
    encode_binding, encode_error, encode_success, integrity_key,
};

const BASE: BaseId = BaseId(0);

fn check(id: u128) -> Check<'static> {
    Check {
        id: TransactionId::from(id),
        username: "afrag:bfrag",
        priority: 7,
        role: RoleClaim::Controlled(1),
        use_candidate: false,
        nomination: None,
    }
}

fn our_key() -> IntegrityKey {
    integrity_key(&credentials("a").password)
}

fn request(net: &mut Net, from: &str, bytes: &[u8]) -> Reply {
    let request = Binding::parse(bytes).unwrap();
    net.agents[0].handle_request(BASE, at(from), &request)
}

#[test]
fn what_is_not_authentic_changes_nothing_and_gets_no_reply() {
    let mut net = Net::direct();
    let wrong_key = integrity_key("another password altogether");
    let names = ["afrag:cfrag", "bfrag:afrag", "afrag", "xfrag:bfrag"];
    let mut forged: Vec<Vec<u8>> = names
        .into_iter()
        .map(|username| {
            Check {
                username,
                ..check(1)
            }
            .encode(&our_key())
        })
        .collect();
    forged.push(check(1).encode(&wrong_key));
    forged.push(encode_binding(TransactionId::from(1)));
    // Without FINGERPRINT: 8 bytes less, the length corrected.
    let mut bare = check(1).encode(&our_key());
    bare.truncate(bare.len() - 8);
    let length = u16::try_from(bare.len() - 20).unwrap().to_be_bytes();
    bare[2..4].copy_from_slice(&length);
    forged.push(bare);
    for bytes in forged {
        assert_eq!(request(&mut net, "203.0.113.5:5", &bytes), Reply::Ignore);
    }
    assert_eq!(net.agents[0].pairs().count(), 0);
    assert_eq!(net.agents[0].check_due(net.now), None);
}

#[test]
fn what_is_appended_behind_the_integrity_does_not_count() {
    let mut net = Net::direct();
    net.agents[0].role = Role::Controlled;
    let claim = RoleClaim::Controlling(u64::MAX);
    let bytes = Check {
        role: claim,
        ..check(1)
    }
    .encode(&our_key());
    // USE-CANDIDATE between MESSAGE-INTEGRITY and FINGERPRINT, and behind both.
    let (head, fingerprint) = bytes.split_at(bytes.len() - 8);
    let attribute = [0x00, 0x25, 0x00, 0x00];
    for mut forged in [
        [head, &attribute, fingerprint].concat(),
        [head, fingerprint, &attribute].concat(),
    ] {
        let length = u16::try_from(forged.len() - 20).unwrap().to_be_bytes();
        forged[2..4].copy_from_slice(&length);
        if let Some(parsed) = Binding::parse(&forged) {
            let _ = net.agents[0].handle_request(BASE, at("203.0.113.5:5"), &parsed);
        }
        let wanted = |pair: &Pair| pair.nomination_wanted.is_some();
        assert!(!net.agents[0].pairs().any(wanted));
    }
}

#[test]
fn every_authentic_check_is_answered_before_and_after_the_advert() {
    let mut net = Net::direct();
    net.agents[0].remote = None;
    for id in 1..200u128 {
        let bytes = check(id).encode(&our_key());
        let from = format!("203.0.113.5:{id}");
        let Reply::Send(reply) = request(&mut net, &from, &bytes) else {
            panic!("check {id} got no reply");
        };
        let reply = Binding::parse(&reply).unwrap();
        assert_eq!(reply.class(), BindingClass::Success);
        assert_eq!(reply.id(), TransactionId::from(id));
        assert_eq!(reply.mapped_address(), Some(at(&from)));
        assert!(reply.is_authentic(&our_key()) && reply.has_fingerprint());
    }
    // Nothing is sent before the other side's credentials are known; then it is.
    assert_eq!(net.agents[0].check_due(net.now), None);
    net.agents[0].set_remote_credentials(credentials("b"));
    assert_eq!(net.agents[0].check_due(net.now), Some(net.now));
}

#[test]
fn a_check_without_its_attributes_is_a_bad_request() {
    let mut net = Net::direct();
    let mut bytes = check(1).encode(&our_key());
    // PRIORITY becomes an unknown optional attribute; the rest is sealed anew.
    let at_priority = bytes.windows(2).position(|w| w == [0x00, 0x24]).unwrap();
    bytes[at_priority] = 0x9F;
    let sealed = reseal(&bytes);
    let Reply::Send(reply) = request(&mut net, "203.0.113.5:5", &sealed) else {
        panic!("no reply");
    };
    let reply = Binding::parse(&reply).unwrap();
    assert_eq!(reply.error_code(), Some(BAD_REQUEST));
    assert_eq!(net.agents[0].pairs().count(), 0, "and nothing is learned");
}

#[test]
fn one_id_triggers_once() {
    let mut net = Net::direct();
    net.known_to(0, "198.51.100.2:2000");
    // No answer comes, or the pair would be valid and nothing would trigger.
    net.loss = 1.0;
    let bytes = [check(1).encode(&our_key()), check(2).encode(&our_key())];
    // Two checks, each repeated: in turns, as after a loss.
    for round in 0..4 {
        for bytes in &bytes {
            let _ = request(&mut net, "198.51.100.2:2000", bytes);
            net.run_ms(10);
        }
        let sent = net.sent.iter().filter(|sent| sent.1 == 0).count();
        assert!(sent <= 2, "round {round}: {sent} checks for two ids");
    }
}

#[test]
fn an_authentic_check_from_elsewhere_is_checked_before_it_carries_data() {
    let mut net = Net::connected();
    // A check of the peer is captured and sent again from the attacker's address.
    let captured = net.sent.iter().find(|sent| sent.1 == 1).unwrap().3.clone();
    net.events.clear();
    let before = net.agents[0].nominated();
    let reply = request(&mut net, "203.0.113.66:6", &captured);
    net.known_to(0, "203.0.113.66:6");
    assert!(matches!(reply, Reply::Send(_)));
    net.run(Duration::from_secs(60));
    assert!(
        net.find(0, "203.0.113.66:6")
            .is_none_or(|pair| !pair.is_valid())
    );
    assert_eq!(net.agents[0].nominated(), before);
    assert!(net.events.is_empty(), "{:?}", net.events);
}

#[test]
fn a_check_through_the_overlay_or_loopback_is_ignored() {
    let mut net = Net::direct();
    for from in ["100.91.4.17:5", "127.0.0.1:5", "[::ffff:127.0.0.1]:5"] {
        let bytes = check(1).encode(&our_key());
        assert_eq!(request(&mut net, from, &bytes), Reply::Ignore);
    }
    let bytes = check(1).encode(&our_key());
    let reply = request(&mut net, "[::ffff:203.0.113.5]:5", &bytes);
    assert!(matches!(reply, Reply::Send(_)));
    assert_eq!(net.only(0).key().remote, at("203.0.113.5:5"));
}

#[test]
fn an_answer_from_elsewhere_fails_a_pair_that_is_not_valid_yet() {
    let mut net = Net::direct();
    net.advertise(1);
    let (from, to) = (at("198.51.100.2:2000"), at("198.51.100.1:1000"));
    net.routes
        .insert((from, to), Route::From(at("203.0.113.9:9")));
    net.known_to(0, "203.0.113.9:9");
    net.run_ms(50);
    let pair = net.find(0, "198.51.100.2:2000").unwrap();
    assert_eq!(pair.state(), PairState::Failed(Failure::Asymmetric));
}

#[test]
fn an_answer_at_another_base_fails_it_too() {
    let mut net = Net::direct();
    net.advertise(1);
    net.run_ms(1);
    let id = Binding::parse(&net.sent[0].3).unwrap().id();
    let key = integrity_key(&credentials("b").password);
    let bytes = encode_success(id, at("198.51.100.1:1000"), &key);
    let response = Binding::parse(&bytes).unwrap();
    let now = net.now;
    let remote = at("198.51.100.2:2000");
    assert!(net.agents[0].handle_response(BaseId(9), remote, &response, now));
    assert_eq!(net.only(0).state(), PairState::Failed(Failure::Asymmetric));
}

#[test]
fn a_valid_pair_that_turns_asymmetric_is_lost_and_the_selection_recovers() {
    let mut net = Net::pair(
        [Role::Controlling, Role::Controlled],
        Nomination::Repeated,
        4,
    );
    net.host(0, "198.51.100.1:1000", None);
    net.host(1, "198.51.100.2:2000", None);
    net.relay(1, "192.0.2.50:5000");
    net.owners = true;
    net.traffic(true);
    net.advertise_all();
    net.run_ms(500);
    let first = net.agreed().unwrap();
    let (from, to) = (at("198.51.100.2:2000"), at("198.51.100.1:1000"));
    net.routes.insert((from, to), Route::Blocked);
    net.run(Duration::from_secs(60));
    let second = net.agreed().unwrap();
    assert_ne!(first, second);
    assert!(net.find(0, "192.0.2.50:5000").is_some_and(Pair::is_valid));
}

#[test]
fn a_forged_answer_is_ignored_and_the_transaction_lives() {
    let mut net = Net::direct();
    net.advertise(1);
    net.run_ms(1);
    let id = Binding::parse(&net.sent[0].3).unwrap().id();
    let wrong = integrity_key("a forger has no password");
    let (mapped, remote) = (at("198.51.100.1:1000"), at("198.51.100.2:2000"));
    let now = net.now;
    for bytes in [
        encode_success(id, mapped, &wrong),
        encode_error(id, BAD_REQUEST, &wrong),
        check(1).encode(&our_key()),
    ] {
        let response = Binding::parse(&bytes).unwrap();
        assert!(!net.agents[0].handle_response(BASE, remote, &response, now));
    }
    // A request in place of a response, with the id of ours, ends nothing either.
    let request = Check { id, ..check(1) }.encode(&integrity_key(&credentials("b").password));
    let request = Binding::parse(&request).unwrap();
    assert!(!net.agents[0].handle_response(BASE, remote, &request, now));
    net.run_ms(100);
    assert!(net.only(0).is_valid());
}

#[test]
fn icmp_fails_only_what_quotes_an_open_check_and_is_not_valid() {
    let mut net = Net::direct();
    let bad = at("198.51.100.9:9");
    let mut candidates = net.candidates(1);
    candidates.push(candidate(CandidateKind::Host, bad));
    net.tell(0, &candidates);
    net.run_ms(100);
    let now = net.now;
    net.agents[0].handle_unreachable(TransactionId::from(12345), now);
    let ids: Vec<TransactionId> = net
        .sent
        .iter()
        .map(|sent| Binding::parse(&sent.3).unwrap().id())
        .collect();
    let works = net.find(0, "198.51.100.2:2000").unwrap();
    assert!(works.is_valid());
    assert_eq!(
        net.find(0, "198.51.100.9:9").unwrap().state(),
        PairState::InProgress
    );
    for id in ids {
        net.agents[0].handle_unreachable(id, now);
    }
    let failed = PairState::Failed(Failure::Unreachable);
    assert_eq!(net.find(0, "198.51.100.9:9").unwrap().state(), failed);
    assert!(
        net.find(0, "198.51.100.2:2000").unwrap().is_valid(),
        "others go on"
    );
}

#[test]
fn two_agents_share_a_socket_and_a_remote_address() {
    // Two sessions of one peer behind one socket: the ufrag and the ids tell them apart.
    let mut net = Net::new(3);
    net.add_agent(("a", "b"), 2, Role::Controlling, Nomination::Repeated);
    net.add_agent(("c", "d"), 3, Role::Controlling, Nomination::Repeated);
    net.add_agent(("b", "a"), 0, Role::Controlled, Nomination::Repeated);
    net.add_agent(("d", "c"), 1, Role::Controlled, Nomination::Repeated);
    for (agent, address) in [
        "198.51.100.1:1",
        "198.51.100.1:1",
        "198.51.100.2:2",
        "198.51.100.2:2",
    ]
    .into_iter()
    .enumerate()
    {
        net.host(agent, address, None);
    }
    net.owners = true;
    net.advertise_all();
    net.run_ms(300);
    for agent in 0..4 {
        assert!(net.only(agent).is_valid() && net.only(agent).nominated().is_some());
        let (sent, answered) = net.only(agent).checks();
        assert_eq!(sent, answered);
    }
}

#[test]
fn a_check_of_another_session_does_nothing() {
    // New sessions have new credentials: an old agent's checks and answers are strangers'.
    let net = Net::connected();
    let old = net.sent.iter().find(|sent| sent.1 == 1).unwrap().3.clone();
    let mut fresh = Agent::new(AgentConfig {
        local: credentials("anew"),
        remote: Some(credentials("bnew")),
        role: Role::Controlling,
        nomination: Nomination::Repeated,
        seed: [9; 32],
    });
    let old = Binding::parse(&old).unwrap();
    let reply = fresh.handle_request(BASE, at("198.51.100.2:2000"), &old);
    assert_eq!(reply, Reply::Ignore);
}

/// Replaces MESSAGE-INTEGRITY and FINGERPRINT of a check after a change.
fn reseal(bytes: &[u8]) -> Vec<u8> {
    use hmac::{Hmac, Mac as _};
    let password = credentials("a").password;
    let mut sealed = bytes[..bytes.len() - 32].to_vec();
    let set_length = |sealed: &mut Vec<u8>, more: usize| {
        let length = u16::try_from(sealed.len() - 20 + more).unwrap();
        sealed[2..4].copy_from_slice(&length.to_be_bytes());
    };
    set_length(&mut sealed, 24);
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(password.as_bytes()).unwrap();
    mac.update(&sealed);
    let tag = mac.finalize().into_bytes();
    sealed.extend([0x00, 0x08, 0x00, 20]);
    sealed.extend(tag);
    set_length(&mut sealed, 8);
    let crc = crc32(&sealed) ^ 0x5354_554E;
    sealed.extend([0x80, 0x28, 0x00, 4]);
    sealed.extend(crc.to_be_bytes());
    sealed
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
        }
    }
    !crc
}
