//! The built binary, as people and scripts call it: exit codes, what goes to which stream, configuration, networks and invites.

#![allow(clippy::unwrap_used)]

mod configuration;
mod networks;
mod units;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("wice-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Without any variables of whoever runs the tests.
fn wice(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wice"));
    command
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied());
    command.output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn wrong_usage_is_64() {
    let folder = Folder::new("usage");
    let typo = folder.write("typo.toml", "listen_prot = 1\n");
    for arguments in [
        &[][..],
        &["fly"],
        &["attach"],
        &["status", "--jsno"],
        &["ping", "lab-b", "-c", "0"],
        &["ping", "lab-b", "-c", "many"],
        &["up", "--listen-port", "70000"],
        &["up", "--mtu", "100"],
        &["up", "--stun", "http://x"],
        &["up", "--interface", "much-too-long-for-linux"],
        &["up", "not-a-token"],
        &["up", "--config", text(&typo)],
        &["invite", "--expires", "soon"],
        &["invite", "--route", "10.0.0.1/8"],
        &["network", "new", "../x", "--signal", "ws://127.0.0.1:1"],
        &["network", "new", "x", "--signal", "https://x"],
        &[
            "network",
            "new",
            "x",
            "--signal",
            "wss://x",
            "--pin",
            "sha256:00",
        ],
        &["signal", "--network", "xyz"],
        &["signal", "--cert", "x"],
        &["lab", "--nat", "unheard-of"],
        &["lab", "--nat", "symmetric", "--delay", "-5"],
        &["lab", "--nat", "symmetric", "--loss", "-1"],
        &["up", "--name", "a b"],
        &["network", "rm"],
    ] {
        let output = wice(arguments, &[("WICE_STATE_DIR", text(&folder.0))]);
        assert_eq!(code(&output), 64, "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!stderr(&output).contains("panicked"), "{arguments:?}");
    }
}

#[test]
fn errors_say_what_to_do() {
    let folder = Folder::new("errors");
    let typo = folder.write("typo.toml", "listen_prot = 1\n");
    let output = wice(&["up", "--config", text(&typo)], &[]);
    assert_eq!(
        stderr(&output),
        format!(
            "wice: {}:1: there is no key listen_prot\n  did you mean listen_port?\n",
            text(&typo)
        )
    );
    let output = wice(&["up", "wice1tooshort"], &[]);
    assert!(
        stderr(&output).starts_with("wice: token cannot be used: "),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("wice invite"));
    let output = wice(&["status", "--run-dir", text(&folder.0)], &[]);
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).starts_with("wice: no wice daemon runs here"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("wice up, or wice attach INTERFACE"));
    let output = wice(&["invite", "--state-dir", text(&folder.0)], &[]);
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).contains("wice network new"),
        "{}",
        stderr(&output)
    );
    let output = wice(
        &[
            "network",
            "new",
            "x",
            "--signal",
            "wss://127.0.0.1:1",
            "--state-dir",
            text(&folder.0),
        ],
        &[],
    );
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("--pin"), "{}", stderr(&output));
}

#[test]
fn help_and_version_are_well() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["version"],
        &["up", "--help"],
        &["status", "--help"],
        &["why", "--help"],
        &["ping", "--help"],
        &["netcheck", "--help"],
        &["network", "new", "--help"],
        &["network", "nodes", "--help"],
        &["network", "rm", "--help"],
        &["leave", "--help"],
        &["hosts", "--help"],
        &["invite", "--help"],
        &["revoke", "--help"],
        &["signal", "--help"],
        &["down", "--help"],
        &["lab", "--help"],
    ] {
        let output = wice(arguments, &[]);
        assert_eq!(code(&output), 0, "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}");
        assert!(stdout(&output).contains("wice"), "{arguments:?}");
    }
}

#[test]
fn netcheck_needs_no_daemon() {
    let folder = Folder::new("netcheck");
    let output = wice(&["netcheck", "--json", "--run-dir", text(&folder.0)], &[]);
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["udp"], "unknown");
    assert!(
        json["notes"][0]
            .as_str()
            .unwrap()
            .contains("no wice daemon runs here"),
        "{json}"
    );
    assert_eq!(code(&output), 2, "there was nobody to ask");
}

#[test]
fn with_json_an_error_is_an_object_too() {
    let folder = Folder::new("json-errors");
    let output = wice(&["status", "--json", "--run-dir", text(&folder.0)], &[]);
    assert_eq!(code(&output), 2);
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        (&json["schema"], &json["exit_code"]),
        (&1.into(), &2.into())
    );
    let error = json["error"].as_str().unwrap();
    assert!(error.starts_with("no wice daemon runs here"), "{error}");
    assert!(!error.contains('\n'));
    assert!(json["hint"].as_str().unwrap().contains("wice up, or"));
    assert!(stderr(&output).starts_with("wice: no wice daemon runs here"));
    let output = wice(&["why", "--json", "--bogus"], &[]);
    assert_eq!(code(&output), 64);
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["exit_code"], 64);
    assert!(
        json["error"]
            .as_str()
            .unwrap()
            .contains("unexpected argument"),
        "{json}"
    );
}

#[test]
fn an_error_tells_its_cause_once() {
    let folder = Folder::new("cause");
    let file = folder.write("file", "");
    let state = format!("{}/state", text(&file));
    let output = wice(&["up", "--state-dir", &state], &[]);
    let said = stderr(&output);
    assert_eq!(said.matches("Not a directory").count(), 1, "{said}");
    assert!(
        said.starts_with(&format!("wice: cannot use {state}: Not a directory")),
        "{said}"
    );
    assert!(said.ends_with("(see --state-dir)\n"), "{said}");
    assert_eq!(code(&output), 2);
}

/// Nodes would be told of a relay that lets none of them in.
#[test]
fn a_relay_without_the_secret_that_it_shares_is_refused() {
    let folder = Folder::new("relay-secret");
    let empty = folder.write("secret", "\n\n");
    let relay = ["--turn", "turn:relay.example"];
    let of_the_file = ["--turn-secret-file", text(&empty)];
    for (more, wanted, words) in [
        (&relay[..], 64, "--turn-secret-file"),
        (&of_the_file[..], 2, "there is no TURN secret in"),
    ] {
        let begin = ["signal", "--listen", "127.0.0.1:0", "--state-dir"];
        let output = wice(&[&begin[..], &[text(&folder.0)], more].concat(), &[]);
        let said = stderr(&output);
        assert_eq!(code(&output), wanted, "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn who_is_in_no_network_cannot_leave() {
    let folder = Folder::new("leave");
    let nowhere = format!("{}/nowhere", text(&folder.0));
    for state in [nowhere.as_str(), text(&folder.0)] {
        let output = wice(&["leave", "--yes", "--state-dir", state], &[]);
        assert_eq!(code(&output), 2, "{}", stderr(&output));
        assert!(stderr(&output).starts_with("wice: this node is in no network: "));
        assert!(stderr(&output).contains("--state-dir"));
    }
    assert!(!Path::new(&nowhere).exists(), "looking makes nothing");
}

#[test]
fn leaving_takes_the_node_and_leaves_what_the_admin_has() {
    let folder = Folder::new("leaving");
    let state = text(&folder.0);
    let pin = format!("sha256:{}", "ab".repeat(32));
    let made = [
        "network",
        "new",
        "lab",
        "--signal",
        "wss://x",
        "--pin",
        &pin,
        "--state-dir",
        state,
    ];
    assert_eq!(code(&wice(&made, &[])), 0);
    folder.write("key", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n");
    folder.write("node.json", &format!(
        r#"{{"session":"{}","sequence":1,"routes_sequence":0,"overlay_counter":0,"name":"gate"}}"#,
        "00".repeat(16)
    ));
    // There is nobody to ask, and nothing is done without asking.
    let output = wice(&["leave", "--state-dir", state], &[]);
    assert_eq!(code(&output), 64, "{}", stderr(&output));
    assert!(stderr(&output).contains("say --yes"), "{}", stderr(&output));
    assert!(folder.0.join("key").exists());
    let output = wice(&["leave", "--yes", "--state-dir", state], &[]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(
        stdout(&output).contains("wice up TOKEN --name gate"),
        "{}",
        stdout(&output)
    );
    assert!(!folder.0.join("key").exists() && !folder.0.join("node.json").exists());
    assert!(folder.0.join("networks/lab/admin.key").exists());
}
