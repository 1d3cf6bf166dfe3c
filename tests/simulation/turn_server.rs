//! A TURN server as small as RFC 8656 allows: long-term authentication with one challenge,
//! allocations, permissions by address, channels, Send and Data. It enforces what it grants.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use stun_types::attribute::{
    AttributeStaticType as _, AttributeWrite, ErrorCode, Nonce, Realm, XorMappedAddress,
};
use stun_types::message::{
    BINDING, IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, Message, MessageClass,
    MessageType, MessageWriteVec, Method,
};
use stun_types::prelude::{MessageWrite as _, MessageWriteExt as _};
use turn_types::attribute::{
    ChannelNumber, Data, Lifetime, RequestedAddressFamily, XorPeerAddress, XorRelayedAddress,
};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, DATA, REFRESH, SEND};

pub(crate) const USER: &str = "node";
pub(crate) const PASSWORD: &str = "relay-password";
const REALM: &str = "relay.example";
const NONCE: &str = "a-nonce";
const LIFETIME: u32 = 600;
const PERMISSION: Duration = Duration::from_secs(300);
const CHANNEL: Duration = Duration::from_secs(600);

/// The other end of the 5-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Client {
    /// Source address, and the server's address.
    Udp(SocketAddr, SocketAddr),
    Stream(usize),
}

pub(crate) enum Out {
    ToClient(Client, Vec<u8>),
    ToPeer {
        from: SocketAddr,
        to: SocketAddr,
        payload: Vec<u8>,
    },
}

struct Allocation {
    relayed: SocketAddr,
    expires: Instant,
    permissions: BTreeMap<IpAddr, Instant>,
    channels: BTreeMap<u16, (SocketAddr, Instant)>,
}

pub(crate) struct TurnServer {
    key: IntegrityKey,
    allocations: BTreeMap<Client, Allocation>,
    by_relayed: BTreeMap<SocketAddr, Client>,
    /// Where it relays from, one of each family that it has.
    addresses: Vec<IpAddr>,
    next_port: u16,
    /// Data that nobody had permitted.
    pub(crate) refused: u64,
}

impl TurnServer {
    pub(crate) fn new(addresses: &[IpAddr]) -> Self {
        let key = LongTermKeyCredentials::new(USER.into(), PASSWORD.into(), REALM.into())
            .make_key(IntegrityAlgorithm::Sha1);
        Self {
            key,
            allocations: BTreeMap::new(),
            by_relayed: BTreeMap::new(),
            addresses: addresses.to_vec(),
            next_port: 50_000,
            refused: 0,
        }
    }

    /// A whole message of a client, `seen` being where it comes from.
    pub(crate) fn handle(
        &mut self,
        client: Client,
        seen: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Vec<Out> {
        if bytes[0] & 0xC0 == 0x40 {
            return self.channel_data(client, bytes, now).into_iter().collect();
        }
        let Ok(message) = Message::from_bytes(bytes) else {
            return Vec::new();
        };
        if message.class() == MessageClass::Indication {
            return self.send(client, &message, now).into_iter().collect();
        }
        let answer = self.request(client, seen, &message, now);
        vec![Out::ToClient(client, answer)]
    }

    /// A datagram at a relayed address.
    pub(crate) fn handle_peer(
        &mut self,
        relayed: SocketAddr,
        from: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> Option<(Client, Vec<u8>)> {
        let client = *self.by_relayed.get(&relayed)?;
        let allocation = self.live(client, now)?;
        if !allocation.permits(from.ip(), now) {
            self.refused += 1;
            return None;
        }
        let bound = allocation
            .channels
            .iter()
            .find(|(_, (peer, until))| *peer == from && now < *until);
        if let Some((number, _)) = bound {
            return Some((client, frame(*number, payload, client)));
        }
        let kind = MessageType::from_class_method(MessageClass::Indication, DATA);
        let id = u128::from(self.refused + 1).into();
        let mut writer = Message::builder(kind, id, MessageWriteVec::new());
        writer
            .add_attribute(&XorPeerAddress::new(from, id))
            .unwrap();
        writer.add_attribute(&Data::new(payload)).unwrap();
        Some((client, writer.finish()))
    }

    /// Users have this password from now on; what is allocated stays.
    pub(crate) fn set_password(&mut self, password: &str) {
        self.key = LongTermKeyCredentials::new(USER.into(), password.into(), REALM.into())
            .make_key(IntegrityAlgorithm::Sha1);
    }

    /// All that it knew is gone.
    pub(crate) fn restart(&mut self) {
        self.allocations.clear();
        self.by_relayed.clear();
    }

    fn live(&mut self, client: Client, now: Instant) -> Option<&mut Allocation> {
        self.allocations
            .get_mut(&client)
            .filter(|allocation| now < allocation.expires)
    }

    fn channel_data(&mut self, client: Client, bytes: &[u8], now: Instant) -> Option<Out> {
        let number = u16::from_be_bytes([bytes[0], bytes[1]]);
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        let allocation = self.live(client, now)?;
        let (peer, until) = *allocation.channels.get(&number)?;
        if until <= now || !allocation.permits(peer.ip(), now) {
            return None;
        }
        Some(Out::ToPeer {
            from: allocation.relayed,
            to: peer,
            payload: bytes[4..4 + length].to_vec(),
        })
    }

    fn send(&mut self, client: Client, message: &Message<'_>, now: Instant) -> Option<Out> {
        if !message.has_method(SEND) {
            return None;
        }
        let peer = message.attribute::<XorPeerAddress>().ok()?;
        let peer = peer.addr(message.transaction_id());
        let data = message.raw_attribute(Data::TYPE)?.value.to_vec();
        let allocation = self.live(client, now)?;
        if !allocation.permits(peer.ip(), now) {
            self.refused += 1;
            return None;
        }
        Some(Out::ToPeer {
            from: allocation.relayed,
            to: peer,
            payload: data,
        })
    }

    fn request(
        &mut self,
        client: Client,
        seen: SocketAddr,
        message: &Message<'_>,
        now: Instant,
    ) -> Vec<u8> {
        let method = message.method();
        let id = message.transaction_id();
        if method == BINDING {
            return self.answer(message, &[&XorMappedAddress::new(seen, id)], false);
        }
        if message.validate_integrity_with_key(&self.key).is_err() {
            let error = ErrorCode::builder(401).build().unwrap();
            let (realm, nonce) = (Realm::new(REALM).unwrap(), Nonce::new(NONCE).unwrap());
            return self.refuse(message, &[&error, &realm, &nonce], false);
        }
        if method == ALLOCATE {
            let asks_v6 = message.has_attribute(RequestedAddressFamily::TYPE);
            let of_family = |ip: &&IpAddr| ip.is_ipv6() == asks_v6;
            let Some(address) = self.addresses.iter().find(of_family).copied() else {
                let error = ErrorCode::builder(440).build().unwrap();
                return self.refuse(message, &[&error], true);
            };
            let relayed = match self.live(client, now) {
                Some(allocation) => allocation.relayed,
                None => self.allocate(client, address, now),
            };
            let attributes: [&dyn AttributeWrite; 3] = [
                &XorRelayedAddress::new(relayed, id),
                &XorMappedAddress::new(seen, id),
                &Lifetime::new(LIFETIME),
            ];
            return self.answer(message, &attributes, true);
        }
        let Some(allocation) = self.live(client, now) else {
            let error = ErrorCode::builder(437).build().unwrap();
            return self.refuse(message, &[&error], true);
        };
        self::grant(allocation, method, message, now);
        if method == REFRESH {
            let wanted = message
                .attribute::<Lifetime>()
                .map_or(LIFETIME, |l| l.seconds());
            let lifetime = wanted.min(LIFETIME);
            return self.answer(message, &[&Lifetime::new(lifetime)], true);
        }
        self.answer(message, &[], true)
    }

    fn allocate(&mut self, client: Client, address: IpAddr, now: Instant) -> SocketAddr {
        let relayed = SocketAddr::new(address, self.next_port);
        self.next_port += 1;
        self.by_relayed.insert(relayed, client);
        let allocation = Allocation {
            relayed,
            expires: now + Duration::from_secs(LIFETIME.into()),
            permissions: BTreeMap::new(),
            channels: BTreeMap::new(),
        };
        self.allocations.insert(client, allocation);
        relayed
    }

    fn answer(
        &self,
        request: &Message<'_>,
        attributes: &[&dyn AttributeWrite],
        signed: bool,
    ) -> Vec<u8> {
        self.write(request, MessageClass::Success, attributes, signed)
    }

    fn refuse(
        &self,
        request: &Message<'_>,
        attributes: &[&dyn AttributeWrite],
        signed: bool,
    ) -> Vec<u8> {
        self.write(request, MessageClass::Error, attributes, signed)
    }

    fn write(
        &self,
        request: &Message<'_>,
        class: MessageClass,
        attributes: &[&dyn AttributeWrite],
        signed: bool,
    ) -> Vec<u8> {
        let kind = MessageType::from_class_method(class, request.method());
        let mut writer = Message::builder(kind, request.transaction_id(), MessageWriteVec::new());
        for attribute in attributes {
            writer.add_attribute(*attribute).unwrap();
        }
        if signed {
            writer
                .add_message_integrity_with_key(&self.key, IntegrityAlgorithm::Sha1)
                .unwrap();
        }
        writer.finish()
    }
}

impl Allocation {
    fn permits(&self, peer: IpAddr, now: Instant) -> bool {
        self.permissions
            .get(&peer)
            .is_some_and(|until| now < *until)
    }
}

/// A ChannelData message, padded on streams.
pub(crate) fn frame(number: u16, payload: &[u8], client: Client) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut frame = wice::core::turn::channel_data_header(number, length).to_vec();
    frame.extend_from_slice(payload);
    if matches!(client, Client::Stream(_)) {
        frame.resize(frame.len().next_multiple_of(4), 0);
    }
    frame
}

fn grant(allocation: &mut Allocation, method: Method, message: &Message<'_>, now: Instant) {
    let id = message.transaction_id();
    let peers = (0..)
        .map_while(|n| message.nth_attribute::<XorPeerAddress>(n).ok())
        .map(|peer| peer.addr(id));
    if method == CREATE_PERMISSION {
        for peer in peers {
            allocation.permissions.insert(peer.ip(), now + PERMISSION);
        }
    } else if method == CHANNEL_BIND {
        let number = message.attribute::<ChannelNumber>().unwrap().channel();
        for peer in peers {
            allocation.permissions.insert(peer.ip(), now + PERMISSION);
            allocation.channels.insert(number, (peer, now + CHANNEL));
        }
    } else if method == REFRESH {
        let wanted = message
            .attribute::<Lifetime>()
            .map_or(LIFETIME, |l| l.seconds());
        allocation.expires = now + Duration::from_secs(wanted.min(LIFETIME).into());
    }
}

/// What a STUN server answers.
pub(crate) fn binding_success(request: &[u8], seen: SocketAddr) -> Option<Vec<u8>> {
    let request = Message::from_bytes(request).ok()?;
    if request.class() != MessageClass::Request || !request.has_method(BINDING) {
        return None;
    }
    let id = request.transaction_id();
    let kind = MessageType::from_class_method(MessageClass::Success, BINDING);
    let mut writer = Message::builder(kind, id, MessageWriteVec::new());
    writer
        .add_attribute(&XorMappedAddress::new(seen, id))
        .unwrap();
    Some(writer.finish())
}
