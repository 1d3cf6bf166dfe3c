//! Asking before what cannot be taken back.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::bail;

use super::Usage;

/// Goes on with `yes`, or when somebody at the terminal says so.
pub(super) fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Usage(format!(
            "{question} There is no terminal to ask at\n  say --yes if you mean it"
        ))
        .into());
    }
    let mut out = std::io::stderr().lock();
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => bail!("nothing was changed"),
    }
}
