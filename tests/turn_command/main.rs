//! `wice turn` as operators run it: usage, config file, secrets, signals.

#![allow(clippy::unwrap_used)]

mod check;
#[path = "../common/namespace.rs"]
mod namespace;

use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Longer than a start, a reload or an end takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wice-turn-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running `wice turn`, killed at the end.
struct Running {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_wice"))
            .args([
                "turn",
                "--listen",
                "udp://127.0.0.1:0",
                "--relay-ip",
                "127.0.0.1",
            ])
            .args(arguments)
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self::of(child)
    }

    fn of(mut child: Child) -> Self {
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// The next line of the log with `text`.
    fn line(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.log.read_line(&mut line).unwrap(),
                0,
                "ended without {text}"
            );
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(start.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fails(arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_wice"))
        .arg("turn")
        .args(arguments)
        .output()
        .unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn what_cannot_be_meant_is_said() {
    let folder = Folder::new("usage");
    let open = folder.write("open", "secret\n", 0o644);
    let empty = folder.write("empty", "\n\n", 0o600);
    let typo = folder.write("typo.toml", "relm = \"x\"\n", 0o600);
    let user = "alice:wonderland";
    for (arguments, word) in [
        (&[][..], "--secret-file"),
        (&["--user", "alice"], "NAME:PASSWORD"),
        (&["--user", user, "--listen", "0.0.0.0:3478"], "udp://"),
        (&["--user", user, "--ports", "5000"], "49152-65535"),
        (&["--user", user, "--ports", "5000-5000"], "too small"),
        (
            &["--user", user, "--allow-peer", "10.0.0.0/33"],
            "10.0.0.0/8",
        ),
        (&["--user", user, "--cert", "c.pem"], "belong together"),
        (&["--user", user, "--listen", "tls://127.0.0.1"], "--cert"),
        (&["--secret-file", &open], "chmod 600"),
        (&["--secret-file", &empty], "no secret"),
        (&["--secret-file", "/nowhere"], "/nowhere"),
        (&["--config", &typo], "relm"),
        (
            &["--user", user, "--relay-ip", "192.0.2.77"],
            "127.0.0.1 (lo)",
        ),
    ] {
        let (code, text) = fails(arguments);
        assert_eq!(code, 64, "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?}: {text}");
    }
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = format!("udp://{}", taken.local_addr().unwrap());
    let (code, text) = fails(&[
        "--user",
        user,
        "--listen",
        &listen,
        "--relay-ip",
        "127.0.0.1",
    ]);
    assert!(
        code == 2 && text.contains("another program"),
        "{code}: {text}"
    );
}

/// A machine that starts up: the kernel still looks whether anybody else has its new address (RFC 4862 §5.4), and nobody may bind
/// it before.
#[test]
fn an_ipv6_address_that_is_new_is_waited_for() {
    let Some([a, _b]) = namespace::two_namespaces() else {
        return;
    };
    a.ip("address add 2001:db8::77/64 dev veth-a");
    let start = |relay_ip: &'static str| {
        let spawned = a.spawn(move || {
            let listen = "udp://[2001:db8::77]:3478";
            Command::new(env!("CARGO_BIN_EXE_wice"))
                .args(["turn", "--user", "alice:wonderland", "--listen", listen])
                .args(["--relay-ip", relay_ip])
                .env("NO_COLOR", "1")
                .stderr(Stdio::piped())
                .spawn()
        });
        Running::of(spawned.join().unwrap().unwrap())
    };
    let tentative = a.spawn(|| UdpSocket::bind("[2001:db8::77]:0").is_err());
    assert!(tentative.join().unwrap(), "nothing to wait for");
    let line = start("2001:db8::77").line("turn-serving");
    assert!(line.contains("[2001:db8::77]:3478"), "{line}");
    let mut elsewhere = start("2001:db8::78");
    let line = elsewhere.line("does not have this address");
    assert!(line.contains("2001:db8::78"), "{line}");
    assert_eq!(elsewhere.end(), 64);
}

#[test]
fn it_reloads_on_sighup_and_ends_on_sigterm() {
    let folder = Folder::new("signals");
    let config = folder.write(
        "turn.toml",
        "realm = \"lab\"\nuser = [\"alice:wonderland\"]\n",
        0o600,
    );
    let mut running = Running::start(&["--config", &config]);
    assert!(running.line("turn-serving").contains("realm=lab"));
    folder.write(
        "turn.toml",
        "realm = \"lab\"\nuser = [\"bob:builder\"]\n",
        0o600,
    );
    running.signal(Signal::HUP);
    let line = running.line("turn-reloaded");
    assert!(!line.contains("needs_restart"), "{line}");
    folder.write(
        "turn.toml",
        "realm = \"lab\"\nuser = [\"bob:builder\"]\nports = \"50000-50100\"\nthreads = 3\n",
        0o600,
    );
    running.signal(Signal::HUP);
    let line = running.line("turn-reloaded");
    assert!(line.contains("needs_restart=ports,threads"), "{line}");
    folder.write("turn.toml", "rubbish", 0o600);
    running.signal(Signal::HUP);
    assert!(running.line("turn-not-reloaded").contains("turn.toml"));
    running.signal(Signal::TERM);
    running.line("turn-draining");
    let line = running.line("turn-stopped");
    assert!(
        line.contains("cut_off=0") && line.contains("had ended"),
        "{line}"
    );
    assert_eq!(running.end(), 0);
}

/// Allocates over UDP, by hand; the allocation stays.
fn allocate(server: &str) {
    use wice_turn::codec::{Class, Hash, Key, Message, TransactionId, Writer, attribute, method};
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut nonce = Vec::new();
    for n in 0..2 {
        let mut writer = Writer::new(Class::Request, method::ALLOCATE, TransactionId([n; 12]));
        writer.add(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        let key = Key::md5("alice", "wice", "wonderland");
        let mut seal = None;
        if !nonce.is_empty() {
            writer.add(attribute::USERNAME, b"alice");
            writer.add(attribute::REALM, b"wice");
            writer.add(attribute::NONCE, &nonce);
            seal = Some((&key, Hash::Sha1));
        }
        socket.send(&writer.finish(seal, false)).unwrap();
        let mut buffer = [0; 1500];
        let len = socket.recv(&mut buffer).unwrap();
        let answer = Message::parse(&buffer[..len]).unwrap();
        match answer.get(attribute::NONCE) {
            Some(given) => nonce = given.to_vec(),
            None => assert_eq!(answer.class(), Class::Success),
        }
    }
}

#[test]
fn a_drain_that_runs_out_says_what_it_cut_off_and_a_second_signal_as_well() {
    for (drain, second, reason) in [
        ("1", false, "1 s of --drain"),
        ("60", true, "second signal"),
    ] {
        let mut running = Running::start(&["--user", "alice:wonderland", "--drain", drain]);
        let at = check::address(&mut running);
        allocate(&at);
        allocate(&at);
        running.signal(Signal::TERM);
        let line = running.line("turn-draining");
        assert!(line.contains("allocations=2"), "{line}");
        if second {
            running.signal(Signal::TERM);
        }
        let line = running.line("turn-stopped");
        assert!(
            line.contains("cut_off=2") && line.contains(reason),
            "{line}"
        );
        assert_eq!(running.end(), 0);
    }
}
