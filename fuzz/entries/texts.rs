//! What people, proxies and programs on this machine write.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wice::config::{DaemonConfig, FileConfig, Overrides, Surroundings};
use wice::core::turn::url::RelayUrl;
use wice::daemon::control::Request;
use wice::io::http_proxy::{ProxyUrl, http_connect};
use wice_signaling::protocol::{
    Advert, MAX_SERVERS, ServerAddress, SignalUrl, servers_from_header, servers_to_header,
};

use super::Fed;

pub(super) fn signal_url(data: &[u8]) -> Fed {
    round_trip::<SignalUrl>(data)
}

pub(super) fn signal_url_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "wss://signal.example:8443",
        "ws://[2001:db8::1]:80/x",
        "wss://a",
    ];
    texts.map(|text| text.into()).to_vec()
}

pub(super) fn server_address(data: &[u8]) -> Fed {
    let text = String::from_utf8_lossy(data);
    if let Some(server) = ServerAddress::stun_at(&text, 3478) {
        assert_eq!(server.to_string().parse(), Ok(server));
    }
    round_trip::<ServerAddress>(data)
}

pub(super) fn server_address_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "stun:stun.example:3478",
        "turn:[2001:db8::1]:1?transport=tcp",
        "turns:relay.example",
        "turn:192.0.2.1?transport=udp",
    ];
    texts.map(|text| text.into()).to_vec()
}

pub(super) fn relay_url(data: &[u8]) -> Fed {
    round_trip::<RelayUrl>(data)
}

pub(super) fn relay_url_seeds() -> Vec<Vec<u8>> {
    server_address_seeds()
}

/// What is printed reads as the same.
fn round_trip<T>(data: &[u8]) -> Fed
where
    T: std::str::FromStr + std::fmt::Display + PartialEq + std::fmt::Debug,
{
    let Ok(parsed) = String::from_utf8_lossy(data).parse::<T>() else {
        return Fed::one(false);
    };
    assert_eq!(parsed.to_string().parse::<T>().ok(), Some(parsed));
    Fed::one(true)
}

pub(super) fn servers_header(data: &[u8]) -> Fed {
    let servers = servers_from_header(&String::from_utf8_lossy(data));
    assert!(servers.len() <= MAX_SERVERS);
    assert_eq!(servers_from_header(&servers_to_header(&servers)), servers);
    Fed::one(!servers.is_empty())
}

pub(super) fn servers_header_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "stun:a:1, turn:b?transport=tcp,turns:[2001:db8::1]:443",
        "stun:a,,x,stun:b",
    ];
    texts.map(|text| text.into()).to_vec()
}

pub(super) fn config(data: &[u8]) -> Fed {
    let text = String::from_utf8_lossy(data);
    let path = Path::new("wice.toml");
    let file = match FileConfig::parse(&text, path) {
        Ok(file) => file,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return Fed::one(false);
        }
    };
    // No file that an input names is opened.
    let named = file.token_file.is_some() || file.ca_file.is_some() || file.turn.is_some();
    let file = FileConfig {
        token_file: None,
        ca_file: None,
        turn: None,
        ..file
    };
    let resolved = DaemonConfig::resolve(Overrides::default(), file, Surroundings::default());
    let Ok(resolved) = resolved else {
        return Fed::one(named);
    };
    let name = resolved.settings.name.clone();
    assert!(
        Advert::takes_name(&name),
        "{name:?} is taken and cannot be published"
    );
    let printed = resolved.to_toml(wice::config::Mode::Managed);
    let again = FileConfig::parse(&printed, path).and_then(|file| {
        DaemonConfig::resolve(Overrides::default(), file, Surroundings::default())
    });
    assert_eq!(
        again
            .expect("what is printed is read")
            .to_toml(wice::config::Mode::Managed),
        without_proxy(&printed)
    );
    Fed::one(true)
}

/// A proxy is not printed: it may hold a password.
fn without_proxy(printed: &str) -> String {
    printed.replace("# proxy is set\n", "")
}

pub(super) fn config_seeds() -> Vec<Vec<u8>> {
    let full = r#"
token_file = "/etc/wice/token"
interface = "wice0"
name = "a"
state_dir = "/var/lib/wice"
run_dir = "/run/wice"
listen_port = 51821
mtu = 1392
stun = ["stun:a:1"]
accept_routes = ["10.0.0.0/8"]
advertise_routes = ["fd00::/48"]
proxy = "http://u:p@proxy:3128"
port_mapping = "off"
log_level = "info"
log_format = "json"
metrics = "127.0.0.1:9586"
[[turn]]
url = "turn:a"
username = "u"
password_file = "/dev/null"
"#;
    vec![
        full.into(),
        b"name = \"n\\u00e9\"\nmtu = 1280\n".to_vec(),
        b"stun = []\n[turn]\n".to_vec(),
        b"a.b = { c = [1, 2.5, 1979-05-27T07:32:00Z, '''x'''] }".to_vec(),
    ]
}

pub(super) fn control(data: &[u8]) -> Fed {
    let mut fed = Fed::default();
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let request = Request::parse(line);
        fed.count(request.is_ok());
        if let Ok(request) = request {
            let again = serde_json::to_vec(&request).unwrap();
            assert_eq!(Request::parse(&again).ok(), Some(request));
        }
    }
    fed
}

pub(super) fn control_seeds() -> Vec<Vec<u8>> {
    let lines = [
        "{\"request\":\"ping\",\"peer\":\"a\\u00e9\",\"count\":3}\n{\"request\":\"down\"}\n",
        "{\"request\":\"why\",\"peer\":\"100.91.2.3\"}\n",
        "{\"request\":\"status\"}",
        "[[[[[[[[[[{\"request\":[1e999,-0.0,null]}",
    ];
    lines.map(|line| line.into()).to_vec()
}

pub(super) fn proxy_answer(data: &[u8]) -> Fed {
    let mut fed = Fed::default();
    let proxy = "http://u:p@proxy:1".parse().unwrap();
    let host = "target".parse().unwrap();
    let mut stream = Answer(data);
    let opened = http_connect(&mut stream, &proxy, &host, 443).now_or_never();
    let opened = opened.expect("the stream is always ready").is_ok();
    if opened {
        assert!(data.ends_with(b"\r\n\r\n"), "bytes of the target are lost");
    }
    fed.count(opened);
    fed
}

pub(super) fn proxy_answer_seeds() -> Vec<Vec<u8>> {
    let answers = [
        "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        "HTTP/1.1 503 x\r\nContent-Length: 2\r\n\r\nab",
    ];
    answers.map(|answer| answer.into()).to_vec()
}

pub(super) fn proxy_url(data: &[u8]) -> Fed {
    let text = String::from_utf8_lossy(data);
    let mut fed = Fed::default();
    let url = text.parse::<ProxyUrl>();
    fed.count(url.is_ok());
    if let Ok(url) = url {
        assert!(!format!("{url:?}").contains(char::is_control));
    }
    fed
}

pub(super) fn proxy_url_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "http://user:p%40ss@proxy.example:3128/",
        "http://[2001:db8::1]",
        "HTTP://a:b@c@d:1",
    ];
    texts.map(|text| text.into()).to_vec()
}

/// A stream that says this and ends, and takes whatever it is told.
struct Answer<'a>(&'a [u8]);

impl AsyncRead for Answer<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (taken, rest) = self.0.split_at(buf.remaining().min(self.0.len()));
        buf.put_slice(taken);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Answer<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
