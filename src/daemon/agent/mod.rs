//! The daemon beside a mesh agent in a Kubernetes cluster: attached mode, with the cluster for its signaling service.

mod advice;

use tokio::sync::watch;

use super::Settings;
use super::attached::{Guidance, Meet, run};
use super::network::Network;
use crate::signaling::kubernetes::{KubernetesBackend, KubernetesConfig};
use advice::Adviser;

/// Attaches to the mesh agent's interface and runs until told to stop. Endpoints and annotations stay as they are then: it may be an
/// upgrade.
pub async fn agent(settings: Settings, config: KubernetesConfig) -> anyhow::Result<()> {
    run(settings, Meet::Cluster(Box::new(config))).await
}

/// The cluster's side of a daemon: where its records go, and what is heeded of the rest.
pub(super) fn meet(
    config: &KubernetesConfig,
) -> anyhow::Result<(Network, watch::Receiver<Guidance>)> {
    let (backend, mut view) = KubernetesBackend::new(config.clone())
        .map_err(|error| anyhow::anyhow!("no random numbers from the system: {error}"))?;
    let network = Network::Cluster {
        node: config.node.clone(),
        backend: Some(Box::new(backend)),
    };
    let mut adviser = Adviser::new(&config.node, config.names.keepalive.is_some());
    let (sender, receiver) = watch::channel(adviser.guidance(&view.borrow()));
    // It ends with the backend, which ends with the daemon.
    tokio::spawn(async move {
        while view.changed().await.is_ok() {
            let guidance = adviser.guidance(&view.borrow_and_update());
            sender.send_if_modified(|before| {
                let changed = *before != guidance;
                *before = guidance;
                changed
            });
        }
    });
    Ok((network, receiver))
}
