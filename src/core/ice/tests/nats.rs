//! Translators, relays, moving sockets.

use std::time::Duration;

use super::net::*;
use crate::core::ice::*;

const ROLES: [Role; 2] = [Role::Controlling, Role::Controlled];

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn behind(nats: [(Depends, Depends); 2], seed: u64) -> Net {
    let mut net = Net::pair(ROLES, Nomination::Repeated, seed);
    for (agent, (mapping, filtering)) in nats.into_iter().enumerate() {
        let nat = net.nat(&format!("203.0.113.{}", agent + 1), mapping, filtering);
        net.host(agent, &format!("10.{agent}.0.2:1000"), Some(nat));
    }
    net.owners = true;
    net.traffic(true);
    net
}

/// Whether a direct path exists, from the behaviours alone: a check gets in at the port that the
/// STUN server saw, and answers come back from where the next checks go.
fn direct_exists([a, b]: [(Depends, Depends); 2]) -> bool {
    use Depends::{Address, AddressAndPort, Endpoint};
    let opens = |(mapping, filtering): (Depends, Depends), (mapping_b, filtering_b)| {
        let gets_in = match (mapping_b, filtering_b) {
            (_, Endpoint) | (Endpoint, Address) => true,
            (Endpoint, AddressAndPort) => mapping == Endpoint,
            (Address | AddressAndPort, _) => false,
        };
        // The other side's port is another one than that which was checked.
        let comes_back = mapping_b == Endpoint
            || filtering != AddressAndPort
                && (mapping, mapping_b) != (AddressAndPort, AddressAndPort);
        gets_in && comes_back
    };
    opens(a, b) || opens(b, a)
}

#[test]
fn every_pair_of_translators_has_the_path_that_exists() {
    for mapping_a in Depends::ALL {
        for filtering_a in Depends::ALL {
            for mapping_b in Depends::ALL {
                for filtering_b in Depends::ALL {
                    let nats = [(mapping_a, filtering_a), (mapping_b, filtering_b)];
                    let mut net = behind(nats, 1);
                    net.advertise_all();
                    net.run(secs(3));
                    assert_eq!(net.agreed().is_some(), direct_exists(nats), "{nats:?}");
                }
            }
        }
    }
}

#[test]
fn two_translators_that_change_ports_for_ever_are_not_chased_for_ever() {
    let hard_and_open = (Depends::AddressAndPort, Depends::Endpoint);
    let mut net = behind([hard_and_open, hard_and_open], 1);
    net.advertise_all();
    net.run(secs(120));
    assert!(
        net.sent.len() < 120 * 5,
        "{} checks in 2 min",
        net.sent.len()
    );
}

#[test]
fn a_hard_translator_reaches_a_mapped_port() {
    let hard = (Depends::AddressAndPort, Depends::AddressAndPort);
    let mut net = behind([hard, (Depends::Endpoint, Depends::Endpoint)], 1);
    net.advertise(1);
    net.run(secs(1));
    assert!(
        net.agreed().is_some(),
        "the check's source is where to answer"
    );
}

#[test]
fn a_relay_carries_where_nothing_else_does_and_direct_takes_over() {
    let hard = (Depends::AddressAndPort, Depends::AddressAndPort);
    let mut net = behind([hard, hard], 1);
    net.relay(0, "192.0.2.50:5000");
    net.relay(1, "192.0.2.50:6000");
    net.advertise_all();
    let took = net.run_until(secs(2), |net| net.agreed().is_some());
    assert!(took < Duration::from_millis(400), "{took:?}");
    // One relay is enough: relay to what the other side is seen at.
    net.run(secs(1));
    let keys = net.agreed().unwrap();
    assert_eq!(net.agents[0].pair(keys[0]).unwrap().relays(), 1);
    // A direct way appears: a public base.
    net.host(1, "198.51.100.2:2000", None);
    net.advertise(1);
    net.run_until(secs(1), |net| {
        net.agreed()
            .is_some_and(|[key, _]| net.agents[0].pair(key).unwrap().relays() == 0)
    });
}

#[test]
fn relay_to_relay_on_one_server_works() {
    let mut net = Net::pair(ROLES, Nomination::Repeated, 1);
    net.relay(0, "192.0.2.50:5000");
    net.relay(1, "192.0.2.50:6000");
    net.owners = true;
    net.advertise_all();
    net.run_ms(500);
    let keys = net.agreed().unwrap();
    assert_eq!(net.agents[0].pair(keys[0]).unwrap().relays(), 2);
    assert_eq!(net.only(0).local_kind(), CandidateKind::Relayed);
}

#[test]
fn a_relay_is_ranked_by_its_kind_although_its_checks_say_reflexive() {
    let mut net = Net::pair(ROLES, Nomination::Repeated, 1);
    net.relay(0, "192.0.2.50:5000");
    net.host(1, "198.51.100.2:2000", None);
    net.advertise(1);
    net.run_ms(200);
    assert_eq!(net.only(1).relays(), 0, "not known yet");
    net.advertise(0);
    assert_eq!(net.only(1).relays(), 1);
    let relayed = candidate_priority(CandidateKind::Relayed, 65535);
    assert_eq!(net.only(1).remote().priority, relayed);
}

#[test]
fn peer_reflexive_alone_carries_for_good() {
    // Neither advert names a way: the controlled side only ever learns the other by its checks.
    let hard = (Depends::AddressAndPort, Depends::AddressAndPort);
    let mut net = behind([hard, (Depends::Endpoint, Depends::Endpoint)], 1);
    net.advertise(1);
    net.run_ms(500);
    assert!(net.agreed().is_some());
    net.events.clear();
    for _ in 0..100 {
        let now = net.now;
        for agent in 0..2 {
            let key = net.agents[agent].nominated().unwrap();
            net.agents[agent].note_sent(key, now);
        }
        net.run(secs(3));
    }
    assert!(net.events.is_empty(), "{:?}", net.events);
}

#[test]
fn a_rebound_translator_is_followed() {
    let easy = (Depends::Endpoint, Depends::Endpoint);
    let mut net = behind([easy, easy], 1);
    net.advertise_all();
    net.run(secs(2));
    for round in 0..5 {
        let before = net.agreed().unwrap();
        net.rebind(0);
        let now = net.now;
        net.agents[0].note_sent(before[0], now);
        net.agents[1].note_sent(before[1], now);
        let followed = |net: &Net| net.agreed().is_some_and(|keys| keys[1] != before[1]);
        let took = net.run_until(secs(40), followed);
        assert!(took < secs(12), "round {round}: {took:?}");
    }
}

#[test]
fn a_moved_socket_is_checked_at_once_and_the_new_address_told() {
    let mut net = Net::connected();
    net.move_port(BaseId(0), "203.0.113.77:7777");
    let took = net.run_until(secs(7), |net| {
        net.find(1, "203.0.113.77:7777").is_some_and(Pair::is_valid)
    });
    // The next consent check shows it; one round trip validates it.
    assert!(took <= Duration::from_millis(6100), "{took:?}");
    net.run_ms(100);
    let seen = AgentEvent::Reflexive {
        base: BaseId(0),
        mapped: at("203.0.113.77:7777"),
    };
    assert!(net.has(0, seen));
}

#[test]
fn neighbours_behind_one_translator_meet_inside() {
    let mut net = Net::pair(ROLES, Nomination::Repeated, 1);
    let home = net.nat("203.0.113.1", Depends::Endpoint, Depends::AddressAndPort);
    net.host(0, "10.0.0.2:1000", Some(home));
    net.host(1, "10.0.0.3:1000", Some(home));
    net.owners = true;
    net.advertise_all();
    net.run_ms(300);
    let keys = net.agreed().unwrap();
    assert_eq!(keys[0].remote, at("10.0.0.3:1000"));
}

#[test]
fn a_first_check_that_overtakes_its_permission_is_repeated_soon() {
    let mut net = Net::pair(ROLES, Nomination::Repeated, 1);
    net.host(0, "198.51.100.1:1000", None);
    net.relay(1, "192.0.2.50:5000");
    net.owners = true;
    net.advertise(1);
    // The relay's owner learns of the other, and lets it in, 40 ms later.
    net.run_ms(40);
    net.advertise(0);
    net.run_until(Duration::from_millis(250), |net| net.only(0).is_valid());
}
