//! Whether a node is connected to the signaling service.

use super::RecordError;
use super::wire::Reader;

/// The most nodes in one [`super::ServerFrame::Presence`]: 4.6 KiB.
pub const MAX_PRESENCES: usize = 127;

/// Whether a node is connected to the signaling service. It is the service's word, not the node's:
/// reasons and pacing may follow it, paths that work may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Connected,
    /// Its connection ended without a word, and it did not come back soon.
    Lost {
        /// Seconds since it was last heard.
        last_seen_s: u32,
    },
    /// It said that it goes.
    Left {
        /// Seconds since it did.
        last_seen_s: u32,
    },
}

impl Presence {
    /// A state (1 connected, 2 lost, 3 left) and, unless connected, 4 bytes of seconds.
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let (state, last_seen_s) = match self {
            Self::Connected => return out.push(1),
            Self::Lost { last_seen_s } => (2, last_seen_s),
            Self::Left { last_seen_s } => (3, last_seen_s),
        };
        out.push(state);
        out.extend_from_slice(&last_seen_s.to_be_bytes());
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(match reader.u8()? {
            1 => Self::Connected,
            2 => Self::Lost {
                last_seen_s: reader.u32()?,
            },
            3 => Self::Left {
                last_seen_s: reader.u32()?,
            },
            _ => return Err(RecordError::BadValue("presence")),
        })
    }
}
