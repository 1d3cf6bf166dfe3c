//! One peer: what its endpoint is, whether that carries anything, and what it should be.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Cause, LOOK_EVERY, LOOK_SENDING, PathState, Sighting, Standing};

/// A session older than this carries nothing more (WireGuard paper §6.1, REJECT_AFTER_TIME): an
/// endpoint with a younger one worked when it was seen first.
const SESSION: Duration = Duration::from_secs(180);
/// An endpoint that has never worked here may leave what is sent unanswered for this long. Below the
/// 5 s after which WireGuard repeats an unanswered handshake (§6.1, REKEY_TIMEOUT): the second try
/// goes by the path, so a native endpoint that is dead costs no more than the loss of one packet. Looks
/// are a second apart, and not exact: the one that sees it comes after 4.5 s at most.
pub const NATIVE_TRIAL: Duration = Duration::from_millis(3_500);
/// One that has worked: WireGuard itself gives a session up when nothing has come for this long after
/// something was sent (§6.5, KEEPALIVE_TIMEOUT + REKEY_TIMEOUT).
pub const NATIVE_DEAD: Duration = Duration::from_secs(15);
/// One that stands where ours stood: longer than any round trip on which people use a mesh, so that
/// WireGuard that has roamed by half a handshake hears the other. With a look, an outage of 1.5 s.
pub const RESET_TRIAL: Duration = Duration::from_millis(500);
/// Without a path for this long the native endpoint is tried again.
pub const NATIVE_RETRY: Duration = Duration::from_secs(30);
/// The same for a peer that has published nothing: twice what signaling takes to tell of all.
pub const NATIVE_RETRY_UNKNOWN: Duration = Duration::from_secs(10);
/// A keepalive has this length and wants no answer (§5.4.6, §6.5).
const KEEPALIVE: u64 = 32;
/// WireGuard that has roamed from where it was given to the slot is given that again after this, a
/// look, doubled each time up to a bound above which a daemon that dies would leave much behind.
const MOVE_AGAIN: Duration = Duration::from_millis(800);
const MOVE_AGAIN_MAX: Duration = Duration::from_secs(16);
/// What has stayed for so long was no to and fro.
const MOVE_CALM: Duration = Duration::from_secs(60);
/// For so long after a path has changed the peer may still send by another, or already do: it finds a dead path in some
/// seconds, each side for itself, and a better one as soon.
const CHANGING: Duration = Duration::from_secs(15);
/// Resets that are remembered, to see whether they are regular: three distances.
const REMEMBERED_RESETS: usize = 4;
/// Distances of resets count as equal up to this: looks are a second apart.
const REGULAR: Duration = Duration::from_millis(2_500);

#[derive(Debug)]
pub(super) struct Peer {
    slot: SocketAddr,
    path: PathState,
    /// Since when a path is ready, or none is.
    path_since: Instant,
    endpoint: Option<SocketAddr>,
    /// What we gave it last, where that is not the slot.
    given: Option<SocketAddr>,
    /// What we gave it before that: WireGuard goes back there by what was still on its way.
    given_before: Option<SocketAddr>,
    /// When it was given that last, and how long it is not given again once it has roamed to the slot.
    moved: Option<(Instant, Duration)>,
    /// Something has come since the endpoint is what it is.
    heard: bool,
    /// Since when something that wants an answer has none.
    unanswered: Option<Instant>,
    /// Theirs stands where ours stood, since then.
    displaced: Option<Instant>,
    /// The displacement that was counted last.
    counted: Option<Instant>,
    /// Theirs, which we have put back ourselves.
    retried: Option<SocketAddr>,
    /// The peer's addresses from which WireGuard may hear it.
    met_at: Vec<SocketAddr>,
    /// When the path changed last.
    path_changed: Instant,
    /// It came together with something from the peer: WireGuard may have roamed.
    may_have_roamed: bool,
    /// And that was half a handshake: WireGuard has roamed, and nobody else has done it.
    half_heard: bool,
    /// Theirs that carried nothing.
    failed: Option<SocketAddr>,
    /// Theirs as it was configured: what a detach goes back to.
    original: Option<SocketAddr>,
    /// Nobody configured that: WireGuard found it, where there was none.
    original_found: bool,
    /// Theirs as it was last: what is tried again.
    native: Option<SocketAddr>,
    rx_bytes: u64,
    tx_bytes: u64,
    handshake: Option<Duration>,
    /// When that was, by our clock.
    handshaken: Option<Instant>,
    /// The handshake that it came with was another key's: the next is not to cross the peer's.
    is_orphan: bool,
    looked: Instant,
    /// The look at which something was seen last that was sent and wants an answer.
    sending: Option<Instant>,
    resets: u64,
    reset_at: VecDeque<Instant>,
}

impl Peer {
    pub(super) fn new(
        slot: SocketAddr,
        remembered: Option<SocketAddr>,
        given: Option<SocketAddr>,
        sighting: &Sighting,
        is_orphan: bool,
        now: Instant,
    ) -> Self {
        let given = given.filter(|given| sighting.endpoint == Some(*given));
        let ours = |endpoint: &SocketAddr| *endpoint == slot || Some(*endpoint) == given;
        let theirs = sighting.endpoint.filter(|endpoint| !ours(endpoint));
        // Where the peer has no endpoint at all, that is what its owner wants now.
        let original = match sighting.endpoint {
            None => None,
            Some(_) => theirs.or(remembered),
        };
        let age = sighting.handshake_age.filter(|_| !is_orphan);
        let in_session = age.is_some_and(|age| age < SESSION);
        // A handshake was sent before we came, and none has ever been answered.
        let asked = sighting.handshake.is_none() && sighting.tx_bytes > 0;
        Self {
            slot,
            path: PathState::default(),
            path_since: now,
            endpoint: sighting.endpoint,
            given,
            given_before: None,
            moved: None,
            heard: in_session,
            unanswered: asked.then_some(now),
            displaced: None,
            counted: None,
            retried: None,
            met_at: Vec::new(),
            path_changed: now,
            may_have_roamed: false,
            half_heard: false,
            failed: None,
            original,
            original_found: false,
            native: original,
            rx_bytes: sighting.rx_bytes,
            tx_bytes: sighting.tx_bytes,
            handshake: sighting.handshake,
            handshaken: age.and_then(|age| now.checked_sub(age)),
            is_orphan,
            looked: now,
            sending: None,
            resets: 0,
            reset_at: VecDeque::new(),
        }
    }

    pub(super) fn original(&self) -> Option<SocketAddr> {
        self.original
    }

    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    pub(super) fn given(&self) -> Option<SocketAddr> {
        self.given
    }

    pub(super) fn resets(&self) -> u64 {
        self.resets
    }

    /// When it is to be looked at: when it is known what to do with theirs, which stands where ours stood, and soon where
    /// WireGuard sends by a path from its own port.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let ready = self.path.ready?;
        let native = ready != self.slot && self.endpoint == Some(ready);
        let sending = self.sending.is_some_and(|at| self.looked < at + LOOK_EVERY);
        let sending = (native && sending).then(|| self.looked + LOOK_SENDING);
        let trial_ends = self.displaced.map(|at| at + RESET_TRIAL);
        [trial_ends, sending].into_iter().flatten().min()
    }

    pub(super) fn standing(&self) -> Standing {
        match self.endpoint {
            None => Standing::Unset,
            Some(endpoint) if self.is_ours(endpoint) => Standing::Ours,
            Some(endpoint) => Standing::Theirs {
                endpoint,
                works: self.heard && self.unanswered_for(self.looked) < NATIVE_DEAD,
                idle: self.unanswered.is_none(),
            },
        }
    }

    pub(super) fn set_met_at(&mut self, addresses: &[SocketAddr]) {
        if self.met_at != addresses {
            self.met_at = addresses.to_vec();
        }
    }

    /// Whether anything has changed.
    pub(super) fn set_path(&mut self, path: PathState, now: Instant) -> bool {
        if path == self.path {
            return false;
        }
        if path.ready.is_some() != self.path.ready.is_some() {
            self.path_since = now;
        }
        if path.ready != self.path.ready {
            self.moved = None;
            self.path_changed = now;
        }
        // What the path had itself is ours to change when the path does.
        let led = self.endpoint.filter(|e| *e != self.slot);
        if let Some(endpoint) = led.filter(|e| self.path.ready == Some(*e)) {
            self.note_given(endpoint);
        }
        self.path = path;
        self.adopt();
        true
    }

    /// Takes in what the interface says. True when theirs turns out to work where ours stood.
    pub(super) fn observe(&mut self, sighting: &Sighting, now: Instant) -> bool {
        // Counters that go back are those of a peer that was put there anew, without a session.
        let anew = sighting.rx_bytes < self.rx_bytes || sighting.tx_bytes < self.tx_bytes;
        let handshaken = sighting.handshake.is_some() && sighting.handshake != self.handshake;
        if handshaken {
            self.handshaken = Some(now);
        }
        // Without a session what comes are handshakes: they show that the peer reaches us, not that we
        // reach it.
        let in_session = !anew && self.handshaken.is_some_and(|at| now < at + SESSION);
        let heard = in_session && (sighting.rx_bytes > self.rx_bytes || handshaken);
        if anew && !handshaken {
            self.handshaken = None;
        }
        let sent = sighting.tx_bytes.saturating_sub(self.tx_bytes);
        // Handshakes too: WireGuard roams by them.
        let came = if anew {
            sighting.rx_bytes > 0
        } else {
            sighting.rx_bytes > self.rx_bytes
        };
        let asked = if anew {
            sighting.tx_bytes > 0
        } else {
            sent > 0 && sent != KEEPALIVE
        };
        // What it was given is theirs again once it has left it for good.
        if sighting.endpoint == Some(self.slot) && self.path.ready != self.given {
            self.given = None;
            self.given_before = None;
        }
        let before = std::mem::replace(&mut self.endpoint, sighting.endpoint);
        self.adopt();
        let asked_since = self.looked;
        self.rx_bytes = sighting.rx_bytes;
        self.tx_bytes = sighting.tx_bytes;
        self.handshake = sighting.handshake;
        self.looked = now;
        if asked {
            self.sending = Some(now);
        }
        if anew || before != sighting.endpoint {
            self.heard = false;
            self.unanswered = asked.then_some(asked_since);
            self.half_heard = came && !in_session;
            let was_ours = before.is_some_and(|endpoint| self.is_ours(endpoint));
            self.note_change(sighting.endpoint, was_ours, came, now);
            return false;
        }
        if heard {
            let first = !std::mem::replace(&mut self.heard, true);
            self.unanswered = None;
            let displaced = self.displaced.take().is_some();
            let theirs = !sighting.endpoint.is_some_and(|e| self.is_ours(e));
            if theirs {
                self.failed = None;
            }
            return first && displaced && theirs;
        }
        if asked {
            self.unanswered.get_or_insert(asked_since);
        }
        false
    }

    /// Where a path leads is ours also where WireGuard has found it by itself: when the path is gone, as a relay's
    /// address soon is, nobody is to wait for it, nor to go back there. What the owner configured stays theirs.
    fn adopt(&mut self) {
        let led = self.path.ready.filter(|ready| *ready != self.slot);
        let Some(endpoint) = led.filter(|ready| self.endpoint == Some(*ready)) else {
            return;
        };
        self.displaced = None;
        if self.original_found && self.original == Some(endpoint) {
            self.original = None;
            self.original_found = false;
        }
        if self.original != Some(endpoint) {
            self.note_given(endpoint);
            if self.native == Some(endpoint) {
                self.native = self.original;
            }
        }
    }

    /// Where the endpoint should point instead, if it should.
    pub(super) fn decide(&mut self, now: Instant) -> Option<(SocketAddr, Cause)> {
        let mut ours = self.path.ready.unwrap_or(self.slot);
        // The first handshake goes by the slot, where one of two that cross can be dropped. WireGuard then
        // roams by itself, or the next look finds the session. Two that have crossed all the same are both
        // repeated after 5 s, and would cross again.
        let handshaken = self.handshaken.is_some_and(|at| now < at + SESSION);
        let may_cross = self.is_orphan || self.unanswered_for(now) >= RESET_TRIAL;
        if !handshaken && (self.endpoint != Some(ours) || may_cross) {
            ours = self.slot;
        }
        let Some(endpoint) = self.endpoint else {
            // Without a path as well: what WireGuard sends to the slot shows that one is needed.
            let wanted = self.path.advert || self.path.ready.is_some();
            return wanted.then(|| self.give(ours, Cause::Unset, now));
        };
        if self.is_ours(endpoint) {
            if self.path.ready.is_some() && endpoint != ours {
                return self
                    .may_move(ours, now)
                    .then(|| self.give(ours, Cause::Moved, now));
            }
            return self.retry(now);
        }
        self.path.ready?;
        if !self.is_dead(endpoint, now) {
            return None;
        }
        self.failed = Some(endpoint);
        Some(self.give(ours, Cause::Failed, now))
    }

    fn is_ours(&self, endpoint: SocketAddr) -> bool {
        let before = self.given_before.filter(|e| self.original != Some(*e));
        endpoint == self.slot || [self.given, before, self.path.ready].contains(&Some(endpoint))
    }

    fn note_given(&mut self, endpoint: SocketAddr) {
        if self.given != Some(endpoint) {
            self.given_before = self.given.replace(endpoint);
        }
    }

    /// Whether it may be given `ours` now, which is another of ours than it has. A peer that still sends
    /// through the proxy makes our WireGuard roam to the slot, where its packets come from: nothing is
    /// lost there, so what is undone at once is done again ever more seldom.
    fn may_move(&mut self, ours: SocketAddr, now: Instant) -> bool {
        let again = ours != self.slot && self.given == Some(ours);
        let Some((at, wait)) = self.moved.filter(|_| again) else {
            self.moved = Some((now, MOVE_AGAIN));
            return true;
        };
        let since = now.saturating_duration_since(at);
        if since < wait {
            return false;
        }
        let wait = if since < MOVE_CALM {
            (wait * 2).min(MOVE_AGAIN_MAX)
        } else {
            MOVE_AGAIN
        };
        self.moved = Some((now, wait));
        true
    }

    fn unanswered_for(&self, now: Instant) -> Duration {
        let since = self.unanswered.map(|at| now.saturating_duration_since(at));
        since.unwrap_or_default()
    }

    fn note_change(
        &mut self,
        endpoint: Option<SocketAddr>,
        was_ours: bool,
        came: bool,
        now: Instant,
    ) {
        match endpoint {
            Some(endpoint) if self.is_ours(endpoint) => {
                self.displaced = None;
                self.retried = None;
                self.may_have_roamed = false;
            }
            Some(endpoint) if self.retried == Some(endpoint) => {}
            Some(endpoint) => {
                self.may_have_roamed = came;
                if was_ours {
                    self.displaced = Some(now);
                }
                // What WireGuard finds by itself is not what somebody wants it to be.
                if !came || self.original.is_none() {
                    self.original = Some(endpoint);
                    self.original_found = came;
                }
                self.native = Some(endpoint);
            }
            None => {
                if was_ours {
                    self.displaced = Some(now);
                }
                self.original = None;
                self.native = None;
            }
        }
    }

    /// Whether theirs, with a path ready beside it, carries nothing.
    fn is_dead(&self, endpoint: SocketAddr, now: Instant) -> bool {
        let unanswered = self.unanswered.map(|_| self.unanswered_for(now));
        if self.heard {
            return unanswered.is_some_and(|time| time >= NATIVE_DEAD);
        }
        let Some(since) = self.displaced else {
            return unanswered.is_some_and(|time| time >= NATIVE_TRIAL);
        };
        // What failed before is not tried again for a program that sets it. WireGuard that has heard from
        // there, if only half a handshake, has until the next look.
        let tried = !self.may_have_roamed || now.saturating_duration_since(since) >= RESET_TRIAL;
        if self.failed == Some(endpoint) {
            return tried;
        }
        tried && unanswered.is_some_and(|time| time >= RESET_TRIAL)
    }

    /// Without a path for long, theirs is tried again.
    fn retry(&mut self, now: Instant) -> Option<(SocketAddr, Cause)> {
        let native = self.native?;
        let patience = if self.path.advert {
            NATIVE_RETRY
        } else {
            NATIVE_RETRY_UNKNOWN
        };
        let waited = now.saturating_duration_since(self.path_since);
        if self.path.ready.is_some() || waited < patience {
            return None;
        }
        self.failed = None;
        // It is theirs from now on, whatever a path has led to before.
        self.given = self.given.filter(|given| *given != native);
        self.given_before = self.given_before.filter(|given| *given != native);
        if self.endpoint == Some(native) {
            return None;
        }
        self.retried = Some(native);
        Some((native, Cause::Retry))
    }

    fn give(&mut self, endpoint: SocketAddr, cause: Cause, now: Instant) -> (SocketAddr, Cause) {
        if endpoint != self.slot {
            self.note_given(endpoint);
        }
        // Once for each displacement, however often it has to be tried.
        let roamed = self.half_heard || self.has_roamed_beside(now);
        let uncounted = |at: &Instant| self.counted != Some(*at) && !roamed;
        let Some(displaced) = self.displaced.filter(uncounted) else {
            return (endpoint, cause);
        };
        self.counted = Some(displaced);
        self.resets += 1;
        if self.reset_at.len() == REMEMBERED_RESETS {
            self.reset_at.pop_front();
        }
        self.reset_at.push_back(now);
        let reset = Cause::Reset {
            times: self.resets,
            every: self.regular(),
        };
        (endpoint, reset)
    }

    /// WireGuard has heard the peer's host from another port than the path's, or just when paths change from where it has been
    /// met: its wice, by the way of before or the next. Nobody has set that.
    fn has_roamed_beside(&self, now: Instant) -> bool {
        let led = self.path.ready.filter(|ready| *ready != self.slot);
        let Some(at) = self.endpoint.filter(|_| self.may_have_roamed) else {
            return false;
        };
        let changing = now.saturating_duration_since(self.path_changed) < CHANGING;
        led.is_some_and(|led| at.ip() == led.ip()) || changing && self.met_at.contains(&at)
    }

    /// The distance of the last resets, if three of them are about equal.
    fn regular(&self) -> Option<Duration> {
        if self.reset_at.len() < REMEMBERED_RESETS {
            return None;
        }
        let times = self.reset_at.iter();
        let distances: Vec<Duration> = times
            .clone()
            .zip(self.reset_at.iter().skip(1))
            .map(|(before, after)| after.saturating_duration_since(*before))
            .collect();
        let (least, most) = (distances.iter().min()?, distances.iter().max()?);
        let count = u32::try_from(distances.len()).ok()?;
        (*most - *least <= REGULAR).then(|| distances.iter().sum::<Duration>() / count)
    }
}
