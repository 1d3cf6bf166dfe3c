//! From what the cluster says to what the daemon heeds, and to what its operator should know.

use std::collections::{BTreeMap, BTreeSet};

use wice_signaling::protocol::PublicKey;

use crate::daemon::attached::{Guidance, Publication};
use crate::daemon::binding::Held;
use crate::signaling::kubernetes::ClusterView;
use crate::signaling::kubernetes::state::{ObjectName, Source};

/// Names in one line of the log; the rest are counted.
const MAX_NAMED: usize = 5;

/// Says what is new once.
#[derive(Debug)]
pub(super) struct Adviser {
    /// Whether the mesh agent overwrites endpoints of peers without keepalive.
    keepalive_matters: bool,
    /// The own Node.
    node: String,
    bare: BTreeSet<String>,
    waiting: BTreeSet<String>,
}

impl Adviser {
    pub(super) fn new(node: &str, keepalive_matters: bool) -> Self {
        Self {
            keepalive_matters,
            node: node.to_owned(),
            bare: BTreeSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// What is to be heeded now.
    pub(super) fn guidance(&mut self, view: &ClusterView) -> Guidance {
        self.tell(view);
        let mut excluded: Vec<_> = view.refused().collect();
        excluded.sort();
        excluded.dedup();
        let held = if view.listed {
            Held::These(self.without_keepalive(view).map(|(_, key)| key).collect())
        } else {
            Held::Everybody
        };
        Guidance {
            held,
            excluded,
            names: names(view),
            publication: Some(Publication {
                done: view.published,
                problem: view.problem.clone(),
            }),
        }
    }

    /// The mesh agent would put its own endpoint back at its next look, and would reset every session of the node with it.
    fn without_keepalive<'a>(
        &self,
        view: &'a ClusterView,
    ) -> impl Iterator<Item = (String, PublicKey)> + use<'a> {
        let matters = self.keepalive_matters;
        view.objects.iter().filter_map(move |(name, facts)| {
            let key = facts.key.filter(|_| matters && facts.keepalive.is_none())?;
            // Two objects of one key: the first counts, as everywhere.
            let first = view.object_of(&key).is_some_and(|(first, _)| first == name);
            first.then(|| (name.to_string(), key))
        })
    }

    fn tell(&mut self, view: &ClusterView) {
        if !view.listed {
            return;
        }
        // The own one's advert is on its way, or what is in its way has been said.
        let bare = view.without_wice().filter(|node| *node != self.node);
        let bare: BTreeSet<String> = bare.map(str::to_owned).collect();
        if bare != self.bare {
            self.bare = bare;
            if !self.bare.is_empty() {
                tracing::warn!(
                    event = "nodes-without-wice",
                    count = self.bare.len(),
                    nodes = named(&self.bare),
                    "endpoints that the mesh agent passes on may lead nowhere there: run wice on every Node"
                );
            }
        }
        let waiting = self.without_keepalive(view).map(|(name, _)| name);
        let waiting: BTreeSet<String> = waiting.collect();
        if waiting != self.waiting {
            self.waiting = waiting;
            if !self.waiting.is_empty() {
                tracing::info!(
                    event = "keepalive-missing",
                    count = self.waiting.len(),
                    objects = named(&self.waiting),
                    "their endpoints are left alone until they have a persistent-keepalive: wice sets it on its own Node, on a Peer it is yours to set"
                );
            }
        }
    }
}

/// Machines outside call themselves as they like; their operator knows them by their objects. A Node's name
/// goes before a Peer's.
fn names(view: &ClusterView) -> BTreeMap<PublicKey, String> {
    let peers = view
        .objects
        .iter()
        .filter(|(name, _)| name.source == Source::Peers);
    let named = peers.filter_map(|(name, facts)| {
        let key = facts.key?;
        let (first, _) = view.object_of(&key)?;
        let node = ObjectName {
            source: Source::Nodes,
            name: name.name.clone(),
        };
        let text = match view.objects.contains_key(&node) {
            true => name.to_string(),
            false => name.name.clone(),
        };
        (first == name).then_some((key, text))
    });
    named.collect()
}

fn named(names: &BTreeSet<String>) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_NAMED).map(String::as_str).collect();
    let more = names.len() - shown.len();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signaling::kubernetes::OwnNode;
    use crate::signaling::kubernetes::state::Facts;

    fn view(objects: &[(Source, &str, u8, Option<u16>)]) -> ClusterView {
        let object = |(source, name, key, keepalive): &(Source, &str, u8, Option<u16>)| {
            let facts = Facts {
                key: Some(PublicKey([*key; 32])),
                keepalive: *keepalive,
                overlay: vec![format!("10.4.0.{key}/32").parse().unwrap()],
                has_advert: false,
                bad_advert: None,
            };
            let name = ObjectName {
                source: *source,
                name: (*name).to_owned(),
            };
            (name, facts)
        };
        ClusterView {
            listed: true,
            objects: objects.iter().map(object).collect(),
            own: OwnNode {
                pod_cidrs: vec!["10.42.1.0/24".parse().unwrap()],
            },
            published: true,
            problem: None,
        }
    }

    fn these(keys: &[u8]) -> Held {
        Held::These(keys.iter().map(|key| PublicKey([*key; 32])).collect())
    }

    #[test]
    fn who_has_no_keepalive_is_waited_for() {
        let mut adviser = Adviser::new("here", true);
        let view = view(&[
            (Source::Nodes, "a", 1, Some(25)),
            (Source::Nodes, "b", 2, None),
            (Source::Peers, "box", 3, None),
        ]);
        assert_eq!(adviser.guidance(&view).held, these(&[2, 3]));
    }

    #[test]
    fn nothing_is_touched_before_the_cluster_is_known() {
        let mut adviser = Adviser::new("here", true);
        let guidance = adviser.guidance(&ClusterView::default());
        assert_eq!(guidance.held, Held::Everybody);
    }

    #[test]
    fn where_no_agent_heeds_keepalive_nobody_is_waited_for() {
        let mut adviser = Adviser::new("here", false);
        let view = view(&[(Source::Nodes, "b", 2, None)]);
        assert_eq!(adviser.guidance(&view).held, these(&[]));
    }

    #[test]
    fn a_node_counts_before_a_peer_of_the_same_key() {
        let mut adviser = Adviser::new("here", true);
        let view = view(&[
            (Source::Nodes, "a", 1, Some(25)),
            (Source::Peers, "a", 1, None),
        ]);
        assert_eq!(adviser.guidance(&view).held, these(&[]));
    }

    #[test]
    fn overlay_and_pod_addresses_are_excluded() {
        let mut adviser = Adviser::new("here", true);
        let view = view(&[(Source::Nodes, "a", 1, Some(25))]);
        let excluded = adviser.guidance(&view).excluded;
        let expected = ["10.4.0.1/32", "10.42.1.0/24"];
        assert_eq!(excluded, expected.map(|text| text.parse().unwrap()));
    }

    #[test]
    fn peers_are_called_as_their_objects_unless_a_node_is_called_so() {
        let mut adviser = Adviser::new("here", true);
        let view = view(&[
            (Source::Nodes, "a", 1, None),
            (Source::Peers, "a", 2, None),
            (Source::Peers, "box", 3, None),
            (Source::Peers, "again", 1, None),
        ]);
        let names = adviser.guidance(&view).names;
        let expected = [(2, "peer/a"), (3, "box")];
        let expected = expected.map(|(key, name)| (PublicKey([key; 32]), name.to_owned()));
        assert_eq!(names, expected.into());
    }

    #[test]
    fn nodes_without_wice_are_others() {
        let mut adviser = Adviser::new("here", true);
        let view = view(&[
            (Source::Nodes, "here", 1, None),
            (Source::Nodes, "there", 2, None),
        ]);
        adviser.guidance(&view);
        assert_eq!(adviser.bare, ["there".to_owned()].into());
    }

    #[test]
    fn many_names_are_counted() {
        let names = |count: usize| (0..count).map(|n| format!("n{n}")).collect();
        assert_eq!(named(&names(2)), "n0, n1");
        assert_eq!(named(&names(9)), "n0, n1, n2, n3, n4 and 4 more");
    }
}
