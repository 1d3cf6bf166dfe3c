//! The backend against a real kube-apiserver, with the rights that the manifests give and a token as a pod has it.

// The lints know tests by their attribute only; here all is test.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::time::Duration;

use tokio::sync::watch;
use wice::signaling::kubernetes::state::{MeshAgent, Names, encode};
use wice::signaling::kubernetes::{Access, ClusterView, KubernetesBackend, KubernetesConfig};
use wice::signaling::{Event, Signaling};
use wice_kube_tests::Cluster;
use wice_signaling::protocol::{
    Advert, NatBehavior, Presence, PrivateKey, PublicKey, RecordKind, Session,
};

const ADVERT: &str = "wice.riasc.eu/advert";
const KEY: &str = "kilo.squat.ai/key";
const KEEPALIVE: &str = "kilo.squat.ai/persistent-keepalive";

/// The longest that anything here takes: a broken watch begins anew within 10 s, and a server that starts takes some as well.
const SOON: Duration = Duration::from_secs(60);
/// What a debounced write, its event and the look at it take, on a machine that is busy.
const PROMPT: Duration = Duration::from_secs(5);
/// Two intervals of compaction of the tests' API server, and some.
const COMPACTED: Duration = Duration::from_secs(6);

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

/// A cluster with wice beside Kilo, and the Nodes a, b and c.
fn cluster() -> Cluster {
    let cluster = Cluster::start().unwrap();
    cluster.install("kilo-kubeadm").unwrap();
    for (name, seed) in [("a", 1u8), ("b", 2), ("c", 3)] {
        cluster
            .node(
                name,
                &format!("10.42.{seed}.0/24"),
                &[(KEY, &key(seed).to_string())],
            )
            .unwrap();
    }
    cluster
}

/// As the pod of this Node reaches the API.
fn access(cluster: &Cluster, node: &str) -> Access {
    let token = cluster.token(node).unwrap();
    Access {
        server: Some(cluster.url()),
        ca_file: Some(cluster.ca_file()),
        token_file: Some(cluster.file(&format!("token-{node}"), &token).unwrap()),
        ..Access::default()
    }
}

/// A node's backend, with what it has told.
struct Agent {
    signaling: Signaling,
    view: watch::Receiver<ClusterView>,
}

impl Agent {
    fn start(cluster: &Cluster, node: &str) -> Self {
        Self::with(access(cluster, node), node)
    }

    fn with(access: Access, node: &str) -> Self {
        let config = KubernetesConfig {
            access,
            node: node.to_owned(),
            names: Names::of(MeshAgent::Kilo),
            set_keepalive: Some(25),
        };
        let (backend, view) = KubernetesBackend::new(config).unwrap();
        Self {
            signaling: Signaling::start(backend),
            view,
        }
    }

    async fn until(&mut self, within: Duration, wanted: impl Fn(&Event) -> bool) -> Event {
        let mut told = Vec::new();
        let found = async {
            loop {
                let event = self.signaling.next().await.expect("the backend goes on");
                if wanted(&event) {
                    return event;
                }
                told.push(event);
            }
        };
        match tokio::time::timeout(within, found).await {
            Ok(event) => event,
            Err(_) => panic!("not within {within:?}; told: {told:?}"),
        }
    }

    async fn connected(mut self) -> Self {
        self.until(SOON, |event| *event == Event::Connected).await;
        self
    }

    async fn until_record(&mut self, within: Duration, of: u8, sequence: u64) {
        self.until(within, |event| {
            matches!(event, Event::Record { key: owner, sealed, .. } if *owner == key(of) && *sealed == advert(of, sequence))
        })
        .await;
    }
}

/// Runs `kubectl` and its kind beside the backends, not in their way.
async fn beside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    tokio::task::block_in_place(work)
}

async fn until_annotation(cluster: &Cluster, node: &str, name: &str, wanted: Option<&str>) {
    let held = async {
        while beside(|| cluster.annotation(node, name).unwrap())
            .await
            .as_deref()
            != wanted
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, held).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn adverts_go_from_node_to_node_and_another_writer_is_put_right() {
    let cluster = cluster();
    let mut a = Agent::start(&cluster, "a").connected().await;
    let mut b = Agent::start(&cluster, "b").connected().await;
    a.signaling.publish(RecordKind::Advert, advert(1, 1));
    b.until_record(PROMPT, 1, 1).await;
    b.signaling.publish(RecordKind::Advert, advert(2, 1));
    a.until_record(PROMPT, 2, 1).await;
    // One write a change, and the keepalive that the Node lacked, each by its own manager.
    until_annotation(&cluster, "a", KEEPALIVE, Some("25")).await;
    let managers = beside(|| {
        cluster
            .kubectl(&["get", "node", "a", "--show-managed-fields", "-o", "json"])
            .unwrap()
    })
    .await;
    for manager in [r#""manager": "wice""#, r#""manager": "wice-keepalive""#] {
        assert!(managers.contains(manager), "{managers}");
    }
    assert_eq!(
        a.view.borrow().own.pod_cidrs,
        ["10.42.1.0/24".parse().unwrap()]
    );
    // Somebody's hand, and somebody who takes the annotation away.
    let text = encode(&advert(1, 1)).unwrap();
    for theirs in ["by hand", ""] {
        beside(|| cluster.annotate("a", ADVERT, theirs).unwrap()).await;
        until_annotation(&cluster, "a", ADVERT, Some(&text)).await;
    }
    // What is not ours has stayed.
    until_annotation(&cluster, "a", KEY, Some(&key(1).to_string())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_restarts_is_found_again_and_what_was_forgotten_is_listed() {
    let mut cluster = cluster();
    let mut a = Agent::start(&cluster, "a").connected().await;
    a.signaling.publish(RecordKind::Advert, advert(1, 1));
    until_annotation(&cluster, "a", ADVERT, Some(&encode(&advert(1, 1)).unwrap())).await;
    // While this node's API server is away, another serves the others, until the past is compacted.
    beside(|| cluster.stop_api()).await;
    a.until(SOON, |event| matches!(event, Event::Disconnected { .. }))
        .await;
    a.signaling.publish(RecordKind::Advert, advert(1, 2));
    beside(|| {
        let (second, address) = cluster.second_api().unwrap();
        let text = encode(&advert(2, 1)).unwrap();
        let entry = format!("{ADVERT}={text}");
        let admin = |arguments: &[&str]| cluster.kubectl_as_admin_at(address, arguments).unwrap();
        admin(&["annotate", "node", "b", &entry]);
        admin(&["delete", "node", "c"]);
        std::thread::sleep(COMPACTED);
        admin(&["annotate", "node", "b", "other=1"]);
        drop(second);
    })
    .await;
    beside(|| cluster.start_api().unwrap()).await;
    a.until_record(SOON, 2, 1).await;
    let gone = Event::Presence {
        key: key(3),
        presence: Presence::Lost { last_seen_s: 0 },
    };
    a.until(SOON, |event| *event == gone).await;
    // What was published meanwhile is not lost.
    until_annotation(&cluster, "a", ADVERT, Some(&encode(&advert(1, 2)).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_token_does_what_the_agent_needs_and_nothing_else() {
    let cluster = cluster();
    let token = cluster.token("a").unwrap();
    let a = |arguments: &[&str]| cluster.kubectl_at(cluster.address(), &token, arguments);
    beside(|| cluster.wait_for_policy(&token, ["node", "a"]).unwrap()).await;
    // What it may.
    a(&["get", "nodes"]).unwrap();
    a(&["get", "peers.kilo.squat.ai"]).unwrap();
    a(&["annotate", "node", "a", "wice.riasc.eu/advert=x"]).unwrap();
    a(&[
        "annotate",
        "node",
        "a",
        "kilo.squat.ai/persistent-keepalive=25",
    ])
    .unwrap();
    // What it may not, with the words that say so.
    let large = format!("wice.riasc.eu/advert={}", "x".repeat(8193));
    let refused: [(&[&str], &str); 11] = [
        (
            &["annotate", "node", "b", "wice.riasc.eu/advert=x"],
            "not this pod's Node",
        ),
        (
            &[
                "annotate",
                "node",
                "a",
                "kilo.squat.ai/key=x",
                "--overwrite",
            ],
            "foreign annotation",
        ),
        (
            &["annotate", "node", "a", "kilo.squat.ai/key-"],
            "foreign annotation",
        ),
        (
            &["annotate", "node", "a", &large, "--overwrite"],
            "over 8192 characters",
        ),
        (&["label", "node", "a", "x=y"], "only annotations"),
        (&["taint", "node", "a", "x=y:NoExecute"], "only annotations"),
        (
            &[
                "patch",
                "node",
                "a",
                "-p",
                r#"{"spec":{"unschedulable":true}}"#,
            ],
            "only annotations",
        ),
        (&["delete", "node", "a"], "cannot delete resource \"nodes\""),
        (
            &["get", "secrets", "--namespace", "wice"],
            "cannot list resource \"secrets\"",
        ),
        (
            &["get", "pods", "--namespace", "wice"],
            "cannot list resource \"pods\"",
        ),
        (&["delete", "peers.kilo.squat.ai", "x"], "cannot"),
    ];
    for (arguments, words) in refused {
        let Err(error) = a(arguments) else {
            panic!("{arguments:?} is allowed")
        };
        let error = error.to_string();
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
    assert_eq!(cluster.annotation("b", ADVERT).unwrap(), None);
    assert_eq!(
        cluster.annotation("a", ADVERT).unwrap().as_deref(),
        Some("x")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_verb_and_an_unknown_authority_are_told_and_mended_without_a_restart() {
    let cluster = cluster();
    let access = access(&cluster, "a");
    beside(|| {
        cluster
            .kubectl(&["delete", "clusterrolebinding", "wice"])
            .unwrap()
    })
    .await;
    let mut a = Agent::with(access.clone(), "a");
    let told = a
        .until(SOON, |event| matches!(event, Event::Disconnected { .. }))
        .await;
    let text = format!("{told:?}");
    assert!(
        text.contains("cannot watch resource \\\"nodes") && text.contains("apply -k"),
        "{text}"
    );
    beside(|| cluster.install("kilo-kubeadm").unwrap()).await;
    a.until(SOON, |event| *event == Event::Connected).await;

    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = Access {
        ca_file: Some(cluster.file("other.crt", &stranger.cert.pem()).unwrap()),
        ..access
    };
    let mut b = Agent::with(other, "a");
    let told = b
        .until(SOON, |event| matches!(event, Event::Disconnected { .. }))
        .await;
    let text = format!("{told:?}");
    assert!(text.contains("--api-ca-file"), "{text}");
}
