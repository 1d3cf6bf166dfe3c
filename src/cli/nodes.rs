//! `wice network nodes`: who is in a network, as its signaling service knows them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use wice_signaling::protocol::{
    Advert, Membership, PublicKey, RecordKind, Routes, overlay_ipv4, overlay_ipv6,
};

use super::store::Network;
use super::visit::{Through, Visitor, connected};
use super::{StateDir, block_on, print, print_json};
use crate::report::{Health, NetworkNode, NetworkNodes, SCHEMA, Style};
use crate::signaling::{Event, Signaling};

/// Connecting and proving take some round trips; a service that is down takes longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The service tells all its records at once: silence this long, a hundred times what one takes to send, is their end.
const QUIET: Duration = Duration::from_millis(500);
/// More than the 4,096 nodes of a network take to tell over a slow line.
const TELL_TIMEOUT: Duration = Duration::from_secs(60);

/// List the nodes of a network, as its signaling service knows them. Needs the admin key, and no daemon.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice network nodes
  wice network nodes lab --json | jq -r '.nodes[] | select(.last_seen_s > 86400) | .key'

A node stays on the list after it was switched off, until the service is started anew or needs the room; who was revoked is off
it, and stands in `wice network show`.")]
pub(super) struct NodesArgs {
    /// The network; not needed where there is only one.
    name: Option<String>,
    /// JSON for machines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    through: Through,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn nodes(args: &NodesArgs) -> anyhow::Result<Health> {
    let network = Network::open(&args.state.state_dir, args.name.as_deref())?;
    let nodes = listed(&network, &args.through)?;
    let list = NetworkNodes {
        schema: SCHEMA,
        network: network.record.name.clone(),
        nodes,
    };
    match args.json {
        true => print_json(&list)?,
        false => print(&list.text(Style::of_stdout()))?,
    }
    Ok(Health::Well)
}

/// The nodes of `network`, by name, then key, as its signaling service has them now.
pub(super) fn listed(network: &Network, through: &Through) -> anyhow::Result<Vec<NetworkNode>> {
    let visitor = Visitor::new(network, through)?;
    block_on(async {
        let mut signaling = visitor.start()?;
        match tokio::time::timeout(CONNECT_TIMEOUT, connected(&mut signaling)).await {
            Ok(connected) => connected?,
            Err(_) => bail!(
                "the signaling service {} has not let the admin in within {} s\n  is it running? see its log",
                network.url()?,
                CONNECT_TIMEOUT.as_secs()
            ),
        };
        let told = tokio::time::timeout(TELL_TIMEOUT, records(&mut signaling, network)).await;
        told.unwrap_or_else(|_| {
            bail!("the signaling service does not come to an end\n  see its log")
        })
    })
}

#[derive(Default)]
struct Found {
    advert: Option<(Advert, Duration)>,
    overlay_counter: u8,
    routes: Vec<String>,
}

async fn records(signaling: &mut Signaling, network: &Network) -> anyhow::Result<Vec<NetworkNode>> {
    let id = network.admin.network_id();
    let sealing = network.network_key()?;
    let mut found: BTreeMap<PublicKey, Found> = BTreeMap::new();
    while let Ok(event) = tokio::time::timeout(QUIET, signaling.next()).await {
        let (key, kind, sealed, last_seen) = match event {
            Some(Event::Record {
                key,
                kind,
                sealed,
                last_seen,
            }) => (key, kind, sealed, last_seen),
            Some(Event::Disconnected { reason, .. }) => bail!("{reason}"),
            Some(
                Event::Connected
                | Event::Refused { .. }
                | Event::Presence { .. }
                | Event::Carries
                | Event::NotCarried { .. }
                | Event::Servers(_)
                | Event::Revocations(_)
                | Event::Receipt(_),
            ) => continue,
            None => bail!("the signaling client has ended"),
        };
        // What is not sealed or signed as it must be, no node takes either.
        let Ok(record) = sealing.open(&id, &key, kind, &sealed) else {
            continue;
        };
        match kind {
            RecordKind::Advert => {
                if let Ok(advert) = Advert::decode_verified(&record) {
                    found.entry(key).or_default().advert = Some((advert, last_seen));
                }
            }
            RecordKind::Routes => {
                if let Ok(routes) = Routes::decode_verified(&record) {
                    let entry = found.entry(key).or_default();
                    entry.overlay_counter = routes.overlay_counter;
                    entry.routes = routes.prefixes.iter().map(ToString::to_string).collect();
                }
            }
        }
    }
    let mut nodes: Vec<NetworkNode> = found
        .into_iter()
        .filter_map(|(key, found)| node(network, &key, found))
        .collect();
    nodes.sort_by(|a, b| (&a.name, &a.key).cmp(&(&b.name, &b.key)));
    Ok(nodes)
}

/// `None` for who has published no advert, or is no member. One that claims no membership is of a cluster.
fn node(network: &Network, key: &PublicKey, found: Found) -> Option<NetworkNode> {
    let (advert, last_seen) = found.advert.filter(|(advert, _)| advert.key == *key)?;
    let carried = NetworkNode {
        name: advert.name,
        key: key.to_string(),
        addresses: Vec::new(),
        last_seen_s: last_seen.as_secs(),
        routes: Vec::new(),
        invite: String::new(),
        label: String::new(),
        carried: true,
    };
    if advert.membership.is_empty() {
        return Some(carried);
    }
    let membership =
        Membership::decode_verified(&advert.membership, &network.admin.network_id(), key).ok()?;
    let invite = membership.invite();
    Some(NetworkNode {
        addresses: vec![
            overlay_ipv4(key, found.overlay_counter).into(),
            overlay_ipv6(key).into(),
        ],
        routes: found.routes,
        invite: invite.id.to_string(),
        label: invite.label.clone(),
        carried: false,
        ..carried
    })
}
