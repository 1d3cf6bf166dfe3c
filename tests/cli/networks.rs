//! Networks and invites, as the admin has them.

use super::{Folder, code, stderr, stdout, text, wice};

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
fn a_network_that_is_not_there_is_told_with_what_there_is() {
    let folder = Folder::new("unknown-network");
    let pin = format!("sha256:{}", "ab".repeat(32));
    let run = |arguments: &[&str]| {
        wice(
            &[arguments, &["--state-dir", text(&folder.0)]].concat(),
            &[],
        )
    };
    let output = run(&["invite", "--network", "lab"]);
    let said = stderr(&output);
    assert_eq!(code(&output), 2);
    assert!(
        said.starts_with("wice: there is no network lab on this machine (looked in "),
        "{said}"
    );
    assert!(
        said.contains("\n  make it: wice network new lab --signal"),
        "{said}"
    );
    run(&[
        "network", "new", "home", "--signal", "wss://x", "--pin", &pin,
    ]);
    for arguments in [
        &["invite", "--network", "lab"][..],
        &["network", "show", "lab"],
        &["network", "nodes", "lab"],
        &["network", "rm", "lab", "--yes"],
        &["revoke", "x", "--network", "lab"],
    ] {
        let said = stderr(&run(arguments));
        assert!(
            said.contains("\n  there are home; make it: "),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn a_network_is_removed_when_it_is_meant() {
    let folder = Folder::new("removed");
    let pin = format!("sha256:{}", "ab".repeat(32));
    let run = |arguments: &[&str]| {
        wice(
            &[arguments, &["--state-dir", text(&folder.0)]].concat(),
            &[],
        )
    };
    run(&[
        "network", "new", "lab", "--signal", "wss://x", "--pin", &pin,
    ]);
    let output = run(&["network", "rm", "lab"]);
    assert_eq!(
        code(&output),
        64,
        "nobody is there to ask: {}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("say --yes"), "{}", stderr(&output));
    assert!(folder.0.join("networks/lab/admin.key").exists());
    let output = run(&["network", "rm", "lab", "--yes"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(!folder.0.join("networks/lab").exists());
    assert_eq!(
        code(&run(&["network", "rm", "../..", "--yes"])),
        64,
        "no way out of the folder"
    );
}

#[test]
fn a_service_that_is_not_there_is_told_with_what_to_do() {
    let folder = Folder::new("no-service");
    let output = wice(
        &[
            "network",
            "new",
            "lab",
            "--signal",
            "wss://127.0.0.1:1",
            "--state-dir",
            text(&folder.0),
        ],
        &[],
    );
    let said = stderr(&output);
    assert_eq!(code(&output), 2);
    assert!(
        said.starts_with("wice: cannot look at the certificate of wss://127.0.0.1:1: "),
        "{said}"
    );
    assert!(
        said.contains("\n  is the service running, and TCP 1 to it open?"),
        "{said}"
    );
    assert!(said.contains("\n  or give --pin"), "{said}");
    assert!(!folder.0.join("networks/lab").exists());
    let output = wice(&["network", "nodes", "--state-dir", text(&folder.0)], &[]);
    assert!(
        stderr(&output).contains("wice network new"),
        "{}",
        stderr(&output)
    );
}
