//! What the rest of the daemon tells the packet loop: a bounded queue and an eventfd that wakes it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};

use rustix::event::{EventfdFlags, eventfd};

use super::Command;

/// Commands that wait: a burst of adverts of a large network fits.
const MAX_COMMANDS: usize = 8192;

/// The sending side; cheap to clone.
#[derive(Clone)]
pub struct Inbox {
    queue: SyncSender<Command>,
    waker: Arc<OwnedFd>,
}

/// The loop cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InboxError {
    /// It has ended.
    #[error("the packet loop has ended")]
    Ended,
    /// It is far behind.
    #[error("the packet loop is overloaded: a command was dropped")]
    Full,
}

/// The receiving side.
pub(super) struct Outlet {
    queue: Receiver<Command>,
    waker: Arc<OwnedFd>,
}

impl Inbox {
    pub(super) fn new() -> io::Result<(Self, Outlet)> {
        let (sender, receiver) = sync_channel(MAX_COMMANDS);
        let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let inbox = Self {
            queue: sender,
            waker: Arc::clone(&waker),
        };
        Ok((
            inbox,
            Outlet {
                queue: receiver,
                waker,
            },
        ))
    }

    /// Queues a command and wakes the loop. Never blocks.
    pub fn send(&self, command: Command) -> Result<(), InboxError> {
        self.queue.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => InboxError::Full,
            TrySendError::Disconnected(_) => InboxError::Ended,
        })?;
        // A full counter means that the loop is awake already.
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
        Ok(())
    }
}

impl Outlet {
    pub(super) fn waker(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }

    /// Commands that wait; an end that everybody has let go of is a command to stop.
    pub(super) fn drain(&self) -> Vec<Command> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.waker, &mut count);
        let mut commands = Vec::new();
        loop {
            match self.queue.try_recv() {
                Ok(command) => commands.push(command),
                Err(TryRecvError::Empty) => return commands,
                Err(TryRecvError::Disconnected) => {
                    commands.push(Command::Stop);
                    return commands;
                }
            }
        }
    }
}
