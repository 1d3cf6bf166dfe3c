//! A mapping: asked for, renewed at half of its life, watched for a router that forgets it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::client::{Client, Phase, Retry, Step};
use super::http::Response;
use super::pcp::MapRequest;
use super::upnp::{self, Fault};
use super::{
    LIFETIME, LIFETIME_MAX, LIFETIME_MIN, Outcome, PORT_TRIES, Protocol, ROUND, Refusal, Transmit,
    WATCH, WATCH_UPNP, natpmp, pcp,
};
use crate::core::policy::{is_candidate_address, is_private};

/// A protocol, and the mapping by it.
#[derive(Debug)]
pub(super) struct Hold {
    protocol: Protocol,
    mapping: Option<Mapping>,
    task: Option<Task>,
    /// The external port that we ask for.
    wanted: u16,
    renew: Instant,
    watch: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    external: SocketAddr,
    until: Instant,
}

/// A question that is not answered yet.
#[derive(Debug)]
struct Task {
    aim: Aim,
    until: Instant,
    retry: Retry,
    ports_tried: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Map,
    Watch,
}

impl Hold {
    pub(super) fn poll_timeout(&self) -> Instant {
        let next = match &self.task {
            Some(task) => task.until.min(task.retry.due),
            None => self.renew.min(self.watch),
        };
        let ends = self.mapping.map(|mapping| mapping.until);
        ends.map_or(next, |ends| ends.min(next))
    }

    /// Renews by then at the latest: the router may have forgotten.
    pub(super) fn renew_by(&mut self, at: Instant) {
        self.renew = self.renew.min(at);
    }

    /// Whether the gateway's UPnP service is being searched for.
    pub(super) fn searches(&self) -> bool {
        self.protocol == Protocol::Upnp && self.task.is_some()
    }
}

impl Client {
    /// Maps by this protocol.
    pub(super) fn hold(&mut self, protocol: Protocol, now: Instant) {
        self.epoch.clear();
        self.phase = Phase::Holding(Hold {
            protocol,
            mapping: None,
            task: None,
            wanted: self.config.local.port(),
            renew: now,
            watch: now,
        });
        self.start(Aim::Map, now);
    }

    pub(super) fn hold_timeout(&mut self, now: Instant) {
        let Phase::Holding(hold) = &mut self.phase else {
            return;
        };
        if hold.mapping.is_some_and(|mapping| now >= mapping.until) {
            self.outcome = Outcome::Looking;
            self.probe(now);
            return self.handle_timeout(now);
        }
        match &mut hold.task {
            Some(task) if now >= task.until => self.unanswered(now),
            Some(task) if now >= task.retry.due => {
                task.retry.fire(now);
                self.ask_held();
            }
            Some(_) => {}
            None if now >= hold.renew => self.start(Aim::Map, now),
            None if now >= hold.watch => self.start(Aim::Watch, now),
            None => {}
        }
    }

    pub(super) fn hold_natpmp(&mut self, reply: natpmp::Reply, now: Instant) {
        let local_port = self.config.local.port();
        match reply {
            natpmp::Reply::External { epoch, result } if self.holds(Protocol::NatPmp) => {
                let lost = !self.epoch.note(epoch, now);
                let moved = result.ok().is_some_and(|address| {
                    self.external.replace(address.into()) != Some(IpAddr::V4(address))
                });
                self.watched(lost || moved, now);
            }
            natpmp::Reply::Map { epoch, result } if self.holds(Protocol::NatPmp) => {
                if result.is_ok_and(|mapped| mapped.internal_port != local_port) {
                    return;
                }
                self.epoch.note(epoch, now);
                let outside = self.external.unwrap_or(IpAddr::from([0; 4]));
                let lifetime = result.map_or(0, |mapped| mapped.lifetime);
                let result = result.map(|mapped| SocketAddr::new(outside, mapped.external_port));
                self.mapped(result, Duration::from_secs(lifetime.into()), now);
            }
            natpmp::Reply::Unsupported
            | natpmp::Reply::External { .. }
            | natpmp::Reply::Map { .. } => {}
        }
    }

    pub(super) fn hold_pcp(&mut self, reply: pcp::Reply, now: Instant) {
        match reply {
            pcp::Reply::Announce { epoch, .. } if self.holds(Protocol::Pcp) => {
                let lost = !self.epoch.note(epoch, now);
                self.watched(lost, now);
            }
            pcp::Reply::Map {
                nonce,
                internal_port,
                epoch,
                lifetime,
                result,
            } if self.holds(Protocol::Pcp)
                && nonce == self.config.nonce
                && internal_port == self.config.local.port() =>
            {
                self.epoch.note(epoch, now);
                if let Ok(external) = result {
                    self.external = Some(external.ip());
                }
                self.mapped(result, Duration::from_secs(lifetime.into()), now);
            }
            pcp::Reply::OtherVersion | pcp::Reply::Announce { .. } | pcp::Reply::Map { .. } => {}
        }
    }

    pub(super) fn hold_response(&mut self, step: Step, response: &Response, now: Instant) {
        let Phase::Holding(hold) = &mut self.phase else {
            return;
        };
        let Some(task) = &mut hold.task else {
            return;
        };
        let (aim, wanted) = (task.aim, hold.wanted);
        match step {
            Step::External => match upnp::parse_external_address(response) {
                Ok(address) => {
                    let before = self.external.replace(address.into());
                    let moved = before.is_some_and(|before| before != IpAddr::V4(address));
                    match aim {
                        Aim::Watch if !moved => self.act(Step::Check),
                        Aim::Watch => self.watched(true, now),
                        Aim::Map => self.act(Step::Add { port: wanted }),
                    }
                }
                Err(refusal) => self.mapped(Err(refusal), Duration::ZERO, now),
            },
            Step::Add { port } => match upnp::outcome(response) {
                Ok(_) => {
                    let outside = self.external.unwrap_or(IpAddr::from([0; 4]));
                    self.mapped(Ok(SocketAddr::new(outside, port)), LIFETIME, now);
                }
                Err(Fault::PortTaken) if task.ports_tried < PORT_TRIES => {
                    task.ports_tried += 1;
                    let port = self.any_port();
                    if let Phase::Holding(hold) = &mut self.phase {
                        hold.wanted = port;
                    }
                    self.act(Step::Add { port });
                }
                Err(Fault::PortTaken) => self.mapped(Err(Refusal::Conflict), Duration::ZERO, now),
                Err(Fault::NoSuchEntry) => {
                    self.mapped(Err(Refusal::Unsupported), Duration::ZERO, now);
                }
                Err(Fault::Refused(refusal)) => self.mapped(Err(refusal), Duration::ZERO, now),
            },
            Step::Check => {
                let ours = upnp::is_entry_of(response, self.config.local);
                self.watched(!ours, now);
            }
            Step::Describe(_) | Step::Delete => {}
        }
    }

    /// Deletes the mapping, if there is one.
    pub(super) fn release(&mut self) {
        let Phase::Holding(hold) = &mut self.phase else {
            return;
        };
        let Some(mapping) = hold.mapping.take() else {
            return;
        };
        let local = self.config.local;
        match hold.protocol {
            Protocol::Pcp => {
                let message = self.pcp_map(SocketAddr::new(unspecified(local.ip()), 0), 0);
                self.transmit(Transmit::Server(message));
            }
            Protocol::NatPmp => {
                let message = natpmp::map(local.port(), 0, 0);
                self.transmit(Transmit::Server(message));
            }
            Protocol::Upnp => {
                if let Some(service) = &self.upnp.service {
                    let request = service.delete(mapping.external.port());
                    self.exchange(service.address(), request, Step::Delete);
                }
            }
        }
    }

    fn holds(&self, protocol: Protocol) -> bool {
        matches!(&self.phase, Phase::Holding(hold) if hold.protocol == protocol)
    }

    fn start(&mut self, aim: Aim, now: Instant) {
        let Phase::Holding(hold) = &self.phase else {
            return;
        };
        let mut retry = self.retry(hold.protocol, now);
        retry.fire(now);
        self.upnp.exchange = None;
        if let Phase::Holding(hold) = &mut self.phase {
            hold.task = Some(Task {
                aim,
                until: now + ROUND,
                retry,
                ports_tried: 0,
            });
        }
        self.ask_held();
    }

    /// Sends what the task is about.
    fn ask_held(&mut self) {
        let Phase::Holding(hold) = &self.phase else {
            return;
        };
        let Some(task) = &hold.task else { return };
        let local = self.config.local;
        let before = hold.mapping.map(|mapping| mapping.external);
        let message = match (hold.protocol, task.aim) {
            (Protocol::Pcp, Aim::Map) => {
                let wanted = SocketAddr::new(unspecified(local.ip()), hold.wanted);
                self.pcp_map(before.unwrap_or(wanted), seconds(LIFETIME))
            }
            (Protocol::Pcp, Aim::Watch) => pcp::announce(local.ip()),
            (Protocol::NatPmp, Aim::Map) => {
                let wanted = before.map_or(hold.wanted, |before| before.port());
                natpmp::map(local.port(), wanted, seconds(LIFETIME))
            }
            (Protocol::NatPmp, Aim::Watch) => natpmp::external_address(),
            (Protocol::Upnp, _) => {
                match (&self.upnp.exchange, &self.upnp.service) {
                    (Some(_), _) => {}
                    (None, Some(_)) => self.ask_external(),
                    (None, None) => self.transmit(Transmit::Search(upnp::search())),
                }
                return;
            }
        };
        self.transmit(Transmit::Server(message));
    }

    fn pcp_map(&self, suggested: SocketAddr, lifetime: u32) -> Vec<u8> {
        pcp::map(&MapRequest {
            local: self.config.local,
            nonce: &self.config.nonce,
            suggested,
            lifetime,
        })
    }

    fn act(&mut self, step: Step) {
        let Phase::Holding(hold) = &self.phase else {
            return;
        };
        let Some(service) = &self.upnp.service else {
            return;
        };
        let request = match &step {
            Step::Add { port } => service.add(self.config.local, *port, seconds(LIFETIME)),
            Step::Check => service.check(hold.wanted),
            Step::Delete => service.delete(hold.wanted),
            Step::External | Step::Describe(_) => service.external_address(),
        };
        self.exchange(service.address(), request, step);
    }

    /// The router has told whether it still knows the mapping.
    fn watched(&mut self, lost: bool, now: Instant) {
        let Phase::Holding(hold) = &mut self.phase else {
            return;
        };
        let asked = hold.task.as_ref().map(|task| task.aim);
        if asked == Some(Aim::Map) || hold.mapping.is_none() {
            return;
        }
        hold.task = None;
        hold.watch = now + watch_interval(hold.protocol);
        if lost {
            self.start(Aim::Map, now);
        }
    }

    /// The router has mapped, or refused.
    fn mapped(&mut self, result: Result<SocketAddr, Refusal>, lifetime: Duration, now: Instant) {
        let Phase::Holding(hold) = &mut self.phase else {
            return;
        };
        let asked = hold.task.as_ref().map(|task| task.aim);
        let protocol = hold.protocol;
        match (asked, result) {
            // A late repetition, or a stranger's guess.
            (None, _) | (Some(Aim::Watch), Ok(_)) => {}
            (Some(Aim::Watch), Err(_)) => self.watched(false, now),
            (Some(Aim::Map), Err(refusal)) => {
                self.outcome = Outcome::Looking;
                let lasts = lifetime.min(LIFETIME_MAX);
                self.refused(protocol, refusal, lasts, now);
            }
            (Some(Aim::Map), Ok(external)) => {
                let lifetime = lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX);
                let until = now + lifetime;
                hold.mapping = Some(Mapping { external, until });
                hold.wanted = external.port();
                hold.task = None;
                hold.renew = now + lifetime / 2;
                hold.watch = now + watch_interval(protocol);
                if external.is_ipv4() && is_private(external.ip()) {
                    self.release();
                    self.rest(Outcome::TwoLayers, now);
                } else if !is_candidate_address(external.ip()) || external.port() == 0 {
                    self.release();
                    self.refused(protocol, Refusal::NetworkFailure, Duration::ZERO, now);
                } else {
                    self.outcome = Outcome::Mapped {
                        protocol,
                        external,
                        until,
                    };
                }
            }
        }
    }

    /// A whole round was.
    fn unanswered(&mut self, now: Instant) {
        let Phase::Holding(hold) = &mut self.phase else {
            return;
        };
        let aim = hold.task.take().map(|task| task.aim);
        let protocol = hold.protocol;
        hold.watch = now + watch_interval(protocol);
        match (aim, hold.mapping) {
            (Some(Aim::Map), None) => {
                self.refused(protocol, Refusal::NoAnswer, Duration::ZERO, now);
            }
            // At 1/2, 3/4, 7/8 … of its life (RFC 6887 §11.2.1).
            (Some(Aim::Map), Some(mapping)) => {
                hold.renew = now + mapping.until.saturating_duration_since(now) / 2;
            }
            (Some(Aim::Watch) | None, _) => {}
        }
    }
}

fn watch_interval(protocol: Protocol) -> Duration {
    match protocol {
        Protocol::Pcp | Protocol::NatPmp => WATCH,
        Protocol::Upnp => WATCH_UPNP,
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0u16; 8]),
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
