//! What a node and the signaling service say to each other: one frame a WebSocket message.
//!
//! The service's challenge comes in the upgrade's response ([`CHALLENGE_HEADER`]), so the node's
//! first frames, [`ClientFrame::Hello`] and its records, follow at once.
//!
//! Encoded: type (1 byte), then the fields in the order in which they stand here; integers
//! big-endian, texts after 1 byte of length, byte strings after 2, optional ones after 0 or 1.

use super::url::MAX_URL_LEN;
use super::wire::{Reader, check_text, put_long, put_text};
use super::xeddsa::{self, Domain, SIGNATURE_LEN};
use super::{
    CarryRefusal, ErrorCode, JoinReceipt, MAX_MEMBERSHIP_LEN, MAX_PRESENCES, MAX_REVOCATION_LEN,
    MAX_SEALED_LEN, NetworkId, Presence, PrivateKey, PublicKey, RecordError, RecordKind,
    ServerAddress,
};

/// Header of the 101 response with the challenge: 32 random bytes in base64 with padding.
pub const CHALLENGE_HEADER: &str = "wice-challenge";

/// Header of the 101 response with STUN and TURN servers, without credentials: URIs of RFC 7064
/// and RFC 7065 parted by commas.
pub const SERVERS_HEADER: &str = "wice-servers";

/// Header of a node's upgrade request: frames beyond those of the first `wice.v1` that it
/// understands, parted by commas. The service sends no others, for the first nodes ended the
/// connection at a frame that they did not know. Later ones skip it: a frame that may be skipped
/// needs no word here. In the service's 101 response: the same of nodes' frames.
pub const ACCEPTS_HEADER: &str = "wice-accepts";

/// In [`ACCEPTS_HEADER`]: [`ServerFrame::Presence`].
pub const ACCEPTS_PRESENCE: &str = "presence";

/// In the response's [`ACCEPTS_HEADER`]: [`ClientFrame::Carry`], at which a service of before ends the
/// connection.
pub const ACCEPTS_CARRY: &str = "carry";

/// The WebSocket subprotocol (RFC 6455 §1.9): it names this protocol's version.
pub const SUBPROTOCOL: &str = "wice.v1";

/// Length of a challenge.
pub const CHALLENGE_LEN: usize = 32;

/// The most servers that a service names.
pub const MAX_SERVERS: usize = 16;

/// The longest text of a [`ServerFrame::Error`], username or password.
const MAX_TEXT_LEN: usize = 255;

/// The longest first frame of a node: all that is read of one who has proved nothing.
pub const MAX_HELLO_LEN: usize = 1 + 32 + 32 + 2 + MAX_MEMBERSHIP_LEN + (1 + 32) + SIGNATURE_LEN;

/// The longest frame either way: a list of revocations, and for [`ServerFrame::Welcome`] the
/// receipt, the servers and the credentials beside it.
pub const MAX_FRAME_LEN: usize = MAX_REVOCATION_LEN + 6 * 1024;

/// A node's first frame: who it is, and why it may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The network.
    pub network: NetworkId,
    /// The node.
    pub key: PublicKey,
    /// The encoded [`super::Membership`].
    pub membership: Vec<u8>,
    /// What the service gave it when it joined, if it did before.
    pub receipt: Option<JoinReceipt>,
    /// XEdDSA signature with the WireGuard key over `wice-hello-v1\0`, network and challenge.
    pub proof: [u8; SIGNATURE_LEN],
}

impl Hello {
    /// Makes the first frame; `z` is 64 fresh random bytes.
    #[must_use]
    pub fn sign(
        key: &PrivateKey,
        network: NetworkId,
        membership: Vec<u8>,
        receipt: Option<JoinReceipt>,
        challenge: &[u8; CHALLENGE_LEN],
        z: &[u8; 64],
    ) -> Self {
        let message = [network.0, *challenge].concat();
        let proof = xeddsa::sign(key, Domain::Hello, &message, z);
        Self {
            network,
            key: key.public_key(),
            membership,
            receipt,
            proof,
        }
    }

    /// Whether whoever sent it holds the private key. Says nothing of membership.
    #[must_use]
    pub fn proves(&self, challenge: &[u8; CHALLENGE_LEN]) -> bool {
        let message = [self.network.0, *challenge].concat();
        xeddsa::verify(&self.key, Domain::Hello, &message, &self.proof)
    }
}

/// From a node to the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// Type 1. The first, and only the first.
    Hello(Hello),
    /// Type 2. Replaces the node's record of that kind.
    Publish {
        /// Which record.
        kind: RecordKind,
        /// The sealed record.
        sealed: Vec<u8>,
    },
    /// Type 3. An encoded [`super::RevocationList`]; any node may carry it, the admin key signed it.
    PublishRevocations(Vec<u8>),
    /// Type 4. The last frame: the node ends on purpose, and the others may know it at once. A
    /// service that does not know it ends the connection all the same.
    Leave,
    /// Type 5. A record of a node that does not come to the service by itself, signed by that node as
    /// ever; any member may carry it. For services that [`ACCEPTS_CARRY`]. It stays when the carrier goes.
    Carry {
        /// Whose.
        key: PublicKey,
        /// Which.
        kind: RecordKind,
        /// The sealed record.
        sealed: Vec<u8>,
    },
}

/// Time-limited credentials for every TURN server that came with them.
#[derive(Clone, PartialEq, Eq)]
pub struct TurnCredentials {
    /// UNIX time of expiry, a colon, a name.
    pub username: String,
    /// Secret.
    pub password: String,
    /// Seconds from now until they expire.
    pub lifetime_s: u32,
}

impl std::fmt::Debug for TurnCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnCredentials")
            .field("username", &self.username)
            .field("lifetime_s", &self.lifetime_s)
            .finish_non_exhaustive()
    }
}

/// STUN and TURN servers, and what opens the latter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    /// At most [`MAX_SERVERS`].
    pub addresses: Vec<ServerAddress>,
    /// `None` when the service mints none for this network.
    pub credentials: Option<TurnCredentials>,
}

/// From the service to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerFrame {
    /// Type 1. The first: the node is in. All present records follow.
    Welcome {
        /// Present when the node came without a valid one: to be kept.
        receipt: Option<JoinReceipt>,
        /// The network's encoded [`super::RevocationList`], if the service has one.
        revocations: Option<Vec<u8>>,
        /// STUN and TURN servers.
        servers: Servers,
    },
    /// Type 2. A record of another node, new or at this node's arrival.
    Record {
        /// Whose.
        key: PublicKey,
        /// Which.
        kind: RecordKind,
        /// Seconds since its node was last connected; 0 while it is.
        last_seen_s: u32,
        /// The sealed record.
        sealed: Vec<u8>,
    },
    /// Type 3. A newer list of revocations.
    Revocations(Vec<u8>),
    /// Type 4. Fresh credentials, before the last ones expire.
    Servers(Servers),
    /// Type 5. The last frame: the service closes the connection.
    Error {
        /// Why.
        code: ErrorCode,
        /// For people.
        text: String,
    },
    /// Type 6. Other nodes have come or gone; at most [`MAX_PRESENCES`], and at least one. For
    /// nodes that [`ACCEPTS_PRESENCE`].
    Presence(Vec<(PublicKey, Presence)>),
    /// Type 7. The answer to a [`ClientFrame::Carry`] that was not taken.
    NotCarried {
        /// For whom.
        key: PublicKey,
        /// Which record.
        kind: RecordKind,
        /// Why not.
        why: CarryRefusal,
    },
}

impl ClientFrame {
    /// The frame's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello(hello) => {
                out.push(1);
                out.extend_from_slice(&hello.network.0);
                out.extend_from_slice(&hello.key.0);
                put_long(&mut out, &hello.membership);
                put_receipt(&mut out, hello.receipt);
                out.extend_from_slice(&hello.proof);
            }
            Self::Publish { kind, sealed } => {
                out.extend_from_slice(&[2, kind.code()]);
                put_long(&mut out, sealed);
            }
            Self::PublishRevocations(list) => {
                out.push(3);
                put_long(&mut out, list);
            }
            Self::Leave => out.push(4),
            Self::Carry { key, kind, sealed } => {
                out.push(5);
                out.extend_from_slice(&key.0);
                out.push(kind.code());
                put_long(&mut out, sealed);
            }
        }
        out
    }

    /// Decodes a frame: bounded, without cryptography.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        let frame = match reader.u8()? {
            1 => Self::Hello(Hello {
                network: NetworkId(reader.array()?),
                key: PublicKey(reader.array()?),
                membership: reader.long(MAX_MEMBERSHIP_LEN)?.to_vec(),
                receipt: take_receipt(&mut reader)?,
                proof: reader.array()?,
            }),
            2 => Self::Publish {
                kind: take_kind(&mut reader)?,
                sealed: reader.long(MAX_SEALED_LEN)?.to_vec(),
            },
            3 => Self::PublishRevocations(reader.long(MAX_REVOCATION_LEN)?.to_vec()),
            4 => Self::Leave,
            5 => Self::Carry {
                key: PublicKey(reader.array()?),
                kind: take_kind(&mut reader)?,
                sealed: reader.long(MAX_SEALED_LEN)?.to_vec(),
            },
            other => return Err(RecordError::UnknownFrame(other)),
        };
        reader.finish()?;
        Ok(frame)
    }
}

impl ServerFrame {
    /// The frame's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Welcome {
                receipt,
                revocations,
                servers,
            } => {
                out.push(1);
                put_receipt(&mut out, *receipt);
                match revocations {
                    Some(list) => {
                        out.push(1);
                        put_long(&mut out, list);
                    }
                    None => out.push(0),
                }
                put_servers(&mut out, servers);
            }
            Self::Record {
                key,
                kind,
                last_seen_s,
                sealed,
            } => {
                out.push(2);
                out.extend_from_slice(&key.0);
                out.push(kind.code());
                out.extend_from_slice(&last_seen_s.to_be_bytes());
                put_long(&mut out, sealed);
            }
            Self::Revocations(list) => {
                out.push(3);
                put_long(&mut out, list);
            }
            Self::Servers(servers) => {
                out.push(4);
                put_servers(&mut out, servers);
            }
            Self::Error { code, text } => {
                out.extend_from_slice(&[5, code.code()]);
                put_text(&mut out, text);
            }
            Self::Presence(nodes) => {
                // Longer ones are cut by the only one who makes them.
                out.extend_from_slice(&[6, u8::try_from(nodes.len()).unwrap_or(u8::MAX)]);
                for (key, presence) in nodes {
                    out.extend_from_slice(&key.0);
                    presence.put(&mut out);
                }
            }
            Self::NotCarried { key, kind, why } => {
                out.push(7);
                out.extend_from_slice(&key.0);
                out.push(kind.code());
                why.put(&mut out);
            }
        }
        out
    }

    /// Decodes a frame: bounded, without cryptography.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        let frame = match reader.u8()? {
            1 => Self::Welcome {
                receipt: take_receipt(&mut reader)?,
                revocations: match take_flag(&mut reader)? {
                    true => Some(reader.long(MAX_REVOCATION_LEN)?.to_vec()),
                    false => None,
                },
                servers: take_servers(&mut reader)?,
            },
            2 => Self::Record {
                key: PublicKey(reader.array()?),
                kind: take_kind(&mut reader)?,
                last_seen_s: reader.u32()?,
                sealed: reader.long(MAX_SEALED_LEN)?.to_vec(),
            },
            3 => Self::Revocations(reader.long(MAX_REVOCATION_LEN)?.to_vec()),
            4 => Self::Servers(take_servers(&mut reader)?),
            5 => {
                let code = reader.u8()?;
                let code = ErrorCode::ALL
                    .into_iter()
                    .find(|known| known.code() == code);
                Self::Error {
                    code: code.ok_or(RecordError::BadValue("error code"))?,
                    text: reader.text(MAX_TEXT_LEN, "error text")?.to_owned(),
                }
            }
            6 => {
                let count = usize::from(reader.u8()?);
                if !(1..=MAX_PRESENCES).contains(&count) {
                    return Err(RecordError::BadValue("count of nodes"));
                }
                let mut nodes = Vec::with_capacity(count);
                for _ in 0..count {
                    nodes.push((PublicKey(reader.array()?), Presence::take(&mut reader)?));
                }
                Self::Presence(nodes)
            }
            7 => Self::NotCarried {
                key: PublicKey(reader.array()?),
                kind: take_kind(&mut reader)?,
                why: CarryRefusal::take(&mut reader)?,
            },
            other => return Err(RecordError::UnknownFrame(other)),
        };
        reader.finish()?;
        Ok(frame)
    }
}

/// Writes servers as [`SERVERS_HEADER`] has them.
#[must_use]
pub fn servers_to_header(servers: &[ServerAddress]) -> String {
    let uris: Vec<String> = servers.iter().map(ToString::to_string).collect();
    uris.join(",")
}

/// Reads [`SERVERS_HEADER`]: what is no server is skipped, and what is past [`MAX_SERVERS`].
#[must_use]
pub fn servers_from_header(text: &str) -> Vec<ServerAddress> {
    text.split(',')
        .take(MAX_SERVERS)
        .filter_map(|uri| uri.trim().parse().ok())
        .collect()
}

fn put_receipt(out: &mut Vec<u8>, receipt: Option<JoinReceipt>) {
    match receipt {
        Some(receipt) => {
            out.push(1);
            out.extend_from_slice(&receipt.0);
        }
        None => out.push(0),
    }
}

fn take_receipt(reader: &mut Reader<'_>) -> Result<Option<JoinReceipt>, RecordError> {
    Ok(if take_flag(reader)? {
        Some(JoinReceipt(reader.array()?))
    } else {
        None
    })
}

fn take_flag(reader: &mut Reader<'_>) -> Result<bool, RecordError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(RecordError::BadValue("presence")),
    }
}

fn take_kind(reader: &mut Reader<'_>) -> Result<RecordKind, RecordError> {
    RecordKind::of(reader.u8()?).ok_or(RecordError::BadValue("record kind"))
}

fn put_servers(out: &mut Vec<u8>, servers: &Servers) {
    let addresses = &servers.addresses[..servers.addresses.len().min(MAX_SERVERS)];
    out.push(addresses.len() as u8);
    for address in addresses {
        put_long(out, address.to_string().as_bytes());
    }
    match &servers.credentials {
        Some(credentials) => {
            out.push(1);
            put_text(out, &credentials.username);
            put_text(out, &credentials.password);
            out.extend_from_slice(&credentials.lifetime_s.to_be_bytes());
        }
        None => out.push(0),
    }
}

fn take_servers(reader: &mut Reader<'_>) -> Result<Servers, RecordError> {
    let count = usize::from(reader.u8()?);
    if count > MAX_SERVERS {
        return Err(RecordError::TooLong);
    }
    let mut addresses = Vec::with_capacity(count);
    for _ in 0..count {
        let text = std::str::from_utf8(reader.long(MAX_URL_LEN)?)
            .map_err(|_| RecordError::BadValue("server"))?;
        check_text(text, MAX_URL_LEN, "server")?;
        addresses.push(text.parse().map_err(|_| RecordError::BadValue("server"))?);
    }
    let credentials = match take_flag(reader)? {
        true => Some(TurnCredentials {
            username: reader.text(MAX_TEXT_LEN, "username")?.to_owned(),
            password: reader.text(MAX_TEXT_LEN, "password")?.to_owned(),
            lifetime_s: reader.u32()?,
        }),
        false => None,
    };
    Ok(Servers {
        addresses,
        credentials,
    })
}
