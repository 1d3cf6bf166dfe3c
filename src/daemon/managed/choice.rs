//! Whose WireGuard: the kernel's, where it is there and its port can be shared, else the in-process one.

use std::str::FromStr;

use super::left::{self, Left};
use crate::core::slots::SLOT_PORT;
use crate::daemon::Settings;
use crate::daemon::binding::share;
use crate::io::slots::SlotSocket;
use crate::io::udp::UdpError;
use crate::wireguard::backend::{BackendError, Device};
use crate::wireguard::kernel::Owner;
use crate::wireguard::link::Made;
use crate::wireguard::netlink::{Netlink, NetlinkError};
use wice_signaling::protocol::PrivateKey;

/// WireGuard's own port in the kernel, by its documentation's custom; any, where that is taken. The
/// shared sockets have another ([`DEFAULT_PORT`](crate::daemon::DEFAULT_PORT)): relayed paths and checks
/// of peers that know no shared port come there.
const WIREGUARD_PORT: u16 = 51820;

/// Whose WireGuard is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WireGuardKind {
    /// The kernel's where it is there and its port can be shared, else the in-process one.
    #[default]
    Auto,
    /// The kernel's.
    Kernel,
    /// The in-process one, on a TUN device.
    InProcess,
}

impl WireGuardKind {
    /// As flag and file have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::InProcess => "in-process",
        }
    }
}

impl FromStr for WireGuardKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "in-process" => Ok(Self::InProcess),
            _ => Err("it is auto, kernel or in-process"),
        }
    }
}

/// Why the kernel's WireGuard cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelRefusal {
    /// There is none.
    #[error(
        "this kernel has no WireGuard\n  load it (modprobe wireguard; Linux 5.6 and newer has it), or use wice's own: --wireguard in-process"
    )]
    NoWireGuard,
    /// Direct paths could not leave from WireGuard's own port.
    #[error("{0}\n  use wice's own WireGuard: --wireguard in-process")]
    NotShared(String),
    /// Another program has the slots' port.
    #[error(
        "cannot open UDP port {SLOT_PORT} on the loopback interface, by which the kernel's WireGuard sends to relays: {0}\n  stop what uses it (ss -ulpn; another wice of this network namespace), or use wice's own WireGuard: --wireguard in-process"
    )]
    SlotPort(UdpError),
    /// The interface cannot be made or set up.
    #[error(transparent)]
    Link(#[from] NetlinkError),
    /// The same, by WireGuard's own interface.
    #[error(transparent)]
    WireGuard(#[from] BackendError),
}

/// The kernel's interface, up, with our key.
pub(super) struct KernelParts {
    pub(super) owner: Owner,
    pub(super) index: u32,
    pub(super) slots: SlotSocket,
    pub(super) device: Device,
    /// It was not there before.
    pub(super) is_new: bool,
}

/// Chooses, and says why. `None` is the in-process one, and no interface of that name is left then.
pub(super) async fn choose(
    settings: &Settings,
    key: &PrivateKey,
    netlink: &Netlink,
) -> anyhow::Result<Option<KernelParts>> {
    let name = &settings.interface;
    let interfaces = netlink.interfaces().await?;
    let found = interfaces.iter().find(|interface| interface.name == *name);
    let left = left::of(found, &key.public_key())?;
    let refusal = match settings.wireguard {
        WireGuardKind::InProcess => "asked for".to_owned(),
        kind @ (WireGuardKind::Auto | WireGuardKind::Kernel) => {
            let must_share = kind == WireGuardKind::Auto;
            match kernel(settings, key, netlink, left, must_share).await {
                Ok(parts) => {
                    let port = parts.device.listen_port;
                    let reason = match (kind, parts.is_new) {
                        (WireGuardKind::Kernel, _) => "asked for",
                        (_, true) => "the kernel has it, and its port can be shared",
                        (_, false) => "the interface was there, with its sessions",
                    };
                    let peers = parts.device.peers.len();
                    tracing::info!(event = "wireguard", kind = "kernel", reason, port, peers);
                    return Ok(Some(parts));
                }
                Err(refusal) if kind == WireGuardKind::Kernel => return Err(refusal.into()),
                Err(refusal) => first_line(&refusal.to_string()),
            }
        }
    };
    // Another kind than at the start before: the device needs the name.
    if let Left::Ours(index) = left {
        netlink.delete_link(index).await?;
    }
    tracing::info!(event = "wireguard", kind = "in-process", reason = refusal);
    Ok(None)
}

async fn kernel(
    settings: &Settings,
    key: &PrivateKey,
    netlink: &Netlink,
    left: Left,
    must_share: bool,
) -> Result<KernelParts, KernelRefusal> {
    let (index, is_new) = match left {
        Left::Ours(index) => (index, false),
        Left::Nothing => match netlink.add_wireguard(&settings.interface).await? {
            Made::Link(index) => (index, true),
            Made::NoWireGuard => return Err(KernelRefusal::NoWireGuard),
        },
    };
    let parts = set_up(settings, key, netlink, (index, is_new), must_share).await;
    if parts.is_err() && is_new {
        // What was made in vain is in the way of the next try.
        let _ = netlink.delete_link(index).await;
    }
    parts
}

async fn set_up(
    settings: &Settings,
    key: &PrivateKey,
    netlink: &Netlink,
    (index, is_new): (u32, bool),
    must_share: bool,
) -> Result<KernelParts, KernelRefusal> {
    let slots = SlotSocket::open(SLOT_PORT).map_err(KernelRefusal::SlotPort)?;
    let mut owner = Owner::open(&settings.interface)?;
    if is_new {
        owner.set_key(key)?;
        owner.set_port(WIREGUARD_PORT)?;
    }
    if owner.device()?.listen_port == settings.port {
        owner.set_port(0)?;
    }
    netlink.set_mtu(index, settings.mtu).await?;
    // WireGuard's port is bound as the interface comes up.
    if let Err(error) = netlink.set_up(index).await {
        tracing::debug!(event = "wireguard-port-taken", %error);
        owner.set_port(0)?;
        netlink.set_up(index).await?;
    }
    let device = owner.device()?;
    if must_share {
        let (shared, failure) = share(device.listen_port).await;
        if let ([], Some(failure)) = (shared.as_slice(), failure) {
            return Err(KernelRefusal::NotShared(first_line(&failure.to_string())));
        }
    }
    Ok(KernelParts {
        owner,
        index,
        slots,
        device,
        is_new,
    })
}

/// What happened, without what to do about it: a reason in a log.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_flag() {
        use WireGuardKind::{Auto, InProcess, Kernel};
        for kind in [Auto, Kernel, InProcess] {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("userspace".parse::<WireGuardKind>().is_err());
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let text = KernelRefusal::NoWireGuard.to_string();
        assert!(text.contains("modprobe wireguard"), "{text}");
        assert!(text.contains("--wireguard in-process"), "{text}");
        assert_eq!(first_line(&text), "this kernel has no WireGuard");
    }
}
