//! The signaling service: carries sealed records between proven members of a network. It learns
//! who they are and when they come and go, not what they say.

mod accept;
mod bucket;
mod carry;
mod config;
mod connection;
mod http;
mod identity;
mod metrics;
mod networks;
mod presence;
mod registry;
#[cfg(test)]
mod registry_tests;
mod secrets;
mod stun;
mod turn;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ring::rand::SystemRandom;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use self::config::{Config, Limits, Transport};
pub use self::identity::StartError;
pub use self::networks::Networks;
pub use self::secrets::TurnSecrets;
pub use self::stun::{MAX_RESPONSE_LEN, binding_response};

use self::accept::Sources;
use self::identity::StateDir;
use self::metrics::Metrics;
use self::presence::PRESENCE_TICK;
use self::registry::Registry;
use self::stun::StunSocket;
use crate::protocol::{MAX_SERVERS, NetworkId, RevocationList, ServerPin, ServiceSecret};

/// Connections that wait to be accepted.
const LISTEN_BACKLOG: i32 = 1024;

/// For nodes to be told that the service stops.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// How often a stopping service looks whether all have gone.
const SHUTDOWN_POLL: Duration = Duration::from_millis(10);

/// The service, listening.
pub struct Server {
    listener: TcpListener,
    stun: Option<StunSocket>,
    tls: Option<TlsAcceptor>,
    pin: Option<ServerPin>,
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

/// What all connections share.
struct Shared {
    config: Config,
    port: u16,
    metrics: Arc<Metrics>,
    registry: Mutex<Registry>,
    sources: Sources,
    secret: ServiceSecret,
    random: SystemRandom,
    state: StateDir,
    shutdown: watch::Receiver<bool>,
}

impl Server {
    /// Opens the state folder (made at the first start) and listens.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        if config.servers.len() > MAX_SERVERS {
            return Err(StartError::Config(
                "more than 16 STUN and TURN servers: name fewer",
            ));
        }
        let state = StateDir::open(&config.state_dir)?;
        let (tls, pin) = match state.tls(&config.transport)? {
            Some(tls) => (Some(TlsAcceptor::from(tls.config)), tls.pin),
            None => (None, None),
        };
        let mut registry = Registry::new(config.limits);
        let known = config.revocations.iter().cloned();
        for (network, list) in state.load_revocations()?.into_iter().chain(known) {
            if config.networks.serve(&network) {
                let listed = config.networks.trust(&network);
                registry.revoke(network, list, listed, Instant::now());
            }
        }
        let listen = |protocol, error| StartError::Listen {
            listen: config.listen,
            protocol,
            error,
        };
        let listener = listen_tcp(config.listen).map_err(|error| listen("TCP", error))?;
        let address = listener
            .local_addr()
            .map_err(|error| listen("TCP", error))?;
        let stun = match config.stun {
            true => Some(StunSocket::bind(address).map_err(|error| listen("UDP", error))?),
            false => None,
        };
        if !config.turn_secrets.is_empty() && config.networks.count() == 0 {
            tracing::info!(
                event = "no-turn-credentials",
                reason = "any network is served: name the networks to mint TURN credentials"
            );
        }
        let (stop, shutdown) = watch::channel(false);
        let shared = Arc::new(Shared {
            port: address.port(),
            metrics: Arc::new(Metrics::new()),
            registry: Mutex::new(registry),
            sources: Sources::default(),
            secret: state.secret()?,
            random: SystemRandom::new(),
            state,
            shutdown,
            config,
        });
        Ok(Self {
            listener,
            stun,
            tls,
            pin,
            address,
            shared,
            stop,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What a token pins: of the certificate that the service made. `None` under a given
    /// certificate, or without TLS.
    #[must_use]
    pub fn pin(&self) -> Option<ServerPin> {
        self.pin
    }

    /// Serves until `shutdown` is done; nodes are told, and try again elsewhere or later.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self {
            listener,
            stun,
            tls,
            pin: _,
            address: _,
            shared,
            stop,
        } = self;
        let router = http::router(shared.clone());
        let accept = accept::run(listener, tls, router, shared.clone());
        let answer = async {
            match stun {
                Some(stun) => {
                    stun.serve(shared.metrics.clone(), shared.shutdown.clone())
                        .await;
                }
                None => std::future::pending().await,
            }
        };
        let tell = async {
            let mut tick = tokio::time::interval(PRESENCE_TICK);
            loop {
                let now = tick.tick().await;
                shared.registry().tell_presence(now.into_std());
            }
        };
        tokio::select! {
            () = accept => {}
            () = answer => {}
            () = tell => {}
            () = shutdown => {}
        }
        let _ = stop.send(true);
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, async {
            let open = &shared.metrics.connections;
            while open.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                tokio::time::sleep(SHUTDOWN_POLL).await;
            }
        })
        .await;
    }
}

impl Shared {
    /// Held for a few map operations, never over an await.
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lists of forgotten networks off the disk, beside the connections.
    fn forget_lists(&self) {
        let forgotten = self.registry().take_forgotten();
        if forgotten.is_empty() {
            return;
        }
        let state = self.state.clone();
        tokio::task::spawn_blocking(move || {
            for network in forgotten {
                state.remove_revocations(&network);
            }
        });
    }

    /// Keeps a list on disk, beside the connections.
    fn store(&self, network: NetworkId, list: RevocationList) {
        let state = self.state.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = state.store_revocations(&network, &list) {
                tracing::error!(event = "revocations-not-stored", %network, %error);
            }
        });
    }
}

/// Waits until the service stops.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// A stopped clock, or one before 1970, is 1970: invites are then taken, as they should be.
fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}

fn listen_tcp(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(listen),
        socket2::Type::STREAM,
        None,
    )?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A restart must not wait for the last connections' TIME-WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    TcpListener::from_std(socket.into())
}
