//! `wice network` and `wice invite`: the admin's side of a network.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use wice_signaling::protocol::{AdminKey, Invite, IpPrefix, NetworkKey, SignalUrl, Token};

use super::random::random;
use super::store::{InviteRecord, Network, names, parse_pin};
use super::{StateDir, Usage, ask, nodes, pin, print, print_json};
use crate::report::{Health, SCHEMA, duration};

/// 2024-01-01: a clock before it has not been set, and an invite by it would have expired.
const CLOCK_IS_SET: u64 = 1_704_067_200;
/// The longest that an invite may last: past it nobody remembers it.
const MAX_EXPIRY: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Make networks, and show, list and remove those whose admin key is on this machine.
#[derive(Args, Debug)]
pub(super) struct NetworkArgs {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Subcommand, Debug)]
enum NetworkCommand {
    New(NewArgs),
    Show(ShowArgs),
    Nodes(nodes::NodesArgs),
    Rm(RmArgs),
}

/// Make a network: its admin key stays on this machine.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice network new lab --signal wss://sig.example:8443
  wice network new lab --signal wss://sig.example:8443 --pin sha256:9f2c…

Without --pin the service's certificate is looked at now: one that a public authority vouches for needs no pin, another is pinned as it is.
Keep <state-dir>/networks/NAME/admin.key safe: who has it can let anyone in.")]
struct NewArgs {
    /// Its name, for people.
    name: String,
    /// The signaling service, like wss://sig.example:8443.
    #[arg(long, value_name = "URL")]
    signal: SignalUrl,
    /// SHA-256 of the service's certificate, as `wice signal` prints it.
    #[arg(long, value_name = "PIN")]
    pin: Option<String>,
    #[command(flatten)]
    state: StateDir,
}

/// Show the networks whose admin key is on this machine: ids, services, invites given out, nodes and invites revoked.
#[derive(Args, Debug)]
#[command(after_help = "The nodes themselves: wice network nodes")]
struct ShowArgs {
    /// Only this one.
    name: Option<String>,
    /// JSON for machines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: StateDir,
}

/// Remove a network from this machine, with its admin key. It cannot be taken back.
#[derive(Args, Debug)]
#[command(after_help = "\
Nodes that joined stay connected to each other where a signaling service goes on serving them (--network ID); but nobody can be
let in or put out any more. Copy <state-dir>/networks/NAME elsewhere first if in doubt.")]
struct RmArgs {
    /// Its name.
    name: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    state: StateDir,
}

/// Print a token that lets nodes into a network; nothing else goes to standard output.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice invite
  wice invite --expires 30d --label rack-7 --route 10.7.0.0/16
  wice invite | ssh root@box wice up -

One token lets in any number of nodes until it expires; nodes that joined stay. `wice revoke` puts them out.")]
pub(super) struct InviteArgs {
    /// The network; not needed where there is only one.
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// For how long new nodes may join: 90m, 24h, 30d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    expires: Duration,
    /// A network that nodes of this invite may route; give it once for each.
    #[arg(long, value_name = "CIDR")]
    route: Vec<IpPrefix>,
    /// What it is for.
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn network(args: &NetworkArgs) -> anyhow::Result<Health> {
    match &args.command {
        NetworkCommand::New(args) => new(args),
        NetworkCommand::Show(args) => show(args),
        NetworkCommand::Nodes(args) => nodes::nodes(args),
        NetworkCommand::Rm(args) => remove(args),
    }
}

pub(super) fn invite(args: &InviteArgs) -> anyhow::Result<Health> {
    let mut network = Network::open(&args.state.state_dir, args.network.as_deref())?;
    let expiry = now()?.saturating_add(args.expires.as_secs());
    let invite = Invite::new(&network.admin, &random()?, expiry, &args.label, &args.route)?;
    let id = invite.certificate().id.to_string();
    let token = Token {
        url: network.url()?,
        pin: network.pin()?,
        network: network.admin.network_id(),
        network_key: network.network_key()?,
        network_name: network.record.name.clone(),
        invite,
    };
    let text = token.encode()?;
    network.note_invite(InviteRecord {
        id: id.clone(),
        label: args.label.clone(),
        expiry,
        routes: args.route.iter().map(ToString::to_string).collect(),
    })?;
    print(&format!("{}\n", *text))?;
    eprintln!(
        "invite {} into {}: new nodes may join for {}; on each: wice up TOKEN, or wice attach INTERFACE TOKEN for one that it has",
        &id[..8],
        network.record.name,
        duration(args.expires)
    );
    Ok(Health::Well)
}

fn new(args: &NewArgs) -> anyhow::Result<Health> {
    // Before anybody is asked for a certificate.
    Network::place(&args.state.state_dir, &args.name)?;
    let pin = match &args.pin {
        Some(text) => Some(parse_pin(text)?),
        None => pin::find(&args.signal, &args.state.state_dir)?,
    };
    let admin = AdminKey::from_seed(&random()?);
    let network_key = NetworkKey::from_bytes(random()?);
    let network = Network::create(
        &args.state.state_dir,
        &args.name,
        &args.signal,
        pin,
        admin,
        &network_key,
    )?;
    print(&format!("{}\n", network.admin.network_id()))?;
    eprintln!(
        "network {} made, id above; let nodes in: wice invite --network {}",
        args.name, args.name
    );
    Ok(Health::Well)
}

fn remove(args: &RmArgs) -> anyhow::Result<Health> {
    let network = Network::open(&args.state.state_dir, Some(&args.name))?;
    let question = format!(
        "The admin key of {} ({}) is removed: nobody can be let in or put out any more, and the signaling service of this machine ends to serve it.",
        args.name,
        network.admin.network_id()
    );
    ask::confirm(&question, args.yes)?;
    network.remove()?;
    print(&format!(
        "network {} is removed from this machine\n",
        args.name
    ))?;
    Ok(Health::Well)
}

fn show(args: &ShowArgs) -> anyhow::Result<Health> {
    let state_dir = &args.state.state_dir;
    let wanted = match &args.name {
        Some(name) => vec![name.clone()],
        None => names(state_dir),
    };
    if wanted.is_empty() {
        // Says what to do.
        Network::open(state_dir, None)?;
    }
    let networks: Vec<Network> = wanted
        .iter()
        .map(|name| Network::open(state_dir, Some(name)))
        .collect::<anyhow::Result<_>>()?;
    if args.json {
        let networks: Vec<_> = networks.iter().map(json).collect();
        print_json(&serde_json::json!({ "schema": SCHEMA, "networks": networks }))?;
        return Ok(Health::Well);
    }
    let now = now().unwrap_or_default();
    let blocks: Vec<String> = networks.iter().map(|network| text(network, now)).collect();
    print(&blocks.join("\n"))?;
    Ok(Health::Well)
}

fn text(network: &Network, now: u64) -> String {
    let id = network.admin.network_id();
    let mut out = format!("{}\n  id      {id}\n", network.record.name);
    if let Ok(url) = network.url() {
        out.push_str(&format!("  signal  {url}\n"));
    }
    let pin = network.pin().ok().flatten();
    let pin = pin.map_or_else(
        || "none: a public authority vouches".to_owned(),
        |pin| pin.to_string(),
    );
    out.push_str(&format!("  pin     {pin}\n"));
    for invite in &network.record.invites {
        let left = match invite.expiry.checked_sub(now).filter(|left| *left > 0) {
            Some(left) => format!("for {}", duration(Duration::from_secs(left))),
            None => "expired".to_owned(),
        };
        let revoked = if is_revoked(network, &invite.id) {
            "  revoked"
        } else {
            ""
        };
        let routes = if invite.routes.is_empty() {
            String::new()
        } else {
            format!("  routes {}", invite.routes.join(", "))
        };
        let label = if invite.label.is_empty() {
            String::new()
        } else {
            format!("  {}", invite.label)
        };
        out.push_str(&format!(
            "  invite  {}  {left}{label}{routes}{revoked}\n",
            &invite.id[..8.min(invite.id.len())]
        ));
    }
    if network.record.invites.is_empty() {
        out.push_str("  invite  none yet: wice invite\n");
    }
    for key in network.revocations.iter().flat_map(|list| list.nodes()) {
        out.push_str(&format!("  revoked {key}\n"));
    }
    out
}

fn json(network: &Network) -> serde_json::Value {
    let invites: Vec<_> = network
        .record
        .invites
        .iter()
        .map(|invite| {
            serde_json::json!({
                "id": invite.id,
                "label": invite.label,
                "expiry": invite.expiry,
                "routes": invite.routes,
                "revoked": is_revoked(network, &invite.id),
            })
        })
        .collect();
    let nodes: Vec<String> = network
        .revocations
        .iter()
        .flat_map(|list| list.nodes())
        .map(ToString::to_string)
        .collect();
    serde_json::json!({
        "name": network.record.name,
        "id": network.admin.network_id().to_string(),
        "signal": network.url().map(|url| url.to_string()).ok(),
        "pin": network.pin().ok().flatten().map(|pin| pin.to_string()),
        "invites": invites,
        "revoked_nodes": nodes,
    })
}

fn is_revoked(network: &Network, id: &str) -> bool {
    let revoked = |list: &wice_signaling::protocol::RevocationList| {
        list.invites()
            .iter()
            .any(|revoked| revoked.to_string() == id)
    };
    network.revocations.as_ref().is_some_and(revoked)
}

/// UNIX time; an error where the clock has not been set.
pub(super) fn now() -> anyhow::Result<u64> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    anyhow::ensure!(
        now >= CLOCK_IS_SET,
        "this machine's clock is not set (it says {now} s after 1970), so an invite would have expired already\n  set it (timedatectl, ntpd), then try again"
    );
    Ok(now)
}

/// `90s`, `90m`, `24h`, `30d`.
fn parse_duration(text: &str) -> Result<Duration, Usage> {
    let wrong = || {
        Usage(format!(
            "{text} is no time: write it like 90m, 24h or 30d, at most 3650d"
        ))
    };
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (count, unit) = text.split_at(split);
    let count: u64 = count.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let duration = Duration::from_secs(count.checked_mul(seconds).ok_or_else(wrong)?);
    if duration.is_zero() || duration > MAX_EXPIRY {
        return Err(wrong());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [
            ("90s", 90),
            ("90m", 5400),
            ("24h", 86_400),
            ("30d", 2_592_000),
        ] {
            assert_eq!(parse_duration(text).unwrap().as_secs(), seconds);
        }
        for text in [
            "",
            "24",
            "h",
            "0h",
            "24 h",
            "-1h",
            "1w",
            "99999999999999999999d",
            "4000d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
