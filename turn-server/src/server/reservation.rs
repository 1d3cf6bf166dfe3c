//! Ports held for a RESERVATION-TOKEN (RFC 8656 §7.2), over all threads: a client's two 5-tuples may be on two of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ports::Ports;
use super::quota::Grant;

/// How long a port is held (RFC 8656 §7.2 recommends 30 s).
pub const RESERVATION_LIFETIME: Duration = Duration::from_secs(30);

/// An 8-byte token.
pub(super) type Token = [u8; 8];

/// A port that is held. Dropping it gives the port back.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) username: Box<str>,
    /// What clients are told as the address.
    pub(super) external: IpAddr,
    pub(super) port: u16,
    grant: Option<Grant>,
    ports: Arc<Ports>,
    expires: Instant,
}

/// The shared table; as many entries as quotas let there be.
#[derive(Debug, Default)]
pub struct Reservations(Mutex<BTreeMap<Token, Reservation>>);

impl Reservation {
    pub(super) fn new(
        username: &str,
        external: IpAddr,
        (ports, port): (&Arc<Ports>, u16),
        grant: Grant,
        now: Instant,
    ) -> Self {
        Self {
            username: username.into(),
            external,
            port,
            grant: Some(grant),
            ports: Arc::clone(ports),
            expires: now + RESERVATION_LIFETIME,
        }
    }

    /// The port and its place in the books are the caller's from now on.
    pub(super) fn claim(mut self, shard: u8) -> Option<Grant> {
        self.ports.claim(self.port, shard);
        self.grant.take()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.grant.is_some() {
            self.ports.release(self.port);
        }
    }
}

impl Reservations {
    /// Holds a port under a token.
    pub(super) fn insert(&self, token: Token, reservation: Reservation) {
        self.table().insert(token, reservation);
    }

    /// Takes a port out, for the user that it is held for.
    pub(super) fn take(&self, token: &Token, username: &str, now: Instant) -> Option<Reservation> {
        let mut table = self.table();
        let held = table.get(token)?;
        if held.expires <= now || &*held.username != username {
            return None;
        }
        table.remove(token)
    }

    /// Gives back what nobody came for.
    pub(super) fn sweep(&self, now: Instant) {
        let late = {
            let mut table = self.table();
            table
                .extract_if(.., |_, held| held.expires <= now)
                .collect::<Vec<_>>()
        };
        // Outside the lock: dropping takes the ledger's.
        drop(late);
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Token, Reservation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
