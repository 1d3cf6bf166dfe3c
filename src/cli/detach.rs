//! `wice detach`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::{StateDir, Usage, block_on, print};
use crate::config::{DEFAULT_INTERFACE, DEFAULT_RUN_DIR, check_interface};
use crate::daemon::control::{Client, ClientError, Reply, Request, find_socket};
use crate::daemon::{Detached, StateError};
use crate::report::Health;
use crate::report::count;

/// A daemon that was told to stop lets go of its state within this.
const LET_GO: Duration = Duration::from_secs(15);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Stop the daemon of `wice attach`, and give the interface's peers the endpoints back that they had before.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wice detach wg0
  wice detach                             where only one runs

`wice attach wg0` goes on from there, without a token.")]
pub(super) struct DetachArgs {
    /// The WireGuard interface; not needed where only one daemon runs.
    #[arg(value_name = "INTERFACE", env = "WICE_INTERFACE")]
    interface: Option<String>,
    #[command(flatten)]
    state: StateDir,
    /// Where control sockets are.
    #[arg(long, value_name = "FOLDER", env = "WICE_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
}

pub(super) fn detach(args: &DetachArgs) -> anyhow::Result<Health> {
    if let Some(interface) = &args.interface {
        check_interface(interface)?;
    }
    let found = find_socket(&args.run_dir, args.interface.as_deref(), DEFAULT_INTERFACE);
    let socket = found.map_err(|error| match error {
        ClientError::Several(names) => anyhow::Error::from(Usage(format!(
            "several daemons run here, of the interfaces {}\n  say which: wice detach INTERFACE",
            names.join(" and ")
        ))),
        error @ (ClientError::NotRunning(_)
        | ClientError::Permission(_)
        | ClientError::Timeout(_)
        | ClientError::Closed
        | ClientError::Answer(_)
        | ClientError::Io(_)
        | ClientError::Refused(_)) => error.into(),
    })?;
    let interface = match &args.interface {
        Some(interface) => interface.clone(),
        None => socket
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    };
    let done = block_on(async {
        match Client::connect(&socket).await {
            Ok(client) => end(client, &interface).await?,
            // Nothing to stop where the interface was named; else there is nothing to go by.
            Err(ClientError::NotRunning(_)) if args.interface.is_some() => {}
            Err(error) => return Err(error.into()),
        }
        let since = Instant::now();
        loop {
            let done = crate::daemon::detach(&args.state.state_dir, &interface).await;
            let Err(error) = &done else { return done };
            let held = matches!(error.downcast_ref(), Some(StateError::InUse(_)));
            if !held || since.elapsed() >= LET_GO {
                return done;
            }
            tokio::time::sleep(POLL).await;
        }
    })?;
    print(&text(&interface, &done))?;
    Ok(Health::Well)
}

/// Ends the daemon, if it is one of `wice attach`.
async fn end(mut client: Client, interface: &str) -> anyhow::Result<()> {
    let reply = client.call(&Request::Status).await?;
    let managed = matches!(&reply, Reply::Status(status) if status.mode == "managed");
    if managed {
        let text = format!(
            "{interface} is wice's own interface: there is nothing to give back\n  to stop it: wice down --interface {interface}"
        );
        return Err(Usage(text).into());
    }
    Ok(client.down().await?)
}

fn text(interface: &str, done: &Detached) -> String {
    let mut text = format!(
        "{interface}: {} put back\n",
        count(done.restored.len(), "endpoint")
    );
    for (key, endpoint) in &done.restored {
        text.push_str(&format!("  {key}  {endpoint}\n"));
    }
    if !done.without.is_empty() {
        text.push_str(&format!(
            "{} had none, which WireGuard cannot take back: what is there now stays until they are heard from\n",
            count(done.without.len(), "peer")
        ));
    }
    text
}
