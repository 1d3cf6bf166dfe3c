//! Port mapping on the routers of this node: one client an IPv4 address behind a NAT, and an IPv6
//! address behind a router, on the interfaces that the node uses, towards their default gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};

use hkdf::Hkdf;
use sha2::Sha256;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use wice_signaling::protocol::Mapping;

use super::random;
use crate::core::node::HostAddress;
use crate::core::policy::{is_candidate_address, is_private};
use crate::core::portmap::{Config, NONCE_LEN, Outcome, Purpose, Report};
use crate::io::portmap::{self, Interface};
use crate::wireguard::gateways::Gateway;
use crate::wireguard::netlink;

/// What the STUN servers say is waited for this long: where there is no NAT, no router is asked.
const NAT_GRACE: Duration = Duration::from_secs(1);
/// Routers asked at once; a node with more has other worries.
const MAX_CLIENTS: usize = 8;
/// Reports on their way; they come a few a minute.
const REPORTS: usize = 64;
/// A daemon that ends waits this long for its mappings to be taken back.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// Label of the nonces' derivation.
const NONCE_LABEL: &[u8] = b"wice-pcp-nonce-v1";

/// Whether ports are mapped on routers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortMapping {
    /// Where there is a NAT, or a router in front of IPv6.
    #[default]
    Auto,
    /// Never; nothing is sent to routers.
    Off,
}

impl PortMapping {
    /// As flag and file have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
        }
    }
}

impl FromStr for PortMapping {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err("it is auto or off"),
        }
    }
}

/// What a client is for. The order is that of reports.
type Site = (SocketAddr, IpAddr, u32);

/// All clients.
pub(super) struct PortMapper {
    mode: PortMapping,
    secret: [u8; 32],
    hosts: Vec<HostAddress>,
    gateways: Vec<Gateway>,
    names: BTreeMap<u32, String>,
    nat: Mapping,
    /// Until then the NAT may still become known.
    grace: Option<Instant>,
    clients: BTreeMap<Site, Running>,
    reports: BTreeMap<Site, Report>,
    sender: mpsc::Sender<(Site, u64, Report)>,
    receiver: mpsc::Receiver<(Site, u64, Report)>,
    started: u64,
}

struct Running {
    number: u64,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl PortMapper {
    /// `secret` is the node's own: mappings are known again by what is derived from it.
    pub(super) fn new(mode: PortMapping, secret: [u8; 32]) -> Self {
        let (sender, receiver) = mpsc::channel(REPORTS);
        Self {
            mode,
            secret,
            hosts: Vec::new(),
            gateways: Vec::new(),
            names: BTreeMap::new(),
            nat: Mapping::Unknown,
            grace: Some(Instant::now() + NAT_GRACE),
            clients: BTreeMap::new(),
            reports: BTreeMap::new(),
            sender,
            receiver,
            started: 0,
        }
    }

    /// The addresses that the node uses, and the routers of its interfaces, as they are now. True if
    /// something that was mapped may not be any more.
    pub(super) fn network(
        &mut self,
        hosts: &[HostAddress],
        gateways: Vec<Gateway>,
        interfaces: &[netlink::Interface],
    ) -> bool {
        self.hosts = hosts.to_vec();
        self.gateways = gateways;
        self.names = (interfaces.iter())
            .map(|interface| (interface.index, interface.name.clone()))
            .collect();
        self.sync()
    }

    /// What STUN servers say of the NAT. True as above.
    pub(super) fn nat(&mut self, nat: Mapping) -> bool {
        self.nat = nat;
        if nat != Mapping::Unknown {
            self.grace = None;
        }
        self.sync()
    }

    /// Waits until something has changed; cancel-safe.
    pub(super) async fn changed(&mut self) {
        loop {
            let grace = self.grace;
            let grace = async {
                match grace {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = self.receiver.recv() => {
                    let Some((site, number, report)) = told else { continue };
                    let current = self.clients.get(&site);
                    if current.is_none_or(|running| running.number != number) {
                        continue;
                    }
                    let before = self.reports.insert(site, report.clone());
                    // A renewal is no news.
                    let mapped = external(&report);
                    if mapped.is_none() || mapped != before.as_ref().and_then(external) {
                        log(&report);
                    }
                    return;
                }
                () = grace => {
                    self.grace = None;
                    self.sync();
                }
            }
        }
    }

    /// What is known of the routers.
    pub(super) fn reports(&self) -> Vec<Report> {
        self.reports.values().cloned().collect()
    }

    /// Ports on routers that lead to us, by our own address. An open IPv6 firewall gives no address
    /// that is not a candidate already.
    pub(super) fn mapped(&self) -> BTreeMap<SocketAddr, SocketAddr> {
        let mapped = |report: &Report| Some((report.local, external(report)?));
        let mapped = self.reports.values().filter_map(mapped);
        mapped
            .filter(|(local, external)| local != external)
            .collect()
    }

    /// Takes all mappings back.
    pub(super) async fn stop(&mut self) {
        let clients = std::mem::take(&mut self.clients);
        let tasks: Vec<_> = (clients.into_values())
            .map(|running| {
                // Fails only when it has ended already.
                let _ = running.stop.send(());
                running.task
            })
            .collect();
        let all = futures_util::future::join_all(tasks);
        let _ = tokio::time::timeout(STOP_TIMEOUT, all).await;
    }

    /// Starts and ends clients so that there is one for each address that needs one.
    fn sync(&mut self) -> bool {
        let wanted = self.wanted();
        let gone: Vec<Site> = (self.clients.keys())
            .filter(|site| !wanted.contains(site))
            .copied()
            .collect();
        for site in &gone {
            if let Some(running) = self.clients.remove(site) {
                let _ = running.stop.send(());
            }
            self.reports.remove(site);
        }
        for site in wanted {
            if !self.clients.contains_key(&site) {
                self.start(site);
            }
        }
        !gone.is_empty()
    }

    fn wanted(&self) -> BTreeSet<Site> {
        if self.mode == PortMapping::Off || self.grace.is_some() {
            return BTreeSet::new();
        }
        let needs = |host: &&HostAddress| match host.address.ip() {
            IpAddr::V4(v4) => is_private(v4.into()) && self.nat != Mapping::None,
            IpAddr::V6(v6) => !is_private(v6.into()),
        };
        let usable = |host: &&HostAddress| is_candidate_address(host.address.ip());
        let hosts = self.hosts.iter().filter(usable);
        let sites = hosts.filter(needs).filter_map(|host| {
            let of_host = |gateway: &&Gateway| {
                gateway.interface == host.interface
                    && gateway.address.is_ipv4() == host.address.is_ipv4()
            };
            let gateway = self.gateways.iter().find(of_host)?;
            Some((host.address, gateway.address, host.interface))
        });
        sites.take(MAX_CLIENTS).collect()
    }

    fn start(&mut self, site: Site) {
        let (local, gateway, index) = site;
        let (Some(name), Ok(seed)) = (self.names.get(&index).cloned(), random()) else {
            return;
        };
        let config = Config {
            local,
            gateway,
            purpose: Purpose::Map,
            nonce: self.nonce(local, gateway),
            seed,
        };
        let (stop, stopped) = oneshot::channel();
        self.started += 1;
        let number = self.started;
        let sender = self.sender.clone();
        let task = tokio::spawn(async move {
            let interface = Interface { index, name };
            let told = |report| {
                // Full only when the daemon is stuck.
                let _ = sender.try_send((site, number, report));
            };
            let stopped = async {
                let _ = stopped.await;
            };
            if let Err(error) = portmap::run(&interface, config, told, stopped).await {
                tracing::debug!(event = "no-port-mapping", interface = interface.name, %error);
            }
        });
        let running = Running { number, stop, task };
        self.clients.insert(site, running);
    }

    /// The same for the same port and router whenever the daemon starts: after a crash the router
    /// still has our mapping, and would refuse it to a stranger.
    fn nonce(&self, local: SocketAddr, gateway: IpAddr) -> [u8; NONCE_LEN] {
        let site = format!("{local} {gateway}");
        let mut nonce = [0; NONCE_LEN];
        let expanded = Hkdf::<Sha256>::new(None, &self.secret)
            .expand_multi_info(&[NONCE_LABEL, site.as_bytes()], &mut nonce);
        // Fails only past 255 hashes of output.
        debug_assert!(expanded.is_ok());
        nonce
    }
}

fn external(report: &Report) -> Option<SocketAddr> {
    match report.outcome {
        Outcome::Mapped { external, .. } => Some(external),
        Outcome::Looking
        | Outcome::Nothing
        | Outcome::Offered
        | Outcome::Refused { .. }
        | Outcome::TwoLayers => None,
    }
}

fn log(report: &Report) {
    let router = report.gateway;
    match report.outcome {
        Outcome::Mapped {
            protocol, external, ..
        } => {
            tracing::info!(event = "port-mapped", protocol = protocol.as_str(), %external, %router);
        }
        Outcome::Refused { protocol, refusal } => {
            tracing::info!(event = "port-not-mapped", reason = %refusal, protocol = protocol.as_str(), %router);
        }
        Outcome::TwoLayers => {
            tracing::info!(event = "port-not-mapped", reason = "another NAT is before the router", %router);
        }
        Outcome::Looking | Outcome::Nothing | Outcome::Offered => {
            tracing::debug!(event = "port-mapping", outcome = ?report.outcome, %router);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn mapper(mode: PortMapping) -> PortMapper {
        let mut mapper = PortMapper::new(mode, [1; 32]);
        mapper.grace = None;
        mapper.nat = Mapping::AddressAndPortDependent;
        let hosts = [
            ("192.168.1.2:51821", 2),
            ("10.0.0.5:51821", 3),
            ("203.0.114.7:51821", 2),
            ("[2001:db8::2]:51821", 2),
            ("[fd00::2]:51821", 2),
            ("[fe80::2]:51821", 2),
            ("169.254.3.4:51821", 2),
        ];
        mapper.hosts = (hosts.iter())
            .map(|(address, interface)| HostAddress {
                address: at(address),
                interface: *interface,
            })
            .collect();
        let gateway = |address: &str| Gateway {
            interface: 2,
            address: address.parse().unwrap(),
        };
        mapper.gateways = vec![gateway("192.168.1.1"), gateway("fe80::1")];
        mapper
    }

    #[test]
    fn only_who_is_behind_a_router_asks_it() {
        let wanted = |mapper: &PortMapper| -> Vec<String> {
            let sites = mapper.wanted();
            let texts = sites
                .iter()
                .map(|(local, gateway, _)| format!("{local} {gateway}"));
            texts.collect()
        };
        let mut mapper = mapper(PortMapping::Auto);
        let (v4, v6) = (
            "192.168.1.2:51821 192.168.1.1",
            "[2001:db8::2]:51821 fe80::1",
        );
        assert_eq!(wanted(&mapper), [v4, v6]);
        mapper.nat = Mapping::None;
        assert_eq!(wanted(&mapper), [v6], "no NAT, no mapping");
        mapper.nat = Mapping::Unknown;
        mapper.grace = Some(Instant::now());
        assert_eq!(wanted(&mapper), Vec::<String>::new(), "too early to tell");
    }

    #[test]
    fn off_is_off() {
        assert!(mapper(PortMapping::Off).wanted().is_empty());
    }

    #[test]
    fn nonces_last_and_differ() {
        let (one, same) = (mapper(PortMapping::Auto), mapper(PortMapping::Auto));
        let mut other = mapper(PortMapping::Auto);
        other.secret = [2; 32];
        let router = at("192.168.1.1:1").ip();
        let nonce = |mapper: &PortMapper, local| mapper.nonce(at(local), router);
        let first = nonce(&one, "192.168.1.2:51821");
        assert_eq!(nonce(&same, "192.168.1.2:51821"), first);
        assert_ne!(nonce(&same, "192.168.1.2:51822"), first);
        assert_ne!(nonce(&other, "192.168.1.2:51821"), first);
    }
}
