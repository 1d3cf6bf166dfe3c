//! `icecat` (our engine) against every other stack, in both roles: connected, data both ways, in
//! time. `./setup.sh` builds the peers; see there for what each needs.

mod harness;

use std::process::Command;
use std::time::{Duration, Instant};

use harness::{address, built, here, icecat_command, last_argument, meet, peers, start, with_role};

/// Consent lasts 30 s (RFC 7675 §5.1); some checks more.
const CONSENT: Duration = Duration::from_secs(40);

#[test]
fn is() {
    both_roles(Command::new(env!("CARGO_BIN_EXE_is_peer")));
}

#[test]
fn webrtc_ice() {
    both_roles(Command::new(env!("CARGO_BIN_EXE_webrtc_peer")));
}

#[test]
fn aioice() {
    let mut peer = Command::new(built("venv/bin/python3"));
    peer.arg(here().join("peers/aioice_peer.py"));
    both_roles(peer);
}

#[test]
fn libnice() {
    both_roles(Command::new(built("nice_peer")));
}

#[test]
fn pion() {
    both_roles(Command::new(built("pion_peer")));
}

/// Against itself: the same lines, the same program.
#[test]
fn icecat() {
    let address = address();
    for controlling in [true, false] {
        let other = start(icecat_command(!controlling, &address));
        let ours = icecat_command(controlling, &address);
        meet("icecat", controlling, ours, other);
    }
}

/// Both sides start in one role: who keeps it is settled on the way (RFC 8445 §7.3.1.1). webrtc-ice
/// drops such checks and pion never settles, so they are not asked.
#[test]
fn role_conflicts() {
    let mut aioice = Command::new(built("venv/bin/python3"));
    aioice.arg(here().join("peers/aioice_peer.py"));
    let is = Command::new(env!("CARGO_BIN_EXE_is_peer"));
    for peer in [is, aioice, Command::new(built("nice_peer"))] {
        let address = address();
        for controlling in [true, false] {
            meet(
                &last_argument(&peer),
                controlling,
                icecat_command(controlling, &address),
                start(with_role(&peer, controlling, &address)),
            );
        }
    }
}

/// Every peer's session outlives the consent that it began with, in both roles.
#[test]
fn sessions_outlast_consent() {
    let address = address();
    let mut sessions = Vec::new();
    for peer in peers() {
        for controlling in [true, false] {
            let other = start(with_role(&peer, !controlling, &address));
            sessions.push((
                last_argument(&peer),
                meet(
                    &last_argument(&peer),
                    controlling,
                    icecat_command(controlling, &address),
                    other,
                ),
            ));
        }
    }
    std::thread::sleep(CONSENT);
    for (name, (mut ours, mut other)) in sessions {
        println!("{name} after {CONSENT:?}");
        let begun = Instant::now();
        ours.send_until(&mut other, "still from us", begun);
        other.send_until(&mut ours, "still from them", begun);
        let lost = |line: &String| *line == "state disconnected";
        assert!(!ours.seen.iter().any(lost), "{name}: {:?}", ours.seen);
    }
}

fn both_roles(peer: Command) {
    let address = address();
    let name = last_argument(&peer);
    for controlling in [true, false] {
        let other = start(with_role(&peer, !controlling, &address));
        let ours = icecat_command(controlling, &address);
        meet(&name, controlling, ours, other);
    }
}
