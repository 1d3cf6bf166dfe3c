//! Measures real daemons behind real kernel NATs and prints Markdown tables for BENCHMARKS.md;
//! what goes on meanwhile is told on standard error. `benches/run` calls it.
//!
//! `wice-bench connect|restart [RUNS]`, `wice-bench idle [SECONDS]`

mod connect;
mod idle;
mod restart;
mod times;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use wice::lab::{HomeConfig, LabConfig, NatKind, acquire_privilege, check_tools};
use wice_netns_tests::RTT;

const USAGE: &str = "usage: wice-bench connect|restart [RUNS] or wice-bench idle [SECONDS]";
/// Runs of an item, if none are named.
const CONNECT_RUNS: u32 = 20;
const RESTART_RUNS: u32 = 10;
/// Seconds of rest that are measured, if none are named.
const IDLE_SECONDS: u32 = 60;
/// The most of either: an hour.
const MOST: u32 = 3600;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (item, count) = match arguments.as_slice() {
        [item] => (item, None),
        [item, count] => (item, Some(count.parse::<u32>().context(USAGE)?)),
        _ => bail!(USAGE),
    };
    ensure!(
        count.is_none_or(|count| (1..=MOST).contains(&count)),
        "give a number from 1 to {MOST}"
    );
    check_tools(false)?;
    acquire_privilege()?;
    let table = match item.as_str() {
        "connect" => connect::measure(count.unwrap_or(CONNECT_RUNS))?,
        "restart" => restart::measure(count.unwrap_or(RESTART_RUNS))?,
        "idle" => idle::measure(Duration::from_secs(count.unwrap_or(IDLE_SECONDS).into()))?,
        _ => bail!(USAGE),
    };
    print!("{table}");
    Ok(())
}

/// The node that is there first.
const FIRST: &str = "first";
/// The node that joins it.
const SECOND: &str = "second";

/// Two homes, 40 ms round trip between any two.
fn two_homes(first: NatKind, second: NatKind) -> LabConfig {
    LabConfig {
        homes: vec![
            HomeConfig::new(FIRST, first),
            HomeConfig::new(SECOND, second),
        ],
        rtt: RTT,
        ..LabConfig::default()
    }
}

/// Whether a target is reached, in a word.
fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "**missed**" }
}
