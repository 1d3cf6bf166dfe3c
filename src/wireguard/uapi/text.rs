//! The text of the UAPI protocol: requests, and a reader that is fed what arrives.

use std::net::SocketAddr;
use std::time::Duration;

use wice_signaling::protocol::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::wireguard::backend::{Device, DevicePeer, MAX_ALLOWED_IPS, MAX_PEERS};

/// The longest line: a key's name and 64 characters of hex; twice that for what others may add.
const MAX_LINE: usize = 256;

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// The interface, as far as it was told.
    pub(super) device: Device,
    /// It told its public key instead of its private one, as boringtun does.
    pub(super) own_public_key: bool,
    /// 0 when all is well; never negative.
    pub(super) errno: i32,
}

/// Takes an answer piece by piece. Keeps no more than one line, and wipes it.
#[derive(Debug)]
pub(super) struct Reader {
    line: Zeroizing<Vec<u8>>,
    device: Device,
    own_public_key: bool,
    errno: Option<i32>,
    handshake: (u64, u32),
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            line: Zeroizing::new(Vec::with_capacity(MAX_LINE)),
            device: Device {
                private_key: None,
                public_key: None,
                listen_port: 0,
                fwmark: 0,
                peers: Vec::new(),
            },
            own_public_key: false,
            errno: None,
            handshake: (0, 0),
        }
    }
}

impl Reader {
    /// Takes what has arrived; whether the answer is whole. An error says what is wrong with it.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<bool, String> {
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() == MAX_LINE {
                    return Err(format!("a line of more than {MAX_LINE} bytes"));
                }
                self.line.push(*byte);
                continue;
            }
            if self.line.is_empty() {
                return match self.errno {
                    Some(_) => Ok(true),
                    None => Err("an answer without errno".to_owned()),
                };
            }
            let line =
                std::mem::replace(&mut self.line, Zeroizing::new(Vec::with_capacity(MAX_LINE)));
            self.take_line(&line)?;
        }
        Ok(false)
    }

    /// What was answered.
    pub(super) fn finish(mut self) -> Answer {
        self.close_peer();
        if self.device.public_key.is_none() {
            let own = self.device.private_key.as_ref();
            self.device.public_key = own.map(PrivateKey::public_key);
        }
        Answer {
            device: self.device,
            own_public_key: self.own_public_key,
            errno: self.errno.unwrap_or_default(),
        }
    }

    fn take_line(&mut self, line: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(line).map_err(|_| "a line that is no text".to_owned())?;
        // The line itself is not shown: it may be a secret.
        let (name, value) = text.split_once('=').ok_or("a line without =")?;
        let bad = || format!("{name} with a value that is none");
        match name {
            "errno" => {
                let errno: i32 = value.parse().map_err(|_| bad())?;
                self.errno = Some(errno.checked_abs().ok_or_else(bad)?);
            }
            "private_key" => {
                let key = secret(value).ok_or_else(bad)?;
                // All zeroes is none.
                let present = *key != [0; 32];
                self.device.private_key = present.then(|| PrivateKey::from_bytes(*key));
            }
            "own_public_key" => {
                self.device.public_key = Some(PublicKey(*secret(value).ok_or_else(bad)?));
                self.own_public_key = true;
            }
            "listen_port" => self.device.listen_port = value.parse().map_err(|_| bad())?,
            "fwmark" => self.device.fwmark = value.parse().map_err(|_| bad())?,
            "public_key" => {
                self.close_peer();
                if self.device.peers.len() == MAX_PEERS {
                    return Err(format!("more than {MAX_PEERS} peers"));
                }
                let key = PublicKey(*secret(value).ok_or_else(bad)?);
                self.device.peers.push(DevicePeer::new(key));
            }
            _ => {
                if let Some(peer) = self.device.peers.last_mut() {
                    take_peer(peer, &mut self.handshake, name, value).ok_or_else(bad)?;
                }
            }
        }
        Ok(())
    }

    /// The handshake's two lines are one time.
    fn close_peer(&mut self) {
        let (seconds, nanos) = std::mem::take(&mut self.handshake);
        if let Some(peer) = self.device.peers.last_mut() {
            let at = Duration::new(seconds, nanos);
            peer.last_handshake = (!at.is_zero()).then_some(at);
        }
    }
}

/// Points a peer elsewhere. `update_only` stands before the endpoint: who does not know it stops
/// there.
pub(super) fn set_endpoint(key: PublicKey, endpoint: SocketAddr, update_only: bool) -> String {
    let update_only = if update_only {
        "update_only=true\n"
    } else {
        ""
    };
    format!(
        "set=1\npublic_key={}\n{update_only}endpoint={endpoint}\n\n",
        hex::encode(key.0)
    )
}

/// Takes a peer away.
pub(super) fn remove(key: PublicKey) -> String {
    format!("set=1\npublic_key={}\nremove=true\n\n", hex::encode(key.0))
}

/// A line about a peer; names that are not known are passed over.
fn take_peer(
    peer: &mut DevicePeer,
    handshake: &mut (u64, u32),
    name: &str,
    value: &str,
) -> Option<()> {
    const NANOS: u32 = 999_999_999;
    match name {
        "endpoint" => peer.endpoint = Some(endpoint(value)?),
        "rx_bytes" => peer.rx_bytes = value.parse().ok()?,
        "tx_bytes" => peer.tx_bytes = value.parse().ok()?,
        "persistent_keepalive_interval" => peer.keepalive = value.parse().ok()?,
        "last_handshake_time_sec" => handshake.0 = value.parse().ok()?,
        "last_handshake_time_nsec" => handshake.1 = value.parse::<u32>().ok()?.min(NANOS),
        "allowed_ip" => {
            // A prefix that is not canonical is of no use to people; the implementation has it.
            if let Ok(prefix) = value.parse()
                && peer.allowed_ips.len() < MAX_ALLOWED_IPS
            {
                peer.allowed_ips.push(prefix);
            }
        }
        _ => {}
    }
    Some(())
}

/// An address with its port; the zone of a link-local one is left out.
fn endpoint(value: &str) -> Option<SocketAddr> {
    if let Ok(endpoint) = value.parse() {
        return Some(endpoint);
    }
    let (address, rest) = value.split_once('%')?;
    let (_, port) = rest.split_once(']')?;
    format!("{address}]{port}").parse().ok()
}

fn secret(value: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(value, &mut *bytes).ok()?;
    Some(bytes)
}
