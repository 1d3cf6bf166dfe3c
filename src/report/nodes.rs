//! What `wice network nodes` tells.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::style::{Paint, Table};
use super::{Style, duration};

/// Characters of an invite's id that tell it from others.
const SHORT_ID: usize = 8;

/// The nodes of a network, as its signaling service knows them: `wice network nodes --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkNodes {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The network's name.
    pub network: String,
    /// By name, then key.
    pub nodes: Vec<NetworkNode>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkNode {
    /// Its name.
    pub name: String,
    /// Its WireGuard public key, in base64.
    pub key: String,
    /// Its addresses in the overlay, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Seconds since it was connected to signaling; 0 while it is.
    pub last_seen_s: u64,
    /// Networks that it wants to route.
    pub routes: Vec<String>,
    /// The id of the invite that it joined by.
    pub invite: String,
    /// That invite's label.
    pub label: String,
    /// It is a node of a cluster, and a bridge carries its advert: no invite, and no address in the overlay.
    #[serde(default)]
    pub carried: bool,
}

impl NetworkNodes {
    /// One line a node.
    pub fn text(&self, style: Style) -> String {
        if self.nodes.is_empty() {
            return format!(
                "the signaling service knows no node of {} yet\n  let one in: wice invite --network {}\n",
                self.network, self.network
            );
        }
        let mut table = Table::headed(&["NODE", "KEY", "OVERLAY", "SEEN", "INVITE"]);
        for node in &self.nodes {
            let (seen, paint) = match node.last_seen_s {
                0 => ("now".to_owned(), Some(Paint::Good)),
                ago => (format!("{} ago", duration(Duration::from_secs(ago))), None),
            };
            let overlay = node.addresses.first().map(ToString::to_string);
            let id = node.invite.get(..SHORT_ID).unwrap_or(&node.invite);
            let by = match node.carried {
                true => "carried by a bridge".to_owned(),
                false => format!("{id} {}", node.label).trim_end().to_owned(),
            };
            table.row(vec![
                (node.name.clone(), None),
                (node.key.clone(), None),
                (overlay.unwrap_or_default(), None),
                (seen, paint),
                (by, None),
            ]);
        }
        table.render(style)
    }
}
