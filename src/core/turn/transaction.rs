//! Requests in flight: retransmission over UDP, patience over streams (RFC 8489 §6.2).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use stun_types::message::{BINDING, Method, TransactionId};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH};

/// The first retransmission timeout; at least 500 ms (RFC 8489 §6.2.1), doubled each time.
pub(super) const RTO: Duration = Duration::from_millis(500);
/// How often a request is sent in all, Rc (RFC 8489 §6.2.1).
pub(super) const RC: u8 = 7;
/// How long the last one is waited for, in RTOs, Rm (RFC 8489 §6.2.1).
const RM: u32 = 16;
/// How long a request over TCP or TLS is waited for, Ti (RFC 8489 §6.2.2): the same as over UDP in all,
/// 0.5 × (1 + 2 + … + 32) + 16 × 0.5 s.
pub(super) const TI: Duration = Duration::from_millis(39_500);
/// How long the answer to a keepalive counts; less than the pause between two of them.
const KEEPALIVE_WAIT: Duration = Duration::from_secs(10);
/// The most responses with a bad integrity that a request pays an HMAC for: an attacker who sees the id
/// could otherwise make us compute as fast as he sends.
const MAX_FORGED: u8 = 16;

/// What a request is for, and all that is needed to ask it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Allocate,
    Refresh,
    /// REFRESH with lifetime 0.
    Close,
    Permit(Vec<IpAddr>),
    Bind {
        peer: SocketAddr,
        number: u16,
    },
    Keepalive,
}

impl Request {
    pub(super) fn method(&self) -> Method {
        match self {
            Self::Allocate => ALLOCATE,
            Self::Refresh | Self::Close => REFRESH,
            Self::Permit(_) => CREATE_PERMISSION,
            Self::Bind { .. } => CHANNEL_BIND,
            Self::Keepalive => BINDING,
        }
    }
}

#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) request: Request,
    pub(super) started: Instant,
    /// Whether it carried our credentials, so that its response must carry an integrity.
    pub(super) signed: bool,
    /// How often a 401 or 438 made it start over.
    pub(super) challenges: u8,
    /// Responses that failed the integrity check, and the error code of the last.
    pub(super) forged: u8,
    pub(super) forged_code: Option<u16>,
    bytes: Vec<u8>,
    sent: u8,
    next: Instant,
}

impl Transaction {
    /// The round-trip time that a response now shows; `None` if it could answer an earlier copy
    /// (Karn's algorithm).
    pub(super) fn rtt(&self, now: Instant) -> Option<Duration> {
        (self.sent == 1).then(|| now.saturating_duration_since(self.started))
    }

    /// Notes a response that is not authentic.
    pub(super) fn forged(&mut self, code: Option<u16>) {
        self.forged = self.forged.saturating_add(1);
        self.forged_code = code;
    }

    pub(super) fn may_verify(&self) -> bool {
        self.forged < MAX_FORGED
    }
}

/// What a due transaction wants.
pub(super) enum Due {
    /// Send these bytes again.
    Retransmit(Vec<u8>),
    /// It is over.
    TimedOut(Transaction),
}

/// All requests in flight of one allocation, bounded by what the tables start.
pub(super) struct Transactions {
    reliable: bool,
    open: BTreeMap<u128, Transaction>,
}

impl Transactions {
    pub(super) fn new(reliable: bool) -> Self {
        Self {
            reliable,
            open: BTreeMap::new(),
        }
    }

    /// Takes a request that is being sent now.
    pub(super) fn start(
        &mut self,
        id: TransactionId,
        request: Request,
        bytes: Vec<u8>,
        signed: bool,
        challenges: u8,
        now: Instant,
    ) {
        let wait = match (&request, self.reliable) {
            (Request::Keepalive, _) => KEEPALIVE_WAIT,
            (_, true) => TI,
            (_, false) => RTO,
        };
        let transaction = Transaction {
            request,
            started: now,
            signed,
            challenges,
            forged: 0,
            forged_code: None,
            bytes,
            sent: 1,
            next: now + wait,
        };
        self.open.insert(id.into(), transaction);
    }

    pub(super) fn get_mut(&mut self, id: TransactionId) -> Option<&mut Transaction> {
        self.open.get_mut(&u128::from(id))
    }

    pub(super) fn remove(&mut self, id: TransactionId) -> Option<Transaction> {
        self.open.remove(&u128::from(id))
    }

    /// How many requests satisfy `predicate`.
    pub(super) fn count(&self, predicate: impl Fn(&Request) -> bool) -> usize {
        self.open
            .values()
            .filter(|transaction| predicate(&transaction.request))
            .count()
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.open.values().map(|transaction| transaction.next).min()
    }

    /// One due transaction at a time, until `None`. After a pause (a machine that slept) a request is
    /// sent once, not once for every interval missed.
    pub(super) fn poll_due(&mut self, now: Instant) -> Option<Due> {
        let (&id, transaction) = self
            .open
            .iter_mut()
            .find(|(_, transaction)| transaction.next <= now)?;
        let once = self.reliable || transaction.request == Request::Keepalive;
        if once || transaction.sent >= RC {
            return self.open.remove(&id).map(Due::TimedOut);
        }
        let wait = if transaction.sent + 1 == RC {
            RTO * RM
        } else {
            RTO * (1 << transaction.sent)
        };
        transaction.sent += 1;
        transaction.next = now + wait;
        Some(Due::Retransmit(transaction.bytes.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_requests_go_out_as_rfc_8489_says() {
        let start = Instant::now();
        let mut transactions = Transactions::new(false);
        transactions.start(7.into(), Request::Allocate, vec![1], false, 0, start);
        let mut at = vec![0];
        let over = loop {
            let now = transactions.poll_timeout().expect("still open");
            match transactions.poll_due(now) {
                Some(Due::Retransmit(_)) => at.push((now - start).as_millis()),
                Some(Due::TimedOut(_)) => break now - start,
                None => panic!("due but nothing to do"),
            }
        };
        assert_eq!(at, [0, 500, 1500, 3500, 7500, 15_500, 31_500]);
        assert_eq!(over, TI);
        assert!(transactions.poll_timeout().is_none());
    }

    #[test]
    fn stream_requests_go_out_once() {
        let start = Instant::now();
        let mut transactions = Transactions::new(true);
        transactions.start(7.into(), Request::Allocate, vec![1], false, 0, start);
        assert_eq!(transactions.poll_timeout(), Some(start + TI));
        assert!(matches!(
            transactions.poll_due(start + TI),
            Some(Due::TimedOut(_))
        ));
    }
}
