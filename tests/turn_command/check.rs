//! `wice turn check` against `wice turn`.

use std::process::Command;

use super::{Folder, Running};

const USER: &str = "alice:wonderland";

/// The address in the next `turn-serving` line.
pub(super) fn address(server: &mut Running) -> String {
    let line = server.line("turn-serving");
    let rest = line.split("address=").nth(1).unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

/// Exit code and JSON of a check.
fn check(arguments: &[&str]) -> (i32, serde_json::Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_wice"))
        .args(["turn", "check", "--json", "--proxy", ""])
        .args(arguments)
        .output()
        .unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.code().unwrap(), json)
}

const TIMES: [&str; 6] = [
    "connect_ms",
    "allocate_ms",
    "permission_ms",
    "echo_ms",
    "channel_ms",
    "channel_echo_ms",
];

#[test]
fn every_transport_is_tried_through_the_relay_ports() {
    let mut server = Running::start(&[
        "--listen",
        "tcp://127.0.0.1:0",
        "--threads",
        "1",
        "--user",
        USER,
        "--allow-peer",
        "127.0.0.0/8",
    ]);
    let (udp, tcp) = (address(&mut server), address(&mut server));
    let urls = [
        format!("turn:{udp}?transport=udp"),
        format!("turn:{tcp}?transport=tcp"),
    ];
    let (code, json) = check(&[&urls[0], &urls[1], "--user", USER]);
    assert_eq!(json["schema"], 1);
    for (index, transport, peer) in [(0, "udp", "outside"), (1, "tcp", "relay")] {
        let way = &json["ways"][index];
        assert_eq!(way["transport"], transport, "{json:#}");
        assert!(way["failure"].is_null(), "{json:#}");
        for time in TIMES {
            assert!(way[time].is_f64(), "{time}: {json:#}");
        }
        // No STUN over UDP on the port of the TCP listener: the peer is another allocation, and that is said.
        assert_eq!(way["peer"], peer, "{json:#}");
        assert_eq!(way["note"].is_null(), index == 0, "{json:#}");
    }
    assert_eq!(code, 0, "{json:#}");
}

#[test]
fn a_peer_that_the_server_may_not_reach_is_replaced_by_a_second_allocation() {
    // The server relays between its own relay ports, and to nothing else at its own addresses.
    for (external, word) in [("127.0.0.1", "like the server"), ("127.0.0.2", "403")] {
        let mut server = Running::start(&["--user", USER, "--external-ip", external]);
        let url = format!("turn:{}?transport=udp", address(&mut server));
        let (code, json) = check(&[&url, "--user", USER]);
        let way = &json["ways"][0];
        assert!(way["note"].as_str().unwrap().contains(word), "{json:#}");
        assert_eq!((code, &way["peer"]), (0, &"relay".into()), "{json:#}");
    }
}

#[test]
fn minted_credentials_serve_wrong_ones_are_named_and_a_dead_way_degrades() {
    let folder = Folder::new("check");
    let secret = folder.write("secret", "north\nsouth\n", 0o600);
    let other = folder.write("other", "west\n", 0o600);
    let mut server = Running::start(&["--threads", "1", "--secret-file", &secret]);
    let url = format!("turn:{}?transport=udp", address(&mut server));
    assert_eq!(check(&[&url, "--secret-file", &secret]).0, 0);
    let (code, json) = check(&[&url, "--secret-file", &other]);
    assert_eq!((code, &json["ways"][0]["failed"]), (2, &"allocate".into()));
    assert!(json["ways"][0]["failure"].as_str().unwrap().contains("401"));
    // Nothing listens on TCP.
    let tcp = url.replace("=udp", "=tcp");
    let (code, json) = check(&[&url, &tcp, "--secret-file", &secret]);
    assert_eq!((code, &json["ways"][1]["failed"]), (1, &"connect".into()));
    let (code, json) = check(&["stun:127.0.0.1", "--secret-file", &secret]);
    assert_eq!((code, &json["exit_code"]), (64, &64.into()));
}

#[test]
fn a_certificate_of_its_own_making_is_trusted_by_who_is_given_it_over_restarts() {
    let folder = Folder::new("self-signed");
    let path = |name: &str| folder.0.join(name).to_str().unwrap().to_owned();
    let (chain, key) = (path("own.pem"), path("own.key"));
    for _ in 0..2 {
        let mut server = Running::start(&[
            "--listen",
            "tls://127.0.0.1:0",
            "--cert",
            &chain,
            "--key",
            &key,
            "--self-signed",
            "--threads",
            "1",
            "--user",
            USER,
            "--allow-peer",
            "127.0.0.0/8",
        ]);
        let (_, tls) = (address(&mut server), address(&mut server));
        let url = format!("turns:{tls}");
        let (code, json) = check(&[&url, "--user", USER, "--ca-file", &chain]);
        assert_eq!(code, 0, "{json:#}");
        let (code, _) = check(&[&url, "--user", USER]);
        assert_eq!(code, 2, "nobody else trusts it");
    }
}

#[test]
fn a_refused_client_is_a_line_in_the_log_with_the_reason_and_what_to_do() {
    let folder = Folder::new("refused");
    let secret = folder.write("secret", "north\n", 0o600);
    let other = folder.write("other", "west\n", 0o600);
    let mut server = Running::start(&[
        "--threads",
        "1",
        "--secret-file",
        &secret,
        "--external-ip",
        "127.0.0.2",
    ]);
    let url = format!("turn:{}?transport=udp", address(&mut server));
    for (login, reason, remedy) in [
        (
            ["--secret-file", &other],
            "another secret",
            "signaling service",
        ),
        (["--user", "mallory:guess"], "no such user", "--user"),
    ] {
        assert_eq!(check(&[&[&url[..]], &login[..]].concat()).0, 2);
        let line = server.line("turn-refused");
        for word in [
            "WARN",
            "client=127.0.0.1:",
            "code=401",
            "request=Allocate",
            reason,
            remedy,
        ] {
            assert!(line.contains(word), "{word}: {line}");
        }
    }
    // Peers that are not public: without --allow-peer the check's own echo is one.
    check(&[&url, "--secret-file", &secret]);
    let line = server.line("turn-refused");
    assert!(
        line.contains("INFO") && line.contains("--allow-peer"),
        "{line}"
    );
}

/// A port that is free at both addresses, as far as one can know.
fn free_port() -> u16 {
    loop {
        let first = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if std::net::UdpSocket::bind(("127.0.0.2", port)).is_ok() {
            return port;
        }
    }
}

#[test]
fn netcheck_learns_the_filtering_from_a_server_with_two_addresses() {
    let (p, q) = (free_port(), free_port());
    let listen = ["127.0.0.1", "127.0.0.2"]
        .map(|ip| [p, q].map(|port| format!("--listen=udp://{ip}:{port}")))
        .concat();
    let mut arguments: Vec<&str> = listen.iter().map(String::as_str).collect();
    arguments.extend(["--user", USER]);
    let mut server = Running::start(&arguments);
    server.line("turn-serving");
    let output = Command::new(env!("CARGO_BIN_EXE_wice"))
        .args(["netcheck", "--json", "--proxy", "", "--stun"])
        .arg(format!("stun:127.0.0.1:{p}"))
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["nat"]["filtering"], "endpoint-independent", "{json:#}");
}
