//! The text of `wice status` and `wice why`.

use std::time::Duration;

use super::style::{Paint, Table};
use super::{
    Health, Nat, PathKind, Peer, Signaling, Status, Stranger, Style, Why, bytes, count, duration,
    rtt,
};

/// What stands where there is no NAT to speak of.
const NO_NETWORK: &str = "no network: this node has no usable address; check its cable, Wi-Fi and addresses (ip address)";

/// Seconds after which the servers that signaling tells of are asked: connecting and resolving are done.
const SERVERS_KNOWN_S: u64 = 5;
/// The reason of a peer that was put out of the network.
const REVOKED: &str = "revoked";

impl Status {
    /// The whole table.
    pub fn text(&self, style: Style) -> String {
        let mut out = self.header(style);
        if !self.peers.is_empty() {
            out.push('\n');
            out.push_str(&peer_table(self.peers.iter()).render(style));
        }
        for stranger in &self.strangers {
            let Stranger { name, key } = stranger;
            out.push_str(&format!(
                "\n{name} has this node as a peer and looks for it, but is no peer of {interface}: wg set {interface} peer {key} allowed-ips ITS-ADDRESS\n",
                interface = self.interface
            ));
        }
        out
    }

    /// One peer's rows.
    pub fn peer_text(&self, peer: &Peer, style: Style) -> String {
        peer_table(std::iter::once(peer)).render(style)
    }

    fn header(&self, style: Style) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let addresses = match addresses.is_empty() {
            true => String::new(),
            false => format!("  {}", addresses.join("  ")),
        };
        let interface = style.paint(&self.interface, Paint::Heading);
        let mut out = format!(
            "{interface}  {}{addresses}   {}\n",
            self.name,
            self.summary()
        );
        if let Some(problem) = &self.problem {
            out.push_str(&format!("{}\n", style.paint(problem, Paint::Bad)));
        }
        if self.has_no_network() {
            out.push_str(&style.paint(NO_NETWORK, Paint::Bad));
        } else {
            out.push_str(&format!(
                "NAT    {}",
                nat_line(&self.nat, self.servers_asked())
            ));
        }
        out.push_str(&format!(
            "\nsignal {}     relay {}\n",
            signaling_text(&self.signaling, style),
            self.relay_text(style),
        ));
        if let Some(hint) = &self.signaling.hint {
            out.push_str(&format!("       {}\n", style.paint(hint, Paint::Faint)));
        }
        if let Some(hint) = self.relay_hint() {
            out.push_str(&format!("       {}\n", style.paint(hint, Paint::Faint)));
        }
        out.push_str(&self.port_mapping_text());
        if let Some(warning) = &self.mtu_warning {
            out.push_str(&format!("MTU    {}\n", style.paint(warning, Paint::Bad)));
        }
        out
    }

    /// What to do about the relays, where none of them can be used.
    fn relay_hint(&self) -> Option<&str> {
        let mut relays = self.relays.iter();
        let none = relays.clone().all(|relay| relay.relayed.is_none());
        relays.find_map(|relay| relay.hint.as_deref().filter(|_| none))
    }

    /// How many STUN servers are asked of the address that most are asked of, once all should be known.
    fn servers_asked(&self) -> Option<usize> {
        let asked = |base| {
            self.observations
                .iter()
                .filter(move |seen| seen.base == base)
        };
        let counts = self
            .observations
            .iter()
            .map(|seen| asked(seen.base).count());
        let most = counts.max().unwrap_or(0);
        // At first there are more to come: signaling tells of them.
        (self.uptime_s >= SERVERS_KNOWN_S).then_some(most)
    }

    /// A line for each router; none where it would say nothing.
    fn port_mapping_text(&self) -> String {
        let routers = self
            .port_mappings
            .iter()
            .filter(|router| router.state != "none");
        routers
            .map(|router| format!("port   {}\n", router.summary))
            .collect()
    }

    /// `4 peers: 2 direct, 1 relayed, 1 away`.
    fn summary(&self) -> String {
        let of = |kind: PathKind| {
            let peers = self.peers.iter().filter(|p| p.reason != REVOKED);
            peers.filter(|p| p.path.kind == kind).count()
        };
        let away = self.peers.iter().filter(|p| p.is_away()).count();
        let is_untried = |p: &&Peer| p.reason != REVOKED && is_untried(p);
        let untried = self.peers.iter().filter(is_untried).count();
        let revoked = self.peers.iter().filter(|p| p.reason == REVOKED).count();
        let pathless = |health| {
            let mut peers = self.peers.iter();
            peers
                .by_ref()
                .filter(|p| p.path.kind == PathKind::None && !p.is_away() && p.health() == health)
                .filter(|p| p.reason != REVOKED)
                .count()
        };
        let parts: Vec<String> = [
            (of(PathKind::Native) - untried, "native"),
            (untried, "untried"),
            (of(PathKind::Direct), "direct"),
            (of(PathKind::Relayed), "relayed"),
            (pathless(Health::Degraded), "checking"),
            (pathless(Health::Broken), "without path"),
            (revoked, "revoked"),
            (away, "away"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
        match self.peers.len() {
            0 => "no peers yet".to_owned(),
            1 => format!("1 peer: {}", parts.join(", ")),
            count => format!("{count} peers: {}", parts.join(", ")),
        }
    }

    /// The best relay in use, else what is wrong with the first.
    fn relay_text(&self, style: Style) -> String {
        if let Some(relay) = self.relays.iter().find(|relay| relay.relayed.is_some()) {
            let rtt = relay
                .rtt_ms
                .map_or_else(String::new, |ms| format!(" {}", rtt(ms)));
            return format!("{}  {}{rtt}", relay.name, relay.transport);
        }
        let failed = self
            .relays
            .iter()
            .find_map(|relay| Some((relay, relay.failure.as_ref()?)));
        match (self.relays.first(), failed) {
            (None, _) => "none".to_owned(),
            (Some(relay), None) => format!("{}  connecting", relay.name),
            (Some(_), Some((relay, failure))) => {
                // What to do about it is what `wice why` and `wice netcheck` are for.
                let what = failure.split([':', ';']).next().unwrap_or_default();
                style.paint(&format!("{}  {what}", relay.name), Paint::Bad)
            }
        }
    }
}

impl Why {
    /// The reason, the remedy, and every pair.
    pub fn text(&self, style: Style) -> String {
        let peer = &self.peer;
        let is = match peer.path.kind {
            PathKind::None => "has no path".to_owned(),
            kind @ (PathKind::Native | PathKind::Direct | PathKind::Relayed) => {
                format!("is {}", style.paint(kind.as_str(), kind_paint(kind)))
            }
        };
        let mut out = format!("{} {is}: {} ({})\n", peer.name, peer.summary, peer.reason);
        out.push_str(&format!("  here   {}\n", self.here_text()));
        out.push_str(&match &self.there {
            Some(nat) => format!("  there  {}, as its advert says\n", short_nat(nat)),
            None => "  there  not known: it has published nothing\n".to_owned(),
        });
        if !self.remedy.is_empty() {
            out.push_str(&format!("  remedy {}\n", self.remedy));
        }
        if let Some(mtu) = &self.mtu {
            out.push_str(&format!("  mtu    {mtu}\n"));
        }
        if !self.pairs.is_empty() {
            out.push_str(&self.pair_table().render(style));
        }
        out
    }

    fn here_text(&self) -> String {
        let seen: Vec<String> = self
            .observations
            .iter()
            .filter_map(|seen| Some(format!("{} by {}", seen.mapped?, seen.server)))
            .collect();
        let nat = short_nat(&self.here);
        if seen.is_empty() {
            nat
        } else {
            format!("{nat}, seen as {}", seen.join(" and "))
        }
    }

    fn pair_table(&self) -> Table {
        let mut table = Table::headed(&["PAIR", "STATE", "CHECKS", "RTT", "WHY NOT"]);
        let locals: Vec<String> = self
            .pairs
            .iter()
            .map(|pair| format!("{} {}", pair.local.kind, pair.local.address))
            .collect();
        let width = locals
            .iter()
            .map(|l| l.chars().count())
            .max()
            .unwrap_or_default();
        for (pair, local) in self.pairs.iter().zip(&locals) {
            let paint = match pair.state.as_str() {
                "in use" | "standby" | "works" => Some(Paint::Good),
                "failed" => Some(Paint::Bad),
                _ => None,
            };
            table.row(vec![
                (
                    format!(
                        "{local:<width$} -> {} {}",
                        pair.remote.kind, pair.remote.address
                    ),
                    None,
                ),
                (pair.state.clone(), paint),
                (
                    format!("{}/{}", pair.checks_answered, pair.checks_sent),
                    None,
                ),
                (pair.rtt_ms.map(rtt).unwrap_or_default(), None),
                (pair.why_not.clone().unwrap_or_default(), None),
            ]);
        }
        table
    }
}

fn peer_table<'a>(peers: impl Iterator<Item = &'a Peer>) -> Table {
    let mut table = Table::headed(&["PEER", "OVERLAY", "PATH", "RTT", "HANDSHAKE", "RX / TX"]);
    for peer in peers {
        let overlay = peer.addresses.first().map(ToString::to_string);
        let mut row = vec![
            (peer.name.clone(), None),
            (overlay.unwrap_or_default(), None),
            (path_text(peer), Some(kind_paint(peer.path.kind))),
        ];
        if peer.path.kind != PathKind::None || peer.rx_bytes > 0 {
            let age = peer
                .handshake_age_s
                .map(|age| duration(Duration::from_secs(age)));
            let carried = format!("{} / {}", bytes(peer.rx_bytes), bytes(peer.tx_bytes));
            row.push((peer.rtt_ms.map(rtt).unwrap_or_default(), None));
            row.push((age.unwrap_or_else(|| "none".to_owned()), None));
            row.push((carried, None));
        }
        table.row(row);
        if let Some(note) = note(peer) {
            table.note(note);
        }
    }
    table
}

fn path_text(peer: &Peer) -> String {
    let path = &peer.path;
    let remote = path.remote.as_ref();
    let detail = match path.kind {
        PathKind::Direct => remote.map(|end| format!("{} {}", end.address, end.kind)),
        PathKind::Native => remote.map(|end| end.address.to_string()),
        PathKind::Relayed => {
            let transport = path.relay_transport.as_deref().unwrap_or("udp");
            // Through the other side's relay its host is not known, only its address.
            let relay = path.relay.clone();
            let relay = relay.or_else(|| remote.map(|end| end.address.to_string()));
            Some(format!("{transport} {}", relay.unwrap_or_default()))
        }
        PathKind::None if says_itself(peer) => Some(peer.summary.clone()),
        PathKind::None => None,
    };
    let kind = match is_untried(peer) {
        true => "untried",
        false => path.kind.as_str(),
    };
    let text = format!("{kind:<7} {}", detail.unwrap_or_default());
    text.trim_end().to_owned()
}

/// Whether nothing has been sent to WireGuard's own endpoint yet: it may work or not.
fn is_untried(peer: &Peer) -> bool {
    peer.path.kind == PathKind::Native && !peer.path.up
}

/// Reasons short enough to stand in the table.
fn says_itself(peer: &Peer) -> bool {
    matches!(peer.reason.as_str(), "peer-away" | "no-advert" | "checking")
}

/// What stands below a peer that is not as well as it could be.
fn note(peer: &Peer) -> Option<String> {
    if peer.too_large > 0 {
        return Some(format!(
            "{} did not fit its path (wice why {})",
            count(
                usize::try_from(peer.too_large).unwrap_or(usize::MAX),
                "packet"
            ),
            peer.name
        ));
    }
    if peer.endpoint_resets > 0 {
        return Some(format!(
            "another program has reset its endpoint {} (see the daemon's log)",
            count(
                usize::try_from(peer.endpoint_resets).unwrap_or(usize::MAX),
                "time"
            )
        ));
    }
    if peer.hint.is_empty() || peer.is_away() {
        return None;
    }
    Some(format!(
        "{}: {} (wice why {})",
        peer.summary, peer.hint, peer.name
    ))
}

fn kind_paint(kind: PathKind) -> Paint {
    match kind {
        PathKind::Native | PathKind::Direct => Paint::Good,
        PathKind::Relayed => Paint::Fair,
        PathKind::None => Paint::Bad,
    }
}

fn signaling_text(signaling: &Signaling, style: Style) -> String {
    let since = duration(Duration::from_secs(signaling.since_s));
    let error = signaling
        .error
        .as_ref()
        .map_or_else(String::new, |error| format!(": {error}"));
    if signaling.connected {
        let connected = format!("{}  connected {since}", signaling.url);
        return match error.is_empty() {
            true => connected,
            false => format!(
                "{connected}, {}",
                style.paint(
                    &format!("but what this node says is not published{error}"),
                    Paint::Bad
                )
            ),
        };
    }
    let text = format!("not connected for {since}{error}");
    format!("{}  {}", signaling.url, style.paint(&text, Paint::Bad))
}

/// `servers` is how many STUN servers are asked of one address, if that is known.
fn nat_line(nat: &Nat, servers: Option<usize>) -> String {
    let ipv6 = if nat.ipv6 { "IPv6 global" } else { "IPv6 none" };
    let mapping = match nat.mapping.as_str() {
        "blocked" => return format!("not known, UDP blocked, {ipv6}"),
        "none" => "none (seen at its own address)".to_owned(),
        "unknown" => match servers {
            Some(0) => "not known: there is no STUN server to ask (--stun stun:HOST:3478)",
            Some(1) => "not known: it takes two STUN servers, and there is one (add a relay, or --stun stun:HOST:3478)",
            Some(_) | None => "not known yet (two STUN servers tell)",
        }
        .to_owned(),
        "address-and-port-dependent" => "address-and-port-dependent mapping (symmetric)".to_owned(),
        other => format!("{other} mapping"),
    };
    let filtering = match nat.filtering.as_str() {
        "unknown" => String::new(),
        other => format!(", {other} filtering"),
    };
    let udp = if nat.mapping == "unknown" {
        ""
    } else {
        ", UDP open"
    };
    format!("{mapping}{filtering}{udp}, {ipv6}")
}

pub(super) fn short_nat(nat: &Nat) -> String {
    match nat.mapping.as_str() {
        "none" => "no NAT".to_owned(),
        "blocked" => "UDP blocked".to_owned(),
        "unknown" => "NAT not known".to_owned(),
        "address-and-port-dependent" => "symmetric".to_owned(),
        other => format!("{other} mapping"),
    }
}
