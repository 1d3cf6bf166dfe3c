//! The lab: an internet, NATs and nodes in network namespaces of this machine.
//!
//! The internet is a thread that passes packets between TUN devices, with delay and loss; homes are
//! routers with the kernel's own NAT, and nodes on their LANs; servers are real programs. Nothing
//! of the host's network, settings or mounts is touched, and nothing outlives the process: the
//! namespaces are held by its descriptors alone.
//!
//! It needs root, or user namespaces ([`acquire_privilege`]), and the programs that
//! [`check_tools`] names.

mod build;
mod config;
mod daemon;
mod directory;
mod error;
mod mapper;
mod netns;
mod pings;
mod plan;
mod probe;
mod process;
mod proxy;
mod ruleset;
mod servers;
mod switch;
mod tools;
mod truth;
mod tun;
mod world;

pub use config::{
    CarrierConfig, HomeConfig, Ipv6, LabConfig, LanSubnet, MAX_NODES, MAX_PUBLIC_NODES, MAX_SITES,
    NatKind, TcpPolicy, TurnServer,
};
pub use daemon::{EndStatus, INTERFACE, PathStatus, PeerStatus, SIGNAL_PORT};
pub use error::LabError;
pub use mapper::Mapper;
pub use netns::NetNs;
pub use pings::{Ping, Pings};
pub use plan::{SIGNAL, SIGNAL_V6, STUN_2, STUN_2_V6, TURN, TURN_V6};
pub use probe::{
    Discovery, Meeting, Pong, StunServers, binding, discover, ping, punch, round_trip,
};
pub use process::Process;
pub use proxy::PROXY_PORT;
pub use servers::{Ready, STUN_PORT, TURN_REALM, TURN_SECRET, TURNS_PORT, WEB_TLS_PORT};
pub use switch::{Counters, Link};
pub use tools::{
    acquire_privilege, catch_interrupts, check_tools, interrupt, interrupted, run_in_foreground,
};
pub use truth::{Expected, behavior, ground_truth, same_carrier, same_lan};
pub use world::{Lab, Node, tcp_passes};
