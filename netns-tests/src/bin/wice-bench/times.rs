//! Times of repeated runs, and what is said of them.

use std::time::Duration;

use wice_netns_tests::seconds;

/// Times of runs; a run that came to nothing took longer than any other.
#[derive(Debug, Default)]
pub(crate) struct Times {
    sorted: Vec<Duration>,
    failed: usize,
}

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        let at = self.sorted.partition_point(|other| *other <= time);
        self.sorted.insert(at, time);
    }

    pub(crate) fn fail(&mut self) {
        self.failed += 1;
    }

    /// The time that so many in a hundred runs kept (nearest rank); `None` if one of them failed.
    pub(crate) fn percentile(&self, percent: usize) -> Option<Duration> {
        let runs = self.sorted.len() + self.failed;
        let rank = (runs * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied()
    }

    /// Whether so many in a hundred runs kept a time.
    pub(crate) fn keep(&self, percent: usize, most: Duration) -> bool {
        self.percentile(percent).is_some_and(|time| time <= most)
    }

    /// Minimum, median, 95th percentile and maximum, as cells of a table.
    pub(crate) fn cells(&self) -> String {
        [0, 50, 95, 100]
            .map(|percent| said(self.percentile(percent)))
            .join(" | ")
    }

    /// The median in words.
    pub(crate) fn median(&self) -> String {
        said(self.percentile(50))
    }
}

fn said(time: Option<Duration>) -> String {
    time.map_or_else(|| "failed".into(), seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn twenty_runs_keep_their_19th_time_in_95_of_a_hundred() {
        let mut times = Times::default();
        for n in (1..=20).rev() {
            times.add(n * SECOND);
        }
        let [min, median, p95, max] = [0, 50, 95, 100].map(|percent| times.percentile(percent));
        assert_eq!(min, Some(SECOND));
        assert_eq!(median, Some(10 * SECOND));
        assert_eq!(p95, Some(19 * SECOND));
        assert_eq!(max, Some(20 * SECOND));
    }

    #[test]
    fn a_failed_run_is_the_slowest() {
        let mut times = Times::default();
        times.fail();
        times.add(SECOND);
        assert!(times.keep(50, SECOND));
        assert!(!times.keep(95, 100 * SECOND));
        assert!(times.cells().ends_with("failed | failed"));
    }
}
