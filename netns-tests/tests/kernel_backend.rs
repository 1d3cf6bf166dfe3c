//! The kernel backend on the kernel's WireGuard: `make uml`. Ignored elsewhere, never passed over there.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wice::lab::{Lab, LabConfig, NatKind};
use wice::wireguard::backend::{Backend as _, BackendError, Device, DevicePeer};
use wice::wireguard::kernel::Kernel;
use wice_netns_tests::interface::{Implementation, Interface};
use wice_netns_tests::{drop_capability, lab, wait_for};
use wice_signaling::protocol::PublicKey;

const PORT: u16 = 51820;
/// linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
/// Until two that know each other have a session.
const SESSION: Duration = Duration::from_secs(12);
const SLOT: &str = "127.3.2.1:51822";
/// Peers of an interface whose dump takes many messages.
const MANY: usize = 300;

/// An interface with a peer that it has a session with, and one that is elsewhere.
struct Interfaces {
    lab: Lab,
    ours: Interface,
    friend: Interface,
    other: Interface,
}

impl Interfaces {
    fn build() -> Result<Self> {
        let lab = lab(LabConfig {
            servers: false,
            ..LabConfig::of_kinds([NatKind::Public; 3])
        })?;
        let make = |node: &str, name, address: &str| {
            Interface::create(&lab, node, Implementation::Kernel, name, PORT, &[address])
        };
        let ours = make("home-a", "wg-a", "10.91.0.1/24")?;
        let friend = make("home-b", "wg-b", "10.91.0.2/24")?;
        let other = make("home-c", "wg-c", "10.91.0.3/24")?;
        let all = Self {
            lab,
            ours,
            friend,
            other,
        };
        for (node, end, inner) in [
            ("home-b", &all.friend, "10.91.0.2/32,192.0.2.0/24"),
            ("home-c", &all.other, "10.91.0.3/32"),
        ] {
            let key = end.public_key();
            all.ours.set_peer(key, Some(all.endpoint(node)?), inner)?;
            let mine = all.endpoint("home-a")?;
            end.set_peer(all.ours.public_key(), Some(mine), "10.91.0.1/32")?;
        }
        for inner in ["10.91.0.2", "10.91.0.3"] {
            let inner: IpAddr = inner.parse()?;
            let reached = wait_for(SESSION, || Ok(all.ours.reaches(inner)?.then_some(())))?;
            ensure!(reached.is_some(), "no session with {inner}");
        }
        Ok(all)
    }

    fn endpoint(&self, node: &str) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.lab.node(node)?.addresses()[0], PORT))
    }

    fn backend(&self) -> Result<Kernel> {
        Ok(self.ours.ns().run(|| Kernel::open(self.ours.name()))??)
    }
}

#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn it_reads_what_wg_shows() -> Result<()> {
    let all = Interfaces::build()?;
    let device = now(all.backend()?.device())?;
    assert_eq!(device.public_key, Some(all.ours.public_key()));
    let private = device.private_key.as_ref().map(|key| key.public_key());
    assert_eq!(private, Some(all.ours.public_key()));
    assert_eq!(device.listen_port, PORT);
    assert_eq!(device.peers.len(), 2);
    let friend = peer(&device, all.friend.public_key())?;
    assert_eq!(friend.endpoint, Some(all.endpoint("home-b")?));
    let allowed: Vec<_> = friend.allowed_ips.iter().map(|ip| ip.to_string()).collect();
    assert_eq!(allowed, ["10.91.0.2/32", "192.0.2.0/24"]);
    let handshake = friend.last_handshake.context("no handshake")?;
    assert_eq!(handshake.as_secs(), all.ours.handshake(friend.key)?);
    assert!(friend.rx_bytes > 0 && friend.tx_bytes > 0);
    assert_eq!(friend.keepalive, 0);
    Ok(())
}

#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn an_endpoint_is_set_and_nothing_else_changes() -> Result<()> {
    let all = Interfaces::build()?;
    let mut backend = all.backend()?;
    let before = now(backend.device())?;
    let slot: SocketAddr = SLOT.parse()?;
    let key = all.friend.public_key();
    now(backend.set_endpoint(key, slot))?;
    let after = now(backend.device())?;

    let shown = all.ours.peer("endpoints", key)?;
    assert_eq!(shown.as_deref(), Some(SLOT));
    let (old, new) = (peer(&before, key)?, peer(&after, key)?);
    assert_eq!(new.endpoint, Some(slot));
    assert_eq!(new.allowed_ips, old.allowed_ips);
    assert_eq!(new.last_handshake, old.last_handshake);
    let other = all.other.public_key();
    let (old, new) = (peer(&before, other)?, peer(&after, other)?);
    assert_eq!(new.endpoint, old.endpoint);
    assert_eq!(new.allowed_ips, old.allowed_ips);
    assert_eq!(new.last_handshake, old.last_handshake);
    assert!(
        all.ours.reaches("10.91.0.3".parse()?)?,
        "the other's session"
    );

    // Back again, and the session that stood goes on: no handshake was needed.
    now(backend.set_endpoint(key, all.endpoint("home-b")?))?;
    assert!(all.ours.reaches("10.91.0.2".parse()?)?);
    let handshake = peer(&now(backend.device())?, key)?.last_handshake;
    assert_eq!(handshake, peer(&before, key)?.last_handshake);
    let six: SocketAddr = "[2001:db8::1]:51820".parse()?;
    now(backend.set_endpoint(key, six))?;
    assert_eq!(peer(&now(backend.device())?, key)?.endpoint, Some(six));
    Ok(())
}

#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn a_removed_peer_stays_removed() -> Result<()> {
    let all = Interfaces::build()?;
    let mut backend = all.backend()?;
    let key = all.friend.public_key();
    all.ours.remove_peer(key)?;
    match now(backend.set_endpoint(key, SLOT.parse()?)) {
        Ok(()) | Err(BackendError::NoSuchPeer(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let device = now(backend.device())?;
    assert_eq!(device.peers.len(), 1);
    assert!(peer(&device, key).is_err());
    assert_eq!(all.ours.peer("endpoints", key)?, None);
    assert!(
        all.ours.reaches("10.91.0.3".parse()?)?,
        "the other's session"
    );
    Ok(())
}

#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn a_large_interface_is_read_whole() -> Result<()> {
    let all = Interfaces::build()?;
    let keys: Vec<_> = (0..MANY).map(|n| PublicKey(some_key(n))).collect();
    let mut config = String::new();
    for (n, key) in keys.iter().enumerate() {
        let prefixes: Vec<_> = (0..8)
            .map(|p| format!("10.{}.{}.{p}/32", 100 + n / 256, n % 256))
            .collect();
        config.push_str(&format!(
            "[Peer]\nPublicKey = {key}\nAllowedIPs = {}\n",
            prefixes.join(",")
        ));
    }
    let file = all.lab.directory().join("many.conf");
    std::fs::write(&file, config)?;
    let file = file.to_str().context("a path is no text")?;
    all.ours.wg(&["addconf", all.ours.name(), file])?;
    let device = now(all.backend()?.device())?;
    assert_eq!(device.peers.len(), MANY + 2);
    for key in keys {
        assert_eq!(peer(&device, key)?.allowed_ips.len(), 8);
    }
    Ok(())
}

#[test]
#[ignore = "needs a kernel with WireGuard: make uml"]
fn what_cannot_be_used_says_why() -> Result<()> {
    let all = Interfaces::build()?;
    let ns = all.ours.ns();
    let none = ns.run(|| Kernel::open("wg-none"))?;
    assert!(matches!(none, Err(BackendError::NoSuchInterface(name)) if name == "wg-none"));
    let wire = ns.run(|| Kernel::open("eth0"))?;
    assert!(matches!(wire, Err(BackendError::NotWireGuard(name)) if name == "eth0"));
    let unprivileged = ns.run(|| {
        drop_capability(CAP_NET_ADMIN)?;
        Ok::<_, std::io::Error>(Kernel::open(all.ours.name()))
    })??;
    assert!(
        matches!(unprivileged, Err(BackendError::NoPermission(_))),
        "{unprivileged:?}"
    );

    let mut backend = all.backend()?;
    all.ours.run("ip", &["link", "del", all.ours.name()])?;
    let gone = now(backend.device());
    assert!(
        matches!(gone, Err(BackendError::NoSuchInterface(_))),
        "{gone:?}"
    );
    let gone = now(backend.set_endpoint(all.friend.public_key(), SLOT.parse()?));
    assert!(
        matches!(gone, Err(BackendError::NoSuchInterface(_))),
        "{gone:?}"
    );
    Ok(())
}

fn peer(device: &Device, key: PublicKey) -> Result<&DevicePeer> {
    let found = device.peers.iter().find(|peer| peer.key == key);
    found.with_context(|| format!("{key} is not on the interface"))
}

/// A canonical key, another for every number.
fn some_key(number: usize) -> [u8; 32] {
    let mut key = [1; 32];
    key[..8].copy_from_slice(&(number as u64).to_le_bytes());
    key
}

/// The kernel answers within the call.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("netlink does not wait"),
    }
}
