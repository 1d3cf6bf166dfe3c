//! The whole service: opened at once or not at all, reloaded, drained, stopped.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand_core::{OsRng, TryRngCore as _};
use rustix::event::epoll;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConfig;
use wice_udp::{ReceiveBuffers, SendFailures};

use super::certificate::{self, SelfSigned};
use super::dispatch::Sockets;
use super::http::{self, Pages};
use super::listen;
use super::mailbox::Mailbox;
use super::metrics::{self, Published};
use super::peers::Peers;
use super::settings::{Listen, RelayPorts, Settings, StartError, addresses_of};
use super::standing::StandingQueues;
use super::streams::Streams;
use super::worker::{Control, Worker};
use crate::server::{Config, NonceKey, Now, Server, Shared, Transport};

/// File descriptors beside relay sockets: listeners, epoll, logs.
const OTHER_FILES: u64 = 128;
/// How often a drain looks whether it is over.
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// A running service. Dropping it stops it.
pub struct Service {
    threads: Vec<Thread>,
    pages: Arc<State>,
    ports: RelayPorts,
    nonce_fallback: NonceKey,
    self_signed: OnceLock<SelfSigned>,
    listeners: Vec<Listen>,
    metrics: Option<SocketAddr>,
}

struct Thread {
    mailbox: Mailbox,
    handle: Option<JoinHandle<()>>,
}

struct State {
    shared: Shared,
    ports: RelayPorts,
    published: Mutex<Vec<Arc<Published>>>,
    draining: AtomicBool,
}

impl Service {
    /// Opens everything and serves.
    ///
    /// # Errors
    /// [`StartError`]; then nothing is left open.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        settings.check()?;
        let ports = RelayPorts::new(&settings.ports);
        let mut nonce_fallback = NonceKey::default();
        random(&mut nonce_fallback)?;
        let config = Arc::new(limited(settings.config(&ports, nonce_fallback)?));
        let made = OnceLock::new();
        let tls = load_tls(settings, &config, &made)?;
        let now = Instant::now();
        let shared = Shared::new(now);
        let mut service = Self {
            threads: Vec::new(),
            pages: Arc::new(State {
                shared: shared.clone(),
                ports: ports.clone(),
                published: Mutex::default(),
                draining: AtomicBool::new(false),
            }),
            ports,
            nonce_fallback,
            self_signed: made,
            listeners: settings.listen.clone(),
            metrics: None,
        };
        let (mut workers, kept) = (Vec::new(), Arc::default());
        for shard in 0..settings.threads {
            let mut worker = service.worker(shard as u8, &config, &shared, tls.clone(), now)?;
            worker.kept = Arc::clone(&kept);
            workers.push(worker);
        }
        if let Some(address) = settings.metrics {
            let pages: Arc<dyn Pages> = Arc::clone(&service.pages) as _;
            let local =
                http::serve(address, pages).map_err(|error| StartError::Tcp { address, error })?;
            service.metrics = Some(local);
        }
        let mailboxes = service.threads.iter().map(|thread| thread.mailbox.clone());
        let mailboxes: Vec<Mailbox> = mailboxes.collect();
        for (shard, mut worker) in workers.into_iter().enumerate() {
            worker.mailboxes.clone_from(&mailboxes);
            worker.proxies.clone_from(&settings.proxy_protocol_from);
            let builder = std::thread::Builder::new().name(format!("turn-{shard}"));
            let handle = builder.spawn(move || worker.run());
            let handle = handle.map_err(system("start a thread"))?;
            service.threads[shard].handle = Some(handle);
        }
        Ok(service)
    }

    /// Where it listens, ports that were 0 filled in.
    pub fn listeners(&self) -> &[Listen] {
        &self.listeners
    }

    /// Where metrics are served.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Allocations now.
    pub fn allocations(&self) -> u32 {
        self.pages.shared.ledger.count().0
    }

    /// Users, secrets, certificate, quotas, lists and addresses anew; listeners, ports and threads stay as they are.
    ///
    /// # Errors
    /// [`StartError`]; then everything stays as it was.
    pub fn reload(&self, settings: &Settings) -> Result<(), StartError> {
        settings.check()?;
        let config = Arc::new(limited(settings.config(&self.ports, self.nonce_fallback)?));
        let tls = load_tls(settings, &config, &self.self_signed)?;
        let proxies = &settings.proxy_protocol_from;
        self.tell(|| Control::Reload(Arc::clone(&config), tls.clone(), proxies.clone()));
        Ok(())
    }

    /// No new allocations; returns when all have ended, or after `deadline`: how many are left then. `/readyz` says so at once.
    pub fn drain(&self, deadline: Duration) -> u32 {
        self.pages.draining.store(true, Ordering::Relaxed);
        self.tell(|| Control::Drain);
        let start = Instant::now();
        loop {
            let left = self.allocations();
            if left == 0 || start.elapsed() >= deadline {
                return left;
            }
            std::thread::sleep(DRAIN_STEP);
        }
    }

    fn tell(&self, control: impl Fn() -> Control) {
        for thread in &self.threads {
            thread.mailbox.command(control());
        }
    }

    fn worker(
        &mut self,
        shard: u8,
        config: &Arc<Config>,
        shared: &Shared,
        tls: Option<Arc<ServerConfig>>,
        now: Instant,
    ) -> Result<Worker, StartError> {
        let mut seed = [0; 32];
        random(&mut seed)?;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix = unix.map_or(0, |time| time.as_secs());
        let now_both = Now { instant: now, unix };
        let mut sockets = Sockets::default();
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for listen in &mut self.listeners {
            match listen.transport {
                Transport::Udp => {
                    let socket = listen::open_udp(listen.address, shard == 0)?;
                    let local = socket.local_addr().map_err(system("name a socket"))?;
                    listen.address = local;
                    udp.push(local);
                    sockets.listeners.push(socket);
                }
                Transport::Tcp | Transport::Tls => {
                    let address = listen.address;
                    let fail = |error| StartError::Tcp { address, error };
                    let listener = listen::open_tcp(address, shard == 0).map_err(fail)?;
                    listen.address = listener.local_addr().map_err(fail)?;
                    tcp.push((listener, listen.transport == Transport::Tls));
                }
            }
        }
        let (mailbox, inbox) = Mailbox::new().map_err(system("make an eventfd"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC);
        let epoll = epoll.map_err(|e| system("make an epoll")(e.into()))?;
        let published = Arc::new(Published::default());
        self.pages.places().push(Arc::clone(&published));
        self.threads.push(Thread {
            mailbox,
            handle: None,
        });
        let mut server = Server::new(Arc::clone(config), shared.clone(), shard, seed, now_both);
        server.set_listeners(&udp);
        if shard == 0 && server.discovers() {
            tracing::info!(event = "turn-behaviour-discovery");
        }
        let worker = Worker {
            server,
            epoll,
            inbox,
            kept: Arc::default(),
            mailboxes: Vec::new(),
            sockets,
            ports: udp.iter().map(SocketAddr::port).collect(),
            tcp,
            tls,
            published,
            streams: Streams::default(),
            buffers: ReceiveBuffers::new(),
            failures: SendFailures::new(),
            scratch: Worker::scratch(),
            batch: Vec::new(),
            queues: StandingQueues::default(),
            send_failures: 0,
            thread: usize::from(shard),
            proxies: Vec::new(),
            peers: Peers::default(),
            throttled: Vec::new(),
            next_sweep: now,
            resting: Vec::new(),
            rest_until: now,
            next_warning: now,
        };
        worker.register().map_err(system("watch the sockets"))?;
        Ok(worker)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.tell(|| Control::Stop);
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                // One that panicked has said so.
                let _ = handle.join();
            }
        }
    }
}

impl State {
    fn places(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Published>>> {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages for State {
    fn metrics(&self) -> String {
        let figures: Vec<_> = self.places().iter().map(|place| place.get()).collect();
        let ports = [&*self.ports.v4, &*self.ports.v6];
        metrics::page(&figures, &self.shared.ledger, ports)
    }

    fn ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }
}

/// No more allocations than there are file descriptors for: refusing some is better than failing all.
fn limited(mut config: Config) -> Config {
    let files = raise_file_limit().saturating_sub(OTHER_FILES);
    let ports = config.relay_v4.iter().chain(&config.relay_v6);
    let ports: u64 = ports.map(|relay| relay.ports.len() as u64).sum();
    if ports > files {
        tracing::warn!(
            event = "turn-few-files",
            "only {files} relay sockets can be open, {ports} relay ports are configured: raise the limit of open files (LimitNOFILE=, ulimit -n)"
        );
        // One allocation may have a socket of each family.
        let most = u32::try_from(files / 2).unwrap_or(u32::MAX).max(1);
        let total = &mut config.quotas.total;
        *total = if *total == 0 { most } else { most.min(*total) };
    }
    config
}

/// The soft limit goes up to the hard one; returns what holds then.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it cannot be raised it stays.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The certificate of the files, or of its own making: `made` keeps that one over reloads.
fn load_tls(
    settings: &Settings,
    config: &Config,
    made: &OnceLock<SelfSigned>,
) -> Result<Option<Arc<ServerConfig>>, StartError> {
    let make = |names: &[String]| SelfSigned::new(names, &addresses_of(settings, config));
    match (&settings.certificate, &settings.self_signed) {
        (Some((chain, key)), Some(names)) if !chain.exists() && !key.exists() => {
            make(names)?.save(chain, key)?;
            certificate::load(chain, key).map(Some)
        }
        (Some((chain, key)), _) => certificate::load(chain, key).map(Some),
        (None, Some(names)) => {
            if made.get().is_none() {
                let _ = made.set(make(names)?);
            }
            made.get().map(SelfSigned::config).transpose()
        }
        (None, None) => Ok(None),
    }
}

fn random(bytes: &mut [u8]) -> Result<(), StartError> {
    OsRng
        .try_fill_bytes(bytes)
        .map_err(|error| system("get random bytes")(io::Error::other(error.to_string())))
}

fn system(step: &'static str) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::System { step, error }
}
