//! `wice hosts`: names for the overlay's addresses.

use clap::Args;

use super::diagnose::ask_status;
use super::{Control, block_on, print};
use crate::report::Health;

/// Print this node and its peers as lines of /etc/hosts: NAME.wice.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice hosts
  { sed '/\\.wice$/d' /etc/hosts; wice hosts; } > /tmp/hosts && cp /tmp/hosts /etc/hosts

It prints what is known now: run it again when nodes come or are renamed.")]
pub(super) struct HostsArgs {
    #[command(flatten)]
    control: Control,
}

pub(super) fn hosts(args: &HostsArgs) -> anyhow::Result<Health> {
    let status = block_on(ask_status(&args.control))?;
    print(&status.hosts())?;
    Ok(Health::Well)
}
