//! Interfaces of the kernel that a daemon has left: known by the node's key.

use std::path::Path;

use wice_signaling::protocol::PublicKey;

use crate::daemon::state::State;
use crate::wireguard::kernel::Owner;
use crate::wireguard::netlink::{Interface, LinkKind, Netlink};

/// What stands under the interface's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing, or a TUN device: whether that can be had shows when it is opened.
    Nothing,
    /// The kernel's WireGuard with our key.
    Ours(u32),
}

/// Something else has the interface's name.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotOurs {
    /// WireGuard with another key.
    #[error(
        "{name} is a WireGuard interface with another key than this node's: it is not wice's\n  choose another name (--interface), wice attach {name} to leave it its owner's, or remove it (ip link delete {name}), if it is left from a node that has left its network"
    )]
    OtherKey {
        /// The interface.
        name: String,
    },
    /// No WireGuard at all.
    #[error(
        "there is an interface {name} already, and it is no WireGuard interface of wice's\n  choose another name (--interface), or remove it (ip link delete {name})"
    )]
    OtherKind {
        /// The interface.
        name: String,
    },
}

/// What the interface of that name is to the node of this key.
pub(super) fn of(interface: Option<&Interface>, key: &PublicKey) -> anyhow::Result<Left> {
    let Some(interface) = interface else {
        return Ok(Left::Nothing);
    };
    let name = interface.name.clone();
    match interface.kind {
        LinkKind::Tun => Ok(Left::Nothing),
        LinkKind::WireGuard => match Owner::open(&name)?.device()?.public_key {
            Some(own) if own == *key => Ok(Left::Ours(interface.index)),
            Some(_) | None => Err(NotOurs::OtherKey { name }.into()),
        },
        LinkKind::Physical
        | LinkKind::Loopback
        | LinkKind::Bridge
        | LinkKind::Veth
        | LinkKind::Other(_) => Err(NotOurs::OtherKind { name }.into()),
    }
}

/// Removes the kernel's interfaces that the node of this state folder has left, or only the one of this name;
/// tells which. Nothing where no node's key is kept there; an error where a daemon uses the folder.
pub async fn remove_left(state_dir: &Path, only: Option<&str>) -> anyhow::Result<Vec<String>> {
    // Opening would make the folder.
    if !state_dir.is_dir() {
        return Ok(Vec::new());
    }
    remove(&State::open(state_dir)?, only).await
}

/// The same, of a folder that is open.
pub(in crate::daemon) async fn remove(
    state: &State,
    only: Option<&str>,
) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    let Some(key) = state.known_key()? else {
        return Ok(removed);
    };
    let netlink = Netlink::connect()?;
    for interface in netlink.interfaces().await? {
        let wanted = only.is_none_or(|only| only == interface.name);
        if !wanted || interface.kind != LinkKind::WireGuard {
            continue;
        }
        if let Ok(Left::Ours(index)) = of(Some(&interface), &key.public_key()) {
            netlink.delete_link(index).await?;
            removed.push(interface.name);
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_wices_is_taken() {
        let key = PublicKey([7; 32]);
        let interface = |kind| Interface {
            index: 9,
            name: "wice0".to_owned(),
            kind,
            running: true,
            mtu: 1392,
            addresses: Vec::new(),
        };
        assert_eq!(of(None, &key).unwrap(), Left::Nothing);
        // Another's TUN device is told by opening it.
        let tun = interface(LinkKind::Tun);
        assert_eq!(of(Some(&tun), &key).unwrap(), Left::Nothing);
        for kind in [LinkKind::Bridge, LinkKind::Other("dummy".to_owned())] {
            let error = of(Some(&interface(kind)), &key).unwrap_err().to_string();
            assert!(
                error.contains("wice0") && error.contains("--interface"),
                "{error}"
            );
        }
    }
}
