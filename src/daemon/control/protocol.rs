//! What is said over the control socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::report::{PingEvent, Status, Why};

/// The longest request, newline included: a peer's name or key and the words around it.
pub(super) const MAX_REQUEST: usize = 4096;
/// The longest reply: a status of 1,000 peers has half a megabyte, a `why` of 64 pairs 30 kB.
pub(super) const MAX_REPLY: usize = 16 << 20;
/// The most pings of one request: an hour of one a second.
pub const MAX_PINGS: u32 = 3600;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The whole node. Answer: [`Reply::Status`].
    Status,
    /// One peer with all its pairs. Answer: [`Reply::Why`].
    Why {
        /// Its name, key, start of its key, or overlay address.
        peer: String,
    },
    /// Pings through the overlay, one a second, until the path is direct. Answers: [`Reply::Ping`], then [`Reply::Done`].
    Ping {
        /// As in [`Request::Why`].
        peer: String,
        /// At most so many, 1 to [`MAX_PINGS`].
        count: u32,
    },
    /// The STUN and TURN servers in use, with credentials. Answer: [`Reply::Servers`].
    Servers,
    /// Whether it lives, or is ready. Answer: [`Reply::Done`], or why not.
    Probe {
        /// Which of both.
        probe: Probe,
    },
    /// Stop, and take the interface away. Answer: [`Reply::Done`], and the connection ends when the daemon does.
    Down,
}

/// What an orchestrator wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// Whether the daemon's own threads answer: nothing else is a matter of its life.
    Live,
    /// Whether signaling has been there as well, once since the daemon began: what breaks later breaks no path.
    Ready,
}

impl Request {
    /// Reads one line, as a client sends it.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Why`].
    Why(Box<Why>),
    /// To [`Request::Ping`], many.
    Ping(PingEvent),
    /// To [`Request::Servers`].
    Servers(Servers),
    /// It is done.
    Done,
    /// It could not be done.
    Error(ControlError),
}

/// The STUN and TURN servers in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    /// URLs as RFC 7064 has them.
    pub stun: Vec<String>,
    /// TURN servers.
    pub turn: Vec<TurnLogin>,
    /// Authorities that the daemon trusts beside the system's, in PEM.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// A TURN server and what opens it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnLogin {
    /// URL as RFC 7065 has it.
    pub url: String,
    /// Long-term username.
    pub username: String,
    /// Long-term password.
    pub password: String,
}

impl std::fmt::Debug for TurnLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnLogin")
            .field("url", &self.url)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// For machines.
    pub kind: ErrorKind,
    /// For people: what happened, and on a second line what to do.
    pub message: String,
}

/// What kind of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request is none.
    BadRequest,
    /// There is no such peer.
    NoSuchPeer,
    /// Too many clients.
    Busy,
    /// It was tried, and failed.
    Failed,
}

impl ControlError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}
