//! What waits to be told to the owner: state, not history. Whatever is replaced before it was fetched
//! is never told, so that what waits is bounded by the peers and relays that there are, also for an
//! owner that does not fetch.

use std::collections::VecDeque;

use super::Event;

/// Events in the order in which they came up, each at most once for what it is about.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<Event>);

impl Events {
    /// The next one.
    pub(super) fn pop(&mut self) -> Option<Event> {
        self.0.pop_front()
    }

    /// Adds one. What it makes obsolete goes.
    pub(super) fn push(&mut self, event: Event) {
        match &event {
            Event::OpenRelay { .. } | Event::PeerAdded { .. } => {}
            Event::CloseRelay(relay) => {
                if self.take(|e| matches!(e, Event::OpenRelay { relay: r, .. } if r == relay)) {
                    return;
                }
            }
            Event::Publish { .. } => {
                self.take(|e| matches!(e, Event::Publish { .. }));
            }
            Event::PeerRemoved { peer, .. } => {
                self.take(|e| matches!(e, Event::Bind { peer: p, .. } if p == peer));
                self.take(|e| matches!(e, Event::PathChanged { peer: p, .. } if p == peer));
                self.take(|e| matches!(e, Event::Initiation { peer: p, .. } if p == peer));
                if self.take(|e| matches!(e, Event::PeerAdded { peer: p, .. } if p == peer)) {
                    return;
                }
            }
            Event::Bind { peer, .. } => return self.bind(*peer, event),
            Event::PathChanged { peer, .. } => {
                self.take(|e| matches!(e, Event::PathChanged { peer: p, .. } if p == peer));
            }
            Event::Initiation { peer, .. } => {
                self.take(|e| matches!(e, Event::Initiation { peer: p, .. } if p == peer));
            }
        }
        self.0.push_back(event);
    }

    /// The latest routes count, and a handshake that was asked for stays asked for.
    fn bind(&mut self, of: super::PeerId, event: Event) {
        let is_of = |e: &&mut Event| matches!(e, Event::Bind { peer, .. } if *peer == of);
        let Some(waiting) = self.0.iter_mut().find(is_of) else {
            return self.0.push_back(event);
        };
        let asked = matches!(
            waiting,
            Event::Bind {
                handshake: true,
                ..
            }
        );
        *waiting = event;
        if let Event::Bind { handshake, .. } = waiting {
            *handshake |= asked;
        }
    }

    /// Takes one out; whether there was one.
    fn take(&mut self, obsolete: impl Fn(&Event) -> bool) -> bool {
        let found = self.0.iter().position(obsolete);
        found.and_then(|at| self.0.remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use wice_signaling::protocol::PublicKey;

    use super::super::{PeerId, RelayId};
    use super::*;

    fn bind(peer: u32, handshake: bool) -> Event {
        Event::Bind {
            peer: PeerId(peer),
            routes: Vec::new(),
            handshake,
        }
    }

    #[test]
    fn what_waits_is_bounded_by_what_there_is() {
        let at = Instant::now();
        let mut events = Events::default();
        for round in 0..1000 {
            for number in 0..3 {
                let (peer, key) = (PeerId(number), PublicKey([1; 32]));
                if round == 0 {
                    events.push(Event::PeerAdded { peer, key });
                }
                events.push(Event::PathChanged { peer, at });
                events.push(bind(number, round == 500));
                events.push(Event::CloseRelay(RelayId(1)));
                events.take(|e| matches!(e, Event::CloseRelay(_)));
            }
            let advert = vec![0; 3];
            let sequence = round;
            events.push(Event::Publish { advert, sequence });
        }
        assert_eq!(events.0.len(), 3 * 3 + 1);
        assert!(events.0.contains(&bind(1, true)), "the handshake is kept");
        assert!(matches!(
            events.0.back(),
            Some(Event::Publish { sequence: 999, .. })
        ));
        events.push(Event::PeerRemoved {
            peer: PeerId(1),
            key: PublicKey([1; 32]),
        });
        assert_eq!(
            events.0.len(),
            2 * 3 + 1,
            "who was never told of is forgotten"
        );
    }
}
