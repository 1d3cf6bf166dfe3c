//! Userspace WireGuard by its UAPI socket (wireguard.com/xplatform): text, one `key=value` a line,
//! an empty line at the end. Whatever answers there is read with bounds and within a time.

#[cfg(test)]
mod tests;
mod text;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use wice_signaling::protocol::PublicKey;
use zeroize::Zeroizing;

use super::backend::{Backend, BackendError, Device, DevicePeer};
use text::{Answer, Reader};

/// A process on this machine answers from memory: this long means that it hangs.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer: 4,096 peers with 64 allowed IPs each have 13 MB.
const MAX_ANSWER: usize = 16 << 20;
/// Bytes of one read.
const CHUNK: usize = 16 << 10;
/// boringtun tells whole seconds since a handshake: two reads of one handshake differ by this at
/// most.
const AGE_ROUNDING: Duration = Duration::from_secs(2);

/// An interface behind a UAPI socket.
#[derive(Debug)]
pub struct Uapi {
    interface: String,
    path: PathBuf,
    /// Whether `update_only` is understood; `None` until it was tried.
    update_only: Option<bool>,
    /// Whether it is one that ends when an existing peer is set (boringtun up to 0.7).
    fragile: bool,
    /// Handshakes of an implementation that tells ages, as times.
    handshakes: Vec<(PublicKey, Duration)>,
}

/// Reads an answer from its bytes, cut in two at `cut` as a stream may cut it. `None` while it is not whole. The
/// way in for fuzzing.
pub fn read_answer(bytes: &[u8], cut: usize) -> Result<Option<Device>, String> {
    let mut reader = Reader::default();
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let whole = reader.take(first)? || reader.take(second)?;
    Ok(whole.then(|| reader.finish().device))
}

impl Uapi {
    /// Behind this socket.
    pub fn new(interface: &str, path: PathBuf) -> Self {
        Self {
            interface: interface.to_owned(),
            path,
            update_only: None,
            fragile: false,
            handshakes: Vec::new(),
        }
    }

    /// Whether a socket is there that somebody listens at: a killed process leaves its file.
    pub async fn is_there(path: &Path) -> bool {
        let is_socket = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        let connected = tokio::time::timeout(TIMEOUT, UnixStream::connect(path));
        is_socket && !connected.await.is_ok_and(|done| done.is_err_and(refused))
    }

    async fn read(&mut self) -> Result<Device, BackendError> {
        let answer = self.ask("get=1\n\n").await?;
        if answer.errno != 0 {
            return Err(self.refused("read the interface", answer.errno));
        }
        let Answer {
            mut device,
            own_public_key,
            ..
        } = answer;
        self.fragile = own_public_key;
        if own_public_key {
            self.make_times(&mut device.peers);
        }
        Ok(device)
    }

    /// Ages become times that stay the same from read to read.
    fn make_times(&mut self, peers: &mut [DevicePeer]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let before = std::mem::take(&mut self.handshakes);
        for peer in peers {
            let Some(age) = peer.last_handshake else {
                continue;
            };
            let at = now.saturating_sub(age);
            let known = before.iter().find(|(key, _)| *key == peer.key);
            let at = match known {
                Some((_, known)) if known.abs_diff(at) <= AGE_ROUNDING => *known,
                Some(_) | None => at,
            };
            peer.last_handshake = Some(at);
            self.handshakes.push((peer.key, at));
        }
    }

    /// For implementations without `update_only`: the peer is looked for just before, and one that
    /// was removed in that very moment, and so came back empty, is removed again.
    async fn set_and_read_back(
        &mut self,
        key: PublicKey,
        endpoint: SocketAddr,
    ) -> Result<(), BackendError> {
        let find = |device: Device| device.peers.into_iter().find(|peer| peer.key == key);
        let before = find(self.read().await?).ok_or(BackendError::NoSuchPeer(key))?;
        if self.fragile {
            return Err(BackendError::CannotUpdate(self.interface.clone()));
        }
        let answer = self.ask(&text::set_endpoint(key, endpoint, false)).await?;
        if answer.errno != 0 {
            return Err(self.refused(&format!("set the endpoint of {key}"), answer.errno));
        }
        let after = find(self.read().await?).ok_or(BackendError::NoSuchPeer(key))?;
        if after.allowed_ips.is_empty() && !before.allowed_ips.is_empty() {
            self.ask(&text::remove(key)).await?;
            return Err(BackendError::NoSuchPeer(key));
        }
        Ok(())
    }

    /// One request, one answer, on a connection of its own.
    async fn ask(&self, request: &str) -> Result<Answer, BackendError> {
        let exchange = self.exchange(request);
        let answered = tokio::time::timeout(TIMEOUT, exchange).await;
        answered.unwrap_or_else(|_| {
            Err(BackendError::Silent {
                path: self.path.clone(),
                timeout: TIMEOUT,
            })
        })
    }

    async fn exchange(&self, request: &str) -> Result<Answer, BackendError> {
        let failed = |error: io::Error| self.unreachable(error);
        let mut stream = UnixStream::connect(&self.path).await.map_err(failed)?;
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|error| self.unreachable(error))?;
        let mut reader = Reader::default();
        let mut chunk = Zeroizing::new([0; CHUNK]);
        let mut total = 0;
        loop {
            let length = stream.read(&mut *chunk).await.map_err(failed)?;
            if length == 0 {
                return Err(self.malformed("it ends before the answer does"));
            }
            total += length;
            if total > MAX_ANSWER {
                return Err(self.malformed("more than any interface has"));
            }
            let done = reader.take(&chunk[..length]);
            if done.map_err(|why| self.malformed(&why))? {
                return Ok(reader.finish());
            }
        }
    }

    fn malformed(&self, why: &str) -> BackendError {
        BackendError::Malformed {
            path: self.path.clone(),
            why: why.to_owned(),
        }
    }

    fn refused(&self, what: &str, errno: i32) -> BackendError {
        BackendError::System {
            what: format!("{what} at {}", self.path.display()),
            source: io::Error::from_raw_os_error(errno),
        }
    }

    fn unreachable(&self, error: io::Error) -> BackendError {
        let interface = self.interface.clone();
        if error.kind() == io::ErrorKind::PermissionDenied {
            return BackendError::NoPermission(interface);
        }
        let gone = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        if gone.contains(&error.kind()) {
            return BackendError::NoSuchInterface(interface);
        }
        BackendError::System {
            what: format!("talk to {}", self.path.display()),
            source: error,
        }
    }
}

impl Backend for Uapi {
    async fn device(&mut self) -> Result<Device, BackendError> {
        self.read().await
    }

    async fn set_endpoint(
        &mut self,
        key: PublicKey,
        endpoint: SocketAddr,
    ) -> Result<(), BackendError> {
        if self.fragile {
            return Err(BackendError::CannotUpdate(self.interface.clone()));
        }
        if self.update_only == Some(false) {
            return self.set_and_read_back(key, endpoint).await;
        }
        let answer = self.ask(&text::set_endpoint(key, endpoint, true)).await?;
        match answer.errno {
            0 => {
                self.update_only = Some(true);
                Ok(())
            }
            libc::EINVAL if self.update_only.is_none() => {
                self.update_only = Some(false);
                self.set_and_read_back(key, endpoint).await
            }
            errno => Err(self.refused(&format!("set the endpoint of {key}"), errno)),
        }
    }
}
