//! Which addresses of this machine the node may use: its own, never those of a tunnel, a bridge or
//! a container network.

use std::net::{IpAddr, SocketAddr};

use wice_signaling::protocol::{IpPrefix, OVERLAY_IPV4, OVERLAY_IPV6};

use crate::core::node::HostAddress;
use crate::wireguard::netlink::{DefaultRoutes, Interface, LinkKind};

/// Beginnings of names that container networks and other meshes give their interfaces.
const FOREIGN: [&str; 17] = [
    "br-",
    "cali",
    "cilium",
    "cni",
    "docker",
    "flannel",
    "kilo",
    "kube",
    "lxc",
    "nodelocaldns",
    "ovn",
    "podman",
    "tailscale",
    "virbr",
    "weave",
    "wg",
    "zt",
];

/// The ports that the node's sockets are bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    /// IPv4, if there is a socket.
    pub v4: Option<u16>,
    /// IPv6, if there is a socket.
    pub v6: Option<u16>,
}

/// The overlay's ranges lead elsewhere already.
#[derive(Debug, thiserror::Error)]
#[error(
    "another wice runs here: its interface {interface} has the overlay address {address}, and all networks share the overlay's ranges, so peers of one of the two could not be reached\n  stop that one (wice down --interface {interface}), or run this one in a network namespace of its own"
)]
pub(super) struct OverlayTaken {
    interface: String,
    address: IpAddr,
}

/// Refuses a second overlay beside one that is there. What is no tunnel only overlaps with it: a carrier may give out such
/// addresses, too.
pub(super) fn check_overlay(interfaces: &[Interface], own: &str) -> Result<(), OverlayTaken> {
    let in_overlay = |range: &IpPrefix, ip: &IpAddr| range.contains(*ip);
    for interface in interfaces.iter().filter(|i| i.name != own) {
        let address = interface
            .addresses
            .iter()
            .map(|address| address.ip)
            .find(|ip| in_overlay(&OVERLAY_IPV4, ip) || in_overlay(&OVERLAY_IPV6, ip));
        let Some(address) = address else { continue };
        if matches!(interface.kind, LinkKind::Tun | LinkKind::WireGuard) {
            return Err(OverlayTaken {
                interface: interface.name.clone(),
                address,
            });
        }
        tracing::warn!(
            event = "overlay-overlaps",
            interface = interface.name,
            %address,
            "its network's hosts cannot be told from peers"
        );
    }
    Ok(())
}

/// The node's host addresses, those of the default routes' interfaces first. `own` is the index of
/// the node's own tunnel.
pub(crate) fn host_addresses(
    interfaces: &[Interface],
    routes: DefaultRoutes,
    own: u32,
    ports: Ports,
) -> Vec<HostAddress> {
    let is_default =
        |interface: &Interface| [routes.v4, routes.v6].contains(&Some(interface.index));
    let has_default = routes.v4.is_some() || routes.v6.is_some();
    let mut usable: Vec<&Interface> = interfaces
        .iter()
        .filter(|i| i.running && i.index != own && i.kind != LinkKind::Loopback)
        .filter(|i| is_default(i) || is_own_network(i, has_default))
        .collect();
    usable.sort_by_key(|interface| (!is_default(interface), interface.index));
    let addresses = |interface: &Interface| {
        let index = interface.index;
        let good = interface
            .addresses
            .iter()
            .filter(|a| !a.tentative && !a.deprecated);
        good.filter_map(|address| {
            let port = if address.ip.is_ipv4() {
                ports.v4
            } else {
                ports.v6
            }?;
            Some(HostAddress {
                address: SocketAddr::new(address.ip, port),
                interface: index,
            })
        })
        .collect::<Vec<_>>()
    };
    usable.into_iter().flat_map(addresses).collect()
}

/// Whether an interface without a default route leads to a network of this machine's own. Where
/// nothing has a default route (an isolated lab, a container), bridges and veths are all there is.
fn is_own_network(interface: &Interface, has_default: bool) -> bool {
    if FOREIGN
        .iter()
        .any(|foreign| interface.name.starts_with(foreign))
    {
        return false;
    }
    match &interface.kind {
        LinkKind::Physical => true,
        LinkKind::Other(kind) => matches!(kind.as_str(), "bond" | "vlan" | "team" | "macvlan"),
        LinkKind::Bridge | LinkKind::Veth => !has_default,
        LinkKind::Loopback | LinkKind::Tun | LinkKind::WireGuard => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::netlink::InterfaceAddress;

    fn interface(index: u32, name: &str, kind: LinkKind, ip: &str) -> Interface {
        let address = InterfaceAddress {
            ip: ip.parse().unwrap(),
            prefix_len: 24,
            tentative: false,
            deprecated: false,
            secondary: false,
        };
        let name = name.to_owned();
        Interface {
            index,
            name,
            kind,
            running: true,
            mtu: 1500,
            addresses: vec![address],
        }
    }

    #[test]
    fn a_second_overlay_is_refused_and_a_carrier_in_its_range_is_not() {
        let other = interface(7, "wice1", LinkKind::Tun, "100.91.3.4");
        let modem = interface(3, "wwan0", LinkKind::Physical, "100.91.3.4");
        let vpn = interface(5, "wg0", LinkKind::WireGuard, "10.4.0.1");
        let refused = check_overlay(&[vpn.clone(), other.clone()], "wice0").unwrap_err();
        let text = refused.to_string();
        assert!(
            text.contains("its interface wice1 has the overlay address 100.91.3.4"),
            "{text}"
        );
        assert!(text.contains("wice down --interface wice1"), "{text}");
        assert!(check_overlay(&[vpn, modem], "wice0").is_ok());
        assert!(
            check_overlay(&[other], "wice1").is_ok(),
            "one's own is told by its name"
        );
    }

    #[test]
    fn without_a_default_route_a_bridge_or_veth_is_the_network() {
        let interfaces = [
            interface(2, "eth0", LinkKind::Veth, "10.9.0.2"),
            interface(3, "br0", LinkKind::Bridge, "10.8.0.1"),
            interface(4, "docker0", LinkKind::Bridge, "172.17.0.1"),
            interface(5, "br-0a1b2c", LinkKind::Bridge, "172.18.0.1"),
        ];
        let routes = DefaultRoutes { v4: None, v6: None };
        let ports = Ports {
            v4: Some(51821),
            v6: None,
        };
        let found: Vec<String> = host_addresses(&interfaces, routes, 6, ports)
            .iter()
            .map(|host| host.address.to_string())
            .collect();
        assert_eq!(found, ["10.9.0.2:51821", "10.8.0.1:51821"]);
    }

    #[test]
    fn tunnels_bridges_and_container_networks_are_left_out() {
        let interfaces = [
            interface(1, "lo", LinkKind::Loopback, "127.0.0.1"),
            interface(2, "eth1", LinkKind::Physical, "10.0.0.5"),
            interface(3, "eth0", LinkKind::Veth, "192.168.1.2"),
            interface(4, "docker0", LinkKind::Bridge, "172.17.0.1"),
            interface(5, "cilium_host", LinkKind::Physical, "10.0.1.1"),
            interface(6, "wice0", LinkKind::Tun, "100.91.0.1"),
            interface(7, "veth1234", LinkKind::Veth, "10.9.0.1"),
            interface(8, "bond0", LinkKind::Other("bond".into()), "10.5.0.1"),
            interface(
                9,
                "vxlan.calico",
                LinkKind::Other("vxlan".into()),
                "10.6.0.1",
            ),
        ];
        let routes = DefaultRoutes {
            v4: Some(3),
            v6: None,
        };
        let ports = Ports {
            v4: Some(51821),
            v6: None,
        };
        let found: Vec<String> = host_addresses(&interfaces, routes, 6, ports)
            .iter()
            .map(|host| host.address.to_string())
            .collect();
        assert_eq!(
            found,
            ["192.168.1.2:51821", "10.0.0.5:51821", "10.5.0.1:51821"]
        );
    }
}
