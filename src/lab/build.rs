//! Building: namespaces, wires, addresses, rulesets, servers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Instant;

use super::config::{CarrierConfig, HomeConfig, Ipv6, LabConfig, NatKind};
use super::directory::Directory;
use super::error::{Doing as _, LabError};
use super::netns::{NetNs, Overlays};
use super::plan::{self, Lan};
use super::process::Spawner;
use super::proxy::ConnectProxy;
use super::ruleset::{DEFAULT_UDP_TIMEOUT, Ruleset};
use super::servers::Certificates;
use super::switch::{AttachmentId, Link, Prefix, Switch};
use super::world::{Lab, Node, Router};
use super::{tools, tun};

/// Settings of every namespace, below `/proc/sys/net`: no waiting for duplicate addresses, no
/// second guesses about where packets may come from, bridges that only bridge.
const SETTINGS: [(&str, &str); 8] = [
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/ping_group_range", "0 0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
];
/// Settings of routers besides.
const ROUTER_SETTINGS: [(&str, &str); 2] =
    [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// Packets a TUN holds before the switch reads them: the kernel's 500 overflow in bursts.
const TUN_QUEUE: usize = 2000;

impl Lab {
    /// Builds a lab and waits until its servers answer.
    pub fn build(config: LabConfig) -> Result<Self, LabError> {
        let start = Instant::now();
        config.check().map_err(LabError::Config)?;
        tools::check_tools(config.needs_coturn())?;
        let mut builder = Builder::new(config)?;
        builder.servers()?;
        builder.carriers()?;
        builder.homes()?;
        let mut lab = builder.finish();
        lab.wait_for_services()?;
        lab.build_time = start.elapsed();
        Ok(lab)
    }
}

struct Builder {
    lab: Lab,
    overlays: Overlays,
    share: Link,
    /// Next number of a site, from which its addresses follow.
    next_site: u8,
    /// Subscribers of each carrier so far: its router's name, site and inside addresses.
    carriers: BTreeMap<String, (u8, Vec<Ipv4Addr>)>,
}

impl Builder {
    fn new(config: LabConfig) -> Result<Self, LabError> {
        let doing = || "making the lab's directory".to_string();
        let directory = Directory::create(config.keep).doing(doing)?;
        let overlays = Overlays {
            directory: Arc::new(directory.path().to_path_buf()),
            hosts: directory.path().join("hosts"),
            resolv: directory.path().join("resolv.conf"),
        };
        fs::write(&overlays.hosts, plan::hosts()).doing(doing)?;
        fs::write(&overlays.resolv, "").doing(doing)?;
        let switch = Switch::start(config.seed).doing(|| "starting the internet".into())?;
        let spawner = Spawner::start().doing(|| "starting the spawner".into())?;
        let share = Link::share_of_pair(config.rtt, config.loss_permille);
        Ok(Self {
            lab: Lab::empty(config, directory, switch, spawner),
            overlays,
            share,
            next_site: 0,
            carriers: BTreeMap::new(),
        })
    }

    fn finish(self) -> Lab {
        self.lab
    }

    /// Public machines; relay and STUN servers are started at once, and warm up meanwhile.
    fn servers(&mut self) -> Result<(), LabError> {
        self.server("signal", &[plan::SIGNAL.into(), plan::SIGNAL_V6.into()])?;
        if !self.lab.config.servers {
            return Ok(());
        }
        let turn: [IpAddr; 4] = [
            plan::TURN.into(),
            plan::TURN_OTHER.into(),
            plan::TURN_V6.into(),
            plan::TURN_OTHER_V6.into(),
        ];
        let folder = self.lab.directory.path().to_path_buf();
        let ns = self.server("turn", &turn)?;
        Certificates::create(&folder)?;
        let (command, ready) = self.lab.turn(&ns)?;
        self.lab.start_later("turn", "turn", command, ready)?;
        let ns = self.server("stun-2", &[plan::STUN_2.into(), plan::STUN_2_V6.into()])?;
        let (command, ready) = self.lab.stun_2(&ns)?;
        self.lab.start_later("stun-2", "stun-2", command, ready)
    }

    fn server(&mut self, name: &str, addresses: &[IpAddr]) -> Result<NetNs, LabError> {
        let ns = self.namespace(name, &[])?;
        let prefixes = addresses.iter().copied().map(Prefix::host).collect();
        let attachment = self.attach(&ns, prefixes)?;
        let mut batch = String::from("link set lo up\n");
        batch.push_str(&wan_up(addresses));
        ip(&ns, &batch)?;
        self.add_node(name, None, ns.clone(), addresses.to_vec(), Some(attachment))?;
        Ok(ns)
    }

    fn carriers(&mut self) -> Result<(), LabError> {
        let own = |home: &HomeConfig| CarrierConfig {
            name: own_carrier(home),
            hairpin: false,
        };
        let homes = self.lab.config.homes.iter();
        let own = homes
            .filter(|h| h.nat == NatKind::Cgnat && h.carrier.is_none())
            .map(own);
        let carriers: Vec<_> = self
            .lab
            .config
            .carriers
            .iter()
            .cloned()
            .chain(own)
            .collect();
        for carrier in carriers {
            self.carrier(&carrier)?;
        }
        Ok(())
    }

    fn carrier(&mut self, carrier: &CarrierConfig) -> Result<(), LabError> {
        let site = self.site();
        let wan = plan::wan(site, 0);
        let ns = self.namespace(&carrier.name, &ROUTER_SETTINGS)?;
        let attachment = self.attach(&ns, vec![Prefix::host(wan.into())])?;
        let inside = plan::carrier(site, None);
        let batch = format!(
            "link set lo up\nlink add lan type bridge\nlink set lan up\naddr add {inside}/24 dev lan\n{}",
            wan_up(&[wan.into()])
        );
        ip(&ns, &batch)?;
        let behind = |home: &&HomeConfig| carrier_of(home).as_ref() == Some(&carrier.name);
        let subscribers = self.lab.config.homes.iter().filter(behind).count();
        let count = u8::try_from(subscribers).unwrap_or(u8::MAX);
        let inside: Vec<_> = (0..count).map(|s| plan::carrier(site, Some(s))).collect();
        let ruleset = Ruleset {
            kind: NatKind::FullCone,
            wan: Some(wan),
            inside,
            // A carrier gives each subscriber a block of ports (RFC 6888 §2, RFC 7753).
            preserve_ports: false,
            hairpin: carrier.hairpin,
            udp_timeout: DEFAULT_UDP_TIMEOUT,
            tcp: super::config::TcpPolicy::Any,
            proxy: None,
            mapper: None,
            ipv6: Ipv6::None,
        };
        let router = Router::new(ns, ruleset, Some(attachment), site);
        router.load()?;
        self.lab.routers.insert(carrier.name.clone(), router);
        self.carriers
            .insert(carrier.name.clone(), (site, Vec::new()));
        Ok(())
    }

    fn homes(&mut self) -> Result<(), LabError> {
        for home in self.lab.config.homes.clone() {
            self.home(&home)?;
            if tools::interrupted() {
                return Err(LabError::Interrupted);
            }
        }
        Ok(())
    }

    fn home(&mut self, home: &HomeConfig) -> Result<(), LabError> {
        let site = self.site();
        let lan = if home.nat.is_public() {
            Lan::public(site)
        } else {
            Lan::private(site, home.subnet)
        };
        let has_v6 = home.ipv6 != Ipv6::None;
        let router = self.namespace(&format!("{}.router", home.name), &ROUTER_SETTINGS)?;
        let mut batch = String::from("link set lo up\nlink add lan type bridge\nlink set lan up\n");
        if home.ipv4 {
            let _ = writeln!(batch, "addr add {}/{} dev lan", lan.router, lan.length);
        }
        if has_v6 {
            let _ = writeln!(batch, "addr add {}/{} dev lan", lan.router6, Lan::LENGTH6);
        }
        let (uplink, wan, attachment) = self.uplink(home, site, &router, &lan)?;
        batch.push_str(&uplink);

        let mut inside = Vec::new();
        for index in 0..home.nodes {
            let number = u8::try_from(index).unwrap_or_default();
            let (v4, v6) = (lan.node(number), lan.node6(number));
            inside.push(v4);
            let mut addresses: Vec<IpAddr> = Vec::new();
            addresses.extend(home.ipv4.then_some(IpAddr::V4(v4)));
            addresses.extend(has_v6.then_some(IpAddr::V6(v6)));
            let ns = self.namespace(&home.node_name(index), &[])?;
            let _ = write!(batch, "{}", wire(&format!("port{index}"), &ns));
            self.add_node(
                &home.node_name(index),
                Some(&home.name),
                ns,
                addresses,
                None,
            )?;
        }
        if home.proxy {
            let ns = self.namespace(&format!("{}.proxy", home.name), &[])?;
            let _ = write!(batch, "{}", wire("proxy", &ns));
            let name = format!("{}.proxy", home.name);
            self.add_node(&name, Some(&home.name), ns, vec![lan.proxy().into()], None)?;
        }
        ip(&router, &batch)?;
        self.lan_up(home, &lan)?;

        let ruleset = Ruleset {
            kind: home.nat,
            wan: home.ipv4.then_some(wan),
            inside,
            preserve_ports: home.preserve_ports,
            hairpin: false,
            udp_timeout: home.udp_timeout.unwrap_or(DEFAULT_UDP_TIMEOUT),
            tcp: home.tcp,
            proxy: home.proxy.then(|| lan.proxy()),
            mapper: home.mapper,
            ipv6: home.ipv6,
        };
        let router = Router::new(router, ruleset, attachment, site);
        router.load()?;
        if let Some(timeout) = home.udp_timeout {
            router.set_udp_timeout(timeout)?;
        }
        self.lab.routers.insert(home.name.clone(), router);
        self.lab.start_mapper(&home.name)
    }

    /// Addresses and routes of everything on a LAN, and its proxy's start.
    fn lan_up(&mut self, home: &HomeConfig, lan: &Lan) -> Result<(), LabError> {
        let members: Vec<Node> = self
            .lab
            .nodes
            .values()
            .filter(|n| n.home() == Some(&home.name))
            .cloned()
            .collect();
        for node in members {
            ip(
                node.ns(),
                &format!("link set lo up\n{}", eth0_up(node.addresses(), lan)),
            )?;
        }
        if home.proxy {
            let ns = self.lab.node(&format!("{}.proxy", home.name))?.ns().clone();
            self.lab
                .proxies
                .push(ConnectProxy::start(&ns, lan.proxy())?);
        }
        Ok(())
    }

    /// The device `wan` of a home's router: on the internet, or on the carrier's LAN. Gives the
    /// router's `ip` commands for it, its address, and its attachment.
    fn uplink(
        &mut self,
        home: &HomeConfig,
        site: u8,
        router: &NetNs,
        lan: &Lan,
    ) -> Result<(String, Ipv4Addr, Option<AttachmentId>), LabError> {
        let Some(carrier) = carrier_of(home) else {
            let wan = match home.mapper {
                Some(_) => plan::mapper_wan(site),
                None => plan::wan(site, 0),
            };
            let prefixes = home_prefixes(home, lan, wan, site);
            let attachment = self.attach(router, prefixes)?;
            let mut addresses: Vec<IpAddr> = Vec::new();
            addresses.extend(home.ipv4.then_some(IpAddr::V4(wan)));
            addresses.extend((home.ipv6 != Ipv6::None).then_some(IpAddr::V6(plan::wan6(site))));
            return Ok((wan_up(&addresses), wan, Some(attachment)));
        };
        let unknown = || LabError::Config(format!("no carrier is named {carrier}"));
        let (carrier_site, subscribers) = self.carriers.get_mut(&carrier).ok_or_else(unknown)?;
        let number = u8::try_from(subscribers.len()).unwrap_or(u8::MAX);
        let wan = plan::carrier(*carrier_site, Some(number));
        subscribers.push(wan);
        let gateway = plan::carrier(*carrier_site, None);
        let carrier_ns = &self.lab.routers.get(&carrier).ok_or_else(unknown)?.ns;
        let port = format!("sub{number}");
        let batch = format!(
            "link add {port} type veth peer name wan netns {}\nlink set {port} master lan up\n",
            router.path().display()
        );
        ip(carrier_ns, &batch)?;
        let batch = format!(
            "addr add {wan}/24 dev wan\nlink set wan up\nroute add default via {gateway}\n"
        );
        Ok((batch, wan, None))
    }

    fn site(&mut self) -> u8 {
        let site = self.next_site;
        self.next_site += 1;
        site
    }

    fn namespace(&self, name: &str, more: &[(&str, &str)]) -> Result<NetNs, LabError> {
        let settings: Vec<_> = SETTINGS.iter().chain(more).copied().collect();
        let ns = NetNs::new(name, &self.overlays, &settings)?;
        // So that another terminal finds it by name: nsenter --net=DIRECTORY/ns/NAME.
        let link = self.lab.directory.path().join("ns").join(name);
        symlink(ns.path(), link).doing(|| format!("naming {name}"))?;
        Ok(ns)
    }

    fn attach(&self, ns: &NetNs, prefixes: Vec<Prefix>) -> Result<AttachmentId, LabError> {
        let tun = tun::create(ns, "wan")?;
        let attached = self.lab.switch.attach(tun, prefixes, self.share);
        attached.doing(|| format!("attaching {}", ns.name()))
    }

    fn add_node(
        &mut self,
        name: &str,
        home: Option<&str>,
        ns: NetNs,
        addresses: Vec<IpAddr>,
        attachment: Option<AttachmentId>,
    ) -> Result<(), LabError> {
        let folder = self.lab.directory.path().join("nodes").join(name);
        let node = Node::new(name, home, ns, addresses, attachment, folder)?;
        self.lab.nodes.insert(name.to_string(), node);
        Ok(())
    }
}

/// What the internet routes to a home.
pub(super) fn home_prefixes(home: &HomeConfig, lan: &Lan, wan: Ipv4Addr, site: u8) -> Vec<Prefix> {
    let mut prefixes = Vec::new();
    if home.ipv4 {
        prefixes.push(Prefix::host(wan.into()));
        if home.nat.is_public() {
            prefixes.push(Prefix::new(lan.router.into(), lan.length));
        }
    }
    if home.ipv6 != Ipv6::None {
        prefixes.push(Prefix::host(plan::wan6(site).into()));
        prefixes.push(Prefix::new(lan.router6.into(), Lan::LENGTH6));
    }
    prefixes
}

/// Commands that bring a LAN member's interface up, for the first time or again: the kernel forgets
/// routes and IPv6 addresses of a device that goes down.
pub(super) fn eth0_up(addresses: &[IpAddr], lan: &Lan) -> String {
    let mut batch = String::from("link set eth0 up\n");
    for address in addresses {
        let (length, gateway) = match address {
            IpAddr::V4(_) => (lan.length, IpAddr::V4(lan.router)),
            IpAddr::V6(_) => (Lan::LENGTH6, IpAddr::V6(lan.router6)),
        };
        let _ = writeln!(batch, "addr replace {address}/{length} dev eth0");
        let _ = writeln!(batch, "route replace default via {gateway}");
    }
    batch
}

/// The carrier that a home is behind.
pub(super) fn carrier_of(home: &HomeConfig) -> Option<String> {
    home.carrier
        .clone()
        .or_else(|| (home.nat == NatKind::Cgnat).then(|| own_carrier(home)))
}

/// Runs `ip` commands in a namespace, all or none of what follows a failure.
pub(super) fn ip(ns: &NetNs, batch: &str) -> Result<(), LabError> {
    let program = tools::find("ip").unwrap_or_else(|| "ip".into());
    ns.feed(&program.to_string_lossy(), &["-batch", "-"], batch)
}

fn own_carrier(home: &HomeConfig) -> String {
    format!("{}.carrier", home.name)
}

fn wan_up(addresses: &[IpAddr]) -> String {
    let mut batch = format!("link set wan txqueuelen {TUN_QUEUE} up\n");
    for address in addresses {
        // Without the flag a new IPv6 address cannot be bound for a moment, detection of duplicates or not.
        let (length, any, flag) = match address {
            IpAddr::V4(_) => (32, "0.0.0.0/0", ""),
            IpAddr::V6(_) => (128, "::/0", " nodad"),
        };
        let _ = writeln!(batch, "addr add {address}/{length} dev wan{flag}");
        let _ = writeln!(batch, "route replace {any} dev wan");
    }
    batch
}

/// A wire from a port of the router's bridge to `eth0` of a namespace.
fn wire(port: &str, ns: &NetNs) -> String {
    format!(
        "link add {port} type veth peer name eth0 netns {}\nlink set {port} master lan up\n",
        ns.path().display()
    )
}
