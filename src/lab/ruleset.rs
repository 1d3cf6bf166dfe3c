//! nftables rulesets of the routers: one text for each kind of NAT.
//!
//! Endpoint-independent mapping is not what `masquerade` does by itself: the kernel keeps a port
//! only per flow. Here a map learns, behind source NAT, which inside endpoint has which external
//! port, a set learns who may send to it, and destination NAT lets in what the set permits: keyed
//! by port alone (full cone), by port and address, or by both and the remote port.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::config::{Ipv6, NatKind, TcpPolicy};
use super::mapper::Mapper;

/// How long a router remembers a silent UDP flow: the least that RFC 4787 REQ-5 allows is 2 min.
pub(super) const DEFAULT_UDP_TIMEOUT: Duration = Duration::from_secs(120);

/// First external port of the block of an inside host whose ports are not preserved.
const PORT_BLOCK_BASE: u16 = 20_000;
/// Ports of a block: two nodes on one source port never contend for one external port.
const PORT_BLOCK: u16 = 2_000;
/// Groups of destinations that the address-dependent NAT tells apart, by the address's low bits.
const ADDRESS_GROUPS: u16 = 32;
/// External ports for each group: 32 of 1,250 fill 20,000 to 59,999.
const GROUP_PORTS: u16 = 1_250;

/// A router's filter and NAT.
#[derive(Clone, Debug)]
pub(super) struct Ruleset {
    /// The NAT.
    pub kind: NatKind,
    /// The router's IPv4 address on the device `wan`; `None` without IPv4.
    pub wan: Option<Ipv4Addr>,
    /// Inside hosts in order; on the device `lan`.
    pub inside: Vec<Ipv4Addr>,
    /// Whether the first inside host's ports survive where they are free.
    pub preserve_ports: bool,
    /// Whether inside hosts reach each other by their mapped addresses; full cone only.
    pub hairpin: bool,
    /// Idle time after which a learnt mapping is forgotten.
    pub udp_timeout: Duration,
    /// What TCP a UDP-blocking router lets out.
    pub tcp: TcpPolicy,
    /// The proxy that may go out where nothing else may.
    pub proxy: Option<Ipv4Addr>,
    /// Whether ports are mapped on request.
    pub mapper: Option<Mapper>,
    /// IPv6 forwarding.
    pub ipv6: Ipv6,
}

impl Ruleset {
    /// The text for `nft -f -`; it replaces what was there, learnt mappings included.
    pub(super) fn text(&self) -> String {
        let mut text = String::from("flush ruleset\n");
        if let Some(wan) = self.wan {
            text.push_str(&self.nat(wan));
            text.push_str(&self.filter());
        }
        text.push_str(&self.filter6());
        text.push_str(&self.mapper.map(Mapper::ruleset).unwrap_or_default());
        text
    }

    fn nat(&self, wan: Ipv4Addr) -> String {
        let key = match self.kind {
            NatKind::Public | NatKind::Firewalled => return String::new(),
            NatKind::Symmetric => return symmetric(),
            NatKind::AddressDependent => return address_dependent(),
            NatKind::FullCone => Key::PORT,
            NatKind::AddressRestricted => Key::PORT_ADDRESS,
            NatKind::PortRestricted | NatKind::UdpBlocked | NatKind::Cgnat => {
                Key::PORT_ADDRESS_PORT
            }
        };
        self.endpoint_independent(wan, &key)
    }

    fn endpoint_independent(&self, wan: Ipv4Addr, key: &Key) -> String {
        let Key {
            types,
            inbound,
            outbound,
        } = key;
        let timeout = format!(
            "flags dynamic,timeout; timeout {}s; size 65535;",
            self.timeout()
        );
        let mut blocks = String::new();
        let mut hairpin_blocks = String::new();
        for (index, host) in self.inside.iter().enumerate() {
            let from = format!("meta l4proto udp ip saddr {host}");
            let range = self.ports_of(index);
            if let Some((first, last)) = range {
                let _ = writeln!(
                    blocks,
                    "  oifname \"wan\" {from} masquerade to :{first}-{last}"
                );
            }
            let to = range
                .map(|(first, last)| format!(":{first}-{last}"))
                .unwrap_or_default();
            let _ = writeln!(
                hairpin_blocks,
                "  oifname \"lan\" {from} ct status dnat snat ip to {wan}{to}"
            );
        }
        let hairpin = if self.hairpin {
            "iifname { \"wan\", \"lan\" }"
        } else {
            "iifname \"wan\""
        };
        let hairpin_blocks = if self.hairpin {
            hairpin_blocks
        } else {
            String::new()
        };
        format!(
            r#"table ip nat {{
 map eim {{ type inet_service : ipv4_addr . inet_service; {timeout} }}
 set allow {{ type {types}; {timeout} }}
 chain pre {{ type nat hook prerouting priority dstnat; policy accept;
  {hairpin} ip daddr {wan} meta l4proto udp {inbound} @allow dnat ip to udp dport map @eim
 }}
 chain post {{ type nat hook postrouting priority srcnat; policy accept;
{hairpin_blocks}{blocks}  oifname "wan" masquerade
 }}
 chain learn {{ type filter hook postrouting priority 150; policy accept;
  oifname "wan" meta l4proto udp ip saddr {wan} update @allow {{ {outbound} }} update @eim {{ udp sport : ct original ip saddr . ct original proto-src }}
 }}
}}
"#
        )
    }

    fn timeout(&self) -> u64 {
        self.udp_timeout.as_secs().max(1)
    }

    /// First and last external port of the `index`-th inside host, if it has a block.
    fn ports_of(&self, index: usize) -> Option<(u16, u16)> {
        if index == 0 && self.preserve_ports {
            return None;
        }
        let first = PORT_BLOCK_BASE + PORT_BLOCK * u16::try_from(index).unwrap_or(0);
        Some((first, first + PORT_BLOCK - 1))
    }

    /// The drop of what arrives for the router itself is what makes masquerading
    /// endpoint-independent: an accepted stray would leave a flow that takes the port away.
    fn filter(&self) -> String {
        let stateful = "  ct state established,related accept\n  ct status dnat accept\n";
        let forward = match self.kind {
            NatKind::Public => "  accept\n".to_string(),
            NatKind::FullCone
            | NatKind::AddressRestricted
            | NatKind::PortRestricted
            | NatKind::AddressDependent
            | NatKind::Symmetric
            | NatKind::Firewalled
            | NatKind::Cgnat => format!("{stateful}  iifname \"lan\" accept\n"),
            NatKind::UdpBlocked => format!("{stateful}{}", self.tcp_only("ip")),
        };
        let stray = match self.wan {
            Some(wan) if self.hairpin => format!("  ip daddr {wan} meta l4proto udp drop\n"),
            Some(_) | None => String::new(),
        };
        format!(
            "table ip fw {{\n{}{stray} }}\n{}{forward} }}\n}}\n",
            INPUT, FORWARD
        )
    }

    fn filter6(&self) -> String {
        let lan = if self.kind == NatKind::UdpBlocked {
            self.tcp_only("ip6")
        } else {
            "  iifname \"lan\" accept\n".to_string()
        };
        let forward = match self.ipv6 {
            Ipv6::None => return String::new(),
            Ipv6::Blackholed => String::new(),
            Ipv6::Open => "  accept\n".to_string(),
            Ipv6::Firewalled => format!("  ct state established,related accept\n{lan}"),
        };
        format!("table ip6 fw {{\n{INPUT} }}\n{FORWARD}{forward} }}\n}}\n")
    }

    fn tcp_only(&self, family: &str) -> String {
        let out = "  iifname \"lan\" oifname \"wan\"";
        match (self.tcp, self.proxy) {
            (TcpPolicy::Web, _) => format!("{out} tcp dport {{ 80, 443 }} accept\n"),
            (TcpPolicy::Any, _) => format!("{out} meta l4proto tcp accept\n"),
            (TcpPolicy::ProxyOnly, Some(proxy)) if family == "ip" => {
                format!("{out} ip saddr {proxy} meta l4proto tcp accept\n")
            }
            (TcpPolicy::ProxyOnly, _) => String::new(),
        }
    }
}

const INPUT: &str = r#" chain inp { type filter hook input priority 0; policy accept;
  iifname "wan" ct state established,related accept
  iifname "wan" meta l4proto { udp, tcp } drop
"#;

const FORWARD: &str = " chain forw { type filter hook forward priority 0; policy drop;\n";

/// What the set of permitted senders is keyed by.
struct Key {
    types: &'static str,
    inbound: &'static str,
    outbound: &'static str,
}

impl Key {
    const PORT: Self = Self {
        types: "inet_service",
        inbound: "udp dport",
        outbound: "udp sport",
    };
    const PORT_ADDRESS: Self = Self {
        types: "inet_service . ipv4_addr",
        inbound: "udp dport . ip saddr",
        outbound: "udp sport . ip daddr",
    };
    const PORT_ADDRESS_PORT: Self = Self {
        types: "inet_service . ipv4_addr . inet_service",
        inbound: "udp dport . ip saddr . udp sport",
        outbound: "udp sport . ip daddr . udp dport",
    };
}

fn symmetric() -> String {
    r#"table ip nat {
 chain post { type nat hook postrouting priority srcnat; policy accept;
  oifname "wan" masquerade fully-random
 }
}
"#
    .to_string()
}

/// Destinations are told apart by the low bits of their address, and the lab's plan keeps the STUN
/// servers and every home's WAN apart in them, so that no pair shares a mapping by chance.
fn address_dependent() -> String {
    let mut verdicts = String::new();
    let mut chains = String::new();
    for group in 0..ADDRESS_GROUPS {
        let first = PORT_BLOCK_BASE + group * GROUP_PORTS;
        let last = first + GROUP_PORTS - 1;
        let comma = if group == 0 { "" } else { ", " };
        let _ = write!(verdicts, "{comma}0.0.0.{group} : jump r{group}");
        let _ = writeln!(
            chains,
            " chain r{group} {{ meta l4proto udp masquerade to :{first}-{last}; }}"
        );
    }
    let mask = ADDRESS_GROUPS - 1;
    format!(
        r#"table ip nat {{
{chains} chain post {{ type nat hook postrouting priority srcnat; policy accept;
  oifname "wan" meta l4proto udp ip daddr & 0.0.0.{mask} vmap {{ {verdicts} }}
  oifname "wan" masquerade
 }}
}}
"#
    )
}
