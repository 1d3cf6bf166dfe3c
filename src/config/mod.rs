//! What the daemon is told: flag over `WICE_*` over `/etc/wice/wice.toml` over default. Secrets stand in files, never on the
//! command line or in the configuration itself.

mod file;
mod keys;
mod resolve;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::daemon::Settings;

pub use file::{FileConfig, place_of};
pub use resolve::{Mode, Overrides, Surroundings, check_interface};

/// Where the configuration is, if there is one.
pub const DEFAULT_FILE: &str = "/etc/wice/wice.toml";
/// The interface that is made.
pub const DEFAULT_INTERFACE: &str = "wice0";
/// Keys, adverts of peers, networks.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/wice";
/// Control sockets.
pub const DEFAULT_RUN_DIR: &str = "/run/wice";

/// How `wice up` runs.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// The daemon's own settings.
    pub settings: Settings,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives as `tracing_subscriber::EnvFilter` takes them.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people and journald.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// As flag and file have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// What is wrong with the configuration, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}\n  {hint}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The file is not TOML.
    #[error("{}:{line} is not valid TOML: {error}\n  a line is key = value, with texts between double quotes", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        error: String,
    },
    /// A key that does not exist.
    #[error("{place}: there is no key {key}\n  {hint}")]
    UnknownKey {
        /// File and line.
        place: Place,
        /// The key, with its section.
        key: String,
        /// The nearest key, or all.
        hint: String,
    },
    /// A value that cannot be used.
    #[error("{name} {problem}\n  {hint}")]
    Value {
        /// Where it stands: the flag's or key's name.
        name: String,
        /// What is wrong.
        problem: String,
        /// How it should look.
        hint: String,
    },
}

/// A file, and a line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    /// From 1.
    line: Option<usize>,
}

impl Place {
    fn new(path: &Path, line: Option<usize>) -> Self {
        Self {
            path: path.to_owned(),
            line,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.path.display()),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

impl ConfigError {
    fn value(name: &str, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Value {
            name: name.to_owned(),
            problem: problem.into(),
            hint: hint.into(),
        }
    }
}
