//! What the Kubernetes backend decides, without I/O: what the objects of the cluster say of WireGuard keys, and when our own
//! annotation is written. Objects and instants come in; records, facts and writes go out.

mod annotation;
mod bridge;
mod names;
mod objects;
mod pace;
mod publisher;

pub use annotation::{
    AnnotationError, MAX_ANNOTATION, MAX_PEER_ANNOTATION, decode, decode_at, encode, encode_at,
};
pub use bridge::{Bridge, Bridged, Carry, Counts, News, PeerWrite};
pub use names::{DEFAULT_PREFIX, MeshAgent, NameError, Names};
pub use objects::{Change, Facts, MAX_OBJECTS, Object, ObjectName, Objects, Source};
pub use pace::Pace;
pub use publisher::{Publisher, Refusal};
