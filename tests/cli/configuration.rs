//! Flags, variables and the file.

use super::{Folder, code, stderr, stdout, text, wice};

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
fn a_wrong_value_is_told_where_it_was_given() {
    let folder = Folder::new("given");
    let file = folder.write("wice.toml", "name = \"x\"\nmtu = 100\n");
    let none = folder.write("empty.toml", "");
    let said = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = wice(&[&["up", "--print-config"], arguments].concat(), variables);
        assert_eq!(code(&output), 64, "{}", stderr(&output));
        stderr(&output)
    };
    let (file, none) = (["--config", text(&file)], ["--config", text(&none)]);
    let from_file = said(&file, &[]);
    assert!(
        from_file.starts_with(&format!("wice: {}:2: mtu is 100\n", file[1])),
        "{from_file}"
    );
    let from_flag = said(&[&file[..], &["--mtu", "99"]].concat(), &[]);
    assert!(from_flag.starts_with("wice: --mtu is 99\n"), "{from_flag}");
    let from_variable = said(&none, &[("WICE_MTU", "98")]);
    assert!(
        from_variable.starts_with("wice: WICE_MTU is 98\n"),
        "{from_variable}"
    );
    let no_number = said(&none, &[("WICE_MTU", "big")]);
    assert!(
        no_number.starts_with("wice: the variable WICE_MTU cannot be \"big\": "),
        "{no_number}"
    );
    assert!(no_number.contains("wice up --help"), "{no_number}");
    let routes = said(&none, &[("WICE_ACCEPT_ROUTES", "10.0.0.1/8")]);
    assert!(
        routes.starts_with("wice: WICE_ACCEPT_ROUTES cannot be \"10.0.0.1/8\": "),
        "{routes}"
    );
    let token = said(&none, &[("WICE_TOKEN", "wice1no")]);
    assert!(
        token.starts_with("wice: WICE_TOKEN cannot be used: "),
        "{token}"
    );
    let no_flag = said(
        &[&none[..], &["--mtu", "big"]].concat(),
        &[("WICE_MTU", "1400")],
    );
    assert!(no_flag.contains("for '--mtu <BYTES>'"), "{no_flag}");
}

#[test]
fn an_empty_variable_is_none() {
    let folder = Folder::new("empty");
    let file = folder.write("wice.toml", "mtu = 1300\nmetrics = \"127.0.0.1:1\"\n");
    let names = [
        "WICE_TOKEN",
        "WICE_TOKEN_FILE",
        "WICE_INTERFACE",
        "WICE_NAME",
        "WICE_STATE_DIR",
        "WICE_RUN_DIR",
        "WICE_LISTEN_PORT",
        "WICE_MTU",
        "WICE_STUN",
        "WICE_ACCEPT_ROUTES",
        "WICE_ADVERTISE_ROUTES",
        "WICE_PROXY",
        "WICE_CA_FILE",
        "WICE_LOG_LEVEL",
        "WICE_LOG_FORMAT",
        "WICE_METRICS",
    ];
    let variables: Vec<(&str, &str)> = names.iter().map(|name| (*name, "")).collect();
    let arguments = ["up", "--print-config", "--config", text(&file)];
    let (set, unset) = (wice(&arguments, &variables), wice(&arguments, &[]));
    assert_eq!(code(&set), 0, "{}", stderr(&set));
    assert!(stdout(&unset).contains("mtu = 1300") && stdout(&unset).contains("metrics = "));
    // An empty WICE_METRICS says nowhere.
    let without = stdout(&unset).replace("metrics = \"127.0.0.1:1\"\n", "");
    assert_eq!(stdout(&set), without);
    let shown = wice(
        &["network", "show", "--state-dir", text(&folder.0)],
        &[("WICE_STATE_DIR", "")],
    );
    assert!(
        stderr(&shown).contains("there is no network"),
        "{}",
        stderr(&shown)
    );
}

/// All kinds of daemon take the same flags; what is printed of one counts for it.
#[test]
fn one_set_of_flags_and_only_what_counts_is_printed() {
    let folder = Folder::new("modes");
    let file = folder.write(
        "wice.toml",
        "mtu = 1300\naccept_routes = [\"10.0.0.0/8\"]\n",
    );
    let common = [
        "--print-config",
        "--config",
        text(&file),
        "--listen-port",
        "5000",
        "--port-mapping",
        "off",
        "--stun",
        "stun:a:1",
        "--log-level",
        "debug",
    ];
    let printed = |command: &[&str]| {
        let output = wice(&[command, &common].concat(), &[]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stdout(&output)
    };
    let (up, attach) = (printed(&["up"]), printed(&["attach", "wg3"]));
    for said in [&up, &attach] {
        for line in [
            "listen_port = 5000",
            "port_mapping = \"off\"",
            "log_level = \"debug\"",
        ] {
            assert!(said.lines().any(|l| l == line), "{line} in:\n{said}");
        }
    }
    assert!(attach.contains("interface = \"wg3\"") && attach.contains("direct = "));
    for key in ["mtu", "accept_routes", "advertise_routes"] {
        assert!(up.contains(&format!("{key} = ")), "{up}");
        assert!(!attach.contains(key), "{attach}");
    }
    assert!(!up.contains("direct"), "{up}");
}
