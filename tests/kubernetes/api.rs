//! As much of a Kubernetes API server as the backend and the bridge ask for: list, watch, get and server-side apply of Nodes and of
//! Kilo's Peers, with revisions, field managers and compaction. It says nothing of what a real one does beyond.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::watch;

const MAX_BODY: usize = 1 << 20;

#[derive(Default)]
struct State {
    revision: u64,
    /// Watches from before it get 410 Gone.
    compacted: u64,
    objects: BTreeMap<(Kind, String), Object>,
    log: Vec<(u64, Kind, &'static str, Value)>,
    requests: Vec<String>,
    refuse: Option<(u16, String)>,
    minor: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Node,
    Peer,
}

impl Kind {
    /// Of a path, with the name if it is of one object.
    fn of(path: &str) -> Option<(Self, Option<&str>)> {
        let kinds = [
            (Self::Node, "/api/v1/nodes"),
            (Self::Peer, "/apis/kilo.squat.ai/v1alpha1/peers"),
        ];
        kinds.into_iter().find_map(|(kind, at)| {
            let rest = path.strip_prefix(at)?;
            match rest.strip_prefix('/') {
                Some(name) => Some((kind, Some(name))),
                None if rest.is_empty() => Some((kind, None)),
                None => None,
            }
        })
    }
}

#[derive(Default, Clone)]
struct Object {
    annotations: BTreeMap<String, String>,
    managers: BTreeMap<String, String>,
    /// Of a Peer.
    public_key: Option<String>,
}

/// A running one. Dropping it ends it.
pub struct Api {
    state: Arc<Mutex<State>>,
    /// Rises when there is something for watches; the second breaks them all.
    news: watch::Sender<(u64, u64)>,
    pub kubeconfig: std::path::PathBuf,
    server: tokio::task::JoinHandle<()>,
}

impl Api {
    pub async fn start(name: &str, minor: &'static str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let kubeconfig =
            std::env::temp_dir().join(format!("wice-kube-{name}-{}", std::process::id()));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters:\n- name: x\n  cluster: {{server: 'http://{address}'}}\nusers:\n- name: x\n  user: {{}}\ncontexts:\n- name: x\n  context: {{cluster: x, user: x}}\n"
        );
        std::fs::write(&kubeconfig, text).unwrap();
        let state = Arc::new(Mutex::new(State {
            minor,
            ..State::default()
        }));
        let (news, _) = watch::channel((0, 0));
        let (shared, sender) = (Arc::clone(&state), news.clone());
        let router = Router::new().fallback(move |request: Request| {
            let (state, news) = (Arc::clone(&shared), sender.clone());
            async move { answer(state, news, request).await }
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            state,
            news,
            kubeconfig,
            server,
        }
    }

    /// Sets or removes annotations, by another manager.
    pub fn annotate(&self, node: &str, entries: &[(&str, Option<&str>)]) {
        self.with(|state| {
            let at = (Kind::Node, node.to_owned());
            let known = state.objects.contains_key(&at);
            let kept = state.objects.entry(at).or_default();
            for (key, value) in entries {
                kept.managers.insert((*key).to_owned(), "other".to_owned());
                match value {
                    Some(value) => kept
                        .annotations
                        .insert((*key).to_owned(), (*value).to_owned()),
                    None => kept.annotations.remove(*key),
                };
            }
            state.log(Kind::Node, node, if known { "MODIFIED" } else { "ADDED" });
        });
        self.tell();
    }

    /// Makes a Peer of this key.
    pub fn peer(&self, name: &str, key: &str) {
        self.with(|state| {
            let at = (Kind::Peer, name.to_owned());
            state.objects.entry(at).or_default().public_key = Some(key.to_owned());
            state.log(Kind::Peer, name, "ADDED");
        });
        self.tell();
    }

    pub fn delete(&self, node: &str) {
        self.with(|state| {
            state.log(Kind::Node, node, "DELETED");
            state.objects.remove(&(Kind::Node, node.to_owned()));
        });
        self.tell();
    }

    /// Forgets the past, and breaks all watches: they come back to 410 Gone.
    pub fn compact(&self) {
        self.with(|state| {
            state.revision += 1;
            state.compacted = state.revision;
            state.log.clear();
        });
        self.news.send_modify(|(_, broken)| *broken += 1);
    }

    /// Answers everything with this, and breaks all watches.
    pub fn refuse(&self, refusal: Option<(u16, &str)>) {
        self.with(|state| state.refuse = refusal.map(|(code, text)| (code, text.to_owned())));
        self.news.send_modify(|(_, broken)| *broken += 1);
    }

    pub fn annotation(&self, node: &str, key: &str) -> Option<String> {
        self.annotation_at(Kind::Node, node, key)
    }

    pub fn peer_annotation(&self, peer: &str, key: &str) -> Option<String> {
        self.annotation_at(Kind::Peer, peer, key)
    }

    fn annotation_at(&self, kind: Kind, name: &str, key: &str) -> Option<String> {
        let at = (kind, name.to_owned());
        self.with(|state| state.objects.get(&at)?.annotations.get(key).cloned())
    }

    /// What was asked with this method, each as `METHOD path?query accept`.
    pub fn requests(&self, method: &str) -> Vec<String> {
        self.with(|state| {
            let of = |request: &&String| request.starts_with(method);
            state.requests.iter().filter(of).cloned().collect()
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    fn tell(&self) {
        self.news.send_modify(|(news, _)| *news += 1);
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

impl State {
    fn object(&self, kind: Kind, name: &str) -> Value {
        let at = (kind, name.to_owned());
        let object = self.objects.get(&at).cloned().unwrap_or_default();
        let metadata = json!({"name": name, "resourceVersion": self.revision.to_string(),
            "annotations": object.annotations});
        match kind {
            Kind::Node => json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": metadata}),
            Kind::Peer => json!({"apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer",
                "metadata": metadata, "spec": {"publicKey": object.public_key,
                "allowedIPs": ["10.5.0.1/32"], "persistentKeepalive": 25}}),
        }
    }

    fn of(&self, kind: Kind) -> Vec<Value> {
        let names = self.objects.keys().filter(|(of, _)| *of == kind);
        names.map(|(_, name)| self.object(kind, name)).collect()
    }

    fn log(&mut self, kind: Kind, name: &str, what: &'static str) {
        self.revision += 1;
        let object = self.object(kind, name);
        self.log.push((self.revision, kind, what, object));
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    news: watch::Sender<(u64, u64)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query: BTreeMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let accept = parts
        .headers
        .get("accept")
        .map(|value| value.to_str().unwrap());
    let line = format!(
        "{} {} {}",
        parts.method,
        parts.uri,
        accept.unwrap_or_default()
    );
    let body = to_bytes(body, MAX_BODY).await.unwrap();
    {
        let mut state = state.lock().unwrap();
        state.requests.push(line);
        if let Some((code, text)) = &state.refuse {
            return status(*code, text);
        }
    }
    let watching = query.get("watch").is_some_and(|watch| watch == "true");
    match (parts.method, path.as_str(), Kind::of(&path)) {
        (Method::GET, "/version", _) => {
            let minor = state.lock().unwrap().minor;
            ok(
                &json!({"major": "1", "minor": minor, "gitVersion": "v1", "gitCommit": "", "gitTreeState": "",
                "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
            )
        }
        (Method::GET, _, Some((kind, None))) if watching => watched(kind, &state, &news, &query),
        (Method::GET, _, Some((kind, None))) => {
            let state = state.lock().unwrap();
            let items = state.of(kind);
            let (version, list) = match kind {
                Kind::Node => ("meta.k8s.io/v1", "PartialObjectMetadataList"),
                Kind::Peer => ("kilo.squat.ai/v1alpha1", "PeerList"),
            };
            ok(&json!({"apiVersion": version, "kind": list,
                "metadata": {"resourceVersion": state.revision.to_string()}, "items": items}))
        }
        (Method::GET, _, Some((Kind::Node, Some(name)))) => {
            let mut object = state.lock().unwrap().object(Kind::Node, name);
            object["apiVersion"] = "v1".into();
            object["kind"] = "Node".into();
            object["spec"] = json!({"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"]});
            ok(&object)
        }
        (Method::PATCH, _, Some((kind, Some(name)))) => {
            let at = (kind, name.to_owned());
            let answer = apply(&mut state.lock().unwrap(), at, &query, &body);
            news.send_modify(|(news, _)| *news += 1);
            answer
        }
        _ => status(404, "the server could not find the requested resource"),
    }
}

/// Server-side apply of annotations, or a merge of them, in which null takes one away.
fn apply(
    state: &mut State,
    at: (Kind, String),
    query: &BTreeMap<String, String>,
    body: &Bytes,
) -> Response {
    let patch: Value = serde_json::from_slice(body).unwrap();
    let manager = query["fieldManager"].clone();
    let force = query.get("force").is_some_and(|force| force == "true");
    let Some(node) = state.objects.get_mut(&at) else {
        return status(403, "cannot create");
    };
    let meta = patch["metadata"].as_object().unwrap();
    let members: Vec<&String> = meta.keys().collect();
    assert_eq!(members, ["annotations"], "metadata of annotations only");
    let before = node.annotations.clone();
    for (key, value) in meta["annotations"].as_object().unwrap() {
        let Some(value) = value.as_str() else {
            node.annotations.remove(key);
            node.managers.remove(key);
            continue;
        };
        let theirs = node
            .managers
            .get(key)
            .is_some_and(|owner| *owner != manager);
        let other = node
            .annotations
            .get(key)
            .is_some_and(|known| known != value);
        if theirs && other && !force {
            return status(409, "Apply failed with 1 conflict");
        }
        node.managers.insert(key.clone(), manager.clone());
        node.annotations.insert(key.clone(), value.to_owned());
    }
    if node.annotations != before {
        state.log(at.0, &at.1, "MODIFIED");
    }
    ok(&state.object(at.0, &at.1))
}

fn watched(
    kind: Kind,
    state: &Arc<Mutex<State>>,
    news: &watch::Sender<(u64, u64)>,
    query: &BTreeMap<String, String>,
) -> Response {
    let initial = query
        .get("sendInitialEvents")
        .is_some_and(|send| send == "true");
    let mut from: u64 = query
        .get("resourceVersion")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut first = Vec::new();
    {
        let state = state.lock().unwrap();
        if initial {
            for object in state.of(kind) {
                first.push(json!({"type": "ADDED", "object": object}));
            }
            from = state.revision;
            let (version, name) = match kind {
                Kind::Node => ("meta.k8s.io/v1", "PartialObjectMetadata"),
                Kind::Peer => ("kilo.squat.ai/v1alpha1", "Peer"),
            };
            first.push(json!({"type": "BOOKMARK", "object": {"apiVersion": version,
                "kind": name, "metadata": {"name": "", "resourceVersion": from.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"}}}}));
        } else if from < state.compacted {
            first.push(json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1",
                "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410}}));
        }
    }
    let state = Arc::clone(state);
    let news = news.subscribe();
    let broken = news.borrow().1;
    let stream = futures_util::stream::unfold(
        (from, first, news),
        move |(mut from, mut first, mut news)| {
            let state = Arc::clone(&state);
            async move {
                loop {
                    if !first.is_empty() {
                        let text: String =
                            first.drain(..).map(|event| format!("{event}\n")).collect();
                        return Some((Ok::<_, std::io::Error>(text), (from, first, news)));
                    }
                    if news.borrow_and_update().1 != broken {
                        return None;
                    }
                    {
                        let state = state.lock().unwrap();
                        for (revision, of, what, object) in &state.log {
                            if *revision > from {
                                from = *revision;
                                if *of == kind {
                                    first.push(json!({"type": what, "object": object}));
                                }
                            }
                        }
                    }
                    if first.is_empty() && news.changed().await.is_err() {
                        return None;
                    }
                }
            }
        },
    );
    Body::from_stream(stream).into_response()
}

fn ok(value: &Value) -> Response {
    let body = Body::from(value.to_string());
    ([("content-type", "application/json")], body).into_response()
}

fn status(code: u16, message: &str) -> Response {
    let reason = if code == 403 { "Forbidden" } else { "Failure" };
    let value = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    let code = StatusCode::from_u16(code).unwrap();
    (
        code,
        [("content-type", "application/json")],
        value.to_string(),
    )
        .into_response()
}
