//! The way to the API server.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::client::retry::RetryPolicy;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

use super::underlay::Underlay;
use crate::io::dial::SocketHook;

/// A connection that says nothing for so long is dead: a watch has a bookmark about every 60 s.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// How the API server is reached. Nothing set is what a pod has by itself: the Service's address and the ServiceAccount's files,
/// which are read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Another address, like `https://127.0.0.1:6443`: that of the Service may lead through the mesh.
    pub server: Option<String>,
    /// A kubeconfig of which nothing but the address counts: k3s's kubelet has one with the node's own balancer.
    pub server_from: Option<PathBuf>,
    /// Authorities for the API server's certificate, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The bearer token.
    pub token_file: Option<PathBuf>,
    /// A kubeconfig instead of all of these.
    pub kubeconfig: Option<PathBuf>,
    /// The mesh's interface, into which no connection may go.
    pub mesh: Option<String>,
}

/// The API server cannot be reached this way at all.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Not a pod, and nothing else was given.
    #[error(
        "this is not a pod with a ServiceAccount: {0}\n  run wice agent as manifests/ does, or give --kubeconfig FILE"
    )]
    NoPod(String),
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {}: {why}\n  try it with kubectl --kubeconfig", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The address is none.
    #[error("{0:?} is no address of an API server\n  it looks like https://127.0.0.1:6443")]
    Server(String),
    /// No client can be made of it.
    #[error("no client for the Kubernetes API: {0}")]
    Client(String),
}

impl Access {
    /// A client by it. Files are read, nothing is sent.
    pub async fn client(&self) -> Result<kube::Client, AccessError> {
        self.client_by(None).await
    }

    /// The same, whose sockets are prepared by `hook` before they connect.
    pub(super) async fn client_by(
        &self,
        hook: Option<SocketHook>,
    ) -> Result<kube::Client, AccessError> {
        let mut config = self.config().await?;
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        let mesh = self.mesh.clone();
        // A proxy is somebody's own choice of a way.
        let client = if config.proxy_url.is_some() {
            kube::Client::try_from(config)
        } else {
            client_of(&config, Underlay { mesh, hook })
        };
        client.map_err(|error| AccessError::Client(explain(&error)))
    }

    async fn config(&self) -> Result<kube::Config, AccessError> {
        if let Some(path) = &self.kubeconfig {
            let bad = |why: String| AccessError::Kubeconfig {
                path: path.clone(),
                why,
            };
            let kubeconfig = Kubeconfig::read_from(path).map_err(|error| bad(error.to_string()))?;
            let options = KubeConfigOptions::default();
            return kube::Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|error| bad(error.to_string()));
        }
        let server = match (&self.server, &self.server_from) {
            (Some(server), _) => Some(server.clone()),
            (None, Some(path)) => Some(server_of(path)?),
            (None, None) => None,
        };
        let server = server.map(|text| {
            let uri = text.parse::<axum::http::Uri>().ok();
            uri.filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some())
                .ok_or(AccessError::Server(text))
        });
        let server = server.transpose()?;
        let mut config = match (server, &self.ca_file, &self.token_file) {
            (Some(server), Some(_), Some(_)) => kube::Config::new(server),
            (server, _, _) => {
                let mut config = kube::Config::incluster()
                    .map_err(|error| AccessError::NoPod(error.to_string()))?;
                config.cluster_url = server.unwrap_or(config.cluster_url);
                config
            }
        };
        if let Some(path) = &self.ca_file {
            config.root_cert_file = Some(path.clone());
        }
        if let Some(path) = &self.token_file {
            config.auth_info.token_file = Some(path.display().to_string());
        }
        Ok(config)
    }
}

/// What [`kube::Client`] is made of by itself, with our own connections.
fn client_of(config: &kube::Config, underlay: Underlay) -> kube::Result<kube::Client> {
    let tls = config.rustls_https_connector_with_connector(underlay)?;
    let mut connector = TimeoutConnector::new(tls);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(
            hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector),
        );
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

/// The address of the first cluster that it names.
fn server_of(path: &std::path::Path) -> Result<String, AccessError> {
    let bad = |why: String| AccessError::Kubeconfig {
        path: path.to_owned(),
        why,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| bad(error.to_string()))?;
    let clusters = kubeconfig.clusters.into_iter();
    let mut servers = clusters.filter_map(|named| named.cluster?.server);
    servers
        .next()
        .ok_or_else(|| bad("it names no server".to_owned()))
}

/// What happened, why, and what to do next.
pub(super) fn explain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let hint = match status.code {
            401 => {
                "\n  the ServiceAccount's token is not taken: see that the pod has one, and that the API server is this cluster's"
            }
            403 => {
                "\n  give the ServiceAccount this verb: kubectl apply -k manifests/ brings the ClusterRole, or the admission policy names what it forbids"
            }
            404 => {
                "\n  see that the Node's name is right (--node-name, NODE_NAME) and that Kilo's CRDs are there"
            }
            _ => "",
        };
        return format!(
            "the Kubernetes API refuses ({} {}): {}{hint}",
            status.code, status.reason, status.message
        );
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    let hint = if text.contains("UnknownIssuer") {
        "\n  its certificate is from an authority that is not known here: --api-ca-file FILE"
    } else {
        ""
    };
    format!("the Kubernetes API cannot be reached: {text}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, message: &str) -> kube::Error {
        let status = kube::core::Status::failure(message, "Forbidden").with_code(code);
        kube::Error::Api(status.boxed())
    }

    #[test]
    fn a_missing_verb_is_named_with_what_to_do() {
        let message = r#"nodes is forbidden: User "system:serviceaccount:wice:wice" cannot list resource "nodes" in API group "" at the cluster scope"#;
        let text = explain(&refused(403, message));
        assert!(text.contains(r#"cannot list resource "nodes""#) && text.contains("apply -k"));
    }

    #[test]
    fn the_server_of_a_kubelets_kubeconfig_is_found() {
        let path = std::env::temp_dir().join(format!("wice-kubeconfig-{}", std::process::id()));
        let text = "apiVersion: v1\nclusters:\n- cluster:\n    server: https://127.0.0.1:6444\n    certificate-authority: /nowhere\n  name: local\n";
        std::fs::write(&path, text).unwrap();
        assert_eq!(server_of(&path).unwrap(), "https://127.0.0.1:6444");
        std::fs::write(&path, "apiVersion: v1\n").unwrap();
        let error = server_of(&path).unwrap_err().to_string();
        assert!(error.contains("names no server"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_told_before_anything_is_sent() {
        let server = Access {
            server: Some("127.0.0.1:6443".to_owned()),
            ..Access::default()
        };
        let error = server.client().await.err().unwrap().to_string();
        assert!(error.contains("https://"), "{error}");
        let kubeconfig = Access {
            kubeconfig: Some("/nonexistent/config".into()),
            ..Access::default()
        };
        let error = kubeconfig.client().await.err().unwrap().to_string();
        assert!(
            error.contains("/nonexistent/config") && error.contains("kubectl"),
            "{error}"
        );
    }
}
