//! What waits to be sent to the server: requests first, data bounded.

use std::collections::VecDeque;

/// The most requests that wait: four times what can be in flight, so only an I/O layer that does not
/// poll ever loses one, and a lost one is retransmitted over UDP.
const MAX_CONTROL: usize = 128;
/// The most bytes of data that wait: checks are about 150 bytes, so this is over a thousand of them.
const MAX_DATA_BYTES: usize = 256 * 1024;

/// One message for the server: a datagram, or one whole frame of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The bytes, framed for the allocation's transport.
    pub data: Vec<u8>,
    /// Whether it may be dropped under congestion: true for what goes to a peer; false for requests
    /// to the server, which a reliable transport must not lose (they are not retransmitted there).
    pub droppable: bool,
}

#[derive(Default)]
pub(super) struct Outbox {
    control: VecDeque<Vec<u8>>,
    data: VecDeque<Vec<u8>>,
    data_bytes: usize,
}

impl Outbox {
    /// Queues a request; false if the queue is full.
    pub(super) fn push_control(&mut self, bytes: Vec<u8>) -> bool {
        let room = self.control.len() < MAX_CONTROL;
        if room {
            self.control.push_back(bytes);
        }
        room
    }

    /// Queues something for a peer; false if the queue is full.
    pub(super) fn push_data(&mut self, bytes: Vec<u8>) -> bool {
        let room = self.data_bytes + bytes.len() <= MAX_DATA_BYTES;
        if room {
            self.data_bytes += bytes.len();
            self.data.push_back(bytes);
        }
        room
    }

    pub(super) fn pop(&mut self) -> Option<Transmit> {
        if let Some(data) = self.control.pop_front() {
            return Some(Transmit {
                data,
                droppable: false,
            });
        }
        let data = self.data.pop_front()?;
        self.data_bytes -= data.len();
        Some(Transmit {
            data,
            droppable: true,
        })
    }

    /// Forgets everything: what was queued for one connection means nothing once it is gone.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
