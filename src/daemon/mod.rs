//! The daemon: it keeps state, talks to signaling, and tells the packet loop what it learns. In managed
//! mode ([`run`]) it owns the WireGuard interface, in attached mode ([`attach`]) another program does.

#[cfg(feature = "kubernetes")]
mod agent;
mod answers;
mod attached;
mod base;
mod binding;
#[cfg(feature = "kubernetes")]
mod bridge;
pub mod control;
mod interfaces;
mod join;
mod kept;
mod leave;
mod managed;
mod metrics;
mod network;
mod observer;
mod port_mapping;
mod servers;
mod state;
mod transition;

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};
use wice_signaling::protocol::{IpPrefix, ServerAddress, Token};

#[cfg(feature = "kubernetes")]
pub use agent::agent;
pub use attached::{
    ATTACHED_FOLDER, AttachError, Detached, attach, detach, is_detached, stay_detached,
};
pub use binding::Direct;
#[cfg(feature = "kubernetes")]
pub use bridge::{BridgeConfig, bridge};
pub(crate) use interfaces::{Ports, host_addresses};
pub use join::JoinError;
pub use leave::{LeaveError, Leaving};
pub use managed::{KernelRefusal, WireGuardKind, remove_left, run};
pub use port_mapping::PortMapping;
pub use state::StateError;
#[doc(hidden)]
pub use state::parse_anything as parse_state;

/// The default MTU: 1,500 less IPv6, UDP, WireGuard and, for a relayed path, ChannelData, and less
/// eight bytes for PPPoE on the way, rounded down to a multiple of 16 as WireGuard pads.
pub const DEFAULT_MTU: u32 = 1392;
/// The default port of the shared sockets.
pub const DEFAULT_PORT: u16 = 51821;

/// How the daemon runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network to join; none to go on with the one of the state folder.
    pub token: Option<Token>,
    /// The interface to make, or to attach to.
    pub interface: String,
    /// The node's name for people.
    pub name: String,
    /// Nobody gave the name, it is the host's: one that was given at an earlier start goes before it.
    pub name_is_default: bool,
    /// The port of the shared sockets; 0 takes any.
    pub port: u16,
    /// Bytes of the largest inner packet.
    pub mtu: u32,
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// Where the control socket is.
    pub run_dir: PathBuf,
    /// STUN servers beside those that signaling tells.
    pub stun: Vec<ServerAddress>,
    /// TURN servers of one's own, with credentials.
    pub turn: Vec<StaticRelay>,
    /// Routes that are taken from peers without the admin key's grant.
    pub accept_routes: Vec<IpPrefix>,
    /// Routes that this node announces.
    pub advertise_routes: Vec<IpPrefix>,
    /// An HTTP proxy for signaling and for relays over TCP and TLS.
    pub proxy: Option<String>,
    /// More authorities to trust, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Whether routers are asked to forward our port.
    pub port_mapping: PortMapping,
    /// Where Prometheus metrics are served; none for nowhere.
    pub metrics: Option<SocketAddr>,
    /// Managed mode: whose WireGuard.
    pub wireguard: WireGuardKind,
    /// Attached mode: the interface's private key, where WireGuard does not tell it.
    pub private_key_file: Option<PathBuf>,
    /// Attached mode: how direct paths are bound.
    pub direct: Direct,
}

impl Settings {
    /// The control socket.
    fn socket(&self) -> PathBuf {
        control::socket(&self.run_dir, &self.interface)
    }
}

/// A TURN server with credentials that do not come from signaling.
#[derive(Clone, Debug)]
pub struct StaticRelay {
    /// Where it is.
    pub address: ServerAddress,
    /// Long-term username.
    pub username: String,
    /// Long-term password.
    pub password: String,
}

/// Why a daemon ends whose packet loop has.
const LOOP_ENDED: &str = "the packet loop has ended: see the log above";

/// Who asked the daemon to end: `wice down` or `wice detach`, over the control socket.
const ASKED: &str = "asked";
/// A signal: SIGTERM or SIGINT.
const SIGNAL: &str = "signal";

/// One line for the end, as for the start.
fn log_stopping(reason: &str) {
    tracing::info!(event = "stopping", reason);
}

/// What tells the process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for either; cancel-safe.
    async fn stop(&mut self) -> Stopped {
        tokio::select! {
            _ = self.terminate.recv() => Stopped::Terminated,
            _ = self.interrupt.recv() => Stopped::Interrupted,
        }
    }
}

/// By which signal the process was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// A service manager's: the daemon may be back in a moment.
    Terminated,
    /// Somebody's at the terminal, who wants it gone.
    Interrupted,
}

/// Bytes from the system's random number generator.
fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    rand_core::TryRngCore::try_fill_bytes(&mut rand_core::OsRng, &mut bytes)
        .map_err(|error| anyhow::anyhow!("no random numbers from the system: {error}"))?;
    Ok(bytes)
}
