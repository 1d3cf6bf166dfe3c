//! Why the service does not take a record that one node carries for another.

use super::RecordError;
use super::wire::Reader;

/// Why a [`super::ClientFrame::Carry`] was not taken. The connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CarryRefusal {
    /// The key's owner has proved itself in this network: its own word counts alone.
    Proven,
    /// Another member that is connected carries for this key.
    Taken,
    /// This member carries as many keys or bytes as one may.
    TooMuch,
    /// The key is revoked.
    Revoked,
    /// The service has no room.
    Full,
}

impl CarryRefusal {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Proven,
        Self::Taken,
        Self::TooMuch,
        Self::Revoked,
        Self::Full,
    ];

    /// A stable word for logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Taken => "taken",
            Self::TooMuch => "too-much",
            Self::Revoked => "revoked",
            Self::Full => "full",
        }
    }

    /// What happened and what to do, for people.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::Proven => {
                "the node of this key is at the signaling service by itself: nothing needs to be carried for it"
            }
            Self::Taken => {
                "another member carries for this key: run one bridge a cluster, and see who else has a token (wice network nodes)"
            }
            Self::TooMuch => {
                "one bridge carries no more nodes than the service allows: divide them among bridges with a key each"
            }
            Self::Revoked => "the node is revoked",
            Self::Full => "the service has no room: raise its limits or remove nodes",
        }
    }

    pub(super) fn put(self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Proven => 1,
            Self::Taken => 2,
            Self::TooMuch => 3,
            Self::Revoked => 4,
            Self::Full => 5,
        });
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(match reader.u8()? {
            1 => Self::Proven,
            2 => Self::Taken,
            3 => Self::TooMuch,
            4 => Self::Revoked,
            5 => Self::Full,
            _ => return Err(RecordError::BadValue("reason")),
        })
    }
}
