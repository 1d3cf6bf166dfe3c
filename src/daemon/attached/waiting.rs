//! While the interface is not there yet: who asks is told so, and that the daemon lives.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::daemon::Settings;
use crate::daemon::control::{
    BindError, ControlError, ControlListener, ErrorKind, Handler, Probe, Servers, serve,
};
use crate::report::{PingEvent, Status, Why};

/// The control socket of a daemon that waits.
pub(super) struct Waiting {
    asked: Arc<Asked>,
    task: JoinHandle<()>,
}

impl Waiting {
    /// Answers with what is waited for. Fails where another daemon has the socket.
    pub(super) fn start(settings: &Settings, error: &str) -> Result<Self, BindError> {
        let listener = ControlListener::bind(&settings.socket())?;
        let asked = Arc::new(Asked {
            message: format!("wice waits for {}: {error}", settings.interface),
            down: Notify::new(),
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&asked)));
        Ok(Self { asked, task })
    }

    /// Until somebody wants the daemon to stop. Cancel-safe.
    pub(super) async fn asked_to_stop(&self) {
        self.asked.down.notified().await;
    }

    /// Leaves the socket's name to who has the interface.
    pub(super) async fn end(self) {
        self.task.abort();
        // Only its end removes the socket.
        let _ = self.task.await;
    }
}

/// What it answers.
struct Asked {
    message: String,
    down: Notify,
}

impl Asked {
    fn not_yet<T>(&self) -> Result<T, ControlError> {
        Err(ControlError::new(ErrorKind::Failed, self.message.clone()))
    }
}

impl Handler for Asked {
    async fn status(&self) -> Result<Status, ControlError> {
        self.not_yet()
    }

    async fn why(&self, _: &str) -> Result<Why, ControlError> {
        self.not_yet()
    }

    async fn ping(&self, _: &str, _: u32, _: mpsc::Sender<PingEvent>) -> Result<(), ControlError> {
        self.not_yet()
    }

    async fn servers(&self) -> Result<Servers, ControlError> {
        self.not_yet()
    }

    async fn down(&self) -> Result<(), ControlError> {
        self.down.notify_one();
        Ok(())
    }

    /// Nodes that lead no segment of a mesh have no interface: to wait for one is all there is to do.
    async fn probe(&self, _: Probe) -> Result<(), ControlError> {
        Ok(())
    }
}
