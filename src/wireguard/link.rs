//! Links of the kernel's WireGuard: made, removed, and what is routed to one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::{LinkWireguard, RouteMessageBuilder};

use super::IpPrefix;
use super::netlink::{Netlink, NetlinkError, classify, output};

/// Routes of one link that are read: of 4,096 peers with 32 each only the first are found again.
const MAX_ROUTES: usize = 4096;

/// What came of asking for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is there, down, with neither key nor peers.
    Link(u32),
    /// This kernel has no WireGuard, and finds no module of it.
    NoWireGuard,
}

impl Netlink {
    /// Makes a WireGuard link.
    pub async fn add_wireguard(&self, name: &str) -> Result<Made, NetlinkError> {
        let request = self.handle.link().add(LinkWireguard::new(name).build());
        let what = format!("make the WireGuard interface {name}");
        match request.execute().await.map_err(|e| classify(what, e)) {
            Ok(()) => Ok(Made::Link(self.index(name).await?)),
            Err(NetlinkError::System { source, .. })
                if source.raw_os_error() == Some(libc::EOPNOTSUPP) =>
            {
                Ok(Made::NoWireGuard)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes an interface, with its addresses, routes and peers.
    pub async fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        let done = self.handle.link().del(index).execute().await;
        done.map_err(|e| classify(format!("remove interface {index}"), e))
    }

    /// What the main table routes to an interface as its own link's: routes by a gateway are others'.
    pub async fn routes_to(&self, index: u32) -> Result<Vec<IpPrefix>, NetlinkError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut found = Vec::new();
        for request in [v4, v6] {
            let family = request.header.address_family;
            let mut routes = self.handle.route().get(request).execute();
            let what = || "list the routes".to_owned();
            while let Some(route) = routes.try_next().await.map_err(|e| classify(what(), e))? {
                let ours = route.header.address_family == family
                    && route.header.table == RouteHeader::RT_TABLE_MAIN
                    && output(&route) == Some(index);
                if ours && found.len() < MAX_ROUTES {
                    found.extend(destination(&route));
                }
            }
        }
        Ok(found)
    }
}

fn destination(route: &RouteMessage) -> Option<IpPrefix> {
    let address = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(RouteAddress::Inet(v4)) = attribute {
            Some(IpAddr::V4(*v4))
        } else if let RouteAttribute::Destination(RouteAddress::Inet6(v6)) = attribute {
            Some(IpAddr::V6(*v6))
        } else {
            None
        }
    });
    IpPrefix::new(address?, route.header.destination_prefix_length)
}
