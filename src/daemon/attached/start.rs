//! From an interface and a token to a running daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use wice_signaling::protocol::{PrivateKey, RecordKind};
use zeroize::Zeroizing;

use super::adverts::Adverts;
use super::guidance::Guide;
use super::{Attached, Meet};
use crate::core::node::Admission;
use crate::core::seeking::Seeker;
use crate::core::slots::SLOT_PORT;
use crate::daemon::answers::View;
use crate::daemon::base::{Base, Prepared};
use crate::daemon::binding::{Binding, Whose};
use crate::daemon::network::Network;
use crate::daemon::state::{NodeState, State};
use crate::daemon::{Settings, join, random};
use crate::io::dial::Fwmark;
use crate::io::packet_loop::{Notice, PlaneParts};
use crate::io::slots::SlotSocket;
use crate::wireguard::backend::{AnyBackend, Backend as _, Device};
use crate::wireguard::netlink::{Netlink, NetlinkError};

/// Below the state folder: one folder an interface, apart from managed mode's files.
pub const FOLDER: &str = "attached";
/// A private key in base64, with room for a line break.
const MAX_KEY_FILE: u64 = 64;

/// Why wice cannot attach.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// WireGuard answers, and the interface is elsewhere.
    #[error(
        "the WireGuard process of {interface} answers, but {interface} is not in this network namespace\n  run wice where it is: ip netns identify $(pgrep -f {interface}), then ip netns exec NAME wice attach {interface}"
    )]
    OtherNamespace {
        /// The interface.
        interface: String,
    },
    /// WireGuard does not tell the key, and nobody else does.
    #[error(
        "WireGuard does not tell the private key of {interface}\n  set one (wg set {interface} private-key FILE), or give the file that it was set from: --private-key-file FILE"
    )]
    NoKey {
        /// The interface.
        interface: String,
    },
    /// The file is of another interface.
    #[error(
        "{path} is not the private key of {interface}: its public key is {file}, the interface's is {device}\n  give the file that the interface was set from", path = .path.display()
    )]
    OtherKey {
        /// The interface.
        interface: String,
        /// The file.
        path: PathBuf,
        /// Its public key.
        file: String,
        /// The interface's.
        device: String,
    },
    /// The key's file cannot be used.
    #[error("cannot use {path} as the private key: {why}\n  it holds what wg genkey prints, and nothing else", path = .path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// There is nothing to put back.
    #[error("wice was never attached to {interface}: {path} is not there\n  see wg show interfaces, and give the --state-dir that wice attach had", path = .path.display())]
    NeverAttached {
        /// The interface.
        interface: String,
        /// Where its state would be.
        path: PathBuf,
    },
    /// The slots' port is taken.
    #[error(
        "cannot open UDP port {port} on the loopback interface: {why}\n  it is the same on every node and cannot be chosen: stop what uses it (ss -ulpn), or the other wice attach of this network namespace"
    )]
    SlotPort {
        /// The port.
        port: u16,
        /// Why.
        why: String,
    },
}

/// Where the state of an attached interface is.
pub(super) fn state_folder(settings: &Path, interface: &str) -> PathBuf {
    settings.join(FOLDER).join(interface)
}

impl Attached {
    pub(super) async fn start(
        mut settings: Settings,
        meet: &Meet,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Notice>)> {
        let interface = settings.interface.clone();
        let mut backend = AnyBackend::open(&interface).await?;
        let device = backend.device().await?;
        let netlink = Netlink::connect()?;
        let index = match netlink.index(&interface).await {
            Ok(index) => index,
            Err(NetlinkError::NoSuchInterface { .. }) => {
                return Err(AttachError::OtherNamespace { interface }.into());
            }
            Err(error) => return Err(error.into()),
        };
        let key = private_key(&settings, &device)?;
        let state = State::open(&state_folder(&settings.state_dir, &interface))?;
        let name = key.public_key().to_string();
        let (network, admission, guide, whose) = match meet {
            Meet::Token => {
                let token = settings.token.as_ref();
                let joined = join::membership_of_interface(&state, token, &key, &interface)?;
                let admission = Admission::AddedIn(joined.network);
                let network = Network::Service(Box::new(joined));
                (network, admission, Guide::none(), Whose::Another)
            }
            #[cfg(feature = "kubernetes")]
            Meet::Cluster(config) => {
                let (network, news) = crate::daemon::agent::meet(config)?;
                let guide = Guide::new(news);
                (network, Admission::Added, guide, Whose::MeshAgent)
            }
        };
        // Another key is another node: its sessions begin anew.
        let kept = state.node()?;
        let had_another_key = kept
            .as_ref()
            .is_some_and(|kept| kept.key.as_ref() != Some(&name));
        let kept = kept.filter(|_| !had_another_key);
        let mut node_state = match kept {
            Some(kept) => kept,
            None => NodeState {
                key: Some(name.clone()),
                ..NodeState::new(random()?)
            },
        };
        node_state.keep_name(&mut settings);
        state.set_node(&node_state)?;
        let slots = SlotSocket::open(SLOT_PORT).map_err(|error| AttachError::SlotPort {
            port: SLOT_PORT,
            // Its own advice is to take another port.
            why: error.to_string().lines().take(1).collect(),
        })?;
        let view = Arc::default();
        let (kind, peers) = (backend.kind(), device.peers.len());
        let prepared = Prepared {
            settings,
            state,
            node_state,
            key,
            network,
            netlink,
            index,
            admission,
            // What WireGuard marks stays out of the tunnel; so must ours.
            fwmark: Fwmark::new(device.fwmark),
            overlay: None,
            view: View::Attached(Arc::clone(&view)),
        };
        let (base, notices) = Base::start(prepared, PlaneParts::BySlots(slots)).await?;
        let interfaces = base.netlink.interfaces().await?;
        tracing::info!(
            event = "attached",
            interface,
            kind,
            name = base.settings.name,
            network = base.network.name(),
            key = name,
            peers,
        );
        let direct = base.settings.direct;
        let mut binding = Binding::start(interface, whose, backend, &base, direct, view);
        if had_another_key {
            binding.forget_sessions();
        }
        binding.hold(guide.guidance().held.clone());
        binding.handle_interfaces(&interfaces, &base).await?;
        let attached = Self {
            adverts: Adverts::restore(base.kept.records(RecordKind::Advert)),
            binding,
            guide,
            seeker: Seeker::new(base.key.public_key()),
            base,
        };
        Ok((attached, notices))
    }
}

/// WireGuard's own, or that of the file, which must be the same.
fn private_key(settings: &Settings, device: &Device) -> Result<PrivateKey, AttachError> {
    let interface = settings.interface.clone();
    let Some(path) = &settings.private_key_file else {
        let key = device.private_key.clone();
        return key.ok_or(AttachError::NoKey { interface });
    };
    let key = read_key(path)?;
    let file = key.public_key();
    match device.public_key {
        Some(own) if own != file => Err(AttachError::OtherKey {
            interface,
            path: path.clone(),
            file: file.to_string(),
            device: own.to_string(),
        }),
        Some(_) | None => Ok(key),
    }
}

/// A private key in a file, as `wg genkey` prints it.
pub(in crate::daemon) fn read_key(path: &Path) -> Result<PrivateKey, AttachError> {
    use std::io::Read as _;
    let bad = |why: String| AttachError::KeyFile {
        path: path.to_owned(),
        why,
    };
    let file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_FILE as usize));
    file.take(MAX_KEY_FILE)
        .read_to_string(&mut text)
        .map_err(|error| bad(error.to_string()))?;
    text.trim()
        .parse()
        .map_err(|_| bad("it is no WireGuard key".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_read_and_a_bad_one_told() {
        let folder = std::env::temp_dir().join(format!("wice-key-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("key");
        let text = "2Kj8IswUIB+E9aiWGCn79RJs7eT1HIXazO7+eBaoeGI=";
        std::fs::write(&path, format!("{text}\n")).unwrap();
        let public = "nw7e1rc1tZePrdaJUXkOr1WWQpnJFwnDF2iE8E2vHkc=";
        assert_eq!(read_key(&path).unwrap().public_key().to_string(), public);
        std::fs::write(&path, "hello").unwrap();
        let error = read_key(&path).unwrap_err().to_string();
        assert!(
            error.contains("no WireGuard key") && error.contains("wg genkey"),
            "{error}"
        );
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(
            read_key(&path)
                .unwrap_err()
                .to_string()
                .contains("No such file")
        );
    }
}
