//! What each thread publishes, and the text that Prometheus reads.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use crate::server::{Counters, ErrorCode, Ledger, Ports};

/// A thread's figures at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) counters: Counters,
    pub(super) connections: usize,
    /// Connections with peers (RFC 6062).
    pub(super) peer_connections: usize,
    /// Payloads dropped at slow TCP and TLS clients.
    pub(super) slow_client_drops: u64,
    /// Payloads let go because queues stood.
    pub(super) late_drops: u64,
    /// Datagrams that the kernel did not take.
    pub(super) send_failures: u64,
}

/// One place a thread; the thread writes it now and then and never waits for it.
#[derive(Debug, Default)]
pub(super) struct Published(Mutex<Figures>);

impl Published {
    pub(super) fn set(&self, figures: Figures) {
        if let Ok(mut place) = self.0.try_lock() {
            *place = figures;
        }
    }

    pub(super) fn get(&self) -> Figures {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The whole page.
pub(super) fn page(threads: &[Figures], ledger: &Ledger, ports: [&Ports; 2]) -> String {
    let mut out = String::new();
    let sum = |value: fn(&Figures) -> u64| threads.iter().map(value).sum::<u64>();
    let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
        let _ = write!(
            out,
            "# HELP wice_turn_{name} {help}\n# TYPE wice_turn_{name} {kind}\n"
        );
        for (labels, value) in values {
            let _ = writeln!(out, "wice_turn_{name}{labels} {value}");
        }
    };
    let (total, users) = ledger.count();
    metric(
        "allocations",
        "gauge",
        "Allocations now, with ports held for tokens.",
        &[("", u64::from(total))],
    );
    metric(
        "users",
        "gauge",
        "Users with allocations.",
        &[("", users as u64)],
    );
    let [v4, v6] = ports.map(|ports| ports.taken() as u64);
    metric(
        "relay_ports_taken",
        "gauge",
        "Relay ports in use.",
        &[("{family=\"ipv4\"}", v4), ("{family=\"ipv6\"}", v6)],
    );
    metric(
        "relay_ports",
        "gauge",
        "Relay ports of a family.",
        &[("", ports[0].len() as u64)],
    );
    metric(
        "connections",
        "gauge",
        "TCP and TLS connections of clients.",
        &[("", sum(|t| t.connections as u64))],
    );
    metric(
        "peer_connections",
        "gauge",
        "TCP connections with peers.",
        &[("", sum(|t| t.peer_connections as u64))],
    );
    metric(
        "allocations_total",
        "counter",
        "Allocations begun.",
        &[("", sum(|t| t.counters.allocated))],
    );
    metric(
        "moved_total",
        "counter",
        "Allocations that followed their client to another address.",
        &[("", sum(|t| t.counters.moved))],
    );
    metric(
        "bindings_total",
        "counter",
        "STUN Binding requests answered.",
        &[("", sum(|t| t.counters.bindings))],
    );
    let refused: Vec<(String, u64)> = ErrorCode::ALL
        .iter()
        .enumerate()
        .map(|(at, code)| {
            let count = threads.iter().map(|t| t.counters.refused[at]).sum();
            (format!("{{code=\"{}\"}}", code.code()), count)
        })
        .collect();
    let refused: Vec<(&str, u64)> = refused.iter().map(|(l, v)| (l.as_str(), *v)).collect();
    metric(
        "refused_total",
        "counter",
        "Error responses by code.",
        &refused,
    );
    let (up, down) = ("{direction=\"up\"}", "{direction=\"down\"}");
    metric(
        "relayed_packets_total",
        "counter",
        "Payloads relayed: up is from clients.",
        &[
            (up, sum(|t| t.counters.packets_up)),
            (down, sum(|t| t.counters.packets_down)),
        ],
    );
    metric(
        "relayed_bytes_total",
        "counter",
        "Bytes of payload relayed: up is from clients.",
        &[
            (up, sum(|t| t.counters.bytes_up)),
            (down, sum(|t| t.counters.bytes_down)),
        ],
    );
    metric(
        "dropped_total",
        "counter",
        "What was dropped, by cause.",
        &[
            ("{cause=\"malformed\"}", sum(|t| t.counters.malformed)),
            (
                "{cause=\"challenge-limit\"}",
                sum(|t| t.counters.challenges_limited),
            ),
            (
                "{cause=\"no-permission-up\"}",
                sum(|t| t.counters.unpermitted_up),
            ),
            (
                "{cause=\"no-permission-down\"}",
                sum(|t| t.counters.unpermitted_down),
            ),
            ("{cause=\"user-rate\"}", sum(|t| t.counters.over_rate)),
            ("{cause=\"slow-client\"}", sum(|t| t.slow_client_drops)),
            ("{cause=\"late\"}", sum(|t| t.late_drops)),
            ("{cause=\"send-failed\"}", sum(|t| t.send_failures)),
        ],
    );
    out
}
