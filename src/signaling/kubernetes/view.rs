//! What the cluster says beside adverts.

use std::collections::BTreeMap;

use wice_signaling::protocol::{IpPrefix, PublicKey};

use super::state::{Facts, ObjectName, Source};

/// The cluster, as far as the daemon needs it beside the adverts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// All Nodes have been listed once; what is not known before may be there all the same.
    pub listed: bool,
    /// Nodes and Peers.
    pub objects: BTreeMap<ObjectName, Facts>,
    /// Of the own Node, what metadata lack.
    pub own: OwnNode,
    /// Our advert has stood in the cluster at least once since we began.
    pub published: bool,
    /// Why our annotations are not written, for people.
    pub problem: Option<String>,
}

/// Of the own Node, what metadata lack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNode {
    /// `spec.podCIDRs`: addresses of pods are no candidates.
    pub pod_cidrs: Vec<IpPrefix>,
}

impl ClusterView {
    /// The object of a key: a Node before a Peer, then by name.
    #[must_use]
    pub fn object_of(&self, key: &PublicKey) -> Option<(&ObjectName, &Facts)> {
        let mut objects = self.objects.iter();
        objects.find(|(_, facts)| facts.key.as_ref() == Some(key))
    }

    /// Addresses that are nobody's candidates: everyone's in the overlay, and those of our pods.
    pub fn refused(&self) -> impl Iterator<Item = IpPrefix> {
        let overlay = self.objects.values().flat_map(|facts| &facts.overlay);
        overlay.chain(&self.own.pod_cidrs).copied()
    }

    /// Nodes with a WireGuard key and without an advert: slots that are told there lead nowhere.
    pub fn without_wice(&self) -> impl Iterator<Item = &str> {
        let nodes = self
            .objects
            .iter()
            .filter(|(name, _)| name.source == Source::Nodes);
        nodes
            .filter(|(_, facts)| facts.key.is_some() && !facts.has_advert)
            .map(|(name, _)| name.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(source: Source, name: &str, key: u8, has_advert: bool) -> (ObjectName, Facts) {
        let name = ObjectName {
            source,
            name: name.to_owned(),
        };
        let facts = Facts {
            key: Some(PublicKey([key; 32])),
            overlay: vec![format!("10.4.0.{key}/32").parse().unwrap()],
            has_advert,
            ..Facts::default()
        };
        (name, facts)
    }

    #[test]
    fn a_view_answers_for_keys() {
        let view = ClusterView {
            objects: [
                object(Source::Peers, "aa-box", 1, false),
                object(Source::Nodes, "node", 1, true),
                object(Source::Nodes, "bare", 2, false),
                object(Source::Peers, "laptop", 3, false),
            ]
            .into(),
            own: OwnNode {
                pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()],
            },
            ..ClusterView::default()
        };
        let of = |key| {
            let found = view.object_of(&PublicKey([key; 32]));
            found.map(|(name, _)| name.to_string())
        };
        assert_eq!(of(1).as_deref(), Some("node"), "a Node before a Peer");
        assert_eq!(of(3).as_deref(), Some("peer/laptop"));
        assert_eq!(of(9), None);
        assert_eq!(view.without_wice().collect::<Vec<_>>(), ["bare"]);
        let refused: Vec<String> = view.refused().map(|prefix| prefix.to_string()).collect();
        assert!(refused.contains(&"10.4.0.2/32".to_owned()));
        assert!(refused.contains(&"10.42.1.0/24".to_owned()));
    }
}
