//! Interfaces, addresses and routes by rtnetlink: for setting up and for changes, never on the data
//! path.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{IpVersion, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::IpPrefix;
pub use super::watch::Watch;

/// Interfaces looked at; a node with more has containers, whose interfaces come last and are none
/// of ours.
const MAX_INTERFACES: usize = 4096;
/// Addresses of one interface that are kept.
const MAX_ADDRESSES: usize = 64;

/// Why the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// CAP_NET_ADMIN is missing.
    #[error(
        "cannot {what}: no permission (CAP_NET_ADMIN is missing)\n  run as root, or grant it: setcap cap_net_admin,cap_net_raw+ep $(command -v wice)"
    )]
    NoPermission {
        /// What was being done.
        what: String,
    },
    /// The interface is gone, or never was.
    #[error("cannot {what}: there is no such interface\n  see: ip link")]
    NoSuchInterface {
        /// What was being done.
        what: String,
    },
    /// Another program's address or route is in the way.
    #[error(
        "cannot {what}: it exists already\n  see: ip address; ip route; another program may own it"
    )]
    Exists {
        /// What was being done.
        what: String,
    },
    /// Anything else.
    #[error("cannot {what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What an interface is, as far as it decides whether its addresses may be candidates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A device without a kind of its own: a network card.
    Physical,
    /// `lo`.
    Loopback,
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A TUN or TAP device.
    Tun,
    /// Kernel WireGuard.
    WireGuard,
    /// Another kind, by the kernel's name: `vxlan`, `dummy`, `bond`, `ipip` ...
    Other(String),
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Leading bits of its network.
    pub prefix_len: u8,
    /// IPv6: not yet known to be unique, or found not to be (RFC 4862 §5.4); it must not be used.
    pub tentative: bool,
    /// No longer to be used for what is new (RFC 4862 §5.5.4).
    pub deprecated: bool,
    /// IPv4: not the first of its network; IPv6: a temporary one (RFC 8981).
    pub secondary: bool,
}

/// An interface and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number, never used again while the machine runs.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Up, and with a carrier.
    pub running: bool,
    /// Bytes.
    pub mtu: u32,
    /// In the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// The interfaces of the default routes in the main table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DefaultRoutes {
    /// IPv4.
    pub v4: Option<u32>,
    /// IPv6.
    pub v6: Option<u32>,
}

/// A connection to rtnetlink. Its task ends when this is dropped.
#[derive(Debug)]
pub struct Netlink {
    pub(super) handle: rtnetlink::Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens it; needs a tokio runtime, but no privileges until something is changed.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetlinkError::System {
                what: "open a netlink socket".into(),
                source,
            })?;
        Ok(Self {
            handle,
            task: tokio::spawn(connection),
        })
    }

    /// All interfaces with their addresses, by index.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, NetlinkError> {
        let what = || "list the interfaces".to_owned();
        let mut all = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(|e| classify(what(), e))? {
            if all.len() < MAX_INTERFACES {
                all.insert(link.header.index, interface(&link));
            }
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses
            .try_next()
            .await
            .map_err(|e| classify(what(), e))?
        {
            if let Some(interface) = all.get_mut(&message.header.index)
                && interface.addresses.len() < MAX_ADDRESSES
            {
                interface.addresses.extend(address(&message));
            }
        }
        Ok(all.into_values().collect())
    }

    /// The index of an interface.
    pub async fn index(&self, name: &str) -> Result<u32, NetlinkError> {
        let what = format!("find interface {name}");
        let mut links = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute();
        match links
            .try_next()
            .await
            .map_err(|e| classify(what.clone(), e))?
        {
            Some(link) => Ok(link.header.index),
            None => Err(NetlinkError::NoSuchInterface { what }),
        }
    }

    /// Where the default routes lead, by the lowest metric.
    pub async fn default_routes(&self) -> Result<DefaultRoutes, NetlinkError> {
        let index = |route: Option<RouteMessage>| route.as_ref().and_then(output);
        Ok(DefaultRoutes {
            v4: index(self.default_route(&IpVersion::V4).await?),
            v6: index(self.default_route(&IpVersion::V6).await?),
        })
    }

    /// Brings an interface up.
    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let request = self
            .handle
            .link()
            .set(LinkUnspec::new_with_index(index).up().build());
        request
            .execute()
            .await
            .map_err(|e| classify(format!("bring interface {index} up"), e))
    }

    /// Sets an interface's MTU.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let request = self
            .handle
            .link()
            .set(LinkUnspec::new_with_index(index).mtu(mtu).build());
        request
            .execute()
            .await
            .map_err(|e| classify(format!("set the MTU of interface {index}"), e))
    }

    /// Gives an interface an address; one that it has already is no error.
    pub async fn add_address(
        &self,
        index: u32,
        ip: IpAddr,
        prefix_len: u8,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.address().add(index, ip, prefix_len).replace();
        request
            .execute()
            .await
            .map_err(|e| classify(format!("add address {ip}/{prefix_len}"), e))
    }

    /// Takes an address away.
    pub async fn delete_address(
        &self,
        index: u32,
        ip: IpAddr,
        prefix_len: u8,
    ) -> Result<(), NetlinkError> {
        let what = || format!("remove address {ip}/{prefix_len}");
        let mut found = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .set_address_filter(ip)
            .execute();
        let Some(message) = found.try_next().await.map_err(|e| classify(what(), e))? else {
            return Err(NetlinkError::System {
                what: what(),
                source: io::ErrorKind::NotFound.into(),
            });
        };
        self.handle
            .address()
            .del(message)
            .execute()
            .await
            .map_err(|e| classify(what(), e))
    }

    /// Routes `prefix` to an interface in the main table; a route to another interface stays and is
    /// an error.
    pub async fn add_route(&self, prefix: IpPrefix, index: u32) -> Result<(), NetlinkError> {
        let what = || format!("add route {prefix}");
        let result = self
            .handle
            .route()
            .add(route(prefix, index))
            .execute()
            .await;
        let Err(error) = result.map_err(|e| classify(what(), e)) else {
            return Ok(());
        };
        if matches!(error, NetlinkError::Exists { .. }) && self.has_route(prefix, index).await? {
            return Ok(());
        }
        Err(error)
    }

    /// Takes the route of `prefix` to this interface away.
    pub async fn delete_route(&self, prefix: IpPrefix, index: u32) -> Result<(), NetlinkError> {
        let request = self.handle.route().del(route(prefix, index));
        request
            .execute()
            .await
            .map_err(|e| classify(format!("remove route {prefix}"), e))
    }

    async fn has_route(&self, prefix: IpPrefix, index: u32) -> Result<bool, NetlinkError> {
        let wanted = route(prefix, index);
        // With a destination the kernel would tell which route it would take, not which there are.
        let mut all = wanted.clone();
        all.attributes.clear();
        let mut routes = self.handle.route().get(all).execute();
        let what = || format!("look for route {prefix}");
        let mut is_there = false;
        // To the end: what nobody takes is a warning of the netlink crate's.
        while let Some(found) = routes.try_next().await.map_err(|e| classify(what(), e))? {
            let same = found.header.destination_prefix_length == prefix.prefix_len()
                && found.header.table == wanted.header.table
                && output(&found) == Some(index)
                && destination(&found) == destination(&wanted);
            is_there |= same;
        }
        Ok(is_there)
    }

    /// That of a family, by the lowest metric.
    pub(super) async fn default_route(
        &self,
        version: &IpVersion,
    ) -> Result<Option<RouteMessage>, NetlinkError> {
        let request = all_routes(version);
        let family = request.header.address_family;
        let mut routes = self.handle.route().get(request).execute();
        let mut best: Option<(u32, RouteMessage)> = None;
        while let Some(route) = routes
            .try_next()
            .await
            .map_err(|e| classify("list the routes".into(), e))?
        {
            let ours = route.header.address_family == family
                && route.header.destination_prefix_length == 0
                && route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast;
            if !ours || output(&route).is_none() {
                continue;
            }
            let metric = metric(&route);
            if best.as_ref().is_none_or(|(lowest, _)| metric < *lowest) {
                best = Some((metric, route));
            }
        }
        Ok(best.map(|(_, route)| route))
    }
}

/// What asks for a family's routes.
pub(super) fn all_routes(version: &IpVersion) -> RouteMessage {
    match version {
        IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn interface(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: link.header.index,
        name: String::new(),
        kind: LinkKind::Physical,
        running: link
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::Running),
        mtu: 0,
        addresses: Vec::new(),
    };
    if link.header.flags.contains(LinkFlags::Loopback) {
        interface.kind = LinkKind::Loopback;
    }
    for attribute in &link.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            interface.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            interface.mtu = *mtu;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            for info in infos {
                if let LinkInfo::Kind(kind) = info {
                    interface.kind = link_kind(kind);
                }
            }
        }
    }
    interface
}

fn link_kind(kind: &InfoKind) -> LinkKind {
    match kind.to_string().as_str() {
        "bridge" => LinkKind::Bridge,
        "veth" => LinkKind::Veth,
        "tun" => LinkKind::Tun,
        "wireguard" => LinkKind::WireGuard,
        other => LinkKind::Other(other.to_owned()),
    }
}

/// IFA_LOCAL is the interface's own where the two differ (point to point); IPv6 has IFA_ADDRESS
/// alone.
fn address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let mut ip = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(local) = attribute {
            ip = Some(*local);
        } else if let AddressAttribute::Address(address) = attribute {
            ip = ip.or(Some(*address));
        }
    }
    let flags = message.header.flags;
    Some(InterfaceAddress {
        ip: ip?,
        prefix_len: message.header.prefix_len,
        tentative: flags.intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed),
        deprecated: flags.contains(AddressHeaderFlags::Deprecated),
        secondary: flags.contains(AddressHeaderFlags::Secondary),
    })
}

fn route(prefix: IpPrefix, index: u32) -> RouteMessage {
    match prefix.address() {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4, prefix.prefix_len())
            .output_interface(index)
            .scope(rtnetlink::packet_route::route::RouteScope::Link)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, prefix.prefix_len())
            .output_interface(index)
            .build(),
    }
}

pub(super) fn output(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|a| {
        if let RouteAttribute::Oif(index) = a {
            Some(*index)
        } else {
            None
        }
    })
}

pub(super) fn metric(route: &RouteMessage) -> u32 {
    let found = route.attributes.iter().find_map(|a| {
        if let RouteAttribute::Priority(p) = a {
            Some(*p)
        } else {
            None
        }
    });
    found.unwrap_or(0)
}

fn destination(route: &RouteMessage) -> Option<&RouteAttribute> {
    if route.header.destination_prefix_length == 0 {
        return None;
    }
    debug_assert!(matches!(
        route.header.address_family,
        AddressFamily::Inet | AddressFamily::Inet6
    ));
    route
        .attributes
        .iter()
        .find(|a| matches!(a, RouteAttribute::Destination(_)))
}

pub(super) fn classify(what: String, error: rtnetlink::Error) -> NetlinkError {
    let source = if let rtnetlink::Error::NetlinkError(message) = &error {
        message.to_io()
    } else {
        io::Error::other(error.to_string())
    };
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => NetlinkError::NoPermission { what },
        Some(libc::ENODEV | libc::ENXIO) => NetlinkError::NoSuchInterface { what },
        Some(libc::EEXIST) => NetlinkError::Exists { what },
        _ => NetlinkError::System { what, source },
    }
}
