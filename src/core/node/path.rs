//! Which of the valid pairs carries a peer's data. ICE validates, this chooses: relay first, then
//! better, without a gap, and without flapping.

use std::net::IpAddr;
use std::time::Instant;

use wice_signaling::protocol::{CandidateKind, RelayTransport};

use super::peer::{Peer, Slot};
use super::{PathRef, Route, WireGuardPacket};
use crate::core::ice::{Pair, Role, Use, is_own_socket};
use crate::core::timing::{
    DATA_DEAD, DATA_DEAD_FIRST_HANDSHAKES, DATA_DEAD_HANDSHAKES, DUAL_SEND, HANDSHAKE_TIMEOUT,
    HOLD_DOWN, IDLE_AFTER, RECHECK, UPGRADE_EVERY, UPGRADE_HOLD, UPGRADE_RTT, UPGRADE_RTT_PERCENT,
};

/// Back-off of trying again where there is no path and no traffic: [`RECHECK`] doubled this often.
const MAX_LONELY_DOUBLINGS: u32 = 4;

/// What carries a peer's data, and what is known of how well.
#[derive(Debug)]
pub(super) struct PathState {
    pub(super) selected: Option<PathRef>,
    /// Chosen, but waiting for its relay's channel.
    pub(super) pending: Option<PathRef>,
    /// The path before, while packets go on both.
    pub(super) previous: Option<(PathRef, Instant)>,
    /// WireGuard has answered on the selected path.
    pub(super) up: bool,
    pub(super) since: Instant,
    pub(super) changes: u64,
    /// What the owner was told last.
    pub(super) bound: Vec<Route>,
    /// The other side has restarted: its WireGuard may have forgotten our session, and its handshake
    /// may be answered on a path that is gone.
    pub(super) handshake_wanted: bool,
    /// When to start a handshake ourselves unless the other side's has come.
    pub(super) handshake_at: Option<Instant>,
    /// When data last went or came.
    pub(super) last_data: Option<Instant>,
    /// Data has gone out and nothing has come back since.
    unanswered_since: Option<Instant>,
    /// Handshakes that have been started since, and when the last that counts was.
    handshakes_unanswered: u32,
    last_handshake: Option<Instant>,
    held_down: Vec<(PathRef, Instant)>,
    better: Option<(PathRef, Instant)>,
    last_rtt_change: Option<Instant>,
    lonely: Option<(Instant, u32)>,
}

impl PathState {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            selected: None,
            pending: None,
            previous: None,
            up: false,
            since: now,
            changes: 0,
            bound: Vec::new(),
            handshake_wanted: false,
            handshake_at: None,
            last_data: None,
            unanswered_since: None,
            handshakes_unanswered: 0,
            last_handshake: None,
            held_down: Vec::new(),
            better: None,
            last_rtt_change: None,
            lonely: None,
        }
    }

    pub(super) fn has_traffic(&self, now: Instant) -> bool {
        self.last_data.is_some_and(|at| now < at + IDLE_AFTER)
    }

    /// WireGuard sent something on the selected path.
    pub(super) fn note_sent(&mut self, packet: WireGuardPacket, now: Instant) {
        match packet {
            WireGuardPacket::Data => {
                self.last_data = Some(now);
                self.unanswered_since.get_or_insert(now);
            }
            WireGuardPacket::HandshakeInitiation => {
                self.note_handshake(now);
                if self.selected.is_none() {
                    // Without a session data waits in WireGuard, and this is all that shows of it.
                    self.last_data = Some(now);
                }
            }
            WireGuardPacket::HandshakeResponse | WireGuardPacket::Keepalive => {}
        }
    }

    /// WireGuard received something authentic on `path`.
    pub(super) fn note_received(
        &mut self,
        path: Option<PathRef>,
        packet: WireGuardPacket,
        now: Instant,
    ) {
        self.handshake_at = None;
        let selected = path.is_some() && path == self.selected;
        match packet {
            WireGuardPacket::HandshakeInitiation => {
                if !selected {
                    self.note_asked_elsewhere(now);
                }
                return;
            }
            WireGuardPacket::Data => self.last_data = Some(now),
            WireGuardPacket::HandshakeResponse | WireGuardPacket::Keepalive => {}
        }
        self.handshake_wanted = false;
        // On another path it says nothing of this one, unless it answers what was sent on it.
        if selected || packet == WireGuardPacket::HandshakeResponse {
            self.unanswered_since = None;
            self.handshakes_unanswered = 0;
        }
        if selected {
            self.up = true;
            self.previous = None;
        }
    }

    /// The other side starts a handshake on another path: one that comes again so soon has not had
    /// our answer, which went out on the selected path.
    fn note_asked_elsewhere(&mut self, now: Instant) {
        let soon = |at: Instant| now < at + 2 * HANDSHAKE_TIMEOUT;
        if self.last_handshake.is_none_or(|at| !soon(at)) {
            self.handshakes_unanswered = 0;
        }
        self.note_handshake(now);
    }

    /// Before WireGuard has been heard on it a path is given the time that its first handshakes take
    /// under loss.
    fn handshakes_needed(&self) -> u32 {
        if self.up {
            DATA_DEAD_HANDSHAKES
        } else {
            DATA_DEAD_FIRST_HANDSHAKES
        }
    }

    fn note_handshake(&mut self, now: Instant) {
        if self.unanswered_since.is_some() {
            self.handshakes_unanswered += 1;
            if self.handshakes_unanswered <= self.handshakes_needed() {
                self.last_handshake = Some(now);
            }
        }
    }

    /// When data counts as dead on the selected path, if two handshakes have gone unanswered. Data
    /// that waits for a path is not dead: there is none to give up.
    pub(super) fn data_dead_at(&self) -> Option<Instant> {
        let enough =
            self.selected.is_some() && self.handshakes_unanswered >= self.handshakes_needed();
        let since = self.unanswered_since.filter(|_| enough)?;
        let last = self.last_handshake? + HANDSHAKE_TIMEOUT;
        Some(last.max(since + DATA_DEAD))
    }

    /// The selected path is dead to data: not chosen again for a while.
    pub(super) fn hold_down(&mut self, path: PathRef, now: Instant) {
        self.held_down
            .retain(|(held, until)| *held != path && now < *until);
        self.held_down.push((path, now + HOLD_DOWN));
        self.unanswered_since = None;
        self.handshakes_unanswered = 0;
    }

    /// When something here is due.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let previous = self.previous.map(|(_, until)| until);
        let idle = self
            .last_data
            .map(|at| at + IDLE_AFTER)
            .filter(|at| now < *at);
        let better = self
            .better
            .map(|(_, since)| since + UPGRADE_HOLD)
            .filter(|at| now < *at);
        let lonely = self.lonely.map(|(at, _)| at);
        let data_dead = self.data_dead_at();
        [previous, idle, better, lonely, data_dead, self.handshake_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a peer without path and traffic is to be tried again now.
    pub(super) fn is_lonely(&mut self, now: Instant) -> bool {
        if self.selected.is_some() {
            self.lonely = None;
            return false;
        }
        let (at, doublings) = *self.lonely.get_or_insert((now + RECHECK, 0));
        let due = at <= now;
        if due {
            let wait = RECHECK * (1 << (doublings + 1).min(MAX_LONELY_DOUBLINGS));
            self.lonely = Some((now + wait, (doublings + 1).min(MAX_LONELY_DOUBLINGS)));
        }
        due
    }

    /// The peer is there again: what was put off for want of it is due.
    pub(super) fn end_loneliness(&mut self) {
        self.lonely = None;
    }

    fn is_held_down(&self, path: PathRef, now: Instant) -> bool {
        self.held_down
            .iter()
            .any(|(held, until)| *held == path && now < *until)
    }

    /// Makes `path` the selected one.
    pub(super) fn select(&mut self, path: Option<PathRef>, now: Instant) {
        self.previous = match (self.selected, path) {
            (Some(before), Some(_)) => Some((before, now + DUAL_SEND)),
            (Some(_) | None, _) => None,
        };
        self.selected = path;
        self.up = false;
        self.since = now;
        self.changes += 1;
        self.better = None;
        self.unanswered_since = None;
        self.handshakes_unanswered = 0;
    }
}

/// Fewer relays are better, then the faster transport to them, then fewer ends where a program passes
/// on what WireGuard could send itself: both sides read the same of the priorities. Lower is better.
fn class(pair: &Pair) -> (u8, u8, u8) {
    let rank = |transport: Option<RelayTransport>| match transport {
        None => 0,
        Some(RelayTransport::Udp) => 1,
        Some(RelayTransport::Tcp) => 2,
        Some(RelayTransport::Tls) => 3,
    };
    let transports = rank(pair.relay_transport()).max(rank(pair.remote().relay_transport));
    let ends = [pair.local_priority(), pair.remote().priority];
    let hops = match pair.relays() {
        0 => ends
            .into_iter()
            .map(|end| u8::from(is_own_socket(end)))
            .sum(),
        _ => 0,
    };
    (pair.relays(), transports, hops)
}

/// The path that this peer's data should take now.
pub(super) fn choose(peer: &mut Peer, now: Instant) -> Option<PathRef> {
    let is_away = peer.is_away(now);
    let Peer { slots, path, .. } = peer;
    // The newest agent that has a pair; the one before carries on until then.
    slots.iter().rev().find_map(|slot| {
        let valid: Vec<&Pair> = slot.agent.pairs().filter(|p| p.is_valid()).collect();
        // Where none is confirmed or all are held down, a bad path beats none; but not to a peer that
        // is said to be away and answers on none.
        let confirmed = match is_away {
            true => valid
                .into_iter()
                .filter(|pair| pair.is_confirmed())
                .collect(),
            false => prefer(valid, |pair| pair.is_confirmed()),
        };
        let usable = prefer(confirmed, |pair| {
            !path.is_held_down(path_ref(slot, pair), now)
        });
        choose_in(slot, &usable, path, now)
    })
}

/// The valid pairs of the newest agent that has one, best first.
pub(super) fn ranked(peer: &Peer) -> Vec<PathRef> {
    let of = |slot: &Slot| {
        let mut valid: Vec<&Pair> = slot.agent.pairs().filter(|p| p.is_valid()).collect();
        valid.sort_by_key(|pair| {
            (
                !pair.is_confirmed(),
                class(pair),
                u64::MAX - pair.priority(),
            )
        });
        let paths: Vec<PathRef> = valid.into_iter().map(|pair| path_ref(slot, pair)).collect();
        paths
    };
    let mut by_agent = peer.slots.iter().rev().map(of);
    by_agent.find(|paths| !paths.is_empty()).unwrap_or_default()
}

/// Those that fulfil the wish, or all if none does.
fn prefer(pairs: Vec<&Pair>, wish: impl Fn(&Pair) -> bool) -> Vec<&Pair> {
    let wished: Vec<&Pair> = pairs.iter().copied().filter(|pair| wish(pair)).collect();
    if wished.is_empty() { pairs } else { wished }
}

fn choose_in(slot: &Slot, usable: &[&Pair], path: &mut PathState, now: Instant) -> Option<PathRef> {
    if slot.agent.role() == Role::Controlled {
        let nominated = slot.agent.nominated();
        if let Some(pair) = usable.iter().find(|pair| Some(pair.key()) == nominated) {
            return Some(path_ref(slot, pair));
        }
    }
    let best = usable
        .iter()
        .min_by_key(|pair| (class(pair), u64::MAX - pair.priority()))?;
    let present = usable
        .iter()
        .find(|pair| Some(path_ref(slot, pair)) == path.selected);
    let Some(present) = present else {
        return Some(path_ref(slot, best));
    };
    if class(best) < class(present) {
        let taken = if best.holds() { best } else { present };
        return Some(path_ref(slot, taken));
    }
    let same_class = usable.iter().filter(|pair| class(pair) == class(present));
    let faster = same_class
        .filter(|pair| is_faster(pair, present))
        .min_by_key(|pair| pair.rtt());
    let Some(faster) = faster else {
        path.better = None;
        return Some(path_ref(slot, present));
    };
    let faster = path_ref(slot, faster);
    let since = match path.better {
        Some((better, since)) if better == faster => since,
        Some(_) | None => {
            path.better = Some((faster, now));
            now
        }
    };
    let rested = path
        .last_rtt_change
        .is_none_or(|at| now >= at + UPGRADE_EVERY);
    if rested && now >= since + UPGRADE_HOLD {
        path.last_rtt_change = Some(now);
        return Some(faster);
    }
    Some(path_ref(slot, present))
}

fn is_faster(pair: &Pair, than: &Pair) -> bool {
    let (Some(rtt), Some(present)) = (pair.rtt(), than.rtt()) else {
        return false;
    };
    rtt + UPGRADE_RTT <= present && rtt * 100 <= present * (100 - UPGRADE_RTT_PERCENT)
}

/// What every valid pair of the peer is used for, given the selected one: the best direct and the
/// best relayed of the others stand by, where there is traffic or the node has few peers.
pub(super) fn assign_uses(peer: &mut Peer, eager: bool, now: Instant) {
    let keeps_standbys = eager || peer.path.has_traffic(now);
    let selected = peer.path.selected;
    let carrying = selected.and_then(|path| {
        let slot = peer.slot(path.generation)?;
        Some(relay_hosts(slot, slot.agent.pair(path.key)?))
    });
    let previous = peer.path.previous.map(|(path, _)| path);
    let pending = peer.path.pending;
    for slot in &mut peer.slots {
        let generation = slot.generation;
        let mut others: Vec<(&Pair, PathRef)> = slot
            .agent
            .pairs()
            .filter(|pair| pair.is_valid())
            .map(|pair| {
                (
                    pair,
                    PathRef {
                        generation,
                        key: pair.key(),
                    },
                )
            })
            .filter(|(_, path)| Some(*path) != selected)
            .collect();
        others.sort_by_key(|(pair, _)| (class(pair), u64::MAX - pair.priority()));
        let direct = others.iter().find(|(pair, _)| pair.relays() == 0);
        // A relay that dies is not to take the path and what stands by for it.
        let shares = |pair: &Pair| {
            let hosts = relay_hosts(slot, pair).into_iter().flatten();
            hosts
                .into_iter()
                .any(|host| carrying.is_some_and(|c| c.contains(&Some(host))))
        };
        let relayed = others
            .iter()
            .filter(|(pair, _)| pair.relays() > 0)
            .min_by_key(|(pair, _)| shares(pair));
        let standby: Vec<PathRef> = direct
            .into_iter()
            .chain(relayed)
            .map(|(_, path)| *path)
            .filter(|_| keeps_standbys)
            .chain(previous)
            .chain(pending)
            .collect();
        let others: Vec<PathRef> = others.into_iter().map(|(_, path)| path).collect();
        for path in others {
            let used = if standby.contains(&path) {
                Use::Standby
            } else {
                Use::None
            };
            slot.agent.set_use(path.key, used, now);
        }
        if let Some(path) = selected.filter(|path| path.generation == generation) {
            slot.agent.set_use(path.key, Use::Selected, now);
        }
    }
}

/// The addresses of the relays in a path: ours and theirs.
fn relay_hosts(slot: &Slot, pair: &Pair) -> [Option<IpAddr>; 2] {
    let key = pair.key();
    let base = slot.agent.bases().iter().find(|base| base.id == key.base);
    let ours = base.filter(|_| pair.relay_transport().is_some());
    let theirs = (pair.remote().kind == CandidateKind::Relayed).then(|| key.remote.ip());
    [ours.map(|base| base.address.ip()), theirs]
}

fn path_ref(slot: &Slot, pair: &Pair) -> PathRef {
    PathRef {
        generation: slot.generation,
        key: pair.key(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A time in the past that nothing can move on would be due for ever.
    #[test]
    fn data_without_a_path_is_never_due() {
        let start = Instant::now();
        let mut state = PathState::new(start);
        state.note_sent(WireGuardPacket::Data, start);
        for _ in 0..=DATA_DEAD_FIRST_HANDSHAKES {
            state.note_sent(WireGuardPacket::HandshakeInitiation, start);
        }
        let later = start + DATA_DEAD;
        state.is_lonely(later);
        assert!(state.poll_timeout(later).is_none_or(|at| at > later));
    }
}
