//! Pings and transfers through a tunnel.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are not tests to clippy"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::namespace::Namespace;

const MEGABYTE: usize = 1 << 20;
const PORT: u16 = 7000;

/// The node sets its addresses up meanwhile.
pub(crate) fn bind_when_set_up(ip: IpAddr, port: u16) -> UdpSocket {
    let tried = (0..200).find_map(|_| {
        let bound = UdpSocket::bind((ip, port)).ok();
        if bound.is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        bound
    });
    tried.unwrap()
}

/// Sends a datagram through the tunnel until it comes back; returns how long the fastest took.
pub(crate) fn ping(namespaces: &[Namespace; 2], from: &str, to: &str) -> Duration {
    let (from, to) = (
        from.parse::<IpAddr>().unwrap(),
        to.parse::<IpAddr>().unwrap(),
    );
    // The end is not told by a datagram, which the tunnel may lose.
    let ended = Arc::new(AtomicBool::new(false));
    let has_ended = Arc::clone(&ended);
    let echo = namespaces[1].spawn(move || {
        let socket = bind_when_set_up(to, PORT);
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let mut buffer = [0; 64];
        while !has_ended.load(Ordering::Relaxed) {
            if let Ok((len, client)) = socket.recv_from(&mut buffer) {
                socket.send_to(&buffer[..len], client).unwrap();
            }
        }
    });
    let client = namespaces[0].spawn(move || {
        let socket = bind_when_set_up(from, 0);
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let mut fastest = Duration::MAX;
        let mut answers = 0;
        for n in 0..100u32 {
            let start = Instant::now();
            if socket.send_to(&n.to_be_bytes(), (to, PORT)).is_err() {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let mut answer = [0; 4];
            // An answer to an earlier one is no measure of this one.
            while socket.recv(&mut answer).is_ok() {
                if answer == n.to_be_bytes() {
                    fastest = fastest.min(start.elapsed());
                    answers += 1;
                    break;
                }
            }
            if answers == 20 {
                break;
            }
        }
        fastest
    });
    let fastest = client.join().unwrap();
    ended.store(true, Ordering::Relaxed);
    echo.join().unwrap();
    assert!(fastest < Duration::MAX, "no answer from {to}");
    fastest
}

/// Sends megabytes that no two of are alike one way, and compares the hashes of both ends. Returns
/// Mbit/s.
pub(crate) fn transfer(namespaces: &[Namespace; 2], to: &str, megabytes: usize) -> f64 {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = namespaces[1].spawn(move || {
        let listener = TcpListener::bind(to).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let (mut hash, mut buffer, mut total) = (Sha256::new(), vec![0; 256 << 10], 0);
        loop {
            let len = stream.read(&mut buffer).unwrap();
            if len == 0 {
                return (hash.finalize(), total);
            }
            hash.update(&buffer[..len]);
            total += len;
        }
    });
    is_ready.recv().unwrap();
    let start = Instant::now();
    let client = namespaces[0].spawn(move || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let (mut hash, mut block) = (Sha256::new(), vec![0u8; MEGABYTE]);
        for n in 0..megabytes {
            for (i, word) in block.chunks_exact_mut(8).enumerate() {
                let value = ((n * MEGABYTE + i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                word.copy_from_slice(&value.to_le_bytes());
            }
            hash.update(&block);
            stream.write_all(&block).unwrap();
        }
        hash.finalize()
    });
    let sent = client.join().unwrap();
    let (received, total) = server.join().unwrap();
    assert_eq!(total, megabytes * MEGABYTE);
    assert_eq!(sent, received);
    (total * 8) as f64 / start.elapsed().as_secs_f64() / 1e6
}
