//! What the service remembers of who joined, without remembering anything: a receipt that the
//! node keeps.

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::ZeroizeOnDrop;

use super::{InviteId, NetworkId, PublicKey};

const LABEL: &[u8] = b"wice-receipt-v1\0";

/// Given to a node at its first accepted join: with it, the invite's expiry no longer matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinReceipt(pub [u8; 32]);

/// The service's persistent secret. Wiped when dropped, never printed.
#[derive(Clone, ZeroizeOnDrop)]
pub struct ServiceSecret([u8; 32]);

impl ServiceSecret {
    /// From 32 random bytes, made once and kept.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// HMAC-SHA256 over network, node key and invite.
    #[must_use]
    pub fn receipt(&self, network: &NetworkId, key: &PublicKey, invite: &InviteId) -> JoinReceipt {
        JoinReceipt(
            self.mac(network, key, invite)
                .finalize()
                .into_bytes()
                .into(),
        )
    }

    /// Whether `receipt` is ours for this node and invite; in constant time.
    #[must_use]
    pub fn accepts(
        &self,
        receipt: &JoinReceipt,
        network: &NetworkId,
        key: &PublicKey,
        invite: &InviteId,
    ) -> bool {
        self.mac(network, key, invite)
            .verify_slice(&receipt.0)
            .is_ok()
    }

    fn mac(&self, network: &NetworkId, key: &PublicKey, invite: &InviteId) -> Hmac<Sha256> {
        // A key of one block: longer ones are hashed, this is not, so every length is taken.
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block[..32].copy_from_slice(&self.0);
        let mac = <Hmac<Sha256> as hmac::digest::KeyInit>::new(&block);
        mac.chain_update(LABEL)
            .chain_update(network.0)
            .chain_update(key.0)
            .chain_update(invite.0)
    }
}

impl std::fmt::Debug for ServiceSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServiceSecret(..)")
    }
}
