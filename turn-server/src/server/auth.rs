//! Long-term credentials (RFC 8489 §9.2.4): who asks, and what a challenge says. Nothing is kept.

use std::net::IpAddr;

use super::config::Config;
use super::error::ErrorCode;
use super::nonce;
use super::refusal::Refusal;
use super::types::Now;
use crate::codec::{Hash, Key, Message, Writer, attribute};

/// PASSWORD-ALGORITHMS as it is always sent, best first: SHA-256, MD5, no parameters (RFC 8489 §14.11, §18.5).
const ALGORITHMS: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];
/// Bytes of USERNAME (RFC 8489 §14.3: fewer than 509).
const MAX_USERNAME: usize = 508;
/// Bytes of a request that is looked at further: RFC 8489 §6.1 has requests fit a packet; an HMAC over 64 KiB would be
/// paid for by nobody.
pub(super) const MAX_REQUEST: usize = 1500;

/// How a password becomes a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PasswordAlgorithm {
    /// As before RFC 8489.
    Md5,
    /// Better.
    Sha256,
}

/// A request's author.
#[derive(Debug)]
pub(super) struct Author {
    pub(super) username: Box<str>,
    pub(super) algorithm: PasswordAlgorithm,
    pub(super) key: Key,
    /// Which integrity the request had; responses have the same.
    pub(super) hash: Hash,
}

/// The user that an allocation has already, whose key outlives credentials: time-limited ones end while it lives, and
/// secrets are rotated (RFC 8656 §5 wants the same username throughout).
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) username: &'a str,
    pub(super) algorithm: PasswordAlgorithm,
    pub(super) key: &'a Key,
}

/// Finds out who sent a request. The nonce is checked before any key is made: whoever was not challenged costs one MAC.
///
/// # Errors
/// A [`Refusal`] of 400, 401 or 438, of which the latter two are challenges.
pub(super) fn authenticate(
    config: &Config,
    message: &Message<'_>,
    source: IpAddr,
    known: Option<Known<'_>>,
    now: Now,
) -> Result<Author, Refusal> {
    let hash = message.integrity().ok_or(ErrorCode::Unauthorized)?;
    let username = message.get(attribute::USERNAME);
    let userhash = message.get(attribute::USERHASH);
    let (Some(realm), Some(nonce)) = (message.get(attribute::REALM), message.get(attribute::NONCE))
    else {
        return Err(ErrorCode::BadRequest.into());
    };
    if username.is_none() && userhash.is_none() {
        return Err(ErrorCode::BadRequest.into());
    }
    let lifetime = config.nonce_lifetime;
    if !nonce::is_fresh(&config.nonce_keys, nonce, source, now.unix, lifetime) {
        return Err(ErrorCode::StaleNonce.into());
    }
    let algorithm = password_algorithm(message)?;
    let credentials = &config.credentials;
    let username = match (username, userhash) {
        (Some(name), _) => printable(name),
        (None, Some(hash)) => credentials.name_of(hash),
        (None, None) => None,
    };
    let username = username.ok_or(Refusal::UnknownUser)?;
    if realm != config.realm.as_bytes() {
        return Err(Refusal::WrongRealm);
    }
    let kept = known
        .filter(|known| known.username == username && known.algorithm == algorithm)
        .filter(|_| !credentials.is_static(username))
        .map(|known| known.key.clone());
    let key = kept
        .into_iter()
        .chain(credentials.keys(username, &config.realm, algorithm, now.unix))
        .find(|key| message.is_authentic(key))
        .ok_or_else(|| credentials.why_not(username, now.unix))?;
    Ok(Author {
        username: username.into(),
        algorithm,
        key,
        hash,
    })
}

/// What a 401 or 438 carries besides its code.
pub(super) fn add_challenge(writer: &mut Writer, config: &Config, source: IpAddr, now: Now) {
    writer.add(attribute::REALM, config.realm.as_bytes());
    if let Some(key) = config.nonce_keys.first() {
        let nonce = nonce::mint(key, source, now.unix, config.credentials.anonymity());
        writer.add(attribute::NONCE, &nonce);
    }
    writer.add(attribute::PASSWORD_ALGORITHMS, &ALGORITHMS);
}

/// Bid-down protection (RFC 8489 §9.2.4): the list must be the one that was sent, and the choice one of it.
fn password_algorithm(message: &Message<'_>) -> Result<PasswordAlgorithm, ErrorCode> {
    let list = message.get(attribute::PASSWORD_ALGORITHMS);
    let choice = message.get(attribute::PASSWORD_ALGORITHM);
    match (list, choice) {
        (None, None) => Ok(PasswordAlgorithm::Md5),
        (Some(list), Some(choice)) if list == ALGORITHMS => match choice {
            [0, 1, 0, 0] => Ok(PasswordAlgorithm::Md5),
            [0, 2, 0, 0] => Ok(PasswordAlgorithm::Sha256),
            _ => Err(ErrorCode::BadRequest),
        },
        (Some(_), _) | (None, Some(_)) => Err(ErrorCode::BadRequest),
    }
}

/// A name without what could forge lines in somebody's log.
pub(super) fn printable(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    let good = !name.is_empty() && name.len() <= MAX_USERNAME && !name.contains(char::is_control);
    good.then_some(name)
}
