//! The daemon of managed mode: wice owns the interface, in the kernel or in this process, and peers and
//! routes come out of the network's records.

mod choice;
mod kernel;
mod left;
mod routes;
mod start;

use anyhow::Context as _;
use tokio::sync::mpsc;
use wice_signaling::protocol::{PublicKey, RecordKind, Routes};

use super::base::{Base, Left, Record};
use super::{ASKED, LOOP_ENDED, SIGNAL, Settings, Signals, Stopped, log_stopping, random};
use crate::core::overlay::Owned;
use crate::io::packet_loop::{Command, Notice};
use kernel::KernelInterface;
use routes::KernelRoutes;

pub use choice::{KernelRefusal, WireGuardKind};
pub(super) use left::remove;
pub use left::remove_left;

/// A running daemon.
struct Managed {
    base: Base,
    /// The kernel's WireGuard; `None` where it is the packet loop's own.
    kernel: Option<KernelInterface>,
    routes: KernelRoutes,
    routes_published: bool,
}

/// Why serving has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The daemon alone: another may go on in a moment.
    Daemon,
    /// All of it: the interface is to go.
    Everything,
}

/// Runs the daemon until it is told to stop. The kernel's interface outlives it unless it is told to take
/// all down (`wice down`, Ctrl-C).
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let (mut managed, mut notices) = Managed::start(settings).await?;
    let ended = managed.serve(&mut notices).await;
    let Managed { base, kernel, .. } = managed;
    if let Some(kernel) = kernel {
        let unused = ended.is_err() && kernel.has_no_peers();
        drop(kernel); // nobody looks at it any more
        if unused || matches!(ended, Ok(End::Everything)) {
            let name = &base.settings.interface;
            match base.netlink.delete_link(base.index).await {
                Ok(()) => tracing::info!(event = "interface-removed", interface = name),
                Err(error) => tracing::warn!(event = "interface-stays", %error),
            }
        }
    }
    base.stop().await;
    ended.map(drop)
}

impl Managed {
    async fn serve(&mut self, notices: &mut mpsc::Receiver<Notice>) -> anyhow::Result<End> {
        let mut signals = Signals::new()?;
        loop {
            tokio::select! {
                notice = notices.recv() => match notice {
                    Some(notice) => self.handle_notice(notice).await?,
                    None => anyhow::bail!(LOOP_ENDED),
                },
                happened = KernelInterface::next(&mut self.kernel) => {
                    if let Some(kernel) = &mut self.kernel
                        && let Some(picture) = kernel.handle(happened?, &self.base).await?
                        && kernel.has_settled()
                    {
                        self.routes.settle(&picture, &self.base).await;
                    }
                }
                happened = self.base.next() => match self.base.handle(happened?).await? {
                    Left::Record(record) => self.handle_record(record)?,
                    Left::Stop => {
                        log_stopping(ASKED);
                        return Ok(End::Everything);
                    }
                    Left::Interfaces(interfaces) => {
                        if let Some(kernel) = &mut self.kernel {
                            kernel.binding.handle_interfaces(&interfaces, &self.base).await?;
                        }
                    }
                    Left::Nothing => {}
                },
                stopped = signals.stop() => {
                    log_stopping(SIGNAL);
                    return Ok(match stopped {
                        Stopped::Terminated => End::Daemon,
                        Stopped::Interrupted => End::Everything,
                    });
                }
            }
        }
    }

    async fn handle_notice(&mut self, notice: Notice) -> anyhow::Result<()> {
        match notice {
            Notice::Publish { advert, sequence } => {
                self.base.publish_advert(&advert, sequence)?;
                // After the first advert: peers take routes from nodes that they know.
                if !std::mem::replace(&mut self.routes_published, true) {
                    self.publish_routes()?;
                }
            }
            Notice::Accepted(record) => {
                if let Some(kernel) = &mut self.kernel {
                    kernel.binding.handle_advert(&record);
                }
                self.base.kept.keep(RecordKind::Advert, record);
            }
            Notice::AcceptedRoutes(record) => self.base.kept.keep(RecordKind::Routes, record),
            Notice::Owned { key, owned } => self.handle_owned(key, owned).await,
            Notice::Path(peer) => {
                if let Some(kernel) = &mut self.kernel {
                    kernel.binding.handle_path(&peer);
                }
                self.base.log_path(*peer).await;
            }
            Notice::PortClosed(port) => {
                if let Some(kernel) = &mut self.kernel {
                    kernel.binding.handle_port_closed(port);
                }
            }
            Notice::DeviceLost(error) => {
                return Err(error).context(kernel::gone(&self.base.settings.interface));
            }
        }
        Ok(())
    }

    /// What a peer owns WireGuard lets through, and the kernel routes to it.
    async fn handle_owned(&mut self, key: PublicKey, owned: Option<Owned>) {
        if owned.is_none() {
            self.base.kept.forget(&key);
        }
        if let Some(kernel) = &mut self.kernel {
            kernel.set(key, owned.as_ref());
        }
        self.routes.set(key, owned.as_ref(), &self.base).await;
    }

    fn handle_record(&mut self, record: Record) -> anyhow::Result<()> {
        match record.kind {
            RecordKind::Routes if record.key == self.base.key.public_key() => {
                self.read_back_routes(&record.bytes)?;
            }
            RecordKind::Advert => self.base.pass_on(Command::Advert(record.bytes))?,
            RecordKind::Routes => self.base.pass_on(Command::Routes(record.bytes))?,
        }
        self.base
            .pass_on(Command::Presence(record.key, record.presence))
    }

    /// Ours as the service has them: newer than ours if this node's count was lost. Then they are
    /// published once more, or peers would take them for old ones.
    fn read_back_routes(&mut self, record: &[u8]) -> anyhow::Result<()> {
        let Ok(routes) = Routes::decode_verified(record) else {
            return Ok(());
        };
        if routes.sequence <= self.base.node_state.routes_sequence {
            return Ok(());
        }
        self.base.node_state.routes_sequence = routes.sequence;
        self.publish_routes()
    }

    fn publish_routes(&mut self) -> anyhow::Result<()> {
        if self.base.settings.advertise_routes.is_empty()
            && self.base.node_state.routes_sequence == 0
        {
            return Ok(());
        }
        self.base.node_state.routes_sequence += 1;
        self.base.state.set_node(&self.base.node_state)?;
        let mut prefixes = self.base.settings.advertise_routes.clone();
        prefixes.sort();
        prefixes.dedup();
        let routes = Routes {
            key: self.base.key.public_key(),
            sequence: self.base.node_state.routes_sequence,
            overlay_counter: self.base.node_state.overlay_counter,
            prefixes,
        };
        let record = routes.encode_signed(&self.base.key, &random()?)?;
        self.base.publish(RecordKind::Routes, &record)
    }
}
