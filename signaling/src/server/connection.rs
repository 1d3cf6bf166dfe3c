//! One node's connection, from the upgrade to its end.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_tungstenite::tungstenite;

use super::bucket::Bucket;
use super::carry::Carried;
use super::metrics::{Refusal, add};
use super::registry::{Joined, Kick, Member};
use super::{Shared, stopped, turn, unix_now};
use crate::protocol::{
    CHALLENGE_LEN, ClientFrame, ErrorCode, Hello, JoinReceipt, MAX_HELLO_LEN, Membership,
    NetworkId, PublicKey, RevocationList, ServerAddress, ServerFrame, Servers,
};

/// For the last frame to reach a node that is being closed.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a connection ends.
enum End {
    /// The node went, or cannot be reached.
    Gone,
    /// It said that it goes.
    Left,
    /// The node is told why.
    Refused(ErrorCode),
    /// It does not read: telling it anything is in vain.
    Slow,
}

impl End {
    fn reason(&self) -> &'static str {
        match self {
            Self::Gone => "connection-ended",
            Self::Left => "left",
            Self::Refused(code) => code.as_str(),
            Self::Slow => "slow-reader",
        }
    }
}

/// Serves a node until it goes, is refused, or the service stops.
pub(super) async fn serve(
    mut socket: WebSocket,
    shared: Arc<Shared>,
    challenge: [u8; CHALLENGE_LEN],
    addresses: Vec<ServerAddress>,
    hears_presence: bool,
) {
    let end = match greet(&mut socket, &shared, &challenge, hears_presence).await {
        Ok((node, joined, receipt)) => {
            let id = joined.id;
            let mut session = Session {
                socket: &mut socket,
                shared: &shared,
                node,
                id,
                addresses,
                heard: Instant::now(),
            };
            let end = session
                .run(joined, receipt)
                .await
                .err()
                .unwrap_or(End::Gone);
            let left = matches!(end, End::Left);
            tracing::info!(event = "node-gone", key = %node.key, network = %node.network, reason = end.reason());
            let last = (session.heard.into_std(), left);
            shared.registry().leave(
                &node.network,
                &node.key,
                id,
                last,
                std::time::Instant::now(),
            );
            end
        }
        Err(end) => end,
    };
    match end {
        End::Gone | End::Left => {}
        End::Slow => shared.metrics.refuse(Refusal::SlowReader),
        End::Refused(code) => {
            shared.metrics.refuse(Refusal::Protocol(code));
            tracing::debug!(event = "node-refused", reason = code.as_str());
            let _ = timeout(FAREWELL_TIMEOUT, farewell(&mut socket, code)).await;
        }
    }
}

#[derive(Clone, Copy)]
struct Node {
    network: NetworkId,
    key: PublicKey,
}

/// Takes the Hello and checks it, the cheapest check first.
async fn greet(
    socket: &mut WebSocket,
    shared: &Shared,
    challenge: &[u8; CHALLENGE_LEN],
    hears_presence: bool,
) -> Result<(Node, Joined, Option<JoinReceipt>), End> {
    let mut stop = shared.shutdown.clone();
    let first = tokio::select! {
        first = timeout(shared.config.limits.handshake_timeout, first_frame(socket)) => first,
        () = stopped(&mut stop) => return Err(End::Refused(ErrorCode::Busy)),
    };
    let bytes = first.unwrap_or(Err(End::Refused(ErrorCode::TimedOut)))?;
    add(&shared.metrics.received_bytes, bytes.len() as u64);
    let hello = match ClientFrame::decode(&bytes) {
        Ok(ClientFrame::Hello(hello)) if bytes.len() <= MAX_HELLO_LEN => hello,
        Ok(_) | Err(_) => return Err(End::Refused(ErrorCode::BadFrame)),
    };
    let (invite, receipt) = check(&hello, shared, challenge).map_err(End::Refused)?;
    let node = Node {
        network: hello.network,
        key: hello.key,
    };
    let member = Member {
        network: node.network,
        key: node.key,
        invite,
        listed: shared.config.networks.trust(&node.network),
        hears_presence,
    };
    let joined = shared
        .registry()
        .join(member, std::time::Instant::now())
        .map_err(End::Refused)?;
    shared.forget_lists();
    add(&shared.metrics.joins, 1);
    tracing::info!(event = "node-joined", key = %node.key, network = %node.network, new = receipt.is_some());
    Ok((node, joined, receipt))
}

/// The invite by which the node is a member, and a receipt if it needs one.
fn check(
    hello: &Hello,
    shared: &Shared,
    challenge: &[u8; CHALLENGE_LEN],
) -> Result<(crate::protocol::InviteId, Option<JoinReceipt>), ErrorCode> {
    if !shared.config.networks.serve(&hello.network) {
        return Err(ErrorCode::NetworkNotAllowed);
    }
    if !hello.proves(challenge) {
        return Err(ErrorCode::WrongProof);
    }
    let membership = Membership::decode_verified(&hello.membership, &hello.network, &hello.key)
        .map_err(|_| ErrorCode::NotMember)?;
    let id = membership.invite().id;
    if shared
        .registry()
        .is_revoked(&hello.network, &hello.key, &id)
    {
        return Err(ErrorCode::Revoked);
    }
    let known = hello.receipt.is_some_and(|receipt| {
        shared
            .secret
            .accepts(&receipt, &hello.network, &hello.key, &id)
    });
    if known {
        return Ok((id, None));
    }
    if unix_now() > membership.invite().expiry {
        return Err(ErrorCode::InviteExpired);
    }
    Ok((
        id,
        Some(shared.secret.receipt(&hello.network, &hello.key, &id)),
    ))
}

async fn first_frame(socket: &mut WebSocket) -> Result<Bytes, End> {
    loop {
        if let Some(bytes) = payload(socket.recv().await)? {
            return Ok(bytes);
        }
    }
}

struct Session<'a> {
    socket: &'a mut WebSocket,
    shared: &'a Shared,
    node: Node,
    id: u64,
    addresses: Vec<ServerAddress>,
    /// When the node was last heard.
    heard: Instant,
}

impl Session<'_> {
    async fn run(&mut self, joined: Joined, receipt: Option<JoinReceipt>) -> Result<(), End> {
        let Joined {
            id: _,
            mut outgoing,
            mut kicked,
            revocations,
            present,
        } = joined;
        let servers = self.servers();
        self.feed(
            ServerFrame::Welcome {
                receipt,
                revocations,
                servers,
            }
            .encode()
            .into(),
        )
        .await?;
        for frame in present {
            self.feed(frame).await?;
        }
        self.flush().await?;

        let limits = self.shared.config.limits;
        let mut stop = self.shared.shutdown.clone();
        let mut bucket = Bucket::new(
            limits.publish_burst,
            limits.publish_interval,
            Instant::now(),
        );
        let mut secrets = self.shared.config.turn_secrets.watch();
        let mut ping = ticker(limits.ping_interval);
        let mut refresh = ticker(limits.credential_lifetime / 2);
        self.heard = Instant::now();
        loop {
            let now = Instant::now();
            let readable_at = bucket.ready_at(now);
            tokio::select! {
                message = self.socket.recv(), if readable_at <= now => {
                    if !is_failure(&message) {
                        self.heard = Instant::now();
                    }
                    if let Some(bytes) = payload(message)? {
                        bucket.take(self.heard);
                        self.handle(&bytes)?;
                    }
                }
                () = sleep_until(readable_at), if readable_at > now => {
                    add(&self.shared.metrics.throttled, 1);
                    self.heard = Instant::now();
                }
                frame = outgoing.recv() => {
                    // None: its sender was dropped, and the kick says why.
                    if let Some(frame) = frame {
                        self.feed(frame).await?;
                        while let Ok(frame) = outgoing.try_recv() {
                            self.feed(frame).await?;
                        }
                        self.flush().await?;
                    } else {
                        return Err(end_of((&mut kicked).await.ok()));
                    }
                }
                kick = &mut kicked => return Err(end_of(kick.ok())),
                _ = ping.tick() => self.send(Message::Ping(Bytes::new())).await?,
                _ = refresh.tick() => self.send_servers().await?,
                Ok(()) = secrets.changed() => self.send_servers().await?,
                () = sleep_until(self.heard + limits.idle_timeout) => {
                    return Err(End::Refused(ErrorCode::TimedOut));
                }
                () = stopped(&mut stop) => return Err(End::Refused(ErrorCode::Busy)),
            }
        }
    }

    fn handle(&self, bytes: &Bytes) -> Result<(), End> {
        add(&self.shared.metrics.received_bytes, bytes.len() as u64);
        let bad = End::Refused(ErrorCode::BadFrame);
        let Ok(frame) = ClientFrame::decode(bytes) else {
            return Err(bad);
        };
        let Node { network, key } = self.node;
        match frame {
            ClientFrame::Hello(_) => Err(bad),
            ClientFrame::Publish { kind, sealed } => {
                add(&self.shared.metrics.publishes, 1);
                let mut registry = self.shared.registry();
                registry
                    .publish(
                        &network,
                        key,
                        self.id,
                        kind,
                        sealed,
                        std::time::Instant::now(),
                    )
                    .map_err(End::Refused)
            }
            ClientFrame::PublishRevocations(list) => {
                let list = RevocationList::decode_verified(&list, &network).map_err(|_| bad)?;
                let listed = self.shared.config.networks.trust(&network);
                let now = std::time::Instant::now();
                let news = self
                    .shared
                    .registry()
                    .revoke(network, list.clone(), listed, now);
                if news {
                    tracing::info!(event = "revocations", %network, sequence = list.sequence());
                    self.shared.store(network, list);
                    self.shared.forget_lists();
                }
                Ok(())
            }
            ClientFrame::Leave => Err(End::Left),
            ClientFrame::Carry {
                key: whose,
                kind,
                sealed,
            } => {
                add(&self.shared.metrics.carries, 1);
                let carried = Carried {
                    key: whose,
                    kind,
                    sealed,
                };
                let now = std::time::Instant::now();
                let mut registry = self.shared.registry();
                registry
                    .carry(&network, key, self.id, carried, now)
                    .map_err(End::Refused)
            }
        }
    }

    /// Fresh credentials, where there are any.
    async fn send_servers(&mut self) -> Result<(), End> {
        let servers = self.servers();
        if servers.credentials.is_some() {
            self.feed(ServerFrame::Servers(servers).encode().into())
                .await?;
            self.flush().await?;
        }
        Ok(())
    }

    fn servers(&self) -> Servers {
        let config = &self.shared.config;
        let credentials = config
            .turn_secrets
            .first()
            .filter(|_| config.networks.trust(&self.node.network));
        let credentials = credentials.and_then(|secret| {
            turn::mint(
                &secret,
                &self.node.key,
                unix_now(),
                config.limits.credential_lifetime,
            )
        });
        Servers {
            addresses: self.addresses.clone(),
            credentials,
        }
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        let limit = self.shared.config.limits.write_timeout;
        match timeout(limit, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(|_| End::Gone),
            Err(_) => Err(End::Slow),
        }
    }

    /// Writes a frame without pushing it out.
    async fn feed(&mut self, frame: Bytes) -> Result<(), End> {
        add(&self.shared.metrics.sent_bytes, frame.len() as u64);
        let limit = self.shared.config.limits.write_timeout;
        let fed = futures_util::SinkExt::feed(&mut *self.socket, Message::Binary(frame));
        match timeout(limit, fed).await {
            Ok(fed) => fed.map_err(|_| End::Gone),
            Err(_) => Err(End::Slow),
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        let limit = self.shared.config.limits.write_timeout;
        match timeout(limit, futures_util::SinkExt::flush(&mut *self.socket)).await {
            Ok(flushed) => flushed.map_err(|_| End::Gone),
            Err(_) => Err(End::Slow),
        }
    }
}

/// A message's frame; `None` for pings and pongs.
fn payload(message: Option<Result<Message, axum::Error>>) -> Result<Option<Bytes>, End> {
    match message {
        Some(Ok(Message::Binary(bytes))) => Ok(Some(bytes)),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
        Some(Ok(Message::Text(_))) => Err(End::Refused(ErrorCode::BadFrame)),
        Some(Ok(Message::Close(_))) | None => Err(End::Gone),
        Some(Err(error)) => {
            let error = error.into_inner();
            let at_fault = error
                .downcast_ref::<tungstenite::Error>()
                .is_some_and(|error| {
                    matches!(
                        error,
                        tungstenite::Error::Capacity(_) | tungstenite::Error::Utf8(_)
                    )
                });
            Err(if at_fault {
                End::Refused(ErrorCode::BadFrame)
            } else {
                End::Gone
            })
        }
    }
}

/// Whether the connection failed by itself: that says nothing of when the node was there, but its
/// closing, with or without WebSocket's handshake, does.
fn is_failure(message: &Option<Result<Message, axum::Error>>) -> bool {
    let Some(Err(error)) = message else {
        return false;
    };
    let inner = std::error::Error::source(error);
    inner
        .and_then(|error| error.downcast_ref::<tungstenite::Error>())
        .is_some_and(|error| matches!(error, tungstenite::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut))
}

fn end_of(kick: Option<Kick>) -> End {
    match kick {
        Some(Kick::Refused(code)) => End::Refused(code),
        Some(Kick::SlowReader) => End::Slow,
        None => End::Gone,
    }
}

/// Says why, and waits for the node to take it: closing at once could discard it on the way.
async fn farewell(socket: &mut WebSocket, code: ErrorCode) {
    let frame = ServerFrame::Error {
        code,
        text: code.message().to_owned(),
    }
    .encode();
    if socket.send(Message::Binary(frame.into())).await.is_ok()
        && socket.send(Message::Close(None)).await.is_ok()
    {
        while let Some(Ok(_)) = socket.recv().await {}
    }
}

fn ticker(period: Duration) -> tokio::time::Interval {
    let period = period.max(Duration::from_millis(1));
    let mut ticker = interval_at(Instant::now() + period, period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}
