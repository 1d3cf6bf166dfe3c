//! Floods: what an attacker can make a node remember, and what each packet costs it. Memory is
//! asserted; time is printed, since it says more of the machine than of the node.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use wice::core::stun::{TransactionId, encode_success, integrity_key};
use wice_signaling::protocol::{MAX_ADVERT_LEN, Session};

use crate::memory;
use crate::victim::{FIRST, Victim, check};

/// Packets of each flood.
const PACKETS: u32 = 100_000;
/// Half a flood fills what is bounded; the other half may add this: maps of fixed size rearrange
/// themselves.
const SLACK: i64 = 16 << 10;
/// What a flood may fill altogether: the budget's 4,096 addresses, an agent's pairs.
const MOST: i64 = 512 << 10;
/// 100,000 packets a second.
const GAP: Duration = Duration::from_micros(10);

/// Sends a flood from ever new addresses, and lets the node live meanwhile.
fn flood(name: &str, victim: &mut Victim, mut packet: impl FnMut(&Victim, u32) -> Vec<u8>) {
    victim.drain();
    let start = memory::live();
    let mut spent = Duration::ZERO;
    let mut middle = start;
    for n in 0..PACKETS {
        let datagram = packet(victim, n);
        let arrival = Victim::arrival(from(n));
        let before = cpu_time();
        victim.node.handle_datagram(arrival, &datagram, victim.now);
        spent += cpu_time() - before;
        drop(datagram);
        victim.now += GAP;
        if n % 128 == 0 {
            victim.node.handle_timeout(victim.now);
        }
        victim.drain();
        if n == PACKETS / 2 {
            middle = memory::live();
        }
    }
    let (grown, after) = (memory::live() - start, memory::live() - middle);
    let each = spent.as_secs_f64() * 1e6 / f64::from(PACKETS);
    println!(
        "flood {name}: {each:.2} us each, {grown} bytes more, {after} of them in the second half"
    );
    assert!(after <= SLACK, "{name} grows: {after} bytes");
    assert!(grown <= MOST, "{name} fills {grown} bytes");
}

/// Of this thread: others have the processor too.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn from(n: u32) -> SocketAddr {
    // 198.18.0.0/15 is for such tests (RFC 2544).
    let address = Ipv4Addr::from_bits(0xc612_0000 | (n % 0x2_0000));
    SocketAddr::new(address.into(), 1024 + (n % 60_000) as u16)
}

/// Sends the same datagram from everywhere.
fn of(name: &str, datagram: &[u8], counted: fn(&Victim) -> u64) {
    let mut victim = Victim::new();
    flood(name, &mut victim, |_, _| datagram.to_vec());
    assert_eq!(victim.node.counters().checks_answered, 0);
    assert_eq!(counted(&victim), u64::from(PACKETS), "all are counted");
}

#[test]
fn malformed_stun() {
    let victim = Victim::new();
    let mut datagram = victim.check(&victim.peer, FIRST, 1);
    *datagram.last_mut().unwrap() ^= 1;
    of("malformed STUN", &datagram, |v| v.node.counters().malformed);
}

#[test]
fn strangers() {
    let datagram = check(1, "somebody:else", "password");
    of("strangers", &datagram, |v| v.node.counters().strangers);
}

#[test]
fn wrong_integrity() {
    let victim = Victim::new();
    let (own, peer) = victim.credentials(&victim.peer, FIRST);
    let username = format!("{}:{}", own.ufrag, peer.ufrag);
    let datagram = check(1, &username, "guess");
    of("wrong integrity", &datagram, |v| {
        v.node.counters().unauthentic
    });
}

#[test]
fn answers_to_nothing() {
    let key = integrity_key("guess");
    let mapped = "192.0.2.1:1".parse().unwrap();
    let datagram = encode_success(TransactionId::from(9), mapped, &key);
    of("answers to nothing", &datagram, |v| {
        v.node.counters().strangers
    });
}

/// As many attributes as fit into what is looked at, and into a datagram; none is of use.
#[test]
fn empty_attributes() {
    for (len, counted) in [
        (
            1500,
            (|v| v.node.counters().strangers) as fn(&Victim) -> u64,
        ),
        (65_000, |v| v.node.counters().malformed),
    ] {
        let attributes = (len - 20) / 4;
        let mut datagram = check(1, "somebody:else", "password");
        datagram.truncate(20);
        datagram[2..4].copy_from_slice(&(attributes as u16 * 4).to_be_bytes());
        datagram.extend([0x80, 0x99, 0, 0].repeat(attributes));
        of(&format!("{attributes} attributes"), &datagram, counted);
    }
}

/// Sessions that a known peer might have started: each would cost a derivation.
#[test]
fn sessions_that_do_not_exist() {
    let mut victim = Victim::new();
    let (own, _) = victim.credentials(&victim.peer, FIRST);
    flood("sessions that do not exist", &mut victim, |victim, n| {
        let session = Session(u128::from(n).to_be_bytes());
        let end = wice::core::credentials::End {
            key: victim.peer.public_key(),
            session,
        };
        let username = format!("{}:{}", own.ufrag, end.ufrag());
        check(u128::from(n), &username, "guess")
    });
    let counters = victim.node.counters();
    assert_eq!(counters.checks_answered, 0);
    // One in 100 ms: ten for each second of the flood.
    assert!(counters.unauthentic <= 11, "{counters:?}");
}

/// A member that lies: authentic checks from everywhere.
#[test]
fn a_member_checks_from_everywhere() {
    let mut victim = Victim::new();
    let (own, peer) = victim.credentials(&victim.peer, FIRST);
    let username = format!("{}:{}", own.ufrag, peer.ufrag);
    flood("authentic checks from everywhere", &mut victim, |_, n| {
        check(u128::from(n), &username, &own.password)
    });
    let snapshot = victim.node.snapshot(victim.now);
    assert!(snapshot.peers[0].pairs.len() <= wice::core::timing::MAX_PAIRS);
}

#[test]
fn records() {
    let victim = Victim::new();
    let whole = victim.sealed(&victim.advert(&victim.peer, FIRST, 6), &victim.peer);
    let mut forged = whole.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut foreign = victim.advert(&victim.stranger, FIRST, 1);
    foreign.membership[40] ^= 1;
    let foreign = victim.sealed(&foreign, &victim.stranger);
    let oversized = vec![1; MAX_ADVERT_LEN + 1];
    let old = victim.sealed(&victim.advert(&victim.peer, FIRST, 4), &victim.peer);
    let all = [
        ("forged adverts", forged),
        ("adverts of another network", foreign),
        ("oversized adverts", oversized),
        ("replayed adverts", old),
    ];
    for (name, record) in all {
        let mut victim = Victim::new();
        let (start, rounds) = (memory::live(), 2000_u32);
        let before = cpu_time();
        for _ in 0..rounds {
            assert!(victim.take(&record).is_err());
        }
        let each = (cpu_time() - before).as_secs_f64() * 1e6 / f64::from(rounds);
        let grown = memory::live() - start;
        println!("flood of {name}: {each:.1} us each, {grown} bytes more");
        assert_eq!(victim.node.counters().adverts_refused, u64::from(rounds));
        assert_eq!(victim.drain(), 0);
        assert!(grown <= SLACK, "{name} grows: {grown}");
    }
}

/// A member that starts afresh without end: each session is another agent.
#[test]
fn a_member_with_ever_new_sessions() {
    let mut victim = Victim::new();
    let peer = victim.peer.clone();
    let mut half = 0;
    let rounds = 2000;
    for n in 1..=rounds {
        let session = Session(u128::from(n).to_be_bytes());
        let record = victim.sealed(&victim.advert(&peer, session, 5 + n), &peer);
        victim.take(&record).unwrap();
        victim.now += Duration::from_millis(10);
        victim.node.handle_timeout(victim.now);
        victim.drain();
        if n == rounds / 2 {
            half = memory::live();
        }
    }
    let grown = memory::live() - half;
    println!("a member with {rounds} sessions: {grown} bytes more in the second half");
    assert!(grown <= SLACK, "it grows: {grown}");
}
