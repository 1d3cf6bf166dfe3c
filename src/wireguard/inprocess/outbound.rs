//! From the device to the peers.

use std::io;

use boringtun::noise::Tunn;

use super::Tunnels;
use super::device::{Device, Egress};
use super::sealer::{MAX_PACKET, Sealed};
use super::split;
use super::vnet::{VNET_HEADER_LEN, VnetHeader};

/// Reads in one call: the sockets must have their turn.
const MAX_READS: usize = 64;
/// Bytes in one call: some 0.5 ms of sealing, which is what a datagram in may have to wait.
const MAX_BYTES: usize = 768 << 10;

/// How a call of [`Tunnels::handle_device`] ended.
#[derive(Debug)]
pub enum TunRead {
    /// The device is empty.
    Drained,
    /// There may be more: call again after the sockets.
    More,
    /// The device failed; it may be gone.
    Failed(io::Error),
}

impl Tunnels {
    /// Reads what the device has, within bounds, seals it, and sends it by `egress` in runs as long
    /// as they get.
    pub fn handle_device(&mut self, device: &mut impl Device, egress: &mut impl Egress) -> TunRead {
        let mut bytes = 0;
        let mut end = TunRead::More;
        for _ in 0..MAX_READS {
            let room = VNET_HEADER_LEN + MAX_PACKET;
            match device.read(&mut self.read_buffer[..room]) {
                Ok(len) => {
                    bytes += len;
                    self.handle_packet(len, egress);
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    end = TunRead::Drained;
                    break;
                }
                Err(error) => {
                    end = TunRead::Failed(error);
                    break;
                }
            }
            if bytes >= MAX_BYTES {
                break;
            }
        }
        self.sealer.flush(egress);
        end
    }

    /// One packet, perhaps joined, stands in the read buffer behind its header.
    fn handle_packet(&mut self, len: usize, egress: &mut impl Egress) {
        let Some((header, packet)) = self.read_buffer.split_first_chunk_mut::<VNET_HEADER_LEN>()
        else {
            return;
        };
        let len = len.saturating_sub(VNET_HEADER_LEN);
        let parsed = VnetHeader::parse(header).zip(Tunn::dst_address(&packet[..len]));
        let Some((vnet, destination)) = parsed else {
            self.counters.bad_from_device += 1;
            return;
        };
        let Some((id, peer)) = self
            .allowed_ips
            .find(destination)
            .and_then(|id| Some((id, self.peers.get_mut(id.0 as usize)?.as_mut()?)))
        else {
            self.counters.no_peer += 1;
            return;
        };
        let sealer = &mut self.sealer;
        let result = split::split(vnet, packet, len, |packet, len| {
            if peer.confirmed_by.is_some() {
                return peer.wait(&packet[..len], sealer.padded(len));
            }
            match sealer.push(id, &mut peer.tunn, packet, len, egress) {
                Sealed::Bytes(bytes) => peer.tx_bytes += bytes as u64,
                Sealed::Queued => peer.queued = true,
            }
        });
        if result.is_err() {
            self.counters.bad_from_device += 1;
        }
    }
}
