//! The slots' dispatch: anything from WireGuard's side and from the network's, of peers that come
//! and go, two of which share a slot.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::OnceLock;
use std::time::Instant;

use wice::core::node::{Arrival, PeerId, RelayId};
use wice::core::slots::{Recipients, Slots, slot_of, spans};
use wice_signaling::protocol::PublicKey;

use super::Fed;
use super::script::Script;
use super::world::world;

const PEERS: usize = 4;
/// The longest datagram that is worth it.
const MAX_LEN: usize = 160;

/// Four keys of which the first two share a slot.
fn keys() -> &'static [PublicKey; PEERS] {
    static KEYS: OnceLock<[PublicKey; PEERS]> = OnceLock::new();
    KEYS.get_or_init(|| {
        let key = |number: u64| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            PublicKey(bytes)
        };
        let mut seen = BTreeMap::new();
        let (first, second) = (0..u64::MAX)
            .find_map(|n| seen.insert(slot_of(&key(n)), n).map(|before| (before, n)))
            .unwrap();
        [key(first), key(second), key(u64::MAX), key(u64::MAX - 1)]
    })
}

pub(super) fn slots(data: &[u8]) -> Fed {
    let mut script = Script::new(data);
    let (mut slots, mut now, mut fed) = (Slots::default(), world().start, Fed::default());
    for (number, key) in keys().iter().enumerate() {
        slots.add(PeerId(number as u32), key);
    }
    while let Some(step) = script.step() {
        let peer = PeerId(script.below(PEERS + 1) as u32);
        match step % 8 {
            0 => slots.remove(peer),
            1 => {
                if let Some(key) = keys().get(peer.0 as usize) {
                    slots.add(peer, key);
                }
            }
            2 => now += script.time(),
            3 => {
                let initiation = message(&mut script);
                slots.hold(peer, &initiation, now);
                fed.count(slots.take_held(peer, now).is_some());
            }
            4 => {
                let relay = RelayId(0);
                let from = script.address();
                slots.note_asked(peer, Arrival::Relay { relay, from }, now);
                assert!(slots.slot(peer).is_none() || slots.take_asked(peer, now).is_some());
            }
            5 => outbound(&mut slots, &mut script, peer, now, &mut fed),
            _ => {
                let known = script.flag().then_some(peer);
                let run = run(&mut script);
                for span in spans(&run, 1 + script.below(MAX_LEN)) {
                    let Some(message) = span.message else {
                        fed.count(false);
                        continue;
                    };
                    let sender = slots.sender(known, message, now);
                    fed.count(sender.is_ok());
                    if let Ok(sender) = sender {
                        assert_eq!(slots.slot(sender.peer), Some(sender.slot));
                    }
                }
            }
        }
    }
    fed
}

fn outbound(slots: &mut Slots, script: &mut Script<'_>, peer: PeerId, now: Instant, fed: &mut Fed) {
    let slot = slots.slot(peer).unwrap_or(Ipv4Addr::new(127, 1, 1, 1));
    let run = run(script);
    let mut seen = 0;
    for span in spans(&run, 1 + script.below(MAX_LEN)) {
        seen += span.bytes.len();
        let Some(message) = span.message else {
            fed.count(false);
            continue;
        };
        let to = slots.recipients(slot, message, span.bytes, now);
        fed.count(to.is_ok());
        let peers = match to {
            Ok(Recipients::One(peer)) => vec![peer],
            Ok(Recipients::All(peers)) => peers,
            Err(_) => continue,
        };
        assert!(!peers.is_empty() && peers.len() <= PEERS);
        for peer in peers {
            assert_eq!(slots.slot(peer), Some(slot));
        }
    }
    assert_eq!(seen, run.len());
}

/// Datagrams back to back, some of them messages.
fn run(script: &mut Script<'_>) -> Vec<u8> {
    (0..script.below(4)).flat_map(|_| message(script)).collect()
}

/// A message with indices that meet again, or anything.
fn message(script: &mut Script<'_>) -> Vec<u8> {
    let kind = script.byte() % 5;
    let len = match kind {
        1 => 148,
        2 => 92,
        3 => 64,
        4 => 32 + script.below(MAX_LEN - 32),
        _ => return script.bytes(MAX_LEN).to_vec(),
    };
    let mut bytes = vec![0; len];
    bytes[0] = kind;
    bytes[4] = script.byte() % 8;
    bytes[8] = script.byte() % 8;
    if script.flag() {
        script.damage(&mut bytes);
    }
    bytes
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let both_ways = [
        5, 0, 1, 1, 1, 1, 0, 147, 6, 0, 1, 1, 2, 2, 1, 0, 91, 5, 0, 2, 4, 9, 1, 0, 0,
    ];
    let rising: Vec<u8> = (0..=255).collect();
    vec![
        both_ways.repeat(20),
        rising.repeat(4),
        [5, 1, 3].repeat(100),
    ]
}
