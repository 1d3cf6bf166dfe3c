mod trouble;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wice_signaling::protocol::{
    CandidateKind, Filtering, Mapping, NatBehavior, PublicKey, RelayTransport,
};

use super::*;
use crate::core::gather;
use crate::core::ice::{BaseId, Failure, PairState, Role, Use};
use crate::core::node::{
    Counters as NodeCounters, NodeSnapshot, PairView, PathView, PeerId, PeerSnapshot, RelaySnapshot,
};
use crate::core::portmap;
use crate::wireguard::inprocess::PeerStats;

const SYMMETRIC: NatBehavior = NatBehavior {
    mapping: Mapping::AddressAndPortDependent,
    filtering: Filtering::Unknown,
};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ms(ms: f64) -> Option<Duration> {
    Some(Duration::from_secs_f64(ms / 1e3))
}

fn pair(
    local: (CandidateKind, &str),
    remote: (CandidateKind, &str),
    state: PairState,
    checks: (u32, u32),
    rtt: Option<Duration>,
) -> PairView {
    let relayed = |kind| u8::from(kind == CandidateKind::Relayed);
    PairView {
        local_kind: local.0,
        local: address(local.1),
        mapped: None,
        remote_kind: remote.0,
        remote: address(remote.1),
        relay_transport: (local.0 == CandidateKind::Relayed).then_some(RelayTransport::Udp),
        relays: relayed(local.0) + relayed(remote.0),
        state,
        held: false,
        used: match state {
            PairState::Succeeded => Use::Selected,
            PairState::Waiting | PairState::InProgress | PairState::Failed(_) => Use::None,
        },
        checks,
        rtt,
    }
}

fn peer(number: u8, nat: Option<NatBehavior>, pairs: Vec<PairView>) -> PeerSnapshot {
    let selected = pairs.iter().find(|pair| pair.used == Use::Selected);
    PeerSnapshot {
        revoked: false,
        id: PeerId(u32::from(number)),
        key: PublicKey([number; 32]),
        name: nat.map(|_| format!("lab-{}", char::from(b'a' + number))),
        nat,
        advertised: Vec::new(),
        role: Some(Role::Controlling),
        path: selected.map(|pair| PathView {
            pair: pair.clone(),
            up: true,
            age: Duration::from_secs(90),
            relay: (pair.relays > 0).then(|| "turn.lab.example".into()),
            native: false,
        }),
        changes: 1,
        looking: None,
        last_seen: None,
        pairs,
    }
}

fn failed_host(remote: (CandidateKind, &str)) -> PairView {
    let local = (CandidateKind::Host, "10.0.0.5:51821");
    pair(
        local,
        remote,
        PairState::Failed(Failure::NoAnswer),
        (9, 0),
        None,
    )
}

fn direct(kind: CandidateKind, remote: &str, rtt: f64) -> PairView {
    let local = (CandidateKind::Host, "10.0.0.5:51821");
    pair(local, (kind, remote), PairState::Succeeded, (5, 5), ms(rtt))
}

fn relayed() -> PairView {
    pair(
        (CandidateKind::Relayed, "198.51.100.2:50012"),
        (CandidateKind::ServerReflexive, "198.51.100.77:61000"),
        PairState::Succeeded,
        (41, 41),
        ms(34.0),
    )
}

fn node() -> NodeSnapshot {
    let seen = |server: &str, name: &str, mapped: &str| {
        (
            address("10.0.0.5:51821"),
            name.to_owned(),
            gather::Observation {
                base: BaseId(1),
                server: address(server),
                mapped: Some(address(mapped)),
                rtt: ms(20.0),
                silent: false,
                refused: false,
            },
        )
    };
    NodeSnapshot {
        key: PublicKey([9; 32]),
        name: "lab-a".into(),
        nat: SYMMETRIC,
        observations: vec![
            seen("198.51.100.3:3478", "stun-1", "203.0.113.9:41022"),
            seen("198.51.100.4:3478", "stun-2", "203.0.113.9:51770"),
        ],
        candidates: vec![(CandidateKind::Host, address("10.0.0.5:51821"))],
        relays: vec![RelaySnapshot {
            name: "turn.lab.example".into(),
            transport: RelayTransport::Udp,
            minted: true,
            relayed: Some(address("198.51.100.2:50012")),
            rtt: ms(18.2),
            failure: None,
        }],
        peers: vec![
            peer(
                4,
                Some(NatBehavior::default()),
                vec![failed_host((CandidateKind::Host, "192.0.2.1:51821"))],
            ),
            peer(
                3,
                Some(SYMMETRIC),
                vec![
                    relayed(),
                    failed_host((CandidateKind::ServerReflexive, "198.51.100.77:61000")),
                    failed_host((CandidateKind::Host, "192.168.7.2:51821")),
                ],
            ),
            peer(
                2,
                Some(NatBehavior::default()),
                vec![direct(CandidateKind::Host, "192.168.1.30:51821", 0.4)],
            ),
            peer(
                1,
                Some(NatBehavior::default()),
                vec![direct(
                    CandidateKind::ServerReflexive,
                    "198.51.100.7:51821",
                    12.0,
                )],
            ),
        ],
        counters: NodeCounters::default(),
    }
}

fn peer_inputs() -> BTreeMap<PublicKey, PeerInputs> {
    let of = |overlay: &str, rx, tx, handshake, last_seen| PeerInputs {
        addresses: vec![overlay.parse().unwrap()],
        stats: PeerStats {
            rx_bytes: rx,
            tx_bytes: tx,
            last_handshake: handshake,
        },
        last_seen: Some(Duration::from_secs(last_seen)),
        checking_for: Some(Duration::from_secs(100)),
        native: None,
        native_works: false,
        endpoint_resets: 0,
        lacks_us: false,
        mtu: None,
    };
    let s = |seconds| Some(Duration::from_secs(seconds));
    BTreeMap::from([
        (
            PublicKey([1; 32]),
            of("100.91.8.3", 1_288_490_189, 92_274_688, s(41), 0),
        ),
        (PublicKey([2; 32]), of("100.91.77.20", 4096, 3174, s(12), 0)),
        (
            PublicKey([3; 32]),
            of("100.91.2.9", 8_074_035, 1_048_576, s(62), 0),
        ),
        (
            PublicKey([4; 32]),
            of("100.91.30.1", 0, 0, None, 3 * 86_400 + 7),
        ),
    ])
}

fn signaling() -> Signaling {
    Signaling {
        url: "wss://sig.lab.example:8443".into(),
        connected: true,
        since_s: 7440,
        error: None,
        hint: None,
        refused: None,
    }
}

fn port_mappings() -> [PortMapping; 1] {
    let report = portmap::Report {
        local: address("192.168.1.5:51821"),
        gateway: "192.168.1.1".parse().unwrap(),
        protocols: vec![portmap::Protocol::NatPmp],
        external: None,
        outcome: portmap::Outcome::Refused {
            protocol: portmap::Protocol::NatPmp,
            refusal: portmap::Refusal::NotAuthorized,
        },
    };
    [PortMapping::from(&report)]
}

/// Calls `with` with inputs over `node`.
fn with_inputs<T>(node: &NodeSnapshot, with: impl FnOnce(Inputs<'_>) -> T) -> T {
    let addresses: [IpAddr; 2] = [
        "100.91.4.17".parse().unwrap(),
        "fd7a:91c:20::4:17".parse().unwrap(),
    ];
    with(Inputs {
        interface: "wice0",
        managed: true,
        addresses: &addresses,
        listen_port: 51821,
        uptime: Duration::from_secs(9),
        relay_only: false,
        problem: None,
        node,
        signaling: &signaling(),
        peers: &peer_inputs(),
        strangers: &[],
        mtu: 1392,
        port_mappings: &port_mappings(),
    })
}

#[test]
fn status_text() {
    let status = with_inputs(&node(), |inputs| inputs.status());
    let expected = "\
wice0  lab-a  100.91.4.17  fd7a:91c:20::4:17   4 peers: 2 direct, 1 relayed, 1 away
NAT    address-and-port-dependent mapping (symmetric), UDP open, IPv6 none
signal wss://sig.lab.example:8443  connected 2h 4m     relay turn.lab.example  udp 18 ms
port   refused by NAT-PMP on router 192.168.1.1: it is not allowed in the router's settings

PEER   OVERLAY       PATH                              RTT     HANDSHAKE  RX / TX
lab-b  100.91.8.3    direct  198.51.100.7:51821 srflx  12 ms   41 s       1.2 GiB / 88 MiB
lab-c  100.91.77.20  direct  192.168.1.30:51821 host   0.4 ms  12 s       4.0 KiB / 3.1 KiB
lab-d  100.91.2.9    relayed udp turn.lab.example      34 ms   1m 2s      7.7 MiB / 1.0 MiB
       both NATs map by endpoint: forward UDP 51821 on one side, or enable IPv6 (wice why lab-d)
lab-e  100.91.30.1   none    last seen 3 d ago
";
    assert_eq!(status.text(Style::PLAIN), expected);
    assert_eq!(status.health(), Health::Well, "relayed is a path");
}

#[test]
fn why_text() {
    let why = with_inputs(&node(), |inputs| inputs.why("lab-d").unwrap());
    let expected = "\
lab-d is relayed: both NATs map by endpoint (both-nats-endpoint-dependent)
  here   symmetric, seen as 203.0.113.9:41022 by stun-1 and 203.0.113.9:51770 by stun-2
  there  symmetric, as its advert says
  remedy forward UDP 51821 to one of the two nodes, or enable IPv6 on both, or set up port mapping (UPnP, NAT-PMP, PCP) on one router; port mapping here: refused by NAT-PMP on router 192.168.1.1: it is not allowed in the router's settings
PAIR                                                   STATE   CHECKS  RTT    WHY NOT
relay 198.51.100.2:50012 -> srflx 198.51.100.77:61000  in use  41/41   34 ms
host 10.0.0.5:51821      -> srflx 198.51.100.77:61000  failed  0/9            no answer: its NAT expects another port of ours
host 10.0.0.5:51821      -> host 192.168.7.2:51821     failed  0/9            no route answers: private network there
";
    assert_eq!(why.text(Style::PLAIN), expected);
}

#[test]
fn why_of_a_direct_peer_has_no_remedy() {
    let why = with_inputs(&node(), |inputs| inputs.why("100.91.8.3").unwrap());
    let text = why.text(Style::PLAIN);
    assert!(
        text.starts_with(
            "lab-b is direct: its address as STUN servers see it answers (direct-srflx)\n"
        ),
        "{text}"
    );
    assert!(!text.contains("remedy"));
}

#[test]
fn json_has_the_promised_fields() {
    let status = with_inputs(&node(), |inputs| inputs.status());
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["schema"], 1);
    let peer = &json["peers"][2];
    assert_eq!(peer["name"], "lab-d");
    assert_eq!(peer["key"], PublicKey([3; 32]).to_string());
    assert_eq!(peer["path"]["kind"], "relayed");
    assert_eq!(peer["path"]["local"]["kind"], "relay");
    assert_eq!(peer["path"]["remote"]["kind"], "srflx");
    assert_eq!(peer["path"]["relay_transport"], "udp");
    assert_eq!(peer["rtt_ms"], 34.0);
    assert_eq!(peer["reason"], "both-nats-endpoint-dependent");
    assert_eq!(peer["handshake_age_s"], 62);
    assert_eq!(peer["rx_bytes"], 8_074_035);
    assert_eq!(peer["tx_bytes"], 1_048_576);
    assert_eq!(json["peers"][3]["path"]["kind"], "none");
    let again: Status = serde_json::from_value(json).unwrap();
    assert_eq!(again, status);
}

#[test]
fn nodes_of_a_network() {
    let node = |name: &str, last_seen_s, label: &str| NetworkNode {
        name: name.into(),
        key: PublicKey([1; 32]).to_string(),
        addresses: vec!["100.91.8.3".parse().unwrap()],
        last_seen_s,
        routes: Vec::new(),
        invite: "9f".repeat(32),
        label: label.into(),
        carried: false,
    };
    let of_cluster = NetworkNode {
        addresses: Vec::new(),
        invite: String::new(),
        carried: true,
        ..node("node-1", 0, "")
    };
    let mut list = NetworkNodes {
        schema: SCHEMA,
        network: "lab".into(),
        nodes: vec![
            node("lab-a", 0, ""),
            node("lab-long", 62, "rack-7"),
            of_cluster,
        ],
    };
    let expected = "\
NODE      KEY                                           OVERLAY     SEEN       INVITE
lab-a     AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=  100.91.8.3  now        9f9f9f9f
lab-long  AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=  100.91.8.3  1m 2s ago  9f9f9f9f rack-7
node-1    AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=              now        carried by a bridge
";
    assert_eq!(list.text(Style::PLAIN), expected);
    list.nodes.clear();
    assert!(
        list.text(Style::PLAIN)
            .contains("wice invite --network lab")
    );
}

#[test]
fn hosts_of_the_overlay() {
    let mut status = with_inputs(&node(), |inputs| inputs.status());
    status.peers.truncate(1);
    status.peers[0].name = "Gate.rack_7".into();
    status.peers[0].addresses = vec!["100.91.2.9".parse().unwrap()];
    let expected = "\
100.91.2.9\tgate.rack_7.wice
100.91.4.17\tlab-a.wice
fd7a:91c:20::4:17\tlab-a.wice
";
    assert_eq!(status.hosts(), expected);
    // Nobody takes another's name, this node's least of all, and nothing breaks out of its line.
    status.peers[0].name = "LAB-A".into();
    let (own, other) = (&status.key, &status.peers[0].key);
    let expected = format!(
        "# {own} is left out: several nodes have its name\n# {other} is left out: several nodes have its name\n"
    );
    assert_eq!(status.hosts(), expected);
    let reached = status.peers[0].clone();
    status.peers[0].path.kind = PathKind::None;
    status.peers[0].reason = "peer-away".into();
    assert_eq!(status.hosts().lines().count(), 2, "its own two addresses");
    status.peers[0] = reached;
    for name in ["a b", "x\n1.2.3.4 y", "", "a..b", "BAQEBAQE…"] {
        status.peers[0].name = name.into();
        let hosts = status.hosts();
        assert_eq!(hosts.lines().count(), 3, "{name}: {hosts}");
        assert!(
            hosts.contains("is left out: its name cannot stand here"),
            "{hosts}"
        );
    }
}

#[test]
fn colour_changes_no_column() {
    let status = with_inputs(&node(), |inputs| inputs.status());
    let coloured = status.text(Style::COLOUR);
    assert!(coloured.contains("\x1b[33mrelayed udp turn.lab.example\x1b[0m"));
    let mut stripped = String::new();
    let mut rest = coloured.as_str();
    while let Some(at) = rest.find('\x1b') {
        stripped.push_str(&rest[..at]);
        rest = &rest[at + rest[at..].find('m').unwrap() + 1..];
    }
    stripped.push_str(rest);
    assert_eq!(stripped, status.text(Style::PLAIN));
}

#[test]
fn ping_lines() {
    let node = node();
    let pong = |index: usize, rtt| {
        let path = path_of(&node.peers[index], None, false);
        PingEvent::pong("lab-b", 1, Duration::from_millis(rtt), path).line()
    };
    assert_eq!(
        pong(1, 35).unwrap(),
        "pong from lab-b via relay udp turn.lab.example in 35 ms"
    );
    assert_eq!(
        pong(3, 12).unwrap(),
        "pong from lab-b via 198.51.100.7:51821 (srflx) in 12 ms"
    );
    let lost = |reason: &str| PingEvent::Lost {
        schema: SCHEMA,
        peer: "lab-b".into(),
        sequence: 1,
        reason: reason.into(),
        summary: "why it is so".into(),
    };
    let line = |reason| lost(reason).line().unwrap();
    assert_eq!(line("no-relay"), "no answer from lab-b: why it is so");
    assert_eq!(
        line("direct-host"),
        "no answer from lab-b: its direct path is silent now"
    );
    let direct = |after_s| {
        PingEvent::Direct {
            schema: SCHEMA,
            after_s,
        }
        .line()
    };
    assert_eq!(direct(0.24).unwrap(), "direct after 0.24 s");
    assert_eq!(direct(0.0), None);
}

#[test]
fn netcheck_text() {
    let netcheck = Netcheck {
        schema: SCHEMA,
        udp: Udp::Open,
        nat: super::build::nat(SYMMETRIC, false),
        mappings: vec![
            MappingObservation {
                server: "stun-1".into(),
                address: address("198.51.100.3:3478"),
                mapped: Some(address("203.0.113.9:41022")),
                rtt_ms: Some(18.3),
            },
            MappingObservation {
                server: "stun-2".into(),
                address: address("198.51.100.4:3478"),
                mapped: None,
                rtt_ms: None,
            },
        ],
        hairpin: Some(false),
        ipv4: NetcheckFamily {
            addresses: vec!["192.168.1.5".parse().unwrap()],
            works: Some(true),
        },
        ipv6: NetcheckFamily::default(),
        relays: vec![RelayCheck {
            name: "turn.lab.example".into(),
            transports: vec![
                TransportCheck {
                    transport: "udp".into(),
                    port: 3478,
                    rtt_ms: Some(18.0),
                    allocates: Some(true),
                    failure: None,
                },
                TransportCheck {
                    transport: "tls".into(),
                    port: 443,
                    rtt_ms: None,
                    allocates: None,
                    failure: Some("connection refused".into()),
                },
            ],
        }],
        port_mappings: port_mappings().to_vec(),
        notes: Vec::new(),
    };
    let expected = "\
UDP          open
mapping      address-and-port-dependent (symmetric): a direct path needs a peer that is easier to reach
filtering    not known: only a STUN server with two addresses can tell
seen as      203.0.113.9:41022 by stun-1 in 18 ms
             no answer from stun-2 (198.51.100.4:3478)
hairpin      no: two nodes behind this NAT meet only inside it
IPv4         192.168.1.5 private
IPv6         none
port mapping refused by NAT-PMP on router 192.168.1.1: it is not allowed in the router's settings
relay        turn.lab.example  udp 18 ms, tls fails, credentials work
             tls 443: connection refused
";
    assert_eq!(netcheck.text(Style::PLAIN), expected);
    assert_eq!(netcheck.health(), Health::Well);
    let mut cut = netcheck.clone();
    cut.udp = Udp::Blocked;
    cut.mappings.remove(0);
    cut.ipv4 = NetcheckFamily::default();
    let text = cut.text(Style::PLAIN);
    assert!(text.starts_with("UDP          no network: "), "{text}");
    assert!(
        text.contains("\nSTUN         no answer from stun-2 "),
        "{text}"
    );
    let with = |udp, relays: Vec<RelayCheck>| {
        let netcheck = Netcheck {
            udp,
            relays,
            ..netcheck.clone()
        };
        netcheck.health()
    };
    let works = netcheck.relays.clone();
    let mut fails = netcheck.relays.clone();
    fails[0].transports.remove(0);
    for (udp, relays, expected) in [
        (Udp::Open, fails.clone(), Health::Degraded),
        (Udp::Blocked, works.clone(), Health::Degraded),
        (Udp::Unknown, works, Health::Degraded),
        (Udp::Blocked, fails.clone(), Health::Broken),
        (Udp::Unknown, fails, Health::Broken),
        (Udp::Blocked, Vec::new(), Health::Broken),
        (Udp::Unknown, Vec::new(), Health::Broken),
    ] {
        assert_eq!(with(udp, relays.clone()), expected, "{udp:?} {relays:?}");
    }
}

/// An interface that another program owns: what has gone wrong with it stands first, and who is reached
/// by WireGuard's own endpoint, or has had it reset, is said.
#[test]
fn an_attached_interface_is_told() {
    let mut peers = peer_inputs();
    let native = "203.0.113.7:51820".parse().unwrap();
    if let Some(peer) = peers.get_mut(&PublicKey([1; 32])) {
        peer.native = Some(native);
        peer.native_works = true;
        peer.endpoint_resets = 4;
    }
    let status = with_inputs(&node(), |inputs| {
        let inputs = Inputs {
            managed: false,
            problem: Some("wg0 is down"),
            peers: &peers,
            ..inputs
        };
        inputs.status()
    });
    let text = status.text(Style::PLAIN);
    assert_eq!(text.lines().nth(1), Some("wg0 is down"));
    assert!(text.contains("native  203.0.113.7:51820"), "{text}");
    assert!(text.contains("has reset its endpoint 4 times"), "{text}");
    assert!(text.contains("1 native"), "{text}");
    assert_eq!(status.mode, "attached");
    assert_eq!(status.health(), Health::Broken);
    // What nothing has been sent to is not said to work, and one is not many.
    let mut early = status.clone();
    early.peers[0].path.up = false;
    early.peers[0].endpoint_resets = 1;
    let text = early.text(Style::PLAIN);
    assert!(text.contains("1 untried"), "{text}");
    assert!(text.contains("untried 203.0.113.7:51820"), "{text}");
    assert!(text.contains("has reset its endpoint 1 time ("), "{text}");
    let json = serde_json::to_value(&status).unwrap();
    let peer = &json["peers"][0];
    assert_eq!(peer["path"]["kind"], "native");
    assert_eq!(peer["path"]["up"], true);
    assert_eq!(peer["endpoint_resets"], 4);
}
