use super::*;
use crate::core::ice::Use;
use crate::core::node::{Counters, PeerId};
use crate::core::turn;
use wice_signaling::protocol::{PublicKey, RelayTransport};

const KINDS: [(&str, Mapping, Filtering); 7] = [
    (
        "full-cone",
        Mapping::EndpointIndependent,
        Filtering::EndpointIndependent,
    ),
    (
        "address-restricted",
        Mapping::EndpointIndependent,
        Filtering::AddressDependent,
    ),
    (
        "port-restricted",
        Mapping::EndpointIndependent,
        Filtering::AddressAndPortDependent,
    ),
    (
        "address-dependent",
        Mapping::AddressDependent,
        Filtering::AddressDependent,
    ),
    (
        "symmetric",
        Mapping::AddressAndPortDependent,
        Filtering::AddressAndPortDependent,
    ),
    ("public", Mapping::None, Filtering::EndpointIndependent),
    (
        "firewalled",
        Mapping::None,
        Filtering::AddressAndPortDependent,
    ),
];

/// For each pair of [`KINDS`]: `d` direct, `b` both dependent, `n` NAT pair, `f` firewalled.
const TRUTH: [&str; 7] = [
    "ddddddd", "ddddddd", "dddnndd", "ddnbbdf", "ddnbbdf", "ddddddd", "dddffdd",
];

fn nat(mapping: Mapping, filtering: Filtering) -> NatBehavior {
    NatBehavior { mapping, filtering }
}

fn pair(
    local_kind: CandidateKind,
    remote_kind: CandidateKind,
    remote: &str,
    state: PairState,
) -> PairView {
    let relayed = |kind| u8::from(kind == CandidateKind::Relayed);
    PairView {
        local_kind,
        local: "10.0.0.5:51821".parse().unwrap(),
        mapped: None,
        remote_kind,
        remote: remote.parse().unwrap(),
        relay_transport: None,
        relays: relayed(local_kind) + relayed(remote_kind),
        state,
        held: false,
        used: Use::None,
        checks: (9, 0),
        rtt: None,
    }
}

fn node(nat: NatBehavior) -> NodeSnapshot {
    NodeSnapshot {
        key: PublicKey([1; 32]),
        name: "lab-a".into(),
        nat,
        observations: Vec::new(),
        candidates: vec![
            (CandidateKind::Host, "10.0.0.5:51821".parse().unwrap()),
            (
                CandidateKind::ServerReflexive,
                "203.0.113.9:41022".parse().unwrap(),
            ),
        ],
        relays: Vec::new(),
        peers: Vec::new(),
        counters: Counters::default(),
    }
}

fn relay(transport: RelayTransport, failure: Option<turn::Failure>) -> RelaySnapshot {
    RelaySnapshot {
        name: "turn.lab".into(),
        transport,
        minted: true,
        relayed: failure
            .is_none()
            .then(|| "198.51.100.2:50012".parse().unwrap()),
        rtt: None,
        failure,
    }
}

fn peer(nat: Option<NatBehavior>, pairs: Vec<PairView>) -> PeerSnapshot {
    PeerSnapshot {
        id: PeerId(1),
        key: PublicKey([2; 32]),
        name: nat.map(|_| "lab-b".into()),
        revoked: false,
        nat,
        advertised: vec![(CandidateKind::Host, "192.168.7.2:51821".parse().unwrap())],
        role: None,
        path: None,
        changes: 0,
        looking: None,
        last_seen: None,
        pairs,
    }
}

fn failed_pairs() -> Vec<PairView> {
    let failed = PairState::Failed(Failure::NoAnswer);
    vec![
        pair(
            CandidateKind::Host,
            CandidateKind::ServerReflexive,
            "198.51.100.77:7000",
            failed,
        ),
        pair(
            CandidateKind::Host,
            CandidateKind::Host,
            "192.168.7.2:51821",
            failed,
        ),
    ]
}

fn on(mut peer: PeerSnapshot, pair: PairView, up: bool, age: Duration) -> PeerSnapshot {
    peer.path = Some(PathView {
        pair,
        up,
        age,
        relay: None,
        native: false,
    });
    peer
}

fn relayed(peer: PeerSnapshot) -> PeerSnapshot {
    let pair = pair(
        CandidateKind::Relayed,
        CandidateKind::ServerReflexive,
        "198.51.100.77:7000",
        PairState::Succeeded,
    );
    on(peer, pair, true, Duration::from_secs(60))
}

fn facts<'a>(node: &'a NodeSnapshot, peer: &'a PeerSnapshot) -> Facts<'a> {
    Facts {
        node,
        peer,
        port: 51821,
        relay_only: false,
        native: None,
        checking_for: Some(Duration::from_secs(60)),
        last_seen: Some(Duration::ZERO),
        handshake_age: None,
        port_mapping: None,
        attached: None,
        lacks_us: false,
    }
}

fn code(node: &NodeSnapshot, peer: &PeerSnapshot) -> Code {
    reason(&facts(node, peer)).code
}

#[test]
fn each_nat_pair_yields_its_code() {
    for (row, (here, m, f)) in KINDS.into_iter().enumerate() {
        for (column, (there, m2, f2)) in KINDS.into_iter().enumerate() {
            let name = format!("{here} and {there}");
            let truth = TRUTH[row].as_bytes()[column];
            let verdict = verdict(nat(m, f), nat(m2, f2));
            let expected = match truth {
                b'd' => Verdict::Possible,
                b'b' => Verdict::Impossible(Code::BothNatsEndpointDependent),
                b'n' => Verdict::Impossible(Code::NatPairUnreachable),
                _ => Verdict::Impossible(Code::Firewalled),
            };
            assert_eq!(verdict, expected, "{name}");
            // Relayed all the same: the truth where it is relay, silence where it is direct.
            for known in [true, false] {
                let (f, f2) = if known || truth == b'd' {
                    (f, f2)
                } else {
                    (Filtering::Unknown, Filtering::Unknown)
                };
                let node = node(nat(m, f));
                let peer = relayed(peer(Some(nat(m2, f2)), failed_pairs()));
                let expected = match expected {
                    Verdict::Impossible(code) => code,
                    Verdict::Possible | Verdict::Unknown => Code::DirectFailedSilent,
                };
                let reason = reason(&facts(&node, &peer));
                assert_eq!(reason.code, expected, "{name}, filtering known: {known}");
                assert!(!reason.remedy.is_empty() && !reason.hint.is_empty());
            }
        }
    }
}

#[test]
fn the_verdict_does_not_depend_on_the_side() {
    for (_, m, f) in KINDS {
        for (_, m2, f2) in KINDS {
            assert_eq!(
                verdict(nat(m, f), nat(m2, f2)),
                verdict(nat(m2, f2), nat(m, f))
            );
        }
    }
}

#[test]
fn direct_paths_are_named_by_the_remote_candidate() {
    let node = node(NatBehavior::default());
    for (kind, expected) in [
        (CandidateKind::Host, Code::DirectHost),
        (CandidateKind::ServerReflexive, Code::DirectSrflx),
        (CandidateKind::PeerReflexive, Code::DirectPrflx),
        (CandidateKind::Mapped, Code::DirectMapped),
    ] {
        let pair = pair(
            CandidateKind::Host,
            kind,
            "198.51.100.77:7000",
            PairState::Succeeded,
        );
        let peer = on(
            peer(Some(NatBehavior::default()), vec![]),
            pair,
            true,
            Duration::from_secs(1),
        );
        assert_eq!(code(&node, &peer), expected);
    }
}

#[test]
fn a_path_without_handshake_is_no_success() {
    let node = node(NatBehavior::default());
    let pair = pair(
        CandidateKind::Host,
        CandidateKind::Host,
        "198.51.100.77:7000",
        PairState::Succeeded,
    );
    let at = |age| {
        on(
            peer(Some(NatBehavior::default()), vec![]),
            pair.clone(),
            false,
            age,
        )
    };
    assert_eq!(code(&node, &at(Duration::from_secs(1))), Code::DirectHost);
    let stuck = at(DATA_DEAD);
    assert_eq!(code(&node, &stuck), Code::WireguardUnanswered);
    let shaken = Facts {
        handshake_age: Some(Duration::from_secs(100)),
        ..facts(&node, &stuck)
    };
    assert_eq!(
        reason(&shaken).code,
        Code::DirectHost,
        "an idle peer after a change of path"
    );
}

#[test]
fn relayed_for_reasons_other_than_nats() {
    let eim = nat(
        Mapping::EndpointIndependent,
        Filtering::AddressAndPortDependent,
    );
    let blocked = nat(Mapping::Blocked, Filtering::Unknown);
    let by_nats = |here, there| code(&node(here), &relayed(peer(Some(there), failed_pairs())));
    assert_eq!(by_nats(blocked, eim), Code::UdpBlockedHere);
    assert_eq!(by_nats(eim, blocked), Code::UdpBlockedThere);
    assert_eq!(
        by_nats(NatBehavior::default(), eim),
        Code::DirectFailedSilent
    );

    // STUN servers that are down, where something else shows that UDP leaves.
    let mut without_stun = node(NatBehavior::default());
    let observation = |silent, refused| {
        let observation = crate::core::gather::Observation {
            base: crate::core::ice::BaseId(1),
            server: "198.51.100.1:3478".parse().unwrap(),
            mapped: None,
            rtt: None,
            silent,
            refused,
        };
        (
            "10.0.0.5:51821".parse().unwrap(),
            "stun-1".to_owned(),
            observation,
        )
    };
    without_stun.observations = vec![observation(true, false), observation(false, true)];
    let unknown = reason(&facts(
        &without_stun,
        &relayed(peer(Some(eim), failed_pairs())),
    ));
    assert_eq!(unknown.code, Code::StunUnreachable);
    assert!(unknown.remedy.contains("stun-1"), "{}", unknown.remedy);
    without_stun.observations.push(observation(false, false));
    assert_eq!(
        code(&without_stun, &relayed(peer(Some(eim), failed_pairs()))),
        Code::DirectFailedSilent,
        "one has not been waited for"
    );

    let plain = node(eim);
    let dead = pair(
        CandidateKind::Host,
        CandidateKind::ServerReflexive,
        "198.51.100.77:7000",
        PairState::Failed(Failure::DataDead),
    );
    assert_eq!(
        code(&plain, &relayed(peer(Some(eim), vec![dead]))),
        Code::WireguardUnanswered
    );
    let mut other_family = relayed(peer(Some(eim), vec![]));
    other_family.advertised = vec![
        (CandidateKind::Host, "[2001:db8::7]:51821".parse().unwrap()),
        (
            CandidateKind::Relayed,
            "198.51.100.2:50000".parse().unwrap(),
        ),
    ];
    assert_eq!(code(&plain, &other_family), Code::NoCommonFamily);
    // The only address of its own is one that this node has as well: no pair, and the same family.
    assert_eq!(
        code(&plain, &relayed(peer(Some(eim), vec![]))),
        Code::DirectFailedSilent
    );
    let same = pair(
        CandidateKind::Host,
        CandidateKind::ServerReflexive,
        "203.0.113.9:7000",
        PairState::Failed(Failure::NoAnswer),
    );
    assert_eq!(
        code(&plain, &relayed(peer(Some(eim), vec![same]))),
        Code::NoHairpin
    );
    let peer = relayed(peer(Some(eim), failed_pairs()));
    let policy = Facts {
        relay_only: true,
        ..facts(&plain, &peer)
    };
    assert_eq!(reason(&policy).code, Code::RelayOnly);
    let native = Facts {
        native: Some(true),
        ..facts(&plain, &peer)
    };
    assert_eq!(reason(&native).code, Code::Native);
}

#[test]
fn patience_lasts_as_long_as_an_answer_may_come() {
    let eim = nat(
        Mapping::EndpointIndependent,
        Filtering::AddressAndPortDependent,
    );
    let symmetric = nat(Mapping::AddressAndPortDependent, Filtering::Unknown);
    let open = || {
        let mut pairs = failed_pairs();
        pairs[0].state = PairState::InProgress;
        relayed(peer(Some(eim), pairs))
    };
    let at = |here, age| {
        let (node, peer) = (node(here), open());
        reason(&Facts {
            checking_for: Some(age),
            ..facts(&node, &peer)
        })
    };
    assert_eq!(at(eim, Duration::from_secs(3)).code, Code::Checking);
    assert!(
        at(eim, Duration::from_millis(3200))
            .summary
            .contains("3.2 s")
    );
    assert_eq!(at(eim, PAC_MIN).code, Code::DirectFailedSilent);
    assert_eq!(
        at(symmetric, Duration::from_millis(300)).code,
        Code::Checking
    );
    assert_eq!(at(symmetric, SETTLED).code, Code::NatPairUnreachable);
}

#[test]
fn no_path_at_all() {
    let eim = nat(Mapping::EndpointIndependent, Filtering::Unknown);
    let mut plain = node(eim);
    let failed = peer(Some(eim), failed_pairs());
    assert_eq!(code(&plain, &failed), Code::NoRelay);
    assert_eq!(code(&plain, &peer(None, vec![])), Code::NoAdvert);
    let away = Facts {
        last_seen: Some(Duration::from_secs(3 * 86_400 + 5)),
        ..facts(&plain, &failed)
    };
    let away = reason(&away);
    assert_eq!(
        (away.code, away.summary.as_str()),
        (Code::PeerAway, "last seen 3 d ago")
    );

    for (failure, cause) in [
        (turn::Failure::WrongCredentials, "refuses our credentials"),
        (turn::Failure::Quota, "quota"),
        (turn::Failure::NoAnswer, "cannot be reached"),
        (turn::Failure::Certificate, "certificate"),
        (turn::Failure::Transport, "does not work"),
    ] {
        // Where UDP is blocked, what TLS says is the reason.
        let silent = relay(RelayTransport::Udp, Some(turn::Failure::NoAnswer));
        plain.relays = vec![silent, relay(RelayTransport::Tls, Some(failure))];
        let reason = reason(&facts(&plain, &failed));
        assert_eq!(reason.code, Code::RelayUnavailable);
        assert!(reason.summary.contains(cause), "{}", reason.summary);
        assert!(!reason.remedy.is_empty());
    }
    // Who is to mend refused credentials differs: the services' operator, or whoever configured this node.
    for (minted, said) in [(true, "--turn-secret-file"), (false, "wice.toml")] {
        let failure = Some(turn::Failure::WrongCredentials);
        plain.relays = vec![relay(RelayTransport::Udp, failure)];
        plain.relays[0].minted = minted;
        let remedy = reason(&facts(&plain, &failed)).remedy;
        assert!(remedy.contains(said), "{remedy}");
    }
    // Other pairs may still be looked at: through the peer's own allocation on the dead server, or
    // direct ones that the NATs do not let come about.
    let dead = relay(RelayTransport::Udp, Some(turn::Failure::NoAnswer));
    let open = |local, remote| pair(local, remote, "198.51.100.2:50014", PairState::InProgress);
    let through_theirs = open(CandidateKind::Host, CandidateKind::Relayed);
    let direct = open(CandidateKind::Host, CandidateKind::ServerReflexive);
    let looking = |nat, pairs: &[PairView], age| {
        let mut node = node(nat);
        node.relays = vec![dead.clone()];
        let peer = peer(Some(nat), pairs.to_vec());
        let facts = Facts {
            checking_for: Some(age),
            ..facts(&node, &peer)
        };
        reason(&facts).code
    };
    let symmetric = nat(
        Mapping::AddressAndPortDependent,
        Filtering::AddressAndPortDependent,
    );
    let pairs = [through_theirs, direct];
    let soon = Duration::from_millis(100);
    assert_eq!(looking(symmetric, &pairs, soon), Code::RelayUnavailable);
    assert_eq!(looking(eim, &pairs, soon), Code::Checking);
    assert_eq!(looking(eim, &pairs, SETTLED), Code::RelayUnavailable);
    plain.relays = vec![relay(RelayTransport::Udp, None)];
    assert_eq!(code(&plain, &failed), Code::NothingAnswers);
    plain.candidates.clear();
    assert_eq!(code(&plain, &failed), Code::NoNetwork);
}

#[test]
fn every_pair_says_why_not() {
    let symmetric = nat(
        Mapping::AddressAndPortDependent,
        Filtering::AddressAndPortDependent,
    );
    let node = node(symmetric);
    let peer = peer(Some(symmetric), failed_pairs());
    let facts = facts(&node, &peer);
    let why = |pair: &PairView| why_not(&facts, pair).unwrap_or_default();
    assert_eq!(
        why(&peer.pairs[0]),
        "no answer: its NAT expects another port of ours"
    );
    assert_eq!(
        why(&peer.pairs[1]),
        "no route answers: private network there"
    );
    for failure in [
        Failure::NoAnswer,
        Failure::Asymmetric,
        Failure::Refused(487),
        Failure::Unreachable,
        Failure::RelayForbids,
        Failure::Silent,
        Failure::DataDead,
        Failure::Unused,
    ] {
        let pair = PairView {
            state: PairState::Failed(failure),
            ..peer.pairs[0].clone()
        };
        assert!(!why(&pair).is_empty(), "{failure:?}");
    }
    let chosen = PairView {
        state: PairState::Succeeded,
        used: Use::Selected,
        ..peer.pairs[0].clone()
    };
    assert_eq!(why_not(&facts, &chosen), None);
}

#[test]
fn codes_are_kebab_case_and_differ() {
    let codes: std::collections::BTreeSet<&str> = Code::ALL.iter().map(|c| c.as_str()).collect();
    assert_eq!(codes.len(), Code::ALL.len());
    for code in codes {
        assert!(code.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
    }
}

/// Where another program owns the interface: what it has configured goes before what NATs make of it.
#[test]
fn what_the_interface_has_configured_goes_before_the_nats() {
    let node = node(NatBehavior::default());
    let mut there = peer(Some(NatBehavior::default()), Vec::new());
    let attached = |there: &PeerSnapshot, native, lacks_us| {
        let facts = Facts {
            attached: Some("wg0"),
            native,
            lacks_us,
            ..facts(&node, there)
        };
        reason(&facts)
    };
    let lacking = attached(&there, None, true);
    assert_eq!(lacking.code, Code::NotAPeerThere);
    let says = format!("on lab-b: wg set INTERFACE peer {}", node.key);
    assert!(lacking.hint.starts_with(&says), "{}", lacking.hint);
    assert_eq!(
        attached(&there, Some(false), true).code,
        Code::NotAPeerThere
    );
    // What works proves that it has us by now.
    assert_eq!(attached(&there, Some(true), true).code, Code::Native);
    assert_ne!(attached(&there, None, false).code, Code::NotAPeerThere);
    let working = relayed(peer(Some(NatBehavior::default()), Vec::new()));
    assert_ne!(attached(&working, None, true).code, Code::NotAPeerThere);

    there.revoked = true;
    for native in [None, Some(false), Some(true)] {
        let revoked = attached(&there, native, true);
        assert_eq!(revoked.code, Code::Revoked);
        let command = format!("wg set wg0 peer {} remove", there.key);
        assert_eq!(revoked.hint, command);
        assert!(revoked.remedy.contains(&command), "{}", revoked.remedy);
    }
}
