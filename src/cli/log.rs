//! The log: to standard error, one line a transition. In text every value stands as `key=value`, between quotes where it has
//! blanks, quotes or an equals sign (logfmt), so that a line is one line whatever it tells of.

use std::fmt;

use clap::Args;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use super::Usage;
use crate::config::{LogConfig, LogFormat};

/// What others' code logs of single packets is in our own events where it matters: a peer that does not answer handshakes is a
/// path that is not up, not a warning every 5 s.
const QUIET: &str = "boringtun=off,stun_types=off,stun_proto=off";
const LEVELS: &str = "it is error, warn, info, debug or trace";
/// The field that is the event's text.
const MESSAGE: &str = "message";

/// How the services log; the daemons have it in their configuration.
#[derive(Args, Debug)]
pub(super) struct ServiceLog {
    /// error, warn, info, debug or trace.
    #[arg(
        long,
        value_name = "LEVEL",
        env = "WICE_LOG_LEVEL",
        default_value = "info"
    )]
    log_level: String,
    /// One JSON object a line.
    #[arg(long)]
    log_json: bool,
}

impl ServiceLog {
    pub(super) fn start(&self) -> anyhow::Result<()> {
        start(&LogConfig {
            level: self.log_level.clone(),
            format: if self.log_json {
                LogFormat::Json
            } else {
                LogFormat::Text
            },
        })
    }
}

/// Starts it. A second start in one process (tests) keeps the first.
pub(super) fn start(log: &LogConfig) -> anyhow::Result<()> {
    use std::io::IsTerminal as _;
    let words = ["error", "warn", "info", "debug", "trace", "off"];
    if !words.contains(&log.level.as_str()) && !log.level.contains('=') {
        return Err(Usage(format!("log_level cannot be {:?}\n  {LEVELS}", log.level)).into());
    }
    let filter = format!("{},{QUIET}", log.level);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| {
        Usage(format!(
            "log_level cannot be {:?}: {error}\n  {LEVELS}",
            log.level
        ))
    })?;
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(colour);
    let _ = match log.format {
        LogFormat::Text => builder.fmt_fields(Logfmt).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Fields as logfmt.
struct Logfmt;

impl<'writer> FormatFields<'writer> for Logfmt {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn add(&mut self, name: &str, value: &str) {
        let gap = if self.is_first { "" } else { " " };
        self.is_first = false;
        let written = match name {
            MESSAGE => write!(self.writer, "{gap}{}", one_line(value)),
            name => write!(self.writer, "{gap}{name}={}", quoted(value)),
        };
        self.result = self.result.and(written);
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), &format!("{value:?}"));
    }
}

/// As it is where that is unmistakable, else between quotes with what controls a terminal escaped.
fn quoted(value: &str) -> String {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"\"=\\".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("{:?}", one_line(value))
}

/// Messages for people have what to do on lines of their own.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_and_values_are_quoted_where_needed() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .fmt_fields(Logfmt)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let error = "cannot reach sig:1: refused\n  is the server up?";
            tracing::warn!(
                event = "signaling-lost",
                reason = "unreachable",
                error,
                retry_s = 0.25
            );
            tracing::info!(event = "path", peer = "a b", key = %"AA==", empty = "", evil = "x\u{1b}[2J\"");
            tracing::info!(at = ?Some(1), "two\n  lines");
        });
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let expected = concat!(
            " WARN event=signaling-lost reason=unreachable error=\"cannot reach sig:1: refused; is the server up?\" retry_s=0.25\n",
            " INFO event=path peer=\"a b\" key=\"AA==\" empty=\"\" evil=\"x\\u{1b}[2J\\\"\"\n",
            " INFO two; lines at=Some(1)\n",
        );
        assert_eq!(text, expected);
    }
}
