//! The sockets of a port mapping client: all bound to one interface and to our address on it, so
//! that nothing leaves by another.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::core::portmap::{
    ANNOUNCEMENT_PORT, Client, Config, MAX_RESPONSE, Report, Response, SEARCH_PORT, SERVER_PORT,
    Transmit, parse_response,
};

/// One HTTP exchange on the LAN, connection included; slow routers take some hundred milliseconds.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(3);
/// What the farewell may take at most, so that a daemon ends at once.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);
/// PCP's longest message (RFC 6887 §7) and answers to searches fit.
const BUFFER: usize = 2048;
/// SSDP's group (UPnP Device Architecture 1.1 §1).
const SEARCH_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// Announcements of routers go to all hosts (RFC 6887 §14.1.1).
const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);

/// The interface that a client stays on.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// Runs a client until `stop`, then takes the mapping back. `told` hears of every change.
///
/// # Errors
/// Sockets cannot be opened on the interface.
pub async fn run(
    interface: &Interface,
    config: Config,
    mut told: impl FnMut(Report),
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let sockets = Sockets::open(interface, &config)?;
    let mut client = Client::new(config, Instant::now());
    let mut exchange: Option<Exchange<'_>> = None;
    let mut last = None;
    let [mut server, mut search, mut announced] = [[0; BUFFER]; 3];
    let mut stop = pin!(stop);
    loop {
        while let Some(transmit) = client.poll_transmit() {
            if sockets.send(transmit, &mut exchange).await {
                client.handle_unreachable(Instant::now());
            }
        }
        let report = client.report();
        if last.as_ref() != Some(&report) {
            told(report.clone());
            last = Some(report);
        }
        let due = client.poll_timeout();
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = sockets.server.recv(&mut server) => match received {
                Ok(length) => {
                    client.handle_server(&server[..length], Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    client.handle_unreachable(Instant::now());
                }
                Err(_) => {}
            },
            Some((length, from)) = receive(sockets.search.as_ref(), &mut search) => {
                client.handle_search_reply(from, &search[..length]);
            }
            Some((length, from)) = receive(sockets.announcements.as_ref(), &mut announced) => {
                client.handle_announcement(from.ip(), &announced[..length], Instant::now());
            }
            (id, response) = finished(&mut exchange) => {
                exchange = None;
                client.handle_response(id, response.as_ref(), Instant::now());
            }
            () = timer => client.handle_timeout(Instant::now()),
            () = &mut stop => break,
        }
    }
    client.stop();
    while let Some(transmit) = client.poll_transmit() {
        sockets.send(transmit, &mut exchange).await;
    }
    if exchange.is_some() {
        // A router that does not answer lets the mapping end by itself.
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, finished(&mut exchange)).await;
    }
    Ok(())
}

type Exchange<'a> = (
    u32,
    Pin<Box<dyn Future<Output = Option<Response>> + Send + 'a>>,
);

struct Sockets<'a> {
    interface: &'a Interface,
    local: IpAddr,
    gateway: IpAddr,
    /// Connected to the gateway: nobody else is heard.
    server: UdpSocket,
    search: Option<UdpSocket>,
    announcements: Option<UdpSocket>,
}

impl<'a> Sockets<'a> {
    fn open(interface: &'a Interface, config: &Config) -> io::Result<Self> {
        let local = config.local.ip();
        let server = bound(interface, SocketAddr::new(local, 0))?;
        server.connect(&on(interface, config.gateway, SERVER_PORT))?;
        let (mut search, mut announcements) = (None, None);
        if let IpAddr::V4(v4) = local {
            let socket = bound(interface, SocketAddr::new(local, 0))?;
            socket.set_multicast_if_v4(&v4)?;
            search = Some(UdpSocket::from_std(socket.into())?);
            // Several programs listen there; without it a restart is found out a little later.
            announcements = bound(interface, (ALL_HOSTS, ANNOUNCEMENT_PORT).into())
                .ok()
                .and_then(|socket| UdpSocket::from_std(socket.into()).ok());
        }
        Ok(Self {
            interface,
            local,
            gateway: config.gateway,
            server: UdpSocket::from_std(server.into())?,
            search,
            announcements,
        })
    }

    /// Sends, or starts an exchange. A datagram that cannot be sent is a lost one; true if that is
    /// because nothing listens there.
    async fn send<'b>(&self, transmit: Transmit, exchange: &mut Option<Exchange<'b>>) -> bool
    where
        'a: 'b,
    {
        match transmit {
            Transmit::Server(message) => {
                let sent = self.server.send(&message).await;
                sent.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            }
            Transmit::Search(message) => {
                if let Some(socket) = &self.search {
                    // Some routers answer only to the one, some only to the other.
                    for host in [self.gateway, SEARCH_GROUP.into()] {
                        let _ = socket.send_to(&message, (host, SEARCH_PORT)).await;
                    }
                }
                false
            }
            Transmit::Exchange {
                id,
                address,
                request,
            } => {
                let (interface, local) = (self.interface, self.local);
                let answer = async move {
                    let answer = ask(interface, local, address, &request);
                    let answer = tokio::time::timeout(EXCHANGE_TIMEOUT, answer).await;
                    answer.ok()?.ok()
                };
                *exchange = Some((id, Box::pin(answer)));
                false
            }
        }
    }
}

/// The exchange's number and outcome, once there is one.
async fn finished(exchange: &mut Option<Exchange<'_>>) -> (u32, Option<Response>) {
    match exchange {
        Some((id, answer)) => (*id, answer.await),
        None => std::future::pending().await,
    }
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await.ok(),
        None => std::future::pending().await,
    }
}

async fn ask(
    interface: &Interface,
    local: IpAddr,
    address: SocketAddr,
    request: &[u8],
) -> io::Result<Response> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.bind_device(Some(interface.name.as_bytes()))?;
    socket.bind(&SocketAddr::new(local, 0).into())?;
    socket.set_nonblocking(true)?;
    let mut stream: TcpStream = TcpSocket::from_std_stream(socket.into())
        .connect(address)
        .await?;
    stream.write_all(request).await?;
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; BUFFER];
        let length = stream.read(&mut part).await?;
        bytes.extend_from_slice(&part[..length]);
        let ended = length == 0 || bytes.len() > MAX_RESPONSE;
        let response = parse_response(&bytes, ended);
        if let Some(response) = response.map_err(io::Error::other)? {
            return Ok(response);
        }
    }
}

/// A UDP socket that neither hears nor sends on another interface. SO_BINDTODEVICE needs no
/// privilege since Linux 5.7.
fn bound(interface: &Interface, local: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.name.as_bytes()))?;
    socket.set_reuse_address(local.port() != 0)?;
    socket.bind(&local.into())?;
    Ok(socket)
}

/// A router is often at a link-local address, which means nothing without its interface.
fn on(interface: &Interface, host: IpAddr, port: u16) -> SockAddr {
    match host {
        IpAddr::V4(v4) => SocketAddr::from((v4, port)).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, interface.index).into(),
    }
}
