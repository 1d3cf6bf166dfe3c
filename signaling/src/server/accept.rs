//! Accepting connections: counted by source and in total before they cost anything.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
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
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::bucket::Bucket;
use super::metrics::{Refusal, add};
use super::{Limits, Shared, Transport};

/// After a failed accept (file descriptors used up): long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Data that nobody acknowledges for so long ends the connection (RFC 5482), as
/// [`super::Limits::idle_timeout`] does for a silent one.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests' heads: an upgrade has some 300 bytes; hyper's minimum is 8 KiB.
const HTTP_BUFFER_LEN: usize = 8 << 10;

/// Sources that are remembered for how often they have connected, beside those that are connected: 1.5 MiB.
/// When more have come all are forgotten: whoever has so many addresses needs no second try.
const MAX_SOURCES: usize = 16_384;

/// What is known of source addresses (IPv6: of each /64).
#[derive(Default)]
pub(super) struct Sources(Mutex<BTreeMap<IpAddr, Source>>);

#[derive(Clone, Copy, Debug)]
struct Source {
    open: usize,
    connects: Bucket,
}

impl Sources {
    /// Counts a connection, unless the source has or opens too many.
    fn admit(&self, source: IpAddr, limits: &Limits, now: Instant) -> Result<(), Refusal> {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() >= MAX_SOURCES + limits.connections && !sources.contains_key(&source) {
            sources.retain(|_, known| known.open > 0);
        }
        let known = sources.entry(source).or_insert_with(|| Source {
            open: 0,
            connects: Bucket::new(limits.connects_burst, limits.connects_interval, now),
        });
        if known.open >= limits.connections_per_source {
            return Err(Refusal::TooManyFromSource);
        }
        if known.connects.ready_at(now) > now {
            return Err(Refusal::TooFastFromSource);
        }
        known.connects.take(now);
        known.open += 1;
        Ok(())
    }

    /// A connection has ended. The source is forgotten once all that it did is.
    fn release(&self, source: IpAddr, now: Instant) {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut known) = sources.entry(source) {
            let source = known.get_mut();
            source.open = source.open.saturating_sub(1);
            if source.open == 0 && source.connects.is_full(now) {
                known.remove();
            }
        }
    }
}

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
        let behind_proxy = matches!(shared.config.transport, Transport::Plain);
        if !behind_proxy {
            shared.sources.admit(source, limits, Instant::now())?;
        }
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
        self.shared.sources.release(self.source, Instant::now());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn a_source_that_connects_again_and_again_is_slowed_down() {
        let limits = Limits {
            connects_burst: 4,
            connects_interval: Duration::from_secs(1),
            ..Limits::default()
        };
        let (sources, start) = (Sources::default(), Instant::now());
        let mut taken = 0;
        for tenth in 0..100 {
            let now = start + Duration::from_millis(100 * tenth);
            if sources.admit(v4(1), &limits, now).is_ok() {
                taken += 1;
                sources.release(v4(1), now);
            }
        }
        assert_eq!(taken, 4 + 9, "four at once, then one a second");
        assert!(sources.admit(v4(2), &limits, start).is_ok(), "another");
        // Once what it did is forgotten, so is the source.
        let later = start + Duration::from_secs(60);
        sources.admit(v4(1), &limits, later).unwrap();
        sources.release(v4(1), later + Duration::from_secs(60));
        assert!(!sources.0.lock().unwrap().contains_key(&v4(1)));
    }

    #[test]
    fn the_table_is_bounded_and_never_forgets_who_is_connected() {
        let (limits, sources, now) = (Limits::default(), Sources::default(), Instant::now());
        sources.admit(v4(0), &limits, now).unwrap();
        for n in 1..100_000 {
            sources.admit(v4(n), &limits, now).unwrap();
            sources.release(v4(n), now);
        }
        let known = sources.0.lock().unwrap();
        assert!(known.len() <= MAX_SOURCES + limits.connections);
        assert_eq!(known[&v4(0)].open, 1);
    }
}
