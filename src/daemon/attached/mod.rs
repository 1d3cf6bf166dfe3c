//! The daemon of attached mode: another program owns the WireGuard interface; this follows what it
//! does there, and touches endpoints alone.

mod adverts;
mod detach;
mod guidance;
mod seeking;
mod start;
mod waiting;

use tokio::sync::mpsc;
use wice_signaling::protocol::RecordKind;

use super::base::{Base, Left, Record};
use super::binding::{Binding, PeerChange, Seen};
use super::{ASKED, LOOP_ENDED, SIGNAL, Settings, Signals, log_stopping};
use crate::core::binding::LOOK_EVERY;
use crate::core::seeking::Seeker;
use crate::io::packet_loop::{Command, Notice};
use crate::wireguard::backend::BackendError;
use adverts::Adverts;
use guidance::Guide;
use waiting::Waiting;

pub use detach::{Detached, detach, is_detached, stay_detached};
#[cfg(feature = "kubernetes")]
pub(super) use guidance::{Guidance, Publication};
#[cfg(feature = "kubernetes")]
pub(super) use start::read_key;
pub use start::{AttachError, FOLDER as ATTACHED_FOLDER};

/// A running daemon.
struct Attached {
    base: Base,
    binding: Binding,
    adverts: Adverts,
    guide: Guide,
    seeker: Seeker,
}

/// Why serving has ended.
enum End {
    Stop,
    /// The interface has another key: another node.
    NewKey,
}

/// Attaches to an interface and runs until told to stop. Endpoints stay as they are then.
pub async fn attach(settings: Settings) -> anyhow::Result<()> {
    run(settings, Meet::Token).await
}

/// Where the peers are met.
pub(super) enum Meet {
    /// At the signaling service of a network that a token lets in.
    Token,
    /// In a cluster.
    #[cfg(feature = "kubernetes")]
    Cluster(Box<crate::signaling::kubernetes::KubernetesConfig>),
}

impl Meet {
    /// Whether the interface is waited for at the start: nobody is there who could be told to make it.
    fn waits(&self) -> bool {
        match self {
            Self::Token => false,
            #[cfg(feature = "kubernetes")]
            Self::Cluster(_) => true,
        }
    }
}

/// Whether the interface, or its key, may still come.
fn is_not_yet(error: &anyhow::Error) -> bool {
    error.is::<BackendError>()
        || matches!(
            error.downcast_ref::<AttachError>(),
            Some(AttachError::NoKey { .. })
        )
}

/// As [`attach`], wherever peers are met.
pub(super) async fn run(settings: Settings, meet: Meet) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut missing: Option<String> = None;
    let mut first = true;
    loop {
        let started = Attached::start(settings.clone(), &meet).await;
        let (mut attached, mut notices) = match started {
            Ok(started) => started,
            // An interface that changes its key may be away for a moment, and a mesh agent makes its own when it can.
            Err(error) if (!first || meet.waits()) && is_not_yet(&error) => {
                let text = error.to_string();
                if missing.as_ref() != Some(&text) {
                    tracing::warn!(event = "interface-lost", error = text, "waiting for it");
                    missing = Some(text.clone());
                }
                let waiting = Waiting::start(&settings, &text)?;
                let end = tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => None,
                    () = waiting.asked_to_stop() => Some(ASKED),
                    _ = signals.stop() => Some(SIGNAL),
                };
                waiting.end().await;
                let Some(reason) = end else {
                    continue;
                };
                log_stopping(reason);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        first = false;
        missing = None;
        let ended = attached.serve(&mut notices).await;
        let Attached { base, binding, .. } = attached;
        drop(binding);
        base.stop().await;
        match ended? {
            End::Stop => return Ok(()),
            End::NewKey => tracing::warn!(
                event = "key-changed",
                interface = settings.interface,
                "a new key is a new node: starting afresh"
            ),
        }
    }
}

impl Attached {
    async fn serve(&mut self, notices: &mut mpsc::Receiver<Notice>) -> anyhow::Result<End> {
        let mut signals = Signals::new()?;
        loop {
            tokio::select! {
                notice = notices.recv() => match notice {
                    Some(notice) => self.handle_notice(notice).await?,
                    None => anyhow::bail!(LOOP_ENDED),
                },
                happened = self.binding.next() => {
                    match self.binding.handle(happened?, &self.base).await? {
                        Seen::OtherKey => return Ok(End::NewKey),
                        // What is known is kept for its return.
                        Seen::Nothing | Seen::Device(_) | Seen::Lost(_) => {}
                        Seen::Picture(picture) => self.seek(&picture.ways)?,
                    }
                    self.tell_changes()?;
                }
                () = self.guide.changed() => self.handle_guidance()?,
                happened = self.base.next() => match self.base.handle(happened?).await? {
                    Left::Record(record) => self.handle_record(record)?,
                    Left::Interfaces(interfaces) => {
                        self.binding.handle_interfaces(&interfaces, &self.base).await?;
                    }
                    Left::Stop => {
                        log_stopping(ASKED);
                        return Ok(End::Stop);
                    }
                    Left::Nothing => {}
                },
                _ = signals.stop() => {
                    log_stopping(SIGNAL);
                    return Ok(End::Stop);
                }
            }
        }
    }

    async fn handle_notice(&mut self, notice: Notice) -> anyhow::Result<()> {
        match notice {
            Notice::Publish { advert, sequence } => self.base.publish_advert(&advert, sequence)?,
            Notice::Accepted(record) => self.binding.handle_advert(&record),
            Notice::Path(peer) => {
                self.binding.handle_path(&peer);
                self.base.log_path(*peer).await;
            }
            Notice::PortClosed(port) => self.binding.handle_port_closed(port),
            // Managed mode's.
            Notice::AcceptedRoutes(_) | Notice::Owned { .. } | Notice::DeviceLost(_) => {}
        }
        Ok(())
    }

    /// The interface's peers are the node's.
    fn tell_changes(&mut self) -> anyhow::Result<()> {
        for change in self.binding.take_changes() {
            match change {
                PeerChange::Added(key) => {
                    tracing::info!(event = "peer-added", peer = %key);
                    self.base.inbox.send(Command::AddPeer(key))?;
                    if let Some(record) = self.adverts.of(&key) {
                        self.base.inbox.send(Command::Advert(record.to_vec()))?;
                    }
                }
                PeerChange::Removed(key) => {
                    tracing::info!(event = "peer-removed", peer = %key);
                    self.base.inbox.send(Command::RemovePeer(key))?;
                }
            }
        }
        Ok(())
    }

    fn handle_guidance(&mut self) -> anyhow::Result<()> {
        let guidance = self.guide.guidance();
        self.base.exclude(guidance.excluded.clone())?;
        self.binding.hold(guidance.held.clone());
        let names = guidance.names.clone();
        self.binding.with_view(|view| view.names = names);
        self.base.shared.published(guidance.publication.clone());
        Ok(())
    }

    fn handle_record(&mut self, record: Record) -> anyhow::Result<()> {
        match record.kind {
            RecordKind::Advert => {
                let bytes = record.bytes.clone();
                let own = record.key == self.base.key.public_key();
                let taken = !own && self.adverts.take(Some(record.key), bytes).is_some();
                if taken {
                    let record = record.bytes.clone();
                    self.base.kept.keep(RecordKind::Advert, record);
                }
                let is_peer = self.binding.has(&record.key);
                if own || is_peer {
                    self.base.pass_on(Command::Advert(record.bytes))?;
                }
            }
            RecordKind::Routes => self.handle_seeking(&record.key, &record.bytes),
        }
        self.base
            .pass_on(Command::Presence(record.key, record.presence))
    }
}
