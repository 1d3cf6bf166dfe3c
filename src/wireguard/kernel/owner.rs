//! What only the owner of an interface may do: give it a key and a port, add peers and remove them.
//! Attached mode has no [`Owner`].

use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use wice_signaling::protocol::{PrivateKey, PublicKey};

use super::Kernel;
use crate::wireguard::IpPrefix;
use crate::wireguard::backend::{BackendError, Device};

/// A peer as its interface's owner wants it.
#[derive(Clone, Copy, Debug)]
pub struct OwnPeer<'a> {
    /// Its name.
    pub key: PublicKey,
    /// Where its packets go; `None` leaves what is there.
    pub endpoint: Option<SocketAddr>,
    /// Inner addresses, instead of what it had; an attribute of 64 KiB holds a thousand.
    pub allowed_ips: &'a [IpPrefix],
    /// Seconds between keepalives, 0 for none; `None` leaves what is there.
    pub keepalive: Option<u16>,
}

/// An interface of the kernel's WireGuard that is one's own.
#[derive(Debug)]
pub struct Owner(Kernel);

impl Owner {
    /// Of an interface that is there.
    pub fn open(interface: &str) -> Result<Self, BackendError> {
        Kernel::open(interface).map(Self)
    }

    /// The interface as it is now.
    pub fn device(&mut self) -> Result<Device, BackendError> {
        self.0.read()
    }

    /// Gives it a key. Peers with sessions lose them if it is another.
    pub fn set_key(&mut self, key: &PrivateKey) -> Result<(), BackendError> {
        let key = WireguardAttribute::PrivateKey(*key.expose_secret());
        self.set(vec![key], "give the interface its key")
    }

    /// Gives it a UDP port; 0 is any. Of an interface that is down it is bound when that comes up.
    pub fn set_port(&mut self, port: u16) -> Result<(), BackendError> {
        let what = format!("listen on UDP port {port}");
        self.set(vec![WireguardAttribute::ListenPort(port)], &what)
    }

    /// Adds a peer, or changes one that is there: its session stays.
    pub fn set_peer(&mut self, peer: &OwnPeer<'_>) -> Result<(), BackendError> {
        let what = format!("set the peer {}", peer.key);
        self.set(
            vec![WireguardAttribute::Peers(vec![described(peer)])],
            &what,
        )
    }

    /// Changes a peer's keepalive and nothing else; one that is not there stays away.
    pub fn set_keepalive(&mut self, key: PublicKey, seconds: u16) -> Result<(), BackendError> {
        let peer = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            WireguardPeerAttribute::PersistentKeepalive(seconds),
        ]);
        let what = format!("set the keepalive of {key}");
        self.set(vec![WireguardAttribute::Peers(vec![peer])], &what)
    }

    /// Removes a peer with its session; one that is not there is no error.
    pub fn remove_peer(&mut self, key: PublicKey) -> Result<(), BackendError> {
        let peer = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
        ]);
        let what = format!("remove the peer {key}");
        self.set(vec![WireguardAttribute::Peers(vec![peer])], &what)
    }

    fn set(&mut self, attributes: Vec<WireguardAttribute>, what: &str) -> Result<(), BackendError> {
        let kernel = &mut self.0;
        let message = set_device(&kernel.interface, attributes, kernel.family);
        let done = kernel.exchange::<_, WireguardMessage>(message, NLM_F_REQUEST | NLM_F_ACK);
        match done {
            Ok(_) => Ok(()),
            Err(failure) => Err(kernel.explain(failure, what)),
        }
    }
}

pub(super) fn set_device(
    interface: &str,
    attributes: Vec<WireguardAttribute>,
    family: u16,
) -> GenlMessage<WireguardMessage> {
    let name = WireguardAttribute::IfName(interface.to_owned());
    let mut message = GenlMessage::from_payload(WireguardMessage {
        cmd: WireguardCmd::SetDevice,
        attributes: std::iter::once(name).chain(attributes).collect(),
    });
    message.set_resolved_family_id(family);
    message
}

pub(super) fn described(peer: &OwnPeer<'_>) -> WireguardPeer {
    let allowed = |prefix: &IpPrefix| -> WireguardAllowedIp {
        let address = prefix.address();
        let family = if address.is_ipv4() {
            WireguardAddressFamily::Ipv4
        } else {
            WireguardAddressFamily::Ipv6
        };
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(family),
            WireguardAllowedIpAttr::IpAddr(address),
            WireguardAllowedIpAttr::Cidr(prefix.prefix_len()),
        ])
    };
    let allowed_ips = peer.allowed_ips.iter().map(allowed).collect();
    let mut attributes = vec![
        WireguardPeerAttribute::PublicKey(peer.key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
        WireguardPeerAttribute::AllowedIps(allowed_ips),
    ];
    attributes.extend(peer.endpoint.map(WireguardPeerAttribute::Endpoint));
    let keepalive = peer.keepalive;
    attributes.extend(keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
    WireguardPeer(attributes)
}
