//! The built binary, as people and scripts call it: exit codes, what goes to which stream, configuration, networks and invites.

#![allow(clippy::unwrap_used)]

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
        &["why"],
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
            "wice: {}: there is no key listen_prot\n  did you mean listen_port?\n",
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
    assert!(stderr(&output).contains("wice up TOKEN"));
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
fn flag_goes_before_variable_before_file() {
    let folder = Folder::new("config");
    let file = folder.write(
        "wice.toml",
        "name = \"from-file\"\ninterface = \"wg7\"\nlisten_port = 1000\nstun = [\"stun:file\"]\n",
    );
    let printed = |arguments: &[&str], variables: &[(&str, &str)]| {
        let arguments = [
            &["up", "--print-config", "--config", text(&file)],
            arguments,
        ]
        .concat();
        let output = wice(&arguments, variables);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stdout(&output)
    };
    let has = |printed: &str, line: &str| {
        assert!(printed.lines().any(|l| l == line), "{line} in:\n{printed}")
    };
    let from_file = printed(&[], &[]);
    has(&from_file, "name = \"from-file\"");
    has(&from_file, "listen_port = 1000");
    has(&from_file, "stun = [\"stun:file:3478\"]");
    let variables = [
        ("WICE_NAME", "from-variable"),
        ("WICE_LISTEN_PORT", "2000"),
        ("WICE_STUN", "stun:a:1,stun:b:2"),
    ];
    let from_variables = printed(&[], &variables);
    has(&from_variables, "name = \"from-variable\"");
    has(&from_variables, "interface = \"wg7\"");
    has(&from_variables, "stun = [\"stun:a:1\", \"stun:b:2\"]");
    let from_flags = printed(&["--name", "from-flag"], &variables);
    has(&from_flags, "name = \"from-flag\"");
    has(&from_flags, "listen_port = 2000");
}

#[test]
fn a_network_is_made_and_its_invites_are_tokens() {
    let folder = Folder::new("network");
    let state = ["--state-dir", text(&folder.0)];
    let run = |arguments: &[&str]| wice(&[arguments, &state[..]].concat(), &[]);
    let pin = format!("sha256:{}", "ab".repeat(32));
    let made = run(&[
        "network",
        "new",
        "lab",
        "--signal",
        "wss://sig.example:8443",
        "--pin",
        &pin,
    ]);
    assert_eq!(code(&made), 0, "{}", stderr(&made));
    assert_eq!(stdout(&made).trim().len(), 64, "the id alone");
    assert_eq!(
        code(&run(&[
            "network",
            "new",
            "lab",
            "--signal",
            "ws://127.0.0.1:1"
        ])),
        2,
        "it exists"
    );

    let invited = run(&[
        "invite",
        "--label",
        "rack-7",
        "--route",
        "10.7.0.0/16",
        "--expires",
        "30d",
    ]);
    assert_eq!(code(&invited), 0, "{}", stderr(&invited));
    let printed = stdout(&invited);
    let token: wice_signaling::protocol::Token = printed.parse().unwrap();
    assert_eq!(printed.lines().count(), 1, "the token alone");
    assert_eq!(token.network.to_string(), stdout(&made).trim());
    assert_eq!(token.network_name, "lab");
    assert_eq!(token.pin.unwrap().to_string(), pin);
    assert_eq!(token.invite.certificate().label, "rack-7");
    assert_eq!(token.invite.certificate().prefixes.len(), 1);

    let shown = stdout(&run(&["network", "show"]));
    assert!(
        shown.contains("rack-7") && shown.contains("10.7.0.0/16"),
        "{shown}"
    );
    assert!(
        shown.contains("for 29d 23h") || shown.contains("for 30d 0h"),
        "{shown}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&run(&["network", "show", "--json"]))).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["networks"][0]["invites"][0]["label"], "rack-7");

    use std::os::unix::fs::PermissionsExt as _;
    let key = folder.0.join("networks/lab/admin.key");
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let secret = std::fs::read_to_string(&key).unwrap();
    assert!(!shown.contains(secret.trim()) && !json.to_string().contains(secret.trim()));
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
    assert_eq!(code(&output), 1);
}
