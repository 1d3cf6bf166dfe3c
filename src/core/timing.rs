//! Every timer and count of the core, each with its reason. The relations between them are pinned
//! by the tests below. "Loss" is 10 % each way, 19 % a round trip.

use std::time::Duration;

const fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}
const fn secs(value: u64) -> Duration {
    Duration::from_secs(value)
}

/// All agents' checks together: at most one in 5 ms (RFC 8445 §14.2). 100 agents with their best
/// direct and relayed pair first are through in 2 s.
pub const TA_NODE: Duration = ms(5);
/// Pace of a lone agent whose peer proposes nothing (RFC 8445 §14.2).
pub const TA_DEFAULT: Duration = ms(50);

/// First retransmission (RFC 8445 §14.3: at least 500 ms), doubled each time.
pub const RTO_MIN: Duration = ms(500);
/// Transmissions of one check (RFC 8489 §6.2.1): at 0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5 s.
pub const RC: u8 = 7;
/// The last transmission is waited for this many RTOs (RFC 8489 §6.2.1).
pub const RM: u32 = 16;
/// Patience before "no pair works" may be said (RFC 8863 §4); also how long an id is answerable.
pub const PAC_MIN: Duration = ms(39_500);

/// A first check towards a relayed candidate may overtake the permission that lets it in (one
/// round trip of the peer to its server): it is repeated with ids of its own after these delays.
pub const RELAY_RACE: [Duration; 2] = [ms(60), ms(180)];

/// A peer that signaling calls away is believed to be there for so long after it was heard: what it
/// sends weighs more, and a round trip of checks fits.
pub const RECENTLY_HEARD: Duration = secs(1);
/// Probes missed in a row until a path is dead whose peer has said farewell to signaling: two
/// witnesses, so fewer are enough (under loss false once in 770 farewells).
pub const FAREWELL_MISSES: u8 = 4;
/// Probes missed in a row until a path is dead of which a router or this machine's kernel says that it leads
/// nowhere, and their distance: within a second. Anyone may forge what ICMP says, so it is asked; false once in
/// 150 such words under loss.
pub const UNREACHABLE_MISSES: u8 = 3;
/// Their distance; more where the round trip is longer.
pub const UNREACHABLE_INTERVAL: Duration = ms(200);
/// What has answered is not asked again for as long: words cost no more checks than consent does.
pub const UNREACHABLE_EVERY: Duration = CONSENT_INTERVAL;
/// A relay that owes an answer for so long counts as silent: four transmissions, at 0, 0.5, 1.5 and 3.5 s
/// (RFC 8489 §6.2.1), and [`LAST_PROBE_WAIT`]; false once in 770 requests under loss.
pub const RELAY_SILENT: Duration = ms(3_700);

/// A path that was sent on and is silent for this long is probed.
pub const SILENCE: Duration = secs(1);
/// Distance of probes; more where the round trip is longer.
pub const PROBE_INTERVAL: Duration = ms(500);
/// Probes missed in a row until a path is dead: under loss false in 5 min of a one-way flow, which is probed every second:
/// 5 misses 6 %, 7: 0.2 %. With packets both ways there is hardly a probe.
pub const STALL_MISSES: u8 = 7;

/// Consent check of a path that carries data, ± 20 % (RFC 7675 §5.1).
pub const CONSENT_INTERVAL: Duration = secs(5);
/// Without an answer for this long nothing more is sent (RFC 7675 §5.1).
pub const CONSENT_EXPIRY: Duration = secs(30);

/// A peer without data for this long is idle.
pub const IDLE_AFTER: Duration = secs(20);
/// Check of idle and standby paths, ± 20 %: under the 30 s of the shortest common NAT timers.
pub const IDLE_CHECK: Duration = secs(20);
/// Transmissions of an idle check: all lost in 0.19^5.
pub const IDLE_RC: u8 = 5;
/// Valid pairs beside the selected one that are kept alive: the best direct and the best relayed.
pub const STANDBY_PAIRS: usize = 2;

/// Failed pairs are tried again this often while there is traffic, from both sides, so that both
/// holes are open at once (NAT timers of 30 s and more).
pub const RECHECK: Duration = secs(20);
/// The first try of a pair that worked until now.
pub const RECHECK_SOON: Duration = secs(2);
/// How many failed pairs are tried again, best first.
pub const RECHECK_PAIRS: usize = 4;
/// Transmissions of such a try.
pub const RECHECK_RC: u8 = 3;

/// The controlled side starts a handshake of its own on a first path when the controlling side's has
/// not come for this long: a slow round trip and the path's validation there.
pub const HANDSHAKE_GRACE: Duration = ms(500);

/// Data went out, none came back: dead after this, with [`DATA_DEAD_HANDSHAKES`] unanswered.
pub const DATA_DEAD: Duration = secs(15);
/// A one-way flow is silent by itself for 15 s when one keepalive is lost.
pub const DATA_DEAD_HANDSHAKES: u32 = 2;
/// The same on a path on which WireGuard has not been heard yet: without a session handshakes follow
/// each other from the start, and three are lost once in 150 connections, four once in 800.
pub const DATA_DEAD_FIRST_HANDSHAKES: u32 = 4;
/// WireGuard repeats an unanswered handshake after 5 s and up to a third of a second (whitepaper §6.4).
pub const HANDSHAKE_TIMEOUT: Duration = ms(5_350);
/// A data-dead pair is not chosen again for this long while another works.
pub const HOLD_DOWN: Duration = secs(300);
/// On a switch packets go on both paths for at most this long.
pub const DUAL_SEND: Duration = secs(3);

/// The last of them is waited for no longer than the answer needs, at least for this long.
pub const LAST_PROBE_WAIT: Duration = ms(200);

/// A better class of path is taken when at least this many of the last eight checks came back.
pub const UPGRADE_ANSWERED: u32 = 5;
/// A pair that stands by and has lost more is checked this often until it holds (in five to eight
/// checks) or is dead: a path that comes back is taken within seconds.
pub const TRIAL_INTERVAL: Duration = secs(1);
/// Within a class: round trip shorter by this share (per cent) …
pub const UPGRADE_RTT_PERCENT: u32 = 20;
/// … and by this much …
pub const UPGRADE_RTT: Duration = ms(10);
/// … for this long …
pub const UPGRADE_HOLD: Duration = secs(15);
/// … and once in this time.
pub const UPGRADE_EVERY: Duration = secs(300);

/// The most pairs of one agent (RFC 8445 §6.1.2.5 asks for a bound; 16 remote candidates × 4 bases).
pub const MAX_PAIRS: usize = 64;
/// The most pairs of one base with addresses that no advert names and that do not work. Two translators that
/// give every destination a port of its own and let everyone in make a new address of every answer:
/// without a bound that chase is one check a round trip for good. They are forgotten after
/// [`RECHECK`].
pub const MAX_LEARNED: usize = 16;
/// The most open transactions of one pair: seven probes and the check before them.
pub const MAX_OPEN: usize = 8;

/// Role conflicts that a pair is answered with in a row until it fails: two settle every conflict
/// (RFC 8445 §7.3.1.1), equal tie-breakers take one more; past them the other side is at fault.
pub const MAX_CONFLICTS: u8 = 8;

/// Up to this many peers every path has others standing by; past them a peer without traffic keeps
/// its path alone, so that a thousand idle ones take a quarter of what the pacing allows.
pub const EAGER_PEERS: usize = 100;
/// A STUN server is asked again this often to keep the mapping and see it move: under 30 s of NAT
/// timers.
pub const STUN_REFRESH: Duration = secs(24);
/// A gathering request is given up after this; the server is asked again at the next refresh.
pub const STUN_TIMEOUT: Duration = ms(7_500);
/// Publishing waits this long for further changes …
pub const PUBLISH_DEBOUNCE: Duration = ms(200);
/// … but not the first time a candidate of a new kind shows: connecting is waiting for it.
pub const PUBLISH_FIRST: Duration = ms(5);
/// Back-off of publishing when candidates keep changing: doubles from the debounce to this.
pub const PUBLISH_MAX: Duration = secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_keep_their_relations() {
        assert!(TA_NODE * 400 <= secs(2));
        assert!(SILENCE + PROBE_INTERVAL * u32::from(STALL_MISSES) <= secs(5));
        assert!(secs(5) < CONSENT_EXPIRY && CONSENT_EXPIRY < PAC_MIN);
        assert!(IDLE_CHECK.mul_f64(1.2) < secs(25));
        assert!(RECHECK.mul_f64(1.2) < secs(30));
        // WireGuard starts the first handshake when nothing has come for 15 s.
        assert!(DATA_DEAD + HANDSHAKE_TIMEOUT * DATA_DEAD_HANDSHAKES < secs(30));
        assert!(HANDSHAKE_TIMEOUT * (DATA_DEAD_FIRST_HANDSHAKES + 1) < secs(30));
        assert!(DUAL_SEND < SILENCE + PROBE_INTERVAL * u32::from(STALL_MISSES));
        assert!(STUN_REFRESH < secs(30));
        assert!(RELAY_RACE[1] < RTO_MIN);
        assert_eq!(RELAY_SILENT, RTO_MIN * 7 + LAST_PROBE_WAIT);
        // A farewell's path is given up within two seconds.
        assert!(PROBE_INTERVAL * u32::from(FAREWELL_MISSES - 1) + LAST_PROBE_WAIT <= secs(2));
        const { assert!(FAREWELL_MISSES < STALL_MISSES) };
        assert!(
            UNREACHABLE_INTERVAL * u32::from(UNREACHABLE_MISSES - 1) + LAST_PROBE_WAIT < secs(1)
        );
        // RFC 8489 §6.2.1: sum of the doubled RTOs and the last wait.
        let waited = RTO_MIN * ((1 << (RC - 1)) - 1) + RTO_MIN * RM;
        assert_eq!(waited, PAC_MIN);
    }
}
