//! Metrics and health.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use wice_turn::server::Transport;

use crate::World;

fn get(world: &World, request: &str) -> String {
    let mut stream = TcpStream::connect(world.service.metrics().unwrap()).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_and_health_are_read_only() {
    let world = World::new(|s| s.metrics = Some("127.0.0.1:0".parse().unwrap()));
    let mut client = world.client(Transport::Udp);
    client.binding();
    client.allocate(&[]);
    std::thread::sleep(Duration::from_millis(1200));
    let page = get(&world, "GET /metrics");
    for line in [
        "wice_turn_allocations 1\n",
        "wice_turn_bindings_total 1\n",
        "wice_turn_relay_ports_taken{family=\"ipv4\"} 1\n",
        "wice_turn_refused_total{code=\"401\"} 1\n",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    assert!(get(&world, "GET /healthz").starts_with("HTTP/1.1 200"));
    assert!(get(&world, "GET /readyz").starts_with("HTTP/1.1 200"));
    for request in [
        "POST /metrics",
        "DELETE /readyz",
        "GET /",
        "GET /../etc/passwd",
    ] {
        assert!(
            get(&world, request).starts_with("HTTP/1.1 404"),
            "{request}"
        );
    }
    world.service.drain(Duration::ZERO);
    assert!(get(&world, "GET /readyz").starts_with("HTTP/1.1 503"));
    assert!(get(&world, "GET /healthz").starts_with("HTTP/1.1 200"));
}
