//! The file.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, Place, keys};

/// The largest file that is read: a hundred times what anybody writes.
const MAX_FILE: u64 = 1 << 20;

/// Bytes of a wrong value that are shown: what fits into the line beside the path.
const MAX_SHOWN: usize = 40;

/// What the file says; what it does not say is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileConfig {
    /// A file with the token.
    pub token_file: Option<PathBuf>,
    /// The interface to make.
    pub interface: Option<String>,
    /// The node's name.
    pub name: Option<String>,
    /// Where state is kept.
    pub state_dir: Option<PathBuf>,
    /// Where the control socket is.
    pub run_dir: Option<PathBuf>,
    /// UDP port.
    pub listen_port: Option<u16>,
    /// MTU of the interface.
    pub mtu: Option<u32>,
    /// STUN servers.
    pub stun: Option<Vec<String>>,
    /// TURN servers with static credentials.
    pub turn: Option<Vec<TurnConfig>>,
    /// Prefixes taken from peers without a grant.
    pub accept_routes: Option<Vec<String>>,
    /// Prefixes that this node announces.
    pub advertise_routes: Option<Vec<String>>,
    /// HTTP proxy.
    pub proxy: Option<String>,
    /// More authorities to trust, in PEM.
    pub ca_file: Option<PathBuf>,
    /// `auto` or `off`.
    pub port_mapping: Option<String>,
    /// What is logged.
    pub log_level: Option<String>,
    /// `text` or `json`.
    pub log_format: Option<String>,
    /// Where metrics are served.
    pub metrics: Option<String>,
    /// `auto`, `kernel` or `in-process`.
    pub wireguard: Option<String>,
    /// The private key of the interface that is attached to.
    pub private_key_file: Option<PathBuf>,
    /// `auto`, `proxy` or `shared-port`.
    pub direct: Option<String>,
}

/// A TURN server with static credentials.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TurnConfig {
    /// As RFC 7065 has it.
    pub url: String,
    /// Long-term username.
    pub username: String,
    /// The file with the password; white space around it does not count.
    pub password_file: PathBuf,
}

impl FileConfig {
    /// Reads `path`. With `optional` a file that does not exist says nothing.
    pub fn read(path: &Path, optional: bool) -> Result<Self, ConfigError> {
        match read_bounded(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(ConfigError::Read {
                path: path.to_owned(),
                error,
                hint: "give another with --config, or correct its permissions",
            }),
        }
    }

    /// Parses the file's text; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let syntax = |error: toml::de::Error| {
            let at = error.span().map(|span| span.start);
            ConfigError::Syntax {
                path: path.to_owned(),
                line: at
                    .and_then(|at| text.get(..at))
                    .map_or(1, |before| before.split('\n').count()),
                error: error.message().replace('\n', "; "),
            }
        };
        let table: toml::Table = text.parse().map_err(syntax)?;
        let line_of = |key: &str| keys::line_of(text, key);
        if let Some((key, hint)) = keys::unknown(&table) {
            return Err(ConfigError::UnknownKey {
                place: Place::new(path, line_of(&key)),
                key,
                hint,
            });
        }
        let name = |key: &str| format!("{}: {key}", Place::new(path, line_of(key)));
        if let Some((key, value, hint)) = keys::misshapen(&table) {
            let shown = value.to_string();
            // Not what a whole file was pasted into, nor a proxy's password.
            let shown = match shown.len() <= MAX_SHOWN && key != "proxy" {
                true => shown,
                false => format!("of type {}", value.type_str()),
            };
            return Err(ConfigError::value(
                &name(&key),
                format!("cannot be {shown}"),
                hint,
            ));
        }
        if let Some((key, hint)) = keys::missing(&table) {
            return Err(ConfigError::value(&name(&key), "is missing", hint));
        }
        table.try_into().map_err(syntax)
    }
}

/// Where the file at `path` gives `key` a value: `/etc/wice/wice.toml:3`; `None` where it does not.
pub fn place_of(path: &Path, key: &str) -> Option<Place> {
    let text = read_bounded(path).ok()?;
    let line = keys::line_of(&text, key)?;
    Some(Place::new(path, Some(line)))
}

/// A secret from a file, without white space around it.
pub(super) fn secret(name: &str, path: &Path) -> Result<String, ConfigError> {
    let text = read_bounded(path).map_err(|error| ConfigError::Read {
        path: path.to_owned(),
        error,
        hint: "the file holds nothing but the secret; let only root read it",
    })?;
    let text = text.trim();
    if text.is_empty() {
        let problem = format!("is empty: {}", path.display());
        return Err(ConfigError::value(
            name,
            problem,
            "write the secret into it",
        ));
    }
    Ok(text.to_owned())
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_FILE)
        .read_to_string(&mut text)?;
    Ok(text)
}
