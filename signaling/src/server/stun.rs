//! STUN Binding (RFC 8489 §3) on the service's port number: stateless, one address in one answer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::metrics::{Metrics, Refusal, add};

/// The longest response: header and one IPv6 XOR-MAPPED-ADDRESS. With 20 bytes of IP and UDP
/// headers or more on both ways, it is at most 1.35 times the shortest request on the wire.
pub const MAX_RESPONSE_LEN: usize = HEADER_LEN + 4 + 20;

const HEADER_LEN: usize = 20;
const COOKIE: u32 = 0x2112_a442;
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const XOR_MAPPED_ADDRESS: [u8; 2] = [0x00, 0x20];

/// Attributes from here on may be ignored when unknown (RFC 8489 §14).
const COMPREHENSION_OPTIONAL: u16 = 0x8000;

/// What one receive call takes: datagrams that the kernel coalesced (UDP GRO).
const RECEIVE_LEN: usize = 64 << 10;

/// Writes the answer to `datagram`, received from `from`, into `out` and returns its length;
/// `None` for whatever is not a well-formed Binding request, or asks for what is not done here.
#[must_use]
pub fn binding_response(
    datagram: &[u8],
    from: SocketAddr,
    out: &mut [u8; MAX_RESPONSE_LEN],
) -> Option<usize> {
    let (header, attributes) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[..2] != BINDING_REQUEST
        || header[4..8] != COOKIE.to_be_bytes()
        || len != attributes.len()
        || !only_optional(attributes)
    {
        return None;
    }
    let mut address = [0; 16];
    let (family, address) = match from.ip().to_canonical() {
        IpAddr::V4(v4) => {
            address[..4].copy_from_slice(&v4.octets());
            (1, &mut address[..4])
        }
        IpAddr::V6(v6) => {
            address.copy_from_slice(&v6.octets());
            (2, &mut address[..])
        }
    };
    // The mask is cookie and transaction id as they stand in the header (§14.2).
    for (byte, mask) in address.iter_mut().zip(&header[4..]) {
        *byte ^= mask;
    }
    let value_len = 4 + address.len();
    let port = from.port() ^ (COOKIE >> 16) as u16;
    out[..2].copy_from_slice(&BINDING_SUCCESS);
    out[2..4].copy_from_slice(&(4 + value_len as u16).to_be_bytes());
    out[4..HEADER_LEN].copy_from_slice(&header[4..]);
    out[20..22].copy_from_slice(&XOR_MAPPED_ADDRESS);
    out[22..24].copy_from_slice(&(value_len as u16).to_be_bytes());
    out[24] = 0;
    out[25] = family;
    out[26..28].copy_from_slice(&port.to_be_bytes());
    out[28..28 + address.len()].copy_from_slice(address);
    Some(HEADER_LEN + 4 + value_len)
}

/// Whether `attributes` are well-formed and may all be ignored.
fn only_optional(mut attributes: &[u8]) -> bool {
    while let Some((head, rest)) = attributes.split_first_chunk::<4>() {
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let padded = usize::from(u16::from_be_bytes([head[2], head[3]])).next_multiple_of(4);
        let Some(rest) = rest.get(padded..) else {
            return false;
        };
        if kind < COMPREHENSION_OPTIONAL {
            return false;
        }
        attributes = rest;
    }
    attributes.is_empty()
}

/// The socket that answers: with pktinfo, so that an answer leaves from the address asked.
pub(super) struct StunSocket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl StunSocket {
    pub(super) fn bind(listen: SocketAddr) -> io::Result<Self> {
        let domain = socket2::Domain::for_address(listen);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
        if listen.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&listen.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { socket, state })
    }

    /// Answers until `shutdown` becomes true.
    pub(super) async fn serve(self, metrics: Arc<Metrics>, mut shutdown: watch::Receiver<bool>) {
        let mut buffer = vec![0; RECEIVE_LEN];
        loop {
            tokio::select! {
                received = self.receive(&mut buffer) => match received {
                    Ok(meta) => self.answer(&buffer, &meta, &metrics),
                    // An ICMP error for an earlier answer, or memory short: the next may work.
                    Err(error) => tracing::debug!(event = "stun-receive-failed", %error),
                },
                () = super::stopped(&mut shutdown) => return,
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<RecvMeta> {
        let mut meta = [RecvMeta::default()];
        let mut buffers = [io::IoSliceMut::new(buffer)];
        self.socket
            .async_io(Interest::READABLE, || {
                self.state
                    .recv((&self.socket).into(), &mut buffers, &mut meta)
            })
            .await?;
        Ok(meta[0])
    }

    fn answer(&self, buffer: &[u8], meta: &RecvMeta, metrics: &Metrics) {
        let mut out = [0; MAX_RESPONSE_LEN];
        for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
            let Some(len) = binding_response(datagram, meta.addr, &mut out) else {
                metrics.refuse(Refusal::Stun);
                continue;
            };
            let transmit = Transmit {
                destination: meta.addr,
                ecn: None,
                contents: &out[..len],
                segment_size: None,
                src_ip: meta.dst_ip,
            };
            let socket = &self.socket;
            let sent = socket.try_io(Interest::WRITABLE, || {
                self.state.try_send(socket.into(), &transmit)
            });
            // A full socket drops the answer: the asker repeats (RFC 8489 §6.2.1).
            if sent.is_ok() {
                add(&metrics.stun_replies, 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::testing::Random;

    const FROM: &str = "192.0.2.1:32853";

    fn request(attributes: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 1];
        out.extend_from_slice(&(attributes.len() as u16).to_be_bytes());
        out.extend_from_slice(&COOKIE.to_be_bytes());
        // RFC 5769 §2.2 uses this transaction id.
        out.extend_from_slice(&hex::decode("b7e7a701bc34d686fa87dfae").unwrap());
        out.extend_from_slice(attributes);
        out
    }

    fn answer(datagram: &[u8], from: &str) -> Option<Vec<u8>> {
        let mut out = [0; MAX_RESPONSE_LEN];
        let len = binding_response(datagram, from.parse().unwrap(), &mut out)?;
        Some(out[..len].to_vec())
    }

    #[test]
    fn mapped_addresses_of_rfc_5769() {
        let v4 = answer(&request(&[]), FROM).unwrap();
        assert_eq!(hex::encode(&v4[20..]), "002000080001a147e112a643");
        let v6 = answer(
            &request(&[]),
            "[2001:db8:1234:5678:11:2233:4455:6677]:32853",
        )
        .unwrap();
        let expected = "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9";
        assert_eq!(hex::encode(&v6[20..]), expected);
        assert_eq!(
            hex::encode(&v4[..20]),
            "0101000c2112a442b7e7a701bc34d686fa87dfae"
        );
        assert_eq!(answer(&request(&[]), "[::ffff:192.0.2.1]:32853"), Some(v4));
    }

    #[test]
    fn answers_are_no_amplifier() {
        for (from, headers) in [(FROM, 28), ("[2001:db8::1]:1", 48)] {
            let asked = request(&[]);
            let answered = answer(&asked, from).unwrap();
            assert!(
                (headers + answered.len()) * 10 <= (headers + asked.len()) * 14,
                "{from}"
            );
        }
    }

    #[test]
    fn only_well_formed_requests_are_answered() {
        let software = [0x80, 0x22, 0, 3, b'a', b'b', b'c', 0];
        assert!(answer(&request(&software), FROM).is_some());
        let change_request = [0x00, 0x03, 0, 4, 0, 0, 0, 6];
        let overlong = [0x80, 0x22, 0, 9, 0, 0, 0, 0];
        for attributes in [
            &change_request[..],
            &overlong,
            &[0x80, 0x22],
            &[0x80, 0x22, 0],
        ] {
            assert_eq!(
                answer(&request(attributes), FROM),
                None,
                "{attributes:02x?}"
            );
        }
        let whole = request(&software);
        for len in 0..whole.len() {
            assert_eq!(answer(&whole[..len], FROM), None);
        }
        for at in [0, 1, 2, 3, 4, 7] {
            let mut changed = request(&[]);
            changed[at] ^= 0x40;
            assert_eq!(answer(&changed, FROM), None, "byte {at}");
        }
        let mut random = Random::new(40);
        for _ in 0..20_000 {
            let len = random.below(64);
            let _ = answer(&random.bytes(len), FROM);
        }
    }
}
