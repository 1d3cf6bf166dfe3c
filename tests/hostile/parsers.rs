//! Every target under the mutator.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::Instant;

use crate::entries::{Fed, TARGETS, Target};
use crate::mutator::Mutator;

/// Inputs a target where nothing else is said: a few seconds each.
const INPUTS: u64 = 200_000;

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { fuzz(stringify!($name)); })*

        #[test]
        fn no_target_is_left_out() {
            let run = [$(stringify!($name)),*];
            let all: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(run.as_slice(), all);
        }
    };
}

targets! {
    advert,
    routes,
    membership,
    revocations,
    sealed,
    overlay_routes,
    token,
    client_frame,
    server_frame,
    signal_url,
    server_address,
    relay_url,
    servers_header,
    config,
    control,
    proxy_answer,
    proxy_url,
    stun,
    stun_server,
    agent,
    node,
    router_http,
    router,
    turn_datagram,
    turn_stream,
    tunnels,
    gso,
    slots,
    state,
    uapi,
}

fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let limit = std::env::var("WICE_FUZZ_INPUTS").map_or(INPUTS, |text| {
        text.parse().expect("WICE_FUZZ_INPUTS is a number")
    });
    let mut mutator = Mutator::new(name, seeds(target), target.max_len);
    let (start, mut total, mut most) = (Instant::now(), Fed::default(), 0);
    while total.inputs < limit {
        let input = mutator.input();
        let fed = run(target, &input);
        total.inputs += fed.inputs.max(1);
        total.accepted += fed.accepted;
        // Of scripts those that get far: cutting makes them shorter and shorter.
        most = most.max(fed.accepted);
        if fed.accepted > 0 && fed.accepted >= most / 2 {
            mutator.keep(input);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "fuzz {name}: {} inputs, {} accepted, {seconds:.1} s",
        total.inputs, total.accepted
    );
    // A run that gets nowhere, or is let in everywhere, tries nothing.
    assert!(
        total.accepted > 0 && total.accepted < total.inputs,
        "{total:?}"
    );
}

/// Those made by code, then those that are kept because they once failed.
fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let made = (target.seeds)();
    let first = run(target, &made[0]);
    assert!(
        first.accepted > 0,
        "the first seed of {} is valid",
        target.name
    );
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder(target))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let read = paths.iter().map(|path| std::fs::read(path).unwrap());
    made.into_iter().chain(read).collect()
}

fn folder(target: &Target) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("fuzz/seeds").join(target.name)
}

fn run(target: &Target, input: &[u8]) -> Fed {
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    outcome.unwrap_or_else(|panic| {
        eprintln!("{} fails on {}", target.name, hex::encode(input));
        resume_unwind(panic)
    })
}

/// For libFuzzer, which reads files: `cargo test --test hostile -- --ignored write_seeds`.
#[test]
#[ignore = "writes fuzz/seeds"]
fn write_seeds() {
    for target in TARGETS {
        let folder = folder(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (n, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("made-{n}")), seed).unwrap();
        }
    }
}
