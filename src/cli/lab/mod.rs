//! `wice lab`: builds a lab, runs daemons of this program in it, and shows which paths they find.

mod show;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use clap::Args;
use show::{Show, described};

use crate::lab::{
    self, Expected, Lab, LabConfig, LabError, MAX_SITES, NatKind, PeerStatus, Pong, Process,
    TurnServer, ground_truth,
};

/// Works, but not as the NATs allow.
const DEGRADED: u8 = 1;
/// Does not work.
const FAILED: u8 = 2;
/// Wrong usage (sysexits.h, EX_USAGE).
const USAGE: u8 = 64;
/// Ended by Ctrl-C (128 + SIGINT, as shells have it).
const INTERRUPTED: u8 = 130;

/// What a pair may take to settle: three times what UDP blocked over TLS takes at worst.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a relayed pair must stay relayed to count as settled: a direct path, where there is
/// one, follows within a second.
const STAYS: Duration = Duration::from_secs(1);
/// How long a daemon may take to be in and to have a relay, before the next one starts.
const SETTLES: Duration = Duration::from_secs(5);
/// The reason of a path that may still change.
const CHECKING: &str = "checking";
/// How often the daemons are asked.
const POLL: Duration = Duration::from_millis(50);
/// The longest delay that may be asked for: past it handshakes would time out.
const MAX_DELAY_MS: u64 = 2_000;
/// The most loss that may be asked for: past it nothing can be told from silence.
const MAX_LOSS_PERCENT: f64 = 50.0;

/// Build NATs and nodes on this machine and watch them find each other.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  wice lab --nat port-restricted --nat symmetric
  wice lab --nat symmetric --nat cgnat --nat udp-blocked --loss 5
  wice lab --nat port-restricted --nat symmetric --shell home-a

In the shell: wice status, wice why home-b, wice ping home-b, wice netcheck. Homes are called home-a, home-b and so on; the
signaling service and the admin key are on the machine `signal` (--shell signal: wice invite, wice network nodes).
It needs root, or user namespaces, and nft and ip (and turnserver for --relay coturn). Nothing outside of its namespaces is touched, and nothing
is left when it ends.
Exit codes: 0 every path is as the NATs allow, 1 one works and is not, 2 one does not work.")]
pub struct LabArgs {
    /// A home behind this kind of NAT; give it once for each home. Most home routers are
    /// port-restricted, mobile carriers often cgnat or symmetric. Kinds: full-cone,
    /// address-restricted, port-restricted, address-dependent, symmetric, public, firewalled,
    /// udp-blocked, cgnat.
    #[arg(long, value_name = "KIND", required = true, value_parser = parse_kind)]
    nat: Vec<NatKind>,
    /// Round trip between any two homes or servers, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 40, allow_negative_numbers = true,
          value_parser = parse_delay)]
    delay: u64,
    /// Packets lost one way between any two homes or servers, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, allow_negative_numbers = true,
          value_parser = parse_loss)]
    loss: f64,
    /// The relay, which is a STUN server as well: wice (`wice turn`) or coturn.
    #[arg(long, value_name = "PROGRAM", default_value = TurnServer::Wice.name(), value_parser = parse_relay)]
    relay: TurnServer,
    /// One JSON object a line instead of text.
    #[arg(long)]
    json: bool,
    /// Open a shell on this node once the paths are found; the lab ends with it.
    #[arg(long, value_name = "NODE")]
    shell: Option<String>,
    /// Keep the directory of logs and state.
    #[arg(long)]
    keep: bool,
}

/// Runs the subcommand and gives its exit code: 0 if every path is as the NATs allow, 1 if one
/// works but is not, 2 if one does not work. To be called before any other thread is started: it
/// may have to execute the program again inside a user namespace.
pub fn run_lab(args: &LabArgs) -> ExitCode {
    let show = Show { json: args.json };
    let result =
        lab::check_tools(args.relay == TurnServer::Coturn).and_then(|()| lab::acquire_privilege());
    lab::catch_interrupts();
    let result = result.and_then(|()| run(args, &show));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(LabError::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            show.error(&error);
            let usage = matches!(error, LabError::Config(_) | LabError::Unknown { .. });
            ExitCode::from(if usage { USAGE } else { FAILED })
        }
    }
}

fn run(args: &LabArgs, show: &Show) -> Result<u8, LabError> {
    if args.nat.len() > MAX_SITES / 2 {
        return Err(LabError::Config(format!(
            "at most {} homes fit",
            MAX_SITES / 2
        )));
    }
    let config = LabConfig {
        rtt: Duration::from_millis(args.delay),
        loss_permille: (args.loss * 10.0).round() as u16,
        turn_server: args.relay,
        keep: args.keep,
        ..LabConfig::of_kinds(args.nat.iter().copied())
    };
    let mut lab = Lab::build(config)?;
    if let Some(node) = &args.shell {
        lab.namespace(node)?;
    }
    show.built(&lab, args);
    let result = find_paths(&mut lab, args, show);
    if args.keep {
        show.kept(&lab);
    }
    result
}

fn find_paths(lab: &mut Lab, args: &LabArgs, show: &Show) -> Result<u8, LabError> {
    lab.start_signal()?;
    let token = lab.network_token()?;
    let mut daemons: Vec<Process> = Vec::new();
    let mut starts = Vec::new();
    // Time is counted from the last daemon's start, when those before it have settled: that is what
    // somebody sees who joins a mesh.
    for home in &lab.config().homes {
        if let Some(before) = daemons.last() {
            lab.wait_settled(before.name(), SETTLES)?;
        }
        starts.push((home.name.clone(), Instant::now()));
        daemons.push(lab.start_daemon(&home.name, Some(&token), &[])?);
    }
    let start = starts.last().map_or_else(Instant::now, |(_, start)| *start);
    for (name, at) in &starts {
        show.started(name, start.saturating_duration_since(*at));
    }
    if let [only] = daemons.as_slice() {
        let is_in = lab.wait_settled(only.name(), SETTLES)?;
        show.alone(start.elapsed(), only.name(), is_in);
    }
    let pairs = watch(lab, &mut daemons, start, show)?;
    let code = show.verdict(&pairs);
    if let Some(node) = &args.shell {
        shell(lab, node)?;
    }
    Ok(code)
}

/// Two homes, what must come of them, and what has come of them so far.
struct Pair {
    first: String,
    second: String,
    kinds: (NatKind, NatKind),
    expected: Expected,
    path: Option<PeerStatus>,
    since: Instant,
    pinged: Option<Pong>,
}

impl Pair {
    fn kind(&self) -> &str {
        self.path
            .as_ref()
            .map_or("none", |peer| peer.path.kind.as_str())
    }

    fn is_direct(&self) -> bool {
        matches!(self.kind(), "direct" | "native")
    }

    fn is_as_expected(&self) -> bool {
        self.pinged.is_some()
            && if self.expected.direct {
                self.is_direct()
            } else {
                self.kind() == "relayed"
            }
    }

    fn reason(&self) -> Option<&str> {
        self.path.as_ref().and_then(|peer| peer.reason.as_deref())
    }

    /// A relayed pair has settled when direct paths are no longer looked for.
    fn is_settled(&self) -> bool {
        let stays = || self.since.elapsed() >= STAYS && self.reason() != Some(CHECKING);
        self.is_as_expected() && (self.expected.direct || stays())
    }
}

/// Shows paths and first pings as they come, until all pairs have settled or patience ends.
fn watch(
    lab: &Lab,
    daemons: &mut [Process],
    start: Instant,
    show: &Show,
) -> Result<Vec<Pair>, LabError> {
    let mut pairs = pairs_of(lab);
    let names: Vec<_> = pairs
        .iter()
        .map(|p| (p.first.clone(), p.second.clone()))
        .collect();
    let is_over = AtomicBool::new(false);
    let (pongs, arrivals) = channel();
    std::thread::scope(|scope| {
        // Each pair is pinged by a thread of its own, so that none waits for another.
        for (index, (first, second)) in names.iter().enumerate() {
            let (pongs, is_over) = (pongs.clone(), &is_over);
            scope.spawn(move || {
                let go_on = || !is_over.load(Ordering::Relaxed);
                let _ = pongs.send((index, lab.first_overlay_ping(first, second, go_on)));
            });
        }
        let result = settle(lab, daemons, &mut pairs, &arrivals, start, show);
        is_over.store(true, Ordering::Relaxed);
        result
    })?;
    for pair in &pairs {
        show.settled(start.elapsed(), pair);
    }
    Ok(pairs)
}

type Arrival = (usize, Result<Option<Pong>, LabError>);

fn settle(
    lab: &Lab,
    daemons: &mut [Process],
    pairs: &mut [Pair],
    arrivals: &Receiver<Arrival>,
    start: Instant,
    show: &Show,
) -> Result<(), LabError> {
    while start.elapsed() < PATIENCE && !pairs.iter().all(Pair::is_settled) {
        if lab::interrupted() {
            return Err(LabError::Interrupted);
        }
        for daemon in daemons.iter_mut() {
            if let Some(status) = daemon.status() {
                return Err(daemon.failed(format!("ended ({status})")));
            }
        }
        for pair in pairs.iter_mut() {
            let peers = lab.peers(&pair.first)?;
            let found = peers.into_iter().find(|peer| peer.name == pair.second);
            let before = std::mem::replace(&mut pair.path, found);
            if described(before.as_ref()) != described(pair.path.as_ref()) {
                pair.since = Instant::now();
                show.path(start.elapsed(), pair);
            }
        }
        while let Ok((index, pong)) = arrivals.try_recv() {
            pairs[index].pinged = pong?;
            show.pinged(start, &pairs[index]);
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn pairs_of(lab: &Lab) -> Vec<Pair> {
    let homes = &lab.config().homes;
    let mut pairs = Vec::new();
    for (index, first) in homes.iter().enumerate() {
        for second in &homes[index + 1..] {
            pairs.push(Pair {
                first: first.name.clone(),
                second: second.name.clone(),
                kinds: (first.nat, second.nat),
                expected: ground_truth(first.nat, second.nat),
                path: None,
                since: Instant::now(),
                pinged: None,
            });
        }
    }
    pairs
}

fn shell(lab: &Lab, node: &str) -> Result<(), LabError> {
    let mut command = lab.shell(node)?;
    let status = lab::run_in_foreground(&mut command);
    status.map(drop).map_err(|source| LabError::Io {
        doing: format!("shell on {node}"),
        source,
    })
}

fn parse_kind(text: &str) -> Result<NatKind, String> {
    text.parse()
}

fn parse_relay(text: &str) -> Result<TurnServer, String> {
    text.parse()
}

fn parse_delay(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(delay) if delay <= MAX_DELAY_MS => Ok(delay),
        Ok(_) | Err(_) => Err(format!(
            "give milliseconds, a whole number from 0 to {MAX_DELAY_MS}"
        )),
    }
}

fn parse_loss(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(loss) if (0.0..=MAX_LOSS_PERCENT).contains(&loss) => Ok(loss),
        Ok(_) | Err(_) => Err(format!("give a number from 0 to {MAX_LOSS_PERCENT}")),
    }
}
