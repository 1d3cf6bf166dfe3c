//! Accepting connections: counted by source and in total before they cost anything.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::metrics::{Refusal, add};
use super::{Shared, Transport};

/// After a failed accept (file descriptors used up): long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Data that nobody acknowledges for so long ends the connection (RFC 5482), as
/// [`super::Limits::idle_timeout`] does for a silent one.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests' heads: an upgrade has some 300 bytes; hyper's minimum is 8 KiB.
const HTTP_BUFFER_LEN: usize = 8 << 10;

/// Connections by source address (IPv6: by /64).
#[derive(Default)]
pub(super) struct Sources(Mutex<BTreeMap<IpAddr, usize>>);

/// One counted connection; it is uncounted when the last holder drops it.
pub(super) struct Guest {
    pub(super) address: IpAddr,
    source: IpAddr,
    shared: Arc<Shared>,
}

impl Guest {
    fn admit(shared: &Arc<Shared>, peer: SocketAddr) -> Result<Self, Refusal> {
        let limits = &shared.config.limits;
        let address = peer.ip().to_canonical();
        let source = source_of(address);
        let open = shared.metrics.connections.load(Ordering::Relaxed);
        if open >= limits.connections as u64 {
            return Err(Refusal::TooManyConnections);
        }
        let mut sources = shared
            .sources
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = sources.get(&source).copied().unwrap_or(0);
        let behind_proxy = matches!(shared.config.transport, Transport::Plain);
        if count >= limits.connections_per_source && !behind_proxy {
            return Err(Refusal::TooManyFromSource);
        }
        sources.insert(source, count + 1);
        drop(sources);
        add(&shared.metrics.connections, 1);
        add(&shared.metrics.accepted, 1);
        Ok(Self {
            address,
            source,
            shared: shared.clone(),
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shared
            .metrics
            .connections
            .fetch_sub(1, Ordering::Relaxed);
        let mut sources = self
            .shared
            .sources
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match sources.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                sources.remove(&self.source);
            }
        }
    }
}

/// Accepts until the future is dropped.
pub(super) async fn run(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    shared: Arc<Shared>,
) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(event = "accept-failed", %error);
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match Guest::admit(&shared, peer) {
            Ok(guest) => {
                tokio::spawn(serve(stream, tls.clone(), router.clone(), guest));
            }
            Err(refusal) => shared.metrics.refuse(refusal),
        }
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router, guest: Guest) {
    let shared = guest.shared.clone();
    if prepare(&stream).is_err() {
        return;
    }
    let limit = shared.config.limits.handshake_timeout;
    match tls {
        None => http(stream, router, guest, limit).await,
        Some(tls) => match timeout(limit, tls.accept(stream)).await {
            Ok(Ok(stream)) => http(stream, router, guest, limit).await,
            Ok(Err(_)) | Err(_) => shared.metrics.refuse(Refusal::Tls),
        },
    }
}

/// Serves requests until the upgrade, or for as long as a handshake may take.
async fn http<S>(stream: S, router: Router, guest: Guest, limit: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router.layer(Extension(Arc::new(guest))));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_buf_size(HTTP_BUFFER_LEN)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // Ends by error, by time or by the upgrade; the node has been answered.
    let _ = timeout(limit, connection).await;
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))
}

fn source_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !0 << 64)),
    }
}
