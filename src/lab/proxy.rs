//! An HTTP CONNECT proxy (RFC 9110 §9.3.6) for homes that let nothing else out. Like most of them
//! it connects to port 443 alone. For the lab only: it asks nobody who they are.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::error::{Doing as _, LabError};
use super::netns::NetNs;

/// The usual port of HTTP proxies.
pub const PROXY_PORT: u16 = 3128;

/// Where it connects to: what Squid comes with.
const ONLY_PORT: &str = ":443";
/// Tunnels at a time; the nodes of a home need a handful each.
const MAX_TUNNELS: usize = 64;
/// The longest request head; a CONNECT has two lines.
const MAX_HEAD: usize = 4096;
/// How long a client may take for its head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the destination may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the proxy looks whether it should end.
const ACCEPT_POLL: Duration = Duration::from_millis(20);

/// A running proxy; dropping it ends its accepting, and its tunnels end with their namespaces.
#[derive(Debug)]
pub(super) struct ConnectProxy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ConnectProxy {
    pub(super) fn start(ns: &NetNs, address: Ipv4Addr) -> Result<Self, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = ns.run(move || -> io::Result<JoinHandle<()>> {
            let listener = TcpListener::bind((address, PROXY_PORT))?;
            listener.set_nonblocking(true)?;
            std::thread::Builder::new()
                .name("lab-proxy".into())
                .spawn(move || accept(&listener, &flag))
        })?;
        let thread = thread.doing(|| format!("starting the proxy in {}", ns.name()))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool) {
    let tunnels = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(ACCEPT_POLL);
            continue;
        };
        if tunnels.fetch_add(1, Ordering::Relaxed) >= MAX_TUNNELS {
            tunnels.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let count = tunnels.clone();
        std::thread::spawn(move || {
            let _ = serve(client);
            count.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn serve(mut client: TcpStream) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(HEAD_TIMEOUT))?;
    let head = read_head(&mut client)?;
    let Some(target) = target_of(&head) else {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n\r\n");
    };
    if !target.ends_with(ONLY_PORT) {
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n");
    }
    let server = match connect(target) {
        Ok(server) => server,
        Err(_) => return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"),
    };
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    client.set_read_timeout(None)?;
    server.set_nodelay(true)?;
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let upwards = std::thread::spawn(move || pump(from, to));
    pump(server, client);
    let _ = upwards.join();
    Ok(())
}

/// Up to the empty line, byte for byte: what follows it belongs to the tunnel.
fn read_head(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0u8; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD || client.read(&mut byte)? == 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        head.push(byte[0]);
    }
    Ok(head)
}

fn target_of(head: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(head).ok()?.lines().next()?;
    let mut words = line.split(' ');
    (words.next() == Some("CONNECT"))
        .then(|| words.next())
        .flatten()
}

fn connect(target: &str) -> io::Result<TcpStream> {
    let address: Option<SocketAddr> = target.to_socket_addrs()?.next();
    let address = address.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
}

/// Copies until either side ends, then ends both, so that the other direction ends too.
fn pump(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connect_has_a_target() {
        let head = b"CONNECT 198.51.100.1:443 HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(target_of(head), Some("198.51.100.1:443"));
        assert_eq!(target_of(b"GET http://x/ HTTP/1.1\r\n\r\n"), None);
        assert_eq!(target_of(b"CONNECT"), None);
    }
}
