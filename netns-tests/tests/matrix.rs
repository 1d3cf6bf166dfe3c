//! The matrix: seven kinds of homes with seven, real daemons behind real NATs.

use std::time::Instant;

use anyhow::{Context as _, Result};
use wice::lab::{LabConfig, NatKind, TurnServer};
use wice_netns_tests::{Mesh, PATIENCE, RTT, Random, Table, Want, alone, seconds};

/// Rounds with starts in random order and at random times.
const ROUNDS: usize = 3;

/// Two homes of each kind in one network: 91 pairs at once, the 49 of the matrix among them. Every
/// pair is direct if and only if the NATs allow it, with the ends that the NATs allow, as both of
/// its nodes say; and a ping passes both ways. The relay is coturn in one round, `wice turn` in the others.
#[test]
fn fourteen_homes_in_one_network() -> Result<()> {
    let _alone = alone();
    let mut random = Random::from_environment();
    let mut table = Table::new(format!("14 homes, WICE_SEED={}", random.seed()));
    for round in 1..=ROUNDS {
        let twice = NatKind::MATRIX.into_iter().chain(NatKind::MATRIX);
        let turn_server = match round {
            2 => TurnServer::Coturn,
            _ => TurnServer::Wice,
        };
        let mut mesh = Mesh::build(LabConfig {
            rtt: RTT,
            turn_server,
            ..LabConfig::of_kinds(twice)
        })?;
        let homes = mesh.lab.config().homes.clone();
        let mut order: Vec<&str> = homes.iter().map(|home| home.name.as_str()).collect();
        random.shuffle(&mut order);
        for node in &order {
            mesh.up(node, &[])?;
            std::thread::sleep(random.pause(RTT * 5));
        }
        let start = Instant::now();
        let mut pairs = Vec::new();
        for (index, first) in homes.iter().enumerate() {
            for second in &homes[index + 1..] {
                let want = Want::of(first.nat, second.nat);
                pairs.push((first.name.as_str(), second.name.as_str(), want));
            }
        }
        let settled = mesh
            .settle(&pairs, start)
            .with_context(|| format!("round {round}, WICE_SEED={}", random.seed()))?;
        let mut slowest = std::time::Duration::ZERO;
        for (first, second, _) in &pairs {
            slowest = slowest.max(mesh.ping_both_ways(first, second)?);
        }
        table.row(
            format!(
                "round {round}: {} pairs, relay {}",
                pairs.len(),
                turn_server.name()
            ),
            format!("as the NATs allow, slowest ping {}", seconds(slowest)),
            settled,
        );
        mesh.check_quiet(&[])?;
    }
    Ok(())
}

/// Each kind with each in a lab of their own: from the second's start to the first ping's answer.
#[test]
fn each_pair_by_itself() -> Result<()> {
    let _alone = alone();
    let mut random = Random::from_environment();
    let mut table = Table::new(format!(
        "pairs: first ping both ways, WICE_SEED={}",
        random.seed()
    ));
    let mut wrong = Vec::new();
    for (index, first) in NatKind::MATRIX.into_iter().enumerate() {
        for second in &NatKind::MATRIX[index..] {
            let mut mesh = Mesh::build(LabConfig {
                rtt: RTT,
                ..LabConfig::of_kinds([first, *second])
            })?;
            mesh.up("home-a", &[])?;
            std::thread::sleep(random.pause(RTT * 10));
            mesh.up("home-b", &[])?;
            let start = Instant::now();
            let want = Want::of(first, *second);
            match mesh.met("home-a", "home-b", &want, start) {
                Ok(met) => table.row(format!("{first} {second}"), met.path, met.first_ping),
                Err(error) => wrong.push(format!("{first} {second}: {error:#}")),
            }
            mesh.check_quiet(&[])?;
        }
    }
    anyhow::ensure!(
        wrong.is_empty(),
        "{} wrong after {PATIENCE:?}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}
