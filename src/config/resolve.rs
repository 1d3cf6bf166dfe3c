//! From flags, environment and file to one configuration, checked.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use wice_signaling::protocol::{IpPrefix, MAX_NAME_LEN, ServerAddress, ServerKind, Token};

use super::file::secret;
use super::{
    ConfigError, DEFAULT_INTERFACE, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, DaemonConfig, FileConfig,
    LogConfig, LogFormat,
};
use crate::daemon::{
    DEFAULT_MTU, DEFAULT_PORT, Direct, PortMapping, Settings, StaticRelay, WireGuardKind,
};
use crate::io::http_proxy::ProxyUrl;

/// IPv6 needs it (RFC 8200 §5).
const MIN_MTU: u32 = 1280;
/// The most that a packet can have.
const MAX_MTU: u32 = 65_535;
/// `IFNAMSIZ` less its final zero.
const MAX_INTERFACE: usize = 15;

/// What flags and environment say; it goes before the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The token itself.
    pub token: Option<String>,
    /// A file with the token.
    pub token_file: Option<PathBuf>,
    /// See [`FileConfig`], likewise all that follow.
    pub interface: Option<String>,
    /// The node's name.
    pub name: Option<String>,
    /// Where state is kept.
    pub state_dir: Option<PathBuf>,
    /// Where the control socket is.
    pub run_dir: Option<PathBuf>,
    /// UDP port.
    pub listen_port: Option<u16>,
    /// MTU.
    pub mtu: Option<u32>,
    /// STUN servers, instead of the file's.
    pub stun: Vec<String>,
    /// Prefixes taken, instead of the file's.
    pub accept_routes: Vec<String>,
    /// Prefixes announced, instead of the file's.
    pub advertise_routes: Vec<String>,
    /// HTTP proxy; empty for none.
    pub proxy: Option<String>,
    /// More authorities to trust.
    pub ca_file: Option<PathBuf>,
    /// Port mapping on routers: `auto` or `off`.
    pub port_mapping: Option<String>,
    /// What is logged.
    pub log_level: Option<String>,
    /// How it is logged.
    pub log_format: Option<String>,
    /// Where metrics are served; empty for nowhere.
    pub metrics: Option<String>,
    /// Whose WireGuard: `auto`, `kernel` or `in-process`.
    pub wireguard: Option<String>,
    /// The private key of the interface that is attached to.
    pub private_key_file: Option<PathBuf>,
    /// How direct paths of an attached interface are bound.
    pub direct: Option<String>,
}

/// What the machine says, where nobody else does.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Its name.
    pub hostname: Option<String>,
    /// `HTTPS_PROXY` or `https_proxy`.
    pub https_proxy: Option<String>,
}

impl Surroundings {
    /// Of this machine and process.
    pub fn here() -> Self {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let proxy = ["HTTPS_PROXY", "https_proxy"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        Self {
            hostname: hostname.map(|name| name.trim().to_owned()),
            https_proxy: proxy,
        }
    }
}

/// Whose interface it is: some keys count in one mode alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// wice's own.
    Managed,
    /// Another program's.
    Attached,
}

impl DaemonConfig {
    /// `overrides` over `file` over `surroundings` over defaults. Reads the files that secrets are in.
    pub fn resolve(
        overrides: Overrides,
        file: FileConfig,
        surroundings: Surroundings,
    ) -> Result<Self, ConfigError> {
        let token = token(&overrides, &file)?;
        let interface = overrides.interface.or(file.interface);
        let interface = interface.unwrap_or_else(|| DEFAULT_INTERFACE.to_owned());
        check_interface(&interface)?;
        let name = overrides.name.or(file.name);
        let name_is_default = name.is_none();
        let name = match name {
            Some(name) => name,
            None => name_of_host(surroundings.hostname.as_deref().unwrap_or_default()),
        };
        check_name(&name)?;
        let mtu = overrides.mtu.or(file.mtu).unwrap_or(DEFAULT_MTU);
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            let hint =
                format!("give {MIN_MTU} to {MAX_MTU}; the default {DEFAULT_MTU} fits most paths");
            return Err(ConfigError::value("mtu", format!("is {mtu}"), hint));
        }
        let proxy = non_empty(overrides.proxy.or(file.proxy).or(surroundings.https_proxy));
        if let Some(proxy) = &proxy {
            parse::<ProxyUrl>("proxy", proxy, "HTTPS_PROXY counts too; --proxy '' is none")?;
        }
        let ca_file = overrides.ca_file.or(file.ca_file);
        if let Some(path) = &ca_file {
            check_readable("ca_file", path)?;
        }
        let metrics = non_empty(overrides.metrics.or(file.metrics))
            .map(|text| parse::<SocketAddr>("metrics", &text, "write it like 127.0.0.1:9586"))
            .transpose()?;
        let port_mapping = match overrides.port_mapping.or(file.port_mapping) {
            Some(text) => parse("port_mapping", &text, "auto asks the router, off does not")?,
            None => PortMapping::default(),
        };
        let wireguard = match overrides.wireguard.or(file.wireguard) {
            Some(text) => parse(
                "wireguard",
                &text,
                "auto is the kernel's where it can be had",
            )?,
            None => WireGuardKind::default(),
        };
        let direct = match overrides.direct.or(file.direct) {
            Some(text) => parse("direct", &text, "auto is the best that there is")?,
            None => Direct::default(),
        };
        Ok(Self {
            settings: Settings {
                token,
                interface,
                name,
                name_is_default,
                port: overrides
                    .listen_port
                    .or(file.listen_port)
                    .unwrap_or(DEFAULT_PORT),
                mtu,
                state_dir: or_default(overrides.state_dir, file.state_dir, DEFAULT_STATE_DIR),
                run_dir: or_default(overrides.run_dir, file.run_dir, DEFAULT_RUN_DIR),
                stun: stun(&instead(overrides.stun, file.stun))?,
                turn: turn(&file.turn.unwrap_or_default())?,
                accept_routes: list(
                    "accept_routes",
                    &instead(overrides.accept_routes, file.accept_routes),
                )?,
                advertise_routes: list(
                    "advertise_routes",
                    &instead(overrides.advertise_routes, file.advertise_routes),
                )?,
                proxy,
                ca_file,
                port_mapping,
                metrics,
                wireguard,
                private_key_file: overrides.private_key_file.or(file.private_key_file),
                direct,
            },
            log: LogConfig {
                level: overrides
                    .log_level
                    .or(file.log_level)
                    .unwrap_or_else(|| "info".to_owned()),
                format: log_format(overrides.log_format.or(file.log_format).as_deref())?,
            },
        })
    }

    /// Its text as a configuration file, for people: without token and passwords, and without what does not count in
    /// this mode.
    pub fn to_toml(&self, mode: Mode) -> String {
        let settings = &self.settings;
        let array = |items: Vec<String>| {
            let items: Vec<String> = items.into_iter().map(quoted).collect();
            format!("[{}]", items.join(", "))
        };
        let path = |path: &Path| quoted(path.display().to_string());
        let prefixes = |items: &[IpPrefix]| array(items.iter().map(ToString::to_string).collect());
        let servers =
            |items: &[ServerAddress]| array(items.iter().map(ToString::to_string).collect());
        let mut lines = vec![
            format!("interface = {}", quoted(&settings.interface)),
            if settings.name_is_default {
                let name = quoted(&settings.name);
                format!("# name = {name}, the host's, unless another was given at an earlier start")
            } else {
                format!("name = {}", quoted(&settings.name))
            },
            format!("state_dir = {}", path(&settings.state_dir)),
            format!("run_dir = {}", path(&settings.run_dir)),
            format!("listen_port = {}", settings.port),
            format!("stun = {}", servers(&settings.stun)),
            format!("port_mapping = \"{}\"", settings.port_mapping.as_str()),
            format!("log_level = {}", quoted(&self.log.level)),
            format!("log_format = {}", quoted(self.log.format.as_str())),
        ];
        match mode {
            Mode::Managed => lines.extend([
                format!("wireguard = \"{}\"", settings.wireguard.as_str()),
                format!("mtu = {}", settings.mtu),
                format!("accept_routes = {}", prefixes(&settings.accept_routes)),
                format!(
                    "advertise_routes = {}",
                    prefixes(&settings.advertise_routes)
                ),
            ]),
            Mode::Attached => {
                lines.push(format!("direct = \"{}\"", settings.direct.as_str()));
                let file = settings.private_key_file.as_deref();
                lines.extend(file.map(|file| format!("private_key_file = {}", path(file))));
            }
        }
        if settings.proxy.is_some() {
            // It may hold a password.
            lines.push("# proxy is set".to_owned());
        }
        if let Some(file) = &settings.ca_file {
            lines.push(format!("ca_file = {}", path(file)));
        }
        if let Some(address) = &settings.metrics {
            lines.push(format!("metrics = \"{address}\""));
        }
        for relay in &settings.turn {
            lines.push(format!("# turn {} as {:?}", relay.address, relay.username));
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

/// A text as TOML has it: Rust's own escapes are others.
fn quoted(text: impl Into<String>) -> String {
    toml::Value::String(text.into()).to_string()
}

/// Whether Linux takes it as the name of an interface, and a file can be named after it.
pub fn check_interface(name: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty()
        || name.len() > MAX_INTERFACE
        || name.starts_with('.')
        || !name.chars().all(allowed)
    {
        let problem = format!("cannot be {name:?}");
        let hint = format!(
            "give 1 to {MAX_INTERFACE} letters, digits, dots, dashes or underscores, like {DEFAULT_INTERFACE}"
        );
        return Err(ConfigError::value("interface", problem, hint));
    }
    Ok(())
}

fn token(overrides: &Overrides, file: &FileConfig) -> Result<Option<Token>, ConfigError> {
    let text = match (&overrides.token, &overrides.token_file, &file.token_file) {
        (Some(token), _, _) => token.clone(),
        (None, Some(path), _) | (None, None, Some(path)) => secret("token_file", path)?,
        (None, None, None) => return Ok(None),
    };
    text.parse().map(Some).map_err(|error| {
        let hint = "ask whoever runs the network: `wice invite` prints a token; give it whole, between quotes";
        ConfigError::value("token", format!("cannot be used: {error}"), hint)
    })
}

/// The first label of the host's name, which is what people say, with a dash for what a node's name cannot have.
fn name_of_host(hostname: &str) -> String {
    let label = hostname.split('.').next().unwrap_or_default();
    let usable = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let plain: String = label
        .chars()
        .map(|c| if usable(c) { c } else { '-' })
        .take(MAX_NAME_LEN)
        .collect();
    let name = plain.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { "node" } else { name }.to_owned()
}

/// A name is typed on command lines and stands in hosts files, so it is what DNS and Kubernetes take, and may have underscores
/// and capitals, as hosts do.
fn check_name(name: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let at_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let good = name.len() <= MAX_NAME_LEN
        && name.chars().all(allowed)
        && at_end(name.chars().next())
        && at_end(name.chars().next_back());
    if good {
        return Ok(());
    }
    Err(ConfigError::value(
        "name",
        format!("cannot be {name:?}"),
        format!(
            "give 1 to {MAX_NAME_LEN} letters (a-z, A-Z), digits, dashes, dots or underscores, with a letter or digit at both ends"
        ),
    ))
}

fn check_readable(name: &str, path: &Path) -> Result<(), ConfigError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            let problem = format!("cannot be read: {}: {error}", path.display());
            Err(ConfigError::value(
                name,
                problem,
                "give a file of certificates in PEM",
            ))
        }
    }
}

fn stun(servers: &[String]) -> Result<Vec<ServerAddress>, ConfigError> {
    let servers: Vec<ServerAddress> = list("stun", servers)?;
    if let Some(other) = servers
        .iter()
        .find(|server| server.kind != ServerKind::Stun)
    {
        let hint = "a TURN server needs credentials: put it under [[turn]] in the file";
        return Err(ConfigError::value(
            "stun",
            format!("names a TURN server: {other}"),
            hint,
        ));
    }
    Ok(servers)
}

fn turn(servers: &[super::file::TurnConfig]) -> Result<Vec<StaticRelay>, ConfigError> {
    let relay = |server: &super::file::TurnConfig| {
        let address: ServerAddress = parse(
            "turn.url",
            &server.url,
            "write it like turn:relay.example:3478",
        )?;
        if address.kind == ServerKind::Stun {
            let problem = format!("is a STUN server: {address}");
            let hint = "put it under stun, or write turn: or turns:";
            return Err(ConfigError::value("turn.url", problem, hint));
        }
        Ok(StaticRelay {
            address,
            username: server.username.clone(),
            password: secret("turn.password_file", &server.password_file)?,
        })
    };
    servers.iter().map(relay).collect()
}

fn log_format(text: Option<&str>) -> Result<LogFormat, ConfigError> {
    match text {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => {
            let problem = format!("cannot be {other:?}");
            Err(ConfigError::value(
                "log_format",
                problem,
                "it is text or json",
            ))
        }
    }
}

fn list<T: FromStr<Err: Display>>(name: &str, items: &[String]) -> Result<Vec<T>, ConfigError> {
    items
        .iter()
        .map(|item| parse(name, item, "correct it, or leave it out"))
        .collect()
}

fn parse<T: FromStr<Err: Display>>(name: &str, text: &str, hint: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|error: T::Err| {
        ConfigError::value(name, format!("cannot be {text:?}: {error}"), hint)
    })
}

fn instead(flags: Vec<String>, file: Option<Vec<String>>) -> Vec<String> {
    if flags.is_empty() {
        file.unwrap_or_default()
    } else {
        flags
    }
}

fn or_default(flag: Option<PathBuf>, file: Option<PathBuf>, default: &str) -> PathBuf {
    flag.or(file).unwrap_or_else(|| PathBuf::from(default))
}

fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}
