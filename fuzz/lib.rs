//! libFuzzer's side of the entry functions.

#[path = "entries/mod.rs"]
mod entries;

pub use entries::{Fed, TARGETS, Target};

/// Feeds one input to a target.
pub fn feed(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("targets are named after their files");
    let _ = (target.run)(data);
}
