use std::path::Path;

use super::*;

fn file(text: &str) -> Result<FileConfig, ConfigError> {
    FileConfig::parse(text, Path::new("/etc/wice/wice.toml"))
}

fn resolve(overrides: Overrides, text: &str) -> Result<DaemonConfig, ConfigError> {
    let surroundings = Surroundings {
        hostname: Some("lab-a.example.org".into()),
        https_proxy: Some("http://env-proxy:8080".into()),
    };
    DaemonConfig::resolve(overrides, file(text).unwrap(), surroundings)
}

fn refused(text: &str) -> String {
    match file(text) {
        Err(error) => error.to_string(),
        Ok(parsed) => DaemonConfig::resolve(Overrides::default(), parsed, Surroundings::default())
            .unwrap_err()
            .to_string(),
    }
}

#[test]
fn defaults_come_from_the_machine() {
    let config = resolve(Overrides::default(), "").unwrap();
    assert_eq!(config.settings.interface, "wice0");
    assert_eq!(config.settings.name, "lab-a");
    assert_eq!(config.settings.port, 51821);
    assert_eq!(
        config.settings.proxy.as_deref(),
        Some("http://env-proxy:8080")
    );
    assert_eq!(config.settings.state_dir, Path::new("/var/lib/wice"));
    assert!(config.settings.token.is_none() && config.settings.metrics.is_none());
}

#[test]
fn flags_go_before_the_file_before_the_machine() {
    let text = "
        interface = \"wg7\"
        name = \"from-file\"
        listen_port = 1000
        stun = [\"stun:file.example\"]
        proxy = \"http://file-proxy:1\"
        metrics = \"127.0.0.1:9586\"
    ";
    let from_file = resolve(Overrides::default(), text).unwrap();
    assert_eq!(from_file.settings.name, "from-file");
    assert_eq!(
        from_file.settings.stun[0].to_string(),
        "stun:file.example:3478"
    );
    assert_eq!(
        from_file.settings.proxy.as_deref(),
        Some("http://file-proxy:1")
    );
    let overrides = Overrides {
        name: Some("from-flag".into()),
        stun: vec!["stun:flag.example:99".into()],
        proxy: Some(String::new()),
        metrics: Some(String::new()),
        ..Overrides::default()
    };
    let config = resolve(overrides, text).unwrap();
    assert_eq!(config.settings.name, "from-flag");
    assert_eq!(config.settings.interface, "wg7");
    assert_eq!(config.settings.port, 1000);
    assert_eq!(config.settings.stun.len(), 1);
    assert_eq!(config.settings.stun[0].to_string(), "stun:flag.example:99");
    assert_eq!(config.settings.proxy, None, "an empty flag is none");
    assert_eq!(config.settings.metrics, None);
}

#[test]
fn unknown_keys_are_told_with_the_nearest() {
    assert_eq!(
        refused("listen_prot = 1"),
        "/etc/wice/wice.toml:1: there is no key listen_prot\n  did you mean listen_port?"
    );
    assert_eq!(
        refused("[[turn]]\nurl = \"turn:a\"\nuser = \"u\"\npassword_file = \"/x\""),
        "/etc/wice/wice.toml:3: there is no key turn.user\n  keys are url, username, password_file"
    );
    assert!(refused("colour = true").contains("keys are token_file, interface, name"));
}

#[test]
fn wrong_values_say_how_they_should_look() {
    for (text, expected) in [
        ("mtu = 100", "mtu is 100\n  give 1280 to 65535"),
        (
            "interface = \"wice/0\"",
            "interface cannot be \"wice/0\"\n  give 1 to 15",
        ),
        (
            "stun = [\"turn:x\"]",
            "stun names a TURN server: turn:x:3478?transport=udp\n  a TURN server needs credentials",
        ),
        (
            "stun = [\"x\"]",
            "stun cannot be \"x\": not a STUN or TURN server",
        ),
        (
            "proxy = \"proxy:1\"",
            "proxy cannot be \"proxy:1\": write the proxy like http://",
        ),
        (
            "advertise_routes = [\"10.0.0.1/8\"]",
            "advertise_routes cannot be \"10.0.0.1/8\": not an IP prefix",
        ),
        (
            "port_mapping = \"on\"",
            "port_mapping cannot be \"on\": it is auto or off",
        ),
        (
            "wireguard = \"userspace\"",
            "wireguard cannot be \"userspace\": it is auto, kernel or in-process",
        ),
        ("metrics = \"9586\"", "metrics cannot be \"9586\": "),
        (
            "ca_file = \"/nonexistent/ca.pem\"",
            "ca_file cannot be read: /nonexistent/ca.pem",
        ),
        (
            "token_file = \"/nonexistent/token\"",
            "cannot read /nonexistent/token: ",
        ),
        (
            "name = \"x\"\nmtu = \"big\"",
            "/etc/wice/wice.toml:2: mtu cannot be \"big\"\n  it is a number from 0 to 65535, like mtu = 1392",
        ),
        (
            "listen_port = 70000",
            "/etc/wice/wice.toml:1: listen_port cannot be 70000\n  it is a number from 0 to 65535",
        ),
        (
            "\nstun = \"stun:x\"",
            "/etc/wice/wice.toml:2: stun cannot be \"stun:x\"\n  it is a list of texts, like stun = [\"stun:stun.example:3478\"]",
        ),
        (
            "accept_routes = [1]",
            "/etc/wice/wice.toml:1: accept_routes cannot be [1]\n  it is a list of texts",
        ),
        (
            "name = 5",
            "/etc/wice/wice.toml:1: name cannot be 5\n  it is a text between quotes, like name = \"lab-a\"",
        ),
        (
            "proxy = [\"http://u:secret@p:1\"]",
            "/etc/wice/wice.toml:1: proxy cannot be of type array\n  it is a text",
        ),
        (
            "[turn]\nurl = \"turn:x\"",
            "/etc/wice/wice.toml:1: turn cannot be ",
        ),
        (
            "[[turn]]\nurl = 3",
            "/etc/wice/wice.toml:2: turn.url cannot be 3\n  it is a text",
        ),
        (
            "[[turn]]\nurl = \"turn:x\"\nusername = \"u\"",
            "/etc/wice/wice.toml: turn.password_file is missing\n  it is a text between quotes, like password_file = ",
        ),
        (
            "name = \"x\"\nmtu =",
            "/etc/wice/wice.toml:2 is not valid TOML: ",
        ),
    ] {
        let error = refused(text);
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn secrets_come_from_files() {
    let folder = std::env::temp_dir().join(format!("wice-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("password");
    std::fs::write(&path, "  s3cret\n").unwrap();
    let text = format!(
        "[[turn]]\nurl = \"turns:relay.example:443\"\nusername = \"u\"\npassword_file = {path:?}"
    );
    let config = resolve(Overrides::default(), &text).unwrap();
    assert_eq!(config.settings.turn[0].password, "s3cret");
    assert!(!config.to_toml(Mode::Managed).contains("s3cret"));
    std::fs::write(&path, "\n").unwrap();
    let error = resolve(Overrides::default(), &text)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("turn.password_file is empty"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_is_printed_is_read_back() {
    let text =
        "interface = \"wg7\"\nadvertise_routes = [\"10.1.0.0/16\"]\nmetrics = \"127.0.0.1:9586\"\n";
    let config = resolve(Overrides::default(), text).unwrap();
    let again = resolve(Overrides::default(), &config.to_toml(Mode::Managed)).unwrap();
    assert_eq!(again.to_toml(Mode::Managed), config.to_toml(Mode::Managed));
    assert_eq!(again.settings.advertise_routes.len(), 1);
}

#[test]
fn what_is_printed_is_toml_whatever_the_texts_are() {
    let text = "name = \"n.-_1\"\nlog_level = \"a\\u0007\\n\\\"b\"\nstate_dir = \"/a\\tb\"\n";
    let config = resolve(Overrides::default(), text).unwrap();
    let again = resolve(Overrides::default(), &config.to_toml(Mode::Managed)).unwrap();
    assert_eq!(again.settings.name, config.settings.name);
    assert_eq!(again.log, config.log);
    assert_eq!(again.settings.state_dir, config.settings.state_dir);
}

#[test]
fn a_name_is_what_can_be_typed_and_stand_in_a_hosts_file() {
    let named = |name: &str| {
        let overrides = Overrides {
            name: Some(name.to_owned()),
            ..Overrides::default()
        };
        resolve(overrides, "")
    };
    let longest = "n".repeat(63);
    for name in ["a", "Lab_7.rack-1", "7", longest.as_str()] {
        let settings = named(name).unwrap().settings;
        assert_eq!(
            (settings.name.as_str(), settings.name_is_default),
            (name, false)
        );
    }
    let too_long = "n".repeat(64);
    for name in [
        "",
        "a b",
        " a",
        "a\u{202e}b",
        "a\u{7}",
        "ä",
        "-a",
        "a.",
        "_",
        "a/b",
        too_long.as_str(),
    ] {
        let error = named(name).unwrap_err().to_string();
        assert!(error.starts_with("name cannot be"), "{name:?}: {error}");
        assert!(error.contains("give 1 to 63 letters"), "{error}");
    }
}

#[test]
fn a_hosts_name_is_made_one_that_a_node_may_have() {
    for (host, expected) in [
        ("lab-a.example.org", "lab-a"),
        ("Bob's laptop", "Bob-s-laptop"),
        ("größe", "gr--e"),
        ("-x-", "x"),
        ("...", "node"),
        ("", "node"),
        (&"n".repeat(70), &"n".repeat(63)),
    ] {
        let surroundings = Surroundings {
            hostname: Some(host.to_owned()),
            https_proxy: None,
        };
        let config =
            DaemonConfig::resolve(Overrides::default(), FileConfig::default(), surroundings)
                .unwrap();
        assert_eq!(config.settings.name, expected, "{host:?}");
        assert!(config.settings.name_is_default);
    }
}

#[test]
fn a_bad_token_is_told_without_being_shown() {
    let overrides = Overrides {
        token: Some("wice1abc".into()),
        ..Overrides::default()
    };
    let error = resolve(overrides, "").unwrap_err().to_string();
    assert!(error.starts_with("token cannot be used: "), "{error}");
    assert!(!error.contains("wice1abc"));
}
