//! A WireGuard interface that another program owns: what it says of itself, and the one thing that
//! may be changed on it, the endpoint of a peer that it has. Nothing here adds, removes or replaces.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wice_signaling::protocol::{PrivateKey, PublicKey};

use super::IpPrefix;
use super::kernel::Kernel;
use super::uapi::Uapi;

/// Where userspace implementations have their sockets: `NAME.sock`, as `wg` looks for them.
pub const UAPI_DIR: &str = "/var/run/wireguard";

/// Peers of one interface that are read; a node of wice keeps no more.
pub const MAX_PEERS: usize = 4096;
/// Allowed IPs of one peer that are kept; they are for people.
pub const MAX_ALLOWED_IPS: usize = 64;

/// A WireGuard interface as it is now.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its key, where the implementation tells it.
    pub private_key: Option<PrivateKey>,
    /// Its name to others; `None` before it has a key.
    pub public_key: Option<PublicKey>,
    /// Its UDP port; 0 where it has none.
    pub listen_port: u16,
    /// The mark on its packets; 0 for none.
    pub fwmark: u32,
    /// At most [`MAX_PEERS`], in the implementation's order.
    pub peers: Vec<DevicePeer>,
}

/// A peer as an interface has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePeer {
    /// Its name.
    pub key: PublicKey,
    /// Where packets to it go.
    pub endpoint: Option<SocketAddr>,
    /// UNIX time of the last handshake, by the machine's clock.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it, WireGuard's own messages included.
    pub tx_bytes: u64,
    /// Inner addresses, at most [`MAX_ALLOWED_IPS`].
    pub allowed_ips: Vec<IpPrefix>,
    /// Seconds between keepalives; 0 for none.
    pub keepalive: u16,
}

impl DevicePeer {
    /// A peer of which nothing is known yet.
    pub(super) fn new(key: PublicKey) -> Self {
        Self {
            key,
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            allowed_ips: Vec::new(),
            keepalive: 0,
        }
    }

    /// Time since the last handshake; zero where the clock has gone back since.
    pub fn handshake_age(&self) -> Option<Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(now.saturating_sub(self.last_handshake?))
    }
}

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Neither kernel nor userspace WireGuard has it here.
    #[error(
        "there is no WireGuard interface {0} here\n  make it first (wg-quick up {0}), and run wice in the network namespace that it is in; see: wg show interfaces"
    )]
    NoSuchInterface(String),
    /// It exists and is something else.
    #[error("{0} is not a WireGuard interface\n  see: wg show interfaces")]
    NotWireGuard(String),
    /// The kernel has no WireGuard, and no userspace implementation answers.
    #[error(
        "this kernel has no WireGuard, and nobody answers at {path}\n  load it (modprobe wireguard), or start a userspace implementation: wireguard-go {interface}", path = .path.display()
    )]
    NoWireGuard {
        /// The interface.
        interface: String,
        /// Where a userspace implementation would answer.
        path: PathBuf,
    },
    /// Not allowed.
    #[error(
        "may not ask WireGuard about {0}: no permission\n  run as root, or with CAP_NET_ADMIN (a userspace implementation's socket belongs to its user)"
    )]
    NoPermission(String),
    /// A userspace implementation's socket does not answer in time.
    #[error(
        "{path} does not answer within {} s: the WireGuard process behind it hangs\n  restart it", timeout.as_secs(), path = .path.display()
    )]
    Silent {
        /// Its socket.
        path: PathBuf,
        /// How long it had.
        timeout: Duration,
    },
    /// What answers does not speak the protocol.
    #[error(
        "{path} answers what no WireGuard does: {why}\n  see what listens there: ss -xlp", path = .path.display()
    )]
    Malformed {
        /// Its socket.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// The implementation cannot change a peer's endpoint without replacing the peer.
    #[error(
        "{0} is an implementation that cannot change a peer's endpoint (boringtun-cli): a peer keeps its own, until it hears from it through wice\n  use kernel WireGuard, wireguard-go or gotatun instead"
    )]
    CannotUpdate(String),
    /// The peer went away meanwhile.
    #[error("{0} is no longer on the interface")]
    NoSuchPeer(PublicKey),
    /// Anything else.
    #[error("cannot {what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What can be asked of, and done to, an interface that another program owns.
pub trait Backend: Send {
    /// The interface as it is now.
    fn device(&mut self) -> impl Future<Output = Result<Device, BackendError>> + Send;

    /// Points a peer elsewhere. A peer that the interface does not have stays away; everything else
    /// of a peer that it has stays as it is.
    fn set_endpoint(
        &mut self,
        key: PublicKey,
        endpoint: SocketAddr,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;
}

/// Either kind.
#[derive(Debug)]
pub enum AnyBackend {
    /// By generic netlink.
    Kernel(Kernel),
    /// By the UAPI socket.
    Uapi(Uapi),
}

impl AnyBackend {
    /// Finds out which kind `interface` is. A userspace implementation's socket goes first: its
    /// interface is a TUN device, of which the kernel's WireGuard knows nothing.
    pub async fn open(interface: &str) -> Result<Self, BackendError> {
        Self::open_in(interface, Path::new(UAPI_DIR)).await
    }

    /// The same, with another folder of sockets.
    pub async fn open_in(interface: &str, folder: &Path) -> Result<Self, BackendError> {
        let path = folder.join(format!("{interface}.sock"));
        if Uapi::is_there(&path).await {
            return Ok(Self::Uapi(Uapi::new(interface, path)));
        }
        match Kernel::open(interface) {
            Ok(kernel) => Ok(Self::Kernel(kernel)),
            Err(BackendError::NoWireGuard { interface, .. }) if exists(&interface) => {
                Err(BackendError::NoWireGuard { interface, path })
            }
            Err(BackendError::NoWireGuard { interface, .. }) => {
                Err(BackendError::NoSuchInterface(interface))
            }
            Err(error) => Err(error),
        }
    }

    /// `kernel` or `userspace`, for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kernel(_) => "kernel",
            Self::Uapi(_) => "userspace",
        }
    }
}

/// Whether this network namespace has such an interface, of whatever kind.
fn exists(interface: &str) -> bool {
    let Ok(name) = std::ffi::CString::new(interface) else {
        return false;
    };
    // SAFETY: a C string that lives for the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

impl Backend for AnyBackend {
    async fn device(&mut self) -> Result<Device, BackendError> {
        match self {
            Self::Kernel(kernel) => kernel.device().await,
            Self::Uapi(uapi) => uapi.device().await,
        }
    }

    async fn set_endpoint(
        &mut self,
        key: PublicKey,
        endpoint: SocketAddr,
    ) -> Result<(), BackendError> {
        match self {
            Self::Kernel(kernel) => kernel.set_endpoint(key, endpoint).await,
            Self::Uapi(uapi) => uapi.set_endpoint(key, endpoint).await,
        }
    }
}
