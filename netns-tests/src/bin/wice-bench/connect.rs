//! From the second daemon's start to its first overlay ping.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::lab::NatKind;
use wice_netns_tests::{Mesh, PATIENCE, Pinged, Want, seconds};

use crate::times::Times;
use crate::{FIRST, SECOND, two_homes, verdict};

/// What somebody waits for who joins.
struct Case {
    what: &'static str,
    first: NatKind,
    second: NatKind,
    want: Want,
    median: Duration,
    p95: Option<Duration>,
}

fn cases() -> [Case; 3] {
    use NatKind::{PortRestricted, Symmetric, UdpBlocked};
    let (median, p95) = (Duration::from_millis(500), Some(Duration::from_secs(1)));
    [
        Case {
            what: "port-restricted × port-restricted: direct",
            first: PortRestricted,
            second: PortRestricted,
            want: Want::of(PortRestricted, PortRestricted),
            median,
            p95,
        },
        Case {
            what: "symmetric × symmetric: relayed",
            first: Symmetric,
            second: Symmetric,
            want: Want::of(Symmetric, Symmetric),
            median,
            p95,
        },
        Case {
            what: "port-restricted × UDP blocked: relayed over TLS",
            first: PortRestricted,
            second: UdpBlocked,
            want: Want::of(PortRestricted, UdpBlocked).relayed_by("tls"),
            median: Duration::from_secs(2),
            p95: None,
        },
    ]
}

pub(crate) fn measure(runs: u32) -> Result<String> {
    let mut table = format!(
        "| {runs} runs each | min | median | p95 | max | final path, median | target | verdict |\n\
         |---|--:|--:|--:|--:|--:|---|---|\n"
    );
    for case in cases() {
        let (pinged, settled) = case.runs(runs)?;
        let mut target = format!("median ≤ {}", seconds(case.median));
        let mut reached = pinged.keep(50, case.median);
        if let Some(p95) = case.p95 {
            target.push_str(&format!(", p95 ≤ {}", seconds(p95)));
            reached &= pinged.keep(95, p95);
        }
        table.push_str(&format!(
            "| {} | {} | {} | {target} | {} |\n",
            case.what,
            pinged.cells(),
            settled.median(),
            verdict(reached)
        ));
    }
    Ok(table)
}

impl Case {
    /// Times to the first ping, and until the path was the one that stays.
    fn runs(&self, runs: u32) -> Result<(Times, Times)> {
        let mut mesh = Mesh::build(two_homes(self.first, self.second))?;
        let (mut pinged, mut settled) = (Times::default(), Times::default());
        for run in 1..=runs {
            match self.join(&mut mesh) {
                Ok(met) => {
                    let (ping, end) = (seconds(met.first_ping), seconds(met.settled));
                    eprintln!("{}: {run}/{runs} {ping}, {} {end}", self.what, met.path);
                    pinged.add(met.first_ping);
                    settled.add(met.settled);
                }
                Err(error) => {
                    eprintln!("{}: {run}/{runs} failed: {error:#}", self.what);
                    pinged.fail();
                    settled.fail();
                }
            }
            mesh.start_over().context("starting over")?;
        }
        Ok((pinged, settled))
    }

    fn join(&self, mesh: &mut Mesh) -> Result<Pinged> {
        mesh.up(FIRST, &[])?;
        ensure!(
            mesh.lab.wait_settled(FIRST, PATIENCE)?,
            "{FIRST} did not settle\n{}",
            mesh.evidence(FIRST, SECOND)
        );
        let start = Instant::now();
        mesh.up(SECOND, &[])?;
        mesh.met(FIRST, SECOND, &self.want, start)
    }
}
