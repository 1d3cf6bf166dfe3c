//! Annotations of many Nodes, one after another, faster than `kubectl` starts.

use anyhow::Result;
use wice::lab::NetNs;
use wice::signaling::kubernetes::Access;

use crate::Cluster;

/// Writes annotations as the admin.
pub struct Annotator {
    runtime: tokio::runtime::Runtime,
    nodes: kube::Api<k8s_openapi::api::core::v1::Node>,
}

impl Annotator {
    /// A client in the namespace of the API server.
    pub fn new(cluster: &Cluster, ns: &NetNs) -> Result<Self> {
        let access = Access {
            server: Some(cluster.url()),
            ca_file: Some(cluster.ca_file()),
            token_file: Some(cluster.admin_token()?),
            ..Access::default()
        };
        // Its threads are where it is made.
        let runtime = ns.run(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
        })??;
        let client = runtime.block_on(async { access.client().await })?;
        Ok(Self {
            nodes: kube::Api::all(client),
            runtime,
        })
    }

    /// Sets one.
    pub fn set(&self, node: &str, name: &str, value: &str) -> Result<()> {
        let patch = serde_json::json!({"metadata": {"annotations": {name: value}}});
        let (nodes, node) = (self.nodes.clone(), node.to_owned());
        let done = self.runtime.spawn(async move {
            nodes
                .patch_metadata(
                    &node,
                    &kube::api::PatchParams::default(),
                    &kube::api::Patch::Merge(&patch),
                )
                .await
        });
        self.runtime.block_on(done)??;
        Ok(())
    }
}
