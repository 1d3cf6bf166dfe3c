//! The routers of this machine: the default gateways of its interfaces.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};

use super::netlink::{Netlink, NetlinkError, classify, metric, output};

/// An interface's default gateway of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// The interface's index.
    pub interface: u32,
    /// The router, on that interface's link.
    pub address: IpAddr,
}

impl Netlink {
    /// The default gateways in the main table: of each interface and family the one of the lowest
    /// metric. Default routes without a gateway lead to no router.
    pub async fn gateways(&self) -> Result<Vec<Gateway>, NetlinkError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut best: BTreeMap<(u32, bool), (u32, IpAddr)> = BTreeMap::new();
        for request in [v4, v6] {
            let family = request.header.address_family;
            let mut routes = self.handle.route().get(request).execute();
            let what = || "list the routes".to_owned();
            while let Some(route) = routes.try_next().await.map_err(|e| classify(what(), e))? {
                let is_default = route.header.address_family == family
                    && route.header.destination_prefix_length == 0
                    && route.header.table == RouteHeader::RT_TABLE_MAIN
                    && route.header.kind == RouteType::Unicast;
                let (Some(index), Some(gateway), true) =
                    (output(&route), gateway(&route), is_default)
                else {
                    continue;
                };
                let found = (metric(&route), gateway);
                let known = best.entry((index, gateway.is_ipv4())).or_insert(found);
                if found.0 < known.0 {
                    *known = found;
                }
            }
        }
        let gateways = best
            .into_iter()
            .map(|((interface, _), (_, address))| Gateway { interface, address });
        Ok(gateways.collect())
    }

    /// The interface by which packets to an address leave this machine; none where they stay on it.
    pub async fn leaves_by(&self, to: IpAddr) -> Result<Option<u32>, NetlinkError> {
        let request = match to {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        let what = || format!("find the route to {to}");
        // With a destination the kernel tells the one route that it would take.
        let mut routes = self.handle.route().get(request).execute();
        let mut found = None;
        while let Some(route) = routes.try_next().await.map_err(|e| classify(what(), e))? {
            found = output(&route).filter(|_| route.header.kind != RouteType::Local);
        }
        Ok(found)
    }
}

fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Gateway(RouteAddress::Inet(v4)) = attribute {
            Some(IpAddr::V4(*v4))
        } else if let RouteAttribute::Gateway(RouteAddress::Inet6(v6)) = attribute {
            Some(IpAddr::V6(*v6))
        } else {
            None
        }
    })
}
