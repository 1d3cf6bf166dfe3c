//! Everything goes into the tunnel, as wg-quick sets it up for `AllowedIPs = 0.0.0.0/0`: WireGuard marks its packets,
//! policy routing keeps out what bears the mark, and so do signaling, checks and relays of the path.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::{LabConfig, NatKind};
use wice_netns_tests::{PATIENCE, RTT, Table, Want, WireGuards, alone, seconds};

const NODES: [&str; 2] = ["home-a", "home-b"];
const BOTH_WAYS: [(&str, &str); 2] = [("home-a", "home-b"), ("home-b", "home-a")];
const PINGS: Duration = Duration::from_millis(20);
/// A path that stands notices nothing: sockets are marked at the next look, a second later at most, and what was
/// sent into the tunnel meanwhile was lost.
const SWITCHED: Duration = Duration::from_secs(2);

/// home-a's default route leads into the tunnel, by wg-quick's rules.
fn full_tunnel(all: &WireGuards) -> Result<()> {
    let key = all.key("home-b")?.to_string();
    let allow = ["set", "wg0", "peer", &key, "allowed-ips", "0.0.0.0/0"];
    all.wg("home-a", &allow)?;
    all.wg("home-a", &["set", "wg0", "fwmark", "51820"])?;
    for rule in [
        "route add default dev wg0 table 51820",
        "rule add not fwmark 51820 table 51820",
        "rule add table main suppress_prefixlength 0",
    ] {
        all.ip("home-a", rule)?;
    }
    Ok(())
}

/// Relays over UDP and over TLS, and a direct path; the tunnel is there first, or it comes when the path stands.
#[test]
fn paths_of_a_full_tunnel_stay_out_of_it() -> Result<()> {
    use NatKind::{PortRestricted, Symmetric, UdpBlocked};
    let _alone = alone();
    let mut table = Table::new("full tunnel on home-a");
    for kinds in [
        [Symmetric, Symmetric],
        [UdpBlocked, PortRestricted],
        [PortRestricted, PortRestricted],
    ] {
        for tunnel_first in [true, false] {
            let config = LabConfig {
                rtt: RTT,
                ..LabConfig::of_kinds(kinds)
            };
            let mut all = WireGuards::build(config, &NODES)?;
            all.join_all()?;
            if tunnel_first {
                full_tunnel(&all)?;
            }
            for node in NODES {
                all.attach(node, &["--direct", "auto"])?;
            }
            for (node, peer) in BOTH_WAYS {
                all.wait_endpoint(node, peer)?;
            }
            let start = Instant::now();
            let first = all.first_pings("home-a", "home-b", start)?;
            let want = Want::of(kinds[0], kinds[1]);
            all.mesh
                .settle(&[("home-a", "home-b", want.clone())], start)?;
            let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            if tunnel_first {
                table.row(names.join(" "), "first pings", first);
                all.mesh.check_quiet(&[])?;
                continue;
            }
            let pings = all.pings("home-a", "home-b", PINGS)?;
            pings
                .back_after(Instant::now(), PATIENCE)
                .with_context(|| all.evidence("home-a", "home-b"))?;
            let switched = Instant::now();
            full_tunnel(&all)?;
            std::thread::sleep(5 * SWITCHED);
            let gap = pings.longest_gap(switched);
            table.row(names.join(" "), "the tunnel comes later, longest gap", gap);
            let evidence = || all.evidence("home-a", "home-b");
            ensure!(gap <= SWITCHED, "{}\n{}", seconds(gap), evidence());
            all.mesh.settle(&[("home-a", "home-b", want)], switched)?;
        }
    }
    Ok(())
}
