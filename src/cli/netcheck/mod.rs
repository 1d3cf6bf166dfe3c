//! `wice netcheck`: what the network around this node lets through, found out over sockets of its own.

mod nat;
mod port_mapping;
mod refused;
pub(super) mod relay;
pub(super) mod stun;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use wice_signaling::protocol::{NatBehavior, ServerAddress, ServerKind};

use super::daemon::connect;
use super::{Control, block_on, print, print_json};
use crate::core::policy::{is_candidate_address, is_private};
use crate::daemon::control::{Reply, Request, TurnLogin};
use crate::report::{
    Health, MappingObservation, Nat, Netcheck, NetcheckFamily, PortMapping, RelayCheck, SCHEMA,
    Style, Udp,
};
use crate::wireguard::netlink::{LinkKind, Netlink};
use nat::{Family, FamilyResult, Server};
use relay::RelayTools;

/// A name that takes longer to resolve is given up.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Find out what this network lets through: UDP, the NAT's mapping and filtering, hairpin, IPv4, IPv6, port mapping, relays.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice netcheck                                  with the servers of the daemon that runs here
  wice netcheck --stun stun:stun1.example,stun:stun2.example
  wice netcheck --turn turn:turn.example --turn turns:turn.example:443 --turn-username u --turn-password-file p

It needs no daemon and no privileges. Two STUN servers tell the mapping; one with two addresses (RFC 5780, like coturn's) the filtering.
Exit codes: 0 UDP and every relay work, 1 some do, 2 nothing answers, or nobody is known to ask.")]
pub(super) struct NetcheckArgs {
    /// STUN servers, like stun:stun.example:3478.
    #[arg(long, value_name = "URL", env = "WICE_STUN", value_delimiter = ',')]
    stun: Vec<ServerAddress>,
    /// TURN servers, like turn:turn.example:3478 or turns:turn.example:443.
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    turn: Vec<ServerAddress>,
    /// Username for --turn.
    #[arg(long, value_name = "NAME", requires = "turn_password_file")]
    turn_username: Option<String>,
    /// A file with the password for --turn.
    #[arg(long, value_name = "FILE", requires = "turn_username")]
    turn_password_file: Option<PathBuf>,
    /// Authorities to trust for relays over TLS, in PEM.
    #[arg(long, value_name = "FILE", env = "WICE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// HTTP proxy for relays over TCP and TLS, like http://proxy.example:3128 [default: $HTTPS_PROXY].
    #[arg(long, value_name = "URL", env = "WICE_PROXY", hide_env_values = true)]
    proxy: Option<String>,
    /// JSON for machines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: Control,
}

pub(super) fn netcheck(args: &NetcheckArgs) -> anyhow::Result<Health> {
    let netcheck = block_on(run(args))?;
    match args.json {
        true => print_json(&netcheck)?,
        false => print(&netcheck.text(Style::of_stdout()))?,
    }
    Ok(netcheck.health())
}

/// What is to be asked.
#[derive(Default)]
struct Servers {
    stun: Vec<ServerAddress>,
    turn: Vec<Login>,
    ca_file: Option<PathBuf>,
    notes: Vec<String>,
}

/// A TURN server, and what opens it.
#[derive(Clone)]
struct Login {
    address: ServerAddress,
    credentials: Option<(String, String)>,
}

async fn run(args: &NetcheckArgs) -> anyhow::Result<Netcheck> {
    let mut servers = servers(args).await?;
    // Whoever relays answers STUN, too.
    let relays_as_stun = servers
        .turn
        .iter()
        .filter(|login| matches!(login.address.kind, ServerKind::Turn(t) if t == wice_signaling::protocol::RelayTransport::Udp))
        .map(|login| login.address.clone());
    let stun: Vec<ServerAddress> = servers.stun.iter().cloned().chain(relays_as_stun).collect();
    let mut resolved = Vec::new();
    for server in &stun {
        match resolve(server).await {
            Ok(addresses) => resolved.extend(addresses.into_iter().map(|address| Server {
                name: server.host.clone(),
                address,
            })),
            Err(error) => servers.notes.push(error),
        }
    }
    let mut seen = BTreeSet::new();
    resolved.retain(|server: &Server| seen.insert(server.address));
    let tools = RelayTools::new(
        args.ca_file
            .as_ref()
            .or(servers.ca_file.as_ref())
            .map(PathBuf::as_path),
        proxy(args.proxy.as_ref())?.as_deref(),
    );
    let tools = tools.map_err(|error| servers.notes.push(error)).ok();
    let relays = async {
        match &tools {
            Some(tools) => check_relays(&servers.turn, tools).await,
            None => Vec::new(),
        }
    };
    let (v4, v6, relays, addresses, routers) = tokio::join!(
        nat::examine(Family::V4, &resolved),
        nat::examine(Family::V6, &resolved),
        relays,
        interface_addresses(),
        port_mapping::look(),
    );
    let addresses = addresses.unwrap_or_else(|error| {
        servers
            .notes
            .push(format!("interfaces cannot be listed: {error:#}"));
        Vec::new()
    });
    let routers = routers.unwrap_or_else(|error| {
        servers
            .notes
            .push(format!("routers cannot be asked: {error:#}"));
        Vec::new()
    });
    Ok(report(v4, v6, relays, routers, &addresses, servers.notes))
}

fn report(
    v4: FamilyResult,
    v6: FamilyResult,
    relays: Vec<RelayCheck>,
    port_mappings: Vec<PortMapping>,
    addresses: &[IpAddr],
    mut notes: Vec<String>,
) -> Netcheck {
    let of = |ipv4: bool, result: &FamilyResult| NetcheckFamily {
        addresses: addresses
            .iter()
            .copied()
            .filter(|a| a.is_ipv4() == ipv4)
            .collect(),
        works: result.works(),
    };
    let (ipv4, ipv6) = (of(true, &v4), of(false, &v6));
    let relay_udp = relays
        .iter()
        .flat_map(|relay| &relay.transports)
        .any(|check| check.transport == "udp" && check.rtt_ms.is_some());
    let mut refused = v4.refused.iter().chain(&v6.refused).peekable();
    let udp = match (v4.works(), v6.works()) {
        (Some(true), _) | (_, Some(true)) => Udp::Open,
        _ if relay_udp => Udp::Open,
        // What says that nothing listens there was reached; whether answers come back is not known.
        _ if refused.peek().is_some() => Udp::Unknown,
        (None, None) => Udp::Unknown,
        (_, _) => Udp::Blocked,
    };
    notes.extend(refused.map(|server| {
        format!("nothing listens at {server}: UDP leaves this network, but that STUN server does not run")
    }));
    let main = if v4.works() == Some(true) || v6.works() != Some(true) {
        &v4
    } else {
        &v6
    };
    let mut nat: Nat = crate::report::nat_of(
        main.behavior,
        ipv6.addresses.iter().any(|a| !is_private(*a)),
    );
    if udp == Udp::Blocked {
        nat.mapping = "blocked".to_owned();
    }
    let hairpin = main.hairpin;
    let mappings: Vec<MappingObservation> = v4.mappings.into_iter().chain(v6.mappings).collect();
    Netcheck {
        schema: SCHEMA,
        udp,
        nat,
        mappings,
        hairpin,
        ipv4,
        ipv6,
        relays,
        port_mappings,
        notes,
    }
}

/// From flags, and from the daemon if one runs.
async fn servers(args: &NetcheckArgs) -> anyhow::Result<Servers> {
    let credentials = match (&args.turn_username, &args.turn_password_file) {
        (Some(name), Some(path)) => {
            let password = std::fs::read_to_string(path)
                .with_context(|| format!("the password {} cannot be read", path.display()))?;
            Some((name.clone(), password.trim().to_owned()))
        }
        (_, _) => None,
    };
    let mut servers = Servers {
        stun: args.stun.clone(),
        turn: args
            .turn
            .iter()
            .map(|address| Login {
                address: address.clone(),
                credentials: credentials.clone(),
            })
            .collect(),
        ca_file: None,
        notes: Vec::new(),
    };
    if !servers.stun.is_empty() || !servers.turn.is_empty() {
        return Ok(servers);
    }
    let told = match connect(&args.control).await {
        Ok(mut client) => client
            .call(&Request::Servers)
            .await
            .map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    match told {
        Ok(Reply::Servers(told)) => {
            servers.stun = told
                .stun
                .iter()
                .filter_map(|url| url.parse().ok())
                .collect();
            servers.turn = told.turn.iter().filter_map(login).collect();
            servers.ca_file = told.ca_file;
        }
        Ok(_) => servers
            .notes
            .push("the daemon does not tell its servers: is it of another version?".to_owned()),
        Err(error) => {
            let what = format!("{error:#}");
            let what = what.lines().next().unwrap_or_default();
            servers
                .notes
                .push(format!("{what}; give servers with --stun and --turn"));
        }
    }
    Ok(servers)
}

fn login(told: &TurnLogin) -> Option<Login> {
    Some(Login {
        address: told.url.parse().ok()?,
        credentials: Some((told.username.clone(), told.password.clone())),
    })
}

/// The one that was given, or the environment's.
pub(super) fn proxy(given: Option<&String>) -> anyhow::Result<Option<String>> {
    let proxy = match given {
        Some(proxy) => Some(proxy.clone()),
        None => crate::config::Surroundings::here().https_proxy,
    };
    Ok(proxy.filter(|proxy| !proxy.is_empty()))
}

async fn check_relays(logins: &[Login], tools: &RelayTools) -> Vec<RelayCheck> {
    let mut tasks = tokio::task::JoinSet::new();
    for (index, login) in logins.iter().enumerate() {
        let (login, tools) = (login.clone(), tools.clone());
        tasks.spawn(async move {
            let name = login.address.host.clone();
            (index, name, relay::check(&login, &tools).await)
        });
    }
    let mut results: Vec<_> = tasks.join_all().await;
    results.sort_by_key(|(index, _, _)| *index);
    let mut relays: Vec<RelayCheck> = Vec::new();
    for (_, name, check) in results {
        match relays.iter_mut().find(|relay| relay.name == name) {
            Some(relay) => relay.transports.push(check),
            None => relays.push(RelayCheck {
                name,
                transports: vec![check],
            }),
        }
    }
    relays
}

/// One address a family.
pub(super) async fn resolve(server: &ServerAddress) -> Result<Vec<SocketAddr>, String> {
    let host = (server.host.as_str(), server.port);
    let failed = |why: String| {
        format!(
            "{} cannot be resolved: {why}; check the name and the DNS servers",
            server.host
        )
    };
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(host))
        .await
        .map_err(|_| failed("no answer".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    let mut by_family: BTreeMap<bool, SocketAddr> = BTreeMap::new();
    for address in found {
        by_family.entry(address.is_ipv6()).or_insert(address);
    }
    Ok(by_family.into_values().collect())
}

/// Addresses that could be candidates.
async fn interface_addresses() -> anyhow::Result<Vec<IpAddr>> {
    let netlink = Netlink::connect()?;
    let routes = netlink.default_routes().await?;
    let interfaces = netlink.interfaces().await?;
    let mut addresses: Vec<IpAddr> = interfaces
        .iter()
        .filter(|interface| {
            let foreign = matches!(
                interface.kind,
                LinkKind::Loopback | LinkKind::Bridge | LinkKind::Tun | LinkKind::WireGuard
            );
            let default = [routes.v4, routes.v6].contains(&Some(interface.index));
            interface.running && (default || !foreign)
        })
        .flat_map(|interface| &interface.addresses)
        .filter(|address| !address.tentative && !address.deprecated)
        .map(|address| address.ip)
        .filter(|ip| is_candidate_address(*ip))
        .collect();
    addresses.dedup();
    Ok(addresses)
}

/// Nothing known.
fn unknown_nat() -> NatBehavior {
    NatBehavior::default()
}
