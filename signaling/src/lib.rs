//! wice's signaling: the protocol (`protocol`, no I/O: keys, records, membership, frames) and,
//! behind the feature `server`, the service that carries sealed records between proven nodes.

pub mod protocol;
#[cfg(feature = "server")]
pub mod server;
