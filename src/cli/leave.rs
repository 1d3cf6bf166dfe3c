//! `wice leave`: the node goes out of its network, with its key.

use clap::Args;

use super::{StateDir, ask, block_on, print};
use crate::daemon::Leaving;
use crate::report::Health;

/// Leave the network: forget this node's key, session and membership. The next `wice up TOKEN` makes it a new node.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice down; wice leave; wice up TOKEN    a node that was revoked comes back with a new key, by a new invite
  wice leave --yes                        without asking

Networks that were made on this machine (wice network) stay, and so does the state of `wice signal`.")]
pub(super) struct LeaveArgs {
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn leave(args: &LeaveArgs) -> anyhow::Result<Health> {
    let leaving = Leaving::of(&args.state.state_dir)?;
    let network = match &leaving.network {
        Some(network) => format!("the network {network}"),
        None => "its network".to_owned(),
    };
    let folder = args.state.state_dir.display();
    let question = format!(
        "This node leaves {network}: its key in {folder} is removed, and it comes back only as a new node, by an invite."
    );
    ask::confirm(&question, args.yes)?;
    let name = match &leaving.name {
        Some(name) => format!(" --name {name}"),
        None => String::new(),
    };
    block_on(async { Ok(leaving.leave().await?) })?;
    print(&format!(
        "this node has left {network}\n  to join one: wice up TOKEN{name}\n"
    ))?;
    Ok(Health::Well)
}
