//! What `wice ping` hears of.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Path, PathKind, SCHEMA, rtt};

/// One thing that happened while a peer was pinged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum PingEvent {
    /// A reply.
    Pong {
        /// [`SCHEMA`].
        schema: u32,
        /// The peer's name.
        peer: String,
        /// Counts from 1.
        sequence: u32,
        /// Round trip.
        rtt_ms: f64,
        /// What carried it.
        path: Path,
    },
    /// No reply in time.
    Lost {
        /// [`SCHEMA`].
        schema: u32,
        /// The peer's name.
        peer: String,
        /// Counts from 1.
        sequence: u32,
        /// Why the path is what it is, as a stable code.
        reason: String,
        /// The reason in words.
        summary: String,
    },
    /// The path has become direct: pinging is over.
    Direct {
        /// [`SCHEMA`].
        schema: u32,
        /// Seconds since pinging began; 0 if it was direct already.
        after_s: f64,
    },
    /// The count was reached and the path is not direct.
    NotDirect {
        /// [`SCHEMA`].
        schema: u32,
        /// Stable code.
        reason: String,
        /// The reason in words.
        summary: String,
        /// What to do, in a few words.
        hint: String,
    },
}

impl PingEvent {
    /// A reply to ping number `sequence`.
    pub fn pong(peer: &str, sequence: u32, round_trip: Duration, path: Path) -> Self {
        Self::Pong {
            schema: SCHEMA,
            peer: peer.to_owned(),
            sequence,
            rtt_ms: super::build::milliseconds(round_trip),
            path,
        }
    }

    /// One line; `None` where there is nothing to say: a path that was direct from the start.
    pub fn line(&self) -> Option<String> {
        Some(match self {
            Self::Pong {
                peer, rtt_ms, path, ..
            } => format!("pong from {peer} via {} in {}", via(path), rtt(*rtt_ms)),
            // What is said of a path that stands would contradict the silence.
            Self::Lost { peer, reason, .. } if reason.starts_with("direct-") => {
                format!("no answer from {peer}: its direct path is silent now")
            }
            Self::Lost { peer, summary, .. } => format!("no answer from {peer}: {summary}"),
            Self::Direct { after_s, .. } if *after_s <= 0.0 => return None,
            Self::Direct { after_s, .. } => format!("direct after {after_s:.2} s"),
            Self::NotDirect {
                reason,
                summary,
                hint,
                ..
            } => {
                let hint = if hint.is_empty() {
                    String::new()
                } else {
                    format!("\n  {hint}")
                };
                format!("not direct: {summary} ({reason}){hint}")
            }
        })
    }
}

fn via(path: &Path) -> String {
    let remote = |with_kind: bool| {
        path.remote.as_ref().map_or_else(String::new, |end| {
            let address: SocketAddr = end.address;
            if with_kind {
                format!("{address} ({})", end.kind)
            } else {
                address.to_string()
            }
        })
    };
    match path.kind {
        PathKind::Relayed => {
            let transport = path.relay_transport.as_deref().unwrap_or("udp");
            let relay = path.relay.clone().unwrap_or_else(|| remote(false));
            format!("relay {transport} {relay}")
        }
        PathKind::Direct => remote(true),
        PathKind::Native => format!("native {}", remote(false)),
        PathKind::None => "no path".to_owned(),
    }
}
