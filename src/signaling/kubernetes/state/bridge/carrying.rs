//! From the cluster to the service: adverts that stand at Nodes, each of its Node's own key, at the service's pace.

use std::time::{Duration, Instant};

use rand_core::RngCore as _;
use wice_signaling::protocol::{CarryRefusal, PublicKey, RecordKind, SEAL_NONCE_LEN};

use super::{Bridge, Bridged, Carry, News, Standing, verified};
use crate::signaling::kubernetes::state::{ObjectName, Source};

/// Carried at once, and one more every so long: below the 16 and the one a second that a service lets any node publish, so that it
/// never stops reading.
const CARRY_BURST: u32 = 12;
const CARRY_EVERY: Duration = Duration::from_millis(1_100);

/// What may have passed by then is tried once more: a service gives up a silent connection after 60 s, that of a bridge before
/// this one too, which had another key if it had lost its state folder.
const TRY_AGAIN: Duration = Duration::from_secs(90);

impl Bridge {
    /// The service has not taken what was carried for this key.
    pub fn handle_not_carried(&mut self, key: &PublicKey, why: CarryRefusal, now: Instant) {
        let Some(standing) = self.nodes.get_mut(key) else {
            return;
        };
        let may_pass = match why {
            CarryRefusal::Taken | CarryRefusal::Full => true,
            CarryRefusal::Proven | CarryRefusal::TooMuch | CarryRefusal::Revoked => false,
        };
        if may_pass && !standing.tried_again {
            standing.tried_again = true;
            standing.again = Some(now + TRY_AGAIN);
        }
        if standing.refused.replace(why) != Some(why) {
            let node = standing.node.clone();
            self.news.push_back(News::NotCarried { node, why });
        }
    }

    /// The next record to carry now, if any.
    pub fn poll_carry(&mut self, now: Instant) -> Option<Carry> {
        let due = self.carry_due()?;
        if now < due {
            return None;
        }
        for standing in self.nodes.values_mut() {
            if standing.again.take_if(|again| *again <= now).is_some() {
                standing.carried = false;
                standing.refused = None;
            }
        }
        let Some(key) = self.next_to_carry() else {
            let carrying = self.counts().carried;
            if std::mem::replace(&mut self.carrying, carrying) != carrying {
                self.news.push_back(News::Carrying { nodes: carrying });
            }
            return None;
        };
        let mut nonce = [0; SEAL_NONCE_LEN];
        self.rng.fill_bytes(&mut nonce);
        let Bridged {
            network,
            network_key,
            ..
        } = &self.bridged;
        let told = self.members.get(&key);
        let standing = self.nodes.get_mut(&key)?;
        standing.carried = true;
        // The same again is no news to anybody, and says that this bridge still carries it.
        let there = told.filter(|told| told.record == standing.record);
        let known = there.map(|told| &told.sealed).or(standing.sealed.as_ref());
        let sealed = match known {
            Some(sealed) => sealed.clone(),
            // Longer than a record is no advert that was verified.
            None => network_key
                .seal(network, &key, RecordKind::Advert, &nonce, &standing.record)
                .ok()?,
        };
        standing.sealed = Some(sealed.clone());
        if let Some(service) = &mut self.service {
            service.full_at = service.full_at.max(now) + CARRY_EVERY;
        }
        Some(Carry { key, sealed })
    }

    /// When something may be carried next, if the service takes it at all.
    pub(super) fn carry_due(&self) -> Option<Instant> {
        let service = self.service.as_ref().filter(|service| service.carries)?;
        let burst = CARRY_EVERY * (CARRY_BURST - 1);
        let ready = service.full_at.checked_sub(burst);
        self.objects
            .is_listed(Source::Nodes)
            .then(|| ready.map_or(service.begin, |ready| ready.max(service.begin)))
    }

    /// News first, then what the service has already.
    pub(super) fn next_to_carry(&self) -> Option<PublicKey> {
        let open = self.nodes.iter().filter_map(|(key, standing)| {
            let told = self.members.get(key);
            let is_old = told.is_some_and(|told| told.sequence > standing.sequence);
            if standing.carried || is_old || self.is_out(key, None) || *key == self.bridged.own {
                return None;
            }
            let is_there = told.is_some_and(|told| told.record == standing.record);
            Some((is_there, *key))
        });
        open.min().map(|(_, key)| key)
    }

    pub(super) fn look_at_node(&mut self, name: &ObjectName) {
        let facts = self.objects.facts(name);
        let key = facts.and_then(|facts| facts.key);
        let text = self.objects.advert(name);
        let (Some(key), Some(text)) = (key, text) else {
            self.nodes.retain(|_, standing| standing.node != name.name);
            return;
        };
        let is_known = |standing: &Standing| standing.node == name.name && standing.text == *text;
        let is_wrong = self
            .wrong
            .get(&name.name)
            .is_some_and(|wrong| wrong == text);
        if is_wrong || self.nodes.get(&key).is_some_and(is_known) {
            return;
        }
        let text = text.to_owned();
        let before = self.nodes.remove(&key);
        self.nodes.retain(|_, standing| standing.node != name.name);
        match verified(Source::Nodes, &text) {
            Ok((advert, record)) if advert.key == key => {
                self.wrong.remove(&name.name);
                let refused = before.and_then(|before| before.refused);
                let standing = Standing {
                    node: name.name.clone(),
                    text,
                    sequence: advert.sequence,
                    record,
                    sealed: None,
                    carried: false,
                    again: None,
                    tried_again: false,
                    // Who speaks for itself does so whatever it says; for the rest it may have been the size.
                    refused: refused.filter(|why| *why == CarryRefusal::Proven),
                };
                self.nodes.insert(key, standing);
            }
            other => {
                let why = match other {
                    Ok((advert, _)) => {
                        format!("it is signed by {}, the Node's key is {key}", advert.key)
                    }
                    Err(why) => why,
                };
                self.wrong.insert(name.name.clone(), text);
                let node = name.name.clone();
                self.news.push_back(News::NotOfItsKey { node, why });
            }
        }
    }
}
