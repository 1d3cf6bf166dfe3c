//! TCP connections to a host by name: every address has its turn, in little time (RFC 8305).

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::core::turn::url::Host;

/// One address: two lost SYNs (1 s and 2 s, RFC 6298 §2) and an answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause between attempts at several addresses (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The most addresses of one name that are tried: the last starts after 1.75 s.
const MAX_ADDRESSES: usize = 8;
/// How long sent data may stay unacknowledged (RFC 5482): the kernel's own limit is about 15 min, longer
/// than an allocation lives.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Prepares a socket before it connects, so that control connections stay in the underlay.
pub type SocketHook = Arc<dyn Fn(&TcpSocket) -> io::Result<()> + Send + Sync>;

/// Ties a connection to an interface (SO_BINDTODEVICE; before Linux 5.7 it needs CAP_NET_RAW).
#[must_use]
pub fn bind_to_device(device: String) -> SocketHook {
    Arc::new(move |socket| socket.bind_device(Some(device.as_bytes())))
}

/// The mark that WireGuard puts on its packets (SO_MARK, 0 for none; to set one needs CAP_NET_ADMIN). Where everything
/// goes into the tunnel, policy routing keeps out of it what bears the mark: so must all that a path is made of. One
/// for all sockets of a node; its owner may change it.
#[derive(Clone, Debug)]
pub struct Fwmark(Arc<watch::Sender<u32>>);

impl Fwmark {
    /// The mark.
    #[must_use]
    pub fn new(mark: u32) -> Self {
        Self(Arc::new(watch::Sender::new(mark)))
    }

    /// As it is now.
    #[must_use]
    pub fn get(&self) -> u32 {
        *self.0.borrow()
    }

    /// Another one; whether it is another.
    pub fn set(&self, mark: u32) -> bool {
        self.0
            .send_if_modified(|known| std::mem::replace(known, mark) != mark)
    }

    /// Tells when it is another, to who has a socket that is connected already.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u32> {
        self.0.subscribe()
    }

    /// Marks connections before they are made.
    #[must_use]
    pub fn hook(&self) -> SocketHook {
        let mark = self.clone();
        Arc::new(move |socket| match mark.get() {
            0 => Ok(()),
            mark => SockRef::from(socket).set_mark(mark),
        })
    }
}

impl Default for Fwmark {
    fn default() -> Self {
        Self::new(0)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("cannot resolve {host}: {error}\n  check the name and this machine's DNS")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        error: io::Error,
    },
    /// The socket could not be made or prepared.
    #[error(
        "cannot prepare a connection to {remote}: {error}\n  does the interface exist that it is tied to? WireGuard's fwmark takes CAP_NET_ADMIN"
    )]
    Socket {
        /// Address and port.
        remote: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// No address accepted the connection.
    #[error("cannot reach {remote}: {error}\n  is the server up, and TCP to this port allowed?")]
    Connect {
        /// The last address that was tried.
        remote: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
}

/// One try of a connection.
pub struct Way {
    /// Where to.
    pub remote: SocketAddr,
    /// How the socket is prepared.
    pub hook: Option<SocketHook>,
}

/// Connects to the first address of `host` that answers.
pub async fn dial(
    host: &Host,
    port: u16,
    hook: Option<&SocketHook>,
) -> Result<TcpStream, DialError> {
    let addresses = resolve(host, port).await?.into_iter();
    let ways = addresses.map(|remote| Way {
        remote,
        hook: hook.cloned(),
    });
    race(host, ways.collect()).await
}

/// The addresses of `host` as they are to be tried: in the resolver's order, the families by turns.
pub async fn resolve(host: &Host, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    Ok(by_turns(look_up(host, port).await?.into_iter()).into())
}

/// The first of these ways to `host` that gives a connection: each begins a little after the one before it, or at once when that has
/// failed.
pub async fn race(host: &Host, mut waiting: VecDeque<Way>) -> Result<TcpStream, DialError> {
    let mut attempts = JoinSet::new();
    let mut last = DialError::Resolve {
        host: host.to_string(),
        error: io::Error::other("it has no address"),
    };
    loop {
        if let Some(way) = waiting.pop_front() {
            attempts.spawn(attempt(way));
        }
        tokio::select! {
            attempt = attempts.join_next() => match attempt {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => last = error,
                // An attempt that panicked: the others go on.
                Some(Err(_)) => {}
                None => return Err(last),
            },
            () = sleep(ATTEMPT_DELAY), if !waiting.is_empty() => {}
        }
    }
}

async fn look_up(host: &Host, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    let name = match host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
        Host::Name(name) => name,
    };
    let found = lookup_host((name.as_str(), port)).await;
    let found = found.map_err(|error| DialError::Resolve {
        host: name.clone(),
        error,
    })?;
    Ok(found.take(MAX_ADDRESSES).collect())
}

async fn attempt(Way { remote, hook }: Way) -> Result<TcpStream, DialError> {
    let prepared = || {
        let socket = match remote {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_nodelay(true)?;
        SockRef::from(&socket).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        if let Some(hook) = &hook {
            hook(&socket)?;
        }
        Ok(socket)
    };
    let socket = prepared().map_err(|error| DialError::Socket { remote, error })?;
    let late = |_| Err(io::ErrorKind::TimedOut.into());
    let connected = timeout(ATTEMPT_TIMEOUT, socket.connect(remote)).await;
    connected
        .unwrap_or_else(late)
        .map_err(|error| DialError::Connect { remote, error })
}

/// The given order, but no two of one family in a row while the other has some left.
fn by_turns(addresses: impl Iterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let mut addresses = addresses.peekable();
    let first_is_v4 = addresses.peek().is_some_and(SocketAddr::is_ipv4);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        addresses.partition(|address| address.is_ipv4() == first_is_v4);
    let mut mixed = VecDeque::with_capacity(first.len() + second.len());
    while !first.is_empty() || !second.is_empty() {
        mixed.extend(first.pop_front());
        mixed.extend(second.pop_front());
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_changes_is_told_to_whom_it_was_given() {
        let mark = Fwmark::default();
        let (given, mut changes) = (mark.clone(), mark.changes());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let socket = TcpSocket::new_v4().unwrap();
        assert!(mark.hook()(&socket).is_ok(), "no mark takes no privileges");
        assert!(!mark.set(0) && !changes.has_changed().unwrap());
        assert!(mark.set(7) && changes.has_changed().unwrap());
        assert_eq!((given.get(), *changes.borrow_and_update()), (7, 7));
    }

    #[test]
    fn families_take_turns() {
        let all = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"].map(|a| a.parse().unwrap());
        let mixed: Vec<String> = by_turns(all.into_iter())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(mixed, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
        assert!(by_turns(std::iter::empty()).is_empty());
    }
}
