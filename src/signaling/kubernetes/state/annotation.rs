//! An advert as the value of an annotation: base64 (RFC 4648 §4) without padding, nothing around it, so that an advert has one
//! text and a changed text is a changed advert.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use wice_signaling::protocol::{MAX_ADVERT_LEN, PublicKey};

use super::Source;

/// The longest value at a Node, in characters: every watcher of Nodes pays for it. The longest advert without a membership, 16
/// IPv6 candidates and a name of 63 bytes, has 589 bytes and so 786 characters.
pub const MAX_ANNOTATION: usize = 1024;

/// The longest value at a Peer: who is outside of the cluster proves membership in its advert, and watchers of Peers are few.
pub const MAX_PEER_ANNOTATION: usize = (MAX_ADVERT_LEN * 4).div_ceil(3);

/// What an advert begins with: its version and its key (see the advert's layout).
const KEY: std::ops::Range<usize> = 1..33;

/// The value cannot be an advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// More than [`MAX_ANNOTATION`], or [`MAX_PEER_ANNOTATION`].
    #[error("it has {0} characters, more than an advert there may have")]
    TooLong(usize),
    /// Not base64 without padding.
    #[error("it is not base64 as wice writes it")]
    NotBase64,
    /// Too short to name a key.
    #[error("it is too short to be an advert")]
    TooShort,
}

/// The value for an encoded advert at a Node.
pub fn encode(advert: &[u8]) -> Result<String, AnnotationError> {
    encode_at(Source::Nodes, advert)
}

/// The value for an encoded advert at an object of this kind.
pub fn encode_at(source: Source, advert: &[u8]) -> Result<String, AnnotationError> {
    let text = STANDARD_NO_PAD.encode(advert);
    if text.len() > longest_at(source) {
        return Err(AnnotationError::TooLong(text.len()));
    }
    Ok(text)
}

/// The advert in a value of a Node; see [`decode_at`].
pub fn decode(value: &str) -> Result<(PublicKey, Vec<u8>), AnnotationError> {
    decode_at(Source::Nodes, value)
}

/// The advert in a value of an object of this kind, and whose it says it is. That its key has signed it is the receiver's to
/// check: most values that a node sees are ones that it has seen.
pub fn decode_at(source: Source, value: &str) -> Result<(PublicKey, Vec<u8>), AnnotationError> {
    if value.len() > longest_at(source) {
        return Err(AnnotationError::TooLong(value.len()));
    }
    let advert = STANDARD_NO_PAD
        .decode(value)
        .map_err(|_| AnnotationError::NotBase64)?;
    let key = advert.get(KEY).and_then(|key| key.try_into().ok());
    let key = key.ok_or(AnnotationError::TooShort)?;
    Ok((PublicKey(key), advert))
}

fn longest_at(source: Source) -> usize {
    match source {
        Source::Nodes => MAX_ANNOTATION,
        Source::Peers => MAX_PEER_ANNOTATION,
    }
}

#[cfg(test)]
mod tests {
    use wice_signaling::protocol::{
        AdminKey, Advert, Candidate, CandidateKind, Invite, MAX_CANDIDATES, NatBehavior,
        PrivateKey, Session,
    };

    use super::*;

    fn longest() -> Vec<u8> {
        longest_with(Vec::new())
    }

    fn longest_with(membership: Vec<u8>) -> Vec<u8> {
        let key = PrivateKey::from_bytes([1; 32]);
        let candidate = |number: u32| Candidate {
            kind: CandidateKind::Host,
            relay_transport: None,
            address: format!("[2001:db8::{number:x}]:51821").parse().unwrap(),
            priority: u32::MAX - number,
        };
        let advert = Advert {
            key: key.public_key(),
            session: Session([1; 16]),
            sequence: u64::MAX,
            name: "n".repeat(63),
            nat: NatBehavior::default(),
            candidates: (0..MAX_CANDIDATES as u32).map(candidate).collect(),
            membership,
        };
        advert.encode_signed(&key, &[7; 64]).unwrap()
    }

    #[test]
    fn the_longest_advert_fits_and_comes_back() {
        let advert = longest();
        let text = encode(&advert).unwrap();
        assert_eq!((advert.len(), text.len()), (589, 786));
        let (key, decoded) = decode(&text).unwrap();
        assert_eq!(decoded, advert);
        assert_eq!(key, Advert::decode_verified(&decoded).unwrap().key);
    }

    #[test]
    fn with_a_membership_it_fits_at_a_peer() {
        let admin = AdminKey::from_seed(&[1; 32]);
        let routes: Vec<_> = (0..16u16)
            .map(|n| format!("2001:db8:{n:x}::/48").parse().unwrap())
            .collect();
        let label = "l".repeat(63);
        let invite = Invite::new(&admin, &[2; 32], u64::MAX, &label, &routes).unwrap();
        let key = PrivateKey::from_bytes([1; 32]).public_key();
        let member = invite.sign_member(&admin.network_id(), &key);
        let advert = longest_with(member.encode());
        assert!(matches!(encode(&advert), Err(AnnotationError::TooLong(_))));
        let text = encode_at(Source::Peers, &advert).unwrap();
        assert_eq!(decode_at(Source::Peers, &text), Ok((key, advert)));
        assert!(decode(&text).is_err());
        assert!(encode_at(Source::Peers, &[0; MAX_ADVERT_LEN]).is_ok());
        assert!(encode_at(Source::Peers, &[0; MAX_ADVERT_LEN + 1]).is_err());
    }

    #[test]
    fn an_advert_has_one_text() {
        let text = encode(&longest()).unwrap();
        let spaced = format!("{text} ");
        let padded = format!("{text}==");
        // The last character carries two bits of nothing, which must be zero.
        let mut loose = text.clone();
        let last = loose.pop().unwrap();
        loose.push(char::from(last as u8 + 1));
        for wrong in [spaced.as_str(), &padded, &loose, "with space", "é", "=="] {
            assert_eq!(decode(wrong), Err(AnnotationError::NotBase64), "{wrong}");
        }
        assert_eq!(decode(""), Err(AnnotationError::TooShort));
        assert_eq!(decode("AAAA"), Err(AnnotationError::TooShort));
    }

    #[test]
    fn too_long_is_refused_on_both_sides() {
        let room = MAX_ANNOTATION / 4 * 3;
        assert!(encode(&vec![0; room]).is_ok());
        let too_long = Err(AnnotationError::TooLong(1026));
        assert_eq!(encode(&vec![0; room + 1]).map(|_| ()), too_long);
        assert_eq!(decode(&"A".repeat(1026)).map(|_| ()), too_long);
    }
}
