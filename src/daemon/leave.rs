//! Leaving a network: key, session and membership go out of the state folder, so that the next `wice up TOKEN` is a new node.

use std::path::Path;

use super::state::{State, StateError};

/// A node about to leave. Its state folder is locked: no daemon uses it.
pub struct Leaving {
    state: State,
    /// The network's name; none where the node has a key and has never joined.
    pub network: Option<String>,
    /// The name that the node was given.
    pub name: Option<String>,
}

/// A node cannot leave.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// There is nothing to leave.
    #[error(
        "this node is in no network: nothing is kept in {0}\n  if its state is elsewhere, say where with --state-dir"
    )]
    Nothing(String),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Leaving {
    /// Looks who would leave; changes nothing.
    pub fn of(state_dir: &Path) -> Result<Self, LeaveError> {
        let nothing = || LeaveError::Nothing(state_dir.display().to_string());
        // Opening would make the folder.
        if !state_dir.is_dir() {
            return Err(nothing());
        }
        let state = State::open(state_dir)?;
        if !state.is_node() {
            return Err(nothing());
        }
        // What is damaged can be left, too.
        let network = state.network().ok().flatten().map(|network| network.name);
        let name = state.node().ok().flatten().and_then(|node| node.name);
        Ok(Self {
            state,
            network,
            name,
        })
    }

    /// Leaves. It cannot be taken back: the key is gone, and with it the interface that a daemon has left in the kernel.
    pub async fn leave(self) -> Result<(), LeaveError> {
        if let Err(error) = super::managed::remove(&self.state, None).await {
            // The next start says what is in its way.
            tracing::debug!(event = "interface-stays", %error);
        }
        Ok(self.state.clear()?)
    }
}
