//! One annotation of the own Node, and one write of it at a time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ObjectMeta, PartialObjectMeta, Patch, PatchParams};
use kube::core::PartialObjectMetaExt as _;

use super::access::explain;
use super::state::{Publisher, Refusal};

/// An answer that takes longer is none. The API's own limit of a request is 60 s.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// What belongs to one annotation.
pub(super) struct Writer {
    annotation: String,
    /// An apply is its manager's whole set, and what is left out is deleted: one manager a record.
    manager: &'static str,
    /// Whether what another manager has written is taken from it.
    force: bool,
    pub(super) publisher: Publisher,
    write: Option<BoxFuture<'static, Result<(), Failure>>>,
}

/// Why a write failed.
pub(super) struct Failure {
    pub(super) refusal: Refusal,
    conflict: bool,
    pub(super) text: String,
}

/// How a write ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It stands there.
    Written,
    /// Another manager holds it, and nothing was forced.
    Conflict(String),
    /// Not written, for this reason.
    Refused(String),
}

impl Writer {
    pub(super) fn new(
        annotation: String,
        manager: &'static str,
        force: bool,
        seed: [u8; 32],
    ) -> Self {
        Self {
            annotation,
            manager,
            force,
            publisher: Publisher::new(seed),
            write: None,
        }
    }

    /// Begins the write that is due, if any.
    pub(super) fn begin(&mut self, client: &kube::Client, node: &str, now: Instant) {
        let altered = self.publisher.altered();
        if let Some(value) = self.publisher.poll_write(now) {
            let value = value.to_owned();
            if self.publisher.altered() > altered {
                let times = self.publisher.altered();
                tracing::warn!(
                    event = "annotation-altered",
                    annotation = self.annotation,
                    times,
                    "somebody else has removed or altered it: another wice on this node, or a hand"
                );
            }
            let write = apply(
                Api::all(client.clone()),
                node.to_owned(),
                PatchParams {
                    force: self.force,
                    ..PatchParams::apply(self.manager)
                },
                self.annotation.clone(),
                value,
            );
            self.write = Some(write.boxed());
        }
    }

    /// The end of the write that is on its way; never where there is none. Cancel-safe.
    pub(super) async fn done(&mut self) -> Done {
        let Some(write) = &mut self.write else {
            return std::future::pending().await;
        };
        let result = write.await;
        self.write = None;
        let now = Instant::now();
        match result {
            Ok(()) => {
                self.publisher.handle_written(now);
                Done::Written
            }
            Err(Failure {
                refusal,
                conflict,
                text,
            }) => {
                self.publisher.handle_refused(refusal, now);
                if conflict {
                    Done::Conflict(text)
                } else {
                    Done::Refused(text)
                }
            }
        }
    }
}

async fn apply(
    api: Api<PartialObjectMeta<Node>>,
    node: String,
    params: PatchParams,
    annotation: String,
    value: String,
) -> Result<(), Failure> {
    let meta = ObjectMeta {
        annotations: Some(BTreeMap::from([(annotation, value)])),
        ..ObjectMeta::default()
    };
    let patch = Patch::Apply(meta.into_request_partial::<Node>());
    in_time(api.patch(&node, &params, &patch)).await
}

/// One write, to its end.
pub(super) async fn in_time<T>(
    written: impl Future<Output = kube::Result<T>>,
) -> Result<(), Failure> {
    match tokio::time::timeout(WRITE_TIMEOUT, written).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Failure {
            refusal: refusal_of(&error),
            conflict: matches!(&error, kube::Error::Api(status) if status.code == 409),
            text: explain(&error),
        }),
        Err(_) => Err(Failure {
            refusal: Refusal::ForNow,
            conflict: false,
            text: format!(
                "the Kubernetes API did not answer within {} s",
                WRITE_TIMEOUT.as_secs()
            ),
        }),
    }
}

/// What the client did wrong stays wrong; whatever else may pass.
fn refusal_of(error: &kube::Error) -> Refusal {
    let kube::Error::Api(status) = error else {
        return Refusal::ForNow;
    };
    match status.code {
        400..=428 | 430..=499 => Refusal::UntilMended,
        _ => Refusal::ForNow,
    }
}
