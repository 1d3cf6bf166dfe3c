//! One ICE session over standard input and output: prints its credentials and candidates, reads the
//! other side's, connects, then passes lines of text. For trying the check engine against itself and
//! against other stacks.
//!
//! Out: `ufrag X`, `pwd Y`, `cand BODY` (RFC 8839 without `candidate:`), `end`; then `state WORD`,
//! `selected LOCAL REMOTE LOCAL-KIND REMOTE-KIND`, `data TEXT`. In: the same first four, candidates
//! also as `candidate:BODY` or `a=candidate:BODY`; every line after `end` is sent.

mod links;
mod sdp;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use clap::Parser;
use rand_core::{OsRng, TryRngCore as _};
use tokio::sync::mpsc;
use wice::core::ice::{
    Agent, AgentConfig, Credentials, Nomination, Pair, PairKey, PairState, RemoteCandidate, Reply,
    Role, Use,
};
use wice::core::stun::{Binding, BindingClass, is_stun};
use wice::core::timing::{PAC_MIN, RTO_MIN, TA_DEFAULT};
use wice::core::turn::{self, Allocation, AllocationConfig, Family};
use wice_signaling::protocol::RelayTransport;

use links::{Links, wait};

/// A better pair that is still being checked is waited for this long: the nomination is final.
const NOMINATION_WAIT: Duration = Duration::from_millis(500);
/// Where the default route's address is looked up; nothing is sent there (RFC 5737).
const SOMEWHERE: &str = "192.0.2.1:9";
/// Lines of input that wait to be handled.
const LINES: usize = 64;
/// The last lines are on their way when standard input ends.
const LINGER: Duration = Duration::from_millis(500);

/// Connects to another ICE agent and passes lines of text.
#[derive(Parser)]
struct Args {
    /// Nominate.
    #[arg(
        long,
        required_unless_present = "controlled",
        conflicts_with = "controlled"
    )]
    controlling: bool,
    /// Follow the other side's nomination.
    #[arg(long)]
    controlled: bool,
    /// Own username fragment; random without it.
    #[arg(long, requires = "pwd")]
    ufrag: Option<String>,
    /// Own password; random without it.
    #[arg(long, requires = "ufrag")]
    pwd: Option<String>,
    /// STUN server, HOST:PORT.
    #[arg(long)]
    stun: Option<String>,
    /// TURN server, turn:HOST:PORT, over UDP.
    #[arg(long, requires = "user", requires = "password")]
    turn: Option<String>,
    /// Username on the TURN server.
    #[arg(long)]
    user: Option<String>,
    /// Password on the TURN server.
    #[arg(long)]
    password: Option<String>,
    /// Address of a host candidate, IP or IP:PORT; several may be given. Without it, that of the
    /// default route.
    #[arg(long)]
    bind: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut seed = [0; 32];
    OsRng
        .try_fill_bytes(&mut seed)
        .context("the system has no random bytes")?;
    let local = credentials(&args)?;
    println!("ufrag {}\npwd {}", local.ufrag, local.password);
    let role = if args.controlling {
        Role::Controlling
    } else {
        Role::Controlled
    };
    let mut agent = Agent::new(AgentConfig {
        local,
        remote: None,
        role,
        nomination: Nomination::Once,
        seed,
    });
    let (links, arrivals) = gather(&args, &mut agent).await?;
    println!("end");
    let now = Instant::now();
    agent.set_traffic(true, now);
    let session = Session {
        agent,
        links,
        remotes: Vec::new(),
        remote_ufrag: None,
        signaled: false,
        paced: now,
        started: now,
        first_valid: None,
        selected: None,
        state: "new",
    };
    session.run(arrivals).await
}

/// The lines of standard input, read by a thread of their own.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(LINES);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn gather(
    args: &Args,
    agent: &mut Agent,
) -> anyhow::Result<(Links, mpsc::Receiver<links::Arrival>)> {
    let (mut links, arrivals) = Links::new();
    let stun = args.stun.as_deref().map(resolve).transpose()?;
    let binds = binds(args)?;
    let mut preference = u16::MAX;
    let mut bases = Vec::new();
    for address in &binds {
        let base = links.add_host(*address, stun, preference).await;
        bases.push(base.with_context(|| format!("cannot bind {address}"))?);
        preference -= 1;
    }
    if let (Some(url), Some(user), Some(password)) = (&args.turn, &args.user, &args.password) {
        let server = resolve(url.strip_prefix("turn:").unwrap_or(url))?;
        let mut seed = [0; 32];
        OsRng
            .try_fill_bytes(&mut seed)
            .context("the system has no random bytes")?;
        let config = AllocationConfig {
            transport: RelayTransport::Udp,
            credentials: turn::Credentials::new(user, password)?,
            family: Family::of(server.ip()),
        };
        let bind = binds
            .first()
            .map(SocketAddr::ip)
            .context("no address to bind")?;
        let allocation = Allocation::new(config, seed);
        bases.extend(
            links
                .add_relay(bind, server, allocation, preference)
                .await?,
        );
    }
    for base in bases {
        println!(
            "cand {}",
            sdp::format(&base, base.address, base.host_kind())
        );
        for (address, kind) in &base.reflexive {
            println!("cand {}", sdp::format(&base, *address, *kind));
        }
        agent.set_base(base);
    }
    Ok((links, arrivals))
}

/// One session.
struct Session {
    agent: Agent,
    links: Links,
    remotes: Vec<RemoteCandidate>,
    remote_ufrag: Option<String>,
    /// The other side's `end` has come: further lines are data.
    signaled: bool,
    paced: Instant,
    started: Instant,
    first_valid: Option<Instant>,
    selected: Option<PairKey>,
    state: &'static str,
}

impl Session {
    async fn run(mut self, mut arrivals: mpsc::Receiver<links::Arrival>) -> anyhow::Result<()> {
        let mut input = lines();
        loop {
            self.drive().await;
            let due = self.next_due().map(tokio::time::Instant::from_std);
            tokio::select! {
                arrival = arrivals.recv() => {
                    if let Some(arrival) = arrival {
                        self.arrived(arrival).await;
                    }
                }
                line = input.recv() => match line {
                    Some(line) => self.line(line.trim_end()).await?,
                    None => {
                        tokio::time::sleep(LINGER).await;
                        return Ok(());
                    }
                },
                () = wait(due) => {}
            }
        }
    }

    async fn line(&mut self, line: &str) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.signaled {
            let Some(key) = self.selected else {
                eprintln!("nothing is selected yet: {line:?} was not sent");
                return Ok(());
            };
            self.links
                .send(key.base, key.remote, line.as_bytes(), now)
                .await;
            self.agent.note_sent(key, now);
            return Ok(());
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "ufrag" => self.remote_ufrag = Some(rest.to_owned()),
            "pwd" => {
                let Some(ufrag) = self.remote_ufrag.clone() else {
                    bail!("`ufrag` comes before `pwd`");
                };
                let password = rest.to_owned();
                self.agent
                    .set_remote_credentials(Credentials { ufrag, password });
                self.set_state("checking");
                self.started = now;
            }
            "cand" => self.add_remote(rest),
            "end" => self.signaled = true,
            _ if line.contains("candidate:") => self.add_remote(line),
            _ => eprintln!("not understood: {line:?}"),
        }
        Ok(())
    }

    fn add_remote(&mut self, line: &str) {
        match sdp::parse(line) {
            Some(candidate) => self.remotes.push(candidate),
            None => eprintln!("candidate not used: {line:?}"),
        }
        self.agent.set_remote_candidates(&self.remotes);
    }

    async fn arrived(&mut self, arrival: links::Arrival) {
        let now = Instant::now();
        let Some((base, from, bytes)) = self.links.unwrap(arrival, now) else {
            return;
        };
        let key = PairKey { base, remote: from };
        if !is_stun(&bytes) {
            // Data counts from where our own check was answered, from nowhere else.
            if self.agent.pair(key).is_some_and(Pair::is_valid) {
                self.agent.note_received(key);
                println!("data {}", String::from_utf8_lossy(&bytes));
            }
            return;
        }
        let Some(message) = Binding::parse(&bytes) else {
            return;
        };
        match message.class() {
            BindingClass::Request => {
                if let Reply::Send(reply) = self.agent.handle_request(base, from, &message) {
                    self.links.send(base, from, &reply, now).await;
                }
            }
            BindingClass::Success | BindingClass::Error => {
                self.agent.handle_response(base, from, &message, now);
            }
            BindingClass::Indication => {}
        }
    }

    async fn drive(&mut self) {
        let now = Instant::now();
        self.agent.handle_timeout(now);
        self.links.drive(&mut self.agent, now).await;
        self.nominate(now);
        let due = self.agent.check_due(now).is_some_and(|at| at <= now);
        if due && self.paced <= now {
            self.paced = now + TA_DEFAULT;
            if let Some(check) = self.agent.poll_check(RTO_MIN, now) {
                self.links
                    .send(check.base, check.remote, &check.payload, now)
                    .await;
            }
        }
        while self.agent.poll_event().is_some() {}
        self.agent.drain_closed().for_each(drop);
        self.follow(now);
        self.links.drive(&mut self.agent, now).await;
    }

    /// Once: the best valid pair, when nothing better is being checked or was waited for enough.
    fn nominate(&mut self, now: Instant) {
        let valid = self.agent.pairs().filter(|pair| pair.is_valid());
        let Some(best) = valid.max_by_key(|pair| pair.priority()) else {
            return;
        };
        let (key, priority) = (best.key(), best.priority());
        let since = *self.first_valid.get_or_insert(now);
        let better = |pair: &Pair| {
            let open = matches!(pair.state(), PairState::Waiting | PairState::InProgress);
            open && pair.priority() > priority
        };
        let waiting = self.agent.pairs().any(better) && now < since + NOMINATION_WAIT;
        if self.agent.role() == Role::Controlling && !waiting && self.agent.nominated().is_none() {
            self.agent.nominate(key);
        }
    }

    fn follow(&mut self, now: Instant) {
        let nominated = self.agent.nominated();
        if nominated == self.selected {
            if nominated.is_none() && self.state == "checking" && now > self.started + PAC_MIN {
                self.set_state("failed");
            }
            return;
        }
        if let Some(old) = self.selected {
            self.agent.set_use(old, Use::Standby, now);
        }
        self.selected = nominated;
        let Some(key) = nominated else {
            self.set_state("disconnected");
            return;
        };
        self.agent.set_use(key, Use::Selected, now);
        let Some(pair) = self.agent.pair(key) else {
            return;
        };
        let mut bases = self.agent.bases().iter();
        let own = bases
            .find(|base| base.id == key.base)
            .map(|base| base.address);
        let local = pair
            .mapped()
            .or(own)
            .map_or_else(String::new, |a| a.to_string());
        println!(
            "selected {local} {} {} {}",
            key.remote,
            sdp::name(pair.local_kind()),
            sdp::name(pair.remote().kind)
        );
        self.set_state("connected");
    }

    fn set_state(&mut self, state: &'static str) {
        if self.state != state {
            self.state = state;
            println!("state {state}");
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let check = self.agent.check_due(now).map(|at| at.max(self.paced));
        let nomination = self
            .first_valid
            .map(|at| at + NOMINATION_WAIT)
            .filter(|at| *at > now);
        let failure = (self.state == "checking").then(|| self.started + PAC_MIN);
        [
            check,
            nomination,
            failure,
            self.agent.poll_timeout(),
            self.links.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

fn credentials(args: &Args) -> anyhow::Result<Credentials> {
    let ice_chars = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
    };
    let (ufrag, password) = match (&args.ufrag, &args.pwd) {
        (Some(ufrag), Some(password)) => (ufrag.clone(), password.clone()),
        (None, _) | (_, None) => {
            let mut bytes = [0; 24];
            OsRng
                .try_fill_bytes(&mut bytes)
                .context("the system has no random bytes")?;
            (
                STANDARD_NO_PAD.encode(&bytes[..6]),
                STANDARD_NO_PAD.encode(&bytes[6..]),
            )
        }
    };
    // RFC 8445 §5.3.
    let lengths = (4..=256).contains(&ufrag.len()) && (22..=256).contains(&password.len());
    if !lengths || !ice_chars(&ufrag) || !ice_chars(&password) {
        bail!("a ufrag has 4 to 256, a password 22 to 256 characters of A-Z a-z 0-9 + /");
    }
    Ok(Credentials { ufrag, password })
}

fn binds(args: &Args) -> anyhow::Result<Vec<SocketAddr>> {
    if args.bind.is_empty() {
        let probe = std::net::UdpSocket::bind("0.0.0.0:0")?;
        probe
            .connect(SOMEWHERE)
            .context("no default route: name an address with --bind")?;
        return Ok(vec![SocketAddr::new(probe.local_addr()?.ip(), 0)]);
    }
    let parse = |text: &String| match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, 0)),
        Err(_) => text
            .parse()
            .with_context(|| format!("{text} is neither IP nor IP:PORT")),
    };
    args.bind.iter().map(parse).collect()
}

fn resolve(server: &str) -> anyhow::Result<SocketAddr> {
    let mut addresses = server
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {server}"))?;
    addresses
        .next()
        .with_context(|| format!("{server} has no address"))
}
