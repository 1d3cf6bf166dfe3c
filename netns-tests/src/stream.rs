//! A UDP stream that goes on, numbered: which packets were lost, and when nothing came.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use wice::lab::NetNs;

/// Any port that nobody uses in a lab.
const PORT: u16 = 7007;
/// Bytes of a packet, within the smallest MTU of a lab's interfaces (1280).
const PACKET: usize = 1200;
/// 10 Mbit/s of them.
const INTERVAL: Duration = Duration::from_micros(960);
/// How long the receiver waits before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// When each packet was sent, and when it came.
type Log = Vec<(Instant, Option<Instant>)>;

/// 10 Mbit/s from one namespace to another; it ends when dropped.
#[derive(Debug)]
pub struct Stream {
    log: Arc<Mutex<Log>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// From `from` to `address`, which `to` has.
    pub fn start(from: &NetNs, to: &NetNs, address: IpAddr) -> Result<Self> {
        let target = SocketAddr::new(address, PORT);
        let receiver = to.run(|| UdpSocket::bind(target))?;
        let receiver = receiver.with_context(|| format!("{target} cannot be bound"))?;
        receiver.set_read_timeout(Some(LOOK))?;
        enlarge(&receiver)?;
        let any = SocketAddr::new([0, 0, 0, 0].into(), 0);
        let sender = from.run(|| UdpSocket::bind(any))??;
        let (log, stop) = (Arc::default(), Arc::default());
        let mut stream = Self {
            log: Arc::clone(&log),
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        let (receiver_log, receiver_stop) = (Arc::clone(&log), Arc::clone(&stop));
        let receive = move || take_in(&receiver, &receiver_log, &receiver_stop);
        stream.threads.push(std::thread::spawn(receive));
        let send = move || send(&sender, target, &log, &stop);
        stream.threads.push(std::thread::spawn(send));
        Ok(stream)
    }

    /// How many packets were sent between two moments, and when after the first those that never came.
    pub fn lost(&self, from: Instant, to: Instant) -> (usize, Vec<Duration>) {
        let log = lock(&self.log);
        let sent = log.iter().filter(|(at, _)| *at >= from && *at < to);
        let (mut all, mut lost) = (0, Vec::new());
        for (at, came) in sent {
            all += 1;
            lost.extend(came.is_none().then(|| *at - from));
        }
        (all, lost)
    }

    /// From `event` to the arrival of the first packet that was sent after it.
    pub fn back_after(&self, event: Instant, patience: Duration) -> Option<Duration> {
        loop {
            let first = {
                let log = lock(&self.log);
                let later = log.iter().rev().take_while(|(at, _)| *at >= event);
                later.filter_map(|(_, came)| *came).min()
            };
            match first {
                Some(at) => return Some(at - event),
                None if event.elapsed() >= patience => return None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// The longest time without an arrival since `start`, until now.
    pub fn longest_gap(&self, start: Instant) -> Duration {
        let mut came: Vec<Instant> = lock(&self.log)
            .iter()
            .filter_map(|(_, came)| *came)
            .collect();
        came.retain(|at| *at >= start);
        came.sort();
        let (mut last, mut longest) = (start, Duration::ZERO);
        for at in came.into_iter().chain([Instant::now()]) {
            longest = longest.max(at - last);
            last = at;
        }
        longest
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A busy machine wakes the receiver late: seconds have room.
fn enlarge(socket: &UdpSocket) -> std::io::Result<()> {
    let bytes: libc::c_int = 8 << 20;
    // SAFETY: the value outlives the call and has the length given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(socket: &UdpSocket, to: SocketAddr, log: &Mutex<Log>, stop: &AtomicBool) {
    let mut packet = [0; PACKET];
    let start = Instant::now();
    let mut number = 0u32;
    while !stop.load(Ordering::Relaxed) {
        packet[..4].copy_from_slice(&number.to_be_bytes());
        lock(log).push((Instant::now(), None));
        number += 1;
        // Without a route it is lost, as on the way.
        let _ = socket.send_to(&packet, to);
        // On a busy machine it wakes late, and catches up without a burst.
        let due = (start + INTERVAL * number).saturating_duration_since(Instant::now());
        std::thread::sleep(due.max(INTERVAL / 2));
    }
}

fn take_in(socket: &UdpSocket, log: &Mutex<Log>, stop: &AtomicBool) {
    let mut packet = [0; PACKET];
    while !stop.load(Ordering::Relaxed) {
        let number = match socket.recv(&mut packet) {
            Ok(_) => u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) => continue,
        };
        if let Some((_, came)) = lock(log).get_mut(number as usize) {
            came.get_or_insert_with(Instant::now);
        }
    }
}
