//! What the namespace tests share: building labs, and finding the program under test.
//!
//! These tests need root (or `unshare -Urnm cargo test -p wice-netns-tests`) and the programs that
//! the lab names. A test that cannot run fails and says why.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wice::lab::{Lab, LabConfig};

/// How long silence must last to count as an answer in a lab without delay: a hundred times what
/// an answer takes there, on a machine that is busy.
pub const SILENCE: Duration = Duration::from_millis(500);

/// Builds a lab, with a message that says what is missing.
pub fn lab(config: LabConfig) -> Result<Lab> {
    Lab::build(config).context("the lab could not be built, so nothing was tested")
}

/// The `wice` that was built beside these tests.
pub fn wice_binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(|deps| deps.parent())
        .context("where is target/?")?;
    let binary = profile.join("wice");
    ensure!(
        binary.is_file(),
        "{} is not there: cargo build --bin wice",
        binary.display()
    );
    Ok(binary)
}
