//! The nodes as lines of a hosts file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Status;

/// What stands behind every name, so that no peer can take a name of the internet's.
pub const DOMAIN: &str = "wice";

impl Status {
    /// Lines of hosts(5): this node and its peers, each as `NAME.wice`, in lower case. A name that cannot stand in such a file, or
    /// that several nodes have, is left out, and a comment says so.
    pub fn hosts(&self) -> String {
        let own = (&self.name, &self.key, &self.addresses);
        let peers = self.peers.iter().map(|p| (&p.name, &p.key, &p.addresses));
        let mut by_name: BTreeMap<String, Vec<(&str, &[IpAddr])>> = BTreeMap::new();
        for (name, key, addresses) in std::iter::once(own).chain(peers) {
            let called = by_name.entry(name.to_ascii_lowercase()).or_default();
            called.push((key, addresses));
        }
        let mut out = String::new();
        for (name, nodes) in by_name {
            match nodes.as_slice() {
                [(_, addresses)] if is_host_name(&name) => {
                    for address in *addresses {
                        out.push_str(&format!("{address}\t{name}.{DOMAIN}\n"));
                    }
                }
                nodes => {
                    let why = match is_host_name(&name) {
                        true => "several nodes have its name",
                        false => "its name cannot stand here",
                    };
                    for (key, _) in nodes {
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
