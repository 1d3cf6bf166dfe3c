use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};

use super::protocol::MAX_REQUEST;
use super::*;
use crate::report::{Counters, Nat, PingEvent, SCHEMA, Signaling, Status, Why};

/// More than any answer on a loaded machine takes.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Fake {
    stop: Notify,
}

fn status() -> Status {
    Status {
        schema: SCHEMA,
        version: "1".into(),
        interface: "wice0".into(),
        mode: "managed".into(),
        name: "lab-a".into(),
        key: "k".into(),
        addresses: Vec::new(),
        listen_port: 51821,
        mtu: 1392,
        mtu_warning: None,
        uptime_s: 1,
        nat: Nat {
            mapping: "unknown".into(),
            filtering: "unknown".into(),
            ipv6: false,
        },
        signaling: Signaling {
            url: "wss://s".into(),
            connected: true,
            since_s: 1,
            error: None,
            hint: None,
            refused: None,
        },
        port_mappings: Vec::new(),
        problem: None,
        relays: Vec::new(),
        candidates: Vec::new(),
        observations: Vec::new(),
        peers: Vec::new(),
        strangers: Vec::new(),
        counters: Counters::default(),
    }
}

impl Handler for Fake {
    async fn status(&self) -> Result<Status, ControlError> {
        Ok(status())
    }

    async fn probe(&self, probe: Probe) -> Result<(), ControlError> {
        match probe {
            Probe::Live => Ok(()),
            Probe::Ready => Err(ControlError::new(ErrorKind::Failed, "not yet")),
        }
    }

    async fn why(&self, peer: &str) -> Result<Why, ControlError> {
        let message = status().find(peer).unwrap_err();
        Err(ControlError::new(ErrorKind::NoSuchPeer, message))
    }

    async fn ping(
        &self,
        peer: &str,
        count: u32,
        events: mpsc::Sender<PingEvent>,
    ) -> Result<(), ControlError> {
        for sequence in 1..=count {
            let event = PingEvent::Lost {
                schema: SCHEMA,
                peer: peer.to_owned(),
                sequence,
                reason: "checking".into(),
                summary: "looking for paths".into(),
            };
            // The client is gone.
            if events.send(event).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn servers(&self) -> Result<Servers, ControlError> {
        Ok(Servers::default())
    }

    async fn down(&self) -> Result<(), ControlError> {
        self.stop.notify_one();
        Ok(())
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("wice-control-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("wice0.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A daemon that answers until it is told to stop.
fn start(path: &Path) -> tokio::task::JoinHandle<()> {
    let listener = ControlListener::bind(path).unwrap();
    let fake = Arc::new(Fake::default());
    tokio::spawn(async move {
        tokio::select! {
            () = serve(listener, Arc::clone(&fake)) => {}
            () = fake.stop.notified() => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    })
}

#[tokio::test]
async fn requests_are_answered_in_turn() {
    let folder = Folder::new();
    let _daemon = start(&folder.socket());
    let mode = std::fs::metadata(folder.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut client = Client::connect(&folder.socket()).await.unwrap();
    assert_eq!(
        client.call(&Request::Status).await.unwrap(),
        Reply::Status(Box::new(status()))
    );
    let why = Request::Why { peer: "x".into() };
    let error = client.call(&why).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused(e) if e.kind == ErrorKind::NoSuchPeer));
    assert!(
        error.to_string().starts_with("no peer is called x\n"),
        "{error}"
    );
    assert_eq!(
        client.call(&Request::Servers).await.unwrap(),
        Reply::Servers(Servers::default())
    );
}

#[tokio::test]
async fn a_ping_is_a_stream() {
    let folder = Folder::new();
    let _daemon = start(&folder.socket());
    let mut client = Client::connect(&folder.socket()).await.unwrap();
    let ping = |count| Request::Ping {
        peer: "lab-b".into(),
        count,
    };
    // More than the queue between handler and socket holds.
    client.send(&ping(100)).await.unwrap();
    for expected in 1..=100 {
        let reply = client.next(PATIENCE).await.unwrap();
        let Reply::Ping(PingEvent::Lost { sequence, .. }) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(sequence, expected);
    }
    assert_eq!(client.next(PATIENCE).await.unwrap(), Reply::Done);
    for count in [0, MAX_PINGS + 1] {
        assert!(client.call(&ping(count)).await.is_err());
    }
    // The same connection goes on.
    assert!(client.call(&Request::Status).await.is_ok());
}

#[tokio::test]
async fn malformed_and_oversized_requests_end_nothing_but_themselves() {
    let folder = Folder::new();
    let _daemon = start(&folder.socket());
    let mut stream = UnixStream::connect(folder.socket()).await.unwrap();
    for bad in [
        "{\n",
        "[]\n",
        "\n",
        "{\"request\":\"fly\"}\n",
        "\u{0}\n",
        "{\"request\":\"why\"}\n",
    ] {
        stream.write_all(bad.as_bytes()).await.unwrap();
        let mut reply = vec![0; 4096];
        let read = stream.read(&mut reply).await.unwrap();
        let reply: Reply = serde_json::from_slice(&reply[..read]).unwrap();
        assert!(
            matches!(&reply, Reply::Error(e) if e.kind == ErrorKind::BadRequest),
            "{bad:?}: {reply:?}"
        );
    }
    stream
        .write_all(&vec![b' '; 2 * MAX_REQUEST])
        .await
        .unwrap();
    let mut reply = String::new();
    // What was not read makes the end a reset.
    let _ = stream.read_to_string(&mut reply).await;
    assert!(reply.contains("at most 4096 bytes"), "{reply}");
    let mut client = Client::connect(&folder.socket()).await.unwrap();
    assert!(client.call(&Request::Status).await.is_ok());
}

#[tokio::test]
async fn clients_are_bounded() {
    let folder = Folder::new();
    let _daemon = start(&folder.socket());
    let mut clients = Vec::new();
    for _ in 0..16 {
        let mut client = Client::connect(&folder.socket()).await.unwrap();
        client.call(&Request::Status).await.unwrap();
        clients.push(client);
    }
    let mut one_more = Client::connect(&folder.socket()).await.unwrap();
    let error = one_more.call(&Request::Status).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused(e) if e.kind == ErrorKind::Busy),
        "{error:?}"
    );
    drop(clients.pop());
    // The daemon hears of the end a moment later.
    for _ in 0..100 {
        let mut client = Client::connect(&folder.socket()).await.unwrap();
        if client.call(&Request::Status).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the place was not given to another");
}

#[tokio::test]
async fn down_waits_for_the_end() {
    let folder = Folder::new();
    let daemon = start(&folder.socket());
    let client = Client::connect(&folder.socket()).await.unwrap();
    client.down().await.unwrap();
    daemon.await.unwrap();
    assert!(!folder.socket().exists(), "it removes its socket");
    let error = Client::connect(&folder.socket()).await.unwrap_err();
    assert!(
        error.to_string().starts_with("no wice daemon runs here"),
        "{error}"
    );
}

#[tokio::test]
async fn a_live_socket_is_respected_and_a_stale_one_replaced() {
    let folder = Folder::new();
    let daemon = start(&folder.socket());
    let error = ControlListener::bind(&folder.socket()).unwrap_err();
    assert!(matches!(&error, BindError::Running { interface, .. } if interface == "wice0"));
    assert!(error.to_string().contains("wice down --interface wice0"));
    daemon.abort();
    let _ = daemon.await;

    // As a killed daemon leaves it.
    drop(std::os::unix::net::UnixListener::bind(folder.socket()).unwrap());
    assert!(folder.socket().exists());
    let listener = ControlListener::bind(&folder.socket()).unwrap();
    // Another took the name meanwhile: its file is not ours to remove.
    std::fs::remove_file(folder.socket()).unwrap();
    std::fs::write(folder.socket(), "other").unwrap();
    drop(listener);
    assert!(folder.socket().exists());
    assert!(matches!(
        ControlListener::bind(&folder.socket()),
        Err(BindError::NotASocket(_))
    ));
}

#[tokio::test]
async fn a_probe_waits_a_moment_for_a_daemon_that_begins_and_tells_why_not() {
    let folder = Folder::new();
    let path = folder.socket();
    let error = probe(&path, Probe::Live).await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning(_)), "{error}");
    let asked = tokio::spawn({
        let path = path.clone();
        async move { probe(&path, Probe::Live).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _daemon = start(&path);
    asked.await.unwrap().unwrap();
    let error = probe(&path, Probe::Ready).await.unwrap_err();
    assert_eq!(error.to_string(), "not yet");
}

#[tokio::test]
async fn the_socket_is_found() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    let found = |wanted| find_socket(&folder.0, wanted, "wice0");
    assert_eq!(found(None).unwrap(), folder.socket());
    let of = |name: &str| folder.0.join(format!("{name}.sock"));
    let listen = |name: &str| std::os::unix::net::UnixListener::bind(of(name)).unwrap();
    drop(listen("wg7"));
    assert_eq!(found(None).unwrap(), of("wg7"), "the only one that ran");
    drop(listen("wg8"));
    assert_eq!(found(None).unwrap(), folder.socket(), "none runs");
    let wg8 = listen_again(&of("wg8"));
    assert_eq!(found(None).unwrap(), of("wg8"), "the only one that runs");
    // One is as good as the other, and the wrong one may be detached.
    let wice0 = listen("wice0");
    assert!(matches!(found(None), Err(ClientError::Several(names)) if names == ["wg8", "wice0"]));
    assert_eq!(found(Some("wg7")).unwrap(), of("wg7"));
    drop((wg8, wice0));
}

fn listen_again(path: &std::path::Path) -> std::os::unix::net::UnixListener {
    std::fs::remove_file(path).unwrap();
    std::os::unix::net::UnixListener::bind(path).unwrap()
}
