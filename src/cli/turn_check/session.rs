//! One allocation over its connection, driven until something happens.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::Target;
use crate::cli::netcheck::relay::{Link, RelayTools};
use crate::cli::random::random;
use crate::core::turn::{Allocation, AllocationConfig, AllocationEvent, Credentials};

/// The farewell is one request; without an answer the allocation ends by itself.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long nothing may be due: only so that waiting has an end.
const IDLE: Duration = Duration::from_secs(1);
/// Payloads that wait to be taken: echoes come one at a time.
const MAX_PAYLOADS: usize = 16;

/// Something happened.
pub(super) enum Happening {
    /// To the allocation.
    Event(AllocationEvent),
    /// A peer sent this.
    Payload(SocketAddr, Vec<u8>),
}

/// An allocation and its connection.
pub(super) struct Session {
    pub(super) allocation: Allocation,
    link: Link,
    is_stream: bool,
    payloads: std::collections::VecDeque<(SocketAddr, Vec<u8>)>,
}

impl Session {
    /// Connects; the allocation is asked for as soon as it is driven.
    pub(super) async fn connect(
        target: &Target,
        credentials: &Credentials,
        tools: &RelayTools,
    ) -> Result<Self, String> {
        let (link, family) = Link::open(&target.address, target.transport, tools).await?;
        let config = AllocationConfig {
            transport: target.transport,
            credentials: credentials.clone(),
            family,
        };
        let seed = random().map_err(|error| error.to_string())?;
        Ok(Self {
            allocation: Allocation::new(config, seed),
            is_stream: !matches!(link, Link::Udp(_)),
            link,
            payloads: std::collections::VecDeque::new(),
        })
    }

    /// The relayed address, and what the server saw us as.
    pub(super) async fn allocate(&mut self) -> Result<(SocketAddr, Option<SocketAddr>), String> {
        self.allocation.handle_connected(Instant::now());
        loop {
            match self.next().await? {
                Happening::Event(AllocationEvent::Allocated { relayed, mapped }) => {
                    return Ok((relayed, mapped));
                }
                Happening::Event(_) | Happening::Payload(..) => {}
            }
        }
    }

    /// Drives it until something happens; an allocation that fails or is lost is an error. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Result<Happening, String> {
        loop {
            if let Some(event) = self.allocation.poll_event() {
                return match event {
                    AllocationEvent::Failed { failure, .. }
                    | AllocationEvent::Lost { failure, .. } => Err(failure.to_string()),
                    AllocationEvent::Allocated { .. }
                    | AllocationEvent::PermissionInstalled(_)
                    | AllocationEvent::PermissionRefused { .. }
                    | AllocationEvent::ChannelBound { .. }
                    | AllocationEvent::ChannelRefused { .. }
                    | AllocationEvent::Closed => Ok(Happening::Event(event)),
                };
            }
            if let Some((from, payload)) = self.payloads.pop_front() {
                return Ok(Happening::Payload(from, payload));
            }
            while let Some(transmit) = self.allocation.poll_transmit() {
                self.link.send(transmit.data).await;
            }
            let due = self.allocation.poll_timeout();
            let due = due.unwrap_or_else(|| Instant::now() + IDLE);
            let Ok(arrived) = timeout_at(due.into(), self.link.receive()).await else {
                self.allocation.handle_timeout(Instant::now());
                continue;
            };
            let (bytes, now) = (arrived?, Instant::now());
            let payloads = &mut self.payloads;
            let mut keep = |peer, payload: &[u8]| {
                if payloads.len() < MAX_PAYLOADS {
                    payloads.push_back((peer, payload.to_vec()));
                }
            };
            if self.is_stream {
                let deliver = |got: crate::core::turn::Received<'_>| keep(got.peer, got.payload);
                self.allocation.handle_stream(&bytes, now, deliver);
            } else if let Some(got) = self.allocation.handle_datagram(&bytes, now) {
                keep(got.peer, got.payload);
            }
        }
    }

    /// Hands the allocation back.
    pub(super) async fn close(mut self) {
        self.allocation.close(Instant::now());
        let closed = async {
            while let Ok(happening) = self.next().await {
                if matches!(happening, Happening::Event(AllocationEvent::Closed)) {
                    return;
                }
            }
        };
        // What it was wanted for is done.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
    }
}
