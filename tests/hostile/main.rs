//! Hostile input: every parser and every state machine under a seeded mutator, and a node that is
//! lied to through its public interface.
//!
//! `WICE_FUZZ_INPUTS` sets the inputs of each target; what is run is the same as under libFuzzer
//! (`fuzz/`).

#![allow(clippy::unwrap_used, reason = "a test's helpers")]

#[path = "../../fuzz/entries/mod.rs"]
mod entries;
mod mutator;
mod parsers;
