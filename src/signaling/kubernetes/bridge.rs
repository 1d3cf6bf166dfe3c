//! The cluster's end of the bridge: watches of Nodes and Peers, and one write at a time.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::backend::{Session, next_of, session};
use super::state::{PeerWrite, Refusal, Source};
use super::watched::{PEER_GROUP, PEER_KIND, PEER_VERSION, Told, peers};
use super::writer::{Failure, in_time};

/// The field manager of adverts at Peers.
const MANAGER: &str = "wice-bridge";

/// What happens there.
#[derive(Debug)]
pub(crate) enum Happened {
    /// A watch tells.
    Told(Source, Told),
    /// The write is done.
    Written,
    /// It has failed.
    NotWritten {
        /// Whether a later try may do.
        refusal: Refusal,
        /// For people.
        reason: String,
    },
}

/// Watches, and a write.
pub(crate) struct ClusterEnd {
    client: kube::Client,
    session: Session,
    annotation: String,
    write: Option<BoxFuture<'static, Result<(), Failure>>>,
}

impl ClusterEnd {
    /// Begins when it is first asked. `annotation` is written to Peers. Fails where the system gives no random bytes.
    pub(crate) async fn new(
        client: kube::Client,
        annotation: String,
    ) -> Result<Self, rand_core::OsError> {
        Ok(Self {
            session: session(&client, true).await?,
            client,
            annotation,
            write: None,
        })
    }

    /// The next thing that happens. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Happened {
        let Session { nodes, peers } = &mut self.session;
        tokio::select! {
            told = nodes.next() => Happened::Told(Source::Nodes, told),
            told = next_of(peers) => Happened::Told(Source::Peers, told),
            done = done_of(&mut self.write) => {
                self.write = None;
                match done {
                    Ok(()) => Happened::Written,
                    Err(Failure { refusal, text, .. }) => Happened::NotWritten {
                        refusal,
                        reason: text,
                    },
                }
            }
        }
    }

    /// Begins a write. The one before has ended.
    pub(crate) fn write(&mut self, write: PeerWrite) {
        let (patch, params) = patch(&self.annotation, write.value);
        let api = peers(&self.client);
        let written = async move {
            let written = api.patch_metadata(&write.peer, &params, &patch);
            in_time(written).await
        };
        self.write = Some(written.boxed());
    }
}

/// An apply of the one annotation. It is taken away whoever has written it.
fn patch(annotation: &str, value: Option<String>) -> (Patch<Value>, PatchParams) {
    let is_removal = value.is_none();
    let metadata = json!({"annotations": {annotation: value}});
    if is_removal {
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        return (Patch::Merge(json!({"metadata": metadata})), params);
    }
    let body = json!({
        "apiVersion": format!("{PEER_GROUP}/{PEER_VERSION}"), "kind": PEER_KIND, "metadata": metadata,
    });
    (Patch::Apply(body), PatchParams::apply(MANAGER).force())
}

async fn done_of(
    write: &mut Option<BoxFuture<'static, Result<(), Failure>>>,
) -> Result<(), Failure> {
    match write {
        Some(write) => write.await,
        None => std::future::pending().await,
    }
}
