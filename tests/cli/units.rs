//! The systemd units, as systemd itself reads them.

use std::path::Path;
use std::process::Command;

use super::{Folder, code, stderr, text, wice};

const UNITS: [&str; 2] = ["wice.service", "wice-signal.service"];
/// Where the units have the program.
const INSTALLED: &str = "/usr/local/bin/wice";
/// `systemd-analyze security` calls up to this "OK"; a service without any sandbox has 96.
const MOST_EXPOSED: &str = "45";

fn unit(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/systemd");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn systemd_takes_the_units_and_finds_them_sandboxed() {
    let folder = Folder::new("units");
    for name in UNITS {
        let installed = unit(name).replace(INSTALLED, env!("CARGO_BIN_EXE_wice"));
        let path = folder.write(name, &installed);
        for arguments in [
            vec!["verify", text(&path)],
            vec![
                "security",
                "--offline=true",
                "--threshold",
                MOST_EXPOSED,
                text(&path),
            ],
        ] {
            let output = Command::new("systemd-analyze").args(&arguments).output();
            let output = output.unwrap_or_else(|error| {
                panic!(
                    "the units cannot be checked: systemd-analyze: {error}; apt-get install systemd"
                )
            });
            assert!(
                output.status.success() && stderr(&output).is_empty(),
                "systemd-analyze {}: {}",
                arguments.join(" "),
                stderr(&output)
            );
        }
    }
}

#[test]
fn the_units_run_what_the_command_line_takes() {
    for name in UNITS {
        let unit = unit(name);
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="));
        let mut words: Vec<&str> = line.unwrap().split_whitespace().collect();
        assert_eq!(words.remove(0), INSTALLED);
        words.push("--help");
        assert_eq!(code(&wice(&words, &[])), 0, "{words:?}");
    }
}
