//! How long payloads have waited in the queues of a thread's sockets, and which are let go because the queues stand: a thread
//! that is offered more than it carries drops what it must drop anyway, so let it be the oldest. CoDel (RFC 8289) in its plainest form.

use std::time::{Duration, Instant};

/// A payload that has waited for so long is late: what has not is on its way within 5 ms (RFC 8289 §4.4, TARGET).
const LATE: Duration = Duration::from_millis(4);
/// Queues stand when every turn for so long has met with late payloads: longer than a busy machine keeps a thread waiting
/// (RFC 8289 §4.3, INTERVAL). They stand no more when none has been late for as long, or when nothing has come for [`LATE`].
const INTERVAL: Duration = Duration::from_millis(100);
/// A wait for events that took so long found all queues empty: to be told of what is there takes a tenth of it.
const IDLE: Duration = Duration::from_micros(50);

/// Of one thread.
#[derive(Debug, Default)]
pub(super) struct StandingQueues {
    /// Something in this turn was late.
    late: bool,
    /// Since when every turn has met with something late.
    late_since: Option<Instant>,
    last_late: Option<Instant>,
    standing: bool,
    /// Payloads let go.
    pub(super) dropped: u64,
}

impl StandingQueues {
    /// Whether a run of `packets` payloads that has waited for `age` is let go; an unknown age is none.
    pub(super) fn lets_go(&mut self, age: Option<Duration>, packets: usize) -> bool {
        if age.is_none_or(|age| age < LATE) {
            return false;
        }
        self.late = true;
        if self.standing {
            self.dropped += packets as u64;
        }
        self.standing
    }

    /// So many payloads were let go unread.
    pub(super) fn let_go(&mut self, packets: u64) {
        self.dropped += packets;
    }

    /// A turn begins after a wait of so long for something to do. Who has to wait keeps up, however late it was: on a busy machine
    /// a thread has its turns late, and payloads would be let go for nothing.
    pub(super) fn begin_turn(&mut self, waited: Duration) {
        if waited >= IDLE {
            self.late_since = None;
        }
        self.standing &= waited < LATE;
    }

    /// All sockets have had their turn.
    pub(super) fn end_turn(&mut self, now: Instant) {
        if std::mem::take(&mut self.late) {
            self.last_late = Some(now);
            let since = *self.late_since.get_or_insert(now);
            self.standing |= now.saturating_duration_since(since) >= INTERVAL;
        } else {
            self.late_since = None;
            let over = |last: Instant| now.saturating_duration_since(last) >= INTERVAL;
            self.standing &= !self.last_late.is_some_and(over);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Turns a millisecond apart with a payload of this age each; how many were let go.
    fn turns(queues: &mut StandingQueues, now: &mut Instant, count: usize, age: Duration) -> usize {
        let let_go = (0..count).filter(|_| {
            *now += MS;
            let let_go = queues.lets_go(Some(age), 1);
            queues.end_turn(*now);
            let_go
        });
        let_go.count()
    }

    #[test]
    fn late_payloads_are_let_go_once_queues_stand_and_until_they_do_not() {
        let (mut queues, mut now) = (StandingQueues::default(), Instant::now());
        assert_eq!(turns(&mut queues, &mut now, 1000, 3 * MS), 0);
        // The first hundred milliseconds may be a hiccup.
        assert_eq!(turns(&mut queues, &mut now, 300, 6 * MS), 300 - 101);
        assert_eq!(turns(&mut queues, &mut now, 50, 3 * MS), 0, "in time");
        assert_eq!(turns(&mut queues, &mut now, 10, 6 * MS), 10, "they stand");
        assert_eq!(turns(&mut queues, &mut now, 101, 3 * MS), 0);
        assert_eq!(turns(&mut queues, &mut now, 100, 6 * MS), 0, "anew");
        assert_eq!(queues.dropped, 300 - 101 + 10);
    }

    #[test]
    fn who_waits_for_something_to_do_keeps_up() {
        let (mut queues, mut now) = (StandingQueues::default(), Instant::now());
        for _ in 0..20 {
            assert_eq!(turns(&mut queues, &mut now, 90, 50 * MS), 0);
            queues.begin_turn(IDLE);
        }
        assert_eq!(turns(&mut queues, &mut now, 102, 50 * MS), 1);
        // What overloads may pause.
        queues.begin_turn(MS);
        assert_eq!(turns(&mut queues, &mut now, 1, 50 * MS), 1);
        queues.begin_turn(LATE);
        assert_eq!(turns(&mut queues, &mut now, 100, 50 * MS), 0);
    }

    #[test]
    fn hiccups_cost_nothing() {
        let (mut queues, mut now) = (StandingQueues::default(), Instant::now());
        for _ in 0..20 {
            assert_eq!(turns(&mut queues, &mut now, 90, 50 * MS), 0);
            assert_eq!(turns(&mut queues, &mut now, 1, MS), 0);
        }
        assert!(!queues.lets_go(None, 1));
    }
}
