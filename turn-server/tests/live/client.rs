//! A blocking client: enough to ask, and to move payloads.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use wice_turn::codec::{
    ChannelData, Class, Hash, Key, Message, TransactionId, Writer, attribute, channel_header,
    is_channel_data, method, stream_frame,
};
use wice_turn::server::Transport;

pub(crate) const USER: &str = "alice";
pub(crate) const PASSWORD: &str = "wonderland";
pub(crate) const REALM: &str = "example.org";
/// Longer than anything on loopback takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// When a client that may sends again over UDP, and how often.
const RESEND: Duration = Duration::from_secs(1);
const MAX_RESENT: u64 = 8;

enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

pub(crate) struct Client {
    link: Link,
    /// The socket that it moved away from, until the server knows: another client could get its port.
    left: Option<Link>,
    pub(crate) local: SocketAddr,
    partial: Vec<u8>,
    payloads: VecDeque<(SocketAddr, Vec<u8>)>,
    channels: Vec<(u16, SocketAddr)>,
    nonce: Vec<u8>,
    credentials: (String, String),
    next: u8,
    /// How often it sent again over UDP, where it may.
    pub(crate) resent: Option<u64>,
    last: Vec<u8>,
}

impl Client {
    fn open(transport: Transport, server: SocketAddr) -> (Link, SocketAddr) {
        let tcp = || {
            let stream = TcpStream::connect(server).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
            let local = stream.local_addr().unwrap();
            (stream, local)
        };
        let (link, local) = match transport {
            Transport::Udp => {
                let any = if server.is_ipv4() {
                    "127.0.0.1:0"
                } else {
                    "[::1]:0"
                };
                let socket = UdpSocket::bind(any).unwrap();
                socket.connect(server).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                let local = socket.local_addr().unwrap();
                (Link::Udp(socket), local)
            }
            Transport::Tcp => {
                let (stream, local) = tcp();
                (Link::Tcp(stream), local)
            }
            Transport::Tls => {
                let (stream, local) = tcp();
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let config = rustls::ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(Anyone))
                    .with_no_client_auth();
                let name = ServerName::try_from("relay.test").unwrap();
                let tls = ClientConnection::new(Arc::new(config), name).unwrap();
                (Link::Tls(Box::new(StreamOwned::new(tls, stream))), local)
            }
        };
        (link, local)
    }

    /// Allocates for TCP (RFC 6062): the relayed address, or the error code.
    pub(crate) fn allocate_tcp(
        &mut self,
        attributes: &[(u16, Vec<u8>)],
    ) -> Result<SocketAddr, u16> {
        let answer = self.ask(method::ALLOCATE, |writer| {
            writer.add(attribute::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
            for (kind, value) in attributes {
                writer.add(*kind, value);
            }
        })?;
        let message = Message::parse(&answer).unwrap();
        let told = message.get(attribute::XOR_RELAYED_ADDRESS).unwrap();
        Ok(message.xor_address(told).unwrap())
    }

    /// Connect: the name of the peer's connection, or the error code.
    pub(crate) fn connect_to(&mut self, peer: SocketAddr) -> Result<[u8; 4], u16> {
        let answer = self.ask(method::CONNECT, |writer| {
            writer.add_xor_address(attribute::XOR_PEER_ADDRESS, peer);
        })?;
        Ok(Message::parse(&answer)
            .unwrap()
            .word(attribute::CONNECTION_ID)
            .unwrap())
    }

    /// Waits for a ConnectionAttempt: who, and its name.
    pub(crate) fn attempt(&mut self) -> (SocketAddr, [u8; 4]) {
        loop {
            let frame = self.read();
            let message = Message::parse(&frame).unwrap();
            if (message.class(), message.method())
                == (Class::Indication, method::CONNECTION_ATTEMPT)
            {
                let peer = message.get(attribute::XOR_PEER_ADDRESS).unwrap();
                let peer = message.xor_address(peer).unwrap();
                return (peer, message.word(attribute::CONNECTION_ID).unwrap());
            }
        }
    }

    /// ConnectionBind: from then on [`Client::raw`] is the peer.
    pub(crate) fn bind_connection(&mut self, connection: [u8; 4]) -> Result<(), u16> {
        self.ask(method::CONNECTION_BIND, |writer| {
            writer.add(attribute::CONNECTION_ID, &connection);
        })
        .map(drop)
    }

    /// Bytes of a joined connection.
    pub(crate) fn raw_write(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }

    /// What comes next of them; empty at the end.
    pub(crate) fn raw_read(&mut self) -> Vec<u8> {
        if !self.partial.is_empty() {
            return std::mem::take(&mut self.partial);
        }
        let mut buffer = [0; 65_536];
        let len = match &mut self.link {
            Link::Udp(socket) => socket.recv(&mut buffer).unwrap(),
            Link::Tcp(stream) => stream.read(&mut buffer).unwrap(),
            Link::Tls(stream) => stream.read(&mut buffer).unwrap(),
        };
        buffer[..len].to_vec()
    }

    /// A raw stream for what needs both halves.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match &self.link {
            Link::Tcp(stream) => stream,
            Link::Udp(_) | Link::Tls(_) => panic!("not TCP"),
        }
    }

    /// A TCP connection that begins with `bytes`.
    pub(crate) fn connect_with(server: SocketAddr, bytes: &[u8]) -> Self {
        let mut client = Self::connect(Transport::Tcp, server);
        client.write(bytes);
        client
    }

    /// A TLS connection that begins with `bytes` before its handshake.
    pub(crate) fn connect_tls_with(server: SocketAddr, bytes: &[u8]) -> Self {
        let mut client = Self::connect(Transport::Tls, server);
        let Link::Tls(tls) = &mut client.link else {
            panic!("no TLS")
        };
        // Nothing has been said yet: the handshake comes with the first request.
        tls.sock.write_all(bytes).unwrap();
        client
    }

    /// Over UDP from an address of the caller's choice.
    pub(crate) fn connect_from(local: SocketAddr, server: SocketAddr) -> Self {
        let mut client = Self::connect(Transport::Udp, server);
        let socket = UdpSocket::bind(local).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        (client.link, client.local) = (Link::Udp(socket), local);
        client
    }

    /// From another address from now on: with what it knows, without having told anybody.
    pub(crate) fn move_away(&mut self, transport: Transport, server: SocketAddr) {
        let (link, local) = Self::open(transport, server);
        let old = std::mem::replace(&mut self.link, link);
        self.left = matches!(old, Link::Udp(_)).then_some(old);
        self.local = local;
        self.partial.clear();
    }

    /// Allocates with a ticket: the relayed address and the ticket (RFC 8016).
    pub(crate) fn allocate_movable(&mut self) -> (SocketAddr, Vec<u8>) {
        let answer = self.ask(method::ALLOCATE, |writer| {
            writer.add(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            writer.add(attribute::MOBILITY_TICKET, &[]);
        });
        let answer = answer.unwrap();
        let message = Message::parse(&answer).unwrap();
        let told = message.get(attribute::XOR_RELAYED_ADDRESS).unwrap();
        let ticket = message.get(attribute::MOBILITY_TICKET).unwrap().to_vec();
        (message.xor_address(told).unwrap(), ticket)
    }

    /// Shows a ticket: the next one, or the error code.
    pub(crate) fn show(&mut self, ticket: &[u8]) -> Result<Vec<u8>, u16> {
        let answer = self.ask(method::REFRESH, |writer| {
            writer.add(attribute::LIFETIME, &600u32.to_be_bytes());
            writer.add(attribute::MOBILITY_TICKET, ticket);
        })?;
        self.left = None;
        let message = Message::parse(&answer).unwrap();
        Ok(message.get(attribute::MOBILITY_TICKET).unwrap().to_vec())
    }
}

impl Client {
    pub(crate) fn connect(transport: Transport, server: SocketAddr) -> Self {
        let (link, local) = Self::open(transport, server);
        Self {
            link,
            left: None,
            local,
            partial: Vec::new(),
            payloads: VecDeque::new(),
            channels: Vec::new(),
            nonce: Vec::new(),
            credentials: (USER.into(), PASSWORD.into()),
            next: 0,
            resent: None,
            last: Vec::new(),
        }
    }

    pub(crate) fn login(&mut self, user: &str, password: &str) {
        self.credentials = (user.into(), password.into());
    }

    /// The server's certificate.
    pub(crate) fn certificate(&mut self) -> Vec<u8> {
        self.binding();
        let Link::Tls(tls) = &self.link else {
            panic!("no TLS")
        };
        tls.conn.peer_certificates().unwrap()[0].to_vec()
    }

    pub(crate) fn binding(&mut self) -> SocketAddr {
        let id = self.id();
        self.write(&Writer::new(Class::Request, method::BINDING, id).finish(None, true));
        let answer = self.answer(id);
        let message = Message::parse(&answer).unwrap();
        let told = message.get(attribute::XOR_MAPPED_ADDRESS).unwrap();
        message.xor_address(told).unwrap()
    }

    pub(crate) fn allocate(&mut self, attributes: &[(u16, Vec<u8>)]) -> SocketAddr {
        self.try_allocate(attributes).unwrap()
    }

    /// The relayed address, or the error code.
    pub(crate) fn try_allocate(
        &mut self,
        attributes: &[(u16, Vec<u8>)],
    ) -> Result<SocketAddr, u16> {
        let answer = self.ask(method::ALLOCATE, |writer| {
            writer.add(attribute::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            for (kind, value) in attributes {
                writer.add(*kind, value);
            }
        })?;
        let message = Message::parse(&answer).unwrap();
        let told = message.get(attribute::XOR_RELAYED_ADDRESS).unwrap();
        Ok(message.xor_address(told).unwrap())
    }

    pub(crate) fn refresh(&mut self, seconds: u32) {
        self.try_refresh(seconds).unwrap();
    }

    pub(crate) fn try_refresh(&mut self, seconds: u32) -> Result<(), u16> {
        self.ask(method::REFRESH, |writer| {
            writer.add(attribute::LIFETIME, &seconds.to_be_bytes());
        })
        .map(drop)
    }

    pub(crate) fn permit(&mut self, peer: SocketAddr) {
        self.ask(method::CREATE_PERMISSION, |writer| {
            writer.add_xor_address(attribute::XOR_PEER_ADDRESS, peer);
        })
        .unwrap();
    }

    pub(crate) fn bind(&mut self, number: u16, peer: SocketAddr) {
        let [high, low] = number.to_be_bytes();
        self.ask(method::CHANNEL_BIND, |writer| {
            writer.add(attribute::CHANNEL_NUMBER, &[high, low, 0, 0]);
            writer.add_xor_address(attribute::XOR_PEER_ADDRESS, peer);
        })
        .unwrap();
        self.channels.push((number, peer));
    }

    pub(crate) fn send_to(&mut self, peer: SocketAddr, payload: &[u8]) {
        let mut writer = Writer::new(Class::Indication, method::SEND, self.id());
        writer.add_xor_address(attribute::XOR_PEER_ADDRESS, peer);
        writer.add(attribute::DATA, payload);
        self.write(&writer.finish(None, false));
    }

    pub(crate) fn send_on(&mut self, number: u16, payload: &[u8]) {
        let mut frame = channel_header(number, payload.len()).unwrap().to_vec();
        frame.extend_from_slice(payload);
        if !matches!(self.link, Link::Udp(_)) {
            frame.resize(frame.len().next_multiple_of(4), 0);
        }
        self.write(&frame);
    }

    /// Payloads of one size in one system call.
    pub(crate) fn burst_on(&mut self, number: u16, payloads: &[Vec<u8>]) {
        let Link::Udp(socket) = &self.link else {
            panic!("not UDP")
        };
        let frames: Vec<u8> = payloads
            .iter()
            .flat_map(|p| [&channel_header(number, p.len()).unwrap()[..], p].concat())
            .collect();
        let size = i32::try_from(payloads[0].len() + 4).unwrap();
        let set = |size: i32| {
            use std::os::fd::AsRawFd as _;
            // SAFETY: the option's value is an int that lives for the call.
            let result = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_UDP,
                    libc::UDP_SEGMENT,
                    std::ptr::from_ref(&size).cast(),
                    4,
                )
            };
            assert_eq!(result, 0);
        };
        set(size);
        socket.send(&frames).unwrap();
        set(0);
    }

    /// The next payload and its peer.
    pub(crate) fn payload(&mut self) -> (SocketAddr, Vec<u8>) {
        loop {
            if let Some(payload) = self.payloads.pop_front() {
                return payload;
            }
            let frame = self.read();
            self.note(&frame);
        }
    }

    /// The same, if it comes in time; over UDP.
    pub(crate) fn payload_within(&mut self, time: Duration) -> Option<(SocketAddr, Vec<u8>)> {
        let Link::Udp(socket) = &self.link else {
            panic!("not UDP")
        };
        socket.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0; 2048];
        let got = socket.recv(&mut buffer);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        self.note(&buffer[..got.ok()?]);
        self.payloads.pop_front()
    }

    /// The answer to a signed request, or its error code.
    pub(crate) fn ask(&mut self, method: u16, add: impl Fn(&mut Writer)) -> Result<Vec<u8>, u16> {
        for _ in 0..3 {
            let id = self.id();
            let mut writer = Writer::new(Class::Request, method, id);
            add(&mut writer);
            let (user, password) = &self.credentials;
            let key = Key::md5(user, REALM, password);
            let mut seal = None;
            if !self.nonce.is_empty() {
                writer.add(attribute::USERNAME, user.as_bytes());
                writer.add(attribute::REALM, REALM.as_bytes());
                writer.add(attribute::NONCE, &self.nonce);
                seal = Some((&key, Hash::Sha1));
            }
            let bytes = writer.finish(seal, false);
            self.write(&bytes);
            let answer = self.answer(id);
            let message = Message::parse(&answer).unwrap();
            let Some(error) = message.get(attribute::ERROR_CODE) else {
                assert!(message.is_authentic(&key));
                return Ok(answer);
            };
            let code = u16::from(error[2]) * 100 + u16::from(error[3]);
            let challenge = message
                .get(attribute::NONCE)
                .filter(|_| code == 438 || self.nonce.is_empty());
            match challenge {
                Some(nonce) => self.nonce = nonce.to_vec(),
                None => return Err(code),
            }
        }
        panic!("challenged for ever");
    }

    fn answer(&mut self, id: TransactionId) -> Vec<u8> {
        loop {
            let frame = self.read();
            if !self.note(&frame) && Message::parse(&frame).unwrap().id() == id {
                return frame;
            }
        }
    }

    /// Keeps a payload; false for what is none.
    fn note(&mut self, frame: &[u8]) -> bool {
        if is_channel_data(frame) {
            let data = ChannelData::parse(frame).unwrap();
            let peer = self
                .channels
                .iter()
                .find(|(number, _)| *number == data.number);
            self.payloads
                .push_back((peer.unwrap().1, data.payload.to_vec()));
            return true;
        }
        let message = Message::parse(frame).unwrap();
        if message.class() != Class::Indication {
            return false;
        }
        let peer = message.xor_address(message.get(attribute::XOR_PEER_ADDRESS).unwrap());
        if let Some(data) = message.get(attribute::DATA) {
            self.payloads.push_back((peer.unwrap(), data.to_vec()));
        }
        true
    }

    fn write(&mut self, frame: &[u8]) {
        match &mut self.link {
            Link::Udp(socket) => {
                assert_eq!(socket.send(frame).unwrap(), frame.len());
                if self.resent.is_some() {
                    self.last = frame.to_vec();
                }
            }
            Link::Tcp(stream) => stream.write_all(frame).unwrap(),
            Link::Tls(stream) => {
                stream.write_all(frame).unwrap();
                stream.flush().unwrap();
            }
        }
    }

    fn read(&mut self) -> Vec<u8> {
        let mut buffer = [0; 65_536];
        loop {
            if let Ok(Some(len)) = stream_frame(&self.partial)
                && len <= self.partial.len()
            {
                let rest = self.partial.split_off(len);
                return std::mem::replace(&mut self.partial, rest);
            }
            let len = match &mut self.link {
                Link::Udp(socket) => {
                    if self.resent.is_some() {
                        socket.set_read_timeout(Some(RESEND)).unwrap();
                    }
                    let got = socket.recv(&mut buffer);
                    if let (Err(_), Some(resent @ 0..MAX_RESENT)) = (&got, &mut self.resent) {
                        *resent += 1;
                        socket.send(&self.last).unwrap();
                        continue;
                    }
                    return buffer[..got.expect("an answer in time")].to_vec();
                }
                Link::Tcp(stream) => stream.read(&mut buffer).expect("an answer in time"),
                Link::Tls(stream) => stream.read(&mut buffer).expect("an answer in time"),
            };
            assert_ne!(len, 0, "closed");
            self.partial.extend_from_slice(&buffer[..len]);
        }
    }

    fn id(&mut self) -> TransactionId {
        self.next = self.next.wrapping_add(1);
        TransactionId([self.next; 12])
    }
}

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
