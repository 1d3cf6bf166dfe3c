//! In-process WireGuard: two interfaces that talk, with anything mixed into what they say, and a
//! device that hands over anything.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::time::Instant;

use wice::wireguard::IpPrefix;
use wice::wireguard::inprocess::{
    Device, Egress, Offload, PeerConfig, PeerId, Tunnels, VNET_HEADER_LEN, Verdict,
};

use super::Fed;
use super::script::Script;
use super::world::world;

const MTU: usize = 1392;
const SECRETS: [[u8; 32]; 2] = [[11; 32], [12; 32]];
const ADDRESSES: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 0, 0, 2]];
/// Datagrams on their way; past them the oldest is lost.
const MAX_FLYING: usize = 32;

#[derive(Default)]
struct FakeDevice {
    inbox: VecDeque<Vec<u8>>,
    written: usize,
}

impl Device for FakeDevice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let packet = self.inbox.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        assert!(len > VNET_HEADER_LEN && len <= VNET_HEADER_LEN + 65_535);
        self.written += 1;
        Ok(())
    }

    fn offload(&self) -> Offload {
        Offload {
            tcp: true,
            udp: true,
        }
    }
}

#[derive(Default)]
struct Wire {
    datagrams: VecDeque<Vec<u8>>,
}

impl Wire {
    fn push(&mut self, datagram: &[u8]) {
        if self.datagrams.len() == MAX_FLYING {
            self.datagrams.pop_front();
        }
        self.datagrams.push_back(datagram.to_vec());
    }
}

impl Egress for Wire {
    fn send(&mut self, _: PeerId, segments: &[u8], segment_size: usize) {
        assert!(!segments.is_empty() && segment_size > 0);
        segments.chunks(segment_size).for_each(|d| self.push(d));
    }

    fn reply(&mut self, packet: &[u8]) {
        self.push(packet);
    }
}

struct Side {
    tunnels: Tunnels,
    device: FakeDevice,
    /// What it has sent.
    wire: Wire,
    peer: PeerId,
}

struct Rig {
    sides: [Side; 2],
    now: Instant,
    fed: Fed,
}

pub(super) fn tunnels(data: &[u8]) -> Fed {
    let mut script = Script::new(data);
    let mut rig = Rig::new();
    while let Some(step) = script.step() {
        rig.step(step, &mut script);
    }
    rig.fed
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let talk = [
        2, 1, 0, 0, 0, 1, 0, 0, 0, 0, 40, 0, 1, 7, 0, 0, 3, 1, 9, 8, 0, 0, 0,
    ];
    let rising: Vec<u8> = (0..=255).collect();
    vec![talk.repeat(20), rising.repeat(4), [4, 0, 0].repeat(100)]
}

/// The whole input is one packet of the device, header first; its destination is the peer's.
pub(super) fn gso(data: &[u8]) -> Fed {
    thread_local! {
        // Making one costs a hundred packets; nothing of a packet stays but the session's counter.
        static RIG: RefCell<Rig> = RefCell::new(Rig::new());
    }
    let mut packet = data.to_vec();
    aim(&mut packet, 1);
    RIG.with_borrow_mut(|rig| {
        let side = &mut rig.sides[0];
        let bad = |side: &Side| {
            let counters = side.tunnels.counters();
            counters.bad_from_device + counters.no_peer
        };
        let before = bad(side);
        side.device.inbox.push_back(packet);
        side.tunnels.handle_device(&mut side.device, &mut side.wire);
        side.wire.datagrams.clear();
        Fed::one(bad(side) == before)
    })
}

pub(super) fn gso_seeds() -> Vec<Vec<u8>> {
    let header = |kind: u8, headers: u16, size: u16, start: u16, offset: u16| {
        let words = [headers, size, start, offset]
            .map(u16::to_ne_bytes)
            .concat();
        [vec![1, kind], words].concat()
    };
    let v4 = |protocol: u8| {
        let mut ip = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, protocol, 0, 0];
        ip.extend(ADDRESSES[0].iter().chain(&ADDRESSES[1]));
        ip
    };
    let tcp = [
        vec![
            0x9c, 0x40, 1, 187, 0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
        ],
        vec![5; 900],
    ];
    let udp = [vec![0x13, 0x88, 0x17, 0x70, 0, 0, 0, 0], vec![6; 900]];
    let mut v6 = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
    v6.extend([0xfd; 32]);
    vec![
        [header(1, 40, 300, 20, 16), v4(6), tcp.concat()].concat(),
        [header(5, 28, 100, 20, 6), v4(17), udp.concat()].concat(),
        [header(4, 60, 250, 40, 16), v6, tcp.concat()].concat(),
        [header(0, 0, 0, 20, 16), v4(6), tcp.concat()].concat(),
    ]
}

impl Rig {
    fn new() -> Self {
        let now = world().start;
        let keys = SECRETS.map(|secret| Tunnels::new(secret, MTU, now).public_key());
        let side = |own: usize| {
            let mut tunnels = Tunnels::new(SECRETS[own], MTU, now);
            let host = |address: IpAddr| IpPrefix::host(address).unwrap();
            let v6: IpPrefix = "fd00::/8".parse().unwrap();
            let config = PeerConfig {
                public_key: keys[1 - own],
                preshared_key: None,
                allowed_ips: vec![host(ADDRESSES[1 - own].into()), v6],
                persistent_keepalive: None,
            };
            Side {
                peer: tunnels.add_peer(config).unwrap(),
                tunnels,
                device: FakeDevice::default(),
                wire: Wire::default(),
            }
        };
        let mut rig = Self {
            sides: [side(0), side(1)],
            now,
            fed: Fed::default(),
        };
        rig.handshake();
        rig
    }

    fn handshake(&mut self) {
        let side = &mut self.sides[0];
        side.tunnels
            .start_handshake(side.peer, self.now, &mut side.wire);
        for from in [0, 1, 0, 1] {
            self.deliver(from);
        }
        self.fed = Fed::default();
    }

    fn deliver(&mut self, from: usize) {
        while let Some(datagram) = self.sides[from].wire.datagrams.pop_front() {
            self.receive(1 - from, &datagram);
        }
    }

    fn receive(&mut self, to: usize, datagram: &[u8]) -> Verdict {
        let source = IpAddr::from([192, 0, 2, to as u8]);
        let side = &mut self.sides[to];
        let verdict = side.tunnels.handle_datagram(
            source,
            datagram,
            self.now,
            &mut side.device,
            &mut side.wire,
        );
        self.fed
            .count(matches!(verdict, Verdict::Authenticated { .. }));
        verdict
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        let at = usize::from(step >> 7);
        match step % 8 {
            0 | 1 => self.deliver(at),
            2 | 3 => {
                let mut packet = inner(script, at);
                if script.below(4) == 0 {
                    script.damage(&mut packet);
                }
                let side = &mut self.sides[at];
                side.device.inbox.push_back(packet);
                side.tunnels.handle_device(&mut side.device, &mut side.wire);
            }
            4 => {
                let kind = 1 + script.byte() % 4;
                let bytes = [&[kind, 0, 0, 0], script.bytes(200)].concat();
                let verdict = self.receive(at, &bytes);
                let authentic = matches!(verdict, Verdict::Authenticated { .. });
                assert!(!authentic, "nobody could have made this");
            }
            5 => {
                // Damaged, or a copy of itself.
                if let Some(mut datagram) = self.sides[at].wire.datagrams.pop_front() {
                    let whole = datagram.clone();
                    script.damage(&mut datagram);
                    let verdict = self.receive(1 - at, &datagram);
                    let authentic = matches!(verdict, Verdict::Authenticated { .. });
                    assert!(!authentic || datagram == whole, "damaged and taken");
                    self.receive(1 - at, &whole);
                    let again = self.receive(1 - at, &whole);
                    assert!(!matches!(again, Verdict::Authenticated { .. }), "replayed");
                }
            }
            6 => {
                self.now += script.time();
                for side in &mut self.sides {
                    side.tunnels.handle_timeout(self.now, &mut side.wire);
                }
            }
            _ => {
                let side = &mut self.sides[at];
                side.tunnels.flush(&mut side.device);
                if script.below(8) == 0 {
                    side.tunnels
                        .start_handshake(side.peer, self.now, &mut side.wire);
                }
            }
        }
    }
}

/// A packet of the device as TCP and UDP look, joined or not, towards the other side.
fn inner(script: &mut Script<'_>, at: usize) -> Vec<u8> {
    let seeds = gso_seeds();
    let mut packet = seeds[script.below(seeds.len())].clone();
    let len = usize::from(script.u16()) % packet.len();
    packet.truncate((VNET_HEADER_LEN + 40).max(len));
    packet[4..6].copy_from_slice(&(script.u16() % 400).to_ne_bytes());
    if script.flag() {
        // Alone, with a length that is right.
        packet[..VNET_HEADER_LEN].fill(0);
        let total = (packet.len() - VNET_HEADER_LEN) as u16;
        packet[12..14].copy_from_slice(&total.to_be_bytes());
    }
    if at == 1 {
        packet[22..26].copy_from_slice(&ADDRESSES[1]);
    }
    aim(&mut packet, 1 - at);
    packet
}

/// Gives an IPv4 packet the destination of a side, so that it is looked at further.
fn aim(packet: &mut [u8], side: usize) {
    if packet
        .get(VNET_HEADER_LEN)
        .is_some_and(|byte| byte >> 4 == 4)
        && let Some(destination) = packet.get_mut(26..30)
    {
        destination.copy_from_slice(&ADDRESSES[side]);
    }
}
