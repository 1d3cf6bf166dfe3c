//! The text of `wice netcheck`: one fact a line.

use super::style::Paint;
use super::{Netcheck, NetcheckFamily, RelayCheck, Style, TransportCheck, Udp, rtt};
use crate::core::policy::is_private;

/// The width of the words on the left.
const LABEL: usize = 13;

impl Netcheck {
    /// One fact a line.
    pub fn text(&self, style: Style) -> String {
        let mut out = String::new();
        let mut fact = |label: &str, text: &str| {
            let label = style.paint(&format!("{label:<LABEL$}"), Paint::Heading);
            out.push_str(format!("{label}{text}").trim_end());
            out.push('\n');
        };
        fact(
            "UDP",
            &match self.udp {
                Udp::Open => style.paint("open", Paint::Good),
                Udp::Blocked
                    if self.ipv4.addresses.is_empty() && self.ipv6.addresses.is_empty() =>
                {
                    style.paint(
                        "no network: this machine has no usable address (ip address)",
                        Paint::Bad,
                    )
                }
                Udp::Blocked => style.paint("blocked: no server answered over UDP", Paint::Bad),
                Udp::Unknown => "not known: no STUN server to ask (--stun stun:HOST)".to_owned(),
            },
        );
        fact("mapping", &self.mapping_text());
        fact(
            "filtering",
            &match self.nat.filtering.as_str() {
                "unknown" => "not known: only a STUN server with two addresses can tell".to_owned(),
                other => other.to_owned(),
            },
        );
        for (index, seen) in self.mappings.iter().enumerate() {
            let label = match (index, seen.mapped) {
                (0, Some(_)) => "seen as",
                (0, None) => "STUN",
                (_, _) => "",
            };
            let text = match (seen.mapped, seen.rtt_ms) {
                (Some(mapped), Some(ms)) => format!("{mapped} by {} in {}", seen.server, rtt(ms)),
                (Some(mapped), None) => format!("{mapped} by {}", seen.server),
                (None, _) => format!("no answer from {} ({})", seen.server, seen.address),
            };
            fact(label, &text);
        }
        fact(
            "hairpin",
            match self.hairpin {
                Some(true) => "yes",
                Some(false) => "no: two nodes behind this NAT meet only inside it",
                None if self.nat.mapping == "none" => "not needed: there is no NAT",
                None => "not known",
            },
        );
        fact("IPv4", &family_text(&self.ipv4));
        fact("IPv6", &family_text(&self.ipv6));
        if self.port_mappings.is_empty() {
            let none = match self.nat.mapping.as_str() {
                "none" => "not needed: there is no NAT",
                _ => "none: there is no router to ask",
            };
            fact("port mapping", none);
        }
        for router in &self.port_mappings {
            fact("port mapping", &router.summary);
        }
        if self.relays.is_empty() {
            fact("relay", "none known: give one with --turn");
        }
        for relay in &self.relays {
            fact("relay", &relay_text(relay, style));
            for check in &relay.transports {
                if let Some(failure) = &check.failure {
                    fact(
                        "",
                        &format!("{} {}: {failure}", check.transport, check.port),
                    );
                }
            }
        }
        for note in &self.notes {
            fact("note", note);
        }
        out
    }

    fn mapping_text(&self) -> String {
        match self.nat.mapping.as_str() {
            "none" => "none: seen at its own address".to_owned(),
            "unknown" => "not known: two STUN servers have to answer".to_owned(),
            "blocked" => "not known: UDP is blocked".to_owned(),
            "address-and-port-dependent" => {
                "address-and-port-dependent (symmetric): a direct path needs a peer that is easier to reach"
                    .to_owned()
            }
            "address-dependent" => {
                "address-dependent: a direct path needs a peer that is easier to reach".to_owned()
            }
            other => format!("{other}: good for direct paths"),
        }
    }
}

fn family_text(family: &NetcheckFamily) -> String {
    if family.addresses.is_empty() {
        return "none".to_owned();
    }
    let addresses: Vec<String> = family
        .addresses
        .iter()
        .map(|address| {
            let scope = if is_private(*address) {
                "private"
            } else {
                "global"
            };
            format!("{address} {scope}")
        })
        .collect();
    let works = match family.works {
        Some(true) => "",
        Some(false) => " (no server answers)",
        None => "",
    };
    format!("{}{works}", addresses.join(", "))
}

fn relay_text(relay: &RelayCheck, style: Style) -> String {
    let of = |check: &TransportCheck| match (check.rtt_ms, &check.failure) {
        (Some(ms), None) => format!("{} {}", check.transport, style.paint(&rtt(ms), Paint::Good)),
        (_, Some(_)) | (None, None) => {
            format!("{} {}", check.transport, style.paint("fails", Paint::Bad))
        }
    };
    let transports: Vec<String> = relay.transports.iter().map(of).collect();
    let allocates = relay
        .transports
        .iter()
        .any(|check| check.allocates == Some(true));
    let tried = relay
        .transports
        .iter()
        .any(|check| check.allocates.is_some());
    let credentials = match (tried, allocates) {
        (false, _) => ", credentials not tried",
        (true, true) => ", credentials work",
        (true, false) => "",
    };
    format!("{}  {}{credentials}", relay.name, transports.join(", "))
}
