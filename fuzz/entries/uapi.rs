//! What answers at the socket of somebody else's WireGuard.

use wice::wireguard::backend::{MAX_ALLOWED_IPS, MAX_PEERS};
use wice::wireguard::uapi::read_answer;

use super::Fed;

/// A byte says where the stream is cut, the rest is the answer.
pub(super) fn uapi(data: &[u8]) -> Fed {
    let Some((cut, answer)) = data.split_first() else {
        return Fed::one(false);
    };
    let cut = answer.len() * usize::from(*cut) / usize::from(u8::MAX);
    let cut_in_two = read_answer(answer, cut);
    let at_once = read_answer(answer, answer.len());
    let device = match (cut_in_two, at_once) {
        (Ok(Some(device)), Ok(Some(same))) => {
            assert_eq!(format!("{:?}", device.peers), format!("{:?}", same.peers));
            device
        }
        (Ok(None), Ok(None)) => return Fed::one(false),
        (Err(why), Err(same)) => {
            assert_eq!(why, same);
            // It may be shown, and what was answered may be a secret.
            assert!(!why.is_empty() && why.len() < 128, "{why}");
            return Fed::one(false);
        }
        (one, other) => panic!("{one:?} in two pieces, {other:?} in one"),
    };
    assert!(device.peers.len() <= MAX_PEERS);
    for peer in &device.peers {
        assert!(peer.allowed_ips.len() <= MAX_ALLOWED_IPS);
    }
    Fed::one(true)
}

pub(super) fn uapi_seeds() -> Vec<Vec<u8>> {
    let key = "c4c8e984c5322c8184c72265b92b250fdb63688705f504ba003c88f03393cf28";
    let texts = [
        format!(
            "\x40private_key={key}\nlisten_port=51820\nfwmark=1\npublic_key={key}\npreshared_key={key}\n\
             endpoint=[2001:db8::1]:51820\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\n\
             tx_bytes=1\nrx_bytes=2\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\n\
             allowed_ip=fd00::/8\nprotocol_version=1\nerrno=0\n\n"
        ),
        format!(
            "\x00own_public_key={key}\nlisten_port=0\npublic_key={key}\nendpoint=[fe80::1%eth0]:1\n\
             errno=-22\n\n"
        ),
        "\u{1}errno=0\n\n".to_owned(),
    ];
    texts.map(String::into_bytes).to_vec()
}
