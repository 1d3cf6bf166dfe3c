//! The command line's side of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::protocol::{ControlError, MAX_REPLY, Probe, Reply, Request};

/// The daemon answers from memory; this long means that it hangs.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a daemon may take to stop: interface, allocations and a last advert.
const DOWN_TIMEOUT: Duration = Duration::from_secs(15);
/// A daemon that does not listen at once is not dead: between two sockets there are some milliseconds.
const PROBE_BEGIN: Duration = Duration::from_secs(2);
/// The pause between two tries of a probe.
const PROBE_AGAIN: Duration = Duration::from_millis(50);
/// A probe's answer: more than the 2 s that the packet loop has, and with [`PROBE_BEGIN`] less than the manifests' 10 s.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no wice daemon runs here: nobody answers at {}\n  start it: wice up, or wice attach INTERFACE for one that you have (with a token the first time)", .0.display())]
    NotRunning(PathBuf),
    /// The socket is not ours to use.
    #[error("may not talk to the daemon: no permission for {}\n  run as root, or as a member of the socket's group", .0.display())]
    Permission(PathBuf),
    /// Several daemons run.
    #[error("several daemons run here, of the interfaces {}\n  say which with --interface", .0.join(" and "))]
    Several(Vec<String>),
    /// No answer in time.
    #[error("the daemon does not answer within {} s\n  see its log; restart it if it hangs", .0.as_secs())]
    Timeout(Duration),
    /// It went away.
    #[error("the daemon has ended the connection\n  see its log, then ask again")]
    Closed,
    /// It answers what cannot be read.
    #[error(
        "cannot read the daemon's answer: {0}\n  is it of another version? compare `wice version` with `wice status --json`"
    )]
    Answer(String),
    /// The system refused.
    #[error("cannot talk to the daemon: {0}")]
    Io(#[from] io::Error),
    /// It refused.
    #[error(transparent)]
    Refused(#[from] ControlError),
}

/// The socket of the daemon of an interface.
pub fn socket(run_dir: &Path, interface: &str) -> PathBuf {
    run_dir.join(format!("{interface}.sock"))
}

/// The socket of `interface` in `run_dir`; without a name the one at which a daemon answers, and where none does that of
/// the only one that ran here, else of the default interface.
pub fn find_socket(
    run_dir: &Path,
    interface: Option<&str>,
    default: &str,
) -> Result<PathBuf, ClientError> {
    let of = |interface: &str| socket(run_dir, interface);
    if let Some(interface) = interface {
        return Ok(of(interface));
    }
    let mut names: Vec<String> = std::fs::read_dir(run_dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_suffix(".sock")?.to_owned())
        })
        .collect();
    names.sort();
    let live: Vec<String> = names
        .iter()
        .filter(|name| lives(&of(name)))
        .cloned()
        .collect();
    match (live.as_slice(), names.as_slice()) {
        ([only], _) | ([], [only]) => Ok(of(only)),
        ([], _) => Ok(of(default)),
        (_, _) => Err(ClientError::Several(live)),
    }
}

/// Whether a daemon holds this socket: one that was killed leaves it behind. One that we may not ask does.
fn lives(socket: &Path) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), NotFound | ConnectionRefused),
    }
}

/// Asks the daemon at `socket` what a probe wants to know. One that begins, or leaves one socket for another, has a moment for it.
pub async fn probe(socket: &Path, probe: Probe) -> Result<(), ClientError> {
    let deadline = Instant::now() + PROBE_BEGIN;
    let mut client = loop {
        match Client::connect(socket).await {
            Err(ClientError::NotRunning(_)) if Instant::now() < deadline => {
                tokio::time::sleep(PROBE_AGAIN).await;
            }
            connected => break connected?,
        }
    };
    client.send(&Request::Probe { probe }).await?;
    client.next(PROBE_TIMEOUT).await.map(drop)
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
        let stream = UnixStream::connect(path).await.map_err(|error| {
            if matches!(error.kind(), NotFound | ConnectionRefused) {
                ClientError::NotRunning(path.to_owned())
            } else if error.kind() == PermissionDenied {
                ClientError::Permission(path.to_owned())
            } else {
                ClientError::Io(error)
            }
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Asks, and waits for one reply; a refusal is an error.
    pub async fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.send(request).await?;
        self.next(REPLY_TIMEOUT).await
    }

    /// Asks without waiting: [`Self::next`] gives the replies.
    pub async fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        // A daemon that has too many clients says so before it reads: its reply is then there to be read.
        match self.stream.write_all(&line).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    /// The next reply, within `patience`; a refusal is an error.
    pub async fn next(&mut self, patience: Duration) -> Result<Reply, ClientError> {
        let mut line = Vec::new();
        let limit = MAX_REPLY as u64;
        let mut bounded = (&mut self.stream).take(limit);
        let read = timeout(patience, bounded.read_until(b'\n', &mut line))
            .await
            .map_err(|_| ClientError::Timeout(patience))?;
        match read {
            Ok(0) => return Err(ClientError::Closed),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ClientError::Closed);
            }
            other => other?,
        };
        match serde_json::from_slice(&line) {
            Ok(Reply::Error(error)) => Err(error.into()),
            Ok(reply) => Ok(reply),
            Err(error) => Err(ClientError::Answer(error.to_string())),
        }
    }

    /// Asks the daemon to stop, and waits until it has.
    pub async fn down(mut self) -> Result<(), ClientError> {
        match self.call(&Request::Down).await {
            Ok(_) => match self.next(DOWN_TIMEOUT).await {
                Err(ClientError::Closed) => Ok(()),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            },
            // Gone before it could answer.
            Err(ClientError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
