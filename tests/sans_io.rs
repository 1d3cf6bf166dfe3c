//! The core does no I/O: it has no clock, socket, random numbers of its own, or environment.

use std::fs;
use std::path::{Path, PathBuf};

/// What would let the world in.
const FORBIDDEN: [&str; 12] = [
    "tokio::",
    "std::net::UdpSocket",
    "std::net::Tcp",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "OsRng",
    "thread_rng",
    "SystemRandom",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            // Tests may look at a clock to have a first instant.
            if path.file_name().is_some_and(|name| name != "tests") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_core_and_the_protocol_touch_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in [
        "src/core",
        "signaling/src/protocol",
        "src/signaling/kubernetes/state",
        "turn-server/src/codec",
        "turn-server/src/server",
    ] {
        sources(&root.join(folder), &mut files);
    }
    assert!(
        files.len() > 40,
        "{} files: the folders have moved",
        files.len()
    );
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        let is_tests = file.file_stem().is_some_and(|name| {
            let name = name.to_string_lossy();
            name == "tests" || name.ends_with("_tests") || name == "testing"
        });
        if is_tests {
            continue;
        }
        let code = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            for word in FORBIDDEN {
                let at = format!("{}:{}", file.display(), number + 1);
                assert!(!line.contains(word), "{at}: {word} in what must be sans-IO");
            }
        }
    }
}
