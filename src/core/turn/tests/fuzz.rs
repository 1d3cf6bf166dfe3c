//! Hostile servers: whatever they send, nothing panics and nothing grows.

use super::*;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use turn_types::attribute::ChannelNumber;

const INPUTS: u32 = 1_000_000;

struct Fuzzer {
    rng: ChaCha20Rng,
    corpus: Vec<Vec<u8>>,
}

impl Fuzzer {
    fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha20Rng::seed_from_u64(seed),
            corpus: vec![
                data_indication(peer(1), &[7; 33]),
                vec![0x40, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0],
            ],
        }
    }

    fn below(&mut self, end: usize) -> usize {
        self.rng.next_u32() as usize % end.max(1)
    }

    /// Something of the corpus with a few bytes changed, cut, doubled or appended.
    fn input(&mut self) -> Vec<u8> {
        let n = self.below(self.corpus.len());
        let mut input = self.corpus[n].clone();
        for _ in 0..self.below(4) {
            let at = self.below(input.len());
            match self.below(7) {
                0 if !input.is_empty() => input[at] = self.rng.next_u32().to_le_bytes()[0],
                1 if !input.is_empty() => input[at] ^= 1 << self.below(8),
                2 => input.truncate(at),
                3 => input.extend_from_slice(&self.rng.next_u32().to_le_bytes()),
                4 if input.len() > 4 => {
                    let length = u16::try_from(self.below(65_536)).unwrap_or(0);
                    input[2..4].copy_from_slice(&length.to_be_bytes());
                }
                5 if input.len() > 4 => {
                    let length = u16::try_from(input.len().saturating_sub(20)).unwrap_or(0);
                    input[2..4].copy_from_slice(&length.to_be_bytes());
                }
                _ => {
                    let tail = input.split_off(at);
                    input.extend_from_slice(&tail);
                    input.extend_from_slice(&tail);
                    input.truncate(4096);
                }
            }
        }
        input
    }

    /// Answers of all kinds to an open request, some authentic.
    fn learn(&mut self, world: &World, request: &[u8]) {
        let message = Message::from_bytes(request).expect("STUN");
        let id = message.transaction_id();
        for code in [300, 401, 403, 437, 438, 486, 500, 508] {
            self.corpus.push(world.challenge(request, code));
        }
        for sign in [false, true] {
            self.corpus.push(world.answer(
                request,
                MessageClass::Success,
                &[
                    &XorRelayedAddress::new(RELAYED.into(), id),
                    &XorMappedAddress::new(MAPPED.into(), id),
                    &Lifetime::new(self.rng.next_u32() % 700),
                    &ChannelNumber::new(0x4000),
                ],
                sign,
            ));
            let error = ErrorCode::builder(508).build().expect("a code");
            let answer = world.answer(request, MessageClass::Error, &[&error], sign);
            self.corpus.push(answer);
        }
        let surplus = self.corpus.len().saturating_sub(60);
        self.corpus.drain(2..2 + surplus);
    }
}

fn run(transport: RelayTransport, seed: u64) {
    let mut fuzzer = Fuzzer::new(seed);
    let mut world = World::new(transport);
    let (mut states, mut delivered) = ([0_u32; 6], 0);
    for round in 0..INPUTS / 2 {
        let over = matches!(
            world.client.state(),
            AllocationState::Failed | AllocationState::Closed | AllocationState::Unconnected
        );
        if over {
            let now = world.now;
            world = if fuzzer.below(2) == 0 {
                World::allocated(transport)
            } else {
                World::new(transport)
            };
            world.now = world.now.max(now);
            world.client.handle_connected(world.now);
            world.client.permit(ip(1), world.now);
            world.client.bind_channel(peer(1), world.now);
        }
        let input = fuzzer.input();
        delivered += world.receive(&input).len();
        let pause = Duration::from_millis(fuzzer.below(300) as u64);
        for request in world.advance(pause) {
            if request[0] < 0x40 && Message::from_bytes(&request).is_ok() {
                fuzzer.learn(&world, &request);
            }
        }
        if round % 5000 == 0 {
            world.client.close(world.now);
        }
        assert!(world.events().len() < 100, "events grow");
        states[world.client.state() as usize] += 1;
    }
    assert!(states[1] > 1000 && states[2] > 1000, "{states:?}");
    // One bad byte ends a stream, so little gets through there.
    assert!(delivered > 50, "{delivered}");
}

#[test]
fn mutated_datagrams_never_panic() {
    run(RelayTransport::Udp, 1);
}

#[test]
fn mutated_streams_never_panic() {
    run(RelayTransport::Tcp, 2);
}
