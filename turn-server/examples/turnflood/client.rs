//! A TURN client, as little of one as a flood needs.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use wice_turn::codec::{Class, Hash, Key, Message, TransactionId, Writer, attribute, method};

pub(crate) struct Client {
    pub(crate) socket: UdpSocket,
    nonce: Vec<u8>,
    next: u32,
}

impl Client {
    pub(crate) fn open(server: SocketAddr) -> Self {
        // Not the relay's address: clients would take its relay ports.
        let socket = UdpSocket::bind("127.0.0.2:0").expect("a socket");
        socket.connect(server).expect("connected");
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .expect("set");
        Self {
            socket,
            nonce: Vec::new(),
            next: 0,
        }
    }

    fn request(&mut self, method: u16, add: impl Fn(&mut Writer)) {
        self.next += 1;
        let mut id = [1; 12];
        id[..4].copy_from_slice(&self.next.to_be_bytes());
        let mut writer = Writer::new(Class::Request, method, TransactionId(id));
        add(&mut writer);
        let key = Key::md5("alice", "example.org", "wonderland");
        let mut seal = None;
        if !self.nonce.is_empty() {
            writer.add(attribute::USERNAME, b"alice");
            writer.add(attribute::REALM, b"example.org");
            writer.add(attribute::NONCE, &self.nonce);
            seal = Some((&key, Hash::Sha1));
        }
        self.socket.send(&writer.finish(seal, false)).expect("sent");
    }

    /// `None` for the challenge.
    pub(crate) fn answer(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; 1500];
        let len = self.socket.recv(&mut buffer).expect("an answer");
        let message = Message::parse(&buffer[..len]).expect("STUN");
        match (
            message.get(attribute::ERROR_CODE),
            message.get(attribute::NONCE),
        ) {
            (None, _) => Some(buffer[..len].to_vec()),
            (Some(_), Some(nonce)) if self.nonce.is_empty() => {
                self.nonce = nonce.to_vec();
                None
            }
            (Some(code), _) => panic!("refused: {code:?}"),
        }
    }

    fn ask(&mut self, method: u16, add: impl Fn(&mut Writer)) -> Vec<u8> {
        loop {
            self.request(method, &add);
            if let Some(answer) = self.answer() {
                return answer;
            }
        }
    }

    pub(crate) fn request_allocation(&mut self) {
        self.request(method::ALLOCATE, |writer| {
            writer.add(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        });
    }

    pub(crate) fn allocate(server: SocketAddr) -> (Self, SocketAddr) {
        let mut client = Self::open(server);
        client.request_allocation();
        assert!(client.answer().is_none(), "a challenge");
        client.request_allocation();
        let answer = client.answer().expect("an allocation");
        let message = Message::parse(&answer).expect("STUN");
        let value = message
            .get(attribute::XOR_RELAYED_ADDRESS)
            .expect("a relayed address");
        let relayed = message.xor_address(value).expect("an address");
        (client, relayed)
    }

    pub(crate) fn bind(&mut self, peer: SocketAddr) {
        self.ask(method::CHANNEL_BIND, |writer| {
            writer.add(attribute::CHANNEL_NUMBER, &[0x40, 0, 0, 0]);
            writer.add_xor_address(attribute::XOR_PEER_ADDRESS, peer);
        });
    }
}
