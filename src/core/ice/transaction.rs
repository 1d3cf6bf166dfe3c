//! One check on its way: when it is repeated, until when its answer counts.

use std::time::{Duration, Instant};

use super::Role;
use crate::core::stun::TransactionId;
use crate::core::timing::{CONSENT_EXPIRY, RM};

/// Why a check was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To learn whether the pair works.
    Validate,
    /// To nominate, with this NOMINATION value where the mode has one.
    Nominate(u32),
    /// To keep a pair that carries no data alive.
    Keepalive,
    /// To renew consent; sent once.
    Consent,
    /// To see whether a silent path is dead; sent once.
    Probe,
}

/// A check and its retransmissions: same bytes, same id (RFC 8489 §6.2.1).
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) id: TransactionId,
    pub(super) purpose: Purpose,
    /// The role that it was sent in: a 487 counts only if we still have it.
    pub(super) role: Role,
    pub(super) started: Instant,
    /// Transmissions so far.
    pub(super) sent: u8,
    /// When it is sent again.
    pub(super) next: Option<Instant>,
    /// Past this an answer means nothing, and a check that had to succeed has failed.
    pub(super) end: Instant,
    /// Another answer has settled what it was to learn: its own silence means nothing.
    pub(super) settled: bool,
    limit: u8,
    rto: Duration,
    bytes: Vec<u8>,
}

impl Transaction {
    pub(super) fn new(
        id: TransactionId,
        purpose: Purpose,
        role: Role,
        schedule: (u8, Duration),
        bytes: Vec<u8>,
        now: Instant,
    ) -> Self {
        let (limit, rto) = schedule;
        let end = if limit <= 1 {
            now + CONSENT_EXPIRY
        } else {
            now + rto * ((1 << (limit - 1)) - 1) + rto * RM
        };
        let mut transaction = Self {
            id,
            purpose,
            role,
            started: now,
            sent: 0,
            next: None,
            end,
            settled: false,
            limit,
            rto,
            bytes,
        };
        transaction.transmitted(now);
        transaction
    }

    /// The bytes to send again, counted as sent at `now`.
    pub(super) fn retransmit(&mut self, now: Instant) -> Vec<u8> {
        let bytes = self.bytes.clone();
        self.transmitted(now);
        bytes
    }

    /// No more retransmissions; its answer still counts until its end.
    pub(super) fn cancel(&mut self) {
        self.next = None;
        self.bytes = Vec::new();
    }

    /// As [`Self::cancel`], and its silence means nothing.
    pub(super) fn settle(&mut self) {
        self.cancel();
        self.settled = true;
    }

    /// Whether it nominates.
    pub(super) fn nominates(&self) -> bool {
        matches!(self.purpose, Purpose::Nominate(_))
    }

    fn transmitted(&mut self, now: Instant) {
        self.sent += 1;
        if self.sent >= self.limit {
            self.cancel();
        } else {
            self.next = Some(now + self.rto * (1 << (self.sent - 1)));
        }
    }

    /// Whether its silence to the end fails the pair; consent and probes have rules of their own.
    pub(super) fn has_to_succeed(&self) -> bool {
        match self.purpose {
            Purpose::Validate | Purpose::Nominate(_) | Purpose::Keepalive => true,
            Purpose::Consent | Purpose::Probe => false,
        }
    }

    /// Whether an answer's delay is a round trip: not after a retransmission (Karn's rule).
    pub(super) fn measures_rtt(&self) -> bool {
        self.sent == 1
    }
}
