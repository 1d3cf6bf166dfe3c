//! STUN as it comes from anyone: the check engine's parser, and the signaling service's answerer.

use wice::core::stun::{
    Binding, Check, ROLE_CONFLICT, RoleClaim, TransactionId, encode_binding, encode_error,
    encode_success, integrity_key, is_stun, quoted_id,
};
use wice_signaling::server::{MAX_RESPONSE_LEN, binding_response};

use super::Fed;

const PASSWORD: &str = "a-password-of-32-characters-long";

pub(super) fn stun(data: &[u8]) -> Fed {
    let quoted = quoted_id(data);
    assert_eq!(quoted.is_some(), is_stun(data));
    let Some(message) = Binding::parse(data).filter(|_| is_stun(data)) else {
        return Fed::one(false);
    };
    assert_eq!(Some(message.id()), quoted);
    let _ = (message.class(), message.username(), message.error_code());
    let _ = (message.check_fields(), message.has_fingerprint());
    if let Some(mapped) = message.mapped_address() {
        assert_eq!(mapped.ip(), mapped.ip().to_canonical());
    }
    // One forger does not know the key: what holds under it was made with it.
    if message.is_authentic(&integrity_key(PASSWORD)) {
        assert!(!message.is_authentic(&integrity_key("another")));
    }
    if let Some(fields) = message.check_fields() {
        assert!(fields.nomination.is_none_or(|value| value < 1 << 24));
    }
    Fed::one(true)
}

pub(super) fn stun_seeds() -> Vec<Vec<u8>> {
    let (id, key) = (TransactionId::from(77), integrity_key(PASSWORD));
    let check = |role, use_candidate, nomination| {
        let check = Check {
            id,
            username: "afrag:bfrag",
            priority: 0x6eff_ffff,
            role,
            use_candidate,
            nomination,
        };
        check.encode(&key)
    };
    let full = check(RoleClaim::Controlling(7), true, Some(3));
    // Neither FINGERPRINT nor MESSAGE-INTEGRITY, which the mutator cannot make: fields alone.
    let mut bare = full[..full.len() - 32].to_vec();
    let len = u16::try_from(bare.len() - 20).unwrap();
    bare[2..4].copy_from_slice(&len.to_be_bytes());
    vec![
        full,
        bare,
        check(RoleClaim::Controlled(9), false, None),
        encode_binding(id),
        encode_success(id, "203.0.113.9:51821".parse().unwrap(), &key),
        encode_success(id, "[2001:db8::7]:4000".parse().unwrap(), &key),
        encode_error(id, ROLE_CONFLICT, &key),
    ]
}

/// The first byte says from where.
pub(super) fn stun_server(data: &[u8]) -> Fed {
    let Some((from, datagram)) = data.split_first() else {
        return Fed::one(false);
    };
    let address = match from % 3 {
        0 => "192.0.2.1:32853",
        1 => "[2001:db8::1]:1",
        _ => "[::ffff:192.0.2.1]:65535",
    };
    let mut out = [0; MAX_RESPONSE_LEN];
    let answered = binding_response(datagram, address.parse().unwrap(), &mut out);
    if let Some(len) = answered {
        let answer = Binding::parse(&out[..len]).expect("our own parser reads the answer");
        let mapped: std::net::SocketAddr = address.parse().unwrap();
        let ip = mapped.ip().to_canonical();
        let seen = answer.mapped_address().unwrap();
        assert_eq!((seen.ip(), seen.port()), (ip, mapped.port()));
    }
    Fed::one(answered.is_some())
}

pub(super) fn stun_server_seeds() -> Vec<Vec<u8>> {
    let mut bare = encode_binding(TransactionId::from(77));
    bare.truncate(20);
    bare[2..4].fill(0);
    let software = [
        &bare[..2],
        &[0, 8],
        &bare[4..],
        &[0x80, 0x22, 0, 3, 97, 98, 99, 0],
    ]
    .concat();
    let whole = encode_binding(TransactionId::from(78));
    [whole, bare, software]
        .map(|datagram| [&[0], datagram.as_slice()].concat())
        .to_vec()
}
