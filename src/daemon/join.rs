//! Joining a network by a token, and going on without one.

use wice_signaling::protocol::{
    JoinReceipt, NetworkId, NetworkKey, PrivateKey, ServerPin, SignalUrl, Token,
};

use super::state::{NetworkState, State, StateError};

/// The node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Neither a token nor a network from before.
    #[error(
        "this node has not joined a network yet\n  give it a token once: wice up TOKEN, wice attach INTERFACE TOKEN or wice bridge TOKEN (made by `wice invite` on the machine with the network's admin key)"
    )]
    NoToken,
    /// The token is for another network than the node is in.
    #[error(
        "this node is in the network {present}, the token is for {other}\n  a node is in one network at a time: to change over, stop wice (wice down), leave it (wice leave; an attached interface: wice leave --state-dir /var/lib/wice/attached/INTERFACE), then join with the token"
    )]
    OtherNetwork {
        /// The one it is in.
        present: String,
        /// The token's.
        other: String,
    },
    /// The interface has another key than the one that joined.
    #[error(
        "{interface} has a new key since this node joined, and the token that it joined with is gone\n  give a token again: wice attach {interface} TOKEN"
    )]
    OtherKey {
        /// The interface.
        interface: String,
    },
    /// What was kept does not parse.
    #[error(
        "the state folder's network.json is damaged ({0})\n  remove it and join again with a token"
    )]
    Damaged(&'static str),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What makes this node a member.
pub(super) struct Membership {
    pub(super) name: String,
    pub(super) url: SignalUrl,
    pub(super) pin: Option<ServerPin>,
    pub(super) network: NetworkId,
    pub(super) network_key: NetworkKey,
    /// The encoded proof.
    pub(super) proof: Vec<u8>,
    pub(super) receipt: Option<JoinReceipt>,
}

/// By a token, or as kept from before. A token for the same network renews what is kept.
pub(super) fn membership(
    state: &State,
    token: Option<&Token>,
    key: &PrivateKey,
) -> Result<Membership, JoinError> {
    let kept = state.network()?;
    let Some(token) = token else {
        return from_state(&kept.ok_or(JoinError::NoToken)?);
    };
    let joined = join(kept.as_ref(), token, key)?;
    state.set_network(&joined)?;
    from_state(&joined)
}

/// As [`membership`], for a key that is another program's and may change: a new one joins with the
/// token that was kept. A token that is given again changes nothing for a key that is in.
pub(super) fn membership_of_interface(
    state: &State,
    token: Option<&Token>,
    key: &PrivateKey,
    interface: &str,
) -> Result<Membership, JoinError> {
    let name = key.public_key().to_string();
    let kept = state.network()?;
    if let Some(kept) = &kept {
        let in_already = kept.key.as_ref() == Some(&name);
        let same = token.is_none_or(|token| token.network.0 == kept.network);
        let confirmed = kept.receipt.is_some() || token.is_none();
        if in_already && same && confirmed {
            return from_state(kept);
        }
    }
    let kept_token = kept.as_ref().and_then(|kept| kept.token.as_deref());
    let token = match (token, kept_token) {
        (Some(token), _) => token.clone(),
        (None, Some(text)) => text.parse().map_err(|_| JoinError::Damaged("token"))?,
        (None, None) if kept.is_some() => {
            let interface = interface.to_owned();
            return Err(JoinError::OtherKey { interface });
        }
        (None, None) => return Err(JoinError::NoToken),
    };
    let text = token.encode().map_err(|_| JoinError::Damaged("token"))?;
    let joined = NetworkState {
        key: Some(name),
        token: Some(text.to_string()),
        ..join(kept.as_ref(), &token, key)?
    };
    state.set_network(&joined)?;
    from_state(&joined)
}

/// What a token makes of a key, unless the node is in another network.
fn join(
    kept: Option<&NetworkState>,
    token: &Token,
    key: &PrivateKey,
) -> Result<NetworkState, JoinError> {
    if let Some(kept) = kept.filter(|kept| kept.network != token.network.0) {
        return Err(JoinError::OtherNetwork {
            present: kept.name.clone(),
            other: token.network_name.clone(),
        });
    }
    let membership = token
        .invite
        .sign_member(&token.network, &key.public_key())
        .encode();
    // Who reads the token from a file gives it at every start, also when its invite has long expired.
    let receipt = kept
        .filter(|kept| kept.membership == membership)
        .and_then(|kept| kept.receipt.clone());
    Ok(NetworkState {
        name: token.network_name.clone(),
        url: token.url.to_string(),
        pin: token.pin.map(|pin| hex::encode(pin.0)),
        network: token.network.0,
        network_key: *token.network_key.expose_secret(),
        membership,
        receipt,
        key: None,
        token: None,
    })
}

/// Keeps what the service gave at the first join.
pub(super) fn keep_receipt(state: &State, receipt: JoinReceipt) -> Result<(), StateError> {
    let Some(mut network) = state.network()? else {
        return Ok(());
    };
    network.receipt = Some(hex::encode(receipt.0));
    state.set_network(&network)
}

fn from_state(kept: &NetworkState) -> Result<Membership, JoinError> {
    let bytes = |text: &str, what| {
        hex::decode(text)
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .ok_or(JoinError::Damaged(what))
    };
    Ok(Membership {
        name: kept.name.clone(),
        url: kept.url.parse().map_err(|_| JoinError::Damaged("url"))?,
        pin: kept
            .pin
            .as_deref()
            .map(|pin| bytes(pin, "pin"))
            .transpose()?
            .map(ServerPin),
        network: NetworkId(kept.network),
        network_key: NetworkKey::from_bytes(kept.network_key),
        proof: kept.membership.clone(),
        receipt: kept
            .receipt
            .as_deref()
            .map(|receipt| bytes(receipt, "receipt"))
            .transpose()?
            .map(JoinReceipt),
    })
}

#[cfg(test)]
mod tests {
    use wice_signaling::protocol::{AdminKey, Invite, Membership as Proof};

    use super::*;

    fn token(admin: u8, invite: u8) -> Token {
        let admin = AdminKey::from_seed(&[admin; 32]);
        Token {
            url: "wss://sig.example:8443".parse().unwrap(),
            pin: None,
            network: admin.network_id(),
            network_key: NetworkKey::from_bytes([2; 32]),
            network_name: "lab".to_owned(),
            invite: Invite::new(&admin, &[invite; 32], 1_800_000_000, "", &[]).unwrap(),
        }
    }

    #[test]
    fn a_token_that_is_given_at_every_start_keeps_the_receipt() {
        let folder = std::env::temp_dir().join(format!("wice-join-token-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let state = State::open(&folder).unwrap();
        let key = PrivateKey::from_bytes([7; 32]);
        let receipt = |seed| {
            membership(&state, Some(&token(1, seed)), &key)
                .unwrap()
                .receipt
        };
        assert_eq!(receipt(3), None);
        keep_receipt(&state, JoinReceipt([9; 32])).unwrap();
        assert_eq!(
            receipt(3),
            Some(JoinReceipt([9; 32])),
            "by then its invite may have expired"
        );
        let without = membership(&state, None, &key).unwrap();
        assert_eq!(without.receipt, Some(JoinReceipt([9; 32])));
        assert_eq!(receipt(4), None, "another invite is another membership");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_key_that_changes_joins_again_with_the_token_that_was_kept() {
        let folder = std::env::temp_dir().join(format!("wice-join-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let state = State::open(&folder).unwrap();
        let keys = [1u8, 2].map(|byte| PrivateKey::from_bytes([byte; 32]));
        let by = |token: Option<&Token>, key: &PrivateKey| {
            membership_of_interface(&state, token, key, "wg0")
        };
        let proves = |joined: &Membership, key: &PrivateKey| {
            Proof::decode_verified(&joined.proof, &joined.network, &key.public_key()).is_ok()
        };
        assert!(matches!(by(None, &keys[0]), Err(JoinError::NoToken)));
        assert!(proves(&by(Some(&token(1, 5)), &keys[0]).unwrap(), &keys[0]));
        keep_receipt(&state, JoinReceipt([7; 32])).unwrap();
        // Given again or not, who is in stays in, with what lets it in after the invite has expired.
        for given in [None, Some(&token(1, 5))] {
            assert!(by(given, &keys[0]).unwrap().receipt.is_some());
        }
        let renewed = by(None, &keys[1]).unwrap();
        assert!(proves(&renewed, &keys[1]) && renewed.receipt.is_none());
        let other = by(Some(&token(2, 5)), &keys[1]);
        assert!(matches!(other, Err(JoinError::OtherNetwork { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
