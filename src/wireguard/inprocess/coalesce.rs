//! Joining decrypted packets of one flow, so that the kernel takes some 45 of them in one write
//! (GRO). Order within a flow is kept: a packet that cannot join closes its flow's run.

use std::io::{self, IoSlice};
use std::ops::Range;

use super::checksum;
use super::device::{Device, Offload};
use super::segment::{PROTOCOL_TCP, PSH, Segment, TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM};
use super::vnet::{Gso, VNET_HEADER_LEN, VnetHeader};

/// Room for decrypted packets between flushes: what a receive call brings beyond it is flushed in
/// between. Four full GRO runs; more would only leave the cache.
const ARENA_BYTES: usize = 256 << 10;
/// Packets between flushes: bounds the tables.
const MAX_PACKETS: usize = 512;
/// Packets in a run: UDP_MAX_SEGMENTS of kernels before 6.9, and more than 65,535 bytes hold at any
/// usual MTU.
const MAX_RUN: usize = 64;
/// The largest IP packet.
const MAX_JOINED_BYTES: usize = 65_535;
/// Runs searched for a packet's flow, newest first: bounds the work when every packet is of another
/// flow.
const MAX_SEARCH: usize = 16;
/// No next packet.
const END: usize = usize::MAX;

/// What became of the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Packets handed to the device.
    pub packets: u64,
    /// Writes that took.
    pub writes: u64,
    /// Packets the device refused.
    pub refused: u64,
}

#[derive(Debug)]
pub(super) struct Coalescer {
    arena: Box<[u8]>,
    used: usize,
    packets: Vec<Packet>,
    runs: Vec<Run>,
    /// Runs before this one are closed to all: something without a flow came after them.
    barrier: usize,
    counters: DeviceCounters,
}

#[derive(Debug)]
struct Packet {
    range: Range<usize>,
    next: usize,
}

#[derive(Debug)]
struct Run {
    /// `None`: of no flow, alone.
    first: Option<Segment>,
    head: usize,
    tail: usize,
    count: usize,
    /// Bytes of the joined packet.
    len: usize,
    next_sequence: u32,
    pushed: bool,
    open: bool,
    /// The first packet's checksums were found right.
    verified: bool,
}

impl Coalescer {
    pub(super) fn new() -> Self {
        Self {
            arena: vec![0; ARENA_BYTES].into_boxed_slice(),
            used: 0,
            packets: Vec::with_capacity(MAX_PACKETS),
            runs: Vec::with_capacity(MAX_PACKETS),
            barrier: 0,
            counters: DeviceCounters::default(),
        }
    }

    pub(super) fn counters(&self) -> DeviceCounters {
        self.counters
    }

    /// Whether [`Self::slot`] has `len` bytes and [`Self::push`] a place; if not, flush first.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.used + len <= self.arena.len() && self.packets.len() < MAX_PACKETS
    }

    /// Where the next packet may be put; only what [`Self::push`] names stays.
    pub(super) fn slot(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// Takes the first `len` bytes of the slot as a packet.
    pub(super) fn push(&mut self, len: usize, offload: Offload) {
        let range = self.used..self.used + len;
        self.used = range.end;
        let index = self.packets.len();
        let segment = Segment::parse(&self.arena[range.clone()]);
        self.packets.push(Packet { range, next: END });
        let Some(segment) = segment else {
            self.runs.push(Run::alone(None, index, len));
            self.barrier = self.runs.len();
            return;
        };
        let wanted = segment.joinable
            && if segment.protocol == PROTOCOL_TCP {
                offload.tcp
            } else {
                offload.udp
            };
        if !self.join(&segment, index, wanted) {
            let mut run = Run::alone(Some(segment), index, len);
            run.open = wanted && !segment.pushed;
            self.runs.push(run);
        }
    }

    /// Writes everything out. A packet that the device refuses is counted; the others still go.
    pub(super) fn flush(&mut self, device: &mut impl Device) {
        for run in &self.runs {
            let vnet = if run.count > 1 {
                finish_headers(run, &self.packets, &mut self.arena)
            } else {
                VnetHeader::default()
            };
            match write(run, vnet, &self.packets, &self.arena, device) {
                Ok(()) => self.counters.packets += run.count as u64,
                Err(_) => self.counters.refused += run.count as u64,
            }
            self.counters.writes += 1;
        }
        self.runs.clear();
        self.packets.clear();
        self.used = 0;
        self.barrier = 0;
    }

    /// The newest run of the flow decides: it takes the packet, or is closed.
    fn join(&mut self, segment: &Segment, index: usize, wanted: bool) -> bool {
        let packet = &self.arena[self.packets[index].range.clone()];
        let from = self.barrier.max(self.runs.len().saturating_sub(MAX_SEARCH));
        let found = self.runs[from..].iter_mut().rev().find_map(|run| {
            let first = run.first?;
            let head = &self.arena[self.packets[run.head].range.clone()];
            segment
                .same_flow(packet, &first, head)
                .then_some((run, first, head))
        });
        let Some((run, first, head)) = found else {
            return false;
        };
        let fits = wanted
            && run.open
            && run.count < MAX_RUN
            && run.len + segment.payload <= MAX_JOINED_BYTES
            && segment.payload <= first.payload
            && segment.sequence == run.next_sequence
            && segment.same_headers(packet, &first, head)
            && segment.intact(packet)
            && (run.verified || first.intact(head));
        if !fits {
            run.open = false;
            return false;
        }
        run.verified = true;
        run.count += 1;
        run.len += segment.payload;
        run.next_sequence = run.following(segment);
        run.pushed = segment.pushed;
        run.open = !segment.pushed && segment.payload == first.payload;
        self.packets[run.tail].next = index;
        run.tail = index;
        true
    }
}

impl Run {
    fn alone(first: Option<Segment>, index: usize, len: usize) -> Self {
        let mut run = Self {
            first,
            head: index,
            tail: index,
            count: 1,
            len,
            next_sequence: 0,
            pushed: false,
            open: false,
            verified: false,
        };
        if let Some(segment) = first {
            run.next_sequence = run.following(&segment);
        }
        run
    }

    /// UDP has no sequence: always 0.
    fn following(&self, segment: &Segment) -> u32 {
        if segment.protocol == PROTOCOL_TCP {
            segment.sequence.wrapping_add(segment.payload as u32)
        } else {
            0
        }
    }
}

/// Makes the first packet's headers those of the whole.
fn finish_headers(run: &Run, packets: &[Packet], arena: &mut [u8]) -> VnetHeader {
    let Some(first) = run.first else {
        return VnetHeader::default();
    };
    let packet = &mut arena[packets[run.head].range.clone()];
    let v4 = packet[0] >> 4 == 4;
    if v4 {
        packet[2..4].copy_from_slice(&(run.len as u16).to_be_bytes());
        packet[10..12].fill(0);
        let sum = !checksum::fold(checksum::sum(&packet[..first.ip]));
        packet[10..12].copy_from_slice(&sum.to_ne_bytes());
    } else {
        packet[4..6].copy_from_slice(&((run.len - first.ip) as u16).to_be_bytes());
    }
    let pseudo = checksum::fold(first.pseudo(packet, run.len));
    let transport = &mut packet[first.ip..];
    let (field, gso) = if first.protocol == PROTOCOL_TCP {
        if run.pushed {
            transport[TCP_FLAGS] |= PSH;
        }
        (TCP_CHECKSUM, if v4 { Gso::TcpV4 } else { Gso::TcpV6 })
    } else {
        transport[4..6].copy_from_slice(&((run.len - first.ip) as u16).to_be_bytes());
        (UDP_CHECKSUM, Gso::Udp)
    };
    // Not complemented: the kernel adds the rest.
    transport[field..field + 2].copy_from_slice(&pseudo.to_ne_bytes());
    VnetHeader {
        needs_csum: true,
        gso,
        hdr_len: first.headers as u16,
        gso_size: first.payload as u16,
        csum_start: first.ip as u16,
        csum_offset: field as u16,
    }
}

fn write(
    run: &Run,
    vnet: VnetHeader,
    packets: &[Packet],
    arena: &[u8],
    device: &mut impl Device,
) -> io::Result<()> {
    let vnet = vnet.to_bytes();
    debug_assert_eq!(vnet.len(), VNET_HEADER_LEN);
    let mut parts = [IoSlice::new(&[]); MAX_RUN + 1];
    parts[0] = IoSlice::new(&vnet);
    let mut used = 1;
    let mut at = run.head;
    let mut skip = 0;
    while at != END && used < parts.len() {
        let packet = &packets[at];
        parts[used] = IoSlice::new(&arena[packet.range.start + skip..packet.range.end]);
        skip = run.first.map_or(0, |first| first.headers);
        used += 1;
        at = packet.next;
    }
    device.write(&parts[..used])
}
