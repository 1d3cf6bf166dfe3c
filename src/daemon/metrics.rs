//! Prometheus metrics of the daemon, over plain HTTP on the address that was asked for.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::answers::Answers;
use super::control::Handler as _;
use crate::report::{PathKind, Status};

/// The content type of the text format, version 0.0.4.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// Serves `/metrics` and `/healthz` until the runtime ends.
pub(super) async fn serve(
    address: SocketAddr,
    answers: Arc<Answers>,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let router = Router::new().route("/metrics", get(metrics));
    listen(address, router.with_state(answers)).await
}

/// Serves a router, and `/healthz` beside it, until the runtime ends.
pub(super) async fn listen(
    address: SocketAddr,
    router: Router,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot serve metrics on {address}\n  choose a free port of this machine with --metrics"
        )
    })?;
    let router = router.route("/healthz", get(|| async { "ok\n" }));
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(event = "metrics-ended", %error);
        }
    }))
}

async fn metrics(State(answers): State<Arc<Answers>>) -> Response {
    match answers.status().await {
        Ok(status) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text(&status)).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

/// The text format: HELP, TYPE, samples.
fn text(status: &Status) -> String {
    let mut out = String::new();
    let of_kind = |kind| {
        status
            .peers
            .iter()
            .filter(|peer| peer.path.kind == kind)
            .count()
    };
    let help = "Peers by what carries their data.";
    family(&mut out, "wice_peers", "gauge", help);
    for kind in [
        PathKind::Direct,
        PathKind::Relayed,
        PathKind::Native,
        PathKind::None,
    ] {
        sample(
            &mut out,
            "wice_peers",
            &[("path", kind.as_str())],
            of_kind(kind) as f64,
        );
    }
    let help = "1 while the signaling service is connected.";
    family(&mut out, "wice_signaling_connected", "gauge", help);
    sample(
        &mut out,
        "wice_signaling_connected",
        &[],
        f64::from(status.signaling.connected),
    );
    let help = "Allocations that this node has.";
    family(&mut out, "wice_relays", "gauge", help);
    let relays = status
        .relays
        .iter()
        .filter(|relay| relay.relayed.is_some())
        .count();
    sample(&mut out, "wice_relays", &[], relays as f64);
    family(
        &mut out,
        "wice_peer_rtt_seconds",
        "gauge",
        "Round trip of the path.",
    );
    for peer in &status.peers {
        if let Some(rtt) = peer.rtt_ms {
            sample(
                &mut out,
                "wice_peer_rtt_seconds",
                &[("peer", &peer.name), ("key", &peer.key)],
                rtt / 1000.0,
            );
        }
    }
    type Field = fn(&crate::report::Peer) -> u64;
    let fields: [(&str, &str, Field); 5] = [
        (
            "wice_peer_receive_bytes_total",
            "Bytes of WireGuard received.",
            |peer| peer.rx_bytes,
        ),
        (
            "wice_peer_transmit_bytes_total",
            "Bytes of WireGuard sent.",
            |peer| peer.tx_bytes,
        ),
        (
            "wice_peer_path_changes_total",
            "Changes of the path.",
            |peer| peer.path_changes,
        ),
        (
            "wice_peer_endpoint_resets_total",
            "Times another program has reset the peer's endpoint on the interface.",
            |peer| peer.endpoint_resets,
        ),
        (
            "wice_peer_too_large_total",
            "Packets that were too large for the peer's path.",
            |peer| peer.too_large,
        ),
    ];
    for (name, help, field) in fields {
        family(&mut out, name, "counter", help);
        for peer in &status.peers {
            sample(
                &mut out,
                name,
                &[("peer", &peer.name), ("key", &peer.key)],
                field(peer) as f64,
            );
        }
    }
    let counters = &status.counters;
    for (name, help, value) in [
        (
            "wice_checks_sent_total",
            "ICE checks sent.",
            counters.checks_sent,
        ),
        (
            "wice_checks_answered_total",
            "ICE checks answered.",
            counters.checks_answered,
        ),
        (
            "wice_stun_malformed_total",
            "STUN that could not be parsed.",
            counters.malformed,
        ),
        (
            "wice_stun_strangers_total",
            "STUN from strangers.",
            counters.strangers,
        ),
        (
            "wice_stun_unauthentic_total",
            "STUN that failed its integrity.",
            counters.unauthentic,
        ),
        (
            "wice_adverts_accepted_total",
            "Adverts taken.",
            counters.adverts_accepted,
        ),
        (
            "wice_adverts_refused_total",
            "Adverts refused.",
            counters.adverts_refused,
        ),
        (
            "wice_over_budget_total",
            "Checks held back by the budget.",
            counters.over_budget,
        ),
        (
            "wice_data_dead_total",
            "Paths that passed checks and no data.",
            counters.data_dead,
        ),
    ] {
        family(&mut out, name, "counter", help);
        sample(&mut out, name, &[], value as f64);
    }
    out
}

pub(super) fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

pub(super) fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    let escaped = |text: &str| {
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    let labels: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
        .collect();
    let labels = if labels.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", labels.join(","))
    };
    let _ = writeln!(out, "{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_out() {
        let mut out = String::new();
        sample(&mut out, "wice_x", &[("peer", "a\"b\\c\nd")], 1.5);
        assert_eq!(out, "wice_x{peer=\"a\\\"b\\\\c\\nd\"} 1.5\n");
    }
}
