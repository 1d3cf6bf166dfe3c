//! Kernel WireGuard by generic netlink (linux/wireguard.h): one dump to read an interface, one
//! UPDATE_ONLY message to point a peer elsewhere. The kernel answers at once, so nothing waits here.
//! Whose own the interface is may do more ([`Owner`]).

mod owner;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlMessage};
use netlink_packet_wireguard::{
    WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd, WireguardMessage, WireguardPeer,
    WireguardPeerAttribute, WireguardPeerFlags,
};
use wice_signaling::protocol::{PrivateKey, PublicKey};
use zeroize::{Zeroize as _, Zeroizing};

use super::IpPrefix;
use super::backend::{Backend, BackendError, Device, DevicePeer, MAX_ALLOWED_IPS, MAX_PEERS};

pub use owner::{OwnPeer, Owner};

/// What the kernel fills in one read of a dump at most (NLMSG_GOODSIZE to 32 KiB; linux/netlink.h).
const BUFFER: usize = 64 << 10;
/// The kernel answers within the call; this guards against a lost answer (ENOBUFS).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A dump during which peers came or went is read again this often at most.
const DUMP_TRIES: u32 = 3;
/// NLM_F_DUMP_INTR (linux/netlink.h): what was dumped changed meanwhile.
const DUMP_INTERRUPTED: u16 = 0x10;
/// Messages of one dump: a peer with its allowed IPs has one at least.
const MAX_MESSAGES: usize = 4 * MAX_PEERS;

/// An interface of the kernel's WireGuard.
#[derive(Debug)]
pub struct Kernel {
    interface: String,
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

/// Why an exchange failed: the kernel's error number, or ours.
#[derive(Debug)]
enum Failure {
    Refused(i32),
    System(io::Error),
}

impl Kernel {
    /// Finds the kernel's WireGuard, and the interface.
    pub fn open(interface: &str) -> Result<Self, BackendError> {
        let system = |source| BackendError::System {
            what: "open a generic netlink socket".into(),
            source,
        };
        let mut kernel = Self {
            interface: interface.to_owned(),
            socket: open_socket().map_err(system)?,
            family: 0,
            sequence: 0,
        };
        kernel.family = kernel.find_family()?;
        kernel.read()?;
        Ok(kernel)
    }

    fn find_family(&mut self) -> Result<u16, BackendError> {
        let name = WireguardMessage::family_name();
        let request = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(name.to_owned())],
        });
        let answers = self.exchange(request, NLM_F_REQUEST | NLM_F_ACK);
        let answers: Vec<GenlMessage<GenlCtrl>> = match answers {
            Ok(answers) => answers,
            Err(Failure::Refused(libc::ENOENT)) => Vec::new(),
            Err(failure) => return Err(self.explain(failure, "find the kernel's WireGuard")),
        };
        let id = answers.iter().flat_map(|m| &m.payload.nlas).find_map(|a| {
            if let GenlCtrlAttrs::FamilyId(id) = a {
                Some(*id)
            } else {
                None
            }
        });
        id.ok_or_else(|| BackendError::NoWireGuard {
            interface: self.interface.clone(),
            path: super::backend::UAPI_DIR.into(),
        })
    }

    fn read(&mut self) -> Result<Device, BackendError> {
        let get = get_device(&self.interface, self.family);
        let answers = self.exchange(get, NLM_F_REQUEST | NLM_F_DUMP);
        let answers: Vec<GenlMessage<WireguardMessage>> = answers
            .map_err(|failure| self.explain(failure, &format!("read {}", self.interface)))?;
        Ok(merge(answers.into_iter().map(|m| m.payload)))
    }

    /// Sends one request and collects what it is answered with, up to its end.
    fn exchange<Q, A>(
        &mut self,
        request: GenlMessage<Q>,
        flags: u16,
    ) -> Result<Vec<GenlMessage<A>>, Failure>
    where
        GenlMessage<Q>: NetlinkSerializable + Clone,
        GenlMessage<A>: NetlinkDeserializable,
        Q: std::fmt::Debug,
    {
        for _ in 1..DUMP_TRIES {
            let (answers, torn) = self.try_exchange(request.clone(), flags)?;
            if !torn {
                return Ok(answers);
            }
        }
        // What is torn is better than nothing: the next read comes in a second.
        Ok(self.try_exchange(request, flags)?.0)
    }

    /// The answers, and whether what was read changed meanwhile.
    fn try_exchange<Q, A>(
        &mut self,
        request: GenlMessage<Q>,
        flags: u16,
    ) -> Result<(Vec<GenlMessage<A>>, bool), Failure>
    where
        GenlMessage<Q>: NetlinkSerializable,
        GenlMessage<A>: NetlinkDeserializable,
        Q: std::fmt::Debug,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = encode(request, flags, self.sequence);
        send(&self.socket, &bytes).map_err(Failure::System)?;
        let mut buffer = Zeroizing::new(vec![0; BUFFER]);
        let (mut answers, mut torn) = (Vec::new(), false);
        while answers.len() < MAX_MESSAGES {
            let length = receive(&self.socket, &mut buffer).map_err(Failure::System)?;
            let mut rest = &buffer[..length];
            while let Some(message) = next_message(&mut rest) {
                let bad = |error: netlink_packet_core::DecodeError| {
                    Failure::System(io::Error::other(error.to_string()))
                };
                let message =
                    NetlinkMessage::<GenlMessage<A>>::deserialize(message).map_err(bad)?;
                let (header, payload) = message.into_parts();
                if header.sequence_number != self.sequence {
                    continue; // of an exchange before, that was given up
                }
                torn |= header.flags & DUMP_INTERRUPTED != 0;
                match payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            Some(code) => Err(Failure::Refused(-code.get())),
                            None => Ok((answers, torn)),
                        };
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(Failure::Refused(-done.code));
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, torn)),
                    NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
                }
            }
        }
        Ok((answers, torn))
    }

    fn explain(&self, failure: Failure, what: &str) -> BackendError {
        let interface = self.interface.clone();
        match failure {
            Failure::Refused(libc::ENODEV) => BackendError::NoSuchInterface(interface),
            Failure::Refused(libc::EOPNOTSUPP) => BackendError::NotWireGuard(interface),
            Failure::Refused(libc::EPERM | libc::EACCES) => BackendError::NoPermission(interface),
            Failure::Refused(errno) => BackendError::System {
                what: what.to_owned(),
                source: io::Error::from_raw_os_error(errno),
            },
            Failure::System(source) => BackendError::System {
                what: what.to_owned(),
                source,
            },
        }
    }
}

impl Backend for Kernel {
    async fn device(&mut self) -> Result<Device, BackendError> {
        self.read()
    }

    async fn set_endpoint(
        &mut self,
        key: PublicKey,
        endpoint: SocketAddr,
    ) -> Result<(), BackendError> {
        let set = set_endpoint(&self.interface, key, endpoint, self.family);
        let done = self.exchange::<_, WireguardMessage>(set, NLM_F_REQUEST | NLM_F_ACK);
        match done {
            Ok(_) => Ok(()),
            // What newer kernels may say of a peer that is not there; 6.12 says nothing.
            Err(Failure::Refused(libc::ENOENT)) => Err(BackendError::NoSuchPeer(key)),
            Err(failure) => Err(self.explain(failure, &format!("set the endpoint of {key}"))),
        }
    }
}

fn get_device(interface: &str, family: u16) -> GenlMessage<WireguardMessage> {
    let mut message = GenlMessage::from_payload(WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes: vec![WireguardAttribute::IfName(interface.to_owned())],
    });
    message.set_resolved_family_id(family);
    message
}

/// UPDATE_ONLY: a peer that is gone stays gone, and what is not named stays as it is.
fn set_endpoint(
    interface: &str,
    key: PublicKey,
    endpoint: SocketAddr,
    family: u16,
) -> GenlMessage<WireguardMessage> {
    let peer = WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
        WireguardPeerAttribute::Endpoint(endpoint),
    ]);
    let mut message = GenlMessage::from_payload(WireguardMessage {
        cmd: WireguardCmd::SetDevice,
        attributes: vec![
            WireguardAttribute::IfName(interface.to_owned()),
            WireguardAttribute::Peers(vec![peer]),
        ],
    });
    message.set_resolved_family_id(family);
    message
}

fn encode<Q>(request: GenlMessage<Q>, flags: u16, sequence: u32) -> Vec<u8>
where
    GenlMessage<Q>: NetlinkSerializable,
    Q: std::fmt::Debug,
{
    let mut message = NetlinkMessage::from(request);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// A dump's messages make one device; a peer whose allowed IPs did not fit goes on in the next.
fn merge(messages: impl Iterator<Item = WireguardMessage>) -> Device {
    let mut device = Device {
        private_key: None,
        public_key: None,
        listen_port: 0,
        fwmark: 0,
        peers: Vec::new(),
    };
    for attribute in messages.flat_map(|message| message.attributes) {
        match attribute {
            WireguardAttribute::PrivateKey(mut key) => {
                // The kernel has all zeroes for none.
                device.private_key = (key != [0; 32]).then(|| PrivateKey::from_bytes(key));
                key.zeroize();
            }
            WireguardAttribute::PublicKey(key) => {
                device.public_key = (key != [0; 32]).then_some(PublicKey(key));
            }
            WireguardAttribute::ListenPort(port) => device.listen_port = port,
            WireguardAttribute::Fwmark(mark) => device.fwmark = mark,
            WireguardAttribute::Peers(peers) => {
                for found in peers {
                    take_peer(&mut device.peers, found);
                }
            }
            WireguardAttribute::IfIndex(_)
            | WireguardAttribute::IfName(_)
            | WireguardAttribute::Flags(_)
            | WireguardAttribute::Other(_)
            | _ => {}
        }
    }
    device
}

fn take_peer(peers: &mut Vec<DevicePeer>, found: WireguardPeer) {
    let key = found.0.iter().find_map(|attribute| {
        if let WireguardPeerAttribute::PublicKey(key) = attribute {
            Some(PublicKey(*key))
        } else {
            None
        }
    });
    let Some(key) = key else { return };
    if peers.last().is_none_or(|last| last.key != key) {
        if peers.len() == MAX_PEERS {
            return;
        }
        peers.push(DevicePeer::new(key));
    }
    let Some(peer) = peers.last_mut() else { return };
    for attribute in found.0 {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = seconds,
            WireguardPeerAttribute::RxBytes(bytes) => peer.rx_bytes = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.tx_bytes = bytes,
            WireguardPeerAttribute::LastHandshake(time) => {
                let seconds = u64::try_from(time.seconds).unwrap_or(0);
                let nanos = u32::try_from(time.nano_seconds).unwrap_or(0);
                let at = Duration::new(seconds, nanos.min(999_999_999));
                peer.last_handshake = (!at.is_zero()).then_some(at);
            }
            WireguardPeerAttribute::AllowedIps(allowed) => {
                let room = MAX_ALLOWED_IPS.saturating_sub(peer.allowed_ips.len());
                let prefixes = allowed.iter().filter_map(|ip| prefix(ip));
                peer.allowed_ips.extend(prefixes.take(room));
            }
            WireguardPeerAttribute::PresharedKey(mut secret) => secret.zeroize(),
            WireguardPeerAttribute::PublicKey(_)
            | WireguardPeerAttribute::ProtocolVersion(_)
            | WireguardPeerAttribute::Flags(_)
            | WireguardPeerAttribute::Other(_)
            | _ => {}
        }
    }
}

fn prefix(attributes: &[WireguardAllowedIpAttr]) -> Option<IpPrefix> {
    let (mut address, mut length) = (None, None);
    for attribute in attributes {
        if let WireguardAllowedIpAttr::IpAddr(ip) = attribute {
            address = Some(*ip);
        } else if let WireguardAllowedIpAttr::Cidr(bits) = attribute {
            length = Some(*bits);
        }
    }
    IpPrefix::new(address?, length?)
}

/// The next message of a read, without its padding.
fn next_message<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = NetlinkBuffer::new_checked(*rest).ok()?.length() as usize;
    let (message, after) = rest.split_at_checked(length)?;
    let padding = length.next_multiple_of(4) - length;
    *rest = after.get(padding..).unwrap_or_default();
    Some(message)
}

fn open_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_GENERIC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    socket2::SockRef::from(&fd).set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(fd)
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes are readable for their length; without an address it goes to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is writable for its length.
    let read = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests;
