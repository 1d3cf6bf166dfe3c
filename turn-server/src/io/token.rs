//! What epoll names.

/// A kind and an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The thread's eventfd.
    Wake,
    /// A UDP listener.
    Udp(u32),
    /// A TCP or TLS listener.
    Tcp(u32),
    /// A relay socket.
    Relay(u32),
    /// A client's connection.
    Stream(u32),
    /// A relay socket that listens for peers.
    TcpRelay(u32),
    /// A peer's connection.
    Peer(u32),
}

impl Token {
    pub(super) fn to_u64(self) -> u64 {
        let (kind, index) = match self {
            Self::Wake => (0, 0),
            Self::Udp(index) => (1, index),
            Self::Tcp(index) => (2, index),
            Self::Relay(index) => (3, index),
            Self::Stream(index) => (4, index),
            Self::TcpRelay(index) => (5, index),
            Self::Peer(index) => (6, index),
        };
        kind << 32 | u64::from(index)
    }

    pub(super) fn from_u64(token: u64) -> Option<Self> {
        let index = token as u32;
        Some(match token >> 32 {
            0 => Self::Wake,
            1 => Self::Udp(index),
            2 => Self::Tcp(index),
            3 => Self::Relay(index),
            4 => Self::Stream(index),
            5 => Self::TcpRelay(index),
            6 => Self::Peer(index),
            _ => return None,
        })
    }
}
