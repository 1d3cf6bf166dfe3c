//! Which peers may send to the relayed address (RFC 8656 §9): wanted until forgotten.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The most peers of one allocation: a hundred eager peers with ten addresses each.
pub const MAX_PERMISSIONS: usize = 1024;
/// How long a permission lives at the server (RFC 8656 §9).
const LIFETIME: Duration = Duration::from_secs(300);
/// When it is refreshed: a minute early leaves room for a whole transaction of 39.5 s.
const REFRESH: Duration = Duration::from_secs(240);
/// A refresh takes along all that is due this soon, so that permissions refresh in step.
const COALESCE: Duration = Duration::from_secs(30);
/// How many peers one CreatePermission names: 16 of IPv6 take 384 bytes, so that with usual
/// credentials the request stays below 1,280 bytes.
const BATCH: usize = 16;
/// RFC 8656 §9.2 has no wait of its own for 508; the minute is that of §7.4.
pub(super) const BUSY_RETRY: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// To be asked at this time.
    Due(Instant),
    /// A request is in flight.
    Asked,
    /// Denied for good: not asked again until forgotten.
    Refused,
}

#[derive(Debug)]
struct Permission {
    status: Status,
    /// Until when the server has it; `None`: it does not.
    expires: Option<Instant>,
    /// Wanted by the owner; else only by a channel.
    explicit: bool,
    /// Asked in a request of its own, because a batch with it was refused.
    alone: bool,
}

#[derive(Default)]
pub(super) struct Permissions {
    peers: BTreeMap<IpAddr, Permission>,
    /// The earliest thing to do: when to ask or when something expires. Kept, because it is read far
    /// more often than the table changes.
    wake: Option<Instant>,
}

impl Permissions {
    /// Wants a permission; false if the table is full.
    pub(super) fn want(&mut self, peer: IpAddr, explicit: bool, now: Instant) -> bool {
        if let Some(permission) = self.peers.get_mut(&peer) {
            permission.explicit |= explicit;
            return true;
        }
        if self.peers.len() >= MAX_PERMISSIONS {
            return false;
        }
        let permission = Permission {
            status: Status::Due(now),
            expires: None,
            explicit,
            alone: false,
        };
        self.peers.insert(peer, permission);
        self.wake = Some(self.wake.map_or(now, |wake| wake.min(now)));
        true
    }

    /// The owner no longer wants it; it stays while `channel` needs it. It runs out at the server.
    pub(super) fn forget(&mut self, peer: IpAddr, channel: bool) {
        if let Some(permission) = self.peers.get_mut(&peer) {
            permission.explicit = false;
        }
        self.release(peer, channel);
    }

    /// A channel to the peer ended; `channel`: whether another one remains.
    pub(super) fn release(&mut self, peer: IpAddr, channel: bool) {
        if !channel && self.peers.get(&peer).is_some_and(|p| !p.explicit) {
            self.peers.remove(&peer);
            self.schedule();
        }
    }

    /// Whether the server has it now.
    pub(super) fn installed(&self, peer: IpAddr) -> bool {
        self.peers.get(&peer).is_some_and(|p| p.expires.is_some())
    }

    /// Whether data from the peer is expected: asked for or there. It may overtake the answer.
    pub(super) fn expected(&self, peer: IpAddr) -> bool {
        self.peers
            .get(&peer)
            .is_some_and(|p| p.expires.is_some() || p.status != Status::Refused)
    }

    /// The peers of the next request, which is then in flight; `None` if none is due.
    pub(super) fn next_batch(&mut self, now: Instant) -> Option<Vec<IpAddr>> {
        if self.wake.is_none_or(|wake| wake > now) {
            return None;
        }
        let due_by =
            |p: &Permission, at: Instant| matches!(p.status, Status::Due(due) if due <= at);
        let first = self.peers.iter().find(|(_, p)| due_by(p, now))?;
        let batch: Vec<IpAddr> = if first.1.alone {
            vec![*first.0]
        } else {
            self.peers
                .iter()
                .filter(|(_, p)| !p.alone && due_by(p, now + COALESCE))
                .map(|(&peer, _)| peer)
                .take(BATCH)
                .collect()
        };
        for peer in &batch {
            self.set(*peer, Status::Asked);
        }
        self.schedule();
        Some(batch)
    }

    /// The server installed them; returns those it did not have before.
    pub(super) fn granted(&mut self, peers: &[IpAddr], now: Instant) -> Vec<IpAddr> {
        let mut new = Vec::new();
        for peer in peers {
            let Some(permission) = self.peers.get_mut(peer) else {
                continue;
            };
            if permission.expires.is_none() {
                new.push(*peer);
            }
            permission.expires = Some(now + LIFETIME);
            permission.status = Status::Due(now + REFRESH);
        }
        self.schedule();
        new
    }

    /// The server refused for good. One of several may be the cause: each is asked alone then. A
    /// single one is refused; returns it.
    pub(super) fn refused(&mut self, peers: &[IpAddr], now: Instant) -> Option<IpAddr> {
        let mut refused = None;
        if let [peer] = peers {
            if let Some(permission) = self.peers.get_mut(peer) {
                permission.status = Status::Refused;
                permission.expires = None;
                refused = Some(*peer);
            }
        } else {
            for peer in peers {
                if let Some(permission) = self.peers.get_mut(peer) {
                    permission.alone = true;
                    permission.status = Status::Due(now);
                }
            }
        }
        self.schedule();
        refused
    }

    /// No (usable) answer: asked again at `at`. Returns those that the server does not have.
    pub(super) fn again(&mut self, peers: &[IpAddr], at: Instant) -> Vec<IpAddr> {
        let mut without = Vec::new();
        for peer in peers {
            let Some(permission) = self.peers.get_mut(peer) else {
                continue;
            };
            permission.status = Status::Due(at);
            if permission.expires.is_none() {
                without.push(*peer);
            }
        }
        self.schedule();
        without
    }

    /// Those that ran out although they were wanted.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<IpAddr> {
        let mut expired = Vec::new();
        if self.wake.is_none_or(|wake| wake > now) {
            return expired;
        }
        for (peer, permission) in &mut self.peers {
            if permission.expires.is_some_and(|expires| expires <= now) {
                permission.expires = None;
                expired.push(*peer);
            }
        }
        if !expired.is_empty() {
            self.schedule();
        }
        expired
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.wake
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn set(&mut self, peer: IpAddr, status: Status) {
        if let Some(permission) = self.peers.get_mut(&peer) {
            permission.status = status;
        }
    }

    fn schedule(&mut self) {
        self.wake = self
            .peers
            .values()
            .flat_map(|p| {
                let due = match p.status {
                    Status::Due(at) => Some(at),
                    Status::Asked | Status::Refused => None,
                };
                [due, p.expires]
            })
            .flatten()
            .min();
    }
}
