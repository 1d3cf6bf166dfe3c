//! The cluster's objects, as far as they name WireGuard keys: Nodes, and Kilo's Peers.
//!
//! A watch that broke begins with a list: who is not in it is gone, but not before its end. A key that an object showed once stays
//! its key until the object shows another one or goes: mesh agents take their annotations away when they stop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;

use wice_signaling::protocol::{IpPrefix, PublicKey};

use super::Names;
use super::annotation::decode_at;

/// Objects that are kept, a Node of about 1.5 KiB and a Peer of 3 KiB at most: more than the 5,000 Nodes that Kubernetes is made for ("Considerations for
/// large clusters"). Past them the first come stay.
pub const MAX_OBJECTS: usize = 8192;

/// Prefixes that one object may have refused: a Node has an address a family, a Peer a few.
const MAX_PREFIXES: usize = 16;

/// Which objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nodes.
    Nodes,
    /// `peers.kilo.squat.ai`.
    Peers,
}

/// An object's name; both kinds are cluster-wide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    /// Its kind.
    pub source: Source,
    /// Its `metadata.name`.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Source::Nodes => f.write_str(&self.name),
            Source::Peers => write!(f, "peer/{}", self.name),
        }
    }
}

/// An object as the API shows it.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its annotations.
    pub annotations: &'a BTreeMap<String, String>,
    /// A Peer's `spec.publicKey`.
    pub public_key: Option<&'a str>,
    /// A Peer's `spec.persistentKeepalive`.
    pub keepalive: Option<u16>,
}

/// What an object says of its node, beside the advert.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its WireGuard key.
    pub key: Option<PublicKey>,
    /// Seconds; absent, zero and unreadable are none.
    pub keepalive: Option<u16>,
    /// Its own addresses in the overlay: no candidates of anybody.
    pub overlay: Vec<IpPrefix>,
    /// Whether it has an advert annotation: whether wice runs there, or has.
    pub has_advert: bool,
    /// Why its advert annotation cannot be an advert.
    pub bad_advert: Option<String>,
}

/// What is new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An advert that was not seen on this object before, not verified.
    Advert {
        /// Whose it says it is.
        key: PublicKey,
        /// As it was signed.
        advert: Vec<u8>,
    },
    /// The last object of this key is gone.
    Gone(PublicKey),
    /// [`Objects::facts`] says something else of it.
    Facts(ObjectName),
}

/// What is kept of an object.
#[derive(Debug, Default)]
struct Kept {
    facts: Facts,
    /// The annotation with the advert, to be compared before it is parsed.
    advert: Option<String>,
    /// The key in the advert, where the mesh agent tells none.
    advert_key: Option<PublicKey>,
}

/// All objects.
#[derive(Debug)]
pub struct Objects {
    names: Names,
    advert: String,
    kept: BTreeMap<ObjectName, Kept>,
    /// During a list, what it has shown so far.
    listing: BTreeMap<Source, BTreeSet<ObjectName>>,
    listed: BTreeSet<Source>,
    left_out: u64,
    changes: VecDeque<Change>,
}

impl Objects {
    /// Without objects.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self {
            advert: names.advert(),
            names,
            kept: BTreeMap::new(),
            listing: BTreeMap::new(),
            listed: BTreeSet::new(),
            left_out: 0,
            changes: VecDeque::new(),
        }
    }

    /// A list begins.
    pub fn handle_list(&mut self, source: Source) {
        self.listing.insert(source, BTreeSet::new());
    }

    /// An object, listed or changed.
    pub fn handle_object(&mut self, source: Source, object: Object<'_>) {
        let name = ObjectName {
            source,
            name: object.name.to_owned(),
        };
        if !self.kept.contains_key(&name) && self.kept.len() >= MAX_OBJECTS {
            self.left_out += 1;
            return;
        }
        if let Some(listing) = self.listing.get_mut(&source) {
            listing.insert(name.clone());
        }
        let is_new = !self.kept.contains_key(&name);
        let kept = self.kept.entry(name.clone()).or_default();
        let advert = object.annotations.get(&self.advert);
        if kept.advert.as_ref() != advert {
            kept.advert = advert.cloned();
            kept.facts.bad_advert = None;
            match advert.map(|text| decode_at(source, text)) {
                Some(Ok((key, advert))) => {
                    kept.advert_key = Some(key);
                    self.changes.push_back(Change::Advert { key, advert });
                }
                Some(Err(error)) => kept.facts.bad_advert = Some(error.to_string()),
                None => {}
            }
        }
        let facts = Facts {
            key: key_of(&self.names, object)
                .or(kept.facts.key)
                .or(kept.advert_key),
            keepalive: keepalive_of(&self.names, object),
            overlay: overlay_of(&self.names, object),
            has_advert: advert.is_some(),
            bad_advert: kept.facts.bad_advert.clone(),
        };
        if is_new || facts != kept.facts {
            kept.facts = facts;
            self.changes.push_back(Change::Facts(name));
        }
    }

    /// An object was deleted.
    pub fn handle_deleted(&mut self, source: Source, name: &str) {
        self.forget(&ObjectName {
            source,
            name: name.to_owned(),
        });
    }

    /// The list is complete: what it has not shown is gone.
    pub fn handle_listed(&mut self, source: Source) {
        let shown = self.listing.remove(&source).unwrap_or_default();
        let gone = self
            .kept
            .keys()
            .filter(|name| name.source == source && !shown.contains(*name));
        let gone: Vec<ObjectName> = gone.cloned().collect();
        for name in gone {
            self.forget(&name);
        }
        self.listed.insert(source);
    }

    /// The next change.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Whether a list of them was ever complete: before it, what is not known may be there all the same.
    #[must_use]
    pub fn is_listed(&self, source: Source) -> bool {
        self.listed.contains(&source)
    }

    /// What is known of an object.
    #[must_use]
    pub fn facts(&self, name: &ObjectName) -> Option<&Facts> {
        self.kept.get(name).map(|kept| &kept.facts)
    }

    /// The advert annotation of an object, as it stands there.
    #[must_use]
    pub fn advert(&self, name: &ObjectName) -> Option<&str> {
        self.kept.get(name)?.advert.as_deref()
    }

    /// All objects, Nodes first, by name.
    pub fn all(&self) -> impl Iterator<Item = (&ObjectName, &Facts)> {
        self.kept.iter().map(|(name, kept)| (name, &kept.facts))
    }

    /// How often an object was left out because there were [`MAX_OBJECTS`].
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    fn forget(&mut self, name: &ObjectName) {
        let Some(kept) = self.kept.remove(name) else {
            return;
        };
        self.changes.push_back(Change::Facts(name.clone()));
        let Some(key) = kept.facts.key else {
            return;
        };
        // A Node that came back by another name, or a Peer that became a Node.
        if self.all().all(|(_, facts)| facts.key != Some(key)) {
            self.changes.push_back(Change::Gone(key));
        }
    }
}

/// By the annotation, else by the Peer's specification.
fn key_of(names: &Names, object: Object<'_>) -> Option<PublicKey> {
    let annotation = object.annotations.get(&names.key).map(String::as_str);
    let texts = [annotation, object.public_key];
    texts
        .into_iter()
        .flatten()
        .find_map(|text| text.parse().ok())
}

fn keepalive_of(names: &Names, object: Object<'_>) -> Option<u16> {
    let annotation = names
        .keepalive
        .as_ref()
        .and_then(|name| object.annotations.get(name))
        .and_then(|text| text.parse().ok());
    annotation
        .or(object.keepalive)
        .filter(|seconds| *seconds > 0)
}

/// An address of its own, whatever the length of its prefix: `10.4.0.7/16` is one of a whole network.
fn overlay_of(names: &Names, object: Object<'_>) -> Vec<IpPrefix> {
    let Some(text) = object.annotations.get(&names.wireguard_ip) else {
        return Vec::new();
    };
    // Two families stand behind commas where there are two.
    let addresses = text.split(',').take(MAX_PREFIXES).filter_map(|text| {
        let address = text.trim().split('/').next()?;
        IpPrefix::host(address.parse::<IpAddr>().ok()?)
    });
    addresses.collect()
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
