//! NAT behaviour discovery (RFC 5780).

use super::*;

const LISTENERS: [&str; 6] = [
    "0.0.0.0:3478",
    "8.1.1.1:3478",
    "8.1.1.1:3479",
    "8.1.1.2:3478",
    "[2a00::5]:3478",
    "8.1.1.2:3479",
];

fn world() -> World {
    let mut world = World::new();
    let listeners: Vec<SocketAddr> = LISTENERS.map(|text| text.parse().unwrap()).to_vec();
    world.server.set_listeners(&listeners);
    assert!(world.server.discovers());
    world
}

/// From where and to where the answer goes, and the answer.
fn ask(world: &mut World, local: &str, attributes: &[Attr]) -> Option<(ClientAddr, Response)> {
    let mut client = world.client(1).addr;
    client.local = local.parse().unwrap();
    client.link = LISTENERS.iter().position(|one| *one == local).unwrap_or(0) as u32;
    ask_as(world, &client, attributes)
}

fn ask_as(
    world: &mut World,
    client: &ClientAddr,
    attributes: &[Attr],
) -> Option<(ClientAddr, Response)> {
    let request = plain(method::BINDING, world.id(), attributes);
    world.server.handle_client(client, &request, world.now);
    world.obey();
    let (to, bytes) = world.sent.pop()?;
    let code = Message::parse(&bytes)
        .unwrap()
        .get(attribute::ERROR_CODE)
        .map(|value| u16::from(value[2]) * 100 + u16::from(value[3]));
    let code = code.unwrap_or(0);
    Some((to, Response { code, bytes }))
}

fn change(flags: u8) -> Attr {
    Attr::Raw(attribute::CHANGE_REQUEST, vec![0, 0, 0, flags])
}

fn response_port(port: u16) -> Attr {
    let [high, low] = port.to_be_bytes();
    Attr::Raw(attribute::RESPONSE_PORT, vec![high, low, 0, 0])
}

/// An IPv4 address that is not masked.
fn address(response: &Response, kind: u16) -> String {
    let value = response.get(kind).unwrap();
    let [_, 1, high, low, a, b, c, d] = value[..] else {
        panic!("{value:?}");
    };
    format!("{a}.{b}.{c}.{d}:{}", u16::from_be_bytes([high, low]))
}

#[test]
fn answers_come_from_the_listener_that_is_asked_for() {
    let mut world = world();
    for (at, flags, from) in [
        ("8.1.1.1:3478", 0, "8.1.1.1:3478"),
        ("8.1.1.1:3478", 2, "8.1.1.1:3479"),
        ("8.1.1.1:3478", 4, "8.1.1.2:3478"),
        ("8.1.1.1:3478", 6, "8.1.1.2:3479"),
        ("8.1.1.2:3479", 2, "8.1.1.2:3478"),
        ("8.1.1.2:3479", 4, "8.1.1.1:3479"),
        ("8.1.1.2:3479", 6, "8.1.1.1:3478"),
    ] {
        let (to, response) = ask(&mut world, at, &[change(flags)]).unwrap();
        assert_eq!(response.code, 0);
        assert_eq!(to.local.to_string(), from, "{at} {flags}");
        assert_eq!(LISTENERS[to.link as usize], from);
        assert_eq!(address(&response, attribute::RESPONSE_ORIGIN), from);
        let other = if at == "8.1.1.1:3478" {
            "8.1.1.2:3479"
        } else {
            "8.1.1.1:3478"
        };
        assert_eq!(address(&response, attribute::OTHER_ADDRESS), other);
        assert_eq!(
            address(&response, attribute::MAPPED_ADDRESS),
            "9.9.0.1:4000"
        );
        assert_eq!(
            response.addresses(attribute::XOR_MAPPED_ADDRESS),
            ["9.9.0.1:4000".parse().unwrap()]
        );
    }
}

#[test]
fn an_answer_goes_to_another_port_of_who_asks_but_never_to_a_service() {
    let mut world = world();
    let (to, response) = ask(&mut world, "8.1.1.1:3478", &[response_port(5000)]).unwrap();
    assert_eq!(
        (to.remote.to_string(), response.code),
        ("9.9.0.1:5000".into(), 0)
    );
    // It tells who asked, not where the answer goes.
    assert_eq!(
        address(&response, attribute::MAPPED_ADDRESS),
        "9.9.0.1:4000"
    );
    for port in [0, 53, 123, 1023] {
        let (to, response) = ask(&mut world, "8.1.1.1:3478", &[response_port(port)]).unwrap();
        assert_eq!((to.remote.port(), response.code), (4000, 400), "{port}");
    }
    for short in [attribute::RESPONSE_PORT, attribute::CHANGE_REQUEST] {
        let (_, response) =
            ask(&mut world, "8.1.1.1:3478", &[Attr::Raw(short, vec![0, 0])]).unwrap();
        assert_eq!(response.code, 400);
    }
}

#[test]
fn special_answers_are_rationed_a_source_and_plain_ones_are_not() {
    let mut world = world();
    let asked = 2 * DEFAULT_CHALLENGES.burst;
    let answered = (0..asked).filter(|_| ask(&mut world, "8.1.1.1:3478", &[change(6)]).is_some());
    assert_eq!(answered.count(), DEFAULT_CHALLENGES.burst as usize);
    assert!(ask(&mut world, "8.1.1.1:3478", &[]).is_some());
}

#[test]
fn elsewhere_it_is_unknown() {
    let mut world = world();
    // PADDING is nowhere.
    let padding = Attr::Raw(0x0026, vec![0; 64]);
    let (_, response) = ask(&mut world, "8.1.1.1:3478", &[change(2), padding]).unwrap();
    assert_eq!(response.code, 420);
    assert_eq!(
        response.get(attribute::UNKNOWN_ATTRIBUTES).unwrap(),
        [0, 0x26]
    );
    // At one address alone, over a stream, or without listeners that match.
    for local in ["[2a00::5]:3478", "10.0.0.5:3478"] {
        let (_, response) = ask(&mut world, local, &[change(2)]).unwrap();
        assert_eq!(response.code, 420, "{local}");
        let (_, plain) = ask(&mut world, local, &[]).unwrap();
        assert!(plain.get(attribute::OTHER_ADDRESS).is_none());
        // What a stranger gets is at most 1.6 times what it sent.
        assert!(plain.bytes.len() * 10 <= 20 * 16, "{}", plain.bytes.len());
    }
    let mut stream = world.client(1).addr;
    stream.transport = Transport::Tcp;
    stream.local = "8.1.1.1:3478".parse().unwrap();
    assert_eq!(
        ask_as(&mut world, &stream, &[change(2)]).unwrap().1.code,
        420
    );
    for few in [
        &LISTENERS[..4],
        &["8.1.1.1:1", "8.1.1.1:2", "8.1.1.2:3", "8.1.1.2:4"],
    ] {
        let few: Vec<SocketAddr> = few.iter().map(|text| text.parse().unwrap()).collect();
        world.server.set_listeners(&few);
        assert!(!world.server.discovers(), "{few:?}");
    }
}
