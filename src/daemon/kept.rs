//! The last records of peers, in memory as in the state folder: with them a daemon has its peers
//! and their routes back while signaling is down.

use std::collections::{BTreeMap, BTreeSet};

use wice_signaling::protocol::{PublicKey, RecordKind};

use super::state::{State, StateError};

/// Peers whose records are kept: as many as the core takes.
const MAX_KEPT: usize = 4096;

/// Records by peer.
type Records = BTreeMap<PublicKey, Vec<u8>>;

/// The last records of peers.
#[derive(Debug)]
pub(super) struct Kept {
    adverts: Records,
    routes: Records,
    changed: BTreeSet<RecordKind>,
}

impl Kept {
    /// What the folder holds. Whatever of it is damaged is as good as not there: signaling brings it
    /// again.
    pub(super) fn read(state: &State) -> Self {
        let read = |kind| {
            let kept = state.records(kind);
            kept.into_iter().take(MAX_KEPT).collect()
        };
        Self {
            adverts: read(RecordKind::Advert),
            routes: read(RecordKind::Routes),
            changed: BTreeSet::new(),
        }
    }

    /// All records of a kind.
    pub(super) fn records(&self, kind: RecordKind) -> impl Iterator<Item = &Vec<u8>> {
        match kind {
            RecordKind::Advert => self.adverts.values(),
            RecordKind::Routes => self.routes.values(),
        }
    }

    /// Keeps a record that was verified. Past [`MAX_KEPT`] peers it is left to signaling.
    pub(super) fn keep(&mut self, kind: RecordKind, record: Vec<u8>) {
        // The key stands after the version (see the records' layouts).
        let key = record.get(1..).and_then(|rest| rest.first_chunk::<32>());
        let Some(key) = key.map(|key| PublicKey(*key)) else {
            return;
        };
        let records = self.of(kind);
        let known = records.get(&key);
        if known == Some(&record) || (known.is_none() && records.len() >= MAX_KEPT) {
            return;
        }
        records.insert(key, record);
        self.changed.insert(kind);
    }

    /// The peer is gone: revoked, or removed.
    pub(super) fn forget(&mut self, key: &PublicKey) {
        for kind in RecordKind::ALL {
            if self.of(kind).remove(key).is_some() {
                self.changed.insert(kind);
            }
        }
    }

    /// Writes what has changed since the last time.
    pub(super) fn write(&mut self, state: &State) -> Result<(), StateError> {
        for kind in std::mem::take(&mut self.changed) {
            state.set_records(kind, self.of(kind))?;
        }
        Ok(())
    }

    fn of(&mut self, kind: RecordKind) -> &mut Records {
        match kind {
            RecordKind::Advert => &mut self.adverts,
            RecordKind::Routes => &mut self.routes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u16, rest: &[u8]) -> Vec<u8> {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        [&[1], &key[..], rest].concat()
    }

    #[test]
    fn routes_and_adverts_come_back_and_who_is_gone_does_not() {
        let folder = std::env::temp_dir().join(format!("wice-kept-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let state = State::open(&folder).unwrap();
        let mut kept = Kept::read(&state);
        for kind in RecordKind::ALL {
            for n in [1, 2] {
                kept.keep(kind, record(n, b"first"));
                kept.keep(kind, record(n, b"last"));
            }
        }
        kept.forget(&PublicKey(record(2, b"")[1..].try_into().unwrap()));
        kept.write(&state).unwrap();
        assert!(kept.changed.is_empty());
        kept.keep(RecordKind::Routes, record(1, b"last"));
        assert!(kept.changed.is_empty(), "nothing new is not written");
        let again = Kept::read(&state);
        for kind in RecordKind::ALL {
            let records: Vec<&Vec<u8>> = again.records(kind).collect();
            assert_eq!(records, [&record(1, b"last")]);
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn no_more_peers_are_kept_than_there_can_be() {
        let folder = std::env::temp_dir().join(format!("wice-kept-many-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let state = State::open(&folder).unwrap();
        let mut kept = Kept::read(&state);
        let advert = vec![7; wice_signaling::protocol::MAX_ADVERT_LEN - 33];
        for n in 0..=MAX_KEPT {
            kept.keep(
                RecordKind::Advert,
                record(u16::try_from(n).unwrap(), &advert),
            );
        }
        kept.write(&state).unwrap();
        // As many and as large as can be: the file must be within what is read.
        assert_eq!(Kept::read(&state).adverts.len(), MAX_KEPT);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
