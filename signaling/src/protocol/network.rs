//! A network is an Ed25519 admin key: whoever it lets in is a member, and any node can check
//! that offline. The signaling service is not asked.

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::prefix::{put_list, take_list};
use super::wire::{Reader, check_text, put_text};
use super::{IpPrefix, PublicKey, RecordError};

/// The most prefixes that an invite may let its nodes route: keeps the proof within an advert.
pub const MAX_INVITE_PREFIXES: usize = 16;

/// The longest label of an invite, in bytes.
pub const MAX_LABEL_LEN: usize = 63;

/// The longest encoded membership: 105 bytes of head and admin signature, a label, 16 IPv6
/// prefixes of 18 bytes and their count, the invite's signature.
pub const MAX_MEMBERSHIP_LEN: usize =
    105 + (1 + MAX_LABEL_LEN) + (1 + MAX_INVITE_PREFIXES * 18) + ED25519_SIGNATURE_LEN;

pub(super) const ED25519_SIGNATURE_LEN: usize = 64;

const VERSION: u8 = 1;
const INVITE_PREFIX: &[u8] = b"wice-invite-v1\0";
const MEMBER_PREFIX: &[u8] = b"wice-member-v1\0";

/// A network's name to machines: the admin key's public half (Ed25519).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub [u8; 32]);

impl NetworkId {
    pub(super) fn verify(
        &self,
        message: &[&[u8]],
        signature: &[u8; ED25519_SIGNATURE_LEN],
    ) -> bool {
        ed25519_verify(&self.0, message, signature)
    }
}

impl fmt::Display for NetworkId {
    /// Lower-case hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for NetworkId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, hex::FromHexError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// The key that a network is: it signs invites and revocations. Wiped when dropped, never printed.
#[derive(ZeroizeOnDrop)]
pub struct AdminKey(SigningKey);

impl AdminKey {
    /// From 32 fresh random bytes, or those that [`AdminKey::expose_seed`] gave.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The secret itself, for the state folder.
    #[must_use]
    pub fn expose_seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The network's id.
    #[must_use]
    pub fn network_id(&self) -> NetworkId {
        NetworkId(self.0.verifying_key().to_bytes())
    }

    pub(super) fn sign(&self, message: &[&[u8]]) -> [u8; ED25519_SIGNATURE_LEN] {
        self.0.sign(&message.concat()).to_bytes()
    }
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdminKey({})", self.network_id())
    }
}

/// An invite's name: its public key (Ed25519).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InviteId(pub [u8; 32]);

impl fmt::Display for InviteId {
    /// Lower-case hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the admin key says of an invite.
///
/// Encoded: version 1 (1 byte), invite id (32), expiry (8, big-endian), label (length, UTF-8),
/// prefixes (count, each family 4 or 6, length, address), 64 bytes of Ed25519 signature of the
/// admin key over `wice-invite-v1\0` and all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InviteCertificate {
    /// The invite's public key.
    pub id: InviteId,
    /// UNIX time in seconds after which no *new* node may join; nodes that joined stay.
    pub expiry: u64,
    /// For people: at most [`MAX_LABEL_LEN`] bytes.
    pub label: String,
    /// What its nodes may route: these and all within them. Rising, none twice, at most
    /// [`MAX_INVITE_PREFIXES`].
    pub prefixes: Vec<IpPrefix>,
    signature: [u8; ED25519_SIGNATURE_LEN],
}

impl InviteCertificate {
    /// Whether `network`'s admin key signed it.
    #[must_use]
    pub fn is_of(&self, network: &NetworkId) -> bool {
        network.verify(&[INVITE_PREFIX, &self.body()], &self.signature)
    }

    fn body(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.expiry.to_be_bytes());
        put_text(&mut out, &self.label);
        put_list(&mut out, &self.prefixes);
        out
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.body());
        out.extend_from_slice(&self.signature);
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let version = reader.u8()?;
        if version != VERSION {
            return Err(RecordError::UnknownVersion(version));
        }
        let id = InviteId(reader.array()?);
        let expiry = reader.u64()?;
        let label = reader.text(MAX_LABEL_LEN, "label")?.to_owned();
        let prefixes = take_list(reader, MAX_INVITE_PREFIXES, "invite prefixes")?;
        let signature = reader.array()?;
        Ok(Self {
            id,
            expiry,
            label,
            prefixes,
            signature,
        })
    }
}

/// The right to let nodes into a network: a key pair of its own and what the admin key says of it.
/// Anyone who holds it can join. Wiped when dropped; its secret is never printed.
#[derive(Clone)]
pub struct Invite {
    key: SigningKey,
    certificate: InviteCertificate,
}

impl Invite {
    /// Makes an invite; `seed` is 32 fresh random bytes, `expiry` UNIX time in seconds. `prefixes`
    /// may come in any order.
    pub fn new(
        admin: &AdminKey,
        seed: &[u8; 32],
        expiry: u64,
        label: &str,
        prefixes: &[IpPrefix],
    ) -> Result<Self, RecordError> {
        check_text(label, MAX_LABEL_LEN, "label")?;
        let mut prefixes = prefixes.to_vec();
        prefixes.sort();
        prefixes.dedup();
        if prefixes.len() > MAX_INVITE_PREFIXES {
            return Err(RecordError::TooLong);
        }
        let key = SigningKey::from_bytes(seed);
        let mut certificate = InviteCertificate {
            id: InviteId(key.verifying_key().to_bytes()),
            expiry,
            label: label.to_owned(),
            prefixes,
            signature: [0; ED25519_SIGNATURE_LEN],
        };
        certificate.signature = admin.sign(&[INVITE_PREFIX, &certificate.body()]);
        Ok(Self { key, certificate })
    }

    /// What the admin key says of it.
    #[must_use]
    pub fn certificate(&self) -> &InviteCertificate {
        &self.certificate
    }

    /// Makes the node of `key` a member of `network`, which must be the one that certified this
    /// invite.
    #[must_use]
    pub fn sign_member(&self, network: &NetworkId, key: &PublicKey) -> Membership {
        let message = member_message(network, &self.certificate.id, key);
        let signature = self.key.sign(&message).to_bytes();
        Membership {
            certificate: self.certificate.clone(),
            signature,
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.key.as_bytes());
        self.certificate.put(out);
    }

    pub(super) fn take(reader: &mut Reader<'_>, network: &NetworkId) -> Result<Self, RecordError> {
        let seed = Zeroizing::new(reader.array()?);
        let key = SigningKey::from_bytes(&seed);
        let certificate = InviteCertificate::take(reader)?;
        if certificate.id.0 != key.verifying_key().to_bytes() || !certificate.is_of(network) {
            return Err(RecordError::BadSignature);
        }
        Ok(Self { key, certificate })
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// A node's proof that it is a member: an invite's certificate, and that invite's signature over
/// network and node key. Says nothing of revocation: [`super::RevocationList::refuses`].
///
/// Encoded: the certificate, 64 bytes of Ed25519 signature of the invite over
/// `wice-member-v1\0`, network id, invite id and node key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    certificate: InviteCertificate,
    signature: [u8; ED25519_SIGNATURE_LEN],
}

impl Membership {
    /// The encoded proof, at most [`MAX_MEMBERSHIP_LEN`] bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_MEMBERSHIP_LEN);
        self.certificate.put(&mut out);
        out.extend_from_slice(&self.signature);
        out
    }

    /// Decodes and verifies that the node of `key` is a member of `network`: two Ed25519
    /// verifications. Does not look at the invite's expiry.
    pub fn decode_verified(
        bytes: &[u8],
        network: &NetworkId,
        key: &PublicKey,
    ) -> Result<Self, RecordError> {
        if bytes.len() > MAX_MEMBERSHIP_LEN {
            return Err(RecordError::TooLong);
        }
        let mut reader = Reader::new(bytes);
        let certificate = InviteCertificate::take(&mut reader)?;
        let signature = reader.array()?;
        reader.finish()?;
        let message = member_message(network, &certificate.id, key);
        if !certificate.is_of(network)
            || !ed25519_verify(&certificate.id.0, &[&message], &signature)
        {
            return Err(RecordError::BadSignature);
        }
        Ok(Self {
            certificate,
            signature,
        })
    }

    /// The invite that an encoded proof names, whether or not it holds: enough to heed a revocation.
    #[must_use]
    pub fn claimed_invite(bytes: &[u8]) -> Option<InviteId> {
        let certificate = InviteCertificate::take(&mut Reader::new(bytes)).ok()?;
        Some(certificate.id)
    }

    /// The invite by which the node joined.
    #[must_use]
    pub fn invite(&self) -> &InviteCertificate {
        &self.certificate
    }

    /// Whether the admin key lets this node route `prefix`.
    #[must_use]
    pub fn may_route(&self, prefix: &IpPrefix) -> bool {
        self.certificate
            .prefixes
            .iter()
            .any(|granted| granted.covers(prefix))
    }
}

fn member_message(network: &NetworkId, invite: &InviteId, key: &PublicKey) -> Vec<u8> {
    [MEMBER_PREFIX, &network.0, &invite.0, &key.0].concat()
}

fn ed25519_verify(
    key: &[u8; 32],
    message: &[&[u8]],
    signature: &[u8; ED25519_SIGNATURE_LEN],
) -> bool {
    VerifyingKey::from_bytes(key).is_ok_and(|key| {
        !key.is_weak()
            && key
                .verify_strict(&message.concat(), &Signature::from_bytes(signature))
                .is_ok()
    })
}
