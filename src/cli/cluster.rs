//! How commands that run in a Kubernetes cluster reach it, and what annotations are called there.

use std::path::PathBuf;

use clap::Args;

use super::Usage;
use crate::signaling::kubernetes::Access;
use crate::signaling::kubernetes::state::Names;

/// The way to the API server.
#[derive(Args, Debug)]
pub(super) struct ApiArgs {
    /// The API server, where the Service's address leads through the mesh, like https://127.0.0.1:6443 [default: the pod's].
    #[arg(long, value_name = "URL", env = "WICE_API_SERVER")]
    api_server: Option<String>,
    /// A kubeconfig whose server is the API server, and of which nothing else counts (k3s: agent/kubelet.kubeconfig).
    #[arg(
        long,
        value_name = "FILE",
        env = "WICE_API_SERVER_FROM",
        conflicts_with = "api_server"
    )]
    api_server_from: Option<PathBuf>,
    /// Authorities for the API server's certificate, in PEM [default: the ServiceAccount's].
    #[arg(long, value_name = "FILE", env = "WICE_API_CA_FILE")]
    api_ca_file: Option<PathBuf>,
    /// The token for the API server [default: the ServiceAccount's].
    #[arg(long, value_name = "FILE", env = "WICE_API_TOKEN_FILE")]
    api_token_file: Option<PathBuf>,
    /// A kubeconfig instead of the pod's ServiceAccount.
    #[arg(long, value_name = "FILE", env = "WICE_KUBECONFIG", conflicts_with_all = ["api_server", "api_server_from", "api_ca_file", "api_token_file"])]
    kubeconfig: Option<PathBuf>,
}

impl ApiArgs {
    /// `mesh` is the interface that connections are to stay out of.
    pub(super) fn access(&self, mesh: Option<String>) -> Access {
        Access {
            server: self.api_server.clone(),
            server_from: self.api_server_from.clone(),
            ca_file: self.api_ca_file.clone(),
            token_file: self.api_token_file.clone(),
            kubeconfig: self.kubeconfig.clone(),
            mesh,
        }
    }
}

/// What annotations are called.
#[derive(Args, Debug)]
pub(super) struct AnnotationArgs {
    /// The prefix of wice's own annotations [default: wice.riasc.eu].
    #[arg(long, value_name = "DOMAIN", env = "WICE_ANNOTATION_PREFIX")]
    annotation_prefix: Option<String>,
    /// The annotation with a Node's WireGuard key [default: the mesh agent's].
    #[arg(long, value_name = "ANNOTATION", env = "WICE_KEY_ANNOTATION")]
    key_annotation: Option<String>,
    /// The annotation with a Node's address in the overlay [default: the mesh agent's].
    #[arg(long, value_name = "ANNOTATION", env = "WICE_ADDRESS_ANNOTATION")]
    address_annotation: Option<String>,
}

impl AnnotationArgs {
    /// Over these.
    pub(super) fn names(&self, defaults: Names) -> anyhow::Result<Names> {
        let or = |own: &Option<String>, default: String| own.clone().unwrap_or(default);
        let names = Names {
            prefix: or(&self.annotation_prefix, defaults.prefix),
            key: or(&self.key_annotation, defaults.key),
            wireguard_ip: or(&self.address_annotation, defaults.wireguard_ip),
            keepalive: defaults.keepalive,
            peers: defaults.peers,
        };
        names.check().map_err(|error| Usage(error.to_string()))?;
        Ok(names)
    }
}
