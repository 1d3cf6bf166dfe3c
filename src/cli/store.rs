//! Networks whose admin key is on this machine: `<state_dir>/networks/<name>/`, readable by their owner alone.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use wice_signaling::protocol::{
    AdminKey, InviteId, NetworkId, NetworkKey, PublicKey, RevocationList, ServerPin, SignalUrl,
};
use zeroize::Zeroizing;

/// Bytes of a network's name: it stands in tokens.
const MAX_NAME: usize = 63;
const FOLDER: &str = "networks";
const ADMIN_KEY: &str = "admin.key";
const NETWORK: &str = "network.json";
const REVOCATIONS: &str = "revocations";

/// A network, as its folder has it.
pub(super) struct Network {
    folder: PathBuf,
    pub(super) record: Record,
    pub(super) admin: AdminKey,
    pub(super) revocations: Option<RevocationList>,
}

/// What is written down beside the admin key.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) name: String,
    id: String,
    url: String,
    pin: Option<String>,
    /// Hexadecimal.
    network_key: String,
    pub(super) invites: Vec<InviteRecord>,
}

/// An invite that was given out.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct InviteRecord {
    pub(super) id: String,
    pub(super) label: String,
    /// UNIX time.
    pub(super) expiry: u64,
    pub(super) routes: Vec<String>,
}

impl Network {
    /// Where a network of that name would be, which must be a name that can be had and is not taken.
    pub(super) fn place(state_dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
        let folder = folder_of(state_dir, name)?;
        if folder.join(NETWORK).exists() {
            bail!(
                "there is a network {name} already\n  see it with `wice network show`, or take another name"
            );
        }
        Ok(folder)
    }

    /// Makes a network of that name; there must be none yet.
    pub(super) fn create(
        state_dir: &Path,
        name: &str,
        url: &SignalUrl,
        pin: Option<ServerPin>,
        admin: AdminKey,
        network_key: &NetworkKey,
    ) -> anyhow::Result<Self> {
        let folder = Self::place(state_dir, name)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| cannot_write(&folder))?;
        let network = Self {
            record: Record {
                version: 1,
                name: name.to_owned(),
                id: admin.network_id().to_string(),
                url: url.to_string(),
                pin: pin.map(|pin| pin.to_string()),
                network_key: hex::encode(network_key.expose_secret()),
                invites: Vec::new(),
            },
            folder,
            admin,
            revocations: None,
        };
        let seed = Zeroizing::new(hex::encode(network.admin.expose_seed()));
        network.write(ADMIN_KEY, seed.as_bytes())?;
        network.save()?;
        Ok(network)
    }

    /// The network of that name; without a name the only one.
    pub(super) fn open(state_dir: &Path, name: Option<&str>) -> anyhow::Result<Self> {
        let names = names(state_dir);
        let name = match (name, names.as_slice()) {
            (Some(name), _) => name,
            (None, [only]) => only,
            (None, []) => bail!(
                "there is no network on this machine (looked in {})\n  make one: wice network new NAME --signal wss://SERVER:8443",
                state_dir.join(FOLDER).display()
            ),
            (None, several) => bail!(
                "there are several networks: {}\n  say which with --network",
                several.join(", ")
            ),
        };
        let folder = folder_of(state_dir, name)?;
        if !folder.join(NETWORK).exists() {
            let there = match names.as_slice() {
                [] => String::new(),
                some => format!("there are {}; ", some.join(", ")),
            };
            bail!(
                "there is no network {name} on this machine (looked in {})\n  {there}make it: wice network new {name} --signal wss://SERVER:8443",
                state_dir.join(FOLDER).display()
            );
        }
        let record = fs::read(folder.join(NETWORK)).with_context(|| {
            format!(
                "{} cannot be read\n  run as whoever made the network",
                folder.join(NETWORK).display()
            )
        })?;
        let record: Record = serde_json::from_slice(&record)
            .with_context(|| format!("{} is damaged", folder.join(NETWORK).display()))?;
        let seed = Zeroizing::new(
            fs::read_to_string(folder.join(ADMIN_KEY))
                .with_context(|| format!("the admin key of {name} cannot be read"))?,
        );
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(seed.trim(), &mut *bytes)
            .with_context(|| format!("{} is damaged", folder.join(ADMIN_KEY).display()))?;
        let admin = AdminKey::from_seed(&bytes);
        if admin.network_id().to_string() != record.id {
            bail!(
                "the admin key in {} belongs to another network\n  put the right one back",
                folder.display()
            );
        }
        let revocations = match fs::read(folder.join(REVOCATIONS)) {
            Ok(bytes) => Some(
                RevocationList::decode_verified(&bytes, &admin.network_id())
                    .with_context(|| format!("the revocations of {name} are damaged"))?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context("the revocations cannot be read"),
        };
        Ok(Self {
            folder,
            record,
            admin,
            revocations,
        })
    }

    /// Removes it from this machine, with its admin key: nobody can be let in or put out any more.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| cannot_write(&self.folder))
    }

    /// The signaling service.
    pub(super) fn url(&self) -> anyhow::Result<SignalUrl> {
        Ok(self.record.url.parse()?)
    }

    /// What tokens pin.
    pub(super) fn pin(&self) -> anyhow::Result<Option<ServerPin>> {
        self.record.pin.as_deref().map(parse_pin).transpose()
    }

    /// What records are sealed under.
    pub(super) fn network_key(&self) -> anyhow::Result<NetworkKey> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(&self.record.network_key, &mut bytes)
            .context("the network key on this machine is damaged")?;
        Ok(NetworkKey::from_bytes(bytes))
    }

    /// Writes an invite down.
    pub(super) fn note_invite(&mut self, invite: InviteRecord) -> anyhow::Result<()> {
        self.record.invites.push(invite);
        self.save()
    }

    /// Signs and writes a list with these put out beside those that were.
    pub(super) fn revoke(
        &mut self,
        nodes: BTreeSet<PublicKey>,
        invites: BTreeSet<InviteId>,
    ) -> anyhow::Result<RevocationList> {
        let (mut all_nodes, mut all_invites) = (nodes, invites);
        let mut sequence = 1;
        if let Some(last) = &self.revocations {
            all_nodes.extend(last.nodes());
            all_invites.extend(last.invites());
            sequence = last.sequence() + 1;
        }
        let list = RevocationList::sign(&self.admin, sequence, all_nodes, all_invites)?;
        self.write(REVOCATIONS, list.encoded())?;
        self.revocations = Some(list.clone());
        Ok(list)
    }

    fn save(&self) -> anyhow::Result<()> {
        let text = Zeroizing::new(serde_json::to_vec_pretty(&self.record)?);
        self.write(NETWORK, &text)
    }

    /// Whole or not at all, readable by the owner alone.
    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let fresh = self.folder.join(format!(".{name}.new"));
        let written = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        written().with_context(|| cannot_write(&path))
    }
}

/// The names of the networks on this machine.
pub(super) fn names(state_dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(state_dir.join(FOLDER))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join(NETWORK).exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// The ids of the networks on this machine.
pub(super) fn ids(state_dir: &Path) -> BTreeSet<NetworkId> {
    let id = |name: String| {
        let text = fs::read(state_dir.join(FOLDER).join(name).join(NETWORK)).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        record.id.parse().ok()
    };
    names(state_dir).into_iter().filter_map(id).collect()
}

/// The revocations that were signed on this machine, whether or not they were carried.
pub(super) fn revocations(state_dir: &Path) -> Vec<(NetworkId, RevocationList)> {
    let of = |name: String| {
        let network = Network::open(state_dir, Some(&name)).ok()?;
        Some((network.admin.network_id(), network.revocations?))
    };
    names(state_dir).into_iter().filter_map(of).collect()
}

/// `sha256:` and 64 hexadecimal digits, as `wice signal` prints it.
pub(super) fn parse_pin(text: &str) -> anyhow::Result<ServerPin> {
    let mut bytes = [0; 32];
    text.strip_prefix("sha256:")
        .and_then(|digits| hex::decode_to_slice(digits, &mut bytes).ok())
        .ok_or_else(|| {
            super::Usage(format!(
                "{text} is no pin\n  one is sha256: and 64 hexadecimal digits, as `wice signal` prints it at its start"
            ))
        })?;
    Ok(ServerPin(bytes))
}

fn folder_of(state_dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty()
        || name.len() > MAX_NAME
        || name.starts_with('.')
        || !name.chars().all(allowed)
    {
        return Err(super::Usage(format!(
            "a network cannot be called {name:?}\n  take 1 to {MAX_NAME} letters, digits, dots, dashes or underscores"
        ))
        .into());
    }
    Ok(state_dir.join(FOLDER).join(name))
}

fn cannot_write(path: &Path) -> String {
    format!(
        "cannot write {}\n  run as root, or give another --state-dir",
        path.display()
    )
}
