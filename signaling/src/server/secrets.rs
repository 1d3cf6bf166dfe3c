//! The secrets that are shared with the TURN servers, replaced while the service runs.

use std::fmt;

use tokio::sync::watch;

/// Secrets shared with the TURN servers (coturn's `static-auth-secret`). The first mints credentials;
/// the others are those that the servers still accept while a rotation goes on, or will accept.
/// Clones share them.
#[derive(Clone)]
pub struct TurnSecrets(watch::Sender<Vec<String>>);

impl TurnSecrets {
    /// These, the minting one first; none: no credentials are minted.
    #[must_use]
    pub fn new(secrets: Vec<String>) -> Self {
        Self(watch::Sender::new(secrets))
    }

    /// One a line, the minting one first; empty lines and those that begin with `#` do not count.
    #[must_use]
    pub fn parse(text: &str) -> Vec<String> {
        let lines = text.lines().map(str::trim);
        let secrets = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        secrets.map(str::to_owned).collect()
    }

    /// Replaces them. Where the minting one has changed every connected node gets new credentials at
    /// once; allocations that stand keep theirs for life.
    pub fn replace(&self, secrets: Vec<String>) {
        self.0.send_if_modified(|present| {
            let changed = present.first() != secrets.first();
            *present = secrets;
            changed
        });
    }

    /// Whether none is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// The one that mints.
    pub(super) fn first(&self) -> Option<String> {
        self.0.borrow().first().cloned()
    }

    /// Tells when the minting one changes.
    pub(super) fn watch(&self) -> watch::Receiver<Vec<String>> {
        self.0.subscribe()
    }
}

impl fmt::Debug for TurnSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TurnSecrets")
            .field(&self.0.borrow().len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_line_and_the_first_mints() {
        let parsed = TurnSecrets::parse("# new\nsouth\r\n\n  north \n");
        assert_eq!(parsed, ["south", "north"]);
        let secrets = TurnSecrets::new(parsed);
        let mut told = secrets.watch();
        assert_eq!(secrets.first().as_deref(), Some("south"));
        assert!(!format!("{secrets:?}").contains("south"));
        secrets.replace(vec!["south".to_owned()]);
        assert!(!told.has_changed().unwrap(), "the same one mints");
        secrets.replace(vec!["east".to_owned(), "south".to_owned()]);
        assert!(told.has_changed().unwrap());
        told.mark_unchanged();
        secrets.replace(TurnSecrets::parse("\n"));
        assert!(secrets.is_empty() && secrets.first().is_none());
    }
}
