//! Clients of every signaling backend.
//!
//! A backend is a future between two ends: an outbox that holds what this node wants known (state,
//! not a queue: what is replaced before it was sent is never sent), and a bounded channel of
//! events. It reconnects by itself and publishes the outbox again; it never touches a path.

mod connect;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod tls;
mod websocket;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use wice_signaling::protocol::{
    CarryRefusal, ErrorCode, JoinReceipt, Presence, PublicKey, RecordKind, RevocationList, Servers,
};

pub use self::connect::ConnectError;
pub use self::websocket::{WebSocketBackend, WebSocketConfig};

/// Events that may wait for the daemon; past them the backend stops reading.
const EVENT_QUEUE: usize = 256;

/// A daemon that ends waits this long for its farewell: a round trip or two where signaling works.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);

/// What a backend tells the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The service takes records that are carried for others; `Connected` follows.
    Carries,
    /// This node is in, and what it had published is published.
    Connected,
    /// It is not, or no longer.
    Disconnected {
        /// What happened, why, what to do: for people.
        reason: String,
        /// Until the next try.
        retry_in: Duration,
    },
    /// The service refuses this node; `Disconnected` follows.
    Refused {
        /// Why.
        code: ErrorCode,
        /// For people.
        text: String,
    },
    /// Another node's record, sealed.
    Record {
        /// Whose.
        key: PublicKey,
        /// Which.
        kind: RecordKind,
        /// As it was published.
        sealed: Vec<u8>,
        /// How long its node has been away; zero while it is connected.
        last_seen: Duration,
    },
    /// Another node has come or gone, as the service has it.
    Presence {
        /// Which.
        key: PublicKey,
        /// Whether it is connected.
        presence: Presence,
    },
    /// The service has not taken a record that this node carries.
    NotCarried {
        /// For whom.
        key: PublicKey,
        /// Which.
        kind: RecordKind,
        /// Why not.
        why: CarryRefusal,
    },
    /// STUN and TURN servers: first without credentials, before this node is in; then with, and
    /// again before they expire.
    Servers(Servers),
    /// A verified list of revocations, newer than the last.
    Revocations(RevocationList),
    /// To be kept: it lets this node in after its invite has expired.
    Receipt(JoinReceipt),
}

/// What this node wants known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbox {
    /// The last record of each kind, sealed where the backend is not trusted with addresses.
    pub records: BTreeMap<RecordKind, Bytes>,
    /// Records of nodes that do not come to the service by themselves, sealed. Those that were sent stay
    /// there when they are taken out of here.
    pub carried: BTreeMap<(PublicKey, RecordKind), Bytes>,
    /// A list of revocations to carry.
    pub revocations: Option<RevocationList>,
    /// Counts changes of the node's own network: a connection is then checked at once.
    pub network_changes: u64,
    /// This node ends on purpose: the others are told, and the backend ends.
    pub leaving: bool,
}

/// A way to reach the other nodes' records.
pub trait SignalingBackend: Send + 'static {
    /// Runs until the receiver of `events` or the sender of `outbox` is gone, or it has said farewell.
    fn run(
        self,
        outbox: watch::Receiver<Outbox>,
        events: mpsc::Sender<Event>,
    ) -> impl Future<Output = ()> + Send;
}

/// A running backend. Dropping it ends the backend.
pub struct Signaling {
    outbox: watch::Sender<Outbox>,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Signaling {
    /// Runs `backend` as a task of the present runtime.
    pub fn start(backend: impl SignalingBackend) -> Self {
        let (outbox, outbox_rx) = watch::channel(Outbox::default());
        let (events_tx, events) = mpsc::channel(EVENT_QUEUE);
        let task = tokio::spawn(backend.run(outbox_rx, events_tx));
        Self {
            outbox,
            events,
            task,
        }
    }

    /// Replaces this node's record of `kind`. Never blocks, never fails: it is sent when it can be,
    /// and again after each reconnect.
    pub fn publish(&self, kind: RecordKind, sealed: impl Into<Bytes>) {
        let sealed = sealed.into();
        self.outbox.send_modify(|outbox| {
            outbox.records.insert(kind, sealed);
        });
    }

    /// Carries a record of a node that does not come to the service by itself, at once: who carries many keeps
    /// to the service's pace. Sent again after each reconnect, and nowhere but to a service that
    /// [`Event::Carries`].
    pub fn carry(&self, key: PublicKey, kind: RecordKind, sealed: impl Into<Bytes>) {
        let sealed = sealed.into();
        self.outbox.send_modify(|outbox| {
            outbox.carried.insert((key, kind), sealed);
        });
    }

    /// Carries this no more: what the service has not taken is asked again when it is carried anew.
    pub fn carry_no_more(&self, key: PublicKey, kind: RecordKind) {
        self.outbox.send_modify(|outbox| {
            outbox.carried.remove(&(key, kind));
        });
    }

    /// Carries nothing from now on. What the service has, it keeps.
    pub fn carry_nothing(&self) {
        self.outbox.send_modify(|outbox| outbox.carried.clear());
    }

    /// Carries a list of revocations to the service and so to all nodes.
    pub fn push_revocations(&self, list: RevocationList) {
        self.outbox
            .send_modify(|outbox| outbox.revocations = Some(list));
    }

    /// To be called when addresses or routes of this node change: the connection is checked
    /// within seconds instead of a minute, and a pending retry comes at once.
    pub fn network_changed(&self) {
        self.outbox
            .send_modify(|outbox| outbox.network_changes += 1);
    }

    /// Says farewell, so that the others know at once, and ends. Returns when it is said, or cannot
    /// be: at most after half a second.
    pub async fn leave(mut self) {
        self.outbox.send_modify(|outbox| outbox.leaving = true);
        let ended = async { while self.events.recv().await.is_some() {} };
        // Not said in time, the others find out by themselves.
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, ended).await;
    }

    /// The next event; `None` when the backend has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for Signaling {
    fn drop(&mut self) {
        self.task.abort();
    }
}
