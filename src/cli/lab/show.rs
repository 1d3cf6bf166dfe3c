//! What a lab tells, as text and as JSON lines.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{DEGRADED, FAILED, LabArgs, Pair};
use crate::lab::{self, Lab, LabError, PeerStatus, TurnServer};

/// Prints a line. A reader that has seen enough (`| head`) ends the lab.
macro_rules! say {
    ($($part:tt)*) => {
        if writeln!(std::io::stdout(), $($part)*).is_err() {
            lab::interrupt();
        }
    };
}

/// Version of the JSON lines.
const SCHEMA: u32 = 1;

/// A path in the words of `wice status`: `direct srflx`, `relayed udp`, `none`.
pub(super) fn described(peer: Option<&PeerStatus>) -> String {
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
pub(super) struct Show {
    pub(super) json: bool,
}

impl Show {
    pub(super) fn built(&self, lab: &Lab, args: &LabArgs) {
        let homes = &lab.config().homes;
        if self.json {
            let homes: Vec<Value> = homes
                .iter()
                .map(|h| json!({"name": h.name, "nat": h.nat.name()}))
                .collect();
            return self.line(json!({
                "event": "built", "homes": homes, "relay": args.relay.name(), "rtt_ms": args.delay, "loss_percent": args.loss,
                "build_ms": millis(lab.build_time()), "directory": lab.directory(),
            }));
        }
        let each_way = args.delay as f64 / 2.0;
        let loss = match args.loss {
            0.0 => String::new(),
            loss => format!(", {loss} % lost"),
        };
        let relay = match args.relay {
            TurnServer::Wice => "relay",
            TurnServer::Coturn => "coturn",
        };
        say!(
            "internet   signaling, 2 STUN, {relay} (udp tcp tls)     {each_way} ms each way{loss}"
        );
        for row in homes.chunks(2) {
            let cells = row.iter().map(|h| format!("{:<10} {:<22}", h.name, h.nat));
            say!("{}", cells.collect::<Vec<_>>().join(" ").trim_end());
        }
    }

    /// `before` is how long before the last one, from whose start time is counted.
    pub(super) fn started(&self, name: &str, before: Duration) {
        if self.json {
            let at = -millis(before) + 0.0;
            self.line(json!({"event": "started", "at_ms": at, "node": name}));
        } else if before.is_zero() {
            say!("{:<8} {name} started", seconds(before));
        } else {
            say!("{:<8} {name} started", "before");
        }
    }

    /// A lab of one home.
    pub(super) fn alone(&self, at: Duration, name: &str, is_in: bool) {
        if self.json {
            return self.line(json!({
                "event": "alone", "at_ms": millis(at), "node": name, "joined": is_in,
            }));
        }
        let how = match is_in {
            true => "is in, and has a relay",
            false => "is not in yet, or has no relay",
        };
        say!(
            "{:<8} {name} {how}; nobody is there to meet: give --nat once more",
            seconds(at)
        );
    }

    pub(super) fn path(&self, at: Duration, pair: &Pair) {
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

    pub(super) fn pinged(&self, start: Instant, pair: &Pair) {
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

    pub(super) fn settled(&self, at: Duration, pair: &Pair) {
        if self.json {
            return self.line(json!({
                "event": "settled", "at_ms": millis(at), "first": pair.first,
                "second": pair.second, "kind": pair.kind(), "expected_direct": pair.expected.direct,
                "as_expected": pair.is_as_expected(),
                "reason": pair.reason(),
            }));
        }
        if pair.is_as_expected() && !pair.expected.direct {
            let (first, second) = pair.kinds;
            let reason = match pair.reason() {
                Some(reason) => format!(" ({reason})"),
                None => String::new(),
            };
            let what = match first == second {
                true => format!("two {first} homes"),
                false => format!("{first} and {second}"),
            };
            self.text(
                at,
                pair,
                &format!("stays relayed: {what} have no direct path{reason}"),
            );
        }
    }

    /// The last line, and the exit code that it stands for.
    pub(super) fn verdict(&self, pairs: &[Pair]) -> u8 {
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
            say!(
                "not as the NATs allow: {} <-> {} {have}, not {want}",
                pair.first,
                pair.second
            );
        }
        if wrong.is_empty() && !pairs.is_empty() {
            let mut kinds: Vec<&str> = pairs.iter().map(Pair::kind).collect();
            kinds.sort_unstable();
            kinds.dedup();
            say!("as the NATs allow: {}", kinds.join(", "));
        }
        code
    }

    pub(super) fn kept(&self, lab: &Lab) {
        if self.json {
            self.line(json!({"event": "kept", "directory": lab.directory()}));
        } else {
            say!("kept       {}", lab.directory().display());
        }
    }

    pub(super) fn error(&self, error: &LabError) {
        if self.json {
            self.line(json!({"event": "error", "message": error.to_string()}));
        }
        eprintln!("wice: {error}");
    }

    fn text(&self, at: Duration, pair: &Pair, what: &str) {
        say!(
            "{:<8} {} <-> {}  {what}",
            seconds(at),
            pair.first,
            pair.second
        );
    }

    fn line(&self, mut object: Value) {
        object["schema"] = SCHEMA.into();
        say!("{object}");
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
