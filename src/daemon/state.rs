//! What lasts: key, session, sequence, membership, the last adverts of peers and the last servers,
//! in the state folder. With it a daemon gets its paths back while signaling is down.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wice_signaling::protocol::{
    MAX_ADVERT_LEN, MAX_MEMBERSHIP_LEN, PrivateKey, PublicKey, RecordKind, Session,
};

use super::Settings;

/// Nothing that is kept here is larger: 4,096 adverts of 2 KiB in hex, with their keys.
const MAX_FILE: u64 = 20 << 20;

const KEY: &str = "key";
const NODE: &str = "node.json";
const NETWORK: &str = "network.json";
const ADVERTS: &str = "adverts.json";
const ROUTES: &str = "routes.json";
const SERVERS: &str = "servers.json";
const ENDPOINTS: &str = "endpoints.json";
const GIVEN: &str = "given.json";

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file or the folder itself cannot be read or written.
    #[error(
        "cannot use {path}: {source}\n  it must be on a writable disk and belong to the daemon's user (see --state-dir)"
    )]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Another daemon has it.
    #[error(
        "the state folder {0} is in use by another wice, which runs already\n  stop that one first (systemctl stop, Ctrl-C or wice down); a second node of `wice up` needs its own --state-dir and --interface"
    )]
    InUse(String),
    /// A file's content makes no sense.
    #[error("{path} is damaged: {why}\n  restore it from a backup, or remove it to start afresh")]
    Damaged {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
}

/// The node's identity in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeState {
    /// 16 bytes in hex.
    #[serde(with = "hex")]
    pub session: [u8; 16],
    /// Of the last advert that was published.
    pub sequence: u64,
    /// Of the last routes that were published.
    pub routes_sequence: u64,
    /// Which of the node's possible overlay IPv4 addresses it uses.
    pub overlay_counter: u8,
    /// The name that was given at a start; none where it is the host's.
    #[serde(default)]
    pub name: Option<String>,
    /// Whose session it is, in base64: attached mode alone has keys that change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl NodeState {
    /// Of a node that starts afresh.
    pub(super) fn new(session: [u8; 16]) -> Self {
        Self {
            session,
            sequence: 0,
            routes_sequence: 0,
            overlay_counter: 0,
            name: None,
            key: None,
        }
    }

    /// A name that is given is kept, and goes before the host's at later starts.
    pub(super) fn keep_name(&mut self, settings: &mut Settings) {
        if !settings.name_is_default {
            self.name = Some(settings.name.clone());
        } else if let Some(name) = &self.name {
            settings.name.clone_from(name);
        }
    }

    /// The session.
    pub(super) fn session(&self) -> Session {
        Session(self.session)
    }
}

/// The network that the node has joined.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct NetworkState {
    /// For people.
    pub name: String,
    /// The signaling service.
    pub url: String,
    /// The SHA-256 of its certificate in hex; none where public authorities vouch for it.
    pub pin: Option<String>,
    /// The network's id in hex.
    #[serde(with = "hex")]
    pub network: [u8; 32],
    /// What its records are sealed under, in hex.
    #[serde(with = "hex")]
    pub network_key: [u8; 32],
    /// The encoded membership.
    #[serde(with = "hex")]
    pub membership: Vec<u8>,
    /// What lets the node in after its invite has expired.
    pub receipt: Option<String>,
    /// Whose membership it is, in base64: attached mode alone has keys that change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The token, in attached mode: a new key joins with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A server as it was told last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ServerState {
    /// STUN and TURN servers as URIs.
    pub addresses: Vec<String>,
    /// Username and password of the TURN servers.
    pub credentials: Option<(String, String)>,
}

/// The open folder, locked for this process.
pub(super) struct State {
    folder: PathBuf,
    _lock: File,
}

impl State {
    /// Where it is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens the folder, made if it is not there (0700), and locks it.
    pub(super) fn open(folder: &Path) -> Result<Self, StateError> {
        let at = |path: &Path| path.display().to_string();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| StateError::Io {
                path: at(folder),
                source,
            })?;
        let path = folder.join("lock");
        let lock = private_file(OpenOptions::new().write(true).create(true).truncate(false))
            .open(&path)
            .map_err(|source| StateError::Io {
                path: at(&path),
                source,
            })?;
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&lock, operation).is_err() {
            return Err(StateError::InUse(at(folder)));
        }
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    /// The WireGuard private key, made of `fresh` if there is none yet.
    pub(super) fn key(&self, fresh: [u8; 32]) -> Result<PrivateKey, StateError> {
        if let Some(key) = self.known_key()? {
            return Ok(key);
        }
        let key = PrivateKey::from_bytes(fresh);
        let text = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            key.expose_secret(),
        );
        self.write(KEY, format!("{text}\n").as_bytes())?;
        Ok(key)
    }

    /// The same, if there is one.
    pub(super) fn known_key(&self) -> Result<Option<PrivateKey>, StateError> {
        let Some(text) = self.read(KEY)? else {
            return Ok(None);
        };
        let key = String::from_utf8_lossy(&text).trim().parse();
        key.map(Some)
            .map_err(|error| self.damaged(KEY, format!("{error}")))
    }

    /// The node's identity in time.
    pub(super) fn node(&self) -> Result<Option<NodeState>, StateError> {
        self.read_json(NODE)
    }

    /// Keeps it.
    pub(super) fn set_node(&self, node: &NodeState) -> Result<(), StateError> {
        self.write_json(NODE, node)
    }

    /// The network that the node has joined.
    pub(super) fn network(&self) -> Result<Option<NetworkState>, StateError> {
        self.read_json(NETWORK)
    }

    /// Keeps it.
    pub(super) fn set_network(&self, network: &NetworkState) -> Result<(), StateError> {
        self.write_json(NETWORK, network)
    }

    /// The last records of peers, by key. Damaged ones are as good as none, and said to be.
    pub(super) fn records(&self, kind: RecordKind) -> BTreeMap<PublicKey, Vec<u8>> {
        let kept = match self.read(records_file(kind)) {
            Ok(None) => return BTreeMap::new(),
            Ok(Some(bytes)) => {
                parse_records(&bytes).map_err(|why| self.damaged(records_file(kind), why))
            }
            Err(error) => Err(error),
        };
        kept.unwrap_or_else(|error| {
            tracing::warn!(event = "state-ignored", %error);
            BTreeMap::new()
        })
    }

    /// Keeps them.
    pub(super) fn set_records(
        &self,
        kind: RecordKind,
        records: &BTreeMap<PublicKey, Vec<u8>>,
    ) -> Result<(), StateError> {
        let text: BTreeMap<String, String> = records
            .iter()
            .map(|(key, record)| (hex::encode(key.0), hex::encode(record)))
            .collect();
        self.write_json(records_file(kind), &text)
    }

    /// The last servers. Damaged ones are as good as none, and said to be.
    pub(super) fn servers(&self) -> Option<ServerState> {
        self.read_json(SERVERS).unwrap_or_else(|error| {
            tracing::warn!(event = "state-ignored", %error);
            None
        })
    }

    /// Keeps them.
    pub(super) fn set_servers(&self, servers: &ServerState) -> Result<(), StateError> {
        self.write_json(SERVERS, servers)
    }

    /// Whether anything of a node is kept here.
    pub(super) fn is_node(&self) -> bool {
        [KEY, NODE, NETWORK]
            .iter()
            .any(|name| self.folder.join(name).exists())
    }

    /// Takes away what makes this machine a node of its network: another start begins with a new key. Networks that are run
    /// from this folder, and the signaling service's files, stay.
    pub(super) fn clear(&self) -> Result<(), StateError> {
        // The key last: what is left of a clearing that was cut short is still this node.
        for name in [ADVERTS, ROUTES, SERVERS, NETWORK, NODE, KEY] {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|source| StateError::Io {
                    path: path.display().to_string(),
                    source,
                })?,
            }
        }
        Ok(())
    }

    /// What peers' endpoints were before they were ours, by key. Damaged ones are as good as none.
    pub(super) fn endpoints(&self) -> BTreeMap<PublicKey, SocketAddr> {
        self.read_endpoints(ENDPOINTS)
    }

    /// What peers were given that is no slot, by key; as good as none where it is damaged.
    pub(super) fn given(&self) -> BTreeMap<PublicKey, SocketAddr> {
        self.read_endpoints(GIVEN)
    }

    fn read_endpoints(&self, name: &str) -> BTreeMap<PublicKey, SocketAddr> {
        let kept: Option<BTreeMap<String, SocketAddr>> = self.read_json(name).ok().flatten();
        let kept = kept.unwrap_or_default().into_iter();
        kept.filter_map(|(key, endpoint)| Some((key.parse().ok()?, endpoint)))
            .collect()
    }

    /// Keeps what endpoints were.
    pub(super) fn set_endpoints(
        &self,
        endpoints: &BTreeMap<PublicKey, SocketAddr>,
    ) -> Result<(), StateError> {
        self.write_endpoints(ENDPOINTS, endpoints)
    }

    /// Keeps what peers were given.
    pub(super) fn set_given(
        &self,
        given: &BTreeMap<PublicKey, SocketAddr>,
    ) -> Result<(), StateError> {
        self.write_endpoints(GIVEN, given)
    }

    fn write_endpoints(
        &self,
        name: &str,
        endpoints: &BTreeMap<PublicKey, SocketAddr>,
    ) -> Result<(), StateError> {
        let endpoints: BTreeMap<String, &SocketAddr> = endpoints
            .iter()
            .map(|(key, endpoint)| (key.to_string(), endpoint))
            .collect();
        self.write_json(name, &endpoints)
    }

    fn read_json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        parse(&bytes)
            .map(Some)
            .map_err(|why| self.damaged(name, why))
    }

    fn damaged(&self, name: &str, why: String) -> StateError {
        StateError::Damaged {
            path: self.folder.join(name).display().to_string(),
            why,
        }
    }

    fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| self.damaged(name, error.to_string()))?;
        self.write(name, &bytes)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.folder.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StateError::Io {
                    path: path.display().to_string(),
                    source,
                });
            }
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| StateError::Io {
                path: path.display().to_string(),
                source,
            })?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(self.damaged(name, format!("it has more than {MAX_FILE} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Whole or not at all: a power cut leaves the old content.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.folder.join(name);
        let beside = self.folder.join(format!(".{name}.new"));
        let written = private_file(OpenOptions::new().write(true).create(true).truncate(true))
            .open(&beside)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_data()
            })
            .and_then(|()| fs::rename(&beside, &path));
        written.map_err(|source| StateError::Io {
            path: path.display().to_string(),
            source,
        })
    }
}

fn records_file(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Advert => ADVERTS,
        RecordKind::Routes => ROUTES,
    }
}

/// A file of the folder, from bytes that may be anything.
fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// A file of records: what is no key or no record is left out, for each stands alone.
fn parse_records(bytes: &[u8]) -> Result<BTreeMap<PublicKey, Vec<u8>>, String> {
    let text: BTreeMap<String, String> = parse(bytes)?;
    let of = |(key, record): (String, String)| {
        let key = <[u8; 32]>::try_from(hex::decode(key).ok()?).ok()?;
        let record = hex::decode(record).ok()?;
        (record.len() <= MAX_ADVERT_LEN).then_some((PublicKey(key), record))
    };
    Ok(text.into_iter().filter_map(of).collect())
}

/// Feeds bytes to every parser of the folder's files, as a damaged disk could; whether any took
/// them. For the hostile tests.
#[doc(hidden)]
pub fn parse_anything(bytes: &[u8]) -> bool {
    let node = parse::<NodeState>(bytes).is_ok();
    let network =
        parse::<NetworkState>(bytes).is_ok_and(|n| n.membership.len() <= MAX_MEMBERSHIP_LEN);
    let servers = parse::<ServerState>(bytes).is_ok();
    let records = parse_records(bytes).is_ok();
    let key = String::from_utf8_lossy(bytes).trim().parse::<PrivateKey>();
    node || network || servers || records || key.is_ok()
}

fn private_file(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("wice-state-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn what_was_kept_comes_back() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = folder("kept");
        let state = State::open(&folder).unwrap();
        let key = state.key([7; 32]).unwrap().public_key();
        assert_eq!(state.key([8; 32]).unwrap().public_key(), key);
        assert_eq!(state.node().unwrap(), None);
        let node = NodeState {
            sequence: 9,
            routes_sequence: 1,
            name: Some("gate".into()),
            ..NodeState::new([3; 16])
        };
        state.set_node(&node).unwrap();
        assert!(matches!(State::open(&folder), Err(StateError::InUse(_))));
        drop(state);
        let state = State::open(&folder).unwrap();
        assert_eq!(state.node().unwrap(), Some(node));
        let mode = |name| {
            fs::metadata(folder.join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode(KEY), 0o600);
        assert_eq!(
            fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
            0o700
        );
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Cut off, overwritten, and larger than anything that was written: said by name, or done without.
    #[test]
    fn damaged_files_are_named_or_done_without() {
        let folder = folder("damaged");
        let state = State::open(&folder).unwrap();
        let node = NodeState {
            session: [3; 16],
            sequence: 9,
            routes_sequence: 1,
            overlay_counter: 0,
            name: None,
            key: None,
        };
        state.set_node(&node).unwrap();
        let whole = fs::read(folder.join(NODE)).unwrap();
        let huge = vec![b' '; usize::try_from(MAX_FILE).unwrap() + 1];
        let cut = whole[..whole.len() / 2].to_vec();
        for damage in [b"{".to_vec(), cut, vec![0; 64], Vec::new(), huge] {
            for name in [NODE, NETWORK, KEY, ADVERTS, ROUTES, SERVERS] {
                fs::write(folder.join(name), &damage).unwrap();
            }
            for error in [
                state.node().unwrap_err(),
                state.network().err().unwrap(),
                state.key([1; 32]).err().unwrap(),
            ] {
                assert!(matches!(error, StateError::Damaged { .. }), "{error}");
                let text = error.to_string();
                assert!(text.contains(&folder.display().to_string()), "{text}");
            }
            assert!(state.records(RecordKind::Advert).is_empty());
            assert!(state.records(RecordKind::Routes).is_empty());
            assert_eq!(state.servers(), None);
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    /// One bad record does not take the others with it.
    #[test]
    fn records_stand_alone() {
        let good = hex::encode([7; 32]);
        let text = format!(
            r#"{{"{good}": "0102", "zz": "01", "{}": "nothex", "00": "01"}}"#,
            hex::encode([8; 32])
        );
        let records = parse_records(text.as_bytes()).unwrap();
        assert_eq!(records, BTreeMap::from([(PublicKey([7; 32]), vec![1, 2])]));
    }
}
