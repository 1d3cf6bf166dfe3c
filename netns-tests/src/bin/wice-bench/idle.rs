//! What two connected peers cost when nothing is said.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use wice::lab::NatKind;
use wice_netns_tests::{Mesh, Want};

use crate::{FIRST, SECOND, two_homes, verdict};

/// From the first ping until the cost is counted: path choice has ended by then.
const REST: Duration = Duration::from_secs(10);
/// The most of one core, in per cent.
const TARGET_CPU: f64 = 1.0;
/// The most memory, in units of 10^6 bytes.
const TARGET_MEMORY: f64 = 20.0;
/// Where the times in user and kernel mode stand after the program's name in `/proc/PID/stat`
/// (proc(5), fields 14 and 15).
const UTIME_AFTER_NAME: usize = 11;
/// Where received and sent bytes stand after an interface's name in `/proc/net/dev`.
const RECEIVED_AFTER_NAME: usize = 0;
const SENT_AFTER_NAME: usize = 8;
/// The router's interface to the internet.
const WAN: &str = "wan";

pub(crate) fn measure(time: Duration) -> Result<String> {
    let kinds = [
        ("direct", NatKind::PortRestricted),
        ("relayed", NatKind::Symmetric),
    ];
    // Both pairs rest at the same time, in labs of their own.
    let mut meshes = Vec::new();
    for (what, nat) in kinds {
        let mut mesh = Mesh::build(two_homes(nat, nat))?;
        mesh.meet(FIRST, SECOND, &Want::of(nat, nat))?;
        meshes.push((what, mesh));
    }
    eprintln!("idle: resting for {} s", (REST + time).as_secs());
    std::thread::sleep(REST);
    let start = Instant::now();
    let mut before = Vec::new();
    for (_, mesh) in &mut meshes {
        before.push([cost(mesh, FIRST)?, cost(mesh, SECOND)?]);
    }
    std::thread::sleep(time);
    let elapsed = start.elapsed();
    let mut table = format!(
        "| {} s, each daemon | CPU of one core | memory (RSS) | WAN in and out, a minute | target | verdict |\n\
         |---|--:|--:|--:|---|---|\n",
        time.as_secs()
    );
    for ((what, mesh), before) in meshes.iter_mut().zip(before) {
        for (node, before) in [FIRST, SECOND].into_iter().zip(before) {
            let after = cost(mesh, node)?;
            let cpu = 100.0 * (after.cpu - before.cpu).as_secs_f64() / elapsed.as_secs_f64();
            let memory = after.memory as f64 / 1e6;
            let bytes = (after.bytes - before.bytes) as f64 * 60.0 / elapsed.as_secs_f64();
            let reached = cpu <= TARGET_CPU && memory <= TARGET_MEMORY;
            table.push_str(&format!(
                "| {what}, {node} | {cpu:.2} % | {memory:.1} MB | {bytes:.0} bytes | \
                 ≤ {TARGET_CPU} %, ≤ {TARGET_MEMORY} MB | {} |\n",
                verdict(reached)
            ));
        }
    }
    Ok(table)
}

/// What a node has cost so far.
struct Cost {
    cpu: Duration,
    /// Bytes that are resident now.
    memory: u64,
    bytes: u64,
}

fn cost(mesh: &mut Mesh, node: &str) -> Result<Cost> {
    mesh.check_alive()?;
    let pid = mesh.daemon(node)?.pid();
    let router = mesh.lab.namespace(&format!("{node}.router"))?;
    let devices = router.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Cost {
        cpu: cpu(&stat).context("/proc/PID/stat is not as proc(5) has it")?,
        memory: resident(&status).context("/proc/PID/status has no VmRSS")?,
        bytes: wan_bytes(&devices).context("the router has no WAN")?,
    })
}

fn cpu(stat: &str) -> Option<Duration> {
    // SAFETY: asks for a number.
    let ticks_a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let (_, after_name) = stat.rsplit_once(')')?;
    let times = after_name.split_whitespace().skip(UTIME_AFTER_NAME).take(2);
    let ticks: Vec<f64> = times.map(str::parse).collect::<Result<_, _>>().ok()?;
    let [user, kernel] = ticks[..] else {
        return None;
    };
    Some(Duration::from_secs_f64(
        (user + kernel) / ticks_a_second as f64,
    ))
}

/// `VmRSS:   12345 kB`, where kB is 1,024 bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

fn wan_bytes(devices: &str) -> Option<u64> {
    let mut lines = devices.lines().map(str::trim_start);
    let counted = lines.find_map(|line| line.strip_prefix(WAN)?.strip_prefix(':'))?;
    let fields: Vec<u64> = counted
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    Some(fields.get(RECEIVED_AFTER_NAME)? + fields.get(SENT_AFTER_NAME)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 8 7 6 150 50 1 1 20 0 4 0 100";
        assert_eq!(cpu(stat), Some(Duration::from_secs(2)));
        assert_eq!(resident("Name:\twice\nVmRSS:\t  2048 kB\n"), Some(2 << 20));
        let devices =
            "Inter-|\n face |\n    lo: 5 5 0 0 0 0 0 0 5 5\n   wan: 70 2 0 0 0 0 0 0 30 1\n";
        assert_eq!(wan_bytes(devices), Some(100));
    }
}
