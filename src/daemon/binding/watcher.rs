//! A task that asks WireGuard and sets endpoints: whatever hangs, hangs here and not in the daemon.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wice_signaling::protocol::PublicKey;

use super::port::is_bound;
use crate::core::binding::LOOK_EVERY;
use crate::wireguard::backend::{AnyBackend, Backend as _, BackendError, Device, MAX_PEERS};

/// Endpoints that wait to be set: one a peer. More are decided again at the next look.
const ORDERS: usize = MAX_PEERS;
/// What has been seen and not fetched: the daemon is never further behind than this.
const REPORTS: usize = 4;

/// What WireGuard says.
#[derive(Debug)]
pub(super) enum Report {
    /// The interface as it is.
    Device {
        /// All of it.
        device: Device,
        /// Its port, if it is bound in this network namespace.
        port: Option<u16>,
    },
    /// What was wished for between two looks: only endpoints and counters are of interest.
    Between(Device),
    /// It cannot be asked.
    Lost(BackendError),
    /// A peer's endpoint could not be set.
    NotSet {
        /// Whose.
        key: PublicKey,
        /// Why.
        error: BackendError,
    },
}

/// The daemon's end.
#[derive(Debug)]
pub(super) struct Watcher {
    orders: mpsc::Sender<Order>,
    reports: mpsc::Receiver<Report>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Order {
    Set(PublicKey, SocketAddr),
    Look,
    LookAt(Instant),
}

impl Watcher {
    /// Goes on with `backend`, and looks for the interface again whenever it is lost.
    pub(super) fn start(interface: String, backend: AnyBackend) -> Self {
        let (orders, orders_receiver) = mpsc::channel(ORDERS);
        let (reports_sender, reports) = mpsc::channel(REPORTS);
        let asker = Asker {
            interface,
            backend: Some(backend),
            orders: orders_receiver,
            reports: reports_sender,
            next: None,
        };
        Self {
            orders,
            reports,
            task: tokio::spawn(asker.run()),
        }
    }

    /// Points a peer elsewhere; the interface is looked at afterwards.
    pub(super) fn set(&self, key: PublicKey, endpoint: SocketAddr) {
        // Where there is no room it is decided again at the next look.
        let _ = self.orders.try_send(Order::Set(key, endpoint));
    }

    /// Looks at once.
    pub(super) fn look(&self) {
        let _ = self.orders.try_send(Order::Look);
    }

    /// Looks then, if that is before the next time.
    pub(super) fn look_at(&self, at: Instant) {
        let _ = self.orders.try_send(Order::LookAt(at));
    }

    /// The next report; `None` when the task has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Report> {
        self.reports.recv().await
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task's end.
struct Asker {
    interface: String,
    backend: Option<AnyBackend>,
    orders: mpsc::Receiver<Order>,
    reports: mpsc::Sender<Report>,
    /// A look before the next regular one.
    next: Option<Instant>,
}

impl Asker {
    async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = self.next.unwrap_or_else(|| Instant::now() + LOOK_EVERY);
            let mut between = false;
            tokio::select! {
                biased;
                _ = look.tick() => {}
                () = tokio::time::sleep_until(next.into()) => between = true,
                order = self.orders.recv() => {
                    let Some(order) = order else { return };
                    let mut due = self.carry_out(order).await;
                    while let Ok(order) = self.orders.try_recv() {
                        due |= self.carry_out(order).await;
                    }
                    if !due {
                        continue;
                    }
                }
            }
            self.next = None;
            let report = match self.read().await {
                Ok(device) if between => Report::Between(device),
                Ok(device) => {
                    let bound = device.listen_port != 0 && is_bound(device.listen_port);
                    let port = bound.then_some(device.listen_port);
                    Report::Device { device, port }
                }
                Err(error) => {
                    // It may come back as another kind, or as the same kind anew.
                    self.backend = None;
                    Report::Lost(error)
                }
            };
            if self.reports.send(report).await.is_err() {
                return;
            }
        }
    }

    /// Whether the interface is to be looked at now.
    async fn carry_out(&mut self, order: Order) -> bool {
        let (key, endpoint) = match order {
            Order::Set(key, endpoint) => (key, endpoint),
            Order::Look => return true,
            Order::LookAt(at) => {
                self.next = Some(at);
                return false;
            }
        };
        let Some(backend) = &mut self.backend else {
            return true;
        };
        if let Err(error) = backend.set_endpoint(key, endpoint).await {
            let _ = self.reports.send(Report::NotSet { key, error }).await;
        }
        true
    }

    async fn read(&mut self) -> Result<Device, BackendError> {
        let backend = match &mut self.backend {
            Some(backend) => backend,
            None => {
                let found = AnyBackend::open(&self.interface).await?;
                self.backend.insert(found)
            }
        };
        backend.device().await
    }
}
