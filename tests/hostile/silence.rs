//! A peer that is sent to and cannot be reached: nothing is to be waited for without end.

use std::time::Duration;

use wice::core::node::WireGuardPacket;

use crate::victim::Victim;

/// Data and two handshakes go out, and there is no path: the time at which a path would be dead to
/// data passes, and passes by.
#[test]
fn data_without_a_path_keeps_nobody_awake() {
    let mut victim = Victim::new();
    let peer = victim.node.peer_of(&victim.peer.public_key()).unwrap();
    for packet in [
        WireGuardPacket::Data,
        WireGuardPacket::HandshakeInitiation,
        WireGuardPacket::HandshakeInitiation,
    ] {
        victim.node.note_sent(peer, packet, victim.now);
    }
    for _ in 0..120 {
        victim.now += Duration::from_secs(1);
        let mut wakes = 0;
        while victim
            .node
            .poll_timeout()
            .is_some_and(|(at, _)| at <= victim.now)
        {
            wakes += 1;
            assert!(
                wakes < 100,
                "{:?} never comes to rest",
                victim.node.poll_timeout()
            );
            victim.node.handle_timeout(victim.now);
            victim.drain();
        }
    }
    assert_eq!(
        victim.node.counters().data_dead,
        0,
        "there is no path to be dead"
    );
}
