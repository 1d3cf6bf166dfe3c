//! What somebody who knows more of the peers than the interface does says of them: a cluster. By hand there is nobody.

use std::collections::BTreeMap;

use tokio::sync::watch;
use wice_signaling::protocol::{IpPrefix, PublicKey};

use crate::daemon::binding::Held;

/// What is to be heeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Guidance {
    /// Whose endpoints are left alone.
    pub(in crate::daemon) held: Held,
    /// Addresses that are nobody's candidates.
    pub(in crate::daemon) excluded: Vec<IpPrefix>,
    /// What peers are called in reports, where that is not what they call themselves.
    pub(in crate::daemon) names: BTreeMap<PublicKey, String>,
    /// Where adverts are written by us: how that goes.
    pub(in crate::daemon) publication: Option<Publication>,
}

/// How our advert gets to where the others look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Publication {
    /// It has stood there since we began.
    pub(in crate::daemon) done: bool,
    /// What is in the way now, in one line.
    pub(in crate::daemon) problem: Option<String>,
}

/// The newest guidance.
pub(super) struct Guide {
    guidance: Guidance,
    /// None where nobody guides.
    news: Option<watch::Receiver<Guidance>>,
}

impl Guide {
    /// Nobody.
    pub(super) fn none() -> Self {
        Self {
            guidance: Guidance::default(),
            news: None,
        }
    }

    /// Heeds what comes, and touches nothing before.
    #[cfg(feature = "kubernetes")]
    pub(super) fn new(news: watch::Receiver<Guidance>) -> Self {
        Self {
            guidance: Guidance {
                held: Held::Everybody,
                ..Guidance::default()
            },
            news: Some(news),
        }
    }

    /// Waits for other guidance and takes it. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        let Some(news) = &mut self.news else {
            return std::future::pending().await;
        };
        match news.changed().await {
            Ok(()) => self.guidance.clone_from(&news.borrow_and_update()),
            // Who knew more has ended; what was said last holds.
            Err(_) => self.news = None,
        }
    }

    /// What holds now.
    pub(super) fn guidance(&self) -> &Guidance {
        &self.guidance
    }
}
