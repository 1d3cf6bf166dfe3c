//! The client of wice's own signaling service.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use wice_signaling::protocol::{
    ClientFrame, ErrorCode, Hello, JoinReceipt, NetworkId, PrivateKey, RecordError, RevocationList,
    ServerFrame, ServerPin, Servers, SignalUrl,
};

use super::connect::{self, Upgraded};
use super::tls::Tls;
use super::{Event, Outbox, SignalingBackend};
use crate::io::dial::SocketHook;
use crate::io::http_proxy::ProxyUrl;

/// Nothing heard for so long: the service pings every 25 s, so two were lost.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(55);

/// After a change of the node's own network, an answer must come in this time.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// A frame not taken in this time ends the connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// Retries: full jitter below a bound that doubles from the first to the last.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Doublings after which the bound is surely past [`LAST_RETRY`].
const MAX_DOUBLINGS: u32 = 7;

/// Refused for good: someone must act first, so looking rarely is enough.
const REFUSED_RETRY: Duration = Duration::from_secs(300);

/// A connection that lasted so long starts the retries anew. A shorter one does not, or two
/// machines with one key would throw each other out many times a second.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// How this node reaches the service, and who it is there.
pub struct WebSocketConfig {
    /// The service.
    pub url: SignalUrl,
    /// Its certificate's hash; `None` to trust authorities.
    pub pin: Option<ServerPin>,
    /// The network.
    pub network: NetworkId,
    /// The node's WireGuard key: signs the proof.
    pub key: PrivateKey,
    /// The encoded membership.
    pub membership: Vec<u8>,
    /// What [`Event::Receipt`] once gave.
    pub receipt: Option<JoinReceipt>,
    /// An HTTP proxy to go through.
    pub proxy: Option<ProxyUrl>,
    /// More authorities to trust, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Prepares the socket, to keep it in the underlay.
    pub socket_hook: Option<SocketHook>,
}

/// wice's own signaling service over a WebSocket.
pub struct WebSocketBackend {
    config: WebSocketConfig,
    random: SystemRandom,
    /// The newest list seen, from either side: a service that lost it gets it again.
    revocations: Option<RevocationList>,
}

/// Why a connection ended.
enum End {
    /// The daemon wants no more events, or has said farewell.
    Unwanted,
    /// Anything that a new connection may cure.
    Lost(String),
    /// The service refuses this node.
    Refused(ErrorCode, String),
}

type Socket = tokio_tungstenite::WebSocketStream<Box<dyn connect::Stream>>;

impl WebSocketBackend {
    /// A client that connects when it is run.
    #[must_use]
    pub fn new(config: WebSocketConfig) -> Self {
        Self {
            config,
            random: SystemRandom::new(),
            revocations: None,
        }
    }
}

impl SignalingBackend for WebSocketBackend {
    async fn run(mut self, mut outbox: watch::Receiver<Outbox>, events: mpsc::Sender<Event>) {
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let end = match self.session(&mut outbox, &events).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            if started.elapsed() >= STABLE_AFTER {
                failures = 0;
            }
            let (reason, retry_in) = match end {
                End::Unwanted => return,
                End::Lost(reason) => (reason, self.retry_in(failures)),
                End::Refused(code, text) => {
                    let retry_in = if code.is_temporary() {
                        self.retry_in(failures)
                    } else {
                        REFUSED_RETRY
                    };
                    let refused = Event::Refused {
                        code,
                        text: text.clone(),
                    };
                    if events.send(refused).await.is_err() {
                        return;
                    }
                    (text, retry_in)
                }
            };
            failures += 1;
            if events
                .send(Event::Disconnected { reason, retry_in })
                .await
                .is_err()
            {
                return;
            }
            let until = Instant::now() + retry_in;
            if !wait_for_retry(&mut outbox, until).await {
                return;
            }
        }
    }
}

impl WebSocketBackend {
    /// One connection, from dialing to its end.
    async fn session(
        &mut self,
        outbox: &mut watch::Receiver<Outbox>,
        events: &mpsc::Sender<Event>,
    ) -> Result<std::convert::Infallible, End> {
        let config = &self.config;
        // Anew each time: files may have been mended meanwhile.
        let tls = Tls::new(config.pin, config.ca_file.as_deref()).map_err(lost)?;
        let (proxy, hook) = (config.proxy.as_ref(), config.socket_hook.as_ref());
        let before = outbox.borrow().network_changes;
        let Upgraded {
            mut socket,
            challenge,
            servers: addresses,
            carries,
        } = tokio::select! {
            connected = connect::connect(&config.url, &tls, proxy, hook) => {
                connected.map_err(lost)?
            }
            () = network_changed(outbox, before) => {
                return Err(End::Lost("the network changed while connecting".to_owned()));
            }
        };

        let hello = self.hello(&challenge)?;
        feed(&mut socket, &ClientFrame::Hello(hello)).await?;
        let wanted = outbox.borrow_and_update().clone();
        let mut sent = Outbox {
            network_changes: wanted.network_changes,
            ..Outbox::default()
        };
        push_records(&mut socket, &wanted, &mut sent, carries).await?;
        flush(&mut socket).await?;
        if !addresses.is_empty() {
            emit(
                events,
                Event::Servers(Servers {
                    addresses,
                    credentials: None,
                }),
            )
            .await?;
        }

        let mut welcomed = false;
        let mut silent_at = Instant::now() + SILENCE_TIMEOUT;
        loop {
            tokio::select! {
                message = socket.next() => {
                    let bytes = match message {
                        Some(Ok(Message::Binary(bytes))) => Some(bytes),
                        Some(Ok(
                            Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_),
                        )) => None,
                        Some(Ok(Message::Close(_))) | None => {
                            return Err(End::Lost("the signaling server closed the connection".to_owned()));
                        }
                        Some(Err(error)) => return Err(lost(error)),
                    };
                    silent_at = Instant::now() + SILENCE_TIMEOUT;
                    if let Some(bytes) = bytes {
                        let was = welcomed;
                        self.handle(&bytes, &mut welcomed, events).await?;
                        if welcomed && !was {
                            self.push_revocations(&mut socket, outbox, &mut sent).await?;
                            if carries {
                                emit(events, Event::Carries).await?;
                            }
                            emit(events, Event::Connected).await?;
                        }
                    }
                }
                changed = outbox.changed() => {
                    if changed.is_err() {
                        return Err(End::Unwanted);
                    }
                    let wanted = outbox.borrow_and_update().clone();
                    if wanted.leaving {
                        feed(&mut socket, &ClientFrame::Leave).await?;
                        // TLS and WebSocket say their own farewells where there is time.
                        in_time(socket.close(None)).await?;
                        return Err(End::Unwanted);
                    }
                    push_records(&mut socket, &wanted, &mut sent, carries).await?;
                    if wanted.network_changes != sent.network_changes {
                        sent.network_changes = wanted.network_changes;
                        silent_at = silent_at.min(Instant::now() + PROBE_TIMEOUT);
                        let ping = socket.feed(Message::Ping(Bytes::new()));
                        in_time(ping).await?;
                    }
                    flush(&mut socket).await?;
                    if welcomed {
                        self.push_revocations(&mut socket, outbox, &mut sent).await?;
                    }
                }
                () = sleep_until(silent_at) => {
                    return Err(End::Lost("the signaling server went silent".to_owned()));
                }
            }
        }
    }

    fn hello(&self, challenge: &[u8; 32]) -> Result<Hello, End> {
        let mut z = [0; 64];
        if self.random.fill(&mut z).is_err() {
            return Err(End::Lost(
                "the operating system gave no random bytes".to_owned(),
            ));
        }
        let WebSocketConfig {
            key,
            network,
            membership,
            receipt,
            ..
        } = &self.config;
        Ok(Hello::sign(
            key,
            *network,
            membership.clone(),
            *receipt,
            challenge,
            &z,
        ))
    }

    async fn handle(
        &mut self,
        bytes: &[u8],
        welcomed: &mut bool,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), End> {
        let frame = match ServerFrame::decode(bytes) {
            Ok(frame) => frame,
            // A later version's, of which this node can do without.
            Err(RecordError::UnknownFrame(_)) if *welcomed => return Ok(()),
            Err(error) => {
                let reason = format!("a frame of the signaling server: {error}");
                return Err(End::Lost(reason));
            }
        };
        match frame {
            ServerFrame::Welcome {
                receipt,
                revocations,
                servers,
            } => {
                *welcomed = true;
                if let Some(receipt) = receipt {
                    self.config.receipt = Some(receipt);
                    emit(events, Event::Receipt(receipt)).await?;
                }
                if let Some(list) = revocations {
                    self.take_revocations(&list, events).await?;
                }
                emit(events, Event::Servers(servers)).await
            }
            ServerFrame::Error { code, text } => Err(End::Refused(code, text)),
            _ if !*welcomed => Err(End::Lost(
                "the signaling server spoke before its welcome".to_owned(),
            )),
            ServerFrame::Record {
                key,
                kind,
                last_seen_s,
                sealed,
            } => {
                let last_seen = Duration::from_secs(last_seen_s.into());
                emit(
                    events,
                    Event::Record {
                        key,
                        kind,
                        sealed,
                        last_seen,
                    },
                )
                .await
            }
            ServerFrame::Revocations(list) => self.take_revocations(&list, events).await,
            ServerFrame::Servers(servers) => emit(events, Event::Servers(servers)).await,
            ServerFrame::Presence(nodes) => {
                for (key, presence) in nodes {
                    emit(events, Event::Presence { key, presence }).await?;
                }
                Ok(())
            }
            ServerFrame::NotCarried { key, kind, why } => {
                emit(events, Event::NotCarried { key, kind, why }).await
            }
        }
    }

    /// Takes a list if the admin key signed it and it is newer.
    async fn take_revocations(
        &mut self,
        encoded: &[u8],
        events: &mpsc::Sender<Event>,
    ) -> Result<(), End> {
        let list = RevocationList::decode_verified(encoded, &self.config.network)
            .map_err(|error| End::Lost(format!("a list of revocations: {error}")))?;
        if !is_newer(&list, self.revocations.as_ref()) {
            return Ok(());
        }
        self.revocations = Some(list.clone());
        emit(events, Event::Revocations(list)).await
    }

    /// Pushes the newest list there is, unless this connection had it pushed.
    async fn push_revocations(
        &mut self,
        socket: &mut Socket,
        outbox: &watch::Receiver<Outbox>,
        sent: &mut Outbox,
    ) -> Result<(), End> {
        let own = outbox.borrow().revocations.clone();
        let newest = [own, self.revocations.clone()].into_iter().flatten();
        let Some(list) = newest.max_by_key(RevocationList::sequence) else {
            return Ok(());
        };
        if is_newer(&list, sent.revocations.as_ref()) {
            feed(
                socket,
                &ClientFrame::PublishRevocations(list.encoded().to_vec()),
            )
            .await?;
            flush(socket).await?;
            sent.revocations = Some(list);
        }
        Ok(())
    }

    /// Anywhere up to a bound that doubles with each failure: after an outage nodes come back
    /// spread over it.
    fn retry_in(&self, failures: u32) -> Duration {
        let bound = LAST_RETRY.min(FIRST_RETRY * (1 << failures.min(MAX_DOUBLINGS)));
        let mut random = [0; 4];
        if self.random.fill(&mut random).is_err() {
            return bound;
        }
        bound.mul_f64(f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX))
    }
}

/// Waits until `until`, or until the node's network changes. False when the daemon is gone.
async fn wait_for_retry(outbox: &mut watch::Receiver<Outbox>, until: Instant) -> bool {
    let before = outbox.borrow().network_changes;
    tokio::select! {
        () = sleep_until(until) => {}
        () = network_changed(outbox, before) => {}
    }
    outbox.has_changed().is_ok() && !outbox.borrow().leaving
}

/// Ends when the count of changes is no longer `before`, or the daemon goes or is gone.
async fn network_changed(outbox: &mut watch::Receiver<Outbox>, before: u64) {
    let _ = outbox
        .wait_for(|outbox| outbox.network_changes != before || outbox.leaving)
        .await;
}

/// Sends what the service lacks; what is carried only where it takes that.
async fn push_records(
    socket: &mut Socket,
    wanted: &Outbox,
    sent: &mut Outbox,
    carries: bool,
) -> Result<(), End> {
    for (kind, sealed) in &wanted.records {
        if sent.records.get(kind) != Some(sealed) {
            feed(
                socket,
                &ClientFrame::Publish {
                    kind: *kind,
                    sealed: sealed.to_vec(),
                },
            )
            .await?;
            sent.records.insert(*kind, sealed.clone());
        }
    }
    sent.carried.retain(|of, _| wanted.carried.contains_key(of));
    for ((key, kind), sealed) in wanted.carried.iter().filter(|_| carries) {
        if sent.carried.get(&(*key, *kind)) != Some(sealed) {
            let frame = ClientFrame::Carry {
                key: *key,
                kind: *kind,
                sealed: sealed.to_vec(),
            };
            feed(socket, &frame).await?;
            sent.carried.insert((*key, *kind), sealed.clone());
        }
    }
    Ok(())
}

async fn feed(socket: &mut Socket, frame: &ClientFrame) -> Result<(), End> {
    in_time(socket.feed(Message::Binary(frame.encode().into()))).await
}

async fn flush(socket: &mut Socket) -> Result<(), End> {
    in_time(socket.flush()).await
}

async fn in_time<E: std::fmt::Display>(
    write: impl Future<Output = Result<(), E>>,
) -> Result<(), End> {
    match timeout(WRITE_TIMEOUT, write).await {
        Ok(written) => written.map_err(lost),
        Err(_) => Err(End::Lost("the signaling server takes no data".to_owned())),
    }
}

async fn emit(events: &mpsc::Sender<Event>, event: Event) -> Result<(), End> {
    events.send(event).await.map_err(|_| End::Unwanted)
}

fn is_newer(list: &RevocationList, than: Option<&RevocationList>) -> bool {
    than.is_none_or(|old| old.sequence() < list.sequence())
}

fn lost(error: impl std::fmt::Display) -> End {
    End::Lost(error.to_string())
}
