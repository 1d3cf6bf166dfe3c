//! Whether sharing works here, shown rather than inferred: the port sends a STUN indication to itself
//! over loopback and must receive it, through the filter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rand_core::TryRngCore as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{SharedPort, SharedPortError, filter};
use crate::io::udp::{Destination, Family, ReceiveBuffers, SendFailureKind, Source};

/// How long the test waits: loopback delivers within the sending call, a busy machine some time later.
pub const SELF_TEST_TIMEOUT: Duration = Duration::from_millis(200);
/// A STUN Binding indication (RFC 8489 §5): whoever else gets it does not answer.
const BINDING_INDICATION: u16 = 0x0011;
const TRANSACTION_LEN: usize = 12;

pub(super) fn run(shared: &SharedPort) -> Result<(), SharedPortError> {
    let (family, port) = (shared.family(), shared.port());
    let system = |step, source| SharedPortError::System { step, port, source };
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let mut transaction = [0; TRANSACTION_LEN];
    let filled = rand_core::OsRng.try_fill_bytes(&mut transaction);
    filled.map_err(|error| system("draw a transaction id", std::io::Error::other(error)))?;
    let indication = indication(&transaction);
    let itself = Destination {
        remote: SocketAddr::new(ip, port),
        source: Some(Source { ip, ifindex: 0 }),
    };
    shared
        .send(&itself, &indication)
        .map_err(|failure| match failure.kind {
            SendFailureKind::Other(errno) => {
                let source = std::io::Error::from_raw_os_error(errno);
                system("send a test to itself over loopback", source)
            }
            SendFailureKind::TooLarge | SendFailureKind::BufferFull => {
                SharedPortError::SelfTest { family, port }
            }
        })?;
    if arrives(shared, itself.remote, &indication) {
        Ok(())
    } else {
        Err(SharedPortError::SelfTest { family, port })
    }
}

/// Other STUN that arrives meanwhile is lost, and sent again by whoever sent it.
fn arrives(shared: &SharedPort, from: SocketAddr, expected: &[u8]) -> bool {
    let deadline = Instant::now() + SELF_TEST_TIMEOUT;
    let mut buffers = ReceiveBuffers::new();
    loop {
        if shared.receive(&mut buffers).is_ok()
            && buffers
                .datagrams()
                .any(|d| d.remote == from && d.payload == expected)
        {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let timeout = Timespec::try_from(left).ok();
        let mut ready = [PollFd::from_borrowed_fd(shared.as_fd(), PollFlags::IN)];
        let _ = poll(&mut ready, timeout.as_ref());
    }
}

fn indication(transaction: &[u8; TRANSACTION_LEN]) -> Vec<u8> {
    let mut message = BINDING_INDICATION.to_be_bytes().to_vec();
    message.extend([0, 0]);
    message.extend(filter::MAGIC_COOKIE.to_be_bytes());
    message.extend(transaction);
    message
}
