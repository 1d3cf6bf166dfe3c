//! TURN credentials that expire, after the "TURN REST API" draft (draft-uberti-behave-turn-rest)
//! that coturn calls `use-auth-secret`.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use sha1::Sha1;

use crate::protocol::{PublicKey, TurnCredentials};

/// Credentials for the node of `key`, good for `lifetime` from `unix_now` (seconds): the username
/// is the UNIX time of expiry, a colon and the key's hash, so that quotas and logs tell nodes
/// apart; the password is base64 of HMAC-SHA1 over it under the shared `secret`.
pub(super) fn mint(
    secret: &str,
    key: &PublicKey,
    unix_now: u64,
    lifetime: Duration,
) -> Option<TurnCredentials> {
    let expiry = unix_now.saturating_add(lifetime.as_secs());
    let username = format!("{expiry}:{}", URL_SAFE_NO_PAD.encode(key.key_hash()));
    let mut mac = <Hmac<Sha1> as hmac::Mac>::new_from_slice(secret.as_bytes()).ok()?;
    mac.update(username.as_bytes());
    let password = STANDARD.encode(mac.finalize().into_bytes());
    let lifetime_s = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    Some(TurnCredentials {
        username,
        password,
        lifetime_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minted_pair_is_pinned() {
        let key = PublicKey([7; 32]);
        let minted = mint("north", &key, 1_800_000_000, Duration::from_secs(3600)).unwrap();
        assert_eq!(minted.username, "1800003600:bI3l0oKZ");
        assert_eq!(minted.password, "ZDDYDvQRsPprG/GIVwXotU/Tpcs=");
        assert_eq!(minted.lifetime_s, 3600);
    }
}
