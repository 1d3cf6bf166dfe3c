//! What `wice turn check` tells.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::style::{Paint, Table};
use super::{Health, Style, rtt};

/// A TURN server as seen from here: `wice turn check --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnCheck {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// In the order of the command line.
    pub ways: Vec<TurnWay>,
}

/// One way to a server: every step's time in milliseconds, up to the one that failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TurnWay {
    /// Its URL.
    pub url: String,
    /// `udp`, `tcp` or `tls`.
    pub transport: String,
    /// The connection: TCP's and TLS's handshakes, and the name's resolution.
    pub connect_ms: Option<f64>,
    /// Challenge and allocation: two round trips.
    pub allocate_ms: Option<f64>,
    /// The permission of a peer.
    pub permission_ms: Option<f64>,
    /// To the peer and back, in Send and Data indications.
    pub echo_ms: Option<f64>,
    /// The binding of a channel.
    pub channel_ms: Option<f64>,
    /// To the peer and back, on the channel.
    pub channel_echo_ms: Option<f64>,
    /// The relayed address.
    pub relayed: Option<SocketAddr>,
    /// What the server saw us as.
    pub mapped: Option<SocketAddr>,
    /// Who the peer was: `outside` (a socket of this machine) or `relay` (another allocation on the server).
    pub peer: Option<String>,
    /// The step that failed: `connect`, `allocate`, `permission`, `echo`, `channel` or `channel-echo`.
    pub failed: Option<String>,
    /// Why.
    pub failure: Option<String>,
    /// What works, but not as it should.
    pub degraded: Option<String>,
    /// What is to be known beside it.
    pub note: Option<String>,
}

impl TurnCheck {
    /// Well where every way works, broken where none does.
    pub fn health(&self) -> Health {
        let works = |way: &TurnWay| way.failure.is_none();
        let well = |way: &TurnWay| works(way) && way.degraded.is_none();
        if !self.ways.iter().any(works) {
            Health::Broken
        } else if self.ways.iter().all(well) {
            Health::Well
        } else {
            Health::Degraded
        }
    }

    /// A row a way, with what is to be said of it below.
    pub fn text(&self, style: Style) -> String {
        let mut table = Table::headed(&[
            "SERVER",
            "VIA",
            "CONNECT",
            "ALLOCATE",
            "PERMISSION",
            "ECHO",
            "CHANNEL",
            "ECHO",
            "PEER",
            "RELAYED",
        ]);
        let plain = |text: String| (text, None);
        for way in &self.ways {
            let time = |step: &str, ms: Option<f64>| match (ms, way.failed.as_deref()) {
                (Some(ms), _) => (rtt(ms), None),
                (None, Some(failed)) if failed == step => ("fails".to_owned(), Some(Paint::Bad)),
                (None, _) => ("-".to_owned(), Some(Paint::Faint)),
            };
            let relayed = way.relayed.map(|relayed| relayed.to_string());
            table.row(vec![
                plain(way.url.clone()),
                plain(way.transport.clone()),
                time("connect", way.connect_ms),
                time("allocate", way.allocate_ms),
                time("permission", way.permission_ms),
                time("echo", way.echo_ms),
                time("channel", way.channel_ms),
                time("channel-echo", way.channel_echo_ms),
                plain(way.peer.clone().unwrap_or_default()),
                plain(relayed.unwrap_or_default()),
            ]);
            for said in [&way.failure, &way.degraded, &way.note]
                .into_iter()
                .flatten()
            {
                table.note(said.clone());
            }
        }
        table.render(style)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(failure: Option<&str>, degraded: Option<&str>) -> TurnWay {
        TurnWay {
            url: "turn:t:3478".into(),
            transport: "udp".into(),
            connect_ms: Some(0.1),
            failed: failure.map(|_| "allocate".into()),
            failure: failure.map(str::to_owned),
            degraded: degraded.map(str::to_owned),
            ..TurnWay::default()
        }
    }

    #[test]
    fn one_way_that_fails_degrades_and_all_break() {
        let health = |ways: &[TurnWay]| {
            let ways = ways.to_vec();
            TurnCheck { schema: 1, ways }.health()
        };
        let (good, bad) = (way(None, None), way(Some("silent"), None));
        assert_eq!(health(std::slice::from_ref(&good)), Health::Well);
        assert_eq!(health(&[good.clone(), bad.clone()]), Health::Degraded);
        assert_eq!(health(&[good, way(None, Some("ports"))]), Health::Degraded);
        assert_eq!(health(&[bad.clone(), bad]), Health::Broken);
        assert_eq!(health(&[]), Health::Broken);
    }

    #[test]
    fn the_step_that_fails_is_shown_and_why() {
        let ways = vec![way(Some("the relay did not answer"), None)];
        let text = TurnCheck { schema: 1, ways }.text(Style::PLAIN);
        let mut lines = text.lines().skip(1);
        let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(row[4..], ["fails", "-", "-", "-", "-"], "{text}");
        assert_eq!(lines.next().unwrap().trim(), "the relay did not answer");
    }
}
