//! The same generated sessions against coturn and against us: what each answers, and why where they differ.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use wice_turn::codec::{attribute, method};
use wice_turn::server::{Rate, Transport};

use crate::World;
use crate::client::{Client, PASSWORD, REALM, USER};

/// Sessions, and requests of each.
const SESSIONS: u64 = 1000;
const STEPS: u32 = 6;
/// How long coturn may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// One request. Values stand as they are sent.
#[derive(Clone, Debug)]
struct Step {
    method: u16,
    attributes: Vec<(u16, Vec<u8>)>,
    peers: Vec<SocketAddr>,
}

impl Step {
    fn random(rng: &mut ChaCha8Rng) -> Self {
        let mut pick = |n: u32| rng.next_u32() % n;
        let lifetimes = [0u32, 1, 600, 4000, u32::MAX];
        let families = [[1, 0, 0, 0], [2, 0, 0, 0], [9, 0, 0, 0]];
        let peers = [
            "127.0.0.1:9",
            "127.0.0.1:10",
            "[::1]:9",
            "224.0.0.1:9",
            "0.0.0.0:9",
        ];
        let mut step = Self {
            method: [
                method::ALLOCATE,
                method::ALLOCATE,
                method::REFRESH,
                method::CREATE_PERMISSION,
                method::CHANNEL_BIND,
                method::CHANNEL_BIND,
            ][pick(6) as usize],
            attributes: Vec::new(),
            peers: Vec::new(),
        };
        let mut add = |kind, value: &[u8]| step.attributes.push((kind, value.to_vec()));
        match step.method {
            method::ALLOCATE => {
                match pick(12) {
                    0 => {}
                    1 => add(attribute::REQUESTED_TRANSPORT, &[99, 0, 0, 0]),
                    _ => add(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
                }
                match pick(8) {
                    0 => add(attribute::EVEN_PORT, &[0]),
                    1 => add(attribute::EVEN_PORT, &[0x80]),
                    2 => add(attribute::RESERVATION_TOKEN, &[7; 8]),
                    3 => add(
                        attribute::REQUESTED_ADDRESS_FAMILY,
                        &families[pick(3) as usize],
                    ),
                    4 => add(0x7FFF, &[0; 4]),
                    _ => {}
                }
                if pick(3) == 0 {
                    add(
                        attribute::LIFETIME,
                        &lifetimes[pick(5) as usize].to_be_bytes(),
                    );
                }
            }
            method::REFRESH => {
                if pick(2) == 0 {
                    add(
                        attribute::LIFETIME,
                        &lifetimes[pick(5) as usize].to_be_bytes(),
                    );
                }
                if pick(4) == 0 {
                    add(
                        attribute::REQUESTED_ADDRESS_FAMILY,
                        &families[pick(3) as usize],
                    );
                }
            }
            method::CREATE_PERMISSION => {}
            _ => {
                let numbers = [0x3FFFu16, 0x4000, 0x4001, 0x4FFF, 0x5000, 0x7FFF];
                let [high, low] = numbers[pick(6) as usize].to_be_bytes();
                if pick(10) > 0 {
                    add(attribute::CHANNEL_NUMBER, &[high, low, 0, 0]);
                }
            }
        }
        if matches!(
            step.method,
            method::CREATE_PERMISSION | method::CHANNEL_BIND
        ) {
            let most = if step.method == method::CHANNEL_BIND {
                2
            } else {
                3
            };
            for _ in 0..pick(most + 1).min(most) {
                step.peers.push(peers[pick(5) as usize].parse().unwrap());
            }
        }
        step
    }

    /// 0, or the error code.
    fn ask(&self, client: &mut Client) -> u16 {
        let answer = client.ask(self.method, |writer| {
            for (kind, value) in &self.attributes {
                writer.add(*kind, value);
            }
            for peer in &self.peers {
                writer.add_xor_address(attribute::XOR_PEER_ADDRESS, *peer);
            }
        });
        answer.err().unwrap_or(0)
    }

    fn value(&self, kind: u16) -> Option<&[u8]> {
        let found = self.attributes.iter().find(|(k, _)| *k == kind);
        found.map(|(_, value)| &value[..])
    }
}

struct Coturn {
    child: Child,
    at: SocketAddr,
}

impl Coturn {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let folder = std::env::temp_dir();
        let file = |name: &str| {
            folder
                .join(format!("wice-coturn-{}-{name}", std::process::id()))
                .display()
                .to_string()
        };
        let child = Command::new("turnserver")
            .args([
                "-n",
                "--lt-cred-mech",
                "--no-cli",
                "--no-tls",
                "--no-dtls",
                "--allow-loopback-peers",
                "--simple-log",
            ])
            .arg(format!("--realm={REALM}"))
            .arg(format!("--user={USER}:{PASSWORD}"))
            .args([
                "--listening-ip=127.0.0.1",
                "--relay-ip=127.0.0.1",
                "--relay-ip=::1",
            ])
            .arg(format!("--listening-port={}", at.port()))
            .arg(format!("--pidfile={}", file("pid")))
            .arg(format!("--userdb={}", file("db")))
            .arg(format!("--log-file={}", file("log")))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run turnserver ({error}): apt install coturn"));
        let start = Instant::now();
        // It has the port once nobody else can.
        while UdpSocket::bind(at).is_ok() {
            assert!(start.elapsed() < PATIENCE, "coturn does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, at }
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why coturn's answer and ours may differ; `None` where they may not. `ended`: both have ended an allocation of this client;
/// `mixed`: both have bound a channel to one of several peers.
fn reason(
    step: &Step,
    (coturn, ours): (u16, u16),
    (ended, mixed): (bool, bool),
) -> Option<&'static str> {
    let is = |method: u16| step.method == method;
    let peer = |n: usize| step.peers.get(n).map(|peer| peer.ip());
    let number = step.value(attribute::CHANNEL_NUMBER);
    let beyond = number.is_some_and(|number| number[0] >= 0x50);
    let multicast = step.peers.iter().any(|peer| peer.ip().is_multicast());
    Some(match (coturn, ours) {
        (_, 420) if step.value(0x7FFF).is_some() => {
            "RFC 8489 §6.3.1: what is not understood comes before everything else"
        }
        (404, 508) if step.value(attribute::RESERVATION_TOKEN).is_some() => {
            "RFC 8656 §7.2: a token that is not known is 508"
        }
        (400, 442) => "RFC 8656 §7.2: a transport that is not offered is 442",
        (400.., 437) if !is(method::ALLOCATE) => {
            "RFC 8656 §5: without an allocation it is 437, whatever the attributes"
        }
        (_, _) if ended => {
            "RFC 8656 §8.2: a lifetime of zero deletes the allocation; coturn keeps it for a moment"
        }
        (_, 400) if is(method::CHANNEL_BIND) && number.is_none() => {
            "RFC 8656 §12.2: without a number it is a bad request, whatever the peer"
        }
        (400, 0) | (0, 400) if mixed => {
            "RFC 8489 §14: of duplicates the first counted, so that a channel has another peer"
        }
        (_, 400) if is(method::CHANNEL_BIND) && beyond => "RFC 8656 §12: channels end at 0x4FFF",
        (_, _) if is(method::CHANNEL_BIND) && peer(1).is_some_and(|last| Some(last) != peer(0)) => {
            "RFC 8489 §14: of duplicates the first counts; coturn takes the last"
        }
        (_, 403) if multicast => {
            "RFC 8656 §9.2: policy; multicast is no peer here, and is forbidden before the family is looked at"
        }
        (443, 403) => {
            "RFC 8656 §10.2: a peer that is forbidden and of the other family is one or the other"
        }
        (_, _) => return None,
    })
}

#[test]
fn a_thousand_sessions_are_answered_as_by_coturn_or_the_rfc_says_why_not() {
    let world = World::new(|settings| {
        settings.quotas.user = 0;
        settings.quotas.source = 0;
        settings.challenges = Rate {
            per_second: 0,
            burst: 0,
        };
    });
    let coturn = Coturn::start();
    let servers = [coturn.at, world.at(Transport::Udp, false)];
    let (mut same, mut differ) = (0, BTreeMap::<&str, u32>::new());
    let mut unexplained: BTreeMap<String, u32> = BTreeMap::new();
    // Kept open: coturn remembers a port for a moment that another session would get.
    let mut done = Vec::new();
    for seed in 0..SESSIONS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut clients = servers.map(|at| Client::connect(Transport::Udp, at));
        let (mut ended, mut mixed) = (false, false);
        let mut history = Vec::new();
        for number in 0..STEPS {
            let step = match number {
                // Most of what can be asked needs an allocation.
                0 if seed % 4 > 0 => Step {
                    method: method::ALLOCATE,
                    attributes: vec![(attribute::REQUESTED_TRANSPORT, vec![17, 0, 0, 0])],
                    peers: Vec::new(),
                },
                _ => Step::random(&mut rng),
            };
            let [theirs, ours] = clients.each_mut().map(|client| step.ask(client));
            history.push(format!("{theirs} {ours} {step:?}"));
            if theirs == ours {
                same += 1;
                mixed |= ours == 0 && step.method == method::CHANNEL_BIND && step.peers.len() > 1;
                ended |= ours == 0
                    && step.method == method::REFRESH
                    && step.value(attribute::LIFETIME) == Some(&[0; 4]);
                continue;
            }
            match reason(&step, (theirs, ours), (ended, mixed)) {
                Some(why) => *differ.entry(why).or_default() += 1,
                None => {
                    *unexplained.entry(history.join("\n")).or_default() += 1;
                }
            }
            if theirs == 0 || ours == 0 {
                // From here on they are in different states.
                break;
            }
        }
        for client in &mut clients {
            let end = Step {
                method: method::REFRESH,
                attributes: vec![(attribute::LIFETIME, vec![0; 4])],
                peers: Vec::new(),
            };
            end.ask(client);
        }
        done.push(clients);
    }
    println!("{same} requests alike; {differ:#?}");
    assert!(unexplained.is_empty(), "{unexplained:#?}");
    assert!(same > 1000, "{same} alike");
}
