//! When our annotation is written: when it should say something else, and when somebody has removed or altered it. Writes keep a
//! distance that grows while they go on, so that neither a node that roams all day nor two writers that undo each other load the
//! API; what is replaced before it was written is never written.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

/// Before a first write: changes come in bursts.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// The distance of writes doubles from the first to the last. etcd rewrites the whole Node, 20 to 30 KB, and every watcher of
/// Nodes hears of it: at the last one a node writes less than its kubelet's and its mesh agent's heartbeats do.
const FIRST_DISTANCE: Duration = Duration::from_secs(1);
const LAST_DISTANCE: Duration = Duration::from_secs(60);

/// Without writes for so long the distance is the first again: past the last distance, or it would never grow.
const CALM: Duration = Duration::from_secs(120);

/// After a refusal: a wait that doubles from the first to the last, and up to half of it as jitter.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Refused for good (no permission, no such Node): someone must act first, and then waits for this and its jitter.
const REFUSED_RETRY: Duration = Duration::from_secs(60);

/// What we have written shows up in the watch after a moment; until then an older value is no alteration. The watch cache is
/// rarely seconds behind, and a lost advert is not urgent: who knows us keeps the last.
const ECHO_GRACE: Duration = Duration::from_secs(5);

/// An advert of ours that is found at the first sight is read back first: one that goes on above it is on its way then (the core
/// publishes within 200 ms), and what was wanted before would be refused by everybody as older.
const READ_BACK: Duration = Duration::from_secs(1);

/// Doublings after which every bound is reached.
const MAX_DOUBLINGS: u32 = 6;

/// How a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A later try may do.
    ForNow,
    /// Somebody must mend something first.
    UntilMended,
}

/// The writer of one annotation. What it counts with is jitter of `seed`.
#[derive(Debug)]
pub struct Publisher {
    rng: ChaCha8Rng,
    wanted: Option<String>,
    /// What the watch shows; unknown before it has shown anything.
    seen: Option<Option<String>>,
    /// The value on its way to the API.
    writing: Option<String>,
    written: Option<(Instant, String)>,
    due: Option<Instant>,
    /// Writes without a calm between them.
    streak: u32,
    failures: u32,
    altered: u64,
}

impl Publisher {
    /// With nothing to write. `seed` is 32 random bytes.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            rng: ChaCha8Rng::from_seed(seed),
            wanted: None,
            seen: None,
            writing: None,
            written: None,
            due: None,
            streak: 0,
            failures: 0,
            altered: 0,
        }
    }

    /// What the annotation should say from now on.
    pub fn handle_wanted(&mut self, value: String, now: Instant) {
        if self.wanted.as_ref() != Some(&value) {
            self.wanted = Some(value);
            self.plan(now);
        }
    }

    /// What the own Node's annotation says. To be told at every sight of the own Node.
    pub fn handle_seen(&mut self, value: Option<&str>, now: Instant) {
        let first = self.seen.is_none() && self.written.is_none();
        self.seen = Some(value.map(str::to_owned));
        if first && value.is_some() && self.is_wrong() {
            self.due = Some(now + self.jittered(READ_BACK));
        }
        self.plan(now);
    }

    /// The write of [`Publisher::poll_write`] is done.
    pub fn handle_written(&mut self, now: Instant) {
        self.failures = 0;
        if let Some(value) = self.writing.take() {
            self.seen = Some(Some(value.clone()));
            self.written = Some((now, value));
        }
        self.plan(now);
    }

    /// It has failed.
    pub fn handle_refused(&mut self, refusal: Refusal, now: Instant) {
        self.writing = None;
        let wait = match refusal {
            Refusal::ForNow => doubled(FIRST_RETRY, self.failures, LAST_RETRY),
            Refusal::UntilMended => REFUSED_RETRY,
        };
        self.failures = self.failures.saturating_add(1);
        self.due = Some(now + self.jittered(wait));
    }

    /// The API is reached again, or its answers may be others: what waits for a retry need not.
    pub fn handle_connected(&mut self, now: Instant) {
        if self.failures > 0 && self.writing.is_none() {
            self.failures = 0;
            self.due = None;
            self.plan(now);
        }
    }

    /// When to come back.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// The value to write now, if any; one write at a time, answered by [`Publisher::handle_written`] or
    /// [`Publisher::handle_refused`].
    pub fn poll_write(&mut self, now: Instant) -> Option<&str> {
        if self.writing.is_some() || self.due.is_none_or(|due| now < due) {
            return None;
        }
        self.due = None;
        if !self.is_wrong() {
            return None;
        }
        let value = self.wanted.clone()?;
        if self
            .written
            .as_ref()
            .is_some_and(|(_, last)| *last == value)
        {
            self.altered += 1;
        }
        self.streak = match &self.written {
            Some((at, _)) if now < *at + CALM => self.streak.saturating_add(1),
            Some(_) | None => 0,
        };
        self.writing = Some(value);
        self.writing.as_deref()
    }

    /// How often our annotation was found removed or altered by somebody else.
    #[must_use]
    pub fn altered(&self) -> u64 {
        self.altered
    }

    /// Whether the annotation says something else than it should, as far as is known. Nothing is known before the watch has shown
    /// the Node: then it is written, which costs nothing where it is the same.
    fn is_wrong(&self) -> bool {
        let Some(wanted) = &self.wanted else {
            return false;
        };
        !matches!(&self.seen, Some(Some(seen)) if seen == wanted)
    }

    fn plan(&mut self, now: Instant) {
        if self.writing.is_some() || self.failures > 0 {
            return; // planned when it is answered, and by the retry
        }
        if !self.is_wrong() {
            self.due = None;
            return;
        }
        if self.due.is_some() {
            return;
        }
        let mut due = now + self.jittered(DEBOUNCE);
        if let Some((at, last)) = &self.written {
            let at = *at;
            if self.wanted.as_ref() == Some(last) {
                due = due.max(at + ECHO_GRACE);
            }
            if now < at + CALM {
                let distance = doubled(FIRST_DISTANCE, self.streak, LAST_DISTANCE);
                due = due.max(at + self.jittered(distance));
            }
        }
        self.due = Some(due);
    }

    /// Between the whole and one and a half.
    fn jittered(&mut self, wait: Duration) -> Duration {
        wait + wait.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX) / 2.0)
    }
}

fn doubled(first: Duration, times: u32, last: Duration) -> Duration {
    (first * 2u32.pow(times.min(MAX_DOUBLINGS))).min(last)
}

#[cfg(test)]
#[path = "publisher_tests.rs"]
mod tests;
