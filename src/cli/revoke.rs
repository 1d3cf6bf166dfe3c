//! `wice revoke`: puts nodes and invites out.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use wice_signaling::protocol::{InviteId, PublicKey, RevocationList};

use super::diagnose::ask_status;
use super::store::Network;
use super::visit::{Through, Visitor, connected};
use super::{Control, StateDir, block_on, nodes, print};
use crate::report::{Health, NetworkNode};

/// Connecting, proving and publishing take some round trips; a service that is down takes longer.
const PUSH_TIMEOUT: Duration = Duration::from_secs(15);
/// Between looks whether the service has the list.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Shorter starts of ids are mistyped labels.
const MIN_PREFIX: usize = 4;

/// Put a node or an invite out of a network, with every node that joined by it. It cannot be taken back.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice revoke lab-d              a node, by its name (wice network nodes)
  wice revoke 8Zk…=              a node, by its WireGuard key
  wice revoke rack-7             an invite, by its label or the start of its id (wice network show)

The list is signed here and carried by the signaling service; nodes drop whom it names at once.")]
pub(super) struct RevokeArgs {
    /// The node's key or name, or the invite's id or label.
    #[arg(value_name = "NODE|INVITE")]
    target: String,
    /// The network; not needed where there is only one.
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    #[command(flatten)]
    through: Through,
    #[command(flatten)]
    state: StateDir,
    #[command(flatten)]
    control: Control,
}

pub(super) fn revoke(args: &RevokeArgs) -> anyhow::Result<Health> {
    let mut network = Network::open(&args.state.state_dir, args.network.as_deref())?;
    let (nodes, invites, what) = target(args, &network)?;
    let list = network.revoke(nodes, invites)?;
    let carried = block_on(async {
        tokio::time::timeout(PUSH_TIMEOUT, carry(args, &network, &list))
            .await
            .unwrap_or_else(|_| {
                bail!(
                    "the signaling service has not taken it within {} s",
                    PUSH_TIMEOUT.as_secs()
                )
            })
    });
    carried.with_context(|| {
        format!("{what} is revoked on this machine, but the list was not carried\n  repeat the command when the service answers")
    })?;
    print(&format!("{what} is revoked\n"))?;
    Ok(Health::Well)
}

/// Nodes by key first, then invites by id or label, then nodes by name.
fn target(
    args: &RevokeArgs,
    network: &Network,
) -> anyhow::Result<(BTreeSet<PublicKey>, BTreeSet<InviteId>, String)> {
    let wanted = args.target.as_str();
    if let Ok(key) = wanted.parse::<PublicKey>() {
        return Ok((
            BTreeSet::from([key]),
            BTreeSet::new(),
            format!("node {key}"),
        ));
    }
    let matches = |id: &str, label: &str| {
        label == wanted || id == wanted || (wanted.len() >= MIN_PREFIX && id.starts_with(wanted))
    };
    let mut found = network
        .record
        .invites
        .iter()
        .filter(|invite| matches(&invite.id, &invite.label));
    match (found.next(), found.next()) {
        (Some(invite), None) => {
            let mut bytes = [0; 32];
            hex::decode_to_slice(&invite.id, &mut bytes).context("the invite's id is damaged")?;
            let what = format!(
                "invite {}, with all nodes that joined by it,",
                &invite.id[..8]
            );
            return Ok((BTreeSet::new(), BTreeSet::from([InviteId(bytes)]), what));
        }
        (Some(_), Some(_)) => bail!(
            "several invites are meant by {wanted}\n  give the start of one's id: wice network show"
        ),
        (None, _) => {}
    }
    let (name, key) = named(args, network)?;
    let key: PublicKey = key.parse()?;
    let what = format!("node {name} ({key})");
    Ok((BTreeSet::from([key]), BTreeSet::new(), what))
}

/// Name and key of the node that has this name: as the signaling service knows it, or the daemon here.
fn named(args: &RevokeArgs, network: &Network) -> anyhow::Result<(String, String)> {
    let wanted = args.target.as_str();
    let told = nodes::listed(network, &args.through);
    let Ok(nodes) = told else {
        let status = block_on(ask_status(&args.control)).map_err(|_| {
            anyhow::anyhow!(
                "{wanted} is neither a key nor an invite of {}, and neither the signaling service nor a daemon here can be asked for a name\n  give the node's key (wice status --json there), or an invite (wice network show)",
                network.record.name
            )
        })?;
        let peer = status.find(wanted).map_err(anyhow::Error::msg)?;
        return Ok((peer.name.clone(), peer.key.clone()));
    };
    let is_meant = |node: &&NetworkNode| {
        node.name.eq_ignore_ascii_case(wanted)
            || node
                .addresses
                .iter()
                .any(|address| address.to_string() == wanted)
    };
    let meant: Vec<&NetworkNode> = nodes.iter().filter(is_meant).collect();
    match meant.as_slice() {
        [node] => Ok((node.name.clone(), node.key.clone())),
        [] => bail!(
            "{wanted} is no node and no invite of {}\n  see wice network nodes and wice network show",
            network.record.name
        ),
        several => {
            let keys: Vec<&str> = several.iter().map(|node| node.key.as_str()).collect();
            bail!(
                "several nodes are called {wanted}\n  say which by its key: {}",
                keys.join(", ")
            )
        }
    }
}

/// Hands the list over, and looks from a second connection whether the service has it.
async fn carry(args: &RevokeArgs, network: &Network, list: &RevocationList) -> anyhow::Result<()> {
    let visitor = Visitor::new(network, &args.through)?;
    let mut carrier = visitor.start()?;
    carrier.push_revocations(list.clone());
    connected(&mut carrier).await?;
    drop(carrier);
    loop {
        let mut witness = visitor.start()?;
        if connected(&mut witness).await? >= list.sequence() {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
