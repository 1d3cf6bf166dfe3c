//! The agents' owner, as simple as one can be, and what is looked at from outside.

use super::net::{Net, at};
use crate::core::ice::*;
use crate::core::timing::MAX_PAIRS;

impl Net {
    /// Nominates the best valid pair, uses what is nominated, keeps the rest alive.
    pub(super) fn own(&mut self, i: usize) {
        let now = self.now;
        let agent = &mut self.agents[i];
        let best = agent.pairs().filter(|pair| pair.is_valid());
        let best = best
            .max_by_key(|p| (p.relays() == 0, p.priority()))
            .map(Pair::key);
        if agent.role() == Role::Controlling && best.is_some() && agent.nominated() != best {
            if let Some(key) = best.filter(|_| self.asked[i] != best) {
                agent.nominate(key);
                self.asked[i] = best;
            }
        } else {
            self.asked[i] = None;
        }
        let nominated = agent.nominated();
        if nominated != self.used[i] {
            if let Some(old) = self.used[i] {
                agent.set_use(old, Use::Standby, now);
            }
            if let Some(new) = nominated {
                agent.set_use(new, Use::Selected, now);
            }
            self.used[i] = nominated;
        }
        let spare: Vec<PairKey> = agent
            .pairs()
            .filter(|pair| pair.is_valid() && pair.used() == Use::None)
            .map(Pair::key)
            .collect();
        for key in spare {
            agent.set_use(key, Use::Standby, now);
        }
    }

    /// What holds at all times.
    pub(super) fn assert_sound(&self, i: usize) {
        let agent = &self.agents[i];
        assert!(agent.pairs().count() <= MAX_PAIRS);
        let rechecked = agent.rechecked();
        for pair in agent.pairs() {
            let owed = pair.open.iter().any(|t| t.has_to_succeed());
            let timed = match pair.state() {
                PairState::Waiting => true,
                PairState::InProgress => owed || agent.triggered.contains(&pair.key()),
                PairState::Succeeded => {
                    pair.next_check.is_some() || pair.consent_end(agent.has_traffic).is_some()
                }
                PairState::Failed(_) => {
                    pair.next_check.is_some() || !rechecked.contains(&pair.key())
                }
            };
            assert!(timed, "no state without a timer: {pair:?}");
        }
    }

    /// Both sides' nominated pair, if it is the same: each sees the other where the other is seen.
    pub(super) fn agreed(&self) -> Option<[PairKey; 2]> {
        let keys = [self.agents[0].nominated()?, self.agents[1].nominated()?];
        let a = self.agents[0].pair(keys[0])?;
        let b = self.agents[1].pair(keys[1])?;
        let same = a.mapped() == Some(keys[1].remote) && b.mapped() == Some(keys[0].remote);
        same.then_some(keys)
    }

    /// The only pair of an agent.
    pub(super) fn only(&self, agent: usize) -> &Pair {
        let mut pairs = self.agents[agent].pairs();
        let only = pairs.next().unwrap();
        assert!(pairs.next().is_none(), "more than one pair");
        only
    }

    pub(super) fn find(&self, agent: usize, remote: &str) -> Option<&Pair> {
        let remote = at(remote);
        let mut pairs = self.agents[agent].pairs();
        pairs.find(|pair| pair.key().remote == remote)
    }

    pub(super) fn has(&self, agent: usize, event: AgentEvent) -> bool {
        self.events.contains(&(agent, event))
    }
}
