//! A lab that stands: its nodes, its programs, and what can be done to it while it runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::build::{carrier_of, eth0_up, home_prefixes, ip};
use super::config::{HomeConfig, LabConfig};
use super::directory::Directory;
use super::error::{Doing as _, LabError};
use super::netns::NetNs;
use super::plan::{self, Lan};
use super::probe::StunServers;
use super::process::{Process, Spawner};
use super::proxy::{ConnectProxy, PROXY_PORT};
use super::ruleset::Ruleset;
use super::servers::{Ready, STUN_OTHER_PORT, STUN_PORT, wait_ready};
use super::switch::{AttachmentId, Counters, Link, Switch};
use super::tools;

/// An internet and homes. Dropping it ends its programs and removes all of it.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: programs, then what they stand on.
    services: BTreeMap<String, Process>,
    pub(super) proxies: Vec<ConnectProxy>,
    spawner: Spawner,
    pub(super) switch: Switch,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) routers: BTreeMap<String, Router>,
    waiting: Vec<(String, String, Vec<Ready>)>,
    pub(super) config: LabConfig,
    pub(super) build_time: Duration,
    pub(super) directory: Directory,
}

/// A machine of the lab: a node of a home, or a server.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    home: Option<String>,
    ns: NetNs,
    addresses: Vec<IpAddr>,
    attachment: Option<AttachmentId>,
    folder: PathBuf,
}

/// A home's router, or a carrier's.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) ns: NetNs,
    ruleset: Ruleset,
    attachment: Option<AttachmentId>,
    site: u8,
    generation: u8,
}

impl Lab {
    /// A node or server (`turn`, `stun-2`, `signal`) by name.
    pub fn node(&self, name: &str) -> Result<&Node, LabError> {
        self.nodes.get(name).ok_or_else(|| self.unknown(name))
    }

    /// Every machine in the order of names: nodes, proxies and servers.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The namespace of a node, or of the router of a home or carrier as `HOME.router` or by the
    /// carrier's name.
    pub fn namespace(&self, name: &str) -> Result<&NetNs, LabError> {
        if let Some(node) = self.nodes.get(name) {
            return Ok(&node.ns);
        }
        let router = self
            .routers
            .get(name.strip_suffix(".router").unwrap_or(name));
        router
            .map(|router| &router.ns)
            .ok_or_else(|| self.unknown(name))
    }

    /// A command that will run on a machine of the lab.
    pub fn command(
        &self,
        name: &str,
        program: impl AsRef<std::ffi::OsStr>,
    ) -> Result<Command, LabError> {
        Ok(self.namespace(name)?.command(program))
    }

    /// Starts a program on a machine; its output is in the lab's `logs/NAME.log`. It ends with the
    /// returned value, or with the lab.
    pub fn start(
        &self,
        machine: &str,
        name: &str,
        prepare: impl FnOnce(&NetNs) -> Command,
    ) -> Result<Process, LabError> {
        let ns = self.namespace(machine)?;
        self.spawner.spawn(prepare(ns), name, &self.directory)
    }

    /// Starts a service, waits until it answers, and keeps it for as long as the lab stands.
    pub fn start_service(
        &mut self,
        machine: &str,
        name: &str,
        ready: &[Ready],
        prepare: impl FnOnce(&NetNs) -> Command,
    ) -> Result<(), LabError> {
        let mut process = self.start(machine, name, prepare)?;
        let ns = self.namespace(machine)?;
        wait_ready(ns, &mut process, ready)?;
        self.services.insert(name.to_string(), process);
        Ok(())
    }

    /// A service that was started: `turn`, `stun-2`, or what [`Self::start_service`] named.
    pub fn service(&mut self, name: &str) -> Result<&mut Process, LabError> {
        if !self.services.contains_key(name) {
            return Err(self.unknown(name));
        }
        self.services.get_mut(name).ok_or(LabError::Interrupted)
    }

    /// Starts the relay again after it was ended.
    pub fn restart_turn(&mut self) -> Result<(), LabError> {
        let ns = self.node("turn")?.ns().clone();
        let (command, ready) = self.turn(&ns)?;
        self.start_later("turn", "turn", command, ready)?;
        self.wait_for_services()
    }

    /// How long the building took, servers' start included.
    pub fn build_time(&self) -> Duration {
        self.build_time
    }

    /// What the lab was asked to be.
    pub fn config(&self) -> &LabConfig {
        &self.config
    }

    /// The directory of logs, states and names.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The certificate authority of the relay, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The STUN servers over IPv4.
    pub fn stun_servers(&self) -> StunServers {
        stun_servers(
            plan::TURN.into(),
            plan::TURN_OTHER.into(),
            plan::STUN_2.into(),
        )
    }

    /// The STUN servers over IPv6.
    pub fn stun_servers_v6(&self) -> StunServers {
        stun_servers(
            plan::TURN_V6.into(),
            plan::TURN_OTHER_V6.into(),
            plan::STUN_2_V6.into(),
        )
    }

    /// Where a home's HTTP CONNECT proxy listens.
    pub fn proxy(&self, home: &str) -> Result<SocketAddr, LabError> {
        let node = self.node(&format!("{home}.proxy"))?;
        let address = node.addresses.first().ok_or_else(|| self.unknown(home))?;
        Ok(SocketAddr::new(*address, PROXY_PORT))
    }

    /// The properties of a home's, carrier's or server's attachment to the internet.
    pub fn link(&self, name: &str) -> Result<Link, LabError> {
        Ok(self.switch.link(self.attachment(name)?))
    }

    /// Changes them, from the next packet on.
    pub fn set_link(&self, name: &str, change: impl FnOnce(&mut Link)) -> Result<(), LabError> {
        let id = self.attachment(name)?;
        let mut link = self.switch.link(id);
        change(&mut link);
        self.switch.set_link(id, link);
        Ok(())
    }

    /// What became of the internet's packets so far.
    pub fn counters(&self) -> Counters {
        self.switch.counters()
    }

    /// Switches the router of a home or carrier off and on: it forgets every flow and mapping.
    pub fn reboot_nat(&self, name: &str) -> Result<(), LabError> {
        let router = self.routers.get(name).ok_or_else(|| self.unknown(name))?;
        // Rules first: a packet between the two would be mapped by rules that are about to go.
        router.load()?;
        router.ns.flush_conntrack()
    }

    /// Switches a router that maps ports off and on: no flow, no mapping, and its epoch starts anew.
    pub fn reboot_mapper(&mut self, home: &str) -> Result<(), LabError> {
        self.service(&mapper_of(home))?.kill9();
        self.reboot_nat(home)?;
        self.start_mapper(home)
    }

    /// Starts what maps ports on the router of a home, if it does.
    pub(super) fn start_mapper(&mut self, home: &str) -> Result<(), LabError> {
        let mapper = self.config.homes.iter().find(|known| known.name == home);
        let Some(mapper) = mapper.and_then(|home| home.mapper) else {
            return Ok(());
        };
        let ns = self.namespace(&format!("{home}.router"))?.clone();
        let command = mapper.command(home, &ns, self.directory.path())?;
        self.start_later(
            &format!("{home}.router"),
            &mapper_of(home),
            command,
            Vec::new(),
        )
    }

    /// Gives the router of a home or carrier another IPv4 address on the internet, as a provider
    /// does overnight; its flows are lost. Gives the new address.
    pub fn renumber_wan(&mut self, name: &str) -> Result<Ipv4Addr, LabError> {
        let unknown = self.unknown(name);
        let attachment = self.attachment(name)?;
        let home = self
            .config
            .homes
            .iter()
            .find(|home| home.name == name)
            .cloned();
        let Some(router) = self.routers.get_mut(name) else {
            return Err(unknown);
        };
        let Some(old) = router.ruleset.wan else {
            return Err(unknown);
        };
        router.generation = router.generation.wrapping_add(1);
        let new = plan::wan(router.site, router.generation);
        router.ruleset.wan = Some(new);
        let prefixes = match &home {
            Some(home) => home_prefixes(home, &lan_of(home, router.site), new, router.site),
            None => vec![super::switch::Prefix::host(new.into())],
        };
        let batch = format!(
            "addr del {old}/32 dev wan\naddr add {new}/32 dev wan\nroute replace 0.0.0.0/0 dev wan\n"
        );
        ip(&router.ns, &batch)?;
        router.load()?;
        router.ns.flush_conntrack()?;
        self.switch.set_prefixes(attachment, prefixes);
        Ok(new)
    }

    /// Changes how long a home's router remembers silent UDP flows; what it has learnt is lost.
    pub fn set_udp_timeout(&mut self, home: &str, timeout: Duration) -> Result<(), LabError> {
        let unknown = self.unknown(home);
        let Some(router) = self.routers.get_mut(home) else {
            return Err(unknown);
        };
        router.ruleset.udp_timeout = timeout;
        router.load()?;
        router.set_udp_timeout(timeout)
    }

    /// Pulls or plugs the wire between a home's node and its LAN.
    pub fn set_lan_up(&self, node: &str, up: bool) -> Result<(), LabError> {
        let node = self.node(node)?;
        let home = self
            .config
            .homes
            .iter()
            .find(|home| Some(home.name.as_str()) == node.home());
        let router = node.home().and_then(|home| self.routers.get(home));
        let (Some(home), Some(router)) = (home, router) else {
            return Err(LabError::Config(format!("{} is on no LAN", node.name)));
        };
        let batch = if up {
            eth0_up(&node.addresses, &lan_of(home, router.site))
        } else {
            "link set eth0 down\n".to_string()
        };
        ip(&node.ns, &batch)
    }

    pub(super) fn empty(
        config: LabConfig,
        directory: Directory,
        switch: Switch,
        spawner: Spawner,
    ) -> Self {
        Self {
            services: BTreeMap::new(),
            proxies: Vec::new(),
            spawner,
            switch,
            nodes: BTreeMap::new(),
            routers: BTreeMap::new(),
            waiting: Vec::new(),
            config,
            build_time: Duration::ZERO,
            directory,
        }
    }

    /// Starts a service that is waited for by [`Self::wait_for_services`].
    pub(super) fn start_later(
        &mut self,
        machine: &str,
        name: &str,
        command: Command,
        ready: Vec<Ready>,
    ) -> Result<(), LabError> {
        let process = self.spawner.spawn(command, name, &self.directory)?;
        self.services.insert(name.to_string(), process);
        self.waiting
            .push((machine.to_string(), name.to_string(), ready));
        Ok(())
    }

    pub(super) fn wait_for_services(&mut self) -> Result<(), LabError> {
        for (machine, name, ready) in std::mem::take(&mut self.waiting) {
            let ns = self.namespace(&machine)?.clone();
            wait_ready(&ns, self.service(&name)?, &ready)?;
        }
        Ok(())
    }

    fn attachment(&self, name: &str) -> Result<AttachmentId, LabError> {
        let of_node = self.nodes.get(name).and_then(|node| node.attachment);
        let of_router = self.routers.get(name).and_then(|router| router.attachment);
        if let Some(id) = of_node.or(of_router) {
            return Ok(id);
        }
        // A home behind a carrier has none of its own.
        let carrier = self
            .config
            .homes
            .iter()
            .find(|h| h.name == name)
            .and_then(carrier_of);
        match carrier {
            Some(carrier) => Err(LabError::Config(format!(
                "{name} is not on the internet itself: name its carrier, {carrier}"
            ))),
            None => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, name: &str) -> LabError {
        let names = self.nodes.keys().chain(self.routers.keys()).cloned();
        let known: std::collections::BTreeSet<String> = names.collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        LabError::Unknown {
            name: name.to_string(),
            known,
        }
    }
}

/// The service that maps ports on the router of a home.
fn mapper_of(home: &str) -> String {
    format!("{home}.mapper")
}

impl Node {
    pub(super) fn new(
        name: &str,
        home: Option<&str>,
        ns: NetNs,
        addresses: Vec<IpAddr>,
        attachment: Option<AttachmentId>,
        folder: PathBuf,
    ) -> Result<Self, LabError> {
        for part in ["state", "run"] {
            fs::create_dir_all(folder.join(part)).doing(|| format!("making folders of {name}"))?;
        }
        let (name, home) = (name.to_string(), home.map(str::to_string));
        Ok(Self {
            name,
            home,
            ns,
            addresses,
            attachment,
            folder,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The home that it is in; servers are in none.
    pub fn home(&self) -> Option<&str> {
        self.home.as_deref()
    }

    /// Its namespace.
    pub fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// The addresses of its own interface, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Where its daemon keeps what lasts.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Where its daemon has its control socket.
    pub fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }
}

impl Router {
    pub(super) fn new(
        ns: NetNs,
        ruleset: Ruleset,
        attachment: Option<AttachmentId>,
        site: u8,
    ) -> Self {
        Self {
            ns,
            ruleset,
            attachment,
            site,
            generation: 0,
        }
    }

    /// Loads the ruleset; what was learnt under the one before is lost.
    pub(super) fn load(&self) -> Result<(), LabError> {
        let program = tools::find("nft").unwrap_or_else(|| "nft".into());
        self.ns.feed(
            &program.to_string_lossy(),
            &["-f", "-"],
            &self.ruleset.text(),
        )
    }

    /// The kernel's own memory of flows, beside the ruleset's of mappings.
    pub(super) fn set_udp_timeout(&self, timeout: Duration) -> Result<(), LabError> {
        let seconds = timeout.as_secs().max(1).to_string();
        self.ns
            .set("netfilter/nf_conntrack_udp_timeout", &seconds)?;
        self.ns
            .set("netfilter/nf_conntrack_udp_timeout_stream", &seconds)
    }
}

/// Sends a line through TCP from one machine to another and back: whether TCP passes.
pub fn tcp_passes(from: &NetNs, to: &NetNs, address: SocketAddr, patience: Duration) -> bool {
    let Ok(Ok(listener)) = to.run(|| TcpListener::bind(address)) else {
        return false;
    };
    let echo = std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else {
            return;
        };
        let mut byte = [0u8; 1];
        let _ = stream
            .read_exact(&mut byte)
            .and_then(|()| stream.write_all(&byte));
    });
    let asked = from.run(|| {
        let mut stream = std::net::TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0u8; 1])
    });
    let passes = matches!(asked, Ok(Ok(())));
    if !passes {
        // Wakes the listener, so that its thread ends.
        let _ = to.run(|| std::net::TcpStream::connect(address));
    }
    let _ = echo.join();
    passes
}

fn lan_of(home: &HomeConfig, site: u8) -> Lan {
    if home.nat.is_public() {
        Lan::public(site)
    } else {
        Lan::private(site, home.subnet)
    }
}

fn stun_servers(primary: IpAddr, other: IpAddr, second: IpAddr) -> StunServers {
    StunServers {
        primary: SocketAddr::new(primary, STUN_PORT),
        other_address: SocketAddr::new(other, STUN_PORT),
        other_port: SocketAddr::new(other, STUN_OTHER_PORT),
        second: SocketAddr::new(second, STUN_PORT),
    }
}
