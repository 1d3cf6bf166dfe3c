//! The other side's process starts anew under the session that it had: its credentials are the same,
//! but it counts its nominations from one, and has new allocations. Its tie-breaker, which no wice
//! node changes while it lives, tells.

use std::collections::VecDeque;
use std::time::Instant;

use super::Role;
use super::agent::{Agent, AgentEvent};
use super::pair::{Failure, Pair, PairKey};
use crate::core::stun::RoleClaim;

/// Tie-breakers of the past that are remembered: a captured check of theirs must not nominate.
const MAX_FORMER: usize = 8;

/// What the other side's checks have said of it.
#[derive(Debug, Default)]
pub(super) struct OtherSide {
    present: Option<RoleClaim>,
    former: VecDeque<RoleClaim>,
}

impl Agent {
    /// Hears the role and tie-breaker of an authentic check. False if it is of a former life of the
    /// other side, and so says nothing of the present.
    pub(super) fn hear_claim(&mut self, claim: RoleClaim) -> bool {
        let other = &mut self.other_side;
        if other.former.contains(&claim) {
            return false;
        }
        let Some(before) = other.present.replace(claim).filter(|was| *was != claim) else {
            return true;
        };
        if other.former.len() == MAX_FORMER {
            other.former.pop_front();
        }
        other.former.push_back(before);
        // A switched role is a conflict's outcome (RFC 8445 §7.2.5.1), no restart.
        if std::mem::discriminant(&before) == std::mem::discriminant(&claim) {
            self.other_side_restarted();
        }
        true
    }

    /// Valid pairs are checked again, and not believed in before they are answered while others are.
    pub(super) fn doubt_all_but(&mut self, believed: Option<PairKey>) {
        let valid = self.pairs.values_mut().filter(|pair| pair.is_valid());
        let doubted: Vec<PairKey> = valid
            .filter(|pair| Some(pair.key()) != believed)
            .map(|pair| {
                pair.confirmed = false;
                pair.key()
            })
            .collect();
        for key in doubted {
            self.trigger(key);
        }
    }

    /// The selected pair is dead, and these have not answered either since it was first doubted.
    pub(super) fn fail_doubted(&mut self, now: Instant) {
        let doubted = |pair: &&Pair| pair.is_valid() && !pair.is_confirmed();
        let doubted: Vec<PairKey> = self.pairs.values().filter(doubted).map(Pair::key).collect();
        for key in doubted {
            self.set_failed(key, Failure::Silent, now);
        }
    }

    /// All pairs are in doubt; what was nominated is nominated again, or waits for the other side's new count.
    fn other_side_restarted(&mut self) {
        self.event(AgentEvent::Restarted);
        let nominated = self.nominated();
        self.doubt_all_but(None);
        match self.role {
            Role::Controlling => self.nominate = nominated.or(self.nominate),
            Role::Controlled => {
                self.last_nomination = 0;
                self.pairs.values_mut().for_each(Pair::forget_nomination);
            }
        }
    }
}
