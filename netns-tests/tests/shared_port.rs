//! WireGuard's own port shared by a raw socket, with real WireGuard on it: wireguard-go here, the
//! kernel's by `make uml`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use wice::io::shared_port::{SharedPort, SharedPortError};
use wice::io::udp::{
    Coalescer, Destination, ErrorOrigin, Family, PathErrorKind, ReceiveBuffers, SendFailureKind,
    SendFailures, Source, UdpSocket,
};
use wice::lab::{HomeConfig, Ipv6, Lab, LabConfig, NatKind, NetNs};
use wice_netns_tests::interface::{Implementation, Interface};
use wice_netns_tests::{SILENCE, drop_capability, lab, wait_for};

const PORT: u16 = 51820;
/// linux/capability.h.
const CAP_NET_RAW: u32 = 13;
const INNER: [&str; 2] = ["10.91.0.1", "10.91.0.2"];
/// Until something that is sent has come.
const ARRIVAL: Duration = Duration::from_secs(2);
/// Until two WireGuards that know each other have a session: a lost handshake is repeated after 5 s.
const SESSION: Duration = Duration::from_secs(12);
/// More than the MTU of anything in the lab.
const OVERSIZE: usize = 9000;

/// Two public nodes, each with a WireGuard that has the other as its peer.
struct Pair {
    lab: Lab,
    ends: [Interface; 2],
}

impl Pair {
    fn build() -> Result<Self> {
        let lab = public_lab()?;
        let implementation = Implementation::chosen()?;
        let end = |node: &str, index: usize| {
            let name = interface_name(index);
            let inner = format!("{}/24", INNER[index]);
            Interface::create(&lab, node, implementation, &name, PORT, &[&inner])
        };
        let ends = [end("home-a", 0)?, end("home-b", 1)?];
        let pair = Self { lab, ends };
        for (me, you) in [(0, 1), (1, 0)] {
            let endpoint = SocketAddr::new(pair.address(you, Family::V4)?, PORT);
            let allowed = format!("{}/32", INNER[you]);
            pair.ends[me].set_peer(pair.ends[you].public_key(), Some(endpoint), &allowed)?;
        }
        Ok(pair)
    }

    fn ns(&self, index: usize) -> &NetNs {
        self.ends[index].ns()
    }

    fn address(&self, index: usize, family: Family) -> Result<IpAddr> {
        address(&self.lab, ["home-a", "home-b"][index], family)
    }

    fn shared(&self, index: usize, family: Family) -> Result<SharedPort> {
        Ok(self.ns(index).run(|| SharedPort::open(family, PORT))??)
    }

    /// WireGuard passes packets, both ways.
    fn passes(&self) -> Result<bool> {
        let inner = INNER[1].parse()?;
        let answered = || Ok(self.ends[0].reaches(inner)?.then_some(()));
        Ok(wait_for(SESSION, answered)?.is_some())
    }
}

#[test]
fn stun_comes_and_goes_by_the_port_while_wireguard_works() -> Result<()> {
    let pair = Pair::build()?;
    assert!(pair.passes()?, "WireGuard alone");
    for family in [Family::V4, Family::V6] {
        let shared = pair.shared(0, family)?;
        let here = SocketAddr::new(pair.address(0, family)?, PORT);
        let other = plain(
            pair.ns(1),
            SocketAddr::new(pair.address(1, family)?, 40_000),
        )?;
        let (request, response) = (stun(0x0001, 8), stun(0x0101, 12));
        send(&other, here, &request)?;

        let arrived = receive(&shared, 1)?;
        assert_eq!(arrived.len(), 1);
        let (remote, local, ifindex, payload) = &arrived[0];
        assert_eq!(*remote, other.local_addr()?, "{family}");
        assert_eq!(*local, Some(here.ip()), "{family}");
        assert!(*ifindex > 1, "{family}: interface {ifindex}");
        assert_eq!(*payload, request);

        let base = Source {
            ip: here.ip(),
            ifindex: *ifindex,
        };
        let any = Source {
            ip: if here.is_ipv4() { "0.0.0.0" } else { "::" }.parse()?,
            ifindex: *ifindex,
        };
        for source in [Some(base), Some(any), None] {
            let to = Destination {
                remote: *remote,
                source,
            };
            shared.send(&to, &response).ok().context("not sent")?;
            let (from, bytes) = plain_receive(&other)?;
            assert_eq!(
                (from, bytes),
                (here, response.clone()),
                "{family} {source:?}"
            );
        }
        assert_eq!(other.next_error(), None, "{family}: something was refused");
        assert_eq!(shared.counters().received, 1);
        assert_eq!(shared.counters().sent, 3);
        assert_eq!(shared.counters().receive_malformed, 0);
    }
    assert!(pair.passes()?, "WireGuard after STUN");
    Ok(())
}

#[test]
fn two_shared_ports_reach_each_other_and_wireguards_packets_stay_out() -> Result<()> {
    let pair = Pair::build()?;
    for family in [Family::V4, Family::V6] {
        let shared = [pair.shared(0, family)?, pair.shared(1, family)?];
        let address =
            |index| Ok::<_, anyhow::Error>(SocketAddr::new(pair.address(index, family)?, PORT));
        for (from, to) in [(0, 1), (1, 0)] {
            for length in [0, 8, 100, 1200] {
                let message = stun(0x0001, length);
                let destination = Destination {
                    remote: address(to)?,
                    source: None,
                };
                let sent = shared[from].send(&destination, &message);
                sent.ok().context("not sent")?;
                let arrived = receive(&shared[to], 1)?;
                assert_eq!(arrived[0].0, address(from)?);
                assert_eq!(arrived[0].3, message);
            }
        }
        assert!(pair.passes()?, "WireGuard beside");
        for shared in &shared {
            assert!(receive_within(shared, SILENCE)?.is_empty());
            assert_eq!(shared.counters().received, 4, "only STUN");
            assert_eq!(shared.counters().receive_malformed, 0);
        }
    }
    Ok(())
}

#[test]
fn what_is_not_stun_to_the_port_is_not_seen() -> Result<()> {
    let pair = Pair::build()?;
    for family in [Family::V4, Family::V6] {
        let shared = pair.shared(0, family)?;
        let here = pair.address(0, family)?;
        let _held = plain(pair.ns(0), SocketAddr::new(here, PORT + 7))?;
        let other = plain(pair.ns(1), SocketAddr::new(pair.address(1, family)?, 0))?;
        let mut no_cookie = stun(1, 8);
        no_cookie[7] ^= 1;
        let mut channel_data = stun(1, 8);
        channel_data[0] = 0x40;
        for payload in [
            &b"hello"[..],
            &[4, 0, 0, 0, 1, 2, 3, 4],
            &no_cookie,
            &channel_data,
        ] {
            send(&other, SocketAddr::new(here, PORT), payload)?;
        }
        send(&other, SocketAddr::new(here, PORT + 7), &stun(1, 8))?;
        let last = stun(1, 24);
        send(&other, SocketAddr::new(here, PORT), &last)?;
        let arrived = receive(&shared, 1)?;
        assert_eq!(arrived.len(), 1, "{family}");
        assert_eq!(arrived[0].3, last);
        assert_eq!(
            shared.counters().receive_malformed,
            0,
            "the kernel drops it"
        );
    }
    Ok(())
}

#[test]
fn errors_are_those_of_the_port_and_what_is_too_large_is_said() -> Result<()> {
    let pair = Pair::build()?;
    for family in [Family::V4, Family::V6] {
        let shared = pair.shared(0, family)?;
        let there = pair.address(1, family)?;
        let (closed, also_closed) = (SocketAddr::new(there, 9), SocketAddr::new(there, 10));
        let another = plain(pair.ns(0), SocketAddr::new(pair.address(0, family)?, 0))?;
        send(&another, also_closed, b"to nobody")?;
        let found = wait_for(ARRIVAL, || Ok(another.next_error()))?;
        assert_eq!(found.map(|e| e.kind), Some(PathErrorKind::Refused));
        assert_eq!(shared.next_error(), None, "{family}: another socket's");

        let to = |remote| Destination {
            remote,
            source: None,
        };
        shared
            .send(&to(closed), &stun(1, 8))
            .ok()
            .context("not sent")?;
        let found = wait_for(ARRIVAL, || Ok(shared.next_error()))?;
        let found = found.with_context(|| format!("{family}: no error of ours"))?;
        assert_eq!((found.remote, found.kind), (closed, PathErrorKind::Refused));
        assert_eq!(found.origin, ErrorOrigin::Icmp(Some(there)));

        // An error that waits does not fail what is sent next.
        send(&another, also_closed, b"to nobody")?;
        std::thread::sleep(SILENCE);
        let live = SocketAddr::new(there, PORT);
        assert_eq!(shared.send(&to(live), &stun(1, 8)), Ok(()));
        assert!(receive_within(&shared, Duration::ZERO)?.is_empty());

        let failure = shared.send(&to(live), &stun(1, OVERSIZE)).err();
        let kind = failure.map(|f| (f.kind, f.bytes));
        assert_eq!(kind, Some((SendFailureKind::TooLarge, OVERSIZE + 20)));
    }
    Ok(())
}

#[test]
fn a_port_that_cannot_be_shared_says_why() -> Result<()> {
    let pair = Pair::build()?;
    for family in [Family::V4, Family::V6] {
        let free = pair.ns(0).run(|| SharedPort::open(family, PORT + 1))?;
        assert!(matches!(free, Err(SharedPortError::NotHeld { port, .. }) if port == PORT + 1));
        let unprivileged = pair.ns(0).run(|| {
            drop_capability(CAP_NET_RAW)?;
            Ok::<_, io::Error>(SharedPort::open(family, PORT))
        })??;
        let Err(error @ SharedPortError::NoPermission { .. }) = unprivileged else {
            anyhow::bail!("{unprivileged:?}");
        };
        assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
    }
    let rules = "table inet t { chain c { type filter hook input priority 0; iif lo udp dport 51820 drop; }; }";
    pair.ends[0].run("nft", &[rules])?;
    for family in [Family::V4, Family::V6] {
        let walled = pair.ns(0).run(|| SharedPort::open(family, PORT))?;
        assert!(
            matches!(walled, Err(SharedPortError::SelfTest { .. })),
            "{walled:?}"
        );
    }
    Ok(())
}

/// On one LAN a run that a sender's kernel makes (UDP_SEGMENT) arrives as one, and a raw socket sees it so.
#[test]
fn a_run_of_stun_comes_as_single_messages() -> Result<()> {
    let mut home = HomeConfig::new("home-a", NatKind::Public);
    home.nodes = 2;
    home.ipv6 = Ipv6::Open;
    let lab = lab(LabConfig {
        homes: vec![home],
        servers: false,
        ..LabConfig::default()
    })?;
    let name = interface_name(0);
    let held = Interface::create(&lab, "home-a", Implementation::chosen()?, &name, PORT, &[])?;
    for family in [Family::V4, Family::V6] {
        let shared = held.ns().run(|| SharedPort::open(family, PORT))??;
        let remote = SocketAddr::new(address(&lab, "home-a", family)?, PORT);
        let sender = lab.node("home-a-2")?.ns();
        let other = plain(
            sender,
            SocketAddr::new(address(&lab, "home-a-2", family)?, 0),
        )?;
        let message = stun(1, 80);
        let failures = SendFailures::new();
        let mut out = Coalescer::new(&other, &failures);
        for _ in 0..20 {
            let to = Destination {
                remote,
                source: None,
            };
            out.push(to, None, &message);
        }
        drop(out);
        assert_eq!(other.counters().send_calls, 1, "sent as one run");
        let arrived = receive(&shared, 20)?;
        assert_eq!(arrived.len(), 20, "{family}");
        assert!(arrived.iter().all(|a| a.3 == message));
    }
    Ok(())
}

/// wireguard-go's sockets are named by interface alone, and a machine may run several tests.
fn interface_name(index: usize) -> String {
    const DIGITS: u32 = 10_000_000;
    format!("wg{}{index}", std::process::id() % DIGITS)
}

fn public_lab() -> Result<Lab> {
    let mut homes = LabConfig::of_kinds([NatKind::Public; 2]).homes;
    for home in &mut homes {
        home.ipv6 = Ipv6::Open;
    }
    lab(LabConfig {
        homes,
        servers: false,
        ..LabConfig::default()
    })
}

fn address(lab: &Lab, node: &str, family: Family) -> Result<IpAddr> {
    let mut addresses = lab.node(node)?.addresses().iter().copied();
    let found = addresses.find(|&ip| Family::of(SocketAddr::new(ip, 0)) == family);
    found.with_context(|| format!("{node} has no {family}"))
}

fn plain(ns: &NetNs, address: SocketAddr) -> Result<UdpSocket> {
    Ok(ns.run(|| UdpSocket::bind(address))??)
}

fn send(from: &UdpSocket, remote: SocketAddr, payload: &[u8]) -> Result<()> {
    let mut failures = SendFailures::new();
    let to = Destination {
        remote,
        source: None,
    };
    Coalescer::new(from, &failures).push(to, None, payload);
    ensure!(failures.drain().next().is_none(), "not sent to {remote}");
    Ok(())
}

fn plain_receive(socket: &UdpSocket) -> Result<(SocketAddr, Vec<u8>)> {
    let mut buffers = ReceiveBuffers::new();
    let found = wait_for(ARRIVAL, || {
        socket.receive(&mut buffers)?;
        let mut datagrams = buffers.datagrams();
        Ok(datagrams.next().map(|d| (d.remote, d.payload.to_vec())))
    })?;
    found.context("nothing came back")
}

type Arrived = (SocketAddr, Option<IpAddr>, u32, Vec<u8>);

/// Waits for so many datagrams, and then takes what else there is.
fn receive(shared: &SharedPort, count: usize) -> Result<Vec<Arrived>> {
    let mut arrived = Vec::new();
    let found = wait_for(ARRIVAL, || {
        arrived.extend(take(shared)?);
        Ok((arrived.len() >= count).then_some(()))
    })?;
    ensure!(found.is_some(), "{} of {count} came", arrived.len());
    arrived.extend(take(shared)?);
    Ok(arrived)
}

/// Whatever comes within a time.
fn receive_within(shared: &SharedPort, time: Duration) -> Result<Vec<Arrived>> {
    let until = Instant::now() + time;
    let mut arrived = take(shared)?;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        arrived.extend(take(shared)?);
    }
    Ok(arrived)
}

fn take(shared: &SharedPort) -> Result<Vec<Arrived>> {
    let mut buffers = ReceiveBuffers::new();
    shared.receive(&mut buffers)?;
    let datagrams = buffers.datagrams();
    Ok(datagrams
        .map(|d| (d.remote, d.local, d.ifindex, d.payload.to_vec()))
        .collect())
}

/// A STUN message (RFC 8489 §5) with this much behind its header.
fn stun(kind: u16, attributes: usize) -> Vec<u8> {
    let mut message = kind.to_be_bytes().to_vec();
    message.extend((attributes as u16).to_be_bytes());
    message.extend([0x21, 0x12, 0xa4, 0x42]);
    message.resize(20 + attributes, 0x5a);
    message
}
