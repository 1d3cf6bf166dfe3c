//! Who resets endpoints, as far as it can be known: mesh agents that run here and are known to write
//! a WireGuard interface, and whether it happens at regular times.

use std::fs;
use std::time::Duration;

/// Processes that are looked at.
const MAX_PROCESSES: usize = 65_536;

/// What a program does, by the name of its process, and what helps.
const KNOWN: [(&str, &str); 6] = [
    (
        "kg",
        "Kilo (kg) applies its own endpoints: persistent-keepalive is missing on the peer's node",
    ),
    ("cunicu", "cunicu sets endpoints too: run one of the two"),
    (
        "netclient",
        "Netmaker's netclient sets endpoints: run one of the two",
    ),
    ("innernet", "innernet sets endpoints: run one of the two"),
    ("wgsd-client", "wgsd-client sets endpoints: stop it"),
    (
        "netbird",
        "NetBird's agent owns its interface: wice cannot share it",
    ),
];

/// A sentence for the log.
pub(super) fn culprit(every: Option<Duration>) -> String {
    if let Some(what) = KNOWN.iter().find(|(name, _)| runs(name)) {
        return what.1.to_owned();
    }
    match every {
        Some(every) => format!(
            "a program applies its configuration every {} s (a timer, a mesh agent): find what runs wg or wg-quick",
            every.as_secs()
        ),
        None => "another program has set it (wg set, wg syncconf, a mesh agent)".to_owned(),
    }
}

fn runs(name: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    let mut processes = processes.flatten().take(MAX_PROCESSES);
    processes.any(|process| {
        let comm = fs::read_to_string(process.path().join("comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_found_by_its_name() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(runs(own.trim_end()));
        assert!(!runs("no-such-program"));
    }

    #[test]
    fn regular_resets_are_told_with_their_distance() {
        if KNOWN.iter().any(|(name, _)| runs(name)) {
            return; // a machine on which one of them really runs is told so
        }
        assert!(culprit(Some(Duration::from_secs(10))).contains("every 10 s"));
        assert!(culprit(None).starts_with("another program"));
    }
}
