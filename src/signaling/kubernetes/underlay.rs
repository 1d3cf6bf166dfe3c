//! Connections to the API server stay in the underlay. A mesh agent may route the server's address into the mesh, and then what makes the
//! mesh's paths would need them.
//!
//! Every connection is tied to the interface by which it leaves; what the mesh agent routes later does not move it. Where the route leads
//! into the mesh, it is tied to the interface that would have it otherwise, and there is no other way. Elsewhere an untied connection is
//! tried a little later: what a Service's address stands for may be behind another interface.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use crate::core::turn::url::Host;
use crate::io::dial::{DialError, SocketHook, Way, bind_to_device, race, resolve};
use crate::wireguard::netlink::{DefaultRoutes, Interface, LinkKind, Netlink, NetlinkError};

/// Where the URL names no port.
const HTTPS_PORT: u16 = 443;

/// Opens connections.
#[derive(Clone)]
pub(super) struct Underlay {
    /// The mesh's interface.
    pub(super) mesh: Option<String>,
    /// What every socket gets beside.
    pub(super) hook: Option<SocketHook>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnderlayError {
    /// The URL's host is none.
    #[error("{0:?} is neither a name nor an address")]
    Host(String),
    /// As for every connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The route leads into the mesh, and the underlay does not lead there.
    #[error(
        "{error}\n  {address} is routed into {mesh}, where connections to the API do not go: give an address that the underlay reaches, as the kubelet has one (--api-server, --api-server-from)"
    )]
    Routed {
        /// Where the API is said to be.
        address: IpAddr,
        /// The mesh's interface.
        mesh: String,
        /// What was tried.
        error: DialError,
    },
}

impl Service<Uri> for Underlay {
    type Response = TokioIo<TcpStream>;
    type Error = UnderlayError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let underlay = self.clone();
        Box::pin(async move { underlay.connect(&uri).await.map(TokioIo::new) })
    }
}

impl Underlay {
    async fn connect(&self, uri: &Uri) -> Result<TcpStream, UnderlayError> {
        let text = uri.host().unwrap_or_default();
        let host: Host = text
            .trim_matches(['[', ']'])
            .parse()
            .map_err(|_| UnderlayError::Host(text.to_owned()))?;
        let addresses = resolve(&host, uri.port_u16().unwrap_or(HTTPS_PORT)).await?;
        let (mut ways, mut routed) = (VecDeque::new(), None);
        for remote in addresses {
            // Where routes cannot be asked for, they are what they are.
            let route = self.route(remote.ip()).await.unwrap_or(Route::Here);
            if let (Route::Mesh(_), Some(mesh)) = (&route, &self.mesh) {
                routed = Some((remote.ip(), mesh.clone()));
            }
            ways.extend(self.ways(remote, route));
        }
        let error = match race(&host, ways).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        Err(match routed {
            Some((address, mesh)) => UnderlayError::Routed {
                address,
                mesh,
                error,
            },
            None => error.into(),
        })
    }

    async fn route(&self, to: IpAddr) -> Result<Route, NetlinkError> {
        let netlink = Netlink::connect()?;
        let Some(output) = netlink.leaves_by(to).await? else {
            return Ok(Route::Here);
        };
        let interfaces = netlink.interfaces().await?;
        let defaults = netlink.default_routes().await?;
        let mesh = self.mesh.as_deref();
        Ok(route_of(to, output, mesh, &interfaces, defaults))
    }

    fn ways(&self, remote: SocketAddr, route: Route) -> Vec<Way> {
        let way = |hook| Way { remote, hook };
        let untied = || way(self.hook.clone());
        let tied = |device| way(Some(both(self.hook.clone(), bind_to_device(device))));
        match route {
            Route::Here => vec![untied()],
            Route::Out(device) => vec![tied(device), untied()],
            Route::Mesh(Some(device)) => vec![tied(device)],
            Route::Mesh(None) => vec![way(Some(Arc::new(|_| {
                let why = "no other interface leads there";
                Err(io::Error::new(io::ErrorKind::NetworkUnreachable, why))
            })))],
        }
    }
}

/// How the API server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    /// On this machine.
    Here,
    /// By this interface.
    Out(String),
    /// Into the mesh; without the mesh by this interface.
    Mesh(Option<String>),
}

/// `output` is the index of the interface that the kernel would take.
fn route_of(
    to: IpAddr,
    output: u32,
    mesh: Option<&str>,
    interfaces: &[Interface],
    defaults: DefaultRoutes,
) -> Route {
    let Some(leaves_by) = interfaces.iter().find(|other| other.index == output) else {
        return Route::Here;
    };
    if Some(leaves_by.name.as_str()) != mesh {
        return match leaves_by.kind {
            LinkKind::Loopback => Route::Here,
            LinkKind::Physical
            | LinkKind::Bridge
            | LinkKind::Veth
            | LinkKind::Tun
            | LinkKind::WireGuard
            | LinkKind::Other(_) => Route::Out(leaves_by.name.clone()),
        };
    }
    let default = if to.is_ipv4() {
        defaults.v4
    } else {
        defaults.v6
    };
    let others = || {
        let running = interfaces.iter().filter(|other| other.running);
        running.filter(|other| other.index != output)
    };
    // Its own network knows it best.
    let network = others()
        .flat_map(|other| {
            other
                .addresses
                .iter()
                .map(move |address| (other, address.prefix_len, address.ip))
        })
        .filter(|(_, length, ip)| same_network(*ip, to, *length))
        .max_by_key(|(_, length, _)| *length)
        .map(|(other, _, _)| other);
    let underlay = network.or_else(|| others().find(|other| Some(other.index) == default));
    Route::Mesh(underlay.map(|other| other.name.clone()))
}

/// Whether two addresses share so many leading bits.
fn same_network(one: IpAddr, other: IpAddr, length: u8) -> bool {
    let length = u32::from(length);
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            (one.to_bits() ^ other.to_bits()).leading_zeros() >= length
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            (one.to_bits() ^ other.to_bits()).leading_zeros() >= length
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// One after the other.
fn both(first: Option<SocketHook>, second: SocketHook) -> SocketHook {
    let Some(first) = first else {
        return second;
    };
    Arc::new(move |socket| {
        first(socket)?;
        second(socket)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::netlink::InterfaceAddress;

    fn interface(index: u32, name: &str, kind: LinkKind, addresses: &[&str]) -> Interface {
        let address = |text: &&str| {
            let (ip, length) = text.split_once('/').unwrap();
            InterfaceAddress {
                ip: ip.parse().unwrap(),
                prefix_len: length.parse().unwrap(),
                tentative: false,
                deprecated: false,
                secondary: false,
            }
        };
        Interface {
            index,
            name: name.to_owned(),
            kind,
            running: true,
            mtu: 1500,
            addresses: addresses.iter().map(address).collect(),
        }
    }

    fn machine() -> Vec<Interface> {
        vec![
            interface(1, "lo", LinkKind::Loopback, &["127.0.0.1/8"]),
            interface(2, "eth0", LinkKind::Physical, &["203.0.113.5/24"]),
            interface(3, "eth1", LinkKind::Physical, &["192.168.1.5/24"]),
            interface(4, "kilo0", LinkKind::WireGuard, &["10.4.0.1/16"]),
        ]
    }

    fn route(to: &str, output: u32) -> Route {
        let defaults = DefaultRoutes {
            v4: Some(2),
            v6: Some(4),
        };
        let to = to.parse().unwrap();
        route_of(to, output, Some("kilo0"), &machine(), defaults)
    }

    #[test]
    fn what_does_not_enter_the_mesh_leaves_by_its_own_interface() {
        assert_eq!(route("198.51.100.1", 2), Route::Out("eth0".to_owned()));
        assert_eq!(route("192.168.1.10", 3), Route::Out("eth1".to_owned()));
        assert_eq!(route("127.0.0.1", 1), Route::Here);
        assert_eq!(route("198.51.100.1", 9), Route::Here, "it has just gone");
    }

    #[test]
    fn what_is_routed_into_the_mesh_leaves_by_the_interface_that_would_have_it() {
        let by = |name: &str| Route::Mesh(Some(name.to_owned()));
        assert_eq!(route("192.168.1.10", 4), by("eth1"));
        assert_eq!(route("172.16.0.10", 4), by("eth0"));
        // Its default route leads into the mesh as well.
        assert_eq!(route("2001:db8::1", 4), Route::Mesh(None));
    }
}
