//! What the routers of this node offer: asked without mapping anything.

use std::time::Duration;

use super::super::random::random;
use crate::core::policy::is_private;
use crate::core::portmap::{Config, NONCE_LEN, Outcome, Purpose, Report};
use crate::daemon::{DEFAULT_PORT, Ports, host_addresses};
use crate::io::portmap::{self, Interface};
use crate::report::PortMapping;
use crate::wireguard::netlink::Netlink;

/// The core gives up by itself before that.
const PATIENCE: Duration = Duration::from_secs(5);
/// No interface has this index: it is not asked for a daemon's tunnel, which is none by its kind.
const NO_TUNNEL: u32 = 0;

/// One report for each private IPv4 address behind a router, by the same rules as the daemon's.
pub(super) async fn look() -> anyhow::Result<Vec<PortMapping>> {
    let netlink = Netlink::connect()?;
    let interfaces = netlink.interfaces().await?;
    let routes = netlink.default_routes().await?;
    let gateways = netlink.gateways().await?;
    let ports = Ports {
        v4: Some(DEFAULT_PORT),
        v6: None,
    };
    let mut found = Vec::new();
    for host in host_addresses(&interfaces, routes, NO_TUNNEL, ports) {
        let gateway = gateways
            .iter()
            .find(|gateway| gateway.interface == host.interface && gateway.address.is_ipv4());
        let interface = interfaces.iter().find(|i| i.index == host.interface);
        let (Some(gateway), Some(interface)) = (gateway, interface) else {
            continue;
        };
        if !is_private(host.address.ip()) {
            continue;
        }
        let config = Config {
            local: host.address,
            gateway: gateway.address,
            purpose: Purpose::Look,
            nonce: [0; NONCE_LEN],
            seed: random()?,
        };
        let interface = Interface {
            index: interface.index,
            name: interface.name.clone(),
        };
        found.push(ask(interface, config));
    }
    let found = futures_util::future::join_all(found).await;
    Ok(found.iter().flatten().map(PortMapping::from).collect())
}

async fn ask(interface: Interface, config: Config) -> Option<Report> {
    let (sender, mut receiver) = tokio::sync::watch::channel(None);
    let told = |report: Report| {
        sender.send_replace(Some(report));
    };
    let mut seen = receiver.clone();
    let stop = async {
        let finished = |report: &Option<Report>| {
            report
                .as_ref()
                .is_some_and(|report| report.outcome != Outcome::Looking)
        };
        let _ = tokio::time::timeout(PATIENCE, seen.wait_for(finished)).await;
    };
    portmap::run(&interface, config, told, stop).await.ok()?;
    receiver.borrow_and_update().clone()
}
