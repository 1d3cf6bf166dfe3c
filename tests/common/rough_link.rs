//! A link that loses, repeats and reorders datagrams, the same ones each time.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are not tests to clippy"
)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::namespace::Namespace;

/// Of so many datagrams one is lost, one comes twice, and one is overtaken by [`OVERTAKEN_BY`] others.
const LOST: u32 = 401;
const TWICE: u32 = 307;
const OVERTAKEN: u32 = 23;
const OVERTAKEN_BY: u32 = 3;
/// How often it asks whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Rough on the way there, smooth on the way back.
pub(crate) struct RoughLink {
    stop: Arc<AtomicBool>,
    there: JoinHandle<()>,
    back: JoinHandle<()>,
}

impl RoughLink {
    /// What one sender sends to `at` goes to `to`, on the same machine.
    pub(crate) fn start(namespace: &Namespace, at: SocketAddr, to: SocketAddr) -> Self {
        let opened = namespace.spawn(move || {
            let (near, far) = (
                UdpSocket::bind(at).unwrap(),
                UdpSocket::bind((at.ip(), 0)).unwrap(),
            );
            far.connect(to).unwrap();
            for socket in [&near, &far] {
                socket.set_read_timeout(Some(LOOK_EVERY)).unwrap();
            }
            (near, far)
        });
        let (near, far) = opened.join().unwrap();
        let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        let sender = Arc::new(OnceLock::new());
        let known = Arc::clone(&sender);
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, ended_too) = (Arc::clone(&stop), Arc::clone(&stop));
        let there = std::thread::spawn(move || {
            carry_roughly(&near, &far, &sender, &ended);
        });
        let back = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !ended_too.load(Ordering::Relaxed) {
                if let (Ok(len), Some(sender)) = (far_too.recv(&mut buffer), known.get()) {
                    let _ = near_too.send_to(&buffer[..len], sender);
                }
            }
        });
        Self { stop, there, back }
    }

    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.there.join().unwrap();
        self.back.join().unwrap();
    }
}

fn carry_roughly(
    near: &UdpSocket,
    far: &UdpSocket,
    sender: &OnceLock<SocketAddr>,
    ended: &AtomicBool,
) {
    let mut buffer = [0; 2048];
    let mut held: Option<(Vec<u8>, u32)> = None;
    let mut count = 0u32;
    while !ended.load(Ordering::Relaxed) {
        let Ok((len, from)) = near.recv_from(&mut buffer) else {
            continue;
        };
        sender.get_or_init(|| from);
        let datagram = &buffer[..len];
        count = count.wrapping_add(1);
        if count.is_multiple_of(LOST) {
            continue;
        }
        if count.is_multiple_of(OVERTAKEN) && held.is_none() {
            held = Some((datagram.to_vec(), count.wrapping_add(OVERTAKEN_BY)));
            continue;
        }
        // A full buffer loses one more.
        let _ = far.send(datagram);
        if count.is_multiple_of(TWICE) {
            let _ = far.send(datagram);
        }
        if let Some((late, _)) = held.take_if(|(_, until)| count >= *until) {
            let _ = far.send(&late);
        }
    }
}
