//! What waits to be written to a stream: whole frames, dropped whole when they are stale.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long a frame for a peer may wait. Older ones are dropped when their turn comes: a stream that
/// queues only adds delay to what WireGuard's own users retransmit anyway.
pub const MAX_AGE: Duration = Duration::from_millis(50);
/// The most bytes of frames for peers that wait, whatever their age: 50 ms at 168 Mbit/s.
pub const MAX_QUEUE_BYTES: usize = 1024 * 1024;
/// The most requests that wait; an allocation has about a dozen in flight.
const MAX_REQUESTS: usize = 128;
/// How much is written at once, if frames allow: one TLS record (RFC 8446 §5.1).
const BATCH: usize = 16 * 1024;

/// What a queue has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Frames handed to the stream.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames dropped because they waited longer than [`MAX_AGE`].
    pub stale: u64,
    /// Frames dropped because the queue was full.
    pub full: u64,
}

#[derive(Debug, Default)]
pub(super) struct FrameQueue {
    state: Mutex<State>,
    changed: Notify,
    closing: Notify,
}

#[derive(Debug, Default)]
struct State {
    requests: VecDeque<Vec<u8>>,
    data: VecDeque<(Instant, Vec<u8>)>,
    data_bytes: usize,
    closed: bool,
    counters: QueueCounters,
}

impl FrameQueue {
    /// Queues a whole frame; false if there is no room.
    pub(super) fn push(&self, frame: Vec<u8>, droppable: bool) -> bool {
        let mut state = self.lock();
        let room = if droppable {
            state.data_bytes + frame.len() <= MAX_QUEUE_BYTES
        } else {
            state.requests.len() < MAX_REQUESTS
        };
        if state.closed || !room {
            state.counters.full += 1;
            return false;
        }
        if droppable {
            state.data_bytes += frame.len();
            state.data.push_back((Instant::now(), frame));
        } else {
            state.requests.push_back(frame);
        }
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Waits for frames and puts them into `batch`; false once closed and without requests.
    pub(super) async fn next_batch(&self, batch: &mut Vec<u8>) -> bool {
        loop {
            batch.clear();
            {
                let mut state = self.lock();
                state.fill(batch, Instant::now());
                if !batch.is_empty() {
                    return true;
                }
                if state.closed {
                    return false;
                }
            }
            self.changed.notified().await;
        }
    }

    /// No more frames; those for peers are forgotten.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.data.clear();
        state.data_bytes = 0;
        drop(state);
        self.changed.notify_one();
        self.closing.notify_one();
    }

    /// Waits for [`Self::close`].
    pub(super) async fn closed(&self) {
        while !self.lock().closed {
            self.closing.notified().await;
        }
    }

    pub(super) fn counters(&self) -> QueueCounters {
        self.lock().counters
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fill(&mut self, batch: &mut Vec<u8>, now: Instant) {
        while let Some(frame) = self.requests.pop_front() {
            self.take(batch, &frame);
            if batch.len() >= BATCH {
                return;
            }
        }
        while let Some((queued, frame)) = self.data.pop_front() {
            self.data_bytes -= frame.len();
            if now.saturating_duration_since(queued) > MAX_AGE {
                self.counters.stale += 1;
                continue;
            }
            self.take(batch, &frame);
            if batch.len() >= BATCH {
                return;
            }
        }
    }

    fn take(&mut self, batch: &mut Vec<u8>, frame: &[u8]) {
        self.counters.frames += 1;
        self.counters.bytes += frame.len() as u64;
        batch.extend_from_slice(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_frames_are_dropped_whole_and_requests_never() {
        let mut state = State::default();
        let start = Instant::now();
        state.data.push_back((start, vec![1; 8]));
        state.data.push_back((start + MAX_AGE, vec![2; 8]));
        state.data_bytes = 16;
        state.requests.push_back(vec![3; 4]);
        let mut batch = Vec::new();
        let late = start + MAX_AGE + Duration::from_millis(1);
        state.fill(&mut batch, late);
        assert_eq!(batch, [&[3; 4][..], &[2; 8]].concat());
        assert_eq!(state.counters.stale, 1);
        assert_eq!(state.data_bytes, 0);
    }

    #[test]
    fn the_queue_is_bounded() {
        let queue = FrameQueue::default();
        let mut accepted = 0;
        while queue.push(vec![0; 1024], true) {
            accepted += 1;
        }
        assert_eq!(accepted, MAX_QUEUE_BYTES / 1024);
        let mut requests = 0;
        while queue.push(vec![0; 1024], false) {
            requests += 1;
        }
        assert_eq!(requests, MAX_REQUESTS);
        assert_eq!(queue.counters().full, 2);
    }
}
