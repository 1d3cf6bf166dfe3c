//! Pings that go on: when a path carried packets, and for how long it did not.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::error::{Doing as _, LabError};
use super::netns::NetNs;

/// Sequence numbers of ICMP echo (RFC 792): after so many pings the stream ends.
const MAX_PINGS: usize = 65_536;
/// ICMP echo and its answer (RFC 792), and the same of ICMPv6 (RFC 4443 §4).
const ECHO_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const ECHO_V6: u8 = 128;
const REPLY_V6: u8 = 129;
/// How often a waiting caller looks.
const POLL: Duration = Duration::from_millis(2);

/// One ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// When it was sent, or should have been: without a route, sending fails, which is silence.
    pub sent: Instant,
    /// When its answer came.
    pub answered: Option<Instant>,
}

/// A stream of ICMP echoes from one namespace; it ends when dropped.
#[derive(Debug)]
pub struct Pings {
    log: Arc<Mutex<Vec<Ping>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pings {
    /// Pings an address from a namespace every `interval`.
    pub fn start(ns: &NetNs, to: IpAddr, interval: Duration) -> Result<Self, LabError> {
        let doing = || format!("pinging {to} from {}", ns.name());
        let socket = ns.run(|| echo_socket(to))?.doing(doing)?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (for_thread, flag) = (log.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("lab-pings".into())
            .spawn(move || run(&socket, to, interval, &for_thread, &flag))
            .doing(doing)?;
        Ok(Self {
            log,
            stop,
            thread: Some(thread),
        })
    }

    /// All pings so far.
    pub fn all(&self) -> Vec<Ping> {
        self.log().clone()
    }

    /// Waits for the answer to a ping that was sent after `event`, and gives the time from the
    /// event to that answer; `None` if none comes within `patience` of the event.
    pub fn back_after(&self, event: Instant, patience: Duration) -> Option<Duration> {
        loop {
            let answered = {
                let log = self.log();
                let later = log.iter().rev().take_while(|ping| ping.sent >= event);
                later.filter_map(|ping| ping.answered).min()
            };
            match answered {
                Some(at) => return Some(at - event),
                None if event.elapsed() >= patience => return None,
                None => std::thread::sleep(POLL),
            }
        }
    }

    /// The longest time between two answers since `start`; the time since the last one counts too.
    pub fn longest_gap(&self, start: Instant) -> Duration {
        let mut answers: Vec<Instant> = self.log().iter().filter_map(|p| p.answered).collect();
        answers.retain(|at| *at >= start);
        answers.sort();
        let (mut last, mut longest) = (start, Duration::ZERO);
        for at in answers.into_iter().chain([Instant::now()]) {
            longest = longest.max(at - last);
            last = at;
        }
        longest
    }

    /// Pings sent between two moments, and how many of them were answered.
    pub fn answered_between(&self, from: Instant, to: Instant) -> (usize, usize) {
        let log = self.log();
        let sent = log.iter().filter(|p| p.sent >= from && p.sent < to);
        let (mut all, mut answered) = (0, 0);
        for ping in sent {
            all += 1;
            answered += usize::from(ping.answered.is_some());
        }
        (all, answered)
    }

    fn log(&self) -> MutexGuard<'_, Vec<Ping>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn echo_socket(to: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, rustix::net::ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, rustix::net::ipproto::ICMPV6),
    };
    let socket = rustix::net::socket_with(
        family,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(protocol),
    )?;
    Ok(UdpSocket::from(socket))
}

fn run(
    socket: &UdpSocket,
    to: IpAddr,
    interval: Duration,
    log: &Mutex<Vec<Ping>>,
    stop: &AtomicBool,
) {
    let (request, reply) = match to {
        IpAddr::V4(_) => (ECHO_V4, REPLY_V4),
        IpAddr::V6(_) => (ECHO_V6, REPLY_V6),
    };
    let lock = || log.lock().unwrap_or_else(PoisonError::into_inner);
    let mut packet = [0u8; 64];
    let mut next_send = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let sequence = lock().len();
        if sequence == MAX_PINGS {
            return;
        }
        lock().push(Ping {
            sent: Instant::now(),
            answered: None,
        });
        // The kernel writes identifier and checksum of such a socket.
        let mut echo = [request, 0, 0, 0, 0, 0, 0, 0];
        let number = u16::try_from(sequence).unwrap_or(u16::MAX);
        echo[6..].copy_from_slice(&number.to_be_bytes());
        let _ = socket.send_to(&echo, SocketAddr::new(to, 0));
        next_send += interval;
        loop {
            let wait = next_send.saturating_duration_since(Instant::now());
            if wait.is_zero() || stop.load(Ordering::Relaxed) {
                break;
            }
            // Refusals by the kernel on the way come as errors at once: that is silence too.
            let length = match socket
                .set_read_timeout(Some(wait))
                .and_then(|()| socket.recv(&mut packet))
            {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => {
                    std::thread::sleep(POLL.min(wait));
                    continue;
                }
            };
            if length < 8 || packet[0] != reply {
                continue;
            }
            let answered = usize::from(u16::from_be_bytes([packet[6], packet[7]]));
            if let Some(ping) = lock().get_mut(answered) {
                ping.answered.get_or_insert_with(Instant::now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pings(answers: &[Option<u64>], start: Instant) -> Pings {
        let ping = |(index, answer): (usize, &Option<u64>)| Ping {
            sent: start + Duration::from_millis(100 * index as u64),
            answered: answer.map(|ms| start + Duration::from_millis(ms)),
        };
        Pings {
            log: Arc::new(Mutex::new(answers.iter().enumerate().map(ping).collect())),
            stop: Arc::default(),
            thread: None,
        }
    }

    #[test]
    fn gaps_and_returns_are_counted_from_the_event() {
        let now = Instant::now();
        let start = now.checked_sub(Duration::from_millis(500)).unwrap();
        let pings = pings(&[Some(10), None, None, Some(320), Some(410)], start);
        let gap = pings.longest_gap(start);
        assert!(
            gap >= Duration::from_millis(310) && gap < Duration::from_millis(320),
            "{gap:?}"
        );
        let event = start + Duration::from_millis(150);
        assert_eq!(
            pings.back_after(event, Duration::ZERO),
            Some(Duration::from_millis(170))
        );
        assert_eq!(pings.back_after(now, Duration::ZERO), None);
        assert_eq!(pings.answered_between(start, now), (5, 3));
    }
}
