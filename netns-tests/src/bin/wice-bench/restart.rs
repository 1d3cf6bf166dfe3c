//! From a crashed daemon's restart, with signaling down, until it is back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use wice::lab::NatKind;
use wice_netns_tests::{Mesh, Want, seconds};

use crate::times::Times;
use crate::{FIRST, SECOND, two_homes, verdict};

/// How often the node that stays pings the one that crashes: times are right to this.
const PINGS: Duration = Duration::from_millis(10);
/// What a daemon keeps is written within a second; until then there is nothing to go on with.
const WRITTEN: Duration = Duration::from_secs(2);
/// How long the crashed daemon is away.
const AWAY: Duration = Duration::from_secs(1);
/// When a run counts as failed.
const PATIENCE: Duration = Duration::from_secs(15);
const TARGET: Duration = Duration::from_secs(3);

pub(crate) fn measure(runs: u32) -> Result<String> {
    let mut table = format!(
        "| {runs} runs each | min | median | p95 | max | target | verdict |\n\
         |---|--:|--:|--:|--:|---|---|\n"
    );
    for (what, nat) in [
        ("direct", NatKind::PortRestricted),
        ("relayed", NatKind::Symmetric),
    ] {
        let mut mesh = Mesh::build(two_homes(nat, nat))?;
        let mut times = Times::default();
        for run in 1..=runs {
            match crash(&mut mesh, nat) {
                Ok(back) => {
                    eprintln!("restart, {what}: {run}/{runs} {}", seconds(back));
                    times.add(back);
                }
                Err(error) => {
                    eprintln!("restart, {what}: {run}/{runs} failed: {error:#}");
                    times.fail();
                }
            }
            mesh.lab.service("signaling")?.kill9();
            mesh.lab.start_signal()?;
            mesh.start_over().context("starting over")?;
        }
        table.push_str(&format!(
            "| {what} | {} | every run ≤ {} | {} |\n",
            times.cells(),
            seconds(TARGET),
            verdict(times.keep(100, TARGET))
        ));
    }
    Ok(table)
}

fn crash(mesh: &mut Mesh, nat: NatKind) -> Result<Duration> {
    mesh.meet(FIRST, SECOND, &Want::of(nat, nat))?;
    std::thread::sleep(WRITTEN);
    let pings = mesh.pings(FIRST, SECOND, PINGS)?;
    mesh.lab.service("signaling")?.kill9();
    mesh.daemon(SECOND)?.kill9();
    std::thread::sleep(AWAY);
    let start = Instant::now();
    mesh.up_again(SECOND)?;
    let back = pings.back_after(start, PATIENCE);
    back.with_context(|| format!("no ping answered\n{}", mesh.evidence(FIRST, SECOND)))
}
