//! The I/O shell: sockets, threads, files and signals' effects. It decides nothing about TURN.

mod addresses;
mod certificate;
mod dispatch;
mod http;
mod metrics;
mod notices;
mod service;
mod settings;
mod stream;
mod streams;
mod worker;

pub use service::Service;
pub use settings::{
    DEFAULT_PORT, DEFAULT_REALM, External, Listen, Settings, StartError, TLS_PORT, TextError,
};
