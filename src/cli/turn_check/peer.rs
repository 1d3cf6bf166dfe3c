//! Who echoes at the far side of the relay: a socket of this machine, or another allocation on the same server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::session::{Happening, Session};
use super::steps::Trial;
use crate::cli::netcheck::resolve;
use crate::cli::netcheck::stun::{Change, ask_all};

/// The longest that is echoed: what is sent has a few bytes.
const MAX_PAYLOAD: usize = 1500;

/// A peer that echoes until it is ended.
pub(super) enum Peer {
    /// A socket of ours, behind whatever NAT there is.
    Outside {
        socket: Arc<UdpSocket>,
        /// As the server saw it; the port may be another towards the relayed address.
        seen: SocketAddr,
        task: JoinHandle<()>,
    },
    /// An allocation.
    Relay {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    },
}

impl Peer {
    /// A socket of the family of `relayed`; its address is asked of the server itself, over UDP.
    pub(super) async fn outside(trial: &Trial<'_>, relayed: SocketAddr) -> Result<Self, String> {
        let servers = resolve(&trial.target.address).await?;
        let server = servers
            .into_iter()
            .find(|server| server.is_ipv4() == relayed.is_ipv4())
            .ok_or("the server has no address of the relayed address's family")?;
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await.map_err(|e| e.to_string())?;
        let answers = ask_all(&socket, &[(server, Change::Nothing)]).await;
        let answers = answers.map_err(|error| error.to_string())?;
        let answer = answers.into_iter().flatten().next();
        let seen = answer.ok_or("it does not answer STUN over UDP on this port, so how it sees a peer here is not known")?;
        let socket = Arc::new(socket);
        let task = tokio::spawn(echo(Arc::clone(&socket)));
        Ok(Self::Outside {
            socket,
            seen: seen.mapped,
            task,
        })
    }

    /// Another allocation, which lets in what comes from `relayed`.
    pub(super) async fn relay(trial: &Trial<'_>, relayed: SocketAddr) -> Result<Self, String> {
        let mut session = trial.connect().await?;
        let (address, _) = session.allocate().await?;
        session.allocation.permit(relayed.ip(), Instant::now());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = echo_relayed(&mut session) => {}
                // Also when the check is dropped.
                _ = stopped => {}
            }
            session.close().await;
        });
        Ok(Self::Relay {
            address,
            stop,
            task,
        })
    }

    /// Whom to permit.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Outside { seen, .. } => *seen,
            Self::Relay { address, .. } => *address,
        }
    }

    /// What the report calls it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Outside { .. } => "outside",
            Self::Relay { .. } => "relay",
        }
    }

    /// Opens the NAT in front of it towards the relayed address, and shows the address that it has there.
    pub(super) async fn greet(&self, relayed: SocketAddr, greeting: &[u8]) {
        if let Self::Outside { socket, .. } = self {
            // One that is lost is repeated.
            let _ = socket.send_to(greeting, relayed).await;
        }
    }

    /// Whether it greets at all.
    pub(super) fn greets(&self) -> bool {
        matches!(self, Self::Outside { .. })
    }

    /// Hands back what it has.
    pub(super) async fn end(self) {
        match self {
            Self::Outside { task, .. } => task.abort(),
            Self::Relay { stop, task, .. } => {
                let _ = stop.send(());
                let _ = task.await;
            }
        }
    }
}

async fn echo(socket: Arc<UdpSocket>) {
    let mut buffer = [0; MAX_PAYLOAD];
    loop {
        // ICMP errors say nothing here.
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    }
}

async fn echo_relayed(session: &mut Session) {
    while let Ok(happening) = session.next().await {
        if let Happening::Payload(from, payload) = happening {
            // Before the permission stands it is lost, and sent again by who wants it.
            let _ = session.allocation.send(from, &payload, Instant::now());
        }
    }
}
