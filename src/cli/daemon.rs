//! `wice down`: what the daemon is told to do.

use clap::Args;

use super::{Control, block_on};
use crate::config::{DEFAULT_INTERFACE, check_interface};
use crate::daemon::control::{Client, find_socket};
use crate::report::Health;

/// Stop the daemon: the interface of `wice up` goes with it, that of `wice attach` stays as it is.
#[derive(Args, Debug)]
pub(super) struct DownArgs {
    #[command(flatten)]
    control: Control,
}

pub(super) fn down(args: &DownArgs) -> anyhow::Result<Health> {
    block_on(async { Ok(connect(&args.control).await?.down().await?) })?;
    Ok(Health::Well)
}

/// The daemon of these flags.
pub(super) async fn connect(control: &Control) -> anyhow::Result<Client> {
    if let Some(interface) = &control.interface {
        check_interface(interface)?;
    }
    let socket = find_socket(
        &control.run_dir,
        control.interface.as_deref(),
        DEFAULT_INTERFACE,
    )?;
    Ok(Client::connect(&socket).await?)
}
