//! Records that one node carries for another, by service and client.

use std::time::Duration;

use wice::signaling::Event;
use wice_signaling::protocol::{CarryRefusal, Presence, RecordKind, RevocationList};

use super::lab::{self, Lab};

/// Until a client has seen that its outbox has changed.
const TAKEN_UP: Duration = Duration::from_millis(200);
const KIND: RecordKind = RecordKind::Advert;

#[tokio::test]
async fn a_carried_record_reaches_the_others_and_stays_when_its_carrier_goes() {
    let lab = Lab::new("carry");
    let mut config = lab.config();
    config.limits.presence_grace = Duration::ZERO;
    let server = lab.serve_with(config).await;
    let (whose, bridge_key) = (lab.key(9), lab.key(1));
    let mut bridge = lab.connect(&server, &bridge_key);
    let carries = lab::until(&mut bridge, |event| {
        assert!(*event != Event::Connected, "it is said first");
        *event == Event::Carries
    });
    carries.await;
    lab::until_connected(&mut bridge).await;
    let mut other = lab.connect(&server, &lab.key(2));
    lab::until_connected(&mut other).await;
    for sequence in 1..=2 {
        let sealed = lab.sealed_advert(&whose, sequence);
        bridge.carry(whose.public_key(), KIND, sealed);
        let heard = lab::next_record(&mut other).await;
        assert_eq!(lab.open_advert(&heard).sequence, sequence);
    }
    bridge.leave().await;
    let gone = lab::until(&mut other, |event| matches!(event, Event::Presence { .. })).await;
    let left = Event::Presence {
        key: bridge_key.public_key(),
        presence: Presence::Left { last_seen_s: 0 },
    };
    assert_eq!(gone, left, "the bridge, and nobody else");
    let mut late = lab.connect(&server, &lab.key(3));
    let heard = lab::next_record(&mut late).await;
    assert_eq!(lab.open_advert(&heard).key, whose.public_key());
    assert!(matches!(heard, Event::Record { last_seen, .. } if last_seen.is_zero()));
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_carried_is_said_and_carried_again_after_a_reconnect() {
    let lab = Lab::new("not-carried");
    let server = lab.serve().await;
    let owner = lab.key(9);
    let mut bridge = lab.connect(&server, &lab.key(1));
    lab::until_connected(&mut bridge).await;
    bridge.carry(owner.public_key(), KIND, lab.sealed_advert(&owner, 1));
    lab::until_records(&server, 1).await;
    // The service forgets; the bridge need not be told to carry again.
    let address = server.address;
    server.stop().await;
    lab::until(&mut bridge, |event| {
        matches!(event, Event::Disconnected { .. })
    })
    .await;
    let server = lab.serve_at(address).await;
    lab::until_connected(&mut bridge).await;
    lab::until_records(&server, 1).await;

    // Its owner gets it back, and speaks for itself from then on.
    let mut own = lab.connect(&server, &owner);
    let back = lab::next_record(&mut own).await;
    assert_eq!(lab.open_advert(&back).sequence, 1);
    own.publish(KIND, lab.sealed_advert(&owner, 2));
    let heard = lab::next_record(&mut bridge).await;
    assert_eq!(lab.open_advert(&heard).sequence, 2);
    let revoked = lab.key(8).public_key();
    let list = RevocationList::sign(&lab.admin, 1, [revoked].into(), Default::default());
    own.push_revocations(list.unwrap());
    lab::until(&mut bridge, |event| matches!(event, Event::Revocations(_))).await;
    for (key, why) in [
        (owner.public_key(), CarryRefusal::Proven),
        (revoked, CarryRefusal::Revoked),
    ] {
        bridge.carry(key, KIND, vec![7; 60]);
        let told = Event::NotCarried {
            key,
            kind: KIND,
            why,
        };
        lab::until(&mut bridge, |event| *event == told).await;
        // The same again is no change, unless it was given up in between.
        bridge.carry_no_more(key, KIND);
        tokio::time::sleep(TAKEN_UP).await;
        bridge.carry(key, KIND, vec![7; 60]);
        lab::until(&mut bridge, |event| *event == told).await;
    }
    server.stop().await;
}
