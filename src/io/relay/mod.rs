//! The connections of allocations over TCP and TLS: dialled (through an HTTP proxy if one is set),
//! written from a bounded queue, read into a bounded channel. It understands nothing of TURN: frames
//! come whole from the allocation or the data path, and bytes go back as they arrive.

mod open;
mod queue;
mod tls;

#[cfg(test)]
mod tests;

pub use open::CONNECT_TIMEOUT;
pub use queue::{MAX_AGE, MAX_QUEUE_BYTES, QueueCounters};
pub use tls::{Tls, Trust, TrustError};

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::core::turn::url::Host;
use crate::io::dial::{DialError, Fwmark};
use crate::io::http_proxy::{ProxyError, ProxyUrl};
use queue::FrameQueue;

/// How much is read at once: several TLS records (16 KiB), at most one event.
const READ_SIZE: usize = 64 * 1024;
/// How long a closing connection may take to flush its requests and say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a relay is and how it is reached.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The relay. A name is resolved here, or by the proxy if there is one.
    pub host: Host,
    /// The relay's port.
    pub port: u16,
    /// TLS, or plain TCP without.
    pub tls: Option<Tls>,
    /// The HTTP proxy on the way, if any.
    pub proxy: Option<ProxyUrl>,
    /// What keeps the connection out of the tunnel that it carries.
    pub mark: Fwmark,
}

/// What happened on one connection.
#[derive(Debug)]
pub enum RelayEvent {
    /// Ready for frames.
    Connected {
        /// Our end of the TCP connection.
        local: SocketAddr,
        /// The relay, or the proxy if there is one.
        remote: SocketAddr,
    },
    /// Bytes from the relay, cut anywhere, at most 64 KiB.
    Data(Bytes),
    /// Over; the last event.
    Closed(CloseReason),
}

/// Why a connection could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// [`RelayConnection::close`] was called.
    #[error("closed as asked")]
    Asked,
    /// The relay ended it.
    #[error("the relay closed the connection")]
    ByRelay,
    /// No address took the connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Connecting, the proxy's answer and TLS together took longer than [`CONNECT_TIMEOUT`].
    #[error(
        "no connection to the relay within {} s; a firewall may drop it silently",
        CONNECT_TIMEOUT.as_secs()
    )]
    Timeout,
    /// The HTTP proxy did not let us through.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The relay's certificate is not the one that is trusted.
    #[error("the relay's certificate is not trusted: {0}")]
    Certificate(String),
    /// TLS failed otherwise.
    #[error("no TLS with the relay: {0}; is this its TLS port?")]
    Tls(String),
    /// Reading or writing failed.
    #[error("the connection to the relay broke: {0}")]
    Io(io::Error),
}

/// A connection to a relay, made in the background. Dropping it ends it at once.
#[derive(Debug)]
pub struct RelayConnection {
    queue: Arc<FrameQueue>,
    task: AbortHandle,
}

impl RelayConnection {
    /// Starts to connect and returns at once. Everything that happens is sent to `events` under
    /// `id`; while that channel is full nothing is read, so the relay feels it.
    ///
    /// Must be called within a tokio runtime.
    pub fn open(id: u64, endpoint: Endpoint, events: mpsc::Sender<(u64, RelayEvent)>) -> Self {
        let queue = Arc::new(FrameQueue::default());
        let task = tokio::spawn(run(id, endpoint, Arc::clone(&queue), events)).abort_handle();
        Self { queue, task }
    }

    /// Queues one whole frame, padded as streams need it. `droppable`: whether it may be dropped
    /// when it is stale ([`MAX_AGE`]) or the queue is full, as what goes to peers may be. Returns
    /// false if it was dropped now.
    pub fn send(&self, frame: Vec<u8>, droppable: bool) -> bool {
        self.queue.push(frame, droppable)
    }

    /// What went through the queue so far, and what did not.
    pub fn counters(&self) -> QueueCounters {
        self.queue.counters()
    }

    /// Flushes the requests that wait (the allocation's farewell) and closes; then
    /// [`CloseReason::Asked`] is reported.
    pub fn close(&self) {
        self.queue.close();
    }
}

impl Drop for RelayConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    id: u64,
    endpoint: Endpoint,
    queue: Arc<FrameQueue>,
    events: mpsc::Sender<(u64, RelayEvent)>,
) {
    let reason = match connect(id, &endpoint, &queue, &events).await {
        Ok(never_or_reason) | Err(never_or_reason) => never_or_reason,
    };
    // Without a receiver there is nobody left to tell.
    let _ = events.send((id, RelayEvent::Closed(reason))).await;
}

async fn connect(
    id: u64,
    endpoint: &Endpoint,
    queue: &FrameQueue,
    events: &mpsc::Sender<(u64, RelayEvent)>,
) -> Result<CloseReason, CloseReason> {
    let marks = endpoint.mark.changes();
    let dialled = tokio::select! {
        dialled = timeout(CONNECT_TIMEOUT, open::open(endpoint)) => dialled,
        () = queue.closed() => return Ok(CloseReason::Asked),
    };
    let connection = dialled.map_err(|_| CloseReason::Timeout)??;
    let (local, remote) = (connection.local, connection.remote);
    let connected = RelayEvent::Connected { local, remote };
    if events.send((id, connected)).await.is_err() {
        return Ok(CloseReason::Asked);
    }
    let exchanged = async {
        match connection.stream {
            open::Stream::Plain(stream) => exchange(id, stream, queue, events).await,
            open::Stream::Tls(stream) => exchange(id, *stream, queue, events).await,
        }
    };
    tokio::select! {
        reason = exchanged => Ok(reason),
        never = follow(marks, connection.socket) => match never {},
    }
}

/// Keeps the connection out of the tunnel also when that comes later.
async fn follow(mut marks: watch::Receiver<u32>, socket: OwnedFd) -> Infallible {
    while marks.changed().await.is_ok() {
        let mark = *marks.borrow_and_update();
        if let Err(error) = SockRef::from(&socket).set_mark(mark) {
            tracing::debug!(event = "not-marked", mark, %error);
        }
    }
    std::future::pending().await
}

/// Reads and writes at the same time until either ends.
async fn exchange<S>(
    id: u64,
    stream: S,
    queue: &FrameQueue,
    events: &mpsc::Sender<(u64, RelayEvent)>,
) -> CloseReason
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        reason = read(id, reader, events) => reason,
        reason = write(writer, queue) => reason,
        () = overdue(queue) => CloseReason::Asked,
    }
}

/// A relay that takes nothing more must not hold up a close.
async fn overdue(queue: &FrameQueue) {
    queue.closed().await;
    sleep(CLOSE_TIMEOUT).await;
}

async fn read<S: AsyncRead>(
    id: u64,
    mut reader: ReadHalf<S>,
    events: &mpsc::Sender<(u64, RelayEvent)>,
) -> CloseReason {
    let mut buffer = BytesMut::with_capacity(READ_SIZE);
    loop {
        buffer.reserve(READ_SIZE);
        let mut window = (&mut reader).take(READ_SIZE as u64);
        match window.read_buf(&mut buffer).await {
            Ok(0) => return CloseReason::ByRelay,
            Ok(_) => {}
            // A TLS peer that goes without close_notify has gone all the same.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return CloseReason::ByRelay;
            }
            Err(error) => return CloseReason::Io(error),
        }
        let data = RelayEvent::Data(buffer.split().freeze());
        if events.send((id, data)).await.is_err() {
            return CloseReason::Asked;
        }
    }
}

async fn write<S: AsyncWrite>(mut writer: WriteHalf<S>, queue: &FrameQueue) -> CloseReason {
    let mut batch = Vec::new();
    while queue.next_batch(&mut batch).await {
        let written = async {
            writer.write_all(&batch).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            return CloseReason::Io(error);
        }
    }
    // The farewell is out; whether the goodbye arrives changes nothing.
    let _ = writer.shutdown().await;
    CloseReason::Asked
}
