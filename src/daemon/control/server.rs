//! The daemon's side of the control socket.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::protocol::{
    ControlError, ErrorKind, MAX_PINGS, MAX_REQUEST, Probe, Reply, Request, Servers,
};
use crate::report::{PingEvent, Status, Why};

/// Owner and group: whoever may write here may stop the daemon and read credentials of relays.
const SOCKET_MODE: u32 = 0o660;
/// The folder: sockets in it can be seen, not made.
const FOLDER_MODE: u32 = 0o755;
/// Clients at once: some people, a few monitors; each costs a task and two small buffers.
const MAX_CLIENTS: usize = 16;
/// A client that asks nothing for so long is let go.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A reply not taken in this time ends the connection: it goes to a process on this machine.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Ping events between the handler and the socket.
const PING_QUEUE: usize = 16;
/// After an error of accept (out of descriptors), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the daemon does for clients.
pub trait Handler: Send + Sync + 'static {
    /// The whole node.
    fn status(&self) -> impl Future<Output = Result<Status, ControlError>> + Send;
    /// One peer with all its pairs.
    fn why(&self, peer: &str) -> impl Future<Output = Result<Why, ControlError>> + Send;
    /// Pings `peer` at most `count` times, one a second, until the path is direct, and tells `events`. Dropped when the client goes.
    fn ping(
        &self,
        peer: &str,
        count: u32,
        events: mpsc::Sender<PingEvent>,
    ) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// STUN and TURN servers in use, with credentials.
    fn servers(&self) -> impl Future<Output = Result<Servers, ControlError>> + Send;
    /// Whether this is so, or why not.
    fn probe(&self, probe: Probe) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// Begins to stop: returns at once.
    fn down(&self) -> impl Future<Output = Result<(), ControlError>> + Send;
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon has it.
    #[error(
        "wice runs already on {interface}: {path} answers\n  stop it with `wice down --interface {interface}`, or give this one another --interface",
        path = .path.display()
    )]
    Running {
        /// The interface that the socket is named after.
        interface: String,
        /// The socket.
        path: PathBuf,
    },
    /// Something else is in the way.
    #[error("cannot make the control socket: {} exists and is no socket\n  remove it, or give another run_dir", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot make the control socket {}: {error}\n  run as root, or give a run_dir that this user may write (--run-dir)", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The socket, listening. Dropped, it removes its file.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: another daemon's socket under the same name is not removed.
    identity: (u64, u64),
}

impl ControlListener {
    /// Makes the folder and the socket. A socket that nobody answers at any more is replaced.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |error| BindError::Io {
            path: path.to_owned(),
            error,
        };
        check_free(path)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            fs::create_dir_all(folder).map_err(failed)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(FOLDER_MODE)).map_err(failed)?;
        }
        // Under another name until its mode is right: nobody connects to it before.
        let fresh = path.with_extension(format!("sock.{}", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let bound = || -> io::Result<(UnixListener, (u64, u64))> {
            let listener = UnixListener::bind(&fresh)?;
            fs::set_permissions(&fresh, fs::Permissions::from_mode(SOCKET_MODE))?;
            let identity = identity(&fresh)?;
            fs::rename(&fresh, path)?;
            Ok((listener, identity))
        };
        let (listener, identity) = bound().map_err(|error| {
            let _ = fs::remove_file(&fresh);
            failed(error)
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Answers clients until the future is dropped. Errors of one client end that client.
pub async fn serve<H: Handler>(listener: ControlListener, handler: Arc<H>) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) if clients.len() < MAX_CLIENTS => {
                let handler = Arc::clone(&handler);
                clients.spawn(async move { client(stream, &*handler).await });
            }
            Ok((stream, _)) => refuse(stream),
            Err(error) => {
                tracing::warn!(event = "control-accept-failed", %error, "control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn check_free(path: &Path) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt as _;
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let interface = path.file_stem().unwrap_or_default().to_string_lossy();
        return Err(BindError::Running {
            interface: interface.into_owned(),
            path: path.to_owned(),
        });
    }
    Ok(())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Never waits: what does not fit into a fresh socket's buffer is not said.
fn refuse(stream: UnixStream) {
    let error = ControlError::new(
        ErrorKind::Busy,
        "the daemon has too many clients\n  end some, then try again",
    );
    if let Ok(line) = line_of(&Reply::Error(error)) {
        let _ = stream.try_write(&line);
    }
}

async fn client<H: Handler>(stream: UnixStream, handler: &H) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let request = match timeout(IDLE_TIMEOUT, read_request(&mut reader)).await {
            Ok(Ok(Some(request))) => request,
            Ok(Err(Malformed::Request(message))) => {
                let error = ControlError::new(ErrorKind::BadRequest, message);
                if write(&mut writer, &Reply::Error(error)).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(Err(Malformed::TooLong)) => {
                let message = format!("a request has at most {MAX_REQUEST} bytes");
                let error = ControlError::new(ErrorKind::BadRequest, message);
                let _ = write(&mut writer, &Reply::Error(error)).await;
                return;
            }
            Ok(Ok(None) | Err(Malformed::Io)) | Err(_) => return,
        };
        if answer(request, handler, &mut writer).await.is_err() {
            return;
        }
    }
}

async fn answer<H: Handler>(
    request: Request,
    handler: &H,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let reply = match request {
        Request::Status => handler
            .status()
            .await
            .map(|status| Reply::Status(Box::new(status))),
        Request::Why { peer } => handler
            .why(&peer)
            .await
            .map(|why| Reply::Why(Box::new(why))),
        Request::Ping { count, .. } if count == 0 || count > MAX_PINGS => {
            let message = format!("a ping count is 1 to {MAX_PINGS}");
            Err(ControlError::new(ErrorKind::BadRequest, message))
        }
        Request::Ping { peer, count } => {
            let (events, mut queue) = mpsc::channel(PING_QUEUE);
            let mut ping = std::pin::pin!(handler.ping(&peer, count, events));
            let mut result = None;
            loop {
                tokio::select! {
                    biased;
                    event = queue.recv() => match event {
                        Some(event) => write(writer, &Reply::Ping(event)).await?,
                        None if result.is_some() => break,
                        None => result = Some(ping.as_mut().await),
                    },
                    done = &mut ping, if result.is_none() => result = Some(done),
                }
            }
            result.unwrap_or(Ok(())).map(|()| Reply::Done)
        }
        Request::Servers => handler.servers().await.map(Reply::Servers),
        Request::Probe { probe } => handler.probe(probe).await.map(|()| Reply::Done),
        Request::Down => handler.down().await.map(|()| Reply::Done),
    };
    write(writer, &reply.unwrap_or_else(Reply::Error)).await
}

enum Malformed {
    Request(String),
    TooLong,
    Io,
}

/// One line; `None` at the end of the stream. Never holds more than [`MAX_REQUEST`] bytes.
async fn read_request(
    reader: &mut (impl AsyncBufRead + Unpin),
) -> Result<Option<Request>, Malformed> {
    let mut line = Vec::new();
    let limit = MAX_REQUEST as u64;
    let read = reader.take(limit).read_until(b'\n', &mut line).await;
    match read {
        Err(_) => Err(Malformed::Io),
        Ok(0) => Ok(None),
        Ok(_) if line.last() == Some(&b'\n') => Request::parse(&line)
            .map(Some)
            .map_err(|error| Malformed::Request(format!("not a request: {error}"))),
        Ok(read) if read >= MAX_REQUEST => Err(Malformed::TooLong),
        Ok(_) => Ok(None),
    }
}

async fn write(writer: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
    let line = line_of(reply)?;
    timeout(WRITE_TIMEOUT, writer.write_all(&line))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn line_of(reply: &Reply) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(line)
}
