//! Whether a router has lost its mappings, told by the seconds that it counts since it last did
//! (RFC 6887 §8.5; RFC 6886 §3.6 has the weaker half of it).

use std::time::Instant;

/// Clocks may differ by one part of this …
const DRIFT: u64 = 16;
/// … and this many seconds, for rounding and delay.
const SLACK: u64 = 2;

/// The last epoch that was heard, and when.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    last: Option<(u32, Instant)>,
}

impl Epoch {
    /// Takes what a response says. False if the router has lost its state since the last one.
    pub(super) fn note(&mut self, epoch: u32, now: Instant) -> bool {
        let Some((before, at)) = self.last.replace((epoch, now)) else {
            return true;
        };
        if epoch < before.saturating_sub(1) {
            return false;
        }
        let server = u64::from(epoch.saturating_sub(before));
        let client = now.saturating_duration_since(at).as_secs();
        client + SLACK >= server - server / DRIFT && server + SLACK >= client - client / DRIFT
    }

    /// Forgets it: another server, or another protocol of it.
    pub(super) fn clear(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_restart_shows_and_drift_does_not() {
        let start = Instant::now();
        let after = |first: u32, seconds: u64, second: u32| {
            let mut epoch = Epoch::default();
            assert!(epoch.note(first, start));
            epoch.note(second, start + Duration::from_secs(seconds))
        };
        assert!(after(1000, 60, 1060));
        assert!(after(1000, 3600, 1000 + 3400), "a slow clock");
        assert!(after(1000, 3600, 1000 + 3800), "a fast one");
        assert!(after(1000, 0, 999), "rounding");
        assert!(!after(1000, 60, 5), "restarted");
        assert!(!after(0, 60, 5), "restarted although it counts upwards");
        assert!(!after(1000, 60, 1000), "stands still");
        assert!(!after(1000, 60, 9000), "jumped");
        assert!(after(u32::MAX, 1, u32::MAX), "never overflows");
    }
}
