//! Peers that are configured on one side alone: what is told to the others about it, and heard from them.

use std::collections::BTreeSet;
use std::time::Instant;

use wice_signaling::protocol::{Advert, PublicKey, RecordKind, Seeking};

use super::{Attached, InterfaceView, Ways};
use crate::core::binding::Standing;
use crate::core::seeking::Sought;
use crate::daemon::random;
use crate::report::{Stranger, short_key};

impl Attached {
    /// The second record of a node. Of managed nodes it is routes, which are the interface's to say.
    pub(super) fn handle_seeking(&mut self, from: &PublicKey, record: &[u8]) {
        if let Ok(seeking) = Seeking::decode_verified(record) {
            self.seeker.handle_record(from, &seeking);
        }
    }

    /// Looks who is sought in vain, tells the others what they need to know, and the view what they have told.
    pub(super) fn seek(&mut self, ways: &Ways) -> anyhow::Result<()> {
        let now = Instant::now();
        let binder = &self.binder;
        let works = |key: &PublicKey| {
            matches!(
                binder.standing(key),
                Some(Standing::Theirs { works: true, .. })
            )
        };
        let sought = ways.iter().map(|way| Sought {
            key: way.key,
            in_vain: way.connected && way.advert && !way.has_path && !works(&way.key),
        });
        self.seeker.handle_peers(sought, now);
        // In a cluster every watcher of Nodes pays for a record, and who is a peer is the agent's to see to.
        let service = self.base.network.url().is_some();
        if let Some(seeking) = self.seeker.poll_publish(now).filter(|_| service) {
            let record = seeking.encode_signed(&self.base.key, &random()?)?;
            self.base.publish(RecordKind::Routes, &record)?;
        }
        let lacking: BTreeSet<PublicKey> = ways
            .iter()
            .map(|way| way.key)
            .filter(|key| self.seeker.lacks_us(key))
            .collect();
        // Who is away looks for nobody.
        let present = self
            .seeker
            .strangers()
            .filter(|key| !self.base.away.contains(key));
        let present: BTreeSet<PublicKey> = present.copied().collect();
        self.tell_seeking(lacking, present);
        Ok(())
    }

    /// Says what is new, once.
    fn tell_seeking(&mut self, lacking: BTreeSet<PublicKey>, strangers: BTreeSet<PublicKey>) {
        let (lacked, known) = self
            .with_view(|view: &mut InterfaceView| (view.lacking.clone(), view.strangers.clone()));
        for key in lacking.difference(&lacked) {
            tracing::warn!(event = "not-a-peer-there", peer = %key, "its interface does not have this node as a peer");
        }
        for key in strangers.iter().filter(|key| !known.contains_key(key)) {
            let interface = &self.base.settings.interface;
            tracing::warn!(event = "not-a-peer-here", peer = %key, interface, "it looks for this node, and is no peer of the interface");
        }
        let named = strangers.into_iter().map(|key| {
            let before = known.get(&key).cloned();
            (key, before.unwrap_or_else(|| self.stranger(&key)))
        });
        let named = named.collect();
        self.with_view(|view| {
            view.lacking = lacking;
            view.strangers = named;
        });
    }

    fn stranger(&self, key: &PublicKey) -> Stranger {
        let advert = self.adverts.of(key);
        let name = advert.and_then(|record| Some(Advert::decode_verified(record).ok()?.name));
        Stranger {
            name: name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| short_key(key)),
            key: key.to_string(),
        }
    }
}
