//! One way to a relay: whether it answers, how soon, and whether it lets us allocate.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use wice_signaling::protocol::{RelayTransport, ServerAddress, ServerKind};

use super::{Login, resolve, stun};
use crate::cli::random::random;
use crate::core::stun::{TransactionId, encode_binding};
use crate::core::turn::url::Host;
use crate::core::turn::{Allocation, AllocationConfig, AllocationEvent, Credentials, Family};
use crate::io::dial::Fwmark;
use crate::io::http_proxy::{ProxyUrl, ProxyUrlError};
use crate::io::relay::{Endpoint, RelayConnection, RelayEvent, Tls, Trust};
use crate::report::{TransportCheck, milliseconds};

/// A whole check, connecting included: what works takes six round trips at most.
const CHECK_TIMEOUT: Duration = Duration::from_secs(8);
/// The farewell of an allocation is one request.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Events of one connection: a few answers.
const EVENTS: usize = 16;
/// No answer of a TURN server is longer.
const MAX_DATAGRAM: usize = 1500;

/// What connections over TCP and TLS are made with.
#[derive(Clone)]
pub(in crate::cli) struct RelayTools {
    tls: Result<Tls, String>,
    proxy: Option<ProxyUrl>,
}

impl RelayTools {
    /// An error says that the proxy cannot be used.
    pub(in crate::cli) fn new(ca_file: Option<&Path>, proxy: Option<&str>) -> Result<Self, String> {
        let trust = match ca_file {
            Some(path) => Trust::CaFile(path.to_owned()),
            None => Trust::System,
        };
        let proxy = proxy.map(str::parse).transpose();
        Ok(Self {
            // Only relays over TLS need it.
            tls: Tls::new(&trust, None).map_err(|error| error.to_string()),
            proxy: proxy.map_err(|error: ProxyUrlError| error.to_string())?,
        })
    }
}

/// Connects, asks, allocates where there are credentials, and says farewell.
pub(super) async fn check(login: &Login, tools: &RelayTools) -> TransportCheck {
    let transport = match login.address.kind {
        ServerKind::Turn(transport) => transport,
        ServerKind::Stun => RelayTransport::Udp,
    };
    let tried = tokio::time::timeout(CHECK_TIMEOUT, try_check(login, transport, tools)).await;
    let (rtt, failure) = match tried {
        Ok(Ok(rtt)) => (Some(rtt), None),
        Ok(Err(failure)) => (None, Some(failure)),
        Err(_) => (
            None,
            Some(format!(
                "no answer within {} s; a firewall may drop it",
                CHECK_TIMEOUT.as_secs()
            )),
        ),
    };
    TransportCheck {
        transport: name_of(transport).to_owned(),
        port: login.address.port,
        rtt_ms: rtt.map(milliseconds),
        allocates: login.credentials.as_ref().map(|_| rtt.is_some()),
        failure,
    }
}

/// A transport as reports call it.
pub(in crate::cli) fn name_of(transport: RelayTransport) -> &'static str {
    match transport {
        RelayTransport::Udp => "udp",
        RelayTransport::Tcp => "tcp",
        RelayTransport::Tls => "tls",
    }
}

/// The connection to a relay, in one manner for all transports.
pub(in crate::cli) enum Link {
    Udp(UdpSocket),
    Stream(RelayConnection, mpsc::Receiver<(u64, RelayEvent)>),
}

impl Link {
    /// Connects; also tells the family that it came to.
    pub(in crate::cli) async fn open(
        server: &ServerAddress,
        transport: RelayTransport,
        tools: &RelayTools,
    ) -> Result<(Self, Family), String> {
        let tls = match transport {
            RelayTransport::Udp => {
                let addresses = resolve(server).await?;
                let address = addresses.first().ok_or("the name has no address")?;
                let any: SocketAddr = match address {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(any).await.map_err(|e| e.to_string())?;
                socket
                    .connect(address)
                    .await
                    .map_err(|e| format!("no route to {address}: {e}"))?;
                return Ok((Self::Udp(socket), Family::of(address.ip())));
            }
            RelayTransport::Tcp => None,
            RelayTransport::Tls => Some(tools.tls.clone()?),
        };
        let host = &server.host;
        let endpoint = Endpoint {
            host: host
                .parse()
                .map_or_else(|_| Host::Name(host.clone()), Host::Address),
            port: server.port,
            tls,
            proxy: tools.proxy.clone(),
            mark: Fwmark::default(),
        };
        let (sender, mut events) = mpsc::channel(EVENTS);
        let connection = RelayConnection::open(0, endpoint, sender);
        match events.recv().await {
            Some((_, RelayEvent::Connected { remote, .. })) => {
                let family = Family::of(remote.ip());
                Ok((Self::Stream(connection, events), family))
            }
            Some((_, RelayEvent::Closed(reason))) => Err(reason.to_string()),
            Some((_, RelayEvent::Data(_))) | None => Err("the connection ended".to_owned()),
        }
    }

    /// One whole message.
    pub(in crate::cli) async fn send(&self, frame: Vec<u8>) {
        match self {
            // An ICMP error shows when receiving.
            Self::Udp(socket) => drop(socket.send(&frame).await),
            Self::Stream(connection, _) => {
                connection.send(frame, false);
            }
        }
    }

    /// A datagram, or what the stream has.
    pub(in crate::cli) async fn receive(&mut self) -> Result<Vec<u8>, String> {
        match self {
            Self::Udp(socket) => {
                let mut buffer = [0; MAX_DATAGRAM];
                let length = socket
                    .recv(&mut buffer)
                    .await
                    .map_err(|error| format!("it refuses: {error}"))?;
                Ok(buffer[..length].to_vec())
            }
            Self::Stream(_, events) => match events.recv().await {
                Some((_, RelayEvent::Data(bytes))) => Ok(bytes.to_vec()),
                Some((_, RelayEvent::Closed(reason))) => Err(reason.to_string()),
                Some((_, RelayEvent::Connected { .. })) => Ok(Vec::new()),
                None => Err("the connection ended".to_owned()),
            },
        }
    }
}

async fn try_check(
    login: &Login,
    transport: RelayTransport,
    tools: &RelayTools,
) -> Result<Duration, String> {
    let (mut link, family) = Link::open(&login.address, transport, tools).await?;
    match &login.credentials {
        Some((username, password)) => {
            let credentials =
                Credentials::new(username, password).map_err(|error| error.to_string())?;
            let config = AllocationConfig {
                transport,
                credentials,
                family,
            };
            allocate(&mut link, config).await
        }
        None => bind(&mut link).await,
    }
}

/// The round trip of a Binding request: every TURN server answers it without credentials.
async fn bind(link: &mut Link) -> Result<Duration, String> {
    /// Over UDP a request may be lost.
    const TRIES: u32 = 3;
    const WAIT: Duration = Duration::from_millis(1500);
    for _ in 0..TRIES {
        let number: [u8; 16] = random().map_err(|error| error.to_string())?;
        let sent = Instant::now();
        let id = TransactionId::from(u128::from_be_bytes(number));
        link.send(encode_binding(id)).await;
        let answered = async {
            loop {
                let bytes = link.receive().await?;
                if stun::parse(&bytes).is_some_and(|(answered, _, _)| answered == id) {
                    return Ok::<_, String>(());
                }
            }
        };
        match tokio::time::timeout(WAIT, answered).await {
            Ok(Ok(())) => return Ok(sent.elapsed()),
            Ok(Err(failure)) => return Err(failure),
            Err(_) => {}
        }
    }
    Err("it does not answer; a firewall may drop this, or the port is another".to_owned())
}

async fn allocate(link: &mut Link, config: AllocationConfig) -> Result<Duration, String> {
    let over_udp = config.transport == RelayTransport::Udp;
    let seed = random().map_err(|error| error.to_string())?;
    let mut allocation = Allocation::new(config, seed);
    allocation.handle_connected(Instant::now());
    let started = Instant::now();
    let mut result = None;
    loop {
        while let Some(event) = allocation.poll_event() {
            match event {
                AllocationEvent::Allocated { .. } => {
                    result = Some(allocation.rtt().unwrap_or_else(|| started.elapsed()));
                    allocation.close(Instant::now());
                }
                AllocationEvent::Failed { failure, .. } | AllocationEvent::Lost { failure, .. } => {
                    return result.ok_or_else(|| failure.to_string());
                }
                AllocationEvent::Closed => return result.ok_or_else(|| "closed".to_owned()),
                AllocationEvent::PermissionInstalled(_)
                | AllocationEvent::PermissionRefused { .. }
                | AllocationEvent::ChannelBound { .. }
                | AllocationEvent::ChannelRefused { .. } => {}
            }
        }
        while let Some(transmit) = allocation.poll_transmit() {
            link.send(transmit.data).await;
        }
        let due = allocation
            .poll_timeout()
            .unwrap_or_else(|| Instant::now() + CLOSE_TIMEOUT);
        match tokio::time::timeout_at(due.into(), link.receive()).await {
            Ok(Ok(bytes)) if over_udp => {
                allocation.handle_datagram(&bytes, Instant::now());
            }
            Ok(Ok(bytes)) => allocation.handle_stream(&bytes, Instant::now(), |_| {}),
            // It worked; only the farewell was lost.
            Ok(Err(failure)) => return result.ok_or(failure),
            Err(_) => allocation.handle_timeout(Instant::now()),
        }
    }
}
