//! Ports that are promised with a RESERVATION-TOKEN: bound at once, so that no other program takes them, and for any thread to use.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use wice_udp::UdpSocket;

use crate::server::RESERVATION_LIFETIME;

/// As many as there are reservations, which quotas bound.
#[derive(Default)]
pub(super) struct KeptPorts(Mutex<BTreeMap<SocketAddr, Kept>>);

struct Kept {
    socket: UdpSocket,
    until: Instant,
}

impl KeptPorts {
    /// Keeps a port until its reservation ends.
    pub(super) fn keep(&self, local: SocketAddr, socket: UdpSocket, now: Instant) {
        let until = now + RESERVATION_LIFETIME;
        self.table().insert(local, Kept { socket, until });
    }

    /// The socket of a port, if it is kept.
    pub(super) fn take(&self, local: &SocketAddr) -> Option<UdpSocket> {
        self.table().remove(local).map(|kept| kept.socket)
    }

    /// Closes what nobody came for.
    pub(super) fn sweep(&self, now: Instant) {
        self.table().retain(|_, kept| kept.until > now);
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
