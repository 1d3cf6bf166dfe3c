//! Signaling by annotations in a Kubernetes cluster: each node applies its advert to its own Node, and watches the metadata of
//! all. Adverts stand there in the clear, as a mesh agent's endpoints do.
//!
//! It touches nothing else of the Node: server-side apply with one field manager a record, metadata only.

mod access;
mod backend;
mod bridge;
pub mod state;
mod underlay;
mod view;
mod watched;
mod writer;

pub use access::{Access, AccessError};
pub use backend::{KubernetesBackend, KubernetesConfig};
pub(crate) use bridge::{ClusterEnd, Happened};
pub use view::{ClusterView, OwnNode};
pub(crate) use watched::Told;
