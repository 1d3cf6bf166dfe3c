//! Records on their way through a signaling service: sealed, so that it learns no addresses.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::ZeroizeOnDrop;

use super::{MAX_ADVERT_LEN, NetworkId, PublicKey};

/// Length of the nonce that the caller draws at random. 2^32 records under one network key repeat
/// one with a probability of 2^-33; a network publishes on change only.
pub const SEAL_NONCE_LEN: usize = NONCE_LEN;

/// Length of Poly1305's tag.
const TAG_LEN: usize = 16;

/// The longest sealed record: nonce, the longest record, tag.
pub const MAX_SEALED_LEN: usize = SEAL_NONCE_LEN + MAX_ADVERT_LEN + TAG_LEN;

const LABEL: &[u8] = b"wice-seal-v1\0";

/// Which of a node's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// [`super::Advert`].
    Advert,
    /// [`super::Routes`].
    Routes,
}

impl RecordKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Advert, Self::Routes];

    pub(super) fn code(self) -> u8 {
        match self {
            Self::Advert => 1,
            Self::Routes => 2,
        }
    }

    pub(super) fn of(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// The secret that the nodes of a network share and the service does not have. Wiped when dropped,
/// never printed.
#[derive(Clone, PartialEq, Eq, ZeroizeOnDrop)]
pub struct NetworkKey([u8; 32]);

/// A sealed record could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sealed record does not open: it is damaged, or sealed under another network's key")]
pub struct OpenError;

impl NetworkKey {
    /// From 32 random bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret itself, for the state folder and the token.
    #[must_use]
    pub fn expose_secret(&self) -> &[u8; 32] {
        &self.0
    }

    /// ChaCha20-Poly1305 (RFC 8439) of `record`: nonce, ciphertext, tag. Network, node key and
    /// kind are authenticated. `nonce` is fresh random bytes.
    pub fn seal(
        &self,
        network: &NetworkId,
        key: &PublicKey,
        kind: RecordKind,
        nonce: &[u8; SEAL_NONCE_LEN],
        record: &[u8],
    ) -> Result<Vec<u8>, OpenError> {
        if record.len() > MAX_ADVERT_LEN {
            return Err(OpenError);
        }
        let mut sealed = Vec::with_capacity(SEAL_NONCE_LEN + record.len() + TAG_LEN);
        sealed.extend_from_slice(nonce);
        sealed.extend_from_slice(record);
        let tag = self
            .cipher()?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(associated_data(network, key, kind)),
                &mut sealed[SEAL_NONCE_LEN..],
            )
            .map_err(|_| OpenError)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Opens what [`NetworkKey::seal`] made for the same network, node and kind.
    pub fn open(
        &self,
        network: &NetworkId,
        key: &PublicKey,
        kind: RecordKind,
        sealed: &[u8],
    ) -> Result<Vec<u8>, OpenError> {
        if sealed.len() > MAX_SEALED_LEN {
            return Err(OpenError);
        }
        let (nonce, ciphertext) = sealed.split_first_chunk().ok_or(OpenError)?;
        let mut record = ciphertext.to_vec();
        let len = self
            .cipher()?
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(associated_data(network, key, kind)),
                &mut record,
            )
            .map_err(|_| OpenError)?
            .len();
        record.truncate(len);
        Ok(record)
    }

    fn cipher(&self) -> Result<LessSafeKey, OpenError> {
        UnboundKey::new(&CHACHA20_POLY1305, &self.0)
            .map(LessSafeKey::new)
            .map_err(|_| OpenError)
    }
}

impl std::fmt::Debug for NetworkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NetworkKey(..)")
    }
}

fn associated_data(network: &NetworkId, key: &PublicKey, kind: RecordKind) -> Vec<u8> {
    [LABEL, &network.0, &key.0, &[kind.code()]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::testing::assert_all_damage;

    #[test]
    fn opens_only_for_its_network_node_and_kind() {
        let secret = NetworkKey::from_bytes([1; 32]);
        let (network, key) = (NetworkId([2; 32]), PublicKey([3; 32]));
        let sealed = secret
            .seal(&network, &key, RecordKind::Advert, &[4; 12], b"record")
            .unwrap();
        let open =
            |secret: &NetworkKey, network, key, kind| secret.open(&network, &key, kind, &sealed);
        assert_eq!(
            open(&secret, network, key, RecordKind::Advert).unwrap(),
            b"record"
        );
        assert!(open(&secret, network, key, RecordKind::Routes).is_err());
        assert!(open(&secret, NetworkId([9; 32]), key, RecordKind::Advert).is_err());
        assert!(open(&secret, network, PublicKey([9; 32]), RecordKind::Advert).is_err());
        assert!(
            open(
                &NetworkKey::from_bytes([9; 32]),
                network,
                key,
                RecordKind::Advert
            )
            .is_err()
        );
        assert_all_damage(&sealed, |damaged| {
            secret
                .open(&network, &key, RecordKind::Advert, damaged)
                .is_err()
        });
    }

    #[test]
    fn lengths_are_bounded() {
        let secret = NetworkKey::from_bytes([1; 32]);
        let (network, key) = (NetworkId([2; 32]), PublicKey([3; 32]));
        let seal = |len| secret.seal(&network, &key, RecordKind::Advert, &[4; 12], &vec![0; len]);
        assert_eq!(seal(MAX_ADVERT_LEN).unwrap().len(), MAX_SEALED_LEN);
        assert!(seal(MAX_ADVERT_LEN + 1).is_err());
        let long = vec![0; MAX_SEALED_LEN + 1];
        assert!(
            secret
                .open(&network, &key, RecordKind::Advert, &long)
                .is_err()
        );
    }
}
