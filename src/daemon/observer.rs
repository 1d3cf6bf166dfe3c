//! What changes about this node by itself and nobody else tells: relays that come and go, and how large packets its
//! paths carry. Looked at now and then; logged once a change.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use wice_signaling::protocol::{PublicKey, RelayTransport};

use super::answers::{INSPECT_TIMEOUT, Shared};
use crate::core::mtu::Outer;
use crate::core::node::RelaySnapshot;
use crate::core::turn::Failure;
use crate::io::dial::Fwmark;
use crate::io::packet_loop::{Command, Inbox};
use crate::io::udp::UdpSocket;
use crate::report::{PathMtu, lower_mtu};

/// How often is looked. The kernel tells of no change of a path's MTU by itself, and forgets what routers have told
/// after ten minutes.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Destinations that are measured at once, ten system calls each.
const MAX_MEASURED: usize = 256;

/// What one look brings.
struct Looked {
    relays: Vec<RelaySnapshot>,
    /// By peer: how its packets leave over UDP, and how many were too large.
    outers: Vec<(PublicKey, Outer, u64)>,
}

/// How a relay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not known yet, or not needed.
    Idle,
    Up(SocketAddr),
    Down(Failure),
}

/// Looks until the packet loop has ended.
pub(super) async fn observe(
    inbox: Inbox,
    shared: Arc<Shared>,
    interface: String,
    managed: bool,
    fwmark: Fwmark,
) {
    let mut ticker = tokio::time::interval(LOOK_EVERY);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut relays = BTreeMap::new();
    let mut warned = None;
    loop {
        ticker.tick().await;
        let (sender, receiver) = oneshot::channel();
        let look = Command::Inspect(Box::new(move |view| {
            let own = view.node.own_snapshot(view.now);
            let outers = view.node.outers().filter_map(|(key, outer)| {
                let outer = outer?;
                Some((key, outer, view.oversize.towards(outer.remote)))
            });
            // Fails only when nobody waits any more.
            let _ = sender.send(Looked {
                relays: own.relays,
                outers: outers.take(MAX_MEASURED).collect(),
            });
        }));
        if inbox.send(look).is_err() {
            continue; // overloaded, or about to end
        }
        let Ok(Ok(looked)) = tokio::time::timeout(INSPECT_TIMEOUT, receiver).await else {
            continue;
        };
        log_relays(&mut relays, &looked.relays);
        let mark = fwmark.get();
        let measured = tokio::task::spawn_blocking(move || measure(looked.outers, mark)).await;
        let Ok(measured) = measured else { return };
        let present = shared.measured(measured);
        log_mtu(&mut warned, present, &interface, managed);
    }
}

/// Asks the kernel what it believes of each path.
fn measure(outers: Vec<(PublicKey, Outer, u64)>, mark: u32) -> BTreeMap<PublicKey, PathMtu> {
    let mut known: BTreeMap<Outer, Option<u32>> = BTreeMap::new();
    let mut measured = BTreeMap::new();
    for (key, outer, too_large) in outers {
        let mtu = *known.entry(outer).or_insert_with(|| path_mtu(&outer, mark));
        if let Some(path) = mtu {
            let inner = outer.largest_inner(path);
            measured.insert(
                key,
                PathMtu {
                    path,
                    inner,
                    too_large,
                },
            );
        }
    }
    measured
}

/// Of a socket of its own: it sends nothing, and takes the route that the path's packets take.
fn path_mtu(outer: &Outer, mark: u32) -> Option<u32> {
    let any: IpAddr = match outer.remote {
        SocketAddr::V4(_) => [0u8; 4].into(),
        SocketAddr::V6(_) => [0u8; 16].into(),
    };
    let (local, interface) = match outer.from {
        Some((local, interface)) => (local, Some(interface)),
        None => (any, None),
    };
    let local = SocketAddr::new(local, 0);
    let socket = UdpSocket::connect_marked(local, outer.remote, interface, mark).ok()?;
    socket.path_mtu().ok()
}

fn log_relays(known: &mut BTreeMap<(String, RelayTransport), Standing>, relays: &[RelaySnapshot]) {
    let mut now = BTreeMap::new();
    for relay in relays {
        let standing = match (relay.relayed, relay.failure) {
            (Some(address), _) => Standing::Up(address),
            (None, Some(failure)) => Standing::Down(failure),
            (None, None) => Standing::Idle,
        };
        // A name may have an address of each family: the better one counts.
        let entry = now.entry((relay.name.clone(), relay.transport));
        let best = entry.or_insert(standing);
        if matches!(standing, Standing::Up(_)) {
            *best = standing;
        }
    }
    for ((relay, transport), standing) in &now {
        let before = known.get(&(relay.clone(), *transport));
        let before = before.copied().unwrap_or(Standing::Idle);
        let transport = crate::report::transport_name(*transport);
        match (before, *standing) {
            (before, now) if before == now => {}
            // It moved: that is no news.
            (Standing::Up(_), Standing::Up(_)) | (_, Standing::Idle) => {}
            (_, Standing::Up(relayed)) => {
                tracing::info!(event = "relay-up", relay, transport, %relayed);
            }
            (_, Standing::Down(failure @ (Failure::WrongCredentials | Failure::Certificate))) => {
                tracing::warn!(event = "relay-down", relay, transport, error = %failure);
            }
            (_, Standing::Down(failure)) => {
                tracing::info!(event = "relay-down", relay, transport, error = %failure);
            }
        }
    }
    *known = now;
}

/// `present` is the interface's MTU and the least that a path carries.
fn log_mtu(
    warned: &mut Option<(u32, u32)>,
    present: Option<(u32, u32)>,
    interface: &str,
    managed: bool,
) {
    let wrong = present.filter(|(mtu, carried)| carried < mtu);
    if wrong == *warned {
        return;
    }
    *warned = wrong;
    match wrong {
        Some((mtu, carried)) => {
            let remedy = lower_mtu(interface, managed, carried);
            tracing::warn!(event = "mtu", interface, mtu, carried, remedy);
        }
        None => tracing::info!(event = "mtu-fits", interface),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_over_loopback_has_its_mtu() {
        let outer = Outer {
            from: None,
            remote: "127.0.0.1:9".parse().unwrap(),
            relayed: false,
        };
        let key = PublicKey([1; 32]);
        let measured = measure(vec![(key, outer, 3)], 0);
        let path = measured[&key].path;
        // Linux: 64 KiB, more with jumbo segments; never less than an Ethernet's.
        assert!(path >= 1500, "{path}");
        let expected = PathMtu {
            path,
            inner: path - 60,
            too_large: 3,
        };
        assert_eq!(measured[&key], expected);
        // No route, no figure.
        let nowhere = Outer {
            remote: "[ff02::1]:9".parse().unwrap(),
            from: Some(("::1".parse().unwrap(), u32::MAX)),
            ..outer
        };
        assert!(measure(vec![(key, nowhere, 0)], 0).is_empty());
    }
}
