//! Handshakes that both sides of an attached pair begin: however far apart, none costs the 5 s after which WireGuard tries again.
//! `WICE_TEST_WIREGUARD=kernel` makes the interfaces the kernel's.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use wice::lab::{LabConfig, NatKind};
use wice_netns_tests::{PATIENCE, RTT, Random, Table, Want, WireGuards, alone, seconds};

/// How far apart the two sides begin, pair by pair: past all that the way there and back takes.
const STEP: Duration = Duration::from_millis(15);
/// From the first ping to answers both ways: less than the 5 s after which WireGuard repeats a handshake that was lost.
const CONNECTED: Duration = Duration::from_secs(4);

/// Five homes behind routers that let them meet directly and four behind ones that make them use a relay, each with all: 10 pairs
/// that are direct, 26 relayed ones.
#[test]
fn whenever_both_sides_begin_the_first_handshake_passes() -> Result<()> {
    let _alone = alone();
    let mut random = Random::from_environment();
    let mut table = Table::new(format!("both sides begin, WICE_SEED={}", random.seed()));
    let direct = std::iter::repeat_n(NatKind::PortRestricted, 5);
    let config = LabConfig {
        rtt: RTT,
        ..LabConfig::of_kinds(direct.chain(std::iter::repeat_n(NatKind::Symmetric, 4)))
    };
    let homes = config.homes.clone();
    let names: Vec<&str> = homes.iter().map(|home| home.name.as_str()).collect();
    let mut all = WireGuards::build(config, &names)?;
    let mut pairs: Vec<(&str, &str, Want)> = Vec::new();
    for (number, first) in homes.iter().enumerate() {
        for second in homes.iter().skip(number + 1) {
            all.add_peer(&first.name, &second.name, None)?;
            all.add_peer(&second.name, &first.name, None)?;
            pairs.push((&first.name, &second.name, Want::of(first.nat, second.nat)));
        }
    }
    for node in &names {
        all.attach(node, &["--direct", "shared-port"])?;
    }
    let settled = all
        .mesh
        .settle_within(&pairs, Instant::now(), 2 * PATIENCE)?;
    for (first, second, _) in &pairs {
        all.wait_endpoint(first, second)?;
        all.wait_endpoint(second, first)?;
    }
    random.shuffle(&mut pairs);
    let mut slowest = Duration::ZERO;
    for (number, (first, second, _)) in (0..).zip(&pairs) {
        let apart = STEP * number;
        let took = all.first_pings_apart(first, second, apart, Instant::now())?;
        ensure!(
            took <= apart + CONNECTED,
            "{first} and {second}, {} apart: answered after {}\n{}",
            seconds(apart),
            seconds(took),
            all.evidence(first, second)
        );
        slowest = slowest.max(took.saturating_sub(apart));
    }
    let came = format!("slowest answer after {}", seconds(slowest));
    table.row(format!("{} pairs", pairs.len()), came, settled);
    all.mesh.check_quiet(&[])
}
