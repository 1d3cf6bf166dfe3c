//! `wice down`: what the daemon is told to do.

use clap::Args;

use super::{Control, StateDir, block_on, print};
use crate::config::{DEFAULT_INTERFACE, check_interface};
use crate::daemon::control::{Client, ClientError, find_socket};
use crate::daemon::remove_left;
use crate::report::Health;

/// Stop the daemon: the interface of `wice up` goes with it, that of `wice attach` stays as it is.
#[derive(Args, Debug)]
#[command(after_help = "\
Where no daemon runs any more, the interface goes that `wice up` has left in the kernel, so that its paths outlive a restart.")]
pub(super) struct DownArgs {
    #[command(flatten)]
    control: Control,
    #[command(flatten)]
    state: StateDir,
}

pub(super) fn down(args: &DownArgs) -> anyhow::Result<Health> {
    let control = &args.control;
    let stopped = block_on(async { Ok(connect(control).await?.down().await?) });
    let Err(error) = stopped else {
        return Ok(Health::Well);
    };
    if !matches!(error.downcast_ref(), Some(ClientError::NotRunning(_))) {
        return Err(error);
    }
    let left = remove_left(&args.state.state_dir, control.interface.as_deref());
    match block_on(left) {
        Ok(removed) if !removed.is_empty() => {
            let names = removed.join(", ");
            print(&format!(
                "no daemon ran; removed {names}, which it had left\n"
            ))?;
            Ok(Health::Well)
        }
        // A folder that cannot be used says no more than that nothing runs.
        Ok(_) | Err(_) => Err(error),
    }
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
