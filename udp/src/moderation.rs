//! Interrupt moderation for packet loops: where lone packets come so fast that each wakes the loop anew, a nap lets some gather.
//! Being woken costs several times what a packet does in a batch, and batches leave as one (UDP_SEGMENT).

use std::time::{Duration, Instant};

/// What it may add to a packet's time: far below the round trip of any link, and only while packets come at the rate below.
const NAP: Duration = Duration::from_micros(50);
/// Between packets, for them to be worth a nap: four of them gather in one.
const CLOSE: Duration = Duration::from_nanos(12_500);
/// A turn that brought more has gathered by itself, and may be behind: half of what one turn takes of one socket at most.
const MANY: u32 = 32;
/// Such wake-ups in a row before the first nap: neither a handshake nor a burst of a request and its answers.
const STREAK: u8 = 32;
/// How late the kernel may end a nap (PR_SET_TIMERSLACK); by default as long as the nap itself.
const SLACK_NANOSECONDS: libc::c_ulong = 1_000;

/// Decides after each turn of a loop whether to nap before the next.
#[derive(Debug)]
pub struct Moderation {
    last: Instant,
    seen: u64,
    streak: u8,
}

impl Moderation {
    /// For the thread that calls it, whose timers become as exact as naps need.
    pub fn new(now: Instant) -> Self {
        // SAFETY: no pointers. Where it fails naps are longer, nothing else.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK_NANOSECONDS, 0, 0, 0) };
        Self {
            last: now,
            seen: 0,
            streak: 0,
        }
    }

    /// After a turn that began at `now`; `received` counts all datagrams since the start. How long to sleep, if at all.
    pub fn after_turn(&mut self, now: Instant, received: u64) -> Option<Duration> {
        let gap = now.saturating_duration_since(self.last);
        let datagrams = u32::try_from(received - self.seen).unwrap_or(u32::MAX);
        (self.last, self.seen) = (now, received);
        let is_stream = (1..=MANY).contains(&datagrams) && gap < CLOSE * datagrams;
        if !is_stream {
            self.streak = 0;
            return None;
        }
        self.streak = self.streak.saturating_add(1).min(STREAK);
        (self.streak == STREAK).then_some(NAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns with `datagrams` each, `gap` apart and as much later as they napped; how many naps there were.
    fn naps(turns: u32, datagrams: u64, gap: Duration) -> u32 {
        let mut now = Instant::now();
        let (mut moderation, mut received, mut naps) = (Moderation::new(now), 0, 0);
        let mut napped = Duration::ZERO;
        for _ in 0..turns {
            // What comes while it sleeps is there when it wakes.
            let waited = if napped.is_zero() { gap } else { napped };
            received += (datagrams * waited.as_nanos() as u64 / gap.as_nanos() as u64).max(1);
            now += waited;
            napped = moderation.after_turn(now, received).unwrap_or_default();
            naps += u32::from(!napped.is_zero());
        }
        naps
    }

    #[test]
    fn lone_packets_in_close_order_gather() {
        assert_eq!(naps(100, 1, Duration::from_micros(4)), 100 - 31);
        assert_eq!(naps(100, 2, Duration::from_micros(20)), 100 - 31);
    }

    #[test]
    fn what_is_rare_or_comes_in_batches_is_never_held() {
        assert_eq!(
            naps(1000, 1, Duration::from_micros(13)),
            0,
            "77,000 a second"
        );
        assert_eq!(naps(1000, 1, Duration::from_millis(1)), 0);
        assert_eq!(naps(1000, 33, Duration::from_micros(100)), 0);
        assert_eq!(naps(31, 1, Duration::from_micros(4)), 0, "a burst");
    }

    #[test]
    fn a_pause_begins_anew() {
        let mut now = Instant::now();
        let mut moderation = Moderation::new(now);
        let mut received = 0;
        for turn in 0..200 {
            now += Duration::from_micros(if turn % 20 == 0 { 500 } else { 4 });
            received += 1;
            assert_eq!(moderation.after_turn(now, received), None, "turn {turn}");
        }
    }
}
