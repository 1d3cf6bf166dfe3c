//! coturn's own test client against us.

use std::process::Command;

use wice_turn::server::Transport;

use crate::World;
use crate::client::{PASSWORD, USER};

/// Messages a client, and clients.
const MESSAGES: u32 = 10;
const CLIENTS: u32 = 4;

/// Runs it with `-y` (client to client, so relay to relay) and returns how many messages came of how many.
fn run(world: &World, transport: Transport, options: &[&str]) -> (u32, u32) {
    let at = world.at(transport, false);
    let output = Command::new("turnutils_uclient")
        .args(options)
        .args([
            "-y",
            "-u",
            USER,
            "-w",
            PASSWORD,
            "-p",
            &at.port().to_string(),
        ])
        .args(["-n", &MESSAGES.to_string(), "-m", &CLIENTS.to_string()])
        .arg(at.ip().to_string())
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run turnutils_uclient ({error}): apt install coturn")
        });
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .rfind(|line| line.contains("tot_send_msgs="))
        .unwrap_or_else(|| panic!("{options:?}: {text}"));
    let number = |name: &str| {
        let rest = line.split(name).nth(1).unwrap();
        rest.chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
            .parse()
            .unwrap()
    };
    (number("tot_recv_msgs="), number("tot_send_msgs="))
}

#[test]
fn it_gets_everything_back_over_udp_and_tcp() {
    // It asks for channels above 0x4FFF, and for a second family by its old number.
    let world = World::new(|settings| {
        settings.old_clients = true;
        // It reserves ports, which other tests' clients would take on an address that all share.
        settings.relay_ips[0] = "127.0.0.8".parse().unwrap();
    });
    let all = (MESSAGES * CLIENTS, MESSAGES * CLIENTS);
    let udp = [
        &[][..],
        &["-s"],
        &["-g"],
        &["-M"],
        &["-Z"],
        &["-x"],
        &["-X"],
        &["-N"],
        &["-G"],
        &["-c"],
    ];
    let tcp = [&["-t"][..], &["-t", "-s"], &["-t", "-x"], &["-t", "-Z"]];
    // Side by side: each takes six seconds, nearly all of them waiting.
    std::thread::scope(|scope| {
        let world = &world;
        for (transport, options) in udp
            .into_iter()
            .map(|options| (Transport::Udp, options))
            .chain(tcp.into_iter().map(|options| (Transport::Tcp, options)))
        {
            scope.spawn(move || {
                let got = run(world, transport, options);
                assert_eq!(got, all, "{transport:?} {options:?}");
            });
        }
    });
}

#[test]
fn it_connects_to_peers_over_tcp() {
    let world = World::new(|s| s.tcp_relay = true);
    let all = MESSAGES * CLIENTS;
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(run(&world, Transport::Tcp, &["-T"]), (all, all)));
        // Where the peers connect it counts half of what it gets, with coturn's server as well.
        scope.spawn(|| assert_eq!(run(&world, Transport::Tcp, &["-T", "-P"]), (all / 2, all)));
    });
}

#[test]
fn it_gets_nearly_everything_back_over_tls() {
    // It leaves records unread in its TLS library when two arrive at once, with every server.
    let world = World::new(|s| s.old_clients = true);
    for options in [&["-t", "-S"][..], &["-t", "-S", "-s"]] {
        let (got, sent) = run(&world, Transport::Tls, options);
        assert!(
            got * 4 >= sent * 3 && sent == MESSAGES * CLIENTS,
            "{options:?}: {got} of {sent}"
        );
    }
}

#[test]
fn its_attacks_leave_the_server_standing() {
    let world = World::new(|s| s.old_clients = true);
    for options in [&["-O"][..], &["-R"], &["-N", "-R"]] {
        // What it reports of itself says nothing about us.
        let at = world.at(Transport::Udp, false);
        let _ = Command::new("timeout")
            .args(["10", "turnutils_uclient"])
            .args(options)
            .args([
                "-y",
                "-u",
                USER,
                "-w",
                PASSWORD,
                "-p",
                &at.port().to_string(),
                "-n",
                "2",
                "127.0.0.1",
            ])
            .output();
        world.client(Transport::Udp).allocate(&[]);
    }
}
