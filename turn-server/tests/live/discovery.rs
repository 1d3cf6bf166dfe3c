//! NAT behaviour discovery by coturn's client.

use std::net::UdpSocket;
use std::process::Command;

use wice_turn::server::Transport;

use crate::World;

/// A port that is free at both addresses, as far as one can know.
fn free_port() -> u16 {
    loop {
        let first = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.2", port)).is_ok() {
            return port;
        }
    }
}

#[test]
fn natdiscovery_finds_no_nat_on_loopback() {
    let world = World::new(|settings| {
        let (p, q) = (free_port(), free_port());
        settings.listen = ["127.0.0.1", "127.0.0.2"]
            .iter()
            .flat_map(|ip| [p, q].map(|port| format!("udp://{ip}:{port}").parse().unwrap()))
            .collect();
    });
    let at = world.at(Transport::Udp, false);
    for (option, word) in [
        ("-m", "NAT with Endpoint Independent Mapping!"),
        ("-f", "NAT with Endpoint Independent Filtering!"),
    ] {
        let output = Command::new("turnutils_natdiscovery")
            .args([option, "-p", &at.port().to_string(), "-L", "127.0.0.1"])
            .arg(at.ip().to_string())
            .output()
            .unwrap_or_else(|error| {
                panic!("cannot run turnutils_natdiscovery ({error}): apt install coturn")
            });
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(word), "{option}: {text}");
    }
}
