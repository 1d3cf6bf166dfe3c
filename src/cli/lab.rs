//! `wice lab`: builds a lab, runs daemons of this program in it, and shows which paths they find.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::lab::{
    self, Expected, Lab, LabConfig, LabError, MAX_SITES, NatKind, PeerStatus, Pong, Process,
    ground_truth,
};

/// Version of the JSON lines.
const SCHEMA: u32 = 1;
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
/// How often the daemons are asked.
const POLL: Duration = Duration::from_millis(50);
/// The longest delay that may be asked for: past it handshakes would time out.
const MAX_DELAY_MS: u64 = 2_000;
/// The most loss that may be asked for: past it nothing can be told from silence.
const MAX_LOSS_PERCENT: f64 = 50.0;

/// Build NATs and nodes on this machine and watch them find each other.
#[derive(Args, Clone, Debug)]
pub struct LabArgs {
    /// A home behind this kind of NAT; give it once for each home. Kinds: full-cone,
    /// address-restricted, port-restricted, address-dependent, symmetric, public, firewalled,
    /// udp-blocked, cgnat.
    #[arg(long, value_name = "KIND", required = true, value_parser = parse_kind)]
    nat: Vec<NatKind>,
    /// Round trip between any two homes or servers, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 40,
          value_parser = clap::value_parser!(u64).range(..=MAX_DELAY_MS))]
    delay: u64,
    /// Packets lost one way between any two homes or servers, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = parse_loss)]
    loss: f64,
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
    let result = lab::check_tools(true).and_then(|()| lab::acquire_privilege());
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
    let mut daemons = Vec::new();
    // Time is counted from the last daemon's start, when those before it have settled: that is what
    // somebody sees who joins a mesh.
    let mut start = Instant::now();
    for home in &lab.config().homes {
        if let Some(before) = daemons
            .last()
            .map(|daemon: &Process| daemon.name().to_owned())
        {
            lab.wait_settled(&before, SETTLES)?;
        }
        start = Instant::now();
        daemons.push(lab.start_daemon(&home.name, Some(&token), &[])?);
    }
    if let Some(last) = daemons.last() {
        show.started(last);
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

    fn is_settled(&self) -> bool {
        self.is_as_expected() && (self.expected.direct || self.since.elapsed() >= STAYS)
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
            if described(found.as_ref()) != described(pair.path.as_ref()) {
                pair.path = found;
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

/// A path in the words of `wice status`: `direct srflx`, `relayed udp`, `none`.
fn described(peer: Option<&PeerStatus>) -> String {
    let Some(peer) = peer else {
        return "none".into();
    };
    let detail = match peer.path.kind.as_str() {
        "relayed" => peer.path.relay_transport.as_deref(),
        _ => peer.path.remote.as_ref().map(|end| end.kind.as_str()),
    };
    match detail {
        Some(detail) => format!("{} {detail}", peer.path.kind),
        None => peer.path.kind.clone(),
    }
}

/// The two ways of telling it.
struct Show {
    json: bool,
}

impl Show {
    fn built(&self, lab: &Lab, args: &LabArgs) {
        let homes = &lab.config().homes;
        if self.json {
            let homes: Vec<Value> = homes
                .iter()
                .map(|h| json!({"name": h.name, "nat": h.nat.name()}))
                .collect();
            return self.line(json!({
                "event": "built", "homes": homes, "rtt_ms": args.delay, "loss_percent": args.loss,
                "build_ms": millis(lab.build_time()), "directory": lab.directory(),
            }));
        }
        let each_way = args.delay as f64 / 2.0;
        let loss = match args.loss {
            0.0 => String::new(),
            loss => format!(", {loss} % lost"),
        };
        println!(
            "internet   signaling, 2 STUN, relay (udp tcp tls)     {each_way} ms each way{loss}"
        );
        for row in homes.chunks(2) {
            let cells = row.iter().map(|h| format!("{:<10} {:<22}", h.name, h.nat));
            println!("{}", cells.collect::<Vec<_>>().join(" ").trim_end());
        }
    }

    fn started(&self, daemon: &Process) {
        if self.json {
            self.line(json!({"event": "started", "at_ms": 0.0, "node": daemon.name()}));
        } else {
            println!("{:<8} {} started", seconds(Duration::ZERO), daemon.name());
        }
    }

    fn path(&self, at: Duration, pair: &Pair) {
        if self.json {
            let path = pair.path.as_ref();
            return self.line(json!({
                "event": "path", "at_ms": millis(at), "first": pair.first, "second": pair.second,
                "kind": pair.kind(),
                "local": path.and_then(|p| p.path.local.as_ref()).map(|end| &end.kind),
                "remote": path.and_then(|p| p.path.remote.as_ref()).map(|end| &end.kind),
                "relay_transport": path.and_then(|p| p.path.relay_transport.as_ref()),
            }));
        }
        // Before the first ping a path is a promise; with it, it is shown.
        if pair.pinged.is_some() {
            self.text(at, pair, &described(pair.path.as_ref()));
        }
    }

    fn pinged(&self, start: Instant, pair: &Pair) {
        let Some(pong) = pair.pinged else { return };
        let at = pong.at - start;
        if self.json {
            return self.line(json!({
                "event": "ping", "at_ms": millis(at), "first": pair.first, "second": pair.second,
                "rtt_ms": millis(pong.rtt),
            }));
        }
        let path = described(pair.path.as_ref());
        let rtt = millis(pong.rtt);
        self.text(
            at,
            pair,
            &format!("{path}   first ping answered, {rtt:.0} ms"),
        );
    }

    fn settled(&self, at: Duration, pair: &Pair) {
        if self.json {
            return self.line(json!({
                "event": "settled", "at_ms": millis(at), "first": pair.first,
                "second": pair.second, "kind": pair.kind(), "expected_direct": pair.expected.direct,
                "as_expected": pair.is_as_expected(),
                "reason": pair.path.as_ref().and_then(|peer| peer.reason.as_ref()),
            }));
        }
        if pair.is_as_expected() && !pair.expected.direct {
            let (first, second) = pair.kinds;
            let reason = pair.path.as_ref().and_then(|peer| peer.reason.as_deref());
            let reason = reason
                .map(|reason| format!(" ({reason})"))
                .unwrap_or_default();
            self.text(
                at,
                pair,
                &format!("stays relayed: {first} and {second} cannot meet{reason}"),
            );
        }
    }

    /// The last line, and the exit code that it stands for.
    fn verdict(&self, pairs: &[Pair]) -> u8 {
        let wrong: Vec<&Pair> = pairs.iter().filter(|pair| !pair.is_as_expected()).collect();
        let dead = wrong.iter().any(|pair| pair.pinged.is_none());
        let code = match (wrong.is_empty(), dead) {
            (true, _) => 0,
            (false, false) => DEGRADED,
            (false, true) => FAILED,
        };
        if self.json {
            self.line(json!({"event": "verdict", "as_expected": wrong.is_empty()}));
            return code;
        }
        for pair in &wrong {
            let want = if pair.expected.direct {
                "direct"
            } else {
                "relayed"
            };
            let have = match pair.pinged {
                Some(_) => described(pair.path.as_ref()),
                None => format!("no ping answered, path {}", described(pair.path.as_ref())),
            };
            println!(
                "not as the NATs allow: {} <-> {} {have}, not {want}",
                pair.first, pair.second
            );
        }
        if wrong.is_empty() && !pairs.is_empty() {
            let mut kinds: Vec<&str> = pairs.iter().map(Pair::kind).collect();
            kinds.sort_unstable();
            kinds.dedup();
            println!("as the NATs allow: {}", kinds.join(", "));
        }
        code
    }

    fn kept(&self, lab: &Lab) {
        if self.json {
            self.line(json!({"event": "kept", "directory": lab.directory()}));
        } else {
            println!("kept       {}", lab.directory().display());
        }
    }

    fn error(&self, error: &LabError) {
        if self.json {
            self.line(json!({"event": "error", "message": error.to_string()}));
        }
        eprintln!("wice: {error}");
    }

    fn text(&self, at: Duration, pair: &Pair, what: &str) {
        println!(
            "{:<8} {} <-> {}  {what}",
            seconds(at),
            pair.first,
            pair.second
        );
    }

    fn line(&self, mut object: Value) {
        object["schema"] = SCHEMA.into();
        println!("{object}");
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// `0.141 s` below a second, `1.2 s` above.
fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 {
        format!("{seconds:.3} s")
    } else {
        format!("{seconds:.1} s")
    }
}

fn parse_kind(text: &str) -> Result<NatKind, String> {
    text.parse()
}

fn parse_loss(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(loss) if (0.0..=MAX_LOSS_PERCENT).contains(&loss) => Ok(loss),
        Ok(_) | Err(_) => Err(format!("give a number from 0 to {MAX_LOSS_PERCENT}")),
    }
}
