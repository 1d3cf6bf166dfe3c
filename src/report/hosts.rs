//! The nodes as lines of a hosts file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Status;

/// What stands behind every name, so that no peer can take a name of the internet's.
pub const DOMAIN: &str = "wice";

/// A node of some name: its key, its addresses, and whether it is away.
type Called<'a> = (&'a str, &'a [IpAddr], bool);

impl Status {
    /// Lines of hosts(5): this node and its peers, each as `NAME.wice`, in lower case. A name that cannot stand in such a file, or
    /// that several nodes have, is left out, and a comment says so. Nodes that are away do not count beside one that is there.
    pub fn hosts(&self) -> String {
        let own = (&self.name, &self.key, &self.addresses, false);
        let peers = self.peers.iter();
        let peers = peers.map(|p| (&p.name, &p.key, &p.addresses, p.is_away()));
        let mut by_name: BTreeMap<String, Vec<Called>> = BTreeMap::new();
        for (name, key, addresses, away) in std::iter::once(own).chain(peers) {
            let called = by_name.entry(name.to_ascii_lowercase()).or_default();
            called.push((key, addresses, away));
        }
        let mut out = String::new();
        for (name, mut nodes) in by_name {
            // Who is there goes before who has left the name behind.
            if nodes.iter().any(|(.., away)| !away) {
                nodes.retain(|(.., away)| !away);
            }
            match nodes.as_slice() {
                [(_, addresses, _)] if is_host_name(&name) => {
                    for address in *addresses {
                        out.push_str(&format!("{address}\t{name}.{DOMAIN}\n"));
                    }
                }
                nodes => {
                    let why = match is_host_name(&name) {
                        true => "several nodes have its name",
                        false => "its name cannot stand here",
                    };
                    for (key, ..) in nodes {
                        out.push_str(&format!("# {key} is left out: {why}\n"));
                    }
                }
            }
        }
        out
    }
}

/// Labels of letters, digits, dashes and underscores, none of them empty.
fn is_host_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    name.split('.')
        .all(|label| !label.is_empty() && label.chars().all(allowed))
}
