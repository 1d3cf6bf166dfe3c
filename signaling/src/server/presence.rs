//! Telling nodes who has come and gone: one frame for all that changed, to everyone who understands
//! it, no more often than [`TOLD_EVERY`] of any node. What a node hears grows with the others'
//! changes, never with pairs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::body::Bytes;

use super::registry::{Audience, Node, Registry};
use crate::protocol::{MAX_PRESENCES, NetworkId, Presence, PublicKey, ServerFrame};

/// A node is told of at most this often: one that comes and goes all the time costs the others 37
/// bytes in two seconds.
const TOLD_EVERY: Duration = Duration::from_secs(2);

/// How often it is looked who is to be told of: below what people notice.
pub(super) const PRESENCE_TICK: Duration = Duration::from_millis(200);

impl Registry {
    /// The node has come or gone: the others are told, unless they know or it changes its mind.
    pub(super) fn note_presence(&mut self, network: &NetworkId, key: &PublicKey, now: Instant) {
        let grace = self.limits.presence_grace;
        let node = self
            .networks
            .get(network)
            .and_then(|network| network.nodes.get(key));
        let due = node.and_then(|node| node.told_due(grace, now));
        match due {
            Some(due) => self.untold.insert((*network, *key), due),
            None => self.untold.remove(&(*network, *key)),
        };
    }

    /// Tells what is due; to be called every [`PRESENCE_TICK`].
    pub(super) fn tell_presence(&mut self, now: Instant) {
        let due = self.untold.extract_if(.., |_, at| *at <= now);
        let mut told: BTreeMap<NetworkId, Vec<(PublicKey, Presence)>> = BTreeMap::new();
        for ((network, key), _) in due {
            let node = self
                .networks
                .get_mut(&network)
                .and_then(|known| known.nodes.get_mut(&key));
            if let Some(node) = node {
                node.told_away = node.connection.is_none();
                node.told_at = Some(now);
                let presence = node.presence(now);
                told.entry(network).or_default().push((key, presence));
            }
        }
        for (network, nodes) in told {
            for some in nodes.chunks(MAX_PRESENCES) {
                let frame = Bytes::from(ServerFrame::Presence(some.to_vec()).encode());
                self.fan_out(&network, Audience::HearsPresence, &frame, now);
            }
        }
    }
}

impl Node {
    /// When the others are to hear of it; `None` when they know.
    fn told_due(&self, grace: Duration, now: Instant) -> Option<Instant> {
        let away = self.connection.is_none();
        if away == self.told_away {
            return None;
        }
        let due = now
            + if away && !self.left {
                grace
            } else {
                Duration::ZERO
            };
        Some(self.told_at.map_or(due, |at| due.max(at + TOLD_EVERY)))
    }

    fn presence(&self, now: Instant) -> Presence {
        let last_seen_s = self.away_s(now);
        match (&self.connection, self.left) {
            (Some(_), _) => Presence::Connected,
            (None, true) => Presence::Left { last_seen_s },
            (None, false) => Presence::Lost { last_seen_s },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::InviteId;
    use crate::server::Limits;
    use crate::server::registry::{Joined, Member};

    const NETWORK: NetworkId = NetworkId([1; 32]);

    fn join(registry: &mut Registry, n: u8, hears_presence: bool, now: Instant) -> Joined {
        let member = Member {
            network: NETWORK,
            key: PublicKey([n; 32]),
            invite: InviteId([5; 32]),
            listed: true,
            hears_presence,
        };
        registry.join(member, now).unwrap()
    }

    fn heard(joined: &mut Joined) -> Vec<(u8, Presence)> {
        let frames = std::iter::from_fn(|| joined.outgoing.try_recv().ok());
        let of = |frame: Bytes| {
            let frame = ServerFrame::decode(&frame).unwrap();
            let ServerFrame::Presence(nodes) = frame else {
                panic!("{frame:?}");
            };
            nodes
        };
        let nodes = frames.flat_map(of);
        nodes.map(|(key, presence)| (key.0[0], presence)).collect()
    }

    fn leave(registry: &mut Registry, n: u8, joined: &Joined, left: bool, now: Instant) {
        let key = PublicKey([n; 32]);
        registry.leave(&NETWORK, &key, joined.id, (now, left), now);
    }

    #[test]
    fn who_goes_is_told_at_once_who_is_lost_after_the_grace() {
        let start = Instant::now();
        let limits = Limits::default();
        let mut registry = Registry::new(limits);
        let mut watcher = join(&mut registry, 9, true, start);
        let mut old = join(&mut registry, 8, false, start);
        let (leaver, lost) = (
            join(&mut registry, 1, true, start),
            join(&mut registry, 2, true, start),
        );
        leave(&mut registry, 1, &leaver, true, start);
        leave(&mut registry, 2, &lost, false, start);
        registry.tell_presence(start);
        assert_eq!(
            heard(&mut watcher),
            [(1, Presence::Left { last_seen_s: 0 })]
        );
        let later = start + limits.presence_grace;
        registry.tell_presence(later - PRESENCE_TICK);
        assert_eq!(heard(&mut watcher), []);
        registry.tell_presence(later);
        let last_seen_s = u32::try_from(limits.presence_grace.as_secs()).unwrap();
        assert_eq!(heard(&mut watcher), [(2, Presence::Lost { last_seen_s })]);
        let _back = join(&mut registry, 2, true, later);
        registry.tell_presence(later + TOLD_EVERY);
        assert_eq!(heard(&mut watcher), [(2, Presence::Connected)]);
        assert_eq!(heard(&mut old), [], "its version does not know the frame");
    }

    #[test]
    fn who_comes_back_within_the_grace_was_never_away() {
        let start = Instant::now();
        let mut registry = Registry::new(Limits::default());
        let mut watcher = join(&mut registry, 9, true, start);
        let node = join(&mut registry, 1, true, start);
        leave(&mut registry, 1, &node, false, start);
        let _again = join(&mut registry, 1, true, start + Duration::from_secs(1));
        registry.tell_presence(start + Duration::from_secs(60));
        assert_eq!(heard(&mut watcher), []);
        assert!(registry.untold.is_empty());
    }

    #[test]
    fn who_comes_and_goes_all_the_time_is_told_of_now_and_then() {
        let start = Instant::now();
        let mut registry = Registry::new(Limits::default());
        let mut watcher = join(&mut registry, 9, true, start);
        let mut now = start;
        for _ in 0..100 {
            let node = join(&mut registry, 1, true, now);
            registry.tell_presence(now);
            leave(&mut registry, 1, &node, true, now);
            registry.tell_presence(now);
            now += Duration::from_millis(100);
        }
        let count = heard(&mut watcher).len();
        assert!((2..=6).contains(&count), "{count} in 10 s");
    }

    #[test]
    fn many_at_once_go_in_few_frames() {
        let start = Instant::now();
        let mut registry = Registry::new(Limits::default());
        let mut watcher = join(&mut registry, 255, true, start);
        let nodes: Vec<(u8, Joined)> = (0..200)
            .map(|n| (n, join(&mut registry, n, true, start)))
            .collect();
        for (n, joined) in &nodes {
            leave(&mut registry, *n, joined, false, start);
        }
        registry.tell_presence(start + Duration::from_secs(60));
        let frames = std::iter::from_fn(|| watcher.outgoing.try_recv().ok()).count();
        assert_eq!(frames, 200_usize.div_ceil(MAX_PRESENCES));
    }
}
