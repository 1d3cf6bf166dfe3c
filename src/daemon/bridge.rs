//! The bridge between a signaling service and a cluster: a member of the network that is no node, with the cluster's API on
//! its other side. What it decides is in [`crate::signaling::kubernetes::state::Bridge`]; here it is carried out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::attached::read_key;
use super::metrics::{CONTENT_TYPE, family, listen, sample};
use super::network::Network;
use super::state::State;
use super::{SIGNAL, Settings, Signals, join, log_stopping, random};
use crate::io::dial::Fwmark;
use crate::signaling::kubernetes::state::{Bridge, Bridged, Counts, Names, News, Source};
use crate::signaling::kubernetes::{Access, ClusterEnd, Happened, Told};
use crate::signaling::{Event, Signaling};

/// Below the state folder, apart from what a node keeps there.
const FOLDER: &str = "bridge";

/// The cluster's side.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// The way to its API server.
    pub access: Access,
    /// Names of annotations.
    pub names: Names,
}

/// What `/metrics` tells.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    connected: bool,
    counts: Counts,
    written: u64,
    not_written: u64,
}

/// A running bridge.
struct Running {
    bridge: Bridge,
    signaling: Signaling,
    cluster: ClusterEnd,
    network: Network,
    state: State,
    settings: Settings,
    /// What the service has said on this connection.
    carries: bool,
    /// The last trouble of each kind, said once.
    troubles: BTreeMap<&'static str, String>,
    figures: Figures,
    shared: Arc<Mutex<Figures>>,
}

/// Joins the network and bridges until told to stop. Annotations, and what was carried, stay as they are then.
pub async fn bridge(settings: Settings, config: BridgeConfig) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let state = State::open(&settings.state_dir.join(FOLDER))?;
    let key = match &settings.private_key_file {
        Some(path) => read_key(path)?,
        None => state.key(random()?)?,
    };
    let membership = join::membership(&state, settings.token.as_ref(), &key)?;
    let bridged = Bridged {
        network: membership.network,
        network_key: membership.network_key.clone(),
        own: key.public_key(),
    };
    let mut network = Network::Service(Box::new(membership));
    let client = config.access.client().await?;
    let cluster = ClusterEnd::new(client, config.names.advert())
        .await
        .map_err(|error| anyhow::anyhow!("no random numbers from the system: {error}"))?;
    let shared = Arc::default();
    if let Some(address) = settings.metrics {
        listen(address, router(Arc::clone(&shared))).await?;
    }
    tracing::info!(
        event = "bridge-started",
        network = network.name(),
        key = %bridged.own,
        url = network.place(),
    );
    let mut running = Running {
        bridge: Bridge::new(bridged, config.names, random()?),
        signaling: network.start(&settings, &key, Fwmark::default().hook())?,
        cluster,
        network,
        state,
        settings,
        carries: false,
        troubles: BTreeMap::new(),
        figures: Figures::default(),
        shared,
    };
    loop {
        running.carry_on();
        let due = running.bridge.poll_timeout();
        tokio::select! {
            event = running.signaling.next() => match event {
                Some(event) => running.handle_signaling(event)?,
                None => anyhow::bail!("the signaling client has ended: see the log above"),
            },
            happened = running.cluster.next() => running.handle_cluster(happened),
            () = at(due) => {}
            _ = signals.stop() => break,
        }
    }
    log_stopping(SIGNAL);
    running.signaling.leave().await;
    Ok(())
}

impl Running {
    /// Does what is due.
    fn carry_on(&mut self) {
        let now = Instant::now();
        while let Some(carry) = self.bridge.poll_carry(now) {
            tracing::debug!(event = "carried", key = %carry.key, bytes = carry.sealed.len());
            let kind = wice_signaling::protocol::RecordKind::Advert;
            self.signaling.carry(carry.key, kind, carry.sealed);
        }
        if let Some(write) = self.bridge.poll_write(now) {
            self.cluster.write(write);
        }
        while let Some(news) = self.bridge.poll_news() {
            tell(news);
        }
        self.figures.counts = self.bridge.counts();
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = self.figures;
    }

    fn handle_signaling(&mut self, event: Event) -> anyhow::Result<()> {
        let now = Instant::now();
        match event {
            Event::Carries => self.carries = true,
            Event::Connected => {
                let url = self.network.place();
                tracing::info!(event = "signaling-connected", url);
                self.troubles.remove("signaling");
                if self.carries {
                    self.troubles.remove("service-too-old");
                } else {
                    let hint = "update wice signal; until then machines outside do not hear of the cluster's nodes, and the cluster hears of them";
                    self.trouble("service-too-old", "the signaling service takes nothing that is carried for others: it is of an older version", hint);
                }
                self.figures.connected = true;
                self.bridge.handle_connected(self.carries, now);
            }
            Event::Disconnected { reason, retry_in } => {
                self.carries = false;
                self.figures.connected = false;
                // It may be another service when it is back, and has to be asked anew.
                self.signaling.carry_nothing();
                self.bridge.handle_disconnected();
                tracing::debug!(event = "signaling-retry", ?retry_in);
                self.trouble("signaling", &reason, "tried again");
            }
            Event::Refused { code, text } => {
                if self.network.is_newcomer(&self.settings) && !code.is_temporary() {
                    anyhow::bail!(
                        "the signaling service refuses this bridge ({}): {text}",
                        code.as_str()
                    );
                }
            }
            Event::Record {
                key, kind, sealed, ..
            } => {
                if let Err(reason) = self.bridge.handle_record(key, kind, sealed, now) {
                    tracing::debug!(event = "record-refused", %key, reason);
                }
            }
            Event::Revocations(list) => self.bridge.handle_revocations(list, now),
            Event::NotCarried { key, kind, why } => {
                self.signaling.carry_no_more(key, kind);
                self.bridge.handle_not_carried(&key, why, now);
            }
            Event::Receipt(receipt) => self.network.keep_receipt(&self.state, receipt)?,
            // It has no paths, and what it carries is not gone because its node is.
            Event::Presence { .. } | Event::Servers(_) => {}
        }
        Ok(())
    }

    fn handle_cluster(&mut self, happened: Happened) {
        let now = Instant::now();
        match happened {
            Happened::Told(source, told) => self.handle_told(source, told, now),
            Happened::Written => {
                self.figures.written += 1;
                self.troubles.remove("peer-not-written");
                self.bridge.handle_written(now);
            }
            Happened::NotWritten { refusal, reason } => {
                self.figures.not_written += 1;
                self.bridge.handle_refused(refusal, now);
                self.trouble("peer-not-written", &reason, "tried again");
            }
        }
    }

    fn handle_told(&mut self, source: Source, told: Told, now: Instant) {
        let (what, rest) = match source {
            Source::Nodes => (
                "nodes-not-watched",
                "machines outside keep what they know of Nodes",
            ),
            Source::Peers => (
                "peers-not-watched",
                "the Nodes' adverts are carried meanwhile",
            ),
        };
        match told {
            Told::List => self.bridge.handle_list(source),
            Told::Object(seen) => self.bridge.handle_object(source, seen.object(), now),
            Told::Deleted(seen) => self.bridge.handle_deleted(source, seen.name(), now),
            Told::Listed => {
                if self.troubles.remove(what).is_some() {
                    tracing::info!(event = "api-answers", watch = ?source);
                }
                self.bridge.handle_listed(source, now);
            }
            Told::Lost {
                unknown: true, ..
            } if source == Source::Peers => self.trouble(
                what,
                "this cluster has no Peer objects",
                "install Kilo's kinds (kubectl apply -f crds.yaml of Kilo); the Nodes' adverts are carried meanwhile",
            ),
            Told::Lost { reason, .. } => self.trouble(what, &reason, rest),
        }
    }

    /// Says a trouble when it is new.
    fn trouble(&mut self, what: &'static str, reason: &str, hint: &str) {
        if self.troubles.get(what).is_some_and(|known| known == reason) {
            return;
        }
        self.troubles.insert(what, reason.to_owned());
        let event = if what == "signaling" {
            "signaling-lost"
        } else {
            what
        };
        tracing::warn!(event, reason, hint);
    }
}

/// One line a transition.
fn tell(news: News) {
    match news {
        News::Carrying { nodes } => tracing::info!(event = "carrying", nodes),
        News::NotCarried { node, why } => {
            let (reason, hint) = (why.as_str(), why.message());
            tracing::warn!(event = "not-carried", node, reason, hint);
        }
        News::NotOfItsKey { node, why } => {
            let hint = "left alone until its own agent has written it";
            tracing::warn!(event = "advert-unreadable", node, reason = why, hint);
        }
        News::Wrote { peer } => tracing::info!(event = "peer-written", peer),
        News::Cleared { peer } => {
            let hint = "its Peer object is yours to delete";
            tracing::info!(event = "peer-cleared", peer, reason = "revoked", hint);
        }
    }
}

fn router(figures: Arc<Mutex<Figures>>) -> Router {
    let metrics = move || {
        let figures = *figures.lock().unwrap_or_else(PoisonError::into_inner);
        let answer: Response =
            ([(header::CONTENT_TYPE, CONTENT_TYPE)], text(figures)).into_response();
        std::future::ready(answer)
    };
    Router::new().route("/metrics", get(metrics))
}

fn text(figures: Figures) -> String {
    let mut out = String::new();
    let Figures {
        connected,
        counts,
        written,
        not_written,
    } = figures;
    for (name, kind, help, value) in [
        (
            "wice_signaling_connected",
            "gauge",
            "1 while the signaling service is connected.",
            u64::from(connected),
        ),
        (
            "wice_bridge_nodes",
            "gauge",
            "Nodes of the cluster with an advert.",
            counts.nodes as u64,
        ),
        (
            "wice_bridge_nodes_carried",
            "gauge",
            "Nodes whose advert the service has taken.",
            counts.carried as u64,
        ),
        (
            "wice_bridge_peers",
            "gauge",
            "Peer objects.",
            counts.peers as u64,
        ),
        (
            "wice_bridge_peers_with_advert",
            "gauge",
            "Peer objects with an advert of their key.",
            counts.peers_with_advert as u64,
        ),
        (
            "wice_bridge_members",
            "gauge",
            "Nodes whose adverts the service has told.",
            counts.members as u64,
        ),
        (
            "wice_bridge_writes_total",
            "counter",
            "Annotations of Peers written.",
            written,
        ),
        (
            "wice_bridge_refused_writes_total",
            "counter",
            "Annotations of Peers not written.",
            not_written,
        ),
    ] {
        family(&mut out, name, kind, help);
        sample(&mut out, name, &[], value as f64);
    }
    out
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
