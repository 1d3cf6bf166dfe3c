//! From the service to the cluster: adverts of members, each at the Peer object of its key.

use std::time::Instant;

use rand_core::RngCore as _;
use wice_signaling::protocol::{Membership, PublicKey};

use super::{Bridge, Peer, verified};
use crate::signaling::kubernetes::state::annotation::encode_at;
use crate::signaling::kubernetes::state::{ObjectName, Publisher, Source};

impl Bridge {
    pub(super) fn look_at_peer(&mut self, name: &ObjectName, now: Instant) {
        let Some(facts) = self.objects.facts(name) else {
            return; // more than are kept
        };
        let (key, text) = (facts.key, self.objects.advert(name).map(str::to_owned));
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let peer = self.peers.entry(name.name.clone()).or_insert_with(|| Peer {
            key: None,
            text: None,
            advert: None,
            publisher: Publisher::new(seed),
        });
        peer.key = key;
        if peer.text != text {
            let advert = text.as_deref().map(|text| verified(Source::Peers, text));
            peer.advert = advert.and_then(Result::ok).map(|(advert, _)| {
                let invite = Membership::claimed_invite(&advert.membership);
                (advert.key, advert.sequence, invite)
            });
            peer.text = text;
        }
        let seen = peer.text.clone().unwrap_or_default();
        self.plan_peers_named(&name.name, now);
        if let Some(peer) = self.peers.get_mut(&name.name) {
            peer.publisher.handle_seen(Some(&seen), now);
        }
    }

    fn plan_peers_named(&mut self, name: &str, now: Instant) {
        let wanted = self.peers.get(name).and_then(|peer| self.wanted(peer));
        if let (Some(wanted), Some(peer)) = (wanted, self.peers.get_mut(name)) {
            peer.publisher.handle_wanted(wanted, now);
        }
    }

    pub(super) fn plan_peers(&mut self, which: impl Fn(&Peer) -> bool, now: Instant) {
        let meant = self.peers.iter().filter(|(_, peer)| which(peer));
        let names: Vec<String> = meant.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.plan_peers_named(&name, now);
        }
    }

    /// What a Peer's annotation should say: nothing in particular, nothing at all (empty), or an advert.
    fn wanted(&self, peer: &Peer) -> Option<String> {
        let stands = || peer.text.clone().unwrap_or_default();
        let Some(key) = peer.key.filter(|key| !self.is_node(key)) else {
            return Some(stands());
        };
        let own = peer.advert.filter(|(whose, _, _)| *whose == key);
        let told = self.members.get(&key);
        let invites = [
            own.and_then(|(_, _, invite)| invite),
            told.and_then(|told| told.invite),
        ];
        if invites.into_iter().any(|invite| self.is_out(&key, invite)) {
            return Some(String::new());
        }
        match (told, own) {
            // What stands there is as new: a lower sequence replaces nothing.
            (Some(told), Some((_, sequence, _))) if sequence >= told.sequence => Some(stands()),
            (Some(told), _) => encode_at(Source::Peers, &told.record).ok(),
            (None, _) => Some(stands()),
        }
    }

    /// Nodes write their own.
    fn is_node(&self, key: &PublicKey) -> bool {
        let mut all = self.objects.all();
        all.any(|(name, facts)| name.source == Source::Nodes && facts.key.as_ref() == Some(key))
    }
}
