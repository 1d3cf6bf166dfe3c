//! What the operator decides.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::auth::PasswordAlgorithm;
use super::limiter::Rate;
use super::nonce::NonceKey;
use super::policy::PeerPolicy;
use super::ports::Ports;
use super::quota::Quotas;
use super::refusal::Refusal;
use crate::codec::Key;

/// How long a nonce is good for: RFC 8656 §5 asks for a change at least every hour.
pub const NONCE_LIFETIME: Duration = Duration::from_secs(3600);
/// Permissions of an allocation, and channels: a mesh of some hundred nodes through one relay each.
pub const MAX_PEERS: usize = 256;
/// Quotas unless told otherwise: room for a fleet behind one address, and for a user with all its devices.
pub const DEFAULT_QUOTAS: Quotas = Quotas {
    user: 256,
    source: 1024,
    total: 0,
    user_bytes_per_second: 0,
};
/// Challenges a source: an office behind one NAT comes back after an outage at once; a reflector would need far more.
pub const DEFAULT_CHALLENGES: Rate = Rate {
    per_second: 100,
    burst: 1000,
};

/// One configuration, whole; a reload brings the next.
#[derive(Debug)]
pub struct Config {
    /// REALM.
    pub realm: String,
    /// Who may allocate.
    pub credentials: Credentials,
    /// The first makes nonces, all are taken.
    pub nonce_keys: Vec<NonceKey>,
    /// How long a nonce is good for.
    pub nonce_lifetime: Duration,
    /// IPv4 relayed addresses.
    pub relay_v4: Option<RelayConfig>,
    /// IPv6 relayed addresses.
    pub relay_v6: Option<RelayConfig>,
    /// Which peers.
    pub policy: PeerPolicy,
    /// How much.
    pub quotas: Quotas,
    /// How many 401 and 438 a source gets.
    pub challenges: Rate,
    /// TCP allocations (RFC 6062) are offered.
    pub tcp_relay: bool,
    /// Permissions of an allocation.
    pub max_permissions: usize,
    /// Channels of an allocation.
    pub max_channels: usize,
    /// What RFC 8656 changed is also taken as before it: channel numbers to 0x7FFE, ADDITIONAL-ADDRESS-FAMILY as 0x8032.
    pub old_clients: bool,
}

/// Where relayed addresses come from.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// What sockets are bound to.
    pub local: IpAddr,
    /// What clients are told: differs behind a 1:1 NAT.
    pub external: IpAddr,
    /// Its ports.
    pub ports: Arc<Ports>,
}

/// Static users, and secrets of time-limited ones.
#[derive(Debug, Default)]
pub struct Credentials {
    users: BTreeMap<Box<str>, (Key, Key)>,
    /// USERHASH to user (RFC 8489 §14.4).
    hashes: BTreeMap<[u8; 32], Box<str>>,
    secrets: Vec<Zeroizing<String>>,
}

impl Credentials {
    /// Users with passwords, and the secrets under which others may be minted
    /// (draft-uberti-behave-turn-rest); all of them count.
    pub fn new<'a>(
        realm: &str,
        users: impl IntoIterator<Item = (&'a str, &'a str)>,
        secrets: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut credentials = Self {
            secrets: secrets
                .into_iter()
                .map(|secret| Zeroizing::new(secret.to_owned()))
                .collect(),
            ..Self::default()
        };
        for (name, password) in users {
            let keys = (
                Key::md5(name, realm, password),
                Key::sha256(name, realm, password),
            );
            let hash = Sha256::digest(format!("{name}:{realm}"));
            credentials.hashes.insert(hash.into(), name.into());
            credentials.users.insert(name.into(), keys);
        }
        credentials
    }

    /// Whether nobody can allocate.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.secrets.is_empty()
    }

    /// Whether USERHASH names everyone: minted users are known by no list.
    pub(super) fn anonymity(&self) -> bool {
        self.secrets.is_empty()
    }

    pub(super) fn name_of(&self, hash: &[u8]) -> Option<&str> {
        let hash: [u8; 32] = hash.try_into().ok()?;
        self.hashes.get(&hash).map(|name| &**name)
    }

    pub(super) fn is_static(&self, name: &str) -> bool {
        self.users.contains_key(name)
    }

    /// Why none of a name's keys fits, as far as the name tells.
    pub(super) fn why_not(&self, name: &str, unix: u64) -> Refusal {
        if self.is_static(name) {
            return Refusal::WrongPassword;
        }
        match expiry(name) {
            Some(_) if self.secrets.is_empty() => Refusal::UnknownUser,
            Some(expiry) if expiry <= unix => Refusal::Expired,
            Some(_) => Refusal::WrongSecret,
            None => Refusal::UnknownUser,
        }
    }

    /// The keys that a name may have: one of a static user, one a secret of a minted one whose time has not come.
    pub(super) fn keys<'a>(
        &'a self,
        name: &'a str,
        realm: &'a str,
        algorithm: PasswordAlgorithm,
        unix: u64,
    ) -> impl Iterator<Item = Key> + 'a {
        let known = self.users.get(name).map(|(md5, sha256)| match algorithm {
            PasswordAlgorithm::Md5 => md5.clone(),
            PasswordAlgorithm::Sha256 => sha256.clone(),
        });
        let minted = known.is_none() && expiry(name).is_some_and(|expiry| expiry > unix);
        let secrets = if minted { &self.secrets[..] } else { &[] };
        known.into_iter().chain(secrets.iter().map(move |secret| {
            let password = minted_password(secret, name);
            match algorithm {
                PasswordAlgorithm::Md5 => Key::md5(name, realm, &password),
                PasswordAlgorithm::Sha256 => Key::sha256(name, realm, &password),
            }
        }))
    }
}

/// A name and its password for `user` under a secret, good until the UNIX time `expiry` (draft-uberti-behave-turn-rest).
pub fn mint(secret: &str, user: &str, expiry: u64) -> (String, Zeroizing<String>) {
    let name = format!("{expiry}:{user}");
    let password = minted_password(secret, &name);
    (name, password)
}

/// Whom quotas know a user as: what stands behind the time of a minted name, so that new credentials are no new user.
pub(super) fn account_of<'a>(credentials: &Credentials, name: &'a str) -> &'a str {
    if credentials.is_static(name) {
        return name;
    }
    match name.split_once(':') {
        Some((_, user)) if !user.is_empty() => user,
        Some(_) | None => name,
    }
}

/// UNIX time at which a minted name ends: `time:user`, or the time alone.
fn expiry(name: &str) -> Option<u64> {
    let time = name.split_once(':').map_or(name, |(time, _)| time);
    let digits = !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| time.parse().ok())?
}

fn minted_password(secret: &str, name: &str) -> Zeroizing<String> {
    use base64::Engine as _;
    let mut password = Zeroizing::new(String::new());
    // HMAC takes keys of every length.
    if let Ok(mut mac) = <Hmac<Sha1> as hmac::Mac>::new_from_slice(secret.as_bytes()) {
        mac.update(name.as_bytes());
        let digest = mac.finalize().into_bytes();
        base64::engine::general_purpose::STANDARD.encode_string(digest, &mut password);
    }
    password
}
