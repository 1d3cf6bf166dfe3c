//! Which peer is meant by what somebody typed.

use std::net::IpAddr;

use super::{Peer, Status};

/// Shorter starts of keys are mistyped names.
const MIN_PREFIX: usize = 4;
/// Enough names to see what peers are called.
const SHOWN: usize = 8;
/// What stands behind the start of a key where a name is missing.
const ELLIPSIS: char = '…';

impl Status {
    /// The peer of this name (in any case, if only one is meant), key, start of a key of at least four characters, or overlay
    /// address; an error says what is wrong with `wanted` and names the peers that there are.
    pub fn find(&self, wanted: &str) -> Result<&Peer, String> {
        // As tables show a peer that has no name yet.
        let wanted = wanted.trim().trim_end_matches(ELLIPSIS);
        let address: Option<IpAddr> = wanted.parse().ok();
        let has_address = |addresses: &[IpAddr]| address.is_some_and(|a| addresses.contains(&a));
        let exactly = self.matching(|peer| {
            peer.name == wanted || peer.key == wanted || has_address(&peer.addresses)
        });
        match exactly.as_slice() {
            [peer] => return Ok(peer),
            [] => {}
            several => {
                return the_one_that_is_there(several)
                    .ok_or_else(|| which(&format!("several peers are called {wanted}"), several));
            }
        }
        let starts = |key: &str| wanted.len() >= MIN_PREFIX && key.starts_with(wanted);
        let itself = || Err(format!("{wanted} is this node itself\n  {}", self.known()));
        if self.name == wanted || self.key == wanted || has_address(&self.addresses) {
            return itself();
        }
        let in_any_case = self.matching(|peer| peer.name.eq_ignore_ascii_case(wanted));
        match in_any_case.as_slice() {
            [peer] => return Ok(peer),
            [] if self.name.eq_ignore_ascii_case(wanted) => return itself(),
            [] => {}
            several => {
                let what =
                    format!("several peers are called {wanted}, but for upper and lower case");
                return the_one_that_is_there(several).ok_or_else(|| which(&what, several));
            }
        }
        let by_start = self.matching(|peer| starts(&peer.key));
        match by_start.as_slice() {
            [peer] => Ok(peer),
            [] if starts(&self.key) => Err(format!(
                "{wanted} is the start of this node's own key\n  {}",
                self.known()
            )),
            [] => Err(self.unknown(wanted)),
            several => Err(which(
                &format!("the keys of several peers start with {wanted}"),
                several,
            )),
        }
    }

    /// The peer that is meant where none was named; an error names those that there are.
    pub fn only(&self) -> Result<&Peer, String> {
        match self.peers.as_slice() {
            [peer] => Ok(peer),
            [] | [_, _, ..] => Err(format!("say which peer\n  {}", self.known())),
        }
    }

    fn matching(&self, is_meant: impl Fn(&Peer) -> bool) -> Vec<&Peer> {
        self.peers.iter().filter(|peer| is_meant(peer)).collect()
    }

    fn unknown(&self, wanted: &str) -> String {
        let short = !wanted.is_empty()
            && wanted.len() < MIN_PREFIX
            && self.peers.iter().any(|peer| peer.key.starts_with(wanted));
        let start = match short {
            true => format!(" (the start of a key has at least {MIN_PREFIX} characters)"),
            false => String::new(),
        };
        format!("no peer is called {wanted}{start}\n  {}", self.known())
    }

    fn known(&self) -> String {
        let names: Vec<&str> = self.peers.iter().map(|peer| peer.name.as_str()).collect();
        match names.as_slice() {
            [] => "there are no peers yet: wice invite makes a token for one".to_owned(),
            names if names.len() > SHOWN => {
                format!(
                    "peers are {} and more: wice status",
                    names[..SHOWN].join(", ")
                )
            }
            names => format!("peers are {}", names.join(", ")),
        }
    }
}

/// A node that got another key, or left and came back, stays known under its old one until it is revoked.
fn the_one_that_is_there<'a>(peers: &[&'a Peer]) -> Option<&'a Peer> {
    let mut there = peers.iter().filter(|peer| !peer.is_away());
    match (there.next(), there.next()) {
        (Some(peer), None) => Some(peer),
        (Some(_) | None, _) => None,
    }
}

fn which(what: &str, peers: &[&Peer]) -> String {
    let of = |peer: &&Peer| format!("{} ({})", peer.key, peer.name);
    let shown: Vec<String> = peers.iter().take(SHOWN).map(of).collect();
    let more = if peers.len() > SHOWN { " and more" } else { "" };
    format!("{what}\n  say which by its key: {}{more}", shown.join(", "))
}
