//! The Kubernetes backend against an API server of the tests' own, on loopback.

// The lints know tests by their attribute only; here all is test.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, unreachable_pub)]

mod api;
mod bridge;

use std::time::Duration;

use api::Api;
use tokio::sync::watch;
use wice::signaling::kubernetes::state::{MeshAgent, Names, encode};
use wice::signaling::kubernetes::{Access, ClusterView, KubernetesBackend, KubernetesConfig};
use wice::signaling::{Event, Signaling};
use wice_signaling::protocol::{
    Advert, NatBehavior, Presence, PrivateKey, PublicKey, RecordKind, Session,
};

const ADVERT: &str = "wice.riasc.eu/advert";
const KEY: &str = "kilo.squat.ai/key";
const KEEPALIVE: &str = "kilo.squat.ai/persistent-keepalive";

/// The longest that anything here takes: a watch that broke begins anew within 10 s, and a second failure waits 3 s.
const SOON: Duration = Duration::from_secs(30);

fn key(seed: u8) -> PublicKey {
    PrivateKey::from_bytes([seed; 32]).public_key()
}

fn advert(seed: u8, sequence: u64) -> Vec<u8> {
    let private = PrivateKey::from_bytes([seed; 32]);
    let advert = Advert {
        key: private.public_key(),
        session: Session([seed; 16]),
        sequence,
        name: format!("n{seed}"),
        nat: NatBehavior::default(),
        candidates: Vec::new(),
        membership: Vec::new(),
    };
    advert.encode_signed(&private, &[7; 64]).unwrap()
}

fn start(api: &Api, node: &str, mesh: MeshAgent) -> (Signaling, watch::Receiver<ClusterView>) {
    let (backend, view) = KubernetesBackend::new(KubernetesConfig {
        access: Access {
            kubeconfig: Some(api.kubeconfig.clone()),
            ..Access::default()
        },
        node: node.to_owned(),
        names: Names::of(mesh),
        set_keepalive: Some(25),
    })
    .unwrap();
    (Signaling::start(backend), view)
}

async fn until(signaling: &mut Signaling, wanted: impl Fn(&Event) -> bool) -> Event {
    let found = async {
        loop {
            let event = signaling.next().await.expect("the backend goes on");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(SOON, found).await.expect("in time")
}

async fn until_connected(signaling: &mut Signaling) {
    until(signaling, |event| *event == Event::Connected).await;
}

async fn until_record(signaling: &mut Signaling, of: PublicKey) -> Vec<u8> {
    let event = until(
        signaling,
        |event| matches!(event, Event::Record { key, .. } if *key == of),
    )
    .await;
    match event {
        Event::Record { sealed, .. } => sealed,
        other => panic!("{other:?}"),
    }
}

/// Waits for the API server to hold something.
async fn until_held(api: &Api, node: &str, name: &str, value: &str) {
    let held = async {
        while api.annotation(node, name).as_deref() != Some(value) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, held).await.expect("in time");
}

/// Both ways of listing.
async fn two_nodes_meet(minor: &'static str) {
    let api = Api::start(&format!("meet{minor}"), minor).await;
    for (node, seed) in [("a", 1), ("b", 2)] {
        api.annotate(node, &[(KEY, Some(&key(seed).to_string()))]);
    }
    let (mut a, view) = start(&api, "a", MeshAgent::Wns);
    let (mut b, _view) = start(&api, "b", MeshAgent::Wns);
    until_connected(&mut a).await;
    until_connected(&mut b).await;
    a.publish(RecordKind::Advert, advert(1, 1));
    assert_eq!(until_record(&mut b, key(1)).await, advert(1, 1));
    b.publish(RecordKind::Advert, advert(2, 1));
    assert_eq!(until_record(&mut a, key(2)).await, advert(2, 1));
    let patches = api.requests("PATCH");
    assert_eq!(patches.len(), 2, "{patches:?}");
    for patch in &patches {
        assert!(
            patch.contains("fieldManager=wice") && patch.contains("force=true"),
            "{patch}"
        );
    }
    let gets = api.requests("GET");
    let lists = gets.iter().filter(|get| get.contains("/api/v1/nodes?"));
    for list in lists.clone() {
        assert!(list.contains("as=PartialObjectMetadata"), "{list}");
    }
    let streamed = lists
        .filter(|list| list.contains("sendInitialEvents=true"))
        .count();
    assert_eq!(streamed, if minor == "36" { 2 } else { 0 });
    assert_eq!(
        view.borrow().own.pod_cidrs,
        ["10.42.1.0/24".parse().unwrap()]
    );
}

#[tokio::test]
async fn two_nodes_meet_by_a_streamed_list() {
    two_nodes_meet("36").await;
}

#[tokio::test]
async fn two_nodes_meet_by_a_list_of_an_old_server() {
    two_nodes_meet("26+").await;
}

#[tokio::test]
async fn our_own_advert_is_read_before_it_is_replaced() {
    let api = Api::start("own", "36").await;
    let old = encode(&advert(1, 41)).unwrap();
    api.annotate("a", &[(ADVERT, Some(&old))]);
    let (mut a, _view) = start(&api, "a", MeshAgent::Wns);
    a.publish(RecordKind::Advert, advert(1, 1));
    assert_eq!(until_record(&mut a, key(1)).await, advert(1, 41));
    assert_eq!(api.requests("PATCH").len(), 0, "nothing was written before");
    // What the daemon does with it.
    a.publish(RecordKind::Advert, advert(1, 42));
    until_held(&api, "a", ADVERT, &encode(&advert(1, 42)).unwrap()).await;
}

#[tokio::test]
async fn after_410_gone_what_was_missed_comes_and_who_is_gone_goes() {
    let api = Api::start("gone", "36").await;
    for (node, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        api.annotate(node, &[(KEY, Some(&key(seed).to_string()))]);
    }
    let (mut a, _view) = start(&api, "a", MeshAgent::Kilo);
    until_connected(&mut a).await;
    // While nobody is told.
    api.refuse(Some((503, "starting")));
    let text = encode(&advert(2, 1)).unwrap();
    api.annotate("b", &[(ADVERT, Some(&text))]);
    api.delete("c");
    api.compact();
    api.refuse(None);
    assert_eq!(until_record(&mut a, key(2)).await, advert(2, 1));
    let lost = Event::Presence {
        key: key(3),
        presence: Presence::Lost { last_seen_s: 0 },
    };
    until(&mut a, |event| *event == lost).await;
}

#[tokio::test]
async fn a_watch_that_broke_and_is_taken_up_again_is_told_though_nothing_has_changed() {
    let api = Api::start("again", "36").await;
    api.annotate("a", &[(KEY, Some(&key(1).to_string()))]);
    let (mut a, _view) = start(&api, "a", MeshAgent::Wns);
    until_connected(&mut a).await;
    // What is no refusal for good the client would ask again by itself, and say nothing.
    api.refuse(Some((403, "for now")));
    until(&mut a, |event| matches!(event, Event::Disconnected { .. })).await;
    api.refuse(None);
    until_connected(&mut a).await;
}

#[tokio::test]
async fn an_altered_annotation_is_put_right() {
    let api = Api::start("altered", "36").await;
    api.annotate("a", &[(KEY, Some(&key(1).to_string()))]);
    let (mut a, _view) = start(&api, "a", MeshAgent::Wns);
    let text = encode(&advert(1, 1)).unwrap();
    a.publish(RecordKind::Advert, advert(1, 1));
    until_held(&api, "a", ADVERT, &text).await;
    until_connected(&mut a).await;
    api.annotate("a", &[(ADVERT, Some("by hand"))]);
    until_held(&api, "a", ADVERT, &text).await;
    api.annotate("a", &[(ADVERT, None)]);
    until_held(&api, "a", ADVERT, &text).await;
}

#[tokio::test]
async fn a_node_that_is_registered_anew_gets_its_advert_back() {
    let api = Api::start("anew", "36").await;
    api.annotate("a", &[(KEY, Some(&key(1).to_string()))]);
    let (a, mut view) = start(&api, "a", MeshAgent::Wns);
    let text = encode(&advert(1, 1)).unwrap();
    a.publish(RecordKind::Advert, advert(1, 1));
    until_held(&api, "a", ADVERT, &text).await;
    api.delete("a");
    let gone = view.wait_for(|view| view.listed && view.objects.is_empty());
    tokio::time::timeout(SOON, gone).await.unwrap().unwrap();
    let before = api.requests("PATCH").len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        api.requests("PATCH").len(),
        before,
        "a Node is not ours to make"
    );
    api.annotate("a", &[(KEY, Some(&key(1).to_string()))]);
    until_held(&api, "a", ADVERT, &text).await;
}

#[tokio::test]
async fn keepalive_is_set_where_it_is_missing_and_left_where_it_is_not() {
    let api = Api::start("keepalive", "36").await;
    api.annotate("a", &[(KEY, Some(&key(1).to_string()))]);
    let theirs = [
        (KEY, Some(key(2).to_string())),
        (KEEPALIVE, Some("10".to_owned())),
    ];
    let theirs = theirs
        .each_ref()
        .map(|(name, value)| (*name, value.as_deref()));
    api.annotate("b", &theirs);
    let (mut a, mut view) = start(&api, "a", MeshAgent::Kilo);
    let (mut b, _view) = start(&api, "b", MeshAgent::Kilo);
    until_connected(&mut a).await;
    until_connected(&mut b).await;
    until_held(&api, "a", KEEPALIVE, "25").await;
    let set = view.wait_for(|view| {
        view.object_of(&key(1))
            .is_some_and(|(_, facts)| facts.keepalive == Some(25))
    });
    tokio::time::timeout(SOON, set).await.unwrap().unwrap();
    let patches = api.requests("PATCH");
    assert_eq!(patches.len(), 1, "{patches:?}");
    assert!(patches[0].contains("nodes/a?") && patches[0].contains("fieldManager=wice-keepalive"));
    assert!(!patches[0].contains("force=true"), "{patches:?}");
    assert_eq!(api.annotation("b", KEEPALIVE).as_deref(), Some("10"));
}

#[tokio::test]
async fn a_missing_verb_is_told_and_granted_later_it_goes_on() {
    let api = Api::start("rbac", "36").await;
    api.annotate("a", &[(KEY, Some(&key(1).to_string()))]);
    let message = r#"nodes is forbidden: User "x" cannot list resource "nodes""#;
    api.refuse(Some((403, message)));
    let (mut a, _view) = start(&api, "a", MeshAgent::Wns);
    let told = until(&mut a, |event| matches!(event, Event::Disconnected { .. })).await;
    let Event::Disconnected { reason, .. } = told else {
        panic!("{told:?}");
    };
    assert!(
        reason.contains("cannot list") && reason.contains("apply -k"),
        "{reason}"
    );
    api.refuse(None);
    until_connected(&mut a).await;
}

#[tokio::test]
async fn a_node_that_is_not_there_is_told() {
    let api = Api::start("nobody", "36").await;
    let (mut a, view) = start(&api, "nobody", MeshAgent::Wns);
    until_connected(&mut a).await;
    let problem = view.borrow().problem.clone().unwrap_or_default();
    assert!(
        problem.contains("nobody") && problem.contains("NODE_NAME"),
        "{problem}"
    );
}
