//! What a disk may have made of the files in the daemon's state folder.

use wice::daemon::parse_state;

use super::Fed;

pub(super) fn state(data: &[u8]) -> Fed {
    Fed::one(parse_state(data))
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let (session, key) = ("03".repeat(16), "07".repeat(32));
    let node = format!(
        r#"{{"session": "{session}", "sequence": 9, "routes_sequence": 1, "overlay_counter": 0}}"#
    );
    let network = format!(
        r#"{{"name": "lab", "url": "wss://a:8443", "pin": null, "network": "{key}", "network_key": "{key}", "membership": "0102", "receipt": null}}"#
    );
    let servers =
        r#"{"addresses": ["turn:a:3478?transport=udp"], "credentials": ["1:a", "b"]}"#.to_owned();
    let records = format!(r#"{{"{key}": "01{key}0102"}}"#);
    let secret = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n".to_owned();
    [node, network, servers, records, secret]
        .map(String::into_bytes)
        .to_vec()
}
