//! One allocation (RFC 8656 §5): who has it, its relayed addresses, permissions and channels.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::auth::{Known, PasswordAlgorithm};
use super::mobility::TicketSecret;
use super::quota::Grant;
use super::types::{ClientAddr, ConnectionId, PeerAddr, RelayId};
use crate::codec::{Key, TransactionId};

/// How long a permission lasts (RFC 8656 §9).
pub(super) const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// How long a channel lasts (RFC 8656 §12).
pub(super) const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// An IP version, as REQUESTED-ADDRESS-FAMILY names it (RFC 8656 §18.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 2,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::BOTH
            .into_iter()
            .find(|family| family.number() == number)
    }

    fn index(self) -> usize {
        match self {
            Self::V4 => 0,
            Self::V6 => 1,
        }
    }
}

/// A relayed address of the allocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relayed {
    pub(super) relay: RelayId,
    pub(super) expires: Instant,
}

#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) client: ClientAddr,
    pub(super) username: Box<str>,
    pub(super) algorithm: PasswordAlgorithm,
    pub(super) key: Key,
    pub(super) grant: Grant,
    /// The request that made it: a retransmission gets the same answer.
    pub(super) id: TransactionId,
    /// As it was granted with that request.
    pub(super) lifetime: Duration,
    pub(super) token: Option<[u8; 8]>,
    /// Connections with peers; of a TCP allocation alone (RFC 6062).
    pub(super) connections: Option<Vec<ConnectionId>>,
    /// Of a client that wants to move.
    pub(super) ticket: Option<TicketSecret>,
    relayed: [Option<Relayed>; 2],
    /// By address.
    permissions: Vec<(IpAddr, Instant)>,
    /// By number.
    channels: Vec<Channel>,
    /// By peer.
    numbers: Vec<(PeerAddr, u16)>,
    /// When it is due in the server's timers.
    pub(super) due: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    number: u16,
    peer: PeerAddr,
    expires: Instant,
}

/// Why a channel is not bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BindError {
    /// The number has another peer, or the peer another number.
    Taken,
    /// There are as many as may be.
    Full,
}

impl Allocation {
    pub(super) fn new(
        client: ClientAddr,
        author: super::auth::Author,
        grant: Grant,
        id: TransactionId,
        (lifetime, due): (Duration, Instant),
    ) -> Self {
        Self {
            client,
            username: author.username,
            algorithm: author.algorithm,
            key: author.key,
            grant,
            id,
            lifetime,
            token: None,
            connections: None,
            ticket: None,
            relayed: [None; 2],
            permissions: Vec::new(),
            channels: Vec::new(),
            numbers: Vec::new(),
            due,
        }
    }

    pub(super) fn known(&self) -> Known<'_> {
        Known {
            username: &self.username,
            algorithm: self.algorithm,
            key: &self.key,
        }
    }

    pub(super) fn relayed(&self, family: Family) -> Option<Relayed> {
        self.relayed[family.index()]
    }

    pub(super) fn set_relayed(&mut self, family: Family, relayed: Option<Relayed>) {
        self.relayed[family.index()] = relayed;
    }

    /// All its relayed addresses.
    pub(super) fn all_relayed(&self) -> impl Iterator<Item = (Family, Relayed)> + use<> {
        let relayed = self.relayed;
        Family::BOTH
            .into_iter()
            .filter_map(move |family| Some((family, relayed[family.index()]?)))
    }

    pub(super) fn is_permitted(&self, peer: IpAddr, now: Instant) -> bool {
        self.permissions
            .binary_search_by_key(&peer, |permission| permission.0)
            .is_ok_and(|at| self.permissions[at].1 > now)
    }

    /// Whether permissions for `peers` fit, those that are there already counted once.
    pub(super) fn has_room(&mut self, peers: &[IpAddr], max: usize, now: Instant) -> bool {
        let new = |this: &Self| {
            let mut new: Vec<_> = peers
                .iter()
                .filter(|peer| {
                    this.permissions
                        .binary_search_by_key(peer, |p| &p.0)
                        .is_err()
                })
                .collect();
            new.sort_unstable();
            new.dedup();
            new.len()
        };
        if self.permissions.len() + new(self) > max {
            self.permissions.retain(|permission| permission.1 > now);
        }
        self.permissions.len() + new(self) <= max
    }

    /// Installs or renews a permission; the caller has made sure of the room.
    pub(super) fn permit(&mut self, peer: IpAddr, now: Instant) {
        let expires = now + PERMISSION_LIFETIME;
        match self.permissions.binary_search_by_key(&peer, |p| p.0) {
            Ok(at) => self.permissions[at].1 = expires,
            Err(at) => self.permissions.insert(at, (peer, expires)),
        }
    }

    /// The peer of a channel.
    pub(super) fn peer_of(&self, number: u16, now: Instant) -> Option<PeerAddr> {
        let at = self
            .channels
            .binary_search_by_key(&number, |c| c.number)
            .ok()?;
        let channel = &self.channels[at];
        (channel.expires > now).then_some(channel.peer)
    }

    /// The channel of a peer.
    pub(super) fn channel_of(&self, peer: PeerAddr, now: Instant) -> Option<u16> {
        if self.numbers.is_empty() {
            return None;
        }
        let at = self.numbers.binary_search_by_key(&peer, |n| n.0).ok()?;
        let number = self.numbers[at].1;
        self.peer_of(number, now).map(|_| number)
    }

    /// Binds or renews a channel (RFC 8656 §12.2).
    pub(super) fn bind(
        &mut self,
        number: u16,
        peer: PeerAddr,
        max: usize,
        now: Instant,
    ) -> Result<(), BindError> {
        let expires = now + CHANNEL_LIFETIME;
        if self.peer_of(number, now) == Some(peer) {
            if let Ok(at) = self.channels.binary_search_by_key(&number, |c| c.number) {
                self.channels[at].expires = expires;
            }
            return Ok(());
        }
        if self.peer_of(number, now).is_some() || self.channel_of(peer, now).is_some() {
            return Err(BindError::Taken);
        }
        self.forget_channels(|channel| channel.expires <= now);
        if self.channels.len() >= max {
            return Err(BindError::Full);
        }
        let channel = Channel {
            number,
            peer,
            expires,
        };
        if let Err(at) = self.channels.binary_search_by_key(&number, |c| c.number) {
            self.channels.insert(at, channel);
        }
        if let Err(at) = self.numbers.binary_search_by_key(&peer, |n| n.0) {
            self.numbers.insert(at, (peer, number));
        }
        Ok(())
    }

    /// Takes back what is allowed no longer.
    pub(super) fn revoke(&mut self, allowed: impl Fn(IpAddr) -> bool) {
        self.permissions.retain(|permission| allowed(permission.0));
        self.forget_channels(|channel| !allowed(channel.peer.0.ip()));
    }

    fn forget_channels(&mut self, gone: impl Fn(&Channel) -> bool) {
        self.channels.retain(|channel| !gone(channel));
        let channels = &self.channels;
        self.numbers
            .retain(|(_, number)| channels.binary_search_by_key(number, |c| c.number).is_ok());
    }
}

#[cfg(test)]
impl Allocation {
    /// How many permissions and channels it holds.
    pub(super) fn peers(&self) -> (usize, usize) {
        assert_eq!(self.channels.len(), self.numbers.len());
        (self.permissions.len(), self.channels.len())
    }
}
