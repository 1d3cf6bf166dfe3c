//! Which of the valid pairs carries a peer's data. ICE validates, this chooses: relay first, then
//! better, without a gap, and without flapping.

use std::time::Instant;

use wice_signaling::protocol::RelayTransport;

use super::peer::{Peer, Slot};
use super::{PathRef, Route, WireGuardPacket};
use crate::core::ice::{Pair, Role, Use};
use crate::core::timing::{
    DATA_DEAD, DATA_DEAD_HANDSHAKES, DUAL_SEND, HOLD_DOWN, IDLE_AFTER, RECHECK, UPGRADE_ANSWERED,
    UPGRADE_EVERY, UPGRADE_HOLD, UPGRADE_RTT, UPGRADE_RTT_PERCENT,
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
    handshakes_unanswered: u32,
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
            WireGuardPacket::HandshakeInitiation => self.handshakes_unanswered += 1,
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
        match packet {
            WireGuardPacket::HandshakeInitiation => return,
            WireGuardPacket::Data => self.last_data = Some(now),
            WireGuardPacket::HandshakeResponse | WireGuardPacket::Keepalive => {}
        }
        self.handshake_wanted = false;
        self.unanswered_since = None;
        self.handshakes_unanswered = 0;
        if path.is_some() && path == self.selected {
            self.up = true;
            self.previous = None;
        }
    }

    /// When data counts as dead on the selected path, if two handshakes have gone unanswered.
    pub(super) fn data_dead_at(&self) -> Option<Instant> {
        let enough = self.handshakes_unanswered >= DATA_DEAD_HANDSHAKES;
        // What was lost with its path, or went nowhere, says nothing of the next one.
        self.unanswered_since
            .filter(|_| enough && self.selected.is_some())
            .map(|since| since + DATA_DEAD)
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

/// Fewer relays are better, then the faster transport to them. Lower is better.
fn class(pair: &Pair) -> (u8, u8) {
    let rank = |transport: Option<RelayTransport>| match transport {
        None => 0,
        Some(RelayTransport::Udp) => 1,
        Some(RelayTransport::Tcp) => 2,
        Some(RelayTransport::Tls) => 3,
    };
    let transports = rank(pair.relay_transport()).max(rank(pair.remote().relay_transport));
    (pair.relays(), transports)
}

/// The path that this peer's data should take now.
pub(super) fn choose(peer: &mut Peer, now: Instant) -> Option<PathRef> {
    let Peer { slots, path, .. } = peer;
    // The newest agent that has a pair; the one before carries on until then.
    slots.iter().rev().find_map(|slot| {
        let valid: Vec<&Pair> = slot.agent.pairs().filter(|p| p.is_valid()).collect();
        // Where none is confirmed or all are held down, a bad path beats none.
        let confirmed = prefer(valid, |pair| pair.is_confirmed());
        let usable = prefer(confirmed, |pair| {
            !path.is_held_down(path_ref(slot, pair), now)
        });
        choose_in(slot, &usable, path, now)
    })
}

/// Those that fulfil the wish, or all if none does.
fn prefer<'a>(pairs: Vec<&'a Pair>, wish: impl Fn(&Pair) -> bool) -> Vec<&'a Pair> {
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
        let (answered, of) = best.recent();
        let holds = answered * 8 >= UPGRADE_ANSWERED * of;
        return Some(path_ref(slot, if holds { best } else { present }));
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
/// best relayed of the others stand by.
pub(super) fn assign_uses(peer: &mut Peer, now: Instant) {
    let selected = peer.path.selected;
    let previous = peer.path.previous.map(|(path, _)| path);
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
        let relayed = others.iter().find(|(pair, _)| pair.relays() > 0);
        let standby: Vec<PathRef> = direct
            .into_iter()
            .chain(relayed)
            .map(|(_, path)| *path)
            .chain(previous)
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

fn path_ref(slot: &Slot, pair: &Pair) -> PathRef {
    PathRef {
        generation: slot.generation,
        key: pair.key(),
    }
}
