//! Long-term credentials (RFC 8489 §9.2): from a challenge to signed requests and checked responses.

use stun_types::attribute::{
    AttributeStaticType, Nonce, PasswordAlgorithm, PasswordAlgorithmValue, PasswordAlgorithms,
    RawAttribute, Realm, Username,
};
use stun_types::message::{
    IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, Message, MessageWriteVec,
};
use stun_types::prelude::{MessageWrite, MessageWriteExt};

use super::Credentials;
use super::message::add;

/// The start of a nonce that carries security features (RFC 8489 §9.2): this cookie, then 24 bits in
/// base64.
const NONCE_COOKIE: &str = "obMatJos2";
/// The first of the 24 bits: the server sends PASSWORD-ALGORITHMS (RFC 8489 §18.1). The first base64
/// character holds it as the highest of its six bits.
const PASSWORD_ALGORITHMS_BIT: u8 = 0b10_0000;
/// The most bytes of PASSWORD-ALGORITHMS that are echoed: two algorithms are registered, four bytes each.
const MAX_ALGORITHMS: usize = 64;

/// A challenge that cannot be answered: no REALM or NONCE, no algorithm that we know, or algorithms
/// stripped on the way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadChallenge;

/// What a server's challenge and our credentials make: enough to sign and to verify.
pub(super) struct Auth {
    realm: String,
    nonce: String,
    offer: Option<Offer>,
    algorithm: IntegrityAlgorithm,
    key: IntegrityKey,
}

/// PASSWORD-ALGORITHMS as the server sent it, which is echoed, and our choice from it.
struct Offer {
    algorithms: Vec<u8>,
    chosen: PasswordAlgorithmValue,
}

impl Auth {
    /// Answers a 401: the key under the first password algorithm of the server's list that we know,
    /// or MD5 without a list (RFC 8489 §9.2.5).
    pub(super) fn from_challenge(
        message: &Message<'_>,
        credentials: &Credentials,
    ) -> Result<Self, BadChallenge> {
        let realm = realm(message).ok_or(BadChallenge)?;
        let nonce = nonce(message)?;
        let offer = match message.raw_attribute(PasswordAlgorithms::TYPE) {
            Some(raw) => Some(choose(&raw.value)?),
            None => None,
        };
        let algorithm = offer.as_ref().map_or(IntegrityAlgorithm::Sha1, |offer| {
            offer.chosen.as_integrity()
        });
        let key = LongTermKeyCredentials::new(
            credentials.username().to_owned(),
            credentials.password().to_owned(),
            realm.clone(),
        )
        .make_key(algorithm);
        Ok(Self {
            realm,
            nonce,
            offer,
            algorithm,
            key,
        })
    }

    /// Takes the nonce of a 438, or of a 401 in the same realm.
    pub(super) fn renew(&mut self, message: &Message<'_>) -> Result<(), BadChallenge> {
        self.nonce = nonce(message)?;
        Ok(())
    }

    /// Whether a challenge names another realm than the one that was signed for.
    pub(super) fn other_realm(&self, message: &Message<'_>) -> bool {
        realm(message).is_some_and(|realm| realm != self.realm)
    }

    /// Completes a request with USERNAME, REALM, NONCE, the password algorithms and the integrity.
    pub(super) fn sign(&self, mut writer: MessageWriteVec, username: &str) -> Vec<u8> {
        if let Ok(username) = Username::new(username) {
            add(&mut writer, &username);
        }
        if let Ok(realm) = Realm::new(&self.realm) {
            add(&mut writer, &realm);
        }
        if let Ok(nonce) = Nonce::new(&self.nonce) {
            add(&mut writer, &nonce);
        }
        if let Some(offer) = &self.offer {
            let echo = RawAttribute::new(PasswordAlgorithms::TYPE, &offer.algorithms);
            add(&mut writer, &echo);
            add(&mut writer, &PasswordAlgorithm::new(offer.chosen));
        }
        let signed = writer.add_message_integrity_with_key(&self.key, self.algorithm);
        debug_assert!(signed.is_ok(), "{signed:?}");
        writer.finish()
    }

    /// Whether the response's integrity is there and ours (compared in constant time).
    pub(super) fn verify(&self, message: &Message<'_>) -> bool {
        message.validate_integrity_with_key(&self.key).is_ok()
    }
}

fn realm(message: &Message<'_>) -> Option<String> {
    Some(message.attribute::<Realm>().ok()?.realm().to_owned())
}

/// The NONCE, unless it promises PASSWORD-ALGORITHMS that are not there: somebody stripped them to
/// get the weaker MD5 key (RFC 8489 §9.2.5: the client MUST NOT retry).
fn nonce(message: &Message<'_>) -> Result<String, BadChallenge> {
    let nonce = message.attribute::<Nonce>().map_err(|_| BadChallenge)?;
    let nonce = nonce.nonce();
    if promises_algorithms(nonce) && !message.has_attribute(PasswordAlgorithms::TYPE) {
        return Err(BadChallenge);
    }
    Ok(nonce.to_owned())
}

fn promises_algorithms(nonce: &str) -> bool {
    let Some(features) = nonce.strip_prefix(NONCE_COOKIE) else {
        return false;
    };
    let Some(first) = features.bytes().next() else {
        return false;
    };
    let bits = match first {
        b'A'..=b'Z' => first - b'A',
        b'a'..=b'z' => first - b'a' + 26,
        b'0'..=b'9' => first - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    };
    bits & PASSWORD_ALGORITHMS_BIT != 0
}

/// The first algorithm that we know of a PASSWORD-ALGORITHMS value: a list of number (16 bits),
/// length of parameters (16 bits), parameters padded to four (RFC 8489 §14.11).
fn choose(value: &[u8]) -> Result<Offer, BadChallenge> {
    if value.len() > MAX_ALGORITHMS {
        return Err(BadChallenge);
    }
    let mut rest = value;
    while let Some((&[a, b, c, d], tail)) = rest.split_first_chunk::<4>() {
        let parameters = usize::from(u16::from_be_bytes([c, d]));
        let chosen = match (u16::from_be_bytes([a, b]), parameters) {
            (1, 0) => Some(PasswordAlgorithmValue::MD5),
            (2, 0) => Some(PasswordAlgorithmValue::SHA256),
            _ => None,
        };
        if let Some(chosen) = chosen {
            return Ok(Offer {
                algorithms: value.to_vec(),
                chosen,
            });
        }
        rest = tail
            .get(parameters.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Err(BadChallenge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_algorithm_is_chosen_and_the_list_is_echoed() {
        let list = [0, 9, 0, 2, 1, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0];
        let offer = choose(&list).expect("SHA-256 is known");
        assert_eq!(offer.chosen, PasswordAlgorithmValue::SHA256);
        assert_eq!(offer.algorithms, list);
        assert!(choose(&[0, 9, 0, 0]).is_err());
        assert!(choose(&[0, 9, 0xff, 0xff]).is_err());
        assert!(choose(&[]).is_err());
    }

    #[test]
    fn security_features_are_read_from_the_nonce() {
        assert!(promises_algorithms("obMatJos2gAAAtail"));
        assert!(promises_algorithms("obMatJos2wAAA"));
        assert!(!promises_algorithms("obMatJos2AAAAtail"));
        assert!(!promises_algorithms("obMatJos2QAAA"));
        assert!(!promises_algorithms("obMatJos2"));
        assert!(!promises_algorithms("gAAA"));
    }
}
