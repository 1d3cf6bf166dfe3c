//! What is said where something is wrong, or somebody is not known.

use super::*;

#[test]
fn peers_are_found_by_what_people_have() {
    let status = with_inputs(&node(), |inputs| inputs.status());
    let key = PublicKey([2; 32]).to_string();
    for wanted in ["lab-c", "100.91.77.20", &key, &key[..6]] {
        assert_eq!(status.find(wanted).unwrap().name, "lab-c", "{wanted}");
    }
    let error = status.find("nobody").unwrap_err();
    assert_eq!(
        error,
        "no peer is called nobody\n  peers are lab-b, lab-c, lab-d, lab-e"
    );
    assert!(status.find(&key[..3]).is_err(), "too short for a key");
    let mut twins = status.clone();
    twins.peers[0].name = "lab-c".into();
    let error = twins.find("lab-c").unwrap_err();
    assert!(
        error.starts_with("several peers are called lab-c\n"),
        "{error}"
    );
    assert!(error.contains(&key));
    assert!(twins.find(&key).is_ok());
    // One of them has left, or has another key now.
    twins.peers[0].path.kind = PathKind::None;
    twins.peers[0].reason = "peer-away".into();
    assert_eq!(twins.find("lab-c").unwrap().key, key);
    assert_eq!(twins.find("LAB-C").unwrap().key, key);
}

#[test]
fn nobody_need_be_named_where_there_is_one_alone() {
    let mut status = with_inputs(&node(), |inputs| inputs.status());
    assert_eq!(
        status.only().unwrap_err(),
        "say which peer\n  peers are lab-b, lab-c, lab-d, lab-e"
    );
    status.peers.truncate(1);
    assert_eq!(status.only().unwrap().name, "lab-b");
    status.peers.clear();
    assert!(status.only().is_err());
}

#[test]
fn who_is_meant_is_told_clearly() {
    let mut status = with_inputs(&node(), |inputs| inputs.status());
    assert_eq!(status.find("LAB-C").unwrap().name, "lab-c", "in any case");
    assert_eq!(status.find(" 100.91.2.9 ").unwrap().name, "lab-d");
    // As a table shows a peer that has no name yet.
    assert_eq!(status.find("AQEBAQEB…").unwrap().name, "lab-b");
    let own_key = status.key.clone();
    for own in ["lab-a", "Lab-A", own_key.as_str(), "fd7a:91c:20:0::4:17"] {
        let error = status.find(own).unwrap_err();
        let expected = format!("{own} is this node itself\n  peers are lab-b, lab-c, lab-d, lab-e");
        assert_eq!(error, expected);
    }
    let error = status.find(&own_key[..4]).unwrap_err();
    assert!(
        error.contains("is the start of this node's own key\n"),
        "{error}"
    );
    let error = status.find("AQE").unwrap_err();
    assert!(error.contains("has at least 4 characters"), "{error}");
    // Two keys with one start; two names that differ in case alone.
    status.peers[1].key = format!("AQEBzz{}", &status.peers[1].key[6..]);
    let (one, other) = (status.peers[0].key.clone(), status.peers[1].key.clone());
    let error = status.find("AQEB").unwrap_err();
    assert_eq!(
        error,
        format!(
            "the keys of several peers start with AQEB\n  say which by its key: {one} (lab-b), {other} (lab-c)"
        )
    );
    assert_eq!(status.find("AQEBz").unwrap().name, "lab-c");
    status.peers[1].name = "LAB-B".into();
    assert_eq!(status.find("LAB-B").unwrap().key, other, "as it is written");
    let error = status.find("Lab-B").unwrap_err();
    assert!(
        error.starts_with("several peers are called Lab-B, but for"),
        "{error}"
    );
    // A peer with this node's name is the one that is meant.
    status.peers[1].name = "lab-a".into();
    assert_eq!(status.find("lab-a").unwrap().key, other);
    status.peers.clear();
    let error = status.find("x").unwrap_err();
    assert!(
        error.ends_with("there are no peers yet: wice invite makes a token for one"),
        "{error}"
    );
}

#[test]
fn a_node_without_a_network_says_so_and_is_broken() {
    let mut node = node();
    node.candidates = vec![(CandidateKind::Relayed, address("198.51.100.2:50012"))];
    let alone = NodeSnapshot {
        peers: Vec::new(),
        ..node.clone()
    };
    let status = with_inputs(&alone, |inputs| inputs.status());
    let text = status.text(Style::PLAIN);
    let expected = "\
wice0  lab-a  100.91.4.17  fd7a:91c:20::4:17   no peers yet
no network: this node has no usable address; check its cable, Wi-Fi and addresses (ip address)
signal ";
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(status.health(), Health::Broken);
    // A path through a relay that nothing has used since.
    let why = with_inputs(&node, |inputs| inputs.why("lab-d").unwrap());
    assert_eq!(why.peer.path.kind, PathKind::Relayed);
    assert_eq!(why.peer.reason, "no-network");
    assert_eq!(why.peer.health(), Health::Broken);
    // Who has published nothing is no excuse for having no network.
    let mut peer = peer(1, None, Vec::new());
    peer.name = None;
    node.peers = vec![peer];
    let why = with_inputs(&node, |inputs| inputs.why("100.91.8.3").unwrap());
    assert_eq!(why.peer.reason, "no-network");
    assert_eq!(why.peer.health(), Health::Broken);
    assert!(
        why.text(Style::PLAIN)
            .contains("remedy this node has no usable address")
    );
}

#[test]
fn how_well_a_node_does() {
    let well = with_inputs(&node(), |inputs| inputs.status());
    assert_eq!(well.health(), Health::Well);
    let mut lost = well.clone();
    lost.signaling.connected = false;
    assert_eq!(lost.health(), Health::Degraded, "its paths stay");
    lost.signaling.refused = Some("network-not-allowed".into());
    assert_eq!(lost.health(), Health::Degraded, "its paths stay");
    lost.signaling.refused = Some("revoked".into());
    assert_eq!(lost.health(), Health::Broken, "its peers drop it");
    lost.signaling.refused = None;
    lost.peers.retain(Peer::is_away);
    assert_eq!(lost.health(), Health::Broken, "nobody can come");
    lost.signaling.connected = true;
    assert_eq!(lost.health(), Health::Well, "nobody is there");
    lost.peers.clear();
    assert_eq!(lost.health(), Health::Well, "the first node");
    lost.signaling.connected = false;
    assert_eq!(lost.health(), Health::Broken);
}

#[test]
fn a_node_in_trouble_says_so() {
    let mut node = node();
    node.relays[0].relayed = None;
    node.relays[0].failure = Some(crate::core::turn::Failure::WrongCredentials);
    node.peers.remove(3);
    node.peers.remove(2);
    node.peers[0].nat = None;
    node.peers[0].name = None;
    node.peers[0].pairs.clear();
    node.peers[1] = peer(
        3,
        Some(SYMMETRIC),
        vec![failed_host((
            CandidateKind::ServerReflexive,
            "198.51.100.77:61000",
        ))],
    );
    let mut status = with_inputs(&node, |inputs| inputs.status());
    status.signaling.connected = false;
    status.signaling.error = Some("connection refused".into());
    status.signaling.hint = Some("is the server up?".into());
    status.signaling.since_s = 12;
    let expected = "\
wice0  lab-a  100.91.4.17  fd7a:91c:20::4:17   2 peers: 1 without path, 1 away
NAT    address-and-port-dependent mapping (symmetric), UDP open, IPv6 none
signal wss://sig.lab.example:8443  not connected for 12 s: connection refused     relay turn.lab.example  the relay refused the credentials (401)
       is the server up?
       give wice turn (--secret-file) and wice signal (--turn-secret-file) the same secret
port   refused by NAT-PMP on router 192.168.1.1: it is not allowed in the router's settings

PEER       OVERLAY      PATH                                              RTT  HANDSHAKE  RX / TX
BAQEBAQE…  100.91.30.1  none    has published nothing; last seen 3 d ago
lab-d      100.91.2.9   none                                                   1m 2s      7.7 MiB / 1.0 MiB
           no direct path, and relay turn.lab.example refuses our credentials: give wice turn (--secret-file) and wice signal (--turn-secret-file) the same secret (wice why lab-d)
";
    assert_eq!(status.text(Style::PLAIN), expected);
    assert_eq!(status.health(), Health::Broken);
}

/// A relay that refuses the credentials is mended where it runs: the header says so until one works.
#[test]
fn a_relay_that_refuses_says_what_its_operator_is_to_do() {
    let mut node = node();
    let mut refused = node.relays[0].clone();
    refused.relayed = None;
    refused.failure = Some(crate::core::turn::Failure::WrongCredentials);
    node.relays.insert(0, refused);
    let text = with_inputs(&node, |inputs| inputs.status()).text(Style::PLAIN);
    assert!(!text.contains("--turn-secret-file"), "{text}");
    node.relays.truncate(1);
    let text = with_inputs(&node, |inputs| inputs.status()).text(Style::PLAIN);
    let said = "relay turn.lab.example  the relay refused the credentials (401)\n       give wice turn (--secret-file) and wice signal (--turn-secret-file) the same secret";
    assert!(text.contains(said), "{text}");
}

/// Attached mode: a revoked peer is still in the interface, and somebody's who is not looks for this node.
#[test]
fn revoked_peers_and_nodes_that_seek_this_one_are_shown() {
    let mut node = node();
    node.peers.truncate(1);
    node.peers[0].revoked = true;
    let key = node.peers[0].key.to_string();
    let stranger = Stranger {
        name: "lab-z".into(),
        key: "c3RyYW5nZXI=".into(),
    };
    let status = with_inputs(&node, |inputs| {
        let inputs = Inputs {
            interface: "wg0",
            managed: false,
            strangers: std::slice::from_ref(&stranger),
            ..inputs
        };
        inputs.status()
    });
    assert_eq!(status.peers[0].reason, "revoked");
    assert_eq!(status.health(), Health::Degraded);
    let text = status.text(Style::PLAIN);
    assert!(text.contains("1 peer: 1 revoked\n"), "{text}");
    let remedy =
        format!("was revoked, and is still a peer of the interface: wg set wg0 peer {key} remove");
    assert!(text.contains(&remedy), "{text}");
    let added = "lab-z has this node as a peer and looks for it, but is no peer of wg0: wg set wg0 peer c3RyYW5nZXI= allowed-ips ITS-ADDRESS\n";
    assert!(text.contains(added), "{text}");
}

/// How a NAT maps shows in the difference between two servers: with one it is never known, and that is no "not yet".
#[test]
fn a_nat_that_one_server_cannot_tell_says_what_is_missing() {
    let mut node = node();
    node.nat = NatBehavior::default();
    let line = |node: &NodeSnapshot, uptime_s| {
        let mut status = with_inputs(node, |inputs| inputs.status());
        status.uptime_s = uptime_s;
        let text = status.text(Style::PLAIN);
        text.lines().nth(1).unwrap_or_default().to_owned()
    };
    assert!(line(&node, 60).starts_with("NAT    not known yet (two STUN servers tell)"));
    node.observations.truncate(1);
    assert!(
        line(&node, 60)
            .starts_with("NAT    not known: it takes two STUN servers, and there is one")
    );
    node.observations.clear();
    assert!(line(&node, 60).starts_with("NAT    not known: there is no STUN server"));
    assert!(line(&node, 1).starts_with("NAT    not known yet"));
}

/// A path that carries less than the interface takes in: what to set, which differs by whose interface it is.
#[test]
fn a_path_that_carries_too_little_names_the_number_to_set() {
    let node = node();
    let mut peers = peer_inputs();
    let of = |inner, too_large| PathMtu {
        path: inner + 60,
        inner,
        too_large,
    };
    let keys = [PublicKey([1; 32]), PublicKey([2; 32])];
    let status = |peers: &BTreeMap<PublicKey, PeerInputs>, managed| {
        with_inputs(&node, |inputs| {
            let inputs = Inputs {
                managed,
                peers,
                ..inputs
            };
            (inputs.status(), inputs.why("lab-b").unwrap())
        })
    };
    for key in keys {
        peers.get_mut(&key).unwrap().mtu = Some(of(1440, 0));
    }
    let (well, _) = status(&peers, true);
    assert_eq!((well.mtu, well.mtu_warning.as_deref()), (1392, None));
    peers.get_mut(&keys[0]).unwrap().mtu = Some(of(1340, 1));
    let (narrow, why) = status(&peers, true);
    let text = narrow.text(Style::PLAIN);
    let said = "\nMTU    wice0 has 1392, the path to lab-b carries 1340: wice up --mtu 1340 (or mtu in wice.toml)\n";
    assert!(text.contains(said), "{text}");
    assert!(
        text.contains("1 packet did not fit its path (wice why lab-b)"),
        "{text}"
    );
    let text = why.text(Style::PLAIN);
    let said = "\n  mtu    its path carries 1340 bytes (1400 with all headers), wice0 takes in up to 1392: wice up --mtu 1340 (or mtu in wice.toml); 1 packet did not fit since the start\n";
    assert!(text.contains(said), "{text}");
    peers.get_mut(&keys[1]).unwrap().mtu = Some(of(1200, 0));
    let (attached, _) = status(&peers, false);
    let said = "wice0 has 1392, the path to lab-c carries 1200, and 1 other too little: ip link set wice0 mtu 1200 (it has no IPv6 below 1280)";
    assert_eq!(attached.mtu_warning.as_deref(), Some(said));
    let (managed, _) = status(&peers, true);
    let warning = managed.mtu_warning.unwrap();
    assert!(
        warning.contains("less than IPv6 in the overlay takes"),
        "{warning}"
    );
}
