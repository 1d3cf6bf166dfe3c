//! The steps of one way: connect, allocate, permission, echo, channel, echo.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Target;
use super::peer::Peer;
use super::session::{Happening, Session};
use crate::cli::netcheck::relay::RelayTools;
use crate::cli::random::random;
use crate::core::turn::{AllocationEvent, Credentials, Refusal};
use crate::report::{TurnWay, milliseconds};

/// When an echo is sent again: a lost packet costs this.
const ECHO_INTERVAL: Duration = Duration::from_millis(500);
/// How often: 10 % loss on four legs leaves one check in fifty without.
const ECHO_TRIES: u32 = 4;
/// Bytes of an echo, so that an old one is told from a new one.
const ECHO_LEN: usize = 32;

/// A way that is being tried.
pub(super) struct Trial<'a> {
    pub(super) target: &'a Target,
    pub(super) credentials: &'a Credentials,
    pub(super) tools: &'a RelayTools,
}

/// Why a peer does not do.
enum Unfit {
    /// The server refuses it: its operator wants it so.
    Refused(Refusal),
    /// Nothing came through.
    Silent(String),
    /// The whole allocation is gone.
    Ended(String),
}

impl Trial<'_> {
    /// Connects once more.
    pub(super) async fn connect(&self) -> Result<Session, String> {
        Session::connect(self.target, self.credentials, self.tools).await
    }

    /// All steps; `way` has what was done of them.
    pub(super) async fn run(&self, way: &mut TurnWay) -> Result<(), String> {
        let start = Instant::now();
        let mut session = self.connect().await?;
        way.connect_ms = Some(milliseconds(start.elapsed()));
        let start = Instant::now();
        let (relayed, mapped) = session.allocate().await?;
        way.allocate_ms = Some(milliseconds(start.elapsed()));
        way.relayed = Some(relayed);
        way.mapped = mapped;
        let done = self.with_peers(&mut session, relayed, way).await;
        session.close().await;
        done
    }

    /// With a peer outside, or else with one inside.
    async fn with_peers(
        &self,
        session: &mut Session,
        relayed: SocketAddr,
        way: &mut TurnWay,
    ) -> Result<(), String> {
        let why = match Peer::outside(self, relayed).await {
            Ok(peer) => {
                let address = peer.address();
                let tried = through(session, relayed, &peer, way).await;
                peer.end().await;
                match tried {
                    Ok(()) => return Ok(()),
                    Err(Unfit::Ended(why)) => return Err(why),
                    Err(Unfit::Refused(refusal)) => {
                        way.note = Some(format!(
                            "this machine is {address} to the server, which is no peer there: {refusal}"
                        ));
                        None
                    }
                    // A server does not relay to other ports of its own machine.
                    Err(Unfit::Silent(_)) if address.ip() == relayed.ip() => {
                        way.note = Some(format!(
                            "this machine is {} like the server: run it elsewhere to try the relay ports, too",
                            address.ip()
                        ));
                        None
                    }
                    Err(Unfit::Silent(why)) => Some(why),
                }
            }
            Err(why) => {
                way.note = Some(format!("no peer outside: {why}"));
                None
            }
        };
        // Steps count with one peer only.
        (way.permission_ms, way.echo_ms) = (None, None);
        (way.channel_ms, way.channel_echo_ms) = (None, None);
        let peer = Peer::relay(self, relayed)
            .await
            .map_err(|why| format!("no second allocation to echo: {why}"))?;
        let tried = through(session, relayed, &peer, way).await;
        peer.end().await;
        match (tried, why) {
            (Ok(()), why) => {
                way.degraded = why;
                Ok(())
            }
            (Err(Unfit::Refused(refusal)), None) => Err(refusal.to_string()),
            (Err(Unfit::Silent(_) | Unfit::Refused(_)), Some(why)) => Err(why),
            (Err(Unfit::Silent(why)), None) | (Err(Unfit::Ended(why)), _) => Err(why),
        }
    }
}

/// Permission, echo, channel, echo, with one peer.
async fn through(
    session: &mut Session,
    relayed: SocketAddr,
    peer: &Peer,
    way: &mut TurnWay,
) -> Result<(), Unfit> {
    way.peer = Some(peer.name().to_owned());
    let start = Instant::now();
    session.allocation.permit(peer.address().ip(), start);
    permitted(session, peer.address()).await?;
    way.permission_ms = Some(milliseconds(start.elapsed()));
    let address = greeted(session, relayed, peer).await?;
    way.echo_ms = Some(echo(session, address).await?);
    let start = Instant::now();
    session.allocation.bind_channel(address, start);
    bound(session).await?;
    way.channel_ms = Some(milliseconds(start.elapsed()));
    way.channel_echo_ms = Some(echo(session, address).await?);
    Ok(())
}

async fn permitted(session: &mut Session, peer: SocketAddr) -> Result<(), Unfit> {
    if session.allocation.permitted(peer.ip()) {
        return Ok(());
    }
    loop {
        match session.next().await.map_err(Unfit::Ended)? {
            Happening::Event(AllocationEvent::PermissionInstalled(_)) => return Ok(()),
            Happening::Event(AllocationEvent::PermissionRefused { refusal, .. }) => {
                return Err(Unfit::Refused(refusal));
            }
            Happening::Event(_) | Happening::Payload(..) => {}
        }
    }
}

async fn bound(session: &mut Session) -> Result<(), Unfit> {
    loop {
        match session.next().await.map_err(Unfit::Ended)? {
            Happening::Event(AllocationEvent::ChannelBound { .. }) => return Ok(()),
            Happening::Event(AllocationEvent::ChannelRefused { refusal, .. }) => {
                return Err(Unfit::Refused(refusal));
            }
            Happening::Event(_) | Happening::Payload(..) => {}
        }
    }
}

/// Where the peer's packets come from, as its NAT has it towards the relayed address.
async fn greeted(
    session: &mut Session,
    relayed: SocketAddr,
    peer: &Peer,
) -> Result<SocketAddr, Unfit> {
    if !peer.greets() {
        return Ok(peer.address());
    }
    let greeting = payload()?;
    for _ in 0..ECHO_TRIES {
        peer.greet(relayed, &greeting).await;
        if let Some(from) = arrival(session, &greeting).await? {
            return Ok(from);
        }
    }
    Err(Unfit::Silent(format!(
        "what this machine sends to {relayed} does not arrive: a firewall of the server may close its relay ports, or its external address is another"
    )))
}

/// One payload there and back; the time of the try that came back, in milliseconds.
async fn echo(session: &mut Session, peer: SocketAddr) -> Result<f64, Unfit> {
    for _ in 0..ECHO_TRIES {
        let sent = payload()?;
        let start = Instant::now();
        let queued = session.allocation.send(peer, &sent, start);
        queued.map_err(|error| Unfit::Silent(error.to_string()))?;
        if arrival(session, &sent).await?.is_some() {
            return Ok(milliseconds(start.elapsed()));
        }
    }
    Err(Unfit::Silent(format!(
        "nothing comes back from the peer {peer}: the server may not be let out to it, or the way back is closed"
    )))
}

/// From whom exactly these bytes come within [`ECHO_INTERVAL`].
async fn arrival(session: &mut Session, wanted: &[u8]) -> Result<Option<SocketAddr>, Unfit> {
    let waited = tokio::time::timeout(ECHO_INTERVAL, async {
        loop {
            if let Happening::Payload(from, got) = session.next().await?
                && got == wanted
            {
                return Ok(from);
            }
        }
    });
    match waited.await {
        Ok(Ok(from)) => Ok(Some(from)),
        Ok(Err(why)) => Err(Unfit::Ended(why)),
        Err(_) => Ok(None),
    }
}

fn payload() -> Result<[u8; ECHO_LEN], Unfit> {
    random().map_err(|error| Unfit::Ended(error.to_string()))
}
