use wice_signaling::protocol::PrivateKey;

use super::super::{MeshAgent, encode};
use super::*;

fn key(seed: u8) -> PublicKey {
    PrivateKey::from_bytes([seed; 32]).public_key()
}

/// What stands for a signed advert here: version, key, and something that changes.
fn advert(seed: u8, sequence: u8) -> Vec<u8> {
    let mut advert = vec![1];
    advert.extend_from_slice(&key(seed).0);
    advert.push(sequence);
    advert
}

fn annotations(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    entries.iter().map(own).collect()
}

fn kilo() -> Objects {
    Objects::new(Names::of(MeshAgent::Kilo))
}

fn node(objects: &mut Objects, name: &str, entries: &[(&str, &str)]) {
    let annotations = annotations(entries);
    objects.handle_object(
        Source::Nodes,
        Object {
            name,
            annotations: &annotations,
            public_key: None,
            keepalive: None,
        },
    );
}

fn peer(objects: &mut Objects, name: &str, public_key: &str, entries: &[(&str, &str)]) {
    let annotations = annotations(entries);
    objects.handle_object(
        Source::Peers,
        Object {
            name,
            annotations: &annotations,
            public_key: Some(public_key),
            keepalive: Some(25),
        },
    );
}

fn named(source: Source, name: &str) -> ObjectName {
    ObjectName {
        source,
        name: name.to_owned(),
    }
}

fn facts(objects: &Objects, name: &str) -> Facts {
    let name = named(Source::Nodes, name);
    objects.facts(&name).cloned().unwrap_or_default()
}

fn changes(objects: &mut Objects) -> Vec<Change> {
    std::iter::from_fn(|| objects.poll_change()).collect()
}

fn adverts(objects: &mut Objects) -> Vec<(PublicKey, Vec<u8>)> {
    let advert = |change| match change {
        Change::Advert { key, advert } => Some((key, advert)),
        Change::Gone(_) | Change::Facts(_) => None,
    };
    changes(objects).into_iter().filter_map(advert).collect()
}

#[test]
fn kilos_annotations_are_understood() {
    let mut objects = kilo();
    let text = encode(&advert(1, 1)).unwrap();
    node(
        &mut objects,
        "a",
        &[
            ("kilo.squat.ai/key", &key(1).to_string()),
            ("kilo.squat.ai/wireguard-ip", "10.4.0.1/16"),
            ("kilo.squat.ai/persistent-keepalive", "25"),
            ("wice.riasc.eu/advert", &text),
        ],
    );
    let expected = Facts {
        key: Some(key(1)),
        keepalive: Some(25),
        overlay: vec!["10.4.0.1/32".parse().unwrap()],
        has_advert: true,
        bad_advert: None,
    };
    assert_eq!(facts(&objects, "a"), expected);
    assert_eq!(adverts(&mut objects), [(key(1), advert(1, 1))]);
}

#[test]
fn wns_and_names_of_ones_own_are_understood() {
    let entries = [
        ("wireguard-publickey", key(2).to_string()),
        ("wireguard-ip", "100.64.3.4".to_owned()),
        ("mesh.example/pub", key(3).to_string()),
    ];
    let entries = entries
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let mut wns = Objects::new(Names::of(MeshAgent::Wns));
    node(&mut wns, "a", &entries);
    assert_eq!(facts(&wns, "a").key, Some(key(2)));
    assert_eq!(facts(&wns, "a").overlay, ["100.64.3.4/32".parse().unwrap()]);
    let mut own = Objects::new(Names {
        key: "mesh.example/pub".to_owned(),
        ..Names::of(MeshAgent::Wns)
    });
    node(&mut own, "a", &entries);
    assert_eq!(facts(&own, "a").key, Some(key(3)));
}

#[test]
fn the_last_key_is_kept_when_the_agent_takes_its_annotations_away() {
    let mut objects = kilo();
    let k1 = key(1).to_string();
    node(&mut objects, "a", &[("kilo.squat.ai/key", &k1)]);
    for without in [&[][..], &[("kilo.squat.ai/key", "not a key")]] {
        node(&mut objects, "a", without);
        assert_eq!(facts(&objects, "a").key, Some(key(1)));
    }
    let k2 = key(2).to_string();
    node(&mut objects, "a", &[("kilo.squat.ai/key", &k2)]);
    assert_eq!(facts(&objects, "a").key, Some(key(2)), "rotated");
}

#[test]
fn where_no_agent_tells_the_key_the_advert_does() {
    let mut objects = kilo();
    let text = encode(&advert(1, 1)).unwrap();
    node(&mut objects, "a", &[("wice.riasc.eu/advert", &text)]);
    assert_eq!(facts(&objects, "a").key, Some(key(1)));
    let k2 = key(2).to_string();
    let both = [
        ("wice.riasc.eu/advert", text.as_str()),
        ("kilo.squat.ai/key", &k2),
    ];
    node(&mut objects, "a", &both);
    assert_eq!(facts(&objects, "a").key, Some(key(2)), "the agent's word");
}

#[test]
fn a_peer_is_known_by_its_specification() {
    let mut objects = kilo();
    let text = encode(&advert(5, 1)).unwrap();
    let annotated = [("wice.riasc.eu/advert", text.as_str())];
    peer(&mut objects, "box", &key(5).to_string(), &annotated);
    let name = named(Source::Peers, "box");
    let facts = objects.facts(&name).unwrap();
    assert_eq!((facts.key, facts.keepalive), (Some(key(5)), Some(25)));
    assert_eq!(name.to_string(), "peer/box");
    assert_eq!(adverts(&mut objects), [(key(5), advert(5, 1))]);
}

#[test]
fn only_a_changed_annotation_is_an_advert() {
    let mut objects = kilo();
    let text = encode(&advert(1, 1)).unwrap();
    let seen = [("wice.riasc.eu/advert", text.as_str())];
    node(&mut objects, "a", &seen);
    assert_eq!(adverts(&mut objects).len(), 1);
    // What kg writes every 30 s.
    let again = [seen[0], ("kilo.squat.ai/last-seen", "1700000000")];
    node(&mut objects, "a", &again);
    assert_eq!(changes(&mut objects), [], "foreign annotations are nothing");
    node(&mut objects, "a", &[]);
    assert!(!facts(&objects, "a").has_advert);
    node(&mut objects, "a", &seen);
    assert_eq!(adverts(&mut objects).len(), 1, "it is back");
}

#[test]
fn an_advert_edited_by_hand_is_told_and_a_good_one_mends_it() {
    let mut objects = kilo();
    for wrong in ["hello world", "AAAA"] {
        node(&mut objects, "a", &[("wice.riasc.eu/advert", wrong)]);
        assert!(facts(&objects, "a").bad_advert.is_some(), "{wrong}");
        assert_eq!(adverts(&mut objects), []);
    }
    let text = encode(&advert(1, 1)).unwrap();
    node(&mut objects, "a", &[("wice.riasc.eu/advert", &text)]);
    assert_eq!(facts(&objects, "a").bad_advert, None);
}

#[test]
fn keepalive_counts_above_zero_only() {
    let mut objects = kilo();
    for (text, seconds) in [
        ("0", None),
        ("", None),
        ("-1", None),
        ("70000", None),
        ("1", Some(1)),
    ] {
        let entries = [("kilo.squat.ai/persistent-keepalive", text)];
        node(&mut objects, "a", &entries);
        assert_eq!(facts(&objects, "a").keepalive, seconds, "{text}");
    }
}

#[test]
fn after_a_broken_watch_who_is_not_listed_is_gone_at_the_end_of_the_list() {
    let mut objects = kilo();
    let [k1, k2, k3] = [1, 2, 3].map(|seed| key(seed).to_string());
    objects.handle_list(Source::Nodes);
    assert!(!objects.is_listed(Source::Nodes));
    for (name, key) in [("a", &k1), ("b", &k2)] {
        node(&mut objects, name, &[("kilo.squat.ai/key", key)]);
    }
    peer(&mut objects, "box", &k3, &[]);
    objects.handle_listed(Source::Nodes);
    assert!(objects.is_listed(Source::Nodes));
    changes(&mut objects);

    objects.handle_list(Source::Nodes);
    node(&mut objects, "a", &[("kilo.squat.ai/key", &k1)]);
    assert_eq!(changes(&mut objects), [], "b may still come");
    objects.handle_listed(Source::Nodes);
    let gone = [
        Change::Facts(named(Source::Nodes, "b")),
        Change::Gone(key(2)),
    ];
    assert_eq!(changes(&mut objects), gone, "and the Peer is no Node");
    assert_eq!(objects.all().count(), 2);
}

#[test]
fn a_list_that_broke_off_makes_nobody_gone() {
    let mut objects = kilo();
    let k1 = key(1).to_string();
    objects.handle_list(Source::Nodes);
    node(&mut objects, "a", &[("kilo.squat.ai/key", &k1)]);
    objects.handle_listed(Source::Nodes);
    objects.handle_list(Source::Nodes);
    objects.handle_list(Source::Nodes);
    node(&mut objects, "a", &[("kilo.squat.ai/key", &k1)]);
    objects.handle_listed(Source::Nodes);
    let gone = changes(&mut objects)
        .into_iter()
        .any(|change| matches!(change, Change::Gone(_)));
    assert!(!gone);
}

#[test]
fn a_node_that_was_registered_anew_is_not_gone() {
    let mut objects = kilo();
    let k1 = key(1).to_string();
    node(&mut objects, "old", &[("kilo.squat.ai/key", &k1)]);
    node(&mut objects, "new", &[("kilo.squat.ai/key", &k1)]);
    changes(&mut objects);
    objects.handle_deleted(Source::Nodes, "old");
    assert_eq!(
        changes(&mut objects),
        [Change::Facts(named(Source::Nodes, "old"))]
    );
    objects.handle_deleted(Source::Nodes, "new");
    assert!(changes(&mut objects).contains(&Change::Gone(key(1))));
    objects.handle_deleted(Source::Nodes, "new");
    assert_eq!(changes(&mut objects), []);
}

#[test]
fn a_cluster_of_any_size_takes_bounded_room() {
    let mut objects = kilo();
    for number in 0..MAX_OBJECTS + 3 {
        node(&mut objects, &format!("n{number}"), &[]);
        changes(&mut objects);
    }
    assert_eq!(objects.all().count(), MAX_OBJECTS);
    assert_eq!(objects.left_out(), 3);
    node(
        &mut objects,
        "n0",
        &[("kilo.squat.ai/key", &key(1).to_string())],
    );
    assert_eq!(facts(&objects, "n0").key, Some(key(1)), "known ones go on");
}
