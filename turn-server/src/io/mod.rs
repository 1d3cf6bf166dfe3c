//! The I/O shell: sockets, threads, files and signals' effects. It decides nothing about TURN.

mod addresses;
mod certificate;
mod connections;
mod dispatch;
mod http;
mod joined;
mod kept;
mod listen;
mod mailbox;
mod metrics;
mod notices;
mod outbox;
mod peers;
mod proxy;
mod service;
mod settings;
mod standing;
mod stream;
mod streams;
mod token;
mod worker;

pub use service::Service;
pub use settings::{
    DEFAULT_PORT, DEFAULT_REALM, External, Listen, Settings, StartError, TLS_PORT, TextError,
};
