//! A network, a service and its nodes for a test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wice::signaling::{Event, Signaling, WebSocketBackend, WebSocketConfig};
use wice_signaling::protocol::{
    AdminKey, Advert, Candidate, CandidateKind, Invite, NatBehavior, NetworkId, NetworkKey,
    PrivateKey, RecordKind, ServerPin, Servers, Session, SignalUrl,
};
use wice_signaling::server::{Config, Server, Transport};

/// For what takes milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(20);

pub struct Lab {
    pub admin: AdminKey,
    pub network: NetworkId,
    pub network_key: NetworkKey,
    pub invite: Invite,
    dir: PathBuf,
}

pub struct Running {
    pub address: SocketAddr,
    pub pin: Option<ServerPin>,
    plain: bool,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }

    pub fn url(&self) -> SignalUrl {
        let scheme = if self.plain { "ws" } else { "wss" };
        format!("{scheme}://127.0.0.1:{}", self.address.port())
            .parse()
            .unwrap()
    }
}

impl Lab {
    pub fn new(name: &str) -> Self {
        Self::expiring(name, 3600)
    }

    /// The invite expires in `seconds`.
    pub fn expiring(name: &str, seconds: u64) -> Self {
        let admin = AdminKey::from_seed(&[1; 32]);
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let invite = Invite::new(&admin, &[2; 32], now + seconds, "test", &[]).unwrap();
        let dir = std::env::temp_dir().join(format!("wice-test-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Self {
            network: admin.network_id(),
            network_key: NetworkKey::from_bytes([3; 32]),
            admin,
            invite,
            dir,
        }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.clone()
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new("[::]:0".parse().unwrap(), &self.dir);
        config.limits.publish_burst = 10_000;
        config.metrics_public = true;
        config
    }

    pub async fn serve(&self) -> Running {
        self.serve_with(self.config()).await
    }

    pub async fn serve_at(&self, listen: SocketAddr) -> Running {
        self.serve_with(Config {
            listen,
            ..self.config()
        })
        .await
    }

    pub async fn serve_with(&self, config: Config) -> Running {
        let plain = matches!(config.transport, Transport::Plain);
        let server = Server::bind(config).await.unwrap();
        let (address, pin) = (server.local_addr(), server.pin());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Running {
            address,
            pin,
            plain,
            stop,
            task,
        }
    }

    pub fn key(&self, n: u8) -> PrivateKey {
        PrivateKey::from_bytes([n; 32])
    }

    pub fn membership(&self, key: &PrivateKey) -> Vec<u8> {
        self.invite
            .sign_member(&self.network, &key.public_key())
            .encode()
    }

    pub fn client_config(&self, server: &Running, key: &PrivateKey) -> WebSocketConfig {
        WebSocketConfig {
            url: server.url(),
            pin: server.pin,
            network: self.network,
            key: key.clone(),
            membership: self.membership(key),
            receipt: None,
            proxy: None,
            ca_file: None,
            socket_hook: None,
        }
    }

    pub fn connect(&self, server: &Running, key: &PrivateKey) -> Signaling {
        Signaling::start(WebSocketBackend::new(self.client_config(server, key)))
    }

    pub fn sealed_advert(&self, key: &PrivateKey, sequence: u64) -> Vec<u8> {
        let advert = Advert {
            key: key.public_key(),
            session: Session([1; 16]),
            sequence,
            name: "node".to_owned(),
            nat: NatBehavior::default(),
            candidates: vec![Candidate {
                kind: CandidateKind::Host,
                address: "192.0.2.1:51821".parse().unwrap(),
                priority: 1,
                relay_transport: None,
            }],
            membership: self.membership(key),
        };
        let bytes = advert.encode_signed(key, &[4; 64]).unwrap();
        let nonce = [sequence as u8; 12];
        let kind = RecordKind::Advert;
        self.network_key
            .seal(&self.network, &key.public_key(), kind, &nonce, &bytes)
            .unwrap()
    }

    pub fn open_advert(&self, event: &Event) -> Advert {
        let Event::Record {
            key, kind, sealed, ..
        } = event
        else {
            panic!("{event:?}");
        };
        let bytes = self
            .network_key
            .open(&self.network, key, *kind, sealed)
            .unwrap();
        Advert::decode_verified(&bytes).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The next event that is `wanted`; others are skipped.
pub async fn until(node: &mut Signaling, wanted: impl Fn(&Event) -> bool) -> Event {
    let mut skipped = Vec::new();
    let found = timeout(SOON, async {
        loop {
            let event = node.next().await.unwrap();
            if wanted(&event) {
                return event;
            }
            skipped.push(event);
        }
    })
    .await;
    found.unwrap_or_else(|_| panic!("it did not come; instead: {skipped:?}"))
}

pub async fn until_connected(node: &mut Signaling) {
    until(node, |event| matches!(event, Event::Connected)).await;
}

pub async fn next_record(node: &mut Signaling) -> Event {
    until(node, |event| matches!(event, Event::Record { .. })).await
}

pub async fn next_servers(node: &mut Signaling) -> Servers {
    match until(node, |event| matches!(event, Event::Servers(_))).await {
        Event::Servers(servers) => servers,
        other => panic!("{other:?}"),
    }
}

/// Waits until the service keeps `count` records.
pub async fn until_records(server: &Running, count: usize) {
    raw::until_metric(server, &format!("wice_signal_records {count}")).await;
}

/// A client that does as it is told, not as it should.
pub mod raw {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
    use tokio_tungstenite::tungstenite::http::HeaderValue;
    use tokio_tungstenite::tungstenite::{Bytes, Message};
    use tokio_tungstenite::{WebSocketStream, client_async};
    use wice_signaling::protocol::{ErrorCode, PrivateKey, SUBPROTOCOL, ServerFrame};

    use super::{Lab, Running, SOON, timeout};

    pub trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
    impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

    pub struct Raw {
        pub socket: WebSocketStream<Box<dyn Io>>,
        pub challenge: [u8; 32],
    }

    async fn stream(server: &Running) -> Box<dyn Io> {
        let tcp = TcpStream::connect(("127.0.0.1", server.address.port()))
            .await
            .unwrap();
        if server.plain {
            return Box::new(tcp);
        }
        let name = "localhost".try_into().unwrap();
        Box::new(
            TlsConnector::from(trust_all::config())
                .connect(name, tcp)
                .await
                .unwrap(),
        )
    }

    pub async fn connect(server: &Running) -> Raw {
        use base64::Engine as _;
        let mut request = "ws://127.0.0.1/".into_client_request().unwrap();
        let protocol = HeaderValue::from_static(SUBPROTOCOL);
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
        let (socket, response) = client_async(request, stream(server).await).await.unwrap();
        let challenge = response.headers().get("wice-challenge").unwrap();
        let challenge = base64::engine::general_purpose::STANDARD
            .decode(challenge)
            .unwrap();
        Raw {
            socket,
            challenge: challenge.try_into().unwrap(),
        }
    }

    impl Raw {
        pub async fn send(&mut self, bytes: impl Into<Bytes>) {
            self.socket
                .send(Message::Binary(bytes.into()))
                .await
                .unwrap();
        }

        pub async fn hello(&mut self, lab: &Lab, key: &PrivateKey) {
            let membership = lab.membership(key);
            let hello = wice_signaling::protocol::Hello::sign(
                key,
                lab.network,
                membership,
                None,
                &self.challenge,
                &[6; 64],
            );
            self.send(wice_signaling::protocol::ClientFrame::Hello(hello).encode())
                .await;
        }

        /// The next frame; `None` at the end.
        pub async fn frame(&mut self) -> Option<ServerFrame> {
            loop {
                match timeout(SOON, self.socket.next()).await.unwrap() {
                    Some(Ok(Message::Binary(bytes))) => {
                        return Some(ServerFrame::decode(&bytes).unwrap());
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        }

        /// The error that must be the only answer.
        pub async fn refused(&mut self) -> ErrorCode {
            match self.frame().await {
                Some(ServerFrame::Error { code, .. }) => code,
                other => panic!("{other:?}"),
            }
        }
    }

    /// An HTTP answer, head and body.
    pub async fn get(server: &Running, path: &str) -> String {
        let mut stream = stream(server).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = timeout(SOON, stream.read_to_string(&mut answer))
            .await
            .unwrap();
        answer
    }

    pub async fn until_metric(server: &Running, line: &str) {
        let line = format!("\n{line}\n");
        let mut last = String::new();
        for _ in 0..200 {
            last = get(server, "/metrics").await;
            if last.contains(&line) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{line} not in {last}");
    }

    /// The raw client is not what is tested: it takes any certificate.
    mod trust_all {
        use std::sync::Arc;

        use rustls::client::danger::*;
        use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
        use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

        #[derive(Debug)]
        struct TrustAll;

        pub fn config() -> Arc<ClientConfig> {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider);
            let config = builder
                .with_safe_default_protocol_versions()
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(TrustAll))
                .with_no_client_auth();
            Arc::new(config)
        }

        impl ServerCertVerifier for TrustAll {
            fn verify_server_cert(
                &self,
                _: &CertificateDer<'_>,
                _: &[CertificateDer<'_>],
                _: &ServerName<'_>,
                _: &[u8],
                _: UnixTime,
            ) -> Result<ServerCertVerified, Error> {
                Ok(ServerCertVerified::assertion())
            }

            fn verify_tls12_signature(
                &self,
                _: &[u8],
                _: &CertificateDer<'_>,
                _: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, Error> {
                Ok(HandshakeSignatureValid::assertion())
            }

            fn verify_tls13_signature(
                &self,
                _: &[u8],
                _: &CertificateDer<'_>,
                _: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, Error> {
                Ok(HandshakeSignatureValid::assertion())
            }

            fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
                let provider = rustls::crypto::ring::default_provider();
                provider
                    .signature_verification_algorithms
                    .supported_schemes()
            }
        }
    }
}
