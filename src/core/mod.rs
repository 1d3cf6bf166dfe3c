//! Sans-IO: no sockets, clock, RNG or environment. Time and seeds are passed in.

pub mod binding;
pub mod credentials;
pub mod gather;
pub mod ice;
pub mod mtu;
pub mod node;
pub mod overlay;
pub mod policy;
pub mod portmap;
pub mod reason;
pub mod seeking;
pub mod slots;
pub mod stun;
pub mod timing;
pub mod turn;
