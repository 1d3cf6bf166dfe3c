//! What this machine does to its own network: routes, links, the firewall. Of what WireGuard sends by itself the kernel
//! tells WireGuard alone that it gets nowhere, but the change that did it is announced.

use std::time::Duration;

use tokio::time::Instant;

use crate::wireguard::netlink::Watch;

/// Paths are not checked more often because of changes: programs that write rules or routes write many.
const EVERY: Duration = Duration::from_secs(1);

/// Tells when paths from WireGuard's own port are to be checked.
#[derive(Debug)]
pub(super) struct LocalChanges {
    firewall: Option<Watch>,
    due: Option<Instant>,
    last: Option<Instant>,
}

impl LocalChanges {
    /// Begins to watch the firewall; needs a tokio runtime. A kernel without nf_tables announces nothing.
    pub(super) fn start() -> Self {
        let firewall = Watch::firewall();
        let firewall = firewall.inspect_err(|error| {
            tracing::debug!(event = "firewall-not-watched", %error);
        });
        Self {
            firewall: firewall.ok(),
            due: None,
            last: None,
        }
    }

    /// Something has changed: at once, and for what follows on its heels a little later.
    pub(super) fn note(&mut self, now: Instant) {
        let rested = self.last.map_or(now, |last| now.max(last + EVERY));
        self.due.get_or_insert(rested);
    }

    /// Waits until paths are to be checked. Cancel-safe.
    pub(super) async fn due(&mut self) {
        loop {
            let due = self.due;
            let rested = async move {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changed(&mut self.firewall) => match changed {
                    true => self.note(Instant::now()),
                    false => self.firewall = None,
                },
                () = rested => {
                    self.due = None;
                    self.last = Some(Instant::now());
                    return;
                }
            }
        }
    }
}

/// Waits for a change; false when there will be none any more.
async fn changed(firewall: &mut Option<Watch>) -> bool {
    match firewall {
        Some(watch) => watch.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_counts_at_once_and_many_are_one() {
        let mut changes = LocalChanges {
            firewall: None,
            due: None,
            last: None,
        };
        let start = Instant::now();
        changes.note(start);
        assert_eq!(changes.due.take(), Some(start));
        changes.last = Some(start);
        for milliseconds in [1, 10, 100] {
            changes.note(start + Duration::from_millis(milliseconds));
            assert_eq!(changes.due, Some(start + EVERY));
        }
        (changes.due, changes.last) = (None, Some(start + EVERY));
        let later = start + 10 * EVERY;
        changes.note(later);
        assert_eq!(changes.due, Some(later));
    }
}
