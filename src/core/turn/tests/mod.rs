//! The allocation against hand-made server messages, in virtual time.

mod errors;
mod fuzz;
mod life;
mod peers;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use stun_types::attribute::{
    AttributeWrite, ErrorCode, Nonce, PasswordAlgorithm, PasswordAlgorithms, Realm, Username,
    XorMappedAddress,
};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageType,
    MessageWriteVec, Method,
};
use stun_types::prelude::{MessageWrite, MessageWriteExt};
use turn_types::attribute::{Data, Lifetime, XorPeerAddress, XorRelayedAddress};
use turn_types::message::{ALLOCATE, DATA};
use wice_signaling::protocol::RelayTransport;

use super::*;

const USER: &str = "alice";
const PASSWORD: &str = "wonderland";
const REALM: &str = "example.org";
const RELAYED: ([u8; 4], u16) = ([198, 51, 100, 7], 50_000);
const MAPPED: ([u8; 4], u16) = ([203, 0, 113, 9], 4711);

fn ip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn peer(last: u8) -> SocketAddr {
    SocketAddr::new(ip(last), 51_821)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A client under test, its clock, and the server's part played by hand.
struct World {
    client: Allocation,
    now: Instant,
    nonce: String,
    password: &'static str,
    algorithm: IntegrityAlgorithm,
}

impl World {
    fn new(transport: RelayTransport) -> Self {
        let config = AllocationConfig {
            transport,
            credentials: Credentials::new(USER, PASSWORD).expect("valid"),
            family: Family::V4,
        };
        Self {
            client: Allocation::new(config, [7; 32]),
            now: Instant::now(),
            nonce: "nonce-1".to_owned(),
            password: PASSWORD,
            algorithm: IntegrityAlgorithm::Sha1,
        }
    }

    /// Connected and challenged; the signed Allocate is returned.
    fn challenged(transport: RelayTransport) -> (Self, Vec<u8>) {
        let mut world = Self::new(transport);
        world.client.handle_connected(world.now);
        let first = world.request(ALLOCATE);
        assert!(!has_integrity(&first));
        world.reply(&first, &world.challenge(&first, 401));
        let second = world.request(ALLOCATE);
        assert!(has_integrity(&second));
        (world, second)
    }

    fn allocated(transport: RelayTransport) -> Self {
        let (mut world, request) = Self::challenged(transport);
        world.grant(&request, 600);
        let event = AllocationEvent::Allocated {
            relayed: RELAYED.into(),
            mapped: Some(MAPPED.into()),
        };
        assert_eq!(world.events(), [event]);
        world
    }

    /// With a permission for `ip(1)` and a channel to `peer(1)`.
    fn with_channel(transport: RelayTransport) -> (Self, u16) {
        let mut world = Self::allocated(transport);
        world.client.bind_channel(peer(1), world.now);
        for request in world.advance(Duration::ZERO) {
            world.succeed(&request);
        }
        assert_eq!(world.events().len(), 2);
        let number = world.client.channel(peer(1)).expect("bound");
        (world, number)
    }

    fn grant(&mut self, request: &[u8], lifetime: u32) {
        let parsed = Message::from_bytes(request).expect("STUN");
        let id = parsed.transaction_id();
        let answer = self.success(
            request,
            &[
                &XorRelayedAddress::new(RELAYED.into(), id),
                &XorMappedAddress::new(MAPPED.into(), id),
                &Lifetime::new(lifetime),
            ],
        );
        self.reply(request, &answer);
    }

    /// Everything that is sent now.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.client.poll_transmit())
            .map(|transmit| transmit.data)
            .collect()
    }

    /// The one request that is sent now.
    fn request(&mut self, method: Method) -> Vec<u8> {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "one request is sent");
        let request = sent.remove(0);
        let message = Message::from_bytes(&request).expect("STUN");
        assert!(message.has_method(method), "{message}");
        assert!(message.has_class(MessageClass::Request));
        request
    }

    fn events(&mut self) -> Vec<AllocationEvent> {
        std::iter::from_fn(|| self.client.poll_event()).collect()
    }

    /// Lets time pass, doing what is due when it is due; returns all that was sent.
    fn advance(&mut self, time: Duration) -> Vec<Vec<u8>> {
        let end = self.now + time;
        let mut sent = self.sent();
        for _ in 0..10_000 {
            match self.client.poll_timeout() {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    self.client.handle_timeout(self.now);
                    sent.extend(self.sent());
                }
                Some(_) | None => {
                    self.now = end;
                    return sent;
                }
            }
        }
        panic!("poll_timeout never moves on");
    }

    fn receive(&mut self, data: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut out = Vec::new();
        if self.client.config().transport == RelayTransport::Udp {
            let received = self.client.handle_datagram(data, self.now);
            out.extend(received.map(|r| (r.peer, r.payload.to_vec())));
        } else {
            self.client.handle_stream(data, self.now, |r| {
                out.push((r.peer, r.payload.to_vec()));
            });
        }
        out
    }

    fn reply(&mut self, request: &[u8], answer: &[u8]) {
        assert_ne!(request, answer);
        assert!(self.receive(answer).is_empty());
    }

    /// An authentic success for any request; refreshes are granted 600 s.
    fn succeed(&mut self, request: &[u8]) {
        let answer = self.success(request, &[&Lifetime::new(600)]);
        self.reply(request, &answer);
    }

    fn success(&self, request: &[u8], attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
        self.answer(request, MessageClass::Success, attributes, true)
    }

    /// An authentic error response, delivered.
    fn refuse(&mut self, request: &[u8], code: u16) {
        let error = ErrorCode::builder(code).build().expect("a code");
        let answer = self.answer(request, MessageClass::Error, &[&error], true);
        self.reply(request, &answer);
    }

    /// A 401 or 438 with REALM and NONCE, without integrity.
    fn challenge(&self, request: &[u8], code: u16) -> Vec<u8> {
        let error = ErrorCode::builder(code).build().expect("a code");
        let realm = Realm::new(REALM).expect("short");
        let nonce = Nonce::new(&self.nonce).expect("short");
        self.answer(
            request,
            MessageClass::Error,
            &[&error, &realm, &nonce],
            false,
        )
    }

    fn answer(
        &self,
        request: &[u8],
        class: MessageClass,
        attributes: &[&dyn AttributeWrite],
        sign: bool,
    ) -> Vec<u8> {
        let request = Message::from_bytes(request).expect("STUN");
        let kind = MessageType::from_class_method(class, request.method());
        let mut writer = Message::builder(kind, request.transaction_id(), MessageWriteVec::new());
        for attribute in attributes {
            writer.add_attribute(*attribute).expect("fits");
        }
        if sign {
            let key = LongTermKeyCredentials::new(USER.into(), self.password.into(), REALM.into());
            let credentials = key.into();
            writer
                .add_message_integrity(&credentials, self.algorithm)
                .expect("fits");
        }
        writer.finish()
    }

    fn failed(&mut self) -> (Failure, Duration) {
        let events = self.events();
        let [
            AllocationEvent::Failed {
                failure,
                retry_after,
            },
        ] = events[..]
        else {
            panic!("not failed but {events:?}");
        };
        assert_eq!(self.client.state(), AllocationState::Failed);
        assert!(self.advance(seconds(3600)).is_empty(), "it goes on");
        (failure, retry_after)
    }

    fn lost(&mut self) -> (Failure, Duration) {
        let events = self.events();
        let [
            AllocationEvent::Lost {
                failure,
                retry_after,
            },
        ] = events[..]
        else {
            panic!("not lost but {events:?}");
        };
        assert_eq!(self.client.state(), AllocationState::Failed);
        assert!(self.advance(seconds(3600)).is_empty(), "it goes on");
        (failure, retry_after)
    }
}

fn has_integrity(request: &[u8]) -> bool {
    let message = Message::from_bytes(request).expect("STUN");
    let key = LongTermKeyCredentials::new(USER.into(), PASSWORD.into(), REALM.into());
    let valid = message.validate_integrity(&key.into()).is_ok();
    assert!(
        !valid
            || message
                .attribute::<Username>()
                .is_ok_and(|u| u.username() == USER)
    );
    valid
}

fn nonce_of(request: &[u8]) -> String {
    let message = Message::from_bytes(request).expect("STUN");
    let nonce = message.attribute::<Nonce>().expect("a nonce");
    nonce.nonce().to_owned()
}

fn peers_of(request: &[u8]) -> Vec<IpAddr> {
    let message = Message::from_bytes(request).expect("STUN");
    let id = message.transaction_id();
    (0..)
        .map_while(|n| message.nth_attribute::<XorPeerAddress>(n).ok())
        .map(|attribute| attribute.addr(id).ip())
        .collect()
}

fn method_of(request: &[u8]) -> Method {
    Message::from_bytes(request).expect("STUN").method()
}

fn data_indication(from: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let kind = MessageType::from_class_method(MessageClass::Indication, DATA);
    let id = 99.into();
    let mut writer = Message::builder(kind, id, MessageWriteVec::new());
    writer
        .add_attribute(&XorPeerAddress::new(from, id))
        .expect("fits");
    writer.add_attribute(&Data::new(payload)).expect("fits");
    writer.finish()
}
