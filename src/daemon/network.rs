//! Where records go, and who may read them: a signaling service that this node has joined by a token, or the annotations of a
//! cluster, which needs none.

use bytes::Bytes;
use wice_signaling::protocol::{
    JoinReceipt, OpenError, PrivateKey, PublicKey, RecordKind, SignalUrl,
};

use super::join::{self, Membership};
use super::state::{State, StateError};
use super::{Settings, random};
use crate::io::dial::SocketHook;
use crate::signaling::{Signaling, WebSocketBackend, WebSocketConfig};

/// What a node's records go through.
pub(super) enum Network {
    /// A service that is not trusted: records are sealed under the network's key.
    Service(Box<Membership>),
    /// A cluster: who may read its Nodes may read where they are.
    #[cfg(feature = "kubernetes")]
    Cluster {
        /// The own Node.
        node: String,
        /// The backend, until it is started.
        backend: Option<Box<crate::signaling::kubernetes::KubernetesBackend>>,
    },
}

impl Network {
    /// For people.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Service(membership) => &membership.name,
            #[cfg(feature = "kubernetes")]
            Self::Cluster { .. } => "kubernetes",
        }
    }

    /// Where the others' records come from, for people.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Service(membership) => membership.url.to_string(),
            #[cfg(feature = "kubernetes")]
            Self::Cluster { node, .. } => format!("Kubernetes, as the Node {node}"),
        }
    }

    /// The service, if it is one: it answers STUN as well.
    pub(super) fn url(&self) -> Option<&SignalUrl> {
        match self {
            Self::Service(membership) => Some(&membership.url),
            #[cfg(feature = "kubernetes")]
            Self::Cluster { .. } => None,
        }
    }

    /// The encoded proof that goes into the advert.
    pub(super) fn proof(&self) -> Vec<u8> {
        match self {
            Self::Service(membership) => membership.proof.clone(),
            #[cfg(feature = "kubernetes")]
            Self::Cluster { .. } => Vec::new(),
        }
    }

    /// Whether a refusal means that this node was never in.
    pub(super) fn is_newcomer(&self, settings: &Settings) -> bool {
        match self {
            Self::Service(membership) => settings.token.is_some() && membership.receipt.is_none(),
            #[cfg(feature = "kubernetes")]
            Self::Cluster { .. } => false,
        }
    }

    /// Keeps what lets this node in after its invite has expired.
    pub(super) fn keep_receipt(
        &mut self,
        state: &State,
        receipt: JoinReceipt,
    ) -> Result<(), StateError> {
        match self {
            Self::Service(membership) => {
                membership.receipt = Some(receipt);
                join::keep_receipt(state, receipt)
            }
            #[cfg(feature = "kubernetes")]
            Self::Cluster { .. } => Ok(()),
        }
    }

    /// A record of ours as it is published.
    pub(super) fn seal(
        &self,
        key: &PublicKey,
        kind: RecordKind,
        record: &[u8],
    ) -> anyhow::Result<Bytes> {
        match self {
            Self::Service(membership) => {
                let Membership {
                    network,
                    network_key,
                    ..
                } = membership.as_ref();
                Ok(network_key
                    .seal(network, key, kind, &random()?, record)?
                    .into())
            }
            #[cfg(feature = "kubernetes")]
            Self::Cluster { .. } => Ok(Bytes::copy_from_slice(record)),
        }
    }

    /// A record as it was published.
    pub(super) fn open(
        &self,
        key: &PublicKey,
        kind: RecordKind,
        sealed: Vec<u8>,
    ) -> Result<Vec<u8>, OpenError> {
        match self {
            Self::Service(membership) => {
                let network = &membership.network;
                membership.network_key.open(network, key, kind, &sealed)
            }
            #[cfg(feature = "kubernetes")]
            Self::Cluster { .. } => Ok(sealed),
        }
    }

    /// Starts the client.
    pub(super) fn start(
        &mut self,
        settings: &Settings,
        key: &PrivateKey,
        socket_hook: SocketHook,
    ) -> anyhow::Result<Signaling> {
        match self {
            Self::Service(membership) => {
                Ok(Signaling::start(WebSocketBackend::new(WebSocketConfig {
                    url: membership.url.clone(),
                    pin: membership.pin,
                    network: membership.network,
                    key: PrivateKey::from_bytes(*key.expose_secret()),
                    membership: membership.proof.clone(),
                    receipt: membership.receipt,
                    proxy: settings.proxy.as_deref().map(str::parse).transpose()?,
                    ca_file: settings.ca_file.clone(),
                    socket_hook: Some(socket_hook),
                })))
            }
            #[cfg(feature = "kubernetes")]
            Self::Cluster { backend, .. } => match backend.take() {
                Some(backend) => Ok(Signaling::start(
                    backend.with_socket_hook(Some(socket_hook)),
                )),
                None => anyhow::bail!("the Kubernetes backend was started before"),
            },
        }
    }
}
