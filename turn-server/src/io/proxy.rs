//! The PROXY protocol, version 2 (HAProxy's proxy-protocol.txt §2.2): where a connection comes from that a load balancer passes on.
//! Read by exact counts, so that nothing of what follows is taken; from trusted sources alone.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const HEADER_LEN: usize = 16;
/// Bytes after the header: addresses, and fields of load balancers, of which the longest known is some 500 bytes.
const MAX_LEN: usize = 2048;
/// Version 2: the connection is the load balancer's own (a health check).
const LOCAL: u8 = 0x20;
/// Version 2: it is passed on.
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;

/// These bytes are no such header: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol header (version 2) from a source of --proxy-protocol-from")]
pub(super) struct Malformed;

/// A header as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Preamble(Vec<u8>);

impl Preamble {
    /// Reads on. `Ok(None)`: not whole yet. `Some`: the client's address, or nothing where the connection is the load balancer's own.
    ///
    /// # Errors
    /// [`Malformed`] as [`io::ErrorKind::InvalidData`], an end too early as [`io::ErrorKind::UnexpectedEof`].
    pub(super) fn read(&mut self, mut from: impl Read) -> io::Result<Option<Option<SocketAddr>>> {
        loop {
            let missing = self
                .missing()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if missing == 0 {
                return Ok(Some(self.address()));
            }
            let mut buffer = [0; HEADER_LEN + MAX_LEN];
            match from.read(&mut buffer[..missing]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.0.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// How many bytes are to come for certain.
    fn missing(&self) -> Result<usize, Malformed> {
        let seen = self.0.len().min(SIGNATURE.len());
        if self.0[..seen] != SIGNATURE[..seen] {
            return Err(Malformed);
        }
        let Some(head) = self.0.first_chunk::<HEADER_LEN>() else {
            return Ok(HEADER_LEN - self.0.len());
        };
        let [.., command, family, high, low] = *head;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let least = match (command, family) {
            (LOCAL, _) | (PROXY, UNSPECIFIED) => 0,
            (PROXY, TCP_V4) => 12,
            (PROXY, TCP_V6) => 36,
            _ => return Err(Malformed),
        };
        if len < least || len > MAX_LEN {
            return Err(Malformed);
        }
        Ok((HEADER_LEN + len).saturating_sub(self.0.len()))
    }

    /// The source, of a whole header.
    fn address(&self) -> Option<SocketAddr> {
        let (head, rest) = self.0.split_first_chunk::<HEADER_LEN>()?;
        if head[12] == LOCAL {
            return None;
        }
        let port = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
        match head[13] {
            TCP_V4 => {
                let ip = Ipv4Addr::from(*rest.first_chunk::<4>()?);
                Some(SocketAddr::new(IpAddr::V4(ip), port(8)?))
            }
            TCP_V6 => {
                let ip = Ipv6Addr::from(*rest.first_chunk::<16>()?);
                Some(SocketAddr::new(IpAddr::V6(ip), port(32)?))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend_from_slice(rest);
        bytes
    }

    const V4: [u8; 12] = [8, 8, 4, 4, 10, 0, 0, 1, 0x12, 0x34, 0x0D, 0x96];

    /// Gives bytes one at a time, and says now and then that there are none yet.
    struct Drops<'a>(&'a [u8], bool);

    impl Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let len = self.0.len().min(buffer.len()).min(1);
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    /// What a header says, and how much of the bytes it took.
    fn parse(bytes: &[u8]) -> io::Result<(Option<SocketAddr>, usize)> {
        let (mut preamble, mut source) = (Preamble::default(), Drops(bytes, false));
        loop {
            if let Some(address) = preamble.read(&mut source)? {
                return Ok((address, bytes.len() - source.0.len()));
            }
        }
    }

    #[test]
    fn the_source_is_read_and_not_a_byte_more() {
        let mut bytes = header(PROXY, TCP_V4, &V4);
        let len = bytes.len();
        bytes.extend(b"what follows");
        let v4: SocketAddr = "8.8.4.4:4660".parse().unwrap();
        assert_eq!(parse(&bytes).unwrap(), (Some(v4), len));
        let mut v6 = [0; 36];
        v6[..2].copy_from_slice(&[0x2a, 0]);
        v6[15] = 9;
        v6[33] = 7;
        let at: SocketAddr = "[2a00::9]:7".parse().unwrap();
        assert_eq!(parse(&header(PROXY, TCP_V6, &v6)).unwrap().0, Some(at));
        // With fields behind.
        let long = [&V4[..], &[0; 1000]].concat();
        assert_eq!(
            parse(&header(PROXY, TCP_V4, &long)).unwrap(),
            (Some(v4), 1028)
        );
        for own in [header(LOCAL, 0, &[]), header(LOCAL, TCP_V4, &V4)] {
            assert_eq!(parse(&own).unwrap(), (None, own.len()));
        }
        assert_eq!(parse(&header(PROXY, UNSPECIFIED, &[])).unwrap().0, None);
    }

    #[test]
    fn whatever_else_comes_ends_the_connection() {
        let good = header(PROXY, TCP_V4, &V4);
        for at in 0..SIGNATURE.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let kind = parse(&bad).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidData, "byte {at}");
        }
        for bad in [
            header(0x11, TCP_V4, &V4),
            header(0x22, TCP_V4, &V4),
            header(PROXY, 0x12, &V4),
            header(PROXY, 0x31, &[0; 216]),
            header(PROXY, TCP_V4, &V4[..11]),
            header(PROXY, TCP_V6, &V4),
            header(LOCAL, 0, &[0; MAX_LEN + 1]),
            b"PROXY TCP4 8.8.4.4 10.0.0.1 4660 3478\r\n".to_vec(),
            vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3, 0, 0, 0, 0, 0],
        ] {
            let kind = parse(&bad).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidData, "{bad:02x?}");
        }
        let kind = parse(&good[..20]).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::UnexpectedEof);
    }
}
