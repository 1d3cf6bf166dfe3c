//! How errors are told: what happened and why in one line, then what to do; with `--json` the same as an object.

use std::io::Write as _;

use crate::report::SCHEMA;

/// What is told of an error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// What happened, and why.
    error: String,
    /// What to do, one thing a line.
    hints: Vec<String>,
}

impl Told {
    /// Of an error and its causes. Messages have what to do on lines of their own, and many tell their cause themselves.
    pub(super) fn of(error: &anyhow::Error) -> Self {
        let mut told = Self {
            error: String::new(),
            hints: Vec::new(),
        };
        for cause in error.chain() {
            let text = cause.to_string();
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let what = lines.next().unwrap_or_default();
            if !told.error.contains(what) {
                let gap = if told.error.is_empty() { "" } else { ": " };
                told.error.push_str(&format!("{gap}{what}"));
            }
            for hint in lines {
                if !told.hints.iter().any(|known| known.contains(hint)) {
                    told.hints.push(hint.to_owned());
                }
            }
        }
        told
    }

    /// To standard error, and with `json` also as an object to standard output, where its reader waits for one.
    pub(super) fn print(&self, json: bool, code: u8) {
        if json {
            let _ = writeln!(std::io::stdout(), "{}", self.json(code));
        }
        let _ = write!(std::io::stderr(), "{}", self.text());
    }

    fn text(&self) -> String {
        let mut text = format!("wice: {}\n", self.error);
        for hint in &self.hints {
            text.push_str(&format!("  {hint}\n"));
        }
        text
    }

    fn json(&self, code: u8) -> serde_json::Value {
        serde_json::json!({
            "schema": SCHEMA,
            "error": self.error,
            "hint": (!self.hints.is_empty()).then(|| self.hints.join("; ")),
            "exit_code": code,
        })
    }
}

/// Wrong usage, told by the parser: as it is, and with `--json` among the arguments also as an object.
pub(super) fn print_usage(error: &clap::Error, json: bool, code: u8) {
    if json && code != 0 {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let told = Told {
            error: lines
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned(),
            hints: lines.map(str::to_owned).collect(),
        };
        let _ = writeln!(std::io::stdout(), "{}", told.json(code));
    }
    let _ = error.print();
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot use /x: {source}\n  see --state-dir")]
    struct SaysItsCause {
        source: std::io::Error,
    }

    #[test]
    fn causes_are_told_once_and_what_to_do_comes_last() {
        let source = std::io::Error::other("no room");
        let error = Err::<(), _>(SaysItsCause { source })
            .context("cannot start\n  try again")
            .unwrap_err();
        let told = Told::of(&error);
        assert_eq!(
            told.text(),
            "wice: cannot start: cannot use /x: no room\n  try again\n  see --state-dir\n"
        );
        let json = told.json(2);
        assert_eq!(json["error"], "cannot start: cannot use /x: no room");
        assert_eq!(json["hint"], "try again; see --state-dir");
        assert_eq!(json["exit_code"], 2);
        let bare = Told::of(&anyhow::anyhow!("no"));
        assert_eq!(bare.text(), "wice: no\n");
        assert!(bare.json(2)["hint"].is_null());
    }
}
