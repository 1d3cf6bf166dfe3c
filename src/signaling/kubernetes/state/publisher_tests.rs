use super::*;

/// A cluster in virtual time: writes arrive after `LATENCY`, the watch shows them after `ECHO`.
struct World {
    now: Instant,
    start: Instant,
    publisher: Publisher,
    node: Option<String>,
    /// What the API answers.
    refusal: Option<Refusal>,
    /// With their instants since the start.
    writes: Vec<(Duration, String)>,
    echoes: Vec<(Instant, Option<String>)>,
}

const LATENCY: Duration = Duration::from_millis(20);
const ECHO: Duration = Duration::from_millis(150);

impl World {
    fn new(seed: u8) -> Self {
        let now = Instant::now();
        Self {
            now,
            start: now,
            publisher: Publisher::new([seed; 32]),
            node: None,
            refusal: None,
            writes: Vec::new(),
            echoes: Vec::new(),
        }
    }

    fn want(&mut self, value: &str) {
        self.publisher.handle_wanted(value.to_owned(), self.now);
    }

    /// Somebody else changes the annotation.
    fn alter(&mut self, value: Option<&str>) {
        self.node = value.map(str::to_owned);
        self.echoes.push((self.now + ECHO, self.node.clone()));
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let echo = self.echoes.first().map(|(at, _)| *at);
            let next = [self.publisher.poll_timeout(), echo];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if echo.is_some_and(|at| at <= self.now) {
                let (_, value) = self.echoes.remove(0);
                self.publisher.handle_seen(value.as_deref(), self.now);
            }
            let Some(value) = self.publisher.poll_write(self.now).map(str::to_owned) else {
                continue;
            };
            assert!(self.writes.len() < 10_000, "writes without end");
            self.writes.push((self.now - self.start, value.clone()));
            self.now += LATENCY;
            match self.refusal {
                Some(refusal) => self.publisher.handle_refused(refusal, self.now),
                None => {
                    self.alter(Some(&value));
                    self.publisher.handle_written(self.now);
                }
            }
        }
        self.now = self.now.max(end);
    }

    fn values(&self) -> Vec<&str> {
        self.writes
            .iter()
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_burst_of_changes_is_one_write_and_then_none() {
    let mut world = World::new(1);
    for value in ["a", "b", "c"] {
        world.want(value);
        world.run(Duration::from_millis(30));
    }
    world.run(24 * HOUR);
    assert_eq!(world.values(), ["c"]);
    let at = world.writes[0].0;
    assert!(at >= DEBOUNCE && at <= DEBOUNCE * 3 / 2, "{at:?}");
}

#[test]
fn what_stands_there_already_is_not_written() {
    let mut world = World::new(1);
    world.alter(Some("a"));
    world.run(SECOND);
    world.want("a");
    world.run(HOUR);
    assert_eq!(world.values(), [""; 0]);
    assert_eq!(
        world.publisher.poll_timeout(),
        None,
        "nothing to come back for"
    );
}

#[test]
fn an_advert_that_is_found_is_read_back_before_it_is_replaced() {
    let mut world = World::new(1);
    world.want("1");
    world.run(DEBOUNCE / 2);
    world.publisher.handle_seen(Some("41"), world.now);
    world.run(DEBOUNCE * 2);
    assert_eq!(world.values(), [""; 0]);
    world.want("42");
    world.run(HOUR);
    assert_eq!(world.values(), ["42"]);
}

#[test]
fn a_change_that_is_taken_back_in_time_is_not_written() {
    let mut world = World::new(1);
    world.alter(Some("a"));
    world.run(SECOND);
    for value in ["a", "b", "a"] {
        world.want(value);
    }
    world.run(HOUR);
    assert_eq!(world.values(), [""; 0]);
}

#[test]
fn a_node_that_roams_all_day_writes_about_once_a_minute() {
    let mut world = World::new(1);
    for number in 0..3600 {
        world.want(&number.to_string());
        world.run(SECOND);
    }
    // 6 while the distance doubles, then one in 60 to 90 s.
    let writes = world.writes.len();
    assert!((40..=66).contains(&writes), "{writes}");
    let last = world.writes.last().unwrap().1.clone();
    world.want("rest");
    world.run(HOUR);
    assert_eq!(world.values().last(), Some(&"rest"), "after {last}");
    world.run(CALM);
    let before = world.writes.len();
    world.want("calm");
    world.run(DEBOUNCE * 3 / 2);
    assert_eq!(world.writes.len(), before + 1, "at once again after a calm");
}

#[test]
fn a_removed_or_altered_annotation_is_written_again() {
    let mut world = World::new(1);
    world.want("a");
    world.run(CALM * 2);
    for (count, alteration) in [(1, None), (2, Some("by hand"))] {
        world.alter(alteration);
        world.run(ECHO + DEBOUNCE * 2);
        assert_eq!(world.node.as_deref(), Some("a"));
        assert_eq!(world.publisher.altered(), count);
        world.run(CALM * 2);
    }
    assert_eq!(world.values(), ["a"; 3]);
}

#[test]
fn a_late_echo_of_our_own_is_no_alteration() {
    let mut world = World::new(1);
    world.want("a");
    world.run(CALM * 2);
    world.want("b");
    world.run(SECOND);
    // The watch is behind: it shows what stood there before.
    world.publisher.handle_seen(Some("a"), world.now);
    world.run(SECOND);
    world.publisher.handle_seen(Some("b"), world.now);
    world.run(HOUR);
    assert_eq!(world.values(), ["a", "b"]);
    assert_eq!(world.publisher.altered(), 0);
}

#[test]
fn two_writers_that_undo_each_other_settle_at_about_one_write_a_minute() {
    let mut world = World::new(1);
    world.want("ours");
    for _ in 0..3600 {
        world.alter(Some("theirs"));
        world.run(SECOND);
    }
    let writes = world.writes.len();
    assert!((30..=66).contains(&writes), "{writes}");
    assert_eq!(world.publisher.altered() + 1, writes as u64);
}

#[test]
fn an_api_that_is_away_is_asked_ever_more_rarely_and_at_once_when_it_is_back() {
    let mut world = World::new(1);
    world.refusal = Some(Refusal::ForNow);
    world.want("a");
    world.run(HOUR);
    let tries = world.writes.len();
    assert!((40..=70).contains(&tries), "{tries}");
    world.want("b");
    world.run(LAST_RETRY);
    assert!(
        world.writes.len() <= tries + 2,
        "a change is no reason to hurry"
    );
    world.refusal = None;
    world.publisher.handle_connected(world.now);
    world.run(SECOND);
    assert_eq!(world.node.as_deref(), Some("b"));
    world.run(HOUR);
    assert_eq!(world.node.as_deref(), Some("b"));
}

#[test]
fn what_somebody_must_mend_is_tried_rarely() {
    let mut world = World::new(1);
    world.refusal = Some(Refusal::UntilMended);
    world.want("a");
    world.run(HOUR);
    let tries = world.writes.len() as u32;
    assert!(tries > 15 && tries <= 1 + HOUR.as_secs() as u32 / REFUSED_RETRY.as_secs() as u32);
}

#[test]
fn nodes_do_not_write_at_the_same_instant() {
    let first = |seed| {
        let mut world = World::new(seed);
        world.want("a");
        world.run(SECOND);
        world.writes[0].0
    };
    let mut firsts: Vec<Duration> = (0..50).map(first).collect();
    firsts.sort();
    firsts.dedup();
    assert!(firsts.len() > 45, "{} of 50 apart", firsts.len());
    assert!(firsts[firsts.len() - 1] - firsts[0] > DEBOUNCE / 3);
}

#[test]
fn the_times_fit_together() {
    assert!(CALM > LAST_DISTANCE * 3 / 2, "or the distance is forgotten");
    assert!(REFUSED_RETRY >= LAST_RETRY);
    assert!(READ_BACK >= crate::core::timing::PUBLISH_DEBOUNCE * 4);
    assert!(doubled(FIRST_DISTANCE, MAX_DOUBLINGS, LAST_DISTANCE) == LAST_DISTANCE);
    assert!(doubled(FIRST_RETRY, u32::MAX, LAST_RETRY) == LAST_RETRY);
}
