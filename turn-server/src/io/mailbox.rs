//! What threads send each other: bounded, and never waited for.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::event::{EventfdFlags, eventfd};
use wice_udp::UdpSocket;

use super::stream::Stream;
use super::worker::Control;
use crate::server::Handover;

/// Commands of the service that wait for a thread: a reload, a drain and a stop, twice.
const COMMANDS: usize = 8;
/// Letters of other threads that wait: clients that move in the same few milliseconds. What does not fit is asked for again by
/// its client.
const LETTERS: usize = 256;

/// Something for another thread.
pub(super) enum Letter {
    /// From server to server, with the relay sockets that go along.
    Handover(Box<Handover>, Vec<UdpSocket>),
    /// A connection whose ConnectionBind is for that thread.
    Stream(Box<Stream>),
}

/// Where a thread is written to.
#[derive(Clone)]
pub(super) struct Mailbox {
    commands: SyncSender<Control>,
    letters: SyncSender<Letter>,
    wake: Arc<OwnedFd>,
}

/// Where a thread reads it.
pub(super) struct Inbox {
    pub(super) commands: Receiver<Control>,
    pub(super) letters: Receiver<Letter>,
    pub(super) wake: Arc<OwnedFd>,
}

impl Mailbox {
    /// Both ends.
    pub(super) fn new() -> std::io::Result<(Self, Inbox)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, for_commands) = sync_channel(COMMANDS);
        let (letters, for_letters) = sync_channel(LETTERS);
        let inbox = Inbox {
            commands: for_commands,
            letters: for_letters,
            wake: Arc::clone(&wake),
        };
        let mailbox = Self {
            commands,
            letters,
            wake,
        };
        Ok((mailbox, inbox))
    }

    pub(super) fn command(&self, control: Control) {
        // One that is full has been told the like already, or is gone.
        let _ = self.commands.try_send(control);
        self.ring();
    }

    /// The letter comes back when there is no room for it.
    pub(super) fn send(&self, letter: Letter) -> Result<(), Letter> {
        use std::sync::mpsc::TrySendError;
        self.letters.try_send(letter).map_err(|error| match error {
            TrySendError::Full(letter) | TrySendError::Disconnected(letter) => letter,
        })?;
        self.ring();
        Ok(())
    }

    fn ring(&self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}
