//! The internet: one thread that passes IP packets between TUN devices by destination address,
//! with the delay and loss of the two attachments that each packet crosses.

use std::collections::BinaryHeap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// Packets read from one attachment before the next has its turn: a flood delays others by less
/// than 0.1 ms.
const BURST: usize = 64;
/// Bytes in flight towards one attachment: 300 Mbit/s for 200 ms; beyond it packets are dropped,
/// as a router's queue does.
const QUEUE_BYTES: usize = 8 << 20;
/// Buffers kept for the next packets in flight: those of a full queue of full packets.
const POOL: usize = QUEUE_BYTES / 1500;
/// The largest IP packet (RFC 791 §3.1).
const MAX_PACKET: usize = 65_535;

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    address: u128,
    mask: u128,
    length: u8,
    is_v4: bool,
}

impl Prefix {
    /// `length` counts from the family's first bit.
    pub(super) fn new(address: IpAddr, length: u8) -> Self {
        let (is_v4, width) = (address.is_ipv4(), if address.is_ipv4() { 32 } else { 128 });
        let host_bits = u32::from(width - length.min(width));
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        Self {
            address: number(address) & mask,
            mask,
            length,
            is_v4,
        }
    }

    /// One address.
    pub(super) fn host(address: IpAddr) -> Self {
        Self::new(address, if address.is_ipv4() { 32 } else { 128 })
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.is_v4 == address.is_ipv4() && number(address) & self.mask == self.address
    }
}

/// One attachment's properties; each packet meets those of the attachment that it comes from and
/// of the one that it goes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Whether packets pass at all.
    pub up: bool,
    /// Added to each packet's way, in either direction.
    pub delay: Duration,
    /// Up to this much more, evenly spread: packets overtake each other.
    pub jitter: Duration,
    /// Probability that a packet is lost here, 0 to 1.
    pub loss: f64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            up: true,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
        }
    }
}

impl Link {
    /// One end's share of what a pair of attachments shall have: a quarter of the round trip, and
    /// the loss that, met twice, comes to `loss_permille` one way.
    pub fn share_of_pair(rtt: Duration, loss_permille: u16) -> Self {
        let pair_loss = f64::from(loss_permille.min(1000)) / 1000.0;
        Self {
            delay: rtt / 4,
            loss: 1.0 - (1.0 - pair_loss).sqrt(),
            ..Self::default()
        }
    }
}

/// Which attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AttachmentId(usize);

/// What became of the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Handed to their destination.
    pub delivered: u64,
    /// Dropped by the links' loss, or a link that is down.
    pub lost: u64,
    /// Dropped because a queue was full.
    pub overflowed: u64,
    /// For an address that nobody has: private ones, multicast, or past renumbering.
    pub unroutable: u64,
}

/// The internet.
#[derive(Debug)]
pub(super) struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Starts the thread.
    pub(super) fn start(seed: u64) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(
            &epoll,
            &timer,
            epoll::EventData::new_u64(TIMER),
            epoll::EventFlags::IN,
        )?;
        epoll::add(
            &epoll,
            &stop,
            epoll::EventData::new_u64(STOP),
            epoll::EventFlags::IN,
        )?;
        let state = Mutex::new(State::new(seed));
        let shared = Arc::new(Shared {
            epoll,
            timer,
            stop,
            state,
        });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("lab-internet".into())
            .spawn(move || for_thread.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Hangs a TUN device on the internet, which routes these prefixes to it.
    pub(super) fn attach(
        &self,
        tun: OwnedFd,
        prefixes: Vec<Prefix>,
        link: Link,
    ) -> io::Result<AttachmentId> {
        let mut state = self.shared.state();
        let index = state.attachments.len();
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.shared.epoll, &tun, data, epoll::EventFlags::IN)?;
        state.attachments.push(Attachment {
            tun,
            prefixes,
            link,
            queued: 0,
        });
        Ok(AttachmentId(index))
    }

    /// The present properties of an attachment.
    pub(super) fn link(&self, id: AttachmentId) -> Link {
        self.shared
            .state()
            .attachments
            .get(id.0)
            .map(|a| a.link)
            .unwrap_or_default()
    }

    /// Changes an attachment's properties; packets in flight keep theirs.
    pub(super) fn set_link(&self, id: AttachmentId, link: Link) {
        if let Some(attachment) = self.shared.state().attachments.get_mut(id.0) {
            attachment.link = link;
        }
    }

    /// Changes what is routed to an attachment.
    pub(super) fn set_prefixes(&self, id: AttachmentId, prefixes: Vec<Prefix>) {
        if let Some(attachment) = self.shared.state().attachments.get_mut(id.0) {
            attachment.prefixes = prefixes;
        }
    }

    /// What became of the packets so far.
    pub(super) fn counters(&self) -> Counters {
        self.shared.state().counters
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const TIMER: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    timer: OwnedFd,
    stop: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    attachments: Vec<Attachment>,
    flights: BinaryHeap<Flight>,
    pool: Vec<Vec<u8>>,
    counters: Counters,
    random: SplitMix64,
    sequence: u64,
}

#[derive(Debug)]
struct Attachment {
    tun: OwnedFd,
    prefixes: Vec<Prefix>,
    link: Link,
    queued: usize,
}

/// A packet on its way; those of one instant arrive in the order in which they left.
#[derive(Debug)]
struct Flight {
    due: Instant,
    sequence: u64,
    to: usize,
    packet: Vec<u8>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // Delay is only as exact as this thread's turn on the processor; without the right to be
        // first it is still right to a fraction of a millisecond on a machine that is not full.
        // SAFETY: changes the priority of the calling thread (on Linux, 0 names the thread).
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        let mut scratch = vec![0u8; MAX_PACKET];
        let mut armed = None;
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            let mut state = self.state();
            for event in &events {
                match event.data.u64() {
                    STOP => return,
                    TIMER => {
                        let _ = rustix::io::read(&self.timer, &mut scratch[..8]);
                        armed = None;
                    }
                    index => self.take_in(&mut state, index as usize, &mut scratch),
                }
            }
            state.deliver(Instant::now());
            let next = state.flights.peek().map(|flight| flight.due);
            drop(state);
            if next != armed && self.arm(next).is_ok() {
                armed = next;
            }
        }
    }

    fn take_in(&self, state: &mut State, from: usize, scratch: &mut [u8]) {
        for _ in 0..BURST {
            let Some(attachment) = state.attachments.get(from) else {
                return;
            };
            match rustix::io::read(&attachment.tun, &mut *scratch) {
                Ok(length) => state.forward(from, &scratch[..length], Instant::now()),
                Err(rustix::io::Errno::INTR) => {}
                // EIO: the device is down for now.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::IO) => return,
                Err(_) => {
                    // The device is gone with its namespace; it would report that for ever.
                    let _ = epoll::delete(&self.epoll, &attachment.tun);
                    return;
                }
            }
        }
    }

    fn arm(&self, at: Option<Instant>) -> rustix::io::Result<()> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // A zero would disarm: what is due already is due in a nanosecond.
        let wait = at.map(|at| at.saturating_duration_since(Instant::now()));
        let it_value = match wait.map(|wait| wait.max(Duration::from_nanos(1))) {
            Some(wait) => Timespec {
                tv_sec: wait.as_secs() as _,
                tv_nsec: i64::from(wait.subsec_nanos()) as _,
            },
            None => zero,
        };
        let spec = Itimerspec {
            it_interval: zero,
            it_value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec).map(drop)
    }
}

impl State {
    fn new(seed: u64) -> Self {
        Self {
            attachments: Vec::new(),
            flights: BinaryHeap::new(),
            pool: Vec::new(),
            counters: Counters::default(),
            random: SplitMix64(seed),
            sequence: 0,
        }
    }

    fn forward(&mut self, from: usize, packet: &[u8], now: Instant) {
        let to = destination(packet).and_then(|address| self.route(address));
        let Some(to) = to.filter(|&to| to != from) else {
            self.counters.unroutable += 1;
            return;
        };
        let (near, far) = (self.attachments[from].link, self.attachments[to].link);
        if self.is_lost(near) || self.is_lost(far) {
            self.counters.lost += 1;
            return;
        }
        let jitter = (near.jitter + far.jitter).mul_f64(self.random.unit());
        let delay = near.delay + far.delay + jitter;
        if delay.is_zero() {
            self.hand_over(to, packet);
            return;
        }
        let destination = &mut self.attachments[to];
        if destination.queued + packet.len() > QUEUE_BYTES {
            self.counters.overflowed += 1;
            return;
        }
        destination.queued += packet.len();
        let mut buffer = self.pool.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(packet);
        self.sequence += 1;
        let sequence = self.sequence;
        self.flights.push(Flight {
            due: now + delay,
            sequence,
            to,
            packet: buffer,
        });
    }

    fn is_lost(&mut self, link: Link) -> bool {
        !link.up || (link.loss > 0.0 && self.random.unit() < link.loss)
    }

    fn deliver(&mut self, now: Instant) {
        while self.flights.peek().is_some_and(|flight| flight.due <= now) {
            let Some(flight) = self.flights.pop() else {
                return;
            };
            self.attachments[flight.to].queued -= flight.packet.len();
            self.hand_over(flight.to, &flight.packet);
            if self.pool.len() < POOL {
                self.pool.push(flight.packet);
            }
        }
    }

    fn hand_over(&mut self, to: usize, packet: &[u8]) {
        match rustix::io::write(&self.attachments[to].tun, packet) {
            Ok(_) => self.counters.delivered += 1,
            Err(_) => self.counters.lost += 1,
        }
    }

    /// The attachment with the longest prefix. A lab has some tens of prefixes: looking at each
    /// costs less than the system call that follows.
    fn route(&self, address: IpAddr) -> Option<usize> {
        let mut best: Option<(u8, usize)> = None;
        for (index, attachment) in self.attachments.iter().enumerate() {
            for prefix in &attachment.prefixes {
                if prefix.contains(address) && best.is_none_or(|(length, _)| prefix.length > length)
                {
                    best = Some((prefix.length, index));
                }
            }
        }
        best.map(|(_, index)| index)
    }
}

impl Ord for Flight {
    /// The earliest is the greatest: it is on top of the heap.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Flight {}

/// Destination of an IP packet (RFC 791 §3.1, RFC 8200 §3).
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(
            <[u8; 16]>::try_from(packet.get(24..40)?).ok()?,
        )),
        _ => None,
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Steele, Lea and Flood's generator: a seed gives the same losses each time.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0 to 1, 1 excluded.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_families_do_not_mix() {
        let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
        let wide = Prefix::new(v4("192.0.2.0"), 29);
        assert!(wide.contains(v4("192.0.2.7")));
        assert!(!wide.contains(v4("192.0.2.8")));
        assert!(!Prefix::new(v4("::"), 0).contains(v4("192.0.2.7")));
        assert!(Prefix::new(v4("0.0.0.0"), 0).contains(v4("192.0.2.7")));
        assert!(!Prefix::host(v4("2001:db8::1")).contains(v4("2001:db8::2")));
    }

    #[test]
    fn a_pair_has_the_delay_and_loss_that_were_asked_for() {
        let share = Link::share_of_pair(Duration::from_millis(40), 190);
        assert_eq!(share.delay, Duration::from_millis(10));
        assert!((share.loss - 0.1).abs() < 1e-9, "{}", share.loss);
    }

    #[test]
    fn flights_leave_the_heap_by_time_then_by_order_of_departure() {
        let start = Instant::now();
        let mut heap = BinaryHeap::new();
        for (sequence, milliseconds) in [(1, 5), (2, 3), (3, 5), (4, 3)] {
            let due = start + Duration::from_millis(milliseconds);
            heap.push(Flight {
                due,
                sequence,
                to: 0,
                packet: Vec::new(),
            });
        }
        let order: Vec<u64> = std::iter::from_fn(|| heap.pop())
            .map(|f| f.sequence)
            .collect();
        assert_eq!(order, [2, 4, 1, 3]);
    }

    #[test]
    fn packets_that_are_no_ip_have_no_destination() {
        for packet in [&[][..], &[0x45; 19], &[0x60; 39], &[0x15; 60]] {
            assert_eq!(destination(packet), None);
        }
    }
}
