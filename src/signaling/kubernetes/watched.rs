//! A watch of one kind of object that goes on for ever: it breaks, waits, lists and watches again.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Config, watcher};
use serde::Deserialize as _;
use tokio::time::{Instant, sleep_until};

use super::access::explain;
use super::state::{Object, Pace, Source};

/// Since this minor version of Kubernetes 1 a watch may begin with the list itself (WatchList; off by default in 1.33). Before
/// 1.27 the server ignores that it was asked to, and the list would never end.
const STREAMING_SINCE: u32 = 32;

/// Kilo's kind (its `manifests/crds.yaml`).
pub(super) const PEER_GROUP: &str = "kilo.squat.ai";
pub(super) const PEER_VERSION: &str = "v1alpha1";
pub(super) const PEER_KIND: &str = "Peer";

/// What is kept of an object; the rest is dropped where it comes in.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    name: String,
    annotations: BTreeMap<String, String>,
    spec: Spec,
}

/// Of a Peer, what the cluster must know of it.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    public_key: Option<String>,
    persistent_keepalive: Option<u16>,
}

impl Seen {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn object(&self) -> Object<'_> {
        Object {
            name: &self.name,
            annotations: &self.annotations,
            public_key: self.spec.public_key.as_deref(),
            keepalive: self.spec.persistent_keepalive,
        }
    }
}

/// What a watch tells.
#[derive(Debug)]
pub(crate) enum Told {
    /// A list begins.
    List,
    /// An object is there, or has changed.
    Object(Seen),
    /// An object was deleted.
    Deleted(Seen),
    /// The list is complete.
    Listed,
    /// The watch broke; the next try comes after the wait.
    Lost {
        reason: String,
        retry_in: std::time::Duration,
        /// The API does not know such objects.
        unknown: bool,
    },
}

type Stream = BoxStream<'static, Result<watcher::Event<Seen>, watcher::Error>>;

/// One watch.
pub(super) struct Watched {
    source: Source,
    client: kube::Client,
    streaming: bool,
    stream: Stream,
    pace: Pace,
    resume: Option<Instant>,
}

impl Watched {
    /// Begins when it is first asked. `streaming` as [`streams`] says.
    pub(super) fn new(source: Source, client: kube::Client, streaming: bool, pace: Pace) -> Self {
        Self {
            source,
            stream: stream_of(source, &client, streaming),
            client,
            streaming,
            pace,
            resume: None,
        }
    }

    /// The next that it tells. Cancel-safe.
    pub(super) async fn next(&mut self) -> Told {
        loop {
            if let Some(at) = self.resume {
                sleep_until(at).await;
                self.resume = None;
            }
            let event = match self.stream.next().await {
                Some(Ok(event)) => event,
                Some(Err(error)) => match self.handle_error(&error) {
                    Some(lost) => return lost,
                    None => continue,
                },
                // It never ends by itself.
                None => {
                    self.stream = stream_of(self.source, &self.client, self.streaming);
                    self.wait();
                    continue;
                }
            };
            return match event {
                watcher::Event::Init => Told::List,
                watcher::Event::InitApply(seen) => Told::Object(seen),
                watcher::Event::Apply(seen) => {
                    self.pace.works();
                    Told::Object(seen)
                }
                watcher::Event::Delete(seen) => {
                    self.pace.works();
                    Told::Deleted(seen)
                }
                watcher::Event::InitDone => {
                    self.pace.works();
                    Told::Listed
                }
            };
        }
    }

    /// `None` where the same can be asked in another way at once.
    fn handle_error(&mut self, error: &watcher::Error) -> Option<Told> {
        if self.streaming && is_refusal_to_stream(error) {
            self.streaming = false;
            self.stream = stream_of(self.source, &self.client, false);
            return None;
        }
        let reason = reason_of(error);
        // With a list: a watch that is only taken up again says nothing by itself, so nobody would know that it is.
        self.stream = stream_of(self.source, &self.client, self.streaming);
        let retry_in = self.wait();
        Some(Told::Lost {
            reason,
            retry_in,
            unknown: is_code(error, |code| code == 404),
        })
    }

    fn wait(&mut self) -> std::time::Duration {
        let wait = self.pace.fail();
        self.resume = Some(Instant::now() + wait);
        wait
    }
}

/// Whether the server begins a watch with the list. Where it does not say what it is, it is taken for an old one.
pub(super) async fn streams(client: &kube::Client) -> bool {
    match client.apiserver_version().await {
        // A minor version may read `32+`.
        Ok(info) => {
            let digits: String = info
                .minor
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            digits
                .parse()
                .is_ok_and(|minor: u32| minor >= STREAMING_SINCE)
        }
        Err(_) => false,
    }
}

fn stream_of(source: Source, client: &kube::Client, streaming: bool) -> Stream {
    let config = if streaming {
        Config::default().streaming_lists()
    } else {
        // From the server's cache: it may be behind what was seen before, and an advert has a sequence.
        Config::default().any_semantic()
    };
    match source {
        Source::Nodes => {
            let api: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
            watcher(api, config)
                .map(|event| event.map(|event| map(event, of_node)))
                .boxed()
        }
        Source::Peers => watcher(peers(client), config)
            .map(|event| event.map(|event| map(event, of_peer)))
            .boxed(),
    }
}

/// Kilo's Peers, whose kind no crate has.
pub(super) fn peers(client: &kube::Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(PEER_GROUP, PEER_VERSION, PEER_KIND);
    let resource = ApiResource::from_gvk_with_plural(&kind, "peers");
    Api::all_with(client.clone(), &resource)
}

fn map<K>(event: watcher::Event<K>, seen: impl Fn(K) -> Seen) -> watcher::Event<Seen> {
    match event {
        watcher::Event::Apply(object) => watcher::Event::Apply(seen(object)),
        watcher::Event::Delete(object) => watcher::Event::Delete(seen(object)),
        watcher::Event::InitApply(object) => watcher::Event::InitApply(seen(object)),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
    }
}

fn of_node(node: PartialObjectMeta<Node>) -> Seen {
    Seen {
        name: node.metadata.name.unwrap_or_default(),
        annotations: node.metadata.annotations.unwrap_or_default(),
        spec: Spec::default(),
    }
}

fn of_peer(peer: DynamicObject) -> Seen {
    let spec = peer.data.get("spec").cloned().unwrap_or_default();
    Seen {
        name: peer.metadata.name.unwrap_or_default(),
        annotations: peer.metadata.annotations.unwrap_or_default(),
        // The CRD's schema says what it looks like; what does not is nobody's.
        spec: Spec::deserialize(spec).unwrap_or_default(),
    }
}

/// 422 where the feature is off, 400 where the parameter is unknown.
fn is_refusal_to_stream(error: &watcher::Error) -> bool {
    is_code(error, |code| code == 400 || code == 422)
}

/// Whether the API has answered so.
fn is_code(error: &watcher::Error, is: impl Fn(u16) -> bool) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => is(status.code),
        watcher::Error::WatchError(status) => is(status.code),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

fn reason_of(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => explain(error),
        watcher::Error::WatchError(status) => {
            format!("the watch has ended ({}): {}", status.code, status.message)
        }
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}
