//! The admin's visit to the signaling service: a member of the network for a moment, by an invite made on the spot. It
//! publishes nothing, so no node hears of it.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use wice_signaling::protocol::{Invite, PrivateKey};

use super::network::now;
use super::random::random;
use super::store::Network;
use crate::signaling::{Event, Signaling, WebSocketBackend, WebSocketConfig};

/// The visitor's membership need not last.
const EXPIRY: u64 = 3600;

/// How the service is reached.
#[derive(Args, Clone, Debug)]
pub(super) struct Through {
    /// Authorities to trust for signaling, in PEM.
    #[arg(long, value_name = "FILE", env = "WICE_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// HTTP proxy for signaling, like http://proxy.example:3128.
    #[arg(long, value_name = "URL", env = "WICE_PROXY", hide_env_values = true)]
    proxy: Option<String>,
}

/// Who visits.
pub(super) struct Visitor<'a> {
    network: &'a Network,
    through: &'a Through,
    seed: [u8; 32],
    membership: Vec<u8>,
}

impl<'a> Visitor<'a> {
    pub(super) fn new(network: &'a Network, through: &'a Through) -> anyhow::Result<Self> {
        let invite = Invite::new(
            &network.admin,
            &random()?,
            now()? + EXPIRY,
            "wice admin",
            &[],
        )?;
        let seed: [u8; 32] = random()?;
        let key = PrivateKey::from_bytes(seed).public_key();
        let membership = invite.sign_member(&network.admin.network_id(), &key);
        Ok(Self {
            network,
            through,
            seed,
            membership: membership.encode(),
        })
    }

    /// Connects; needs a tokio runtime.
    pub(super) fn start(&self) -> anyhow::Result<Signaling> {
        let proxy = self.through.proxy.as_deref().filter(|p| !p.is_empty());
        Ok(Signaling::start(WebSocketBackend::new(WebSocketConfig {
            url: self.network.url()?,
            pin: self.network.pin()?,
            network: self.network.admin.network_id(),
            key: PrivateKey::from_bytes(self.seed),
            membership: self.membership.clone(),
            receipt: None,
            proxy: proxy.map(str::parse).transpose()?,
            ca_file: self.through.ca_file.clone(),
            socket_hook: None,
        })))
    }
}

/// Waits until the service has let the visitor in; the sequence of the revocations that it has, 0 without.
pub(super) async fn connected(signaling: &mut Signaling) -> anyhow::Result<u64> {
    let mut sequence = 0;
    loop {
        match signaling.next().await {
            Some(Event::Connected) => return Ok(sequence),
            Some(Event::Revocations(list)) => sequence = list.sequence(),
            Some(Event::Refused { text, .. }) => bail!("the signaling service refuses: {text}"),
            Some(Event::Disconnected { reason, .. }) => bail!("{reason}"),
            Some(
                Event::Record { .. }
                | Event::Presence { .. }
                | Event::Carries
                | Event::NotCarried { .. }
                | Event::Servers(_)
                | Event::Receipt(_),
            ) => {}
            None => bail!("the signaling client has ended"),
        }
    }
}
