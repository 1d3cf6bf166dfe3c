use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixListener;

use super::*;
use crate::wireguard::backend::AnyBackend;

const KEY: PublicKey = PublicKey([7; 32]);

fn reading(text: &str) -> Result<Answer, String> {
    let mut reader = Reader::default();
    match reader.take(text.as_bytes())? {
        true => Ok(reader.finish()),
        false => Err("not whole".into()),
    }
}

fn hex_of(byte: u8) -> String {
    hex::encode([byte; 32])
}

/// As wireguard-go 0.0.20220316 answers.
#[test]
fn an_interface_of_wireguard_go_is_read() {
    let text = format!(
        "private_key={}\nlisten_port=51820\nfwmark=7\npublic_key={}\npreshared_key={}\n\
         protocol_version=1\nendpoint=192.0.2.1:51820\nlast_handshake_time_sec=1700000000\n\
         last_handshake_time_nsec=5\ntx_bytes=20\nrx_bytes=10\npersistent_keepalive_interval=25\n\
         allowed_ip=10.0.0.1/32\nallowed_ip=fd00::/64\npublic_key={}\nlast_handshake_time_sec=0\n\
         last_handshake_time_nsec=0\nendpoint=[fe80::1%eth0]:9\nerrno=0\n\n",
        hex_of(8),
        hex_of(1),
        hex_of(0),
        hex_of(2)
    );
    let answer = reading(&text).unwrap();
    let device = answer.device;
    assert_eq!((device.listen_port, device.fwmark), (51820, 7));
    let private = device.private_key.unwrap();
    assert_eq!(device.public_key, Some(private.public_key()));
    let first = &device.peers[0];
    assert_eq!(first.endpoint, Some("192.0.2.1:51820".parse().unwrap()));
    assert_eq!(first.last_handshake, Some(Duration::new(1_700_000_000, 5)));
    assert_eq!(
        (first.rx_bytes, first.tx_bytes, first.keepalive),
        (10, 20, 25)
    );
    assert_eq!(first.allowed_ips.len(), 2);
    let second = &device.peers[1];
    assert_eq!(second.last_handshake, None);
    assert_eq!(second.endpoint, Some("[fe80::1]:9".parse().unwrap()));
    assert!(!answer.own_public_key);
}

#[test]
fn an_answer_may_come_byte_by_byte() {
    let text = format!("public_key={}\nrx_bytes=3\nerrno=0\n\n", hex_of(1));
    let mut reader = Reader::default();
    let whole: Vec<bool> = text
        .bytes()
        .map(|byte| reader.take(&[byte]).unwrap())
        .collect();
    assert_eq!(whole.iter().filter(|whole| **whole).count(), 1);
    assert!(whole.last().unwrap());
    assert_eq!(reader.finish().device.peers[0].rx_bytes, 3);
}

#[test]
fn what_is_not_the_protocol_is_refused() {
    let long = "x".repeat(300);
    let many: String = (0..4097u32)
        .map(|n| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            format!("public_key={}\n", hex::encode(key))
        })
        .collect();
    for (text, why) in [
        ("\n", "without errno"),
        ("hello\n", "without ="),
        ("private_key=abc\n", "private_key with a value"),
        ("errno=x\n", "errno with a value"),
        ("errno=-2147483648\n", "errno with a value"),
        ("listen_port=65536\n", "listen_port with a value"),
        (long.as_str(), "more than 256 bytes"),
        (many.as_str(), "more than 4096 peers"),
    ] {
        let error = reading(text).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains("abc"), "a secret is shown: {error}");
    }
    // Names from the future are passed over.
    assert_eq!(reading("colour=blue\nerrno=-22\n\n").unwrap().errno, 22);
}

/// A process that answers requests as `answer` says; what it was asked is kept.
struct Fake {
    path: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start(name: &str, answer: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        let folder = std::env::temp_dir().join(format!("wice-uapi-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.sock"));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = String::new();
                let mut lines = BufReader::new(&mut stream);
                while !request.ends_with("\n\n") {
                    if lines.read_line(&mut request).await.unwrap() == 0 {
                        break;
                    }
                }
                if request.is_empty() {
                    continue; // only looked whether somebody is there
                }
                kept.lock().unwrap().push(request.clone());
                match answer(&request) {
                    Some(text) => stream.write_all(text.as_bytes()).await.unwrap(),
                    None => std::future::pending().await,
                }
            }
        });
        Self { path, asked }
    }

    fn backend(&self) -> Uapi {
        Uapi::new("wg-fake", self.path.clone())
    }

    fn sets(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|request| request.starts_with("set=1"))
            .cloned()
            .collect()
    }
}

fn endpoint() -> SocketAddr {
    "127.3.2.1:51822".parse().unwrap()
}

#[tokio::test]
async fn an_endpoint_is_set_and_nothing_else() {
    let fake = Fake::start("good", |_| Some("errno=0\n\n".into()));
    fake.backend().set_endpoint(KEY, endpoint()).await.unwrap();
    let expected = format!(
        "set=1\npublic_key={}\nupdate_only=true\nendpoint=127.3.2.1:51822\n\n",
        hex_of(7)
    );
    assert_eq!(fake.sets(), [expected]);
}

/// boringtun up to 0.7 ends when an existing peer is set, whatever is set of it.
#[tokio::test]
async fn boringtun_is_never_asked_to_change_a_peer() {
    let fake = Fake::start("boringtun", |request| {
        Some(match request {
            "get=1\n\n" => format!(
                "own_public_key={}\npublic_key={}\nlast_handshake_time_sec=5\nerrno=0\n\n",
                hex_of(9),
                hex_of(7)
            ),
            _ if request.contains("update_only") => "errno=22\n\n".to_owned(),
            _ => panic!("boringtun would have ended: {request}"),
        })
    });
    let mut backend = fake.backend();
    for _ in 0..2 {
        let error = backend.set_endpoint(KEY, endpoint()).await.unwrap_err();
        assert!(matches!(error, BackendError::CannotUpdate(_)), "{error}");
    }
    // Ages are times, the same from read to read.
    let first = backend.device().await.unwrap();
    let second = backend.device().await.unwrap();
    assert_eq!(
        first.peers[0].last_handshake,
        second.peers[0].last_handshake
    );
    let age = first.peers[0].handshake_age().unwrap();
    assert!((3..8).contains(&age.as_secs()), "{age:?}");
    assert!(first.private_key.is_none());
    assert_eq!(first.public_key, Some(PublicKey([9; 32])));
}

/// An implementation without `update_only`, whose peer is removed between our look and our request.
#[tokio::test]
async fn a_peer_that_was_removed_stays_removed() {
    let looks = Mutex::new(0);
    let fake = Fake::start("old", move |request| {
        if request != "get=1\n\n" {
            let errno = if request.contains("update_only") {
                22
            } else {
                0
            };
            return Some(format!("errno={errno}\n\n"));
        }
        let mut looks = looks.lock().unwrap();
        *looks += 1;
        let allowed = if *looks == 1 {
            "allowed_ip=10.0.0.1/32\n"
        } else {
            ""
        };
        Some(format!("public_key={}\n{allowed}errno=0\n\n", hex_of(7)))
    });
    let error = fake
        .backend()
        .set_endpoint(KEY, endpoint())
        .await
        .unwrap_err();
    assert!(matches!(error, BackendError::NoSuchPeer(_)), "{error}");
    assert_eq!(fake.sets().last().unwrap(), &text::remove(KEY));
}

#[tokio::test]
async fn without_update_only_a_missing_peer_is_not_made() {
    let fake = Fake::start("without", |request| {
        let errno = if request.contains("update_only") {
            22
        } else {
            0
        };
        Some(format!("errno={errno}\n\n"))
    });
    let error = fake
        .backend()
        .set_endpoint(KEY, endpoint())
        .await
        .unwrap_err();
    assert!(matches!(error, BackendError::NoSuchPeer(_)), "{error}");
    assert_eq!(fake.sets().len(), 1, "{:?}", fake.sets());
}

#[tokio::test]
async fn a_socket_that_hangs_is_given_up() {
    let fake = Fake::start("hangs", |_| None);
    let error = fake.backend().device().await.unwrap_err();
    assert!(matches!(error, BackendError::Silent { .. }), "{error}");
}

#[tokio::test]
async fn a_socket_that_lies_is_told() {
    let lies: [(&str, String); 3] = [
        ("lies", "HTTP/1.1 400 Bad Request\n".into()),
        ("endless", "a=b\n".repeat(MAX_ANSWER / 4 + 1)),
        ("long", "a".repeat(1000)),
    ];
    for (name, answer) in lies {
        let fake = Fake::start(name, move |_| Some(answer.clone()));
        let error = fake.backend().device().await.unwrap_err();
        assert!(
            matches!(error, BackendError::Malformed { .. }),
            "{name}: {error}"
        );
    }
}

/// A killed process leaves its socket's file: the kernel is asked then.
#[tokio::test]
async fn a_socket_without_a_process_does_not_count() {
    let folder = std::env::temp_dir().join(format!("wice-uapi-dead-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("wice-none.sock");
    let _ = std::fs::remove_file(&path);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = AnyBackend::open_in("wice-none", &folder).await.unwrap_err();
    assert!(
        !matches!(
            error,
            BackendError::Malformed { .. } | BackendError::Silent { .. }
        ),
        "{error}"
    );
    std::fs::remove_dir_all(&folder).unwrap();
}
