//! Starts `icecat` and its peers, carries their lines, and asks for data both ways.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// From the start of both programs to data both ways; the slowest peer waits two seconds by itself.
pub const LIMIT: Duration = Duration::from_secs(15);

/// All of them.
pub fn peers() -> [Command; 5] {
    let mut aioice = Command::new(built("venv/bin/python3"));
    aioice.arg(here().join("peers/aioice_peer.py"));
    [
        Command::new(env!("CARGO_BIN_EXE_is_peer")),
        Command::new(env!("CARGO_BIN_EXE_webrtc_peer")),
        aioice,
        Command::new(built("nice_peer")),
        Command::new(built("pion_peer")),
    ]
}

/// The peer's file name.
pub fn last_argument(peer: &Command) -> String {
    let last = peer.get_args().last().unwrap_or(peer.get_program());
    let name = Path::new(last).file_name().unwrap_or(last);
    name.to_string_lossy().into_owned()
}

pub fn with_role(peer: &Command, controlling: bool, address: &str) -> Command {
    let mut command = Command::new(peer.get_program());
    command
        .args(peer.get_args())
        .arg(role(controlling))
        .arg(address);
    command
}

/// Runs our side in this role against a peer that has started.
pub fn meet(
    name: &str,
    controlling: bool,
    ours: Command,
    mut other: Program,
) -> (Program, Program) {
    let begun = Instant::now();
    let mut ours = start(ours);
    ours.tell(&other.signaling(begun));
    other.tell(&ours.signaling(begun));
    ours.until("state connected", begun);
    other.until("state connected", begun);
    let connected = begun.elapsed();
    // Some stacks say "connected" a moment before they take data: lines until one arrives.
    ours.send_until(&mut other, "from us", begun);
    other.send_until(&mut ours, "from them", begun);
    let us = role(controlling);
    println!(
        "{name}: we {us}, connected in {connected:?}, data both ways in {:?}",
        begun.elapsed()
    );
    (ours, other)
}

pub struct Program {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    pub seen: Vec<String>,
}

pub fn start(mut command: Command) -> Program {
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.unwrap_or_else(|error| {
        panic!("{command:?} did not start ({error}): run tests/interop/setup.sh first")
    });
    let input = child.stdin.take().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let seen = Vec::new();
    Program {
        child,
        input,
        lines,
        seen,
    }
}

impl Program {
    pub fn signaling(&mut self, begun: Instant) -> Vec<String> {
        // Credentials first: some stacks give candidates before them.
        self.until("end", begun);
        let mut lines: Vec<String> = self.seen.drain(..).collect();
        lines.sort_by_key(|line| match line.split(' ').next() {
            Some("ufrag") => 0,
            Some("pwd") => 1,
            Some("cand") => 2,
            _ => 3,
        });
        lines
    }

    pub fn tell(&mut self, lines: &[String]) {
        for line in lines {
            writeln!(self.input, "{line}").unwrap();
        }
    }

    pub fn until(&mut self, wanted: &str, begun: Instant) {
        while !self.poll(wanted, Duration::from_millis(100)) {
            assert!(
                begun.elapsed() < LIMIT,
                "no {wanted:?} in time: {:?}",
                self.seen
            );
        }
    }

    pub fn poll(&mut self, wanted: &str, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            if self.seen.iter().any(|line| line == wanted) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(_) => return false,
            }
        }
    }

    pub fn send_until(&mut self, other: &mut Self, text: &str, begun: Instant) {
        loop {
            self.tell(&[text.to_owned()]);
            if other.poll(&format!("data {text}"), Duration::from_millis(200)) {
                return;
            }
            assert!(
                begun.elapsed() < LIMIT,
                "{text:?} did not arrive: {:?}",
                other.seen
            );
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn icecat_command(controlling: bool, address: &str) -> Command {
    let binary = std::env::var_os("ICECAT").map_or_else(
        || here().join("../../target/debug/examples/icecat"),
        PathBuf::from,
    );
    let mut command = Command::new(binary);
    command.arg(format!("--{}", role(controlling)));
    command.args(["--bind", address]);
    command
}

pub fn role(controlling: bool) -> &'static str {
    if controlling {
        "controlling"
    } else {
        "controlled"
    }
}

/// The machine's own address; some stacks refuse loopback. `INTEROP_ADDRESS` names another.
pub fn address() -> String {
    std::env::var("INTEROP_ADDRESS").unwrap_or_else(|_| {
        let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        // Nothing is sent: this asks for the route (RFC 5737 address).
        probe
            .connect("192.0.2.1:9")
            .expect("no default route: run ./run.sh, which makes a namespace with an address");
        probe.local_addr().unwrap().ip().to_string()
    })
}

pub fn built(name: &str) -> PathBuf {
    here().join("target/peers").join(name)
}

pub fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
