//! `wice leave`: the node goes out of its network, with its key.

use std::path::Path;

use clap::Args;

use super::{StateDir, ask, block_on, print};
use crate::daemon::{ATTACHED_FOLDER, Leaving};
use crate::report::Health;

/// Leave the network: forget this node's key, session and membership. The next `wice up TOKEN` makes it a new node.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice down; wice leave; wice up TOKEN    a node that was revoked comes back with a new key, by a new invite
  wice leave --yes                        without asking
  wice leave --state-dir /var/lib/wice/attached/wg0    an interface of wice attach

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
    let attached = attached_interface(&args.state.state_dir);
    let question = match &attached {
        None => format!(
            "This node leaves {network}: its key in {folder} is removed, and it comes back only as a new node, by an invite."
        ),
        Some(interface) => format!(
            "{interface} leaves {network}: what is kept in {folder} is removed, and it comes back by an invite; its key is the interface's, and stays."
        ),
    };
    ask::confirm(&question, args.yes)?;
    let name = match &leaving.name {
        Some(name) => format!(" --name {name}"),
        None => String::new(),
    };
    block_on(async { Ok(leaving.leave().await?) })?;
    print(&match attached {
        None => format!("this node has left {network}\n  to join one: wice up TOKEN{name}\n"),
        Some(interface) => format!(
            "{interface} has left {network}\n  to join one: wice attach {interface} TOKEN{name}\n"
        ),
    })?;
    Ok(Health::Well)
}

/// The interface whose state this is, in attached mode: .../attached/INTERFACE.
fn attached_interface(folder: &Path) -> Option<String> {
    let within = folder.parent()?.file_name()? == ATTACHED_FOLDER;
    let interface = folder.file_name()?.to_string_lossy().into_owned();
    within.then_some(interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attached_interface_is_known_by_its_folder() {
        let of = |folder: &str| attached_interface(Path::new(folder));
        assert_eq!(of("/var/lib/wice/attached/wg0").as_deref(), Some("wg0"));
        assert_eq!(of("/var/lib/wice"), None);
        assert_eq!(of("/"), None);
    }
}
