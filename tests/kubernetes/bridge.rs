//! `wice bridge` between a real `wice signal` and the API server of these tests: the programs, a machine outside, and the Nodes'
//! annotations.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use wice::signaling::kubernetes::state::{Source, decode_at, encode, encode_at};
use wice::signaling::{Event, Signaling, WebSocketBackend, WebSocketConfig};
use wice_signaling::protocol::{
    Advert, CHALLENGE_HEADER, NatBehavior, PrivateKey, PublicKey, RecordKind, SUBPROTOCOL,
    ServerFrame, Servers, Session, Token,
};

use super::api::Api;
use super::{ADVERT, KEY, SOON, advert, key, until, until_connected};

/// What nobody should hear is waited for so long: past the service's grace for who is lost, 5 s.
const NOT_HEARD: Duration = Duration::from_secs(7);

/// A program of its own process. Dropping it ends it.
struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for a line with all of this.
    async fn until_said(&mut self, words: &[&str]) {
        let said = async {
            while !self
                .log()
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
            {
                let ended = self.child.try_wait().unwrap();
                assert!(ended.is_none(), "{ended:?}: {}", self.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let said = tokio::time::timeout(SOON, said).await;
        assert!(said.is_ok(), "{words:?} was not said: {}", self.log());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A service, a network, and a folder for it all.
struct Outside {
    folder: PathBuf,
    token: Token,
    _service: Program,
}

impl Drop for Outside {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

fn wice(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wice"));
    command.args(arguments).env_clear();
    command
}

fn start(folder: &Path, name: &str, arguments: &[&str]) -> Program {
    let log = folder.join(format!("{name}.log"));
    let file = std::fs::File::create(&log).unwrap();
    let child = wice(arguments)
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    Program { child, log }
}

impl Outside {
    async fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("wice-bridge-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let address = {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        let state = folder.join("admin");
        let state = state.to_str().unwrap();
        let mut service = start(
            &folder,
            "signal",
            &["signal", "--listen", &address, "--state-dir", state],
        );
        service.until_said(&[&address]).await;
        let url = format!("wss://{address}");
        let run = |arguments: &[&str]| {
            let done = wice(&[arguments, &["--state-dir", state]].concat())
                .output()
                .unwrap();
            assert!(
                done.status.success(),
                "{}",
                String::from_utf8_lossy(&done.stderr)
            );
            String::from_utf8(done.stdout).unwrap()
        };
        run(&["network", "new", "lab", "--signal", &url]);
        let token = run(&["invite"]);
        std::fs::write(folder.join("token"), &token).unwrap();
        Self {
            token: token.parse().unwrap(),
            folder,
            _service: service,
        }
    }

    /// The bridge, with what it kept if it ran before.
    fn bridge(&self, api: &Api, more: &[&str]) -> Program {
        let path = |name: &str| self.folder.join(name).to_str().unwrap().to_owned();
        let (state, token) = (path("bridge"), path("token"));
        let config = path("none.toml");
        std::fs::write(&config, "").unwrap();
        let mut arguments = vec!["bridge", "--state-dir", &state, "--token-file", &token];
        let kubeconfig = api.kubeconfig.to_str().unwrap();
        arguments.extend(["--kubeconfig", kubeconfig, "--config", &config]);
        arguments.extend(more);
        let number = std::fs::read_dir(&self.folder).unwrap().count();
        start(&self.folder, &format!("bridge-{number}"), &arguments)
    }

    fn member(&self, key: &PrivateKey) -> Vec<u8> {
        let token = &self.token;
        token
            .invite
            .sign_member(&token.network, &key.public_key())
            .encode()
    }

    fn connect(&self, seed: u8) -> Signaling {
        let key = PrivateKey::from_bytes([seed; 32]);
        Signaling::start(WebSocketBackend::new(WebSocketConfig {
            url: self.token.url.clone(),
            pin: self.token.pin,
            network: self.token.network,
            membership: self.member(&key),
            key,
            receipt: None,
            proxy: None,
            ca_file: None,
            socket_hook: None,
        }))
    }

    /// An advert of a machine outside, which proves its membership.
    fn advert(&self, seed: u8, sequence: u64) -> Vec<u8> {
        let private = PrivateKey::from_bytes([seed; 32]);
        let advert = Advert {
            key: private.public_key(),
            session: Session([seed; 16]),
            sequence,
            name: format!("box{seed}"),
            nat: NatBehavior::default(),
            candidates: Vec::new(),
            membership: self.member(&private),
        };
        advert.encode_signed(&private, &[7; 64]).unwrap()
    }

    fn publish(&self, node: &Signaling, seed: u8, record: &[u8]) {
        let (token, kind) = (&self.token, RecordKind::Advert);
        let nonce = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let nonce = nonce.as_nanos().to_be_bytes()[4..].try_into().unwrap();
        let sealed = token
            .network_key
            .seal(&token.network, &key(seed), kind, &nonce, record);
        node.publish(kind, sealed.unwrap());
    }

    /// The next advert of this key, and how long its node has been away.
    async fn next_advert(&self, node: &mut Signaling, of: PublicKey) -> (Vec<u8>, Duration) {
        let event = until(
            node,
            |event| matches!(event, Event::Record { key, .. } if *key == of),
        );
        match event.await {
            Event::Record {
                sealed,
                kind,
                last_seen,
                ..
            } => {
                let token = &self.token;
                let opened = token.network_key.open(&token.network, &of, kind, &sealed);
                (opened.unwrap(), last_seen)
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn until_peer_says(api: &Api, peer: &str, wanted: Option<&str>) {
    let held = async {
        while api.peer_annotation(peer, ADVERT).as_deref() != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let held = tokio::time::timeout(SOON, held).await;
    assert!(held.is_ok(), "{:?}", api.peer_annotation(peer, ADVERT));
}

fn at_peer(record: &[u8]) -> String {
    encode_at(Source::Peers, record).unwrap()
}

#[tokio::test]
async fn a_machine_outside_and_the_clusters_nodes_hear_of_each_other() {
    let outside = Outside::new("both").await;
    let api = Api::start("bridge", "36").await;
    let node = |sequence| encode(&advert(1, sequence)).unwrap();
    api.annotate(
        "a",
        &[(KEY, Some(&key(1).to_string())), (ADVERT, Some(&node(1)))],
    );
    api.peer("box", &key(2).to_string());
    let mut machine = outside.connect(2);
    outside.publish(&machine, 2, &outside.advert(2, 1));
    until_connected(&mut machine).await;

    let mut bridge = outside.bridge(&api, &[]);
    bridge.until_said(&["event=signaling-connected"]).await;
    until_peer_says(&api, "box", Some(&at_peer(&outside.advert(2, 1)))).await;
    bridge.until_said(&["event=peer-written", "peer=box"]).await;
    let heard = outside.next_advert(&mut machine, key(1)).await;
    assert_eq!(heard, (advert(1, 1), Duration::ZERO));
    bridge.until_said(&["event=carrying", "nodes=1"]).await;
    // An agent reads it as it reads its own kind, membership and all.
    let value = api.peer_annotation("box", ADVERT).unwrap();
    assert_eq!(
        decode_at(Source::Peers, &value),
        Ok((key(2), outside.advert(2, 1)))
    );
    // Changes on either side.
    outside.publish(&machine, 2, &outside.advert(2, 2));
    until_peer_says(&api, "box", Some(&at_peer(&outside.advert(2, 2)))).await;
    api.annotate("a", &[(ADVERT, Some(&node(2)))]);
    assert_eq!(
        outside.next_advert(&mut machine, key(1)).await.0,
        advert(1, 2)
    );
    // A member that is nobody's Peer, and one that becomes it.
    let other = outside.connect(3);
    outside.publish(&other, 3, &outside.advert(3, 1));
    api.peer("late", &key(3).to_string());
    until_peer_says(&api, "late", Some(&at_peer(&outside.advert(3, 1)))).await;
    let patches = api.requests("PATCH");
    assert_eq!(patches.len(), 3, "one a change: {patches:?}");
    for patch in &patches {
        assert!(
            patch.contains("fieldManager=wice-bridge") && patch.contains("/peers/"),
            "{patch}"
        );
    }

    // It goes, and nothing of what it carried does.
    drop(bridge);
    let gone = |event: &Event| matches!(event, Event::Presence { key: of, .. } if *of == key(1));
    let told = tokio::time::timeout(NOT_HEARD, async {
        loop {
            let event = machine.next().await.unwrap();
            assert!(!gone(&event), "{event:?}");
        }
    });
    assert!(told.await.is_err());
    let mut newcomer = outside.connect(4);
    let heard = outside.next_advert(&mut newcomer, key(1)).await;
    assert_eq!(
        heard,
        (advert(1, 2), Duration::ZERO),
        "as connected as ever"
    );

    // It comes back: nothing is written twice, and nobody hears the same again.
    let mut bridge = outside.bridge(&api, &[]);
    bridge.until_said(&["event=carrying", "nodes=1"]).await;
    api.annotate("a", &[(ADVERT, Some(&node(3)))]);
    assert_eq!(
        outside.next_advert(&mut newcomer, key(1)).await.0,
        advert(1, 3)
    );
    assert_eq!(api.requests("PATCH").len(), 3);
    assert!(!bridge.log().contains("peer-written"), "{}", bridge.log());

    // Out: the annotation goes, and stays away.
    let folder = outside.folder.join("admin");
    let revoked = wice(&[
        "revoke",
        &key(2).to_string(),
        "--state-dir",
        folder.to_str().unwrap(),
    ])
    .output();
    let revoked = revoked.unwrap();
    assert!(
        revoked.status.success(),
        "{}",
        String::from_utf8_lossy(&revoked.stderr)
    );
    until_peer_says(&api, "box", None).await;
    bridge.until_said(&["event=peer-cleared", "peer=box"]).await;
    assert!(api.peer_annotation("late", ADVERT).is_some());
}

/// A service of before frames were carried: it answers the upgrade without a word of them, and ends at one that it gets. Gives how
/// many frames that it does not know came.
async fn old_service(listener: tokio::net::TcpListener) -> usize {
    let (stream, _) = listener.accept().await.unwrap();
    #[allow(clippy::result_large_err, reason = "the library's callback")]
    let upgrade = |_: &Request, mut response: Response| {
        let headers = response.headers_mut();
        let protocol = HeaderValue::from_static(SUBPROTOCOL);
        headers.insert("sec-websocket-protocol", protocol);
        let challenge = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        headers.insert(CHALLENGE_HEADER, HeaderValue::from_static(challenge));
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, upgrade)
        .await
        .unwrap();
    let welcome = ServerFrame::Welcome {
        receipt: None,
        revocations: None,
        servers: Servers::default(),
    };
    let welcome = Message::Binary(welcome.encode().into());
    socket.send(welcome).await.unwrap();
    let mut unknown = 0;
    let frames = async {
        while let Some(Ok(frame)) = socket.next().await {
            let Message::Binary(bytes) = frame else {
                continue;
            };
            unknown += usize::from(bytes[0] > 4);
        }
    };
    // Longer than the bridge looks before it carries.
    let _ = tokio::time::timeout(Duration::from_secs(4), frames).await;
    unknown
}

#[tokio::test]
async fn a_service_of_before_is_told_of_and_gets_nothing_that_it_does_not_know() {
    let outside = Outside::new("old").await;
    let api = Api::start("bridge-old", "36").await;
    let node = encode(&advert(1, 1)).unwrap();
    api.annotate(
        "a",
        &[(KEY, Some(&key(1).to_string())), (ADVERT, Some(&node))],
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let token = Token {
        url: url.parse().unwrap(),
        pin: None,
        ..outside.token.clone()
    };
    std::fs::write(outside.folder.join("token"), &*token.encode().unwrap()).unwrap();
    let service = tokio::spawn(old_service(listener));
    let mut bridge = outside.bridge(&api, &[]);
    bridge
        .until_said(&["event=service-too-old", "update wice signal"])
        .await;
    assert_eq!(service.await.unwrap(), 0);
    assert!(!bridge.log().contains("event=carrying"), "{}", bridge.log());
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let outside = Outside::new("wrong").await;
    let api = Api::start("bridge-wrong", "36").await;
    let theirs = encode(&advert(9, 1)).unwrap();
    api.annotate(
        "a",
        &[(KEY, Some(&key(1).to_string())), (ADVERT, Some(&theirs))],
    );
    let message = r#"peers.kilo.squat.ai is forbidden: User "x" cannot watch resource "peers""#;
    api.refuse(Some((403, message)));
    let mut bridge = outside.bridge(&api, &["--metrics", "127.0.0.1:0"]);
    bridge
        .until_said(&[
            "event=peers-not-watched",
            "cannot watch resource",
            "apply -k",
        ])
        .await;
    api.refuse(Some((
        404,
        "the server could not find the requested resource",
    )));
    bridge
        .until_said(&["event=peers-not-watched", "no Peer objects", "crds.yaml"])
        .await;
    api.refuse(None);
    bridge.until_said(&["event=api-answers"]).await;
    bridge
        .until_said(&["event=advert-unreadable", "node=a", "signed by"])
        .await;
    // A node that comes by itself is not carried for, and the bridge says so.
    let node = encode(&advert(1, 1)).unwrap();
    let mut own = outside.connect(1);
    until_connected(&mut own).await;
    api.annotate("a", &[(ADVERT, Some(&node))]);
    bridge
        .until_said(&["event=not-carried", "node=a", "reason=proven"])
        .await;
}
