//! Adverts of all nodes of the network, whether or not the interface has them: a peer that is added
//! later is found at once.

use std::collections::BTreeMap;

use wice_signaling::protocol::{Advert, PublicKey};

/// Adverts that are kept, of 2 KiB at most; past them the first come stay.
const MAX_ADVERTS: usize = 4096;

/// The newest advert of every node.
#[derive(Debug, Default)]
pub(super) struct Adverts {
    /// With the sequence.
    known: BTreeMap<PublicKey, (u64, Vec<u8>)>,
}

impl Adverts {
    /// Takes those that were kept, as far as they hold.
    pub(super) fn restore<'a>(records: impl Iterator<Item = &'a Vec<u8>>) -> Self {
        let mut adverts = Self::default();
        for record in records {
            adverts.take(None, record.clone());
        }
        adverts
    }

    /// Takes a record if it is what its key has signed, `from` is that key where it is known, and it
    /// is not older than what is there. Gives the key.
    pub(super) fn take(&mut self, from: Option<PublicKey>, record: Vec<u8>) -> Option<PublicKey> {
        let advert = Advert::decode_verified(&record).ok()?;
        let key = advert.key;
        let known = self.known.get(&key).map(|(sequence, _)| *sequence);
        let full = known.is_none() && self.known.len() == MAX_ADVERTS;
        if from.is_some_and(|from| from != key)
            || full
            || known.is_some_and(|known| advert.sequence < known)
        {
            return None;
        }
        self.known.insert(key, (advert.sequence, record));
        Some(key)
    }

    /// A node's advert.
    pub(super) fn of(&self, key: &PublicKey) -> Option<&[u8]> {
        self.known.get(key).map(|(_, record)| record.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use wice_signaling::protocol::{NatBehavior, PrivateKey, Session};

    use super::*;

    fn record(key: u8, sequence: u64) -> Vec<u8> {
        let key = PrivateKey::from_bytes([key; 32]);
        let advert = Advert {
            key: key.public_key(),
            session: Session([1; 16]),
            sequence,
            name: "n".into(),
            nat: NatBehavior::default(),
            candidates: Vec::new(),
            membership: Vec::new(),
        };
        advert.encode_signed(&key, &[7; 64]).unwrap()
    }

    #[test]
    fn the_newest_authentic_advert_is_kept() {
        let key = PrivateKey::from_bytes([1; 32]).public_key();
        let other = PrivateKey::from_bytes([2; 32]).public_key();
        let mut adverts = Adverts::default();
        assert_eq!(adverts.take(Some(key), record(1, 5)), Some(key));
        assert_eq!(adverts.take(Some(key), record(1, 4)), None, "older");
        assert_eq!(adverts.take(Some(other), record(1, 9)), None, "not its own");
        let mut forged = record(1, 9);
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(adverts.take(Some(key), forged), None);
        assert_eq!(adverts.of(&key), Some(record(1, 5).as_slice()));
        let kept = [record(1, 5), b"zz".to_vec()];
        let restored = Adverts::restore(kept.iter());
        assert_eq!(restored.of(&key), adverts.of(&key));
    }

    #[test]
    fn a_network_of_any_size_takes_bounded_room() {
        let mut adverts = Adverts::default();
        let newest = PrivateKey::from_bytes([1; 32]).public_key();
        for number in 0..MAX_ADVERTS {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(number as u64).to_be_bytes());
            adverts.known.insert(PublicKey(key), (1, Vec::new()));
        }
        assert_eq!(adverts.take(Some(newest), record(1, 5)), None);
        assert_eq!(adverts.known.len(), MAX_ADVERTS);
    }
}
