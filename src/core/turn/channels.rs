//! Channels (RFC 8656 §12): which number stands for which peer, and when a number may be used anew.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// The most channels of one allocation, those that still block their number included: all numbers
/// there are. A peer that moves from one relayed pair to another has two for a quarter of an hour.
pub const MAX_CHANNELS: usize = 0x1000;
/// The numbers that a client may use (RFC 8656 §12).
const NUMBERS: RangeInclusive<u16> = 0x4000..=0x4fff;
/// How long a binding lives at the server (RFC 8656 §12).
const LIFETIME: Duration = Duration::from_secs(600);
/// When it is refreshed: two minutes early leave room for three transactions of 39.5 s.
const REFRESH: Duration = Duration::from_secs(480);
/// How long after its expiry a number or peer is not bound otherwise (RFC 8656 §12: 5 minutes).
const QUARANTINE: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// To be asked at this time.
    Due(Instant),
    /// A request is in flight.
    Asked,
}

#[derive(Debug)]
struct Channel {
    number: u16,
    status: Status,
    /// Until when the server has it; `None`: it does not, so it cannot be sent on.
    expires: Option<Instant>,
    /// The last time at which the server may have (re)bound it.
    touched: Instant,
}

/// A number that the server may still tie to its peer.
#[derive(Debug)]
struct Retired {
    number: u16,
    until: Instant,
}

#[derive(Default)]
pub(super) struct Channels {
    active: BTreeMap<SocketAddr, Channel>,
    retired: BTreeMap<SocketAddr, Retired>,
    /// Every number in use, active and retired.
    numbers: BTreeMap<u16, SocketAddr>,
    /// The last number given out: numbers go round, so that one rests for as long as possible.
    last: Option<u16>,
    /// The earliest thing to do, kept as it is read far more often than the table changes.
    wake: Option<Instant>,
}

impl Channels {
    /// Wants a channel; false if there is no room. A peer that has a number keeps it.
    pub(super) fn want(&mut self, peer: SocketAddr, now: Instant) -> bool {
        if self.active.contains_key(&peer) {
            return true;
        }
        let Some(number) = self.number_for(peer, now) else {
            return false;
        };
        let channel = Channel {
            number,
            status: Status::Due(now),
            expires: None,
            touched: now,
        };
        self.active.insert(peer, channel);
        self.schedule();
        true
    }

    /// No longer wanted. The server keeps the binding until it expires, so the number rests.
    pub(super) fn retire(&mut self, peer: SocketAddr) {
        let Some(channel) = self.active.remove(&peer) else {
            return;
        };
        let retired = Retired {
            number: channel.number,
            until: channel.touched + LIFETIME + QUARANTINE,
        };
        self.retired.insert(peer, retired);
        self.schedule();
    }

    /// The number to send on; `None` unless the server has the binding.
    pub(super) fn bound(&self, peer: SocketAddr) -> Option<u16> {
        let channel = self.active.get(&peer)?;
        channel.expires.map(|_| channel.number)
    }

    /// Whose data arrives on a number, and whether the channel is still wanted: the server goes on
    /// to use one that is not.
    pub(super) fn peer(&self, number: u16) -> Option<(SocketAddr, bool)> {
        let peer = self.numbers.get(&number)?;
        Some((*peer, self.active.contains_key(peer)))
    }

    /// Whether the server may use a number at all, wanted or not.
    pub(super) fn known(&self, number: u16) -> bool {
        self.numbers.contains_key(&number)
    }

    pub(super) fn any_to(&self, ip: IpAddr) -> bool {
        let range = SocketAddr::new(ip, 0)..=SocketAddr::new(ip, u16::MAX);
        self.active.range(range).next().is_some()
    }

    /// The next binding to ask for, which is then in flight.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<(SocketAddr, u16)> {
        if self.wake.is_none_or(|wake| wake > now) {
            return None;
        }
        let (peer, channel) = self
            .active
            .iter_mut()
            .find(|(_, channel)| matches!(channel.status, Status::Due(due) if due <= now))?;
        channel.status = Status::Asked;
        let due = (*peer, channel.number);
        self.schedule();
        Some(due)
    }

    /// The server bound it. True if it was not bound before.
    pub(super) fn granted(&mut self, peer: SocketAddr, number: u16, now: Instant) -> bool {
        let until = now + LIFETIME + QUARANTINE;
        if let Some(retired) = self.retired.get_mut(&peer) {
            retired.until = retired.until.max(until);
        }
        let Some(channel) = self.active.get_mut(&peer) else {
            return false;
        };
        if channel.number != number {
            return false;
        }
        let new = channel.expires.is_none();
        channel.expires = Some(now + LIFETIME);
        channel.status = Status::Due(now + REFRESH);
        channel.touched = now;
        self.schedule();
        new
    }

    /// No (usable) answer, but the server may have bound it: asked again at `at`. True if it is
    /// wanted and not bound.
    pub(super) fn again(&mut self, peer: SocketAddr, at: Instant, now: Instant) -> bool {
        let Some(channel) = self.active.get_mut(&peer) else {
            return false;
        };
        channel.status = Status::Due(at);
        channel.touched = now;
        let unbound = channel.expires.is_none();
        self.schedule();
        unbound
    }

    /// Those whose binding ran out although they were wanted.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<SocketAddr> {
        let mut expired = Vec::new();
        if self.wake.is_none_or(|wake| wake > now) {
            return expired;
        }
        for (peer, channel) in &mut self.active {
            if channel.expires.is_some_and(|expires| expires <= now) {
                channel.expires = None;
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

    fn schedule(&mut self) {
        self.wake = self
            .active
            .values()
            .flat_map(|channel| {
                let due = match channel.status {
                    Status::Due(at) => Some(at),
                    Status::Asked => None,
                };
                [due, channel.expires]
            })
            .flatten()
            .min();
    }

    fn number_for(&mut self, peer: SocketAddr, now: Instant) -> Option<u16> {
        if let Some(retired) = self.retired.remove(&peer) {
            return Some(retired.number);
        }
        if self.numbers.len() >= MAX_CHANNELS {
            self.forget_rested(now);
        }
        if self.numbers.len() >= MAX_CHANNELS {
            return None;
        }
        let (start, end) = (*NUMBERS.start(), *NUMBERS.end());
        let first = self.last.map_or(start, |last| last + 1);
        let number = (first..=end)
            .chain(start..first.min(end))
            .find(|number| !self.numbers.contains_key(number))?;
        self.numbers.insert(number, peer);
        self.last = Some(number);
        Some(number)
    }

    fn forget_rested(&mut self, now: Instant) {
        let numbers = &mut self.numbers;
        self.retired.retain(|_, retired| {
            let resting = retired.until > now;
            if !resting {
                numbers.remove(&retired.number);
            }
            resting
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn a_number_rests_until_five_minutes_after_its_expiry() {
        let start = Instant::now();
        let mut channels = Channels::default();
        for port in 1..=0x1000 {
            assert!(channels.want(peer(port), start));
        }
        channels.granted(peer(7), 0x4006, start);
        channels.retire(peer(7));
        assert!(!channels.want(peer(5000), start + Duration::from_secs(899)));
        assert!(channels.want(peer(5000), start + Duration::from_secs(900)));
        assert_eq!(channels.active[&peer(5000)].number, 0x4006);
    }

    #[test]
    fn a_peer_gets_its_old_number_back() {
        let start = Instant::now();
        let mut channels = Channels::default();
        assert!(channels.want(peer(1), start) && channels.want(peer(2), start));
        channels.retire(peer(1));
        assert_eq!(channels.peer(0x4000), Some((peer(1), false)));
        assert!(channels.want(peer(1), start));
        assert_eq!(channels.peer(0x4000), Some((peer(1), true)));
        assert!(channels.any_to(peer(9).ip()));
    }

    #[test]
    fn numbers_go_round_and_stay_in_range() {
        let mut now = Instant::now();
        let mut channels = Channels::default();
        for round in 0..10_000_u32 {
            let port = u16::try_from(round % 60_000).expect("a port") + 1;
            now += Duration::from_secs(1);
            assert!(channels.want(peer(port), now), "round {round}");
            let number = channels.active[&peer(port)].number;
            assert!(NUMBERS.contains(&number));
            channels.retire(peer(port));
            assert!(channels.numbers.len() <= MAX_CHANNELS);
        }
    }
}
