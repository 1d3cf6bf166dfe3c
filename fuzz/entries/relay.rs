//! The TURN client against a server that says anything, some of it signed as only the server can.

use std::time::{Duration, Instant};

use stun_types::attribute::{
    AlternateServer, AttributeWrite, ErrorCode, Nonce, Realm, XorMappedAddress,
};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageType, MessageWrite,
    MessageWriteExt, MessageWriteVec,
};
use turn_types::attribute::{Data, Lifetime, XorPeerAddress, XorRelayedAddress};
use turn_types::message::DATA;
use wice::core::turn::{
    Allocation, AllocationConfig, AllocationState, Credentials, Family, MAX_CHANNELS,
    MAX_PERMISSIONS, channel_data_header,
};
use wice_signaling::protocol::RelayTransport;

use super::Fed;
use super::script::Script;
use super::world::world;

pub(super) const USER: &str = "1900000000:node";
pub(super) const PASSWORD: &str = "c2VjcmV0";
const REALM: &str = "relay.example";
/// Requests that answers may come to.
const MAX_ASKED: usize = 8;
/// Messages that one step may cause: one for every permission and channel, and a few.
const MAX_SENT: usize = MAX_PERMISSIONS + MAX_CHANNELS + 64;

pub(super) fn datagrams(data: &[u8]) -> Fed {
    run(data, RelayTransport::Udp)
}

pub(super) fn stream(data: &[u8]) -> Fed {
    run(data, RelayTransport::Tcp)
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // Challenged, granted, permission and channel granted, then data both ways.
    let start = [
        1, 7, 0, 0, 2, 7, 0, 200, 0, 1, 0, 0, 5, 0, 0, 0, 1, 6, 0, 0, 0, 1,
    ];
    let grants = [
        0, 5, 1, 2, 7, 0, 200, 0, 2, 7, 0, 200, 0, 3, 1, 0, 9, 7, 7, 7,
    ];
    let life = [&start[..], &grants.repeat(20)].concat();
    let rising: Vec<u8> = (0..=255).collect();
    vec![life, rising.repeat(4), [1, 3, 0, 0].repeat(30)]
}

struct Rig {
    client: Allocation,
    now: Instant,
    asked: Vec<Vec<u8>>,
    fed: Fed,
}

fn run(data: &[u8], transport: RelayTransport) -> Fed {
    let mut script = Script::new(data);
    let mut rig = Rig::new(transport, world().start);
    while let Some(step) = script.step() {
        rig.step(step % 12, &mut script);
        rig.check_bounds();
        let over = matches!(
            rig.client.state(),
            AllocationState::Failed | AllocationState::Closed
        );
        if over {
            let fed = rig.fed;
            rig = Rig::new(transport, rig.now);
            rig.fed = fed;
        }
    }
    rig.fed
}

impl Rig {
    fn new(transport: RelayTransport, now: Instant) -> Self {
        let config = AllocationConfig {
            transport,
            credentials: Credentials::new(USER, PASSWORD).unwrap(),
            family: Family::V4,
        };
        let mut rig = Self {
            client: Allocation::new(config, [7; 32]),
            now,
            asked: Vec::new(),
            fed: Fed::default(),
        };
        rig.client.handle_connected(now);
        rig.collect();
        rig
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        match step {
            0 => self.pass(script.time()),
            1 => self.answer(Answer::Challenge, script),
            2 => self.answer(Answer::Success, script),
            3 => self.answer(Answer::Refusal, script),
            4 => {
                let bytes = script.bytes(255);
                self.receive(bytes);
            }
            5 => self.client.permit(script.address().ip(), self.now),
            6 => self.client.bind_channel(script.address(), self.now),
            7 => {
                let mut frame = self.data(script);
                if script.flag() {
                    script.damage(&mut frame);
                }
                self.receive(&frame);
            }
            8 => {
                let to = script.address();
                let _ = self.client.send(to, script.bytes(40), self.now);
            }
            9 => self.client.unbind_channel(script.address()),
            10 => self.client.forget(script.address().ip()),
            _ => match script.below(16) {
                0 => self.client.close(self.now),
                1 => self
                    .client
                    .handle_closed(wice::core::turn::Failure::ConnectionClosed, self.now),
                2 => self.client.verify(self.now),
                // One frame in pieces.
                _ => {
                    let frame = self.data(script);
                    let (head, tail) = frame.split_at(script.below(frame.len()));
                    self.receive(head);
                    self.receive(tail);
                }
            },
        }
        self.collect();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..64 {
            let Some(at) = self.client.poll_timeout().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            self.client.handle_timeout(self.now);
            let next = self.client.poll_timeout();
            assert!(
                next.is_none_or(|next| next > self.now),
                "nothing is left due"
            );
            self.collect();
        }
        self.now = end;
        self.client.handle_timeout(end);
    }

    fn collect(&mut self) {
        let mut sent = 0;
        while let Some(transmit) = self.client.poll_transmit() {
            sent += 1;
            assert!(sent <= MAX_SENT, "too much at once");
            if transmit.data[0] < 0x40 {
                if self.asked.len() == MAX_ASKED {
                    self.asked.remove(0);
                }
                self.asked.push(transmit.data);
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let before = self.client.counters();
        let mut delivered = 0;
        if self.client.config().transport == RelayTransport::Udp {
            let received = self.client.handle_datagram(bytes, self.now);
            delivered += usize::from(received.is_some());
        } else {
            self.client
                .handle_stream(bytes, self.now, |_| delivered += 1);
        }
        let after = self.client.counters();
        let good =
            after.ignored == before.ignored && after.unauthenticated == before.unauthenticated;
        self.fed.count(delivered > 0 || good && bytes.len() >= 20);
    }

    /// Data of a peer: on a channel, or in an indication.
    fn data(&self, script: &mut Script<'_>) -> Vec<u8> {
        let peer = script.address();
        let payload = script.bytes(60);
        if script.flag() {
            let number = self
                .client
                .channel(peer)
                .unwrap_or(0x4000 + script.u16() % 3);
            let len = payload.len() as u16;
            let mut frame = [&channel_data_header(number, len), payload].concat();
            if self.client.config().transport != RelayTransport::Udp {
                frame.resize(frame.len().next_multiple_of(4), 0);
            }
            return frame;
        }
        let id = u128::from(script.byte()).into();
        let kind = MessageType::from_class_method(MessageClass::Indication, DATA);
        let mut writer = Message::builder(kind, id, MessageWriteVec::new());
        let (peer, data) = (XorPeerAddress::new(peer, id), Data::new(payload));
        let added = writer.add_attribute(&peer).and(writer.add_attribute(&data));
        added.expect("two attributes fit");
        writer.finish()
    }

    fn answer(&mut self, answer: Answer, script: &mut Script<'_>) {
        let choice = script.below(MAX_ASKED);
        let newest = self.asked.len().saturating_sub(1);
        let Some(request) = self.asked.get(newest.saturating_sub(choice)) else {
            return;
        };
        let bytes = respond(request, answer, script);
        self.receive(&bytes);
    }

    fn check_bounds(&mut self) {
        let events = std::iter::from_fn(|| self.client.poll_event()).count();
        assert!(events <= MAX_SENT, "{events} events");
        assert!(self.client.poll_transmit().is_none());
    }
}

#[derive(Clone, Copy)]
pub(super) enum Answer {
    Challenge,
    Success,
    Refusal,
}

/// A server's answer; one in eight is signed wrongly, one in eight damaged.
pub(super) fn respond(request: &[u8], answer: Answer, script: &mut Script<'_>) -> Vec<u8> {
    let Ok(request) = Message::from_bytes(request) else {
        return Vec::new();
    };
    let id = request.transaction_id();
    let twist = script.byte();
    let number = script.u16();
    let realm = Realm::new(REALM).unwrap();
    let nonce = Nonce::new(&format!("nonce-{}", number % 3)).unwrap();
    let codes = [
        401, 438, 300, 400, 403, 437, 441, 442, 443, 486, 500, 508, 699,
    ];
    let code = match answer {
        Answer::Challenge => [401, 438][usize::from(number) % 2],
        Answer::Success | Answer::Refusal => codes[usize::from(number) % codes.len()],
    };
    let error = ErrorCode::builder(code).build().unwrap();
    let address = script.address();
    let relayed = XorRelayedAddress::new(address, id);
    let mapped = XorMappedAddress::new(script.address(), id);
    let lifetime = Lifetime::new(u32::from(number) * 3);
    let alternate = AlternateServer::new(address);
    let (class, attributes): (_, Vec<&dyn AttributeWrite>) = match answer {
        Answer::Challenge => (MessageClass::Error, vec![&error, &realm, &nonce]),
        Answer::Success => (MessageClass::Success, vec![&relayed, &mapped, &lifetime]),
        Answer::Refusal => (MessageClass::Error, vec![&error, &alternate]),
    };
    let kind = MessageType::from_class_method(class, request.method());
    let mut writer = Message::builder(kind, id, MessageWriteVec::new());
    for attribute in attributes {
        writer.add_attribute(attribute).expect("they fit");
    }
    let signed = !matches!(answer, Answer::Challenge);
    if signed {
        let password = if twist & 7 == 7 { "wrong" } else { PASSWORD };
        let key = LongTermKeyCredentials::new(USER.into(), password.into(), REALM.into());
        let algorithm = match twist & 0x18 {
            0x18 => IntegrityAlgorithm::Sha256,
            _ => IntegrityAlgorithm::Sha1,
        };
        writer
            .add_message_integrity(&key.into(), algorithm)
            .expect("it fits");
    }
    let mut bytes = writer.finish();
    if twist & 0xe0 == 0xe0 {
        script.damage(&mut bytes);
    }
    bytes
}
