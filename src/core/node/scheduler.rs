//! Who may send when: one timer heap and one token bucket for all agents of the node.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::PeerId;
use crate::core::timing::TA_NODE;

/// One agent of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AgentRef {
    pub(super) peer: PeerId,
    pub(super) generation: u32,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// An agent's own timeouts and checks.
    Agent(AgentRef),
    /// A peer's path.
    Path(PeerId),
}

/// How badly an agent needs to send; the more urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// Traffic waits and there is no path.
    TrafficWaits,
    /// There is no path.
    NoPath,
    /// There is a path.
    HasPath,
    /// There is no path, and signaling says that the peer is away.
    Away,
}

const NEEDS: usize = 4;

/// Timers and ready queues. An agent stands at most once in each.
#[derive(Debug)]
pub(super) struct Scheduler {
    timers: BTreeSet<(Instant, Timer)>,
    armed: BTreeMap<Timer, Instant>,
    ready: [VecDeque<AgentRef>; NEEDS],
    queued: BTreeSet<AgentRef>,
    next_token: Instant,
}

impl Scheduler {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            timers: BTreeSet::new(),
            armed: BTreeMap::new(),
            ready: Default::default(),
            queued: BTreeSet::new(),
            next_token: now,
        }
    }

    /// Sets a timer, or takes it away.
    pub(super) fn arm(&mut self, timer: Timer, at: Option<Instant>) {
        if let Some(before) = self.armed.remove(&timer) {
            self.timers.remove(&(before, timer));
        }
        if let Some(at) = at {
            self.armed.insert(timer, at);
            self.timers.insert((at, timer));
        }
    }

    /// Sets a timer to go off by then: never later than it was.
    pub(super) fn arm_by(&mut self, timer: Timer, at: Instant) {
        if self.armed.get(&timer).is_none_or(|before| at < *before) {
            self.arm(timer, Some(at));
        }
    }

    /// How many timers are set.
    pub(super) fn timers(&self) -> usize {
        self.timers.len()
    }

    /// The agent has something to send now.
    pub(super) fn enqueue(&mut self, agent: AgentRef, need: Need) {
        if self.queued.insert(agent) {
            self.ready[need as usize].push_back(agent);
        }
    }

    pub(super) fn remove(&mut self, agent: AgentRef) {
        self.arm(Timer::Agent(agent), None);
        if self.queued.remove(&agent) {
            for queue in &mut self.ready {
                queue.retain(|queued| *queued != agent);
            }
        }
    }

    /// A timer that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = *self.timers.first()?;
        if at > now {
            return None;
        }
        self.arm(timer, None);
        Some(timer)
    }

    /// The next agent that may send; round robin within a need.
    pub(super) fn pop_ready(&mut self) -> Option<AgentRef> {
        let agent = self.ready.iter_mut().find_map(VecDeque::pop_front)?;
        self.queued.remove(&agent);
        Some(agent)
    }

    /// Takes the right to send one transaction's packet.
    pub(super) fn take_token(&mut self, now: Instant) -> bool {
        let granted = self.has_token(now);
        if granted {
            self.next_token = now + TA_NODE;
        }
        granted
    }

    pub(super) fn has_token(&self, now: Instant) -> bool {
        self.next_token <= now
    }

    /// When something can be done: a timer, or the next token where somebody waits for it.
    pub(super) fn poll_timeout(&self, others_wait: bool) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let waits = others_wait || !self.queued.is_empty();
        let token = waits.then_some(self.next_token);
        [timer, token].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn agent(peer: u32) -> AgentRef {
        AgentRef {
            peer: PeerId(peer),
            generation: 0,
        }
    }

    #[test]
    fn the_urgent_go_first_and_the_rest_in_turn() {
        let mut scheduler = Scheduler::new(Instant::now());
        scheduler.enqueue(agent(1), Need::HasPath);
        scheduler.enqueue(agent(2), Need::NoPath);
        scheduler.enqueue(agent(3), Need::NoPath);
        scheduler.enqueue(agent(3), Need::TrafficWaits);
        scheduler.enqueue(agent(4), Need::TrafficWaits);
        let order: Vec<u32> = std::iter::from_fn(|| scheduler.pop_ready())
            .map(|agent| agent.peer.0)
            .collect();
        assert_eq!(order, [4, 2, 3, 1]);
    }

    #[test]
    fn one_token_in_five_milliseconds() {
        let start = Instant::now();
        let mut scheduler = Scheduler::new(start);
        let mut sent = 0;
        for millisecond in 0..1000 {
            while scheduler.take_token(start + Duration::from_millis(millisecond)) {
                sent += 1;
            }
        }
        assert_eq!(sent, 200);
    }

    #[test]
    fn rearming_moves_a_timer() {
        let start = Instant::now();
        let mut scheduler = Scheduler::new(start);
        let timer = Timer::Agent(agent(1));
        scheduler.arm(timer, Some(start + Duration::from_secs(1)));
        scheduler.arm(timer, Some(start + Duration::from_secs(3)));
        assert_eq!(scheduler.pop_due(start + Duration::from_secs(2)), None);
        assert_eq!(
            scheduler.pop_due(start + Duration::from_secs(3)),
            Some(timer)
        );
        assert_eq!(scheduler.poll_timeout(false), None);
    }
}
