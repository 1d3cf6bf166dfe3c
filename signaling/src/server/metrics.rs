//! Counters, as Prometheus reads them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::ErrorCode;

/// Why a connection or datagram went no further than its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// [`super::Limits::connections`].
    TooManyConnections,
    /// [`super::Limits::connections_per_source`].
    TooManyFromSource,
    /// [`super::Limits::connects_burst`].
    TooFastFromSource,
    /// TLS failed or took too long.
    Tls,
    /// An HTTP request that is no upgrade of ours.
    Http,
    /// A datagram that is no STUN Binding request.
    Stun,
    /// Its queue overflowed or it did not read.
    SlowReader,
    /// A protocol error, named.
    Protocol(ErrorCode),
}

impl Refusal {
    fn as_str(self) -> &'static str {
        match self {
            Self::TooManyConnections => "too-many-connections",
            Self::TooManyFromSource => "too-many-from-source",
            Self::TooFastFromSource => "too-fast-from-source",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Stun => "stun",
            Self::SlowReader => "slow-reader",
            Self::Protocol(code) => code.as_str(),
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        [
            Self::TooManyConnections,
            Self::TooManyFromSource,
            Self::TooFastFromSource,
            Self::Tls,
            Self::Http,
            Self::Stun,
            Self::SlowReader,
        ]
        .into_iter()
        .chain(ErrorCode::ALL.map(Self::Protocol))
    }
}

pub(super) struct Metrics {
    pub(super) connections: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) joins: AtomicU64,
    pub(super) publishes: AtomicU64,
    pub(super) carries: AtomicU64,
    pub(super) throttled: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) stun_replies: AtomicU64,
    refusals: BTreeMap<Refusal, AtomicU64>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            connections: zero(),
            accepted: zero(),
            joins: zero(),
            publishes: zero(),
            carries: zero(),
            throttled: zero(),
            received_bytes: zero(),
            sent_bytes: zero(),
            stun_replies: zero(),
            refusals: Refusal::all().map(|refusal| (refusal, zero())).collect(),
        }
    }

    pub(super) fn refuse(&self, refusal: Refusal) {
        if let Some(counter) = self.refusals.get(&refusal) {
            add(counter, 1);
        }
    }

    /// Prometheus' text format, version 0.0.4.
    pub(super) fn render(&self, gauges: &[(&str, &str, usize)]) -> String {
        let mut out = String::new();
        for (name, help, value) in gauges {
            metric(&mut out, name, help, "gauge", *value as u64);
        }
        for (name, help, kind, counter) in [
            (
                "connections",
                "Open connections.",
                "gauge",
                &self.connections,
            ),
            (
                "accepted_total",
                "Connections accepted.",
                "counter",
                &self.accepted,
            ),
            ("joins_total", "Nodes let in.", "counter", &self.joins),
            (
                "publishes_total",
                "Records published.",
                "counter",
                &self.publishes,
            ),
            (
                "carries_total",
                "Records carried for nodes that do not come by themselves.",
                "counter",
                &self.carries,
            ),
            (
                "throttled_total",
                "Publishes made to wait.",
                "counter",
                &self.throttled,
            ),
            (
                "received_bytes_total",
                "Bytes of frames received.",
                "counter",
                &self.received_bytes,
            ),
            (
                "sent_bytes_total",
                "Bytes of frames sent.",
                "counter",
                &self.sent_bytes,
            ),
            (
                "stun_replies_total",
                "STUN replies sent.",
                "counter",
                &self.stun_replies,
            ),
        ] {
            metric(&mut out, name, help, kind, counter.load(Ordering::Relaxed));
        }
        out.push_str("# HELP wice_signal_refusals_total Refused, by cause.\n");
        out.push_str("# TYPE wice_signal_refusals_total counter\n");
        for (refusal, counter) in &self.refusals {
            let value = counter.load(Ordering::Relaxed);
            let cause = refusal.as_str();
            let _ = writeln!(
                out,
                "wice_signal_refusals_total{{cause=\"{cause}\"}} {value}"
            );
        }
        out
    }
}

pub(super) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

fn metric(out: &mut String, name: &str, help: &str, kind: &str, value: u64) {
    let _ = writeln!(out, "# HELP wice_signal_{name} {help}");
    let _ = writeln!(out, "# TYPE wice_signal_{name} {kind}");
    let _ = writeln!(out, "wice_signal_{name} {value}");
}
