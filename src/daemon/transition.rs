//! One log line a transition: `event=` and `reason=` are stable words, everything else is for people.

use std::time::Duration;

use tokio::sync::oneshot;

use super::answers::{Before, INSPECT_TIMEOUT, Shared, said};
use crate::core::node::PeerSnapshot;
use crate::core::reason::{Code, Facts, reason};
use crate::io::packet_loop::{Command, Inbox};
use crate::report::path_of;

/// A peer's path has changed: what it is now, and why.
pub(super) async fn log_path(inbox: &Inbox, port: u16, peer: PeerSnapshot) {
    let code = match code_of(inbox, port, &peer).await {
        Some(code) => code.as_str(),
        None => "unknown",
    };
    let name = crate::report::name_of(&peer);
    let path = path_of(&peer, None, false);
    let kind = path.kind.as_str();
    match (&path.local, &path.remote, &peer.path) {
        (Some(local), Some(remote), Some(view)) => tracing::info!(
            event = "path",
            peer = name,
            kind,
            reason = code,
            local = local.kind,
            remote = %remote.address,
            remote_kind = remote.kind,
            rtt_ms = view.pair.rtt.map(crate::report::milliseconds),
        ),
        (_, _, _) => tracing::info!(event = "path", peer = name, kind, reason = code),
    }
}

/// Signaling cannot be reached, or is no longer connected. Tries that fail as the last one did are no transitions.
pub(super) fn log_lost(shared: &Shared, reason: String, retry_in: Duration) {
    let (error, _) = said(&reason);
    let refusal = shared.refusal();
    let before = shared.disconnected(reason);
    let code = match (refusal, before) {
        (Some(code), _) => code.as_str(),
        (None, Before::Connected) => "connection-lost",
        (None, Before::Same | Before::Otherwise) => "unreachable",
    };
    let retry_s = retry_in.as_millis() as f64 / 1e3;
    let for_good = refusal.is_some_and(|code| !code.is_temporary());
    match before {
        Before::Same => tracing::debug!(event = "signaling-lost", reason = code, error, retry_s),
        Before::Connected | Before::Otherwise if for_good => {
            tracing::error!(event = "signaling-refused", reason = code, error, retry_s);
        }
        Before::Connected | Before::Otherwise => {
            tracing::warn!(event = "signaling-lost", reason = code, error, retry_s);
        }
    }
}

/// Why the path is what it is, of what the node knows now.
async fn code_of(inbox: &Inbox, port: u16, peer: &PeerSnapshot) -> Option<Code> {
    let (sender, receiver) = oneshot::channel();
    let peer = peer.clone();
    let look = Command::Inspect(Box::new(move |view| {
        let facts = Facts {
            node: &view.node.own_snapshot(view.now),
            peer: &peer,
            port,
            relay_only: false,
            native: None,
            checking_for: peer.looking,
            last_seen: peer.last_seen,
            handshake_age: None,
            port_mapping: None,
            attached: None,
            lacks_us: false,
        };
        // Fails only when the daemon has given up.
        let _ = sender.send(reason(&facts).code);
    }));
    inbox.send(look).ok()?;
    tokio::time::timeout(INSPECT_TIMEOUT, receiver)
        .await
        .ok()?
        .ok()
}
