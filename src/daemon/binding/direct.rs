//! Whether direct paths begin at WireGuard's own port: shared where that is wanted and works, by the
//! local proxy where it is not, and said once whenever that changes.

use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::io::shared_port::{SharedPort, SharedPortError};
use crate::io::udp::Family;

/// A port that could not be shared is tried again after this: a firewall may have been in the way, or
/// a machine too busy for the self-test.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// How direct paths are bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// By WireGuard's own port where that can be shared, else by the local proxy.
    #[default]
    Auto,
    /// By the local proxy.
    Proxy,
    /// As `Auto`, but it is a warning where the port cannot be shared.
    SharedPort,
}

impl Direct {
    /// As flag and file have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Proxy => "proxy",
            Self::SharedPort => "shared-port",
        }
    }
}

impl FromStr for Direct {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "proxy" => Ok(Self::Proxy),
            "shared-port" => Ok(Self::SharedPort),
            _ => Err("it is auto, proxy or shared-port"),
        }
    }
}

/// What has become of it.
#[derive(Debug)]
pub(super) struct Sharing {
    wanted: Direct,
    said: Option<String>,
    failed: Option<Instant>,
}

impl Sharing {
    pub(super) fn new(wanted: Direct) -> Self {
        Self {
            wanted,
            said: None,
            failed: None,
        }
    }

    /// Whether a port that could not be shared is to be tried again; asked at every look.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        self.failed.take_if(|at| now >= *at + TRY_AGAIN).is_some()
    }

    /// Shares WireGuard's port, both families or the one that there is. Empty: by the proxy.
    pub(super) async fn open(&mut self, port: u16) -> Vec<SharedPort> {
        match self.wanted {
            Direct::Proxy => return Vec::new(),
            Direct::Auto | Direct::SharedPort => {}
        }
        let (shared, failure) = share(port).await;
        self.failed = failure
            .as_ref()
            .filter(|error| !matches!(error, SharedPortError::NoPermission { .. }))
            .map(|_| Instant::now());
        self.say(port, &shared, failure.as_ref());
        shared
    }

    /// For reports: why direct paths go through the proxy although they need not.
    pub(super) fn say(
        &mut self,
        port: u16,
        shared: &[SharedPort],
        failure: Option<&SharedPortError>,
    ) {
        let text = match (shared, failure) {
            ([], Some(error)) => error.to_string(),
            ([], None) => return,
            ([_, ..], _) => format!("direct paths leave from WireGuard's own port {port}"),
        };
        if self.said.as_ref() == Some(&text) {
            return;
        }
        match (shared, self.wanted) {
            ([_, ..], _) => tracing::info!(event = "shared-port", "{text}"),
            ([], Direct::SharedPort) => tracing::warn!(event = "proxy", "{text}"),
            ([], Direct::Auto | Direct::Proxy) => tracing::info!(event = "proxy", "{text}"),
        }
        self.said = Some(text);
    }
}

/// Shares a port in both families or the one that there is. With none, why.
pub(in crate::daemon) async fn share(port: u16) -> (Vec<SharedPort>, Option<SharedPortError>) {
    // The self-test waits on the socket.
    let opened = tokio::task::spawn_blocking(move || {
        [Family::V4, Family::V6].map(|family| SharedPort::open(family, port))
    });
    let mut shared = Vec::new();
    let mut failure = None;
    for opened in opened.await.into_iter().flatten() {
        match opened {
            Ok(port) => shared.push(port),
            // A machine, or a WireGuard, without IPv6 lacks nothing.
            Err(SharedPortError::NoFamily { .. }) => {}
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    (shared, failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_flag() {
        for direct in [Direct::Auto, Direct::Proxy, Direct::SharedPort] {
            assert_eq!(direct.as_str().parse(), Ok(direct));
        }
        assert!("native".parse::<Direct>().is_err());
    }
}
