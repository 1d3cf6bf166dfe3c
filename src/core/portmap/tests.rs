//! The client against a router in virtual time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::*;

const LOCAL: &str = "192.168.1.2:51821";
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 4);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What the router speaks, and what it does.
#[derive(Clone, Debug)]
struct Router {
    pcp: bool,
    natpmp: bool,
    upnp: bool,
    outside: Ipv4Addr,
    /// Result code of whatever asks for a mapping by PCP or NAT-PMP.
    code: u8,
    /// Ports that are others'.
    taken: Vec<u16>,
    started: Instant,
    mappings: BTreeMap<u16, u16>,
    http_port: u16,
}

struct World {
    client: Client,
    router: Router,
    now: Instant,
    sent: Vec<Transmit>,
}

impl World {
    fn new(router: impl FnOnce(&mut Router)) -> Self {
        let now = Instant::now() + Duration::from_secs(100_000);
        let mut fresh = Router {
            pcp: false,
            natpmp: false,
            upnp: false,
            outside: OUTSIDE,
            code: 0,
            taken: Vec::new(),
            started: now - Duration::from_secs(1000),
            mappings: BTreeMap::new(),
            http_port: 5000,
        };
        router(&mut fresh);
        let client = Client::new(config(Purpose::Map), now);
        let mut world = Self {
            client,
            router: fresh,
            now,
            sent: Vec::new(),
        };
        world.settle();
        world
    }

    fn settle(&mut self) {
        while let Some(transmit) = self.client.poll_transmit() {
            self.sent.push(transmit.clone());
            match transmit {
                Transmit::Server(message) => {
                    if let Some(answer) = self.router.answer(&message, self.now) {
                        assert!(self.client.handle_server(&answer, self.now));
                    }
                }
                Transmit::Search(message) if self.router.upnp => {
                    assert!(message.starts_with(b"M-SEARCH * HTTP/1.1\r\n"));
                    let location = format!("http://192.168.1.1:{}/d.xml", self.router.http_port);
                    for host in ["192.168.1.77:1900", "192.168.1.1:1900"] {
                        let answer = search_answer(&location);
                        self.client.handle_search_reply(at(host), &answer);
                    }
                }
                Transmit::Search(_) => {}
                Transmit::Exchange {
                    id,
                    address,
                    request,
                } => {
                    assert_eq!(address.ip(), self.client.config.gateway);
                    let here = address.port() == self.router.http_port && self.router.upnp;
                    let response = here.then(|| self.router.act(&request));
                    self.client.handle_response(id, response.as_ref(), self.now);
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.client.poll_timeout().filter(|due| *due <= end) {
            assert!(due >= self.now, "a timeout in the past is a busy loop");
            self.now = due;
            self.client.handle_timeout(self.now);
            self.settle();
            assert!(self.sent.len() < 10_000, "it never rests");
        }
        self.now = end;
    }

    fn run_s(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    fn mapped(&self) -> Option<(Protocol, SocketAddr)> {
        match self.client.report().outcome {
            Outcome::Mapped {
                protocol, external, ..
            } => Some((protocol, external)),
            Outcome::Looking
            | Outcome::Nothing
            | Outcome::Offered
            | Outcome::Refused { .. }
            | Outcome::TwoLayers => None,
        }
    }

    fn reboot(&mut self) {
        self.router.mappings.clear();
        self.router.started = self.now;
        self.router.http_port += 1;
    }
}

impl Router {
    fn epoch(&self, now: Instant) -> [u8; 4] {
        let seconds = now.saturating_duration_since(self.started).as_secs();
        u32::try_from(seconds).unwrap().to_be_bytes()
    }

    fn port_for(&mut self, internal: u16, wanted: u16) -> u16 {
        let mut port = wanted;
        while self.taken.contains(&port) {
            port += 1;
        }
        self.mappings.retain(|_, mapped| *mapped != internal);
        self.mappings.insert(port, internal);
        port
    }

    fn answer(&mut self, message: &[u8], now: Instant) -> Option<Vec<u8>> {
        let epoch = self.epoch(now);
        match (message[0], message[1]) {
            (2, _) if !self.pcp && self.natpmp => {
                Some([&[0, message[1] + 128, 0, 1][..], &epoch].concat())
            }
            (2, 0) if self.pcp => {
                Some([&[2, 128, 0, 0, 0, 0, 0, 0][..], &epoch, &[0; 12]].concat())
            }
            (2, 1) if self.pcp => {
                let mut answer = message.to_vec();
                answer[1] = 0x81;
                answer[3] = self.code;
                answer[8..12].copy_from_slice(&epoch);
                answer[12..24].fill(0);
                let [internal, wanted] =
                    [40, 42].map(|i| u16::from_be_bytes([message[i], message[i + 1]]));
                if message[4..8] == [0; 4] {
                    self.mappings.retain(|_, mapped| *mapped != internal);
                } else if self.code == 0 {
                    let port = self.port_for(internal, wanted);
                    answer[42..44].copy_from_slice(&port.to_be_bytes());
                    answer[44..60].copy_from_slice(&self.outside.to_ipv6_mapped().octets());
                }
                Some(answer)
            }
            (0, 0) if self.natpmp => {
                Some([&[0, 128, 0, 0][..], &epoch, &self.outside.octets()].concat())
            }
            (0, 1) if self.natpmp => {
                let [internal, wanted] =
                    [4, 6].map(|i| u16::from_be_bytes([message[i], message[i + 1]]));
                let mut port = 0;
                if message[8..12] == [0; 4] {
                    self.mappings.retain(|_, mapped| *mapped != internal);
                } else if self.code == 0 {
                    port = self.port_for(internal, wanted);
                }
                let ports = [internal.to_be_bytes(), port.to_be_bytes()].concat();
                let head = [0, 129, 0, self.code];
                Some([&head[..], &epoch, &ports, &message[8..12]].concat())
            }
            _ => None,
        }
    }

    fn act(&mut self, request: &[u8]) -> Response {
        let text = String::from_utf8(request.to_vec()).unwrap();
        let value = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>")).unwrap();
            rest.split('<').next().unwrap().to_owned()
        };
        let external = || value("NewExternalPort").parse::<u16>().unwrap();
        let fault = |code: u16| Response {
            status: 500,
            body: format!("<s:Fault><errorCode>{code}</errorCode></s:Fault>").into(),
        };
        let ok = |body: String| Response {
            status: 200,
            body: body.into(),
        };
        if text.starts_with("GET /d.xml") {
            return ok(
                "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1\
                       </serviceType><controlURL>/c</controlURL></service>"
                    .into(),
            );
        }
        assert!(text.starts_with("POST /c "), "{text}");
        if text.contains("#GetExternalIPAddress") {
            let outside = self.outside;
            return ok(format!(
                "<NewExternalIPAddress>{outside}</NewExternalIPAddress>"
            ));
        }
        if text.contains("#AddPortMapping") {
            assert_eq!(value("NewInternalClient"), "192.168.1.2");
            if self.taken.contains(&external()) {
                return fault(718);
            }
            if self.code != 0 {
                return fault(606);
            }
            let internal = value("NewInternalPort").parse().unwrap();
            self.mappings.insert(external(), internal);
            return ok(String::new());
        }
        let known = self.mappings.contains_key(&external());
        if text.contains("#DeletePortMapping") {
            self.mappings.remove(&external());
        }
        match known {
            true => ok("<NewInternalClient>192.168.1.2</NewInternalClient>".into()),
            false => fault(714),
        }
    }
}

fn config(purpose: Purpose) -> Config {
    Config {
        local: at(LOCAL),
        gateway: at("192.168.1.1:1").ip(),
        purpose,
        nonce: [7; NONCE_LEN],
        seed: [9; 32],
    }
}

fn search_answer(location: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
         LOCATION: {location}\r\n\r\n"
    )
    .into_bytes()
}

fn outside(port: u16) -> SocketAddr {
    SocketAddr::new(OUTSIDE.into(), port)
}

#[test]
fn each_protocol_maps_renews_and_is_released() {
    for protocol in Protocol::ALL {
        let mut world = World::new(|router| {
            router.pcp = protocol == Protocol::Pcp;
            router.natpmp = protocol == Protocol::NatPmp;
            router.upnp = protocol == Protocol::Upnp;
        });
        world.run_s(2);
        assert_eq!(world.mapped(), Some((protocol, outside(51821))));
        assert_eq!(world.client.report().protocols, [protocol]);
        assert_eq!(world.client.report().external, Some(OUTSIDE.into()));
        // Renewed at half of its life, and never let go.
        let sent = world.sent.len();
        world.run_s(3 * 7200);
        assert_eq!(world.mapped(), Some((protocol, outside(51821))));
        let asked = world.sent.len() - sent;
        let most = match protocol {
            Protocol::Pcp | Protocol::NatPmp => 3 * 7200 / 60 + 10,
            Protocol::Upnp => 2 * 3 * 7200 / 300 + 20,
        };
        assert!(asked <= most, "{protocol}: {asked} messages in six hours");
        world.client.stop();
        world.settle();
        assert!(world.router.mappings.is_empty(), "{protocol} leaves it");
        assert_eq!(world.client.poll_timeout(), None);
    }
}

#[test]
fn the_preferred_protocol_is_taken_although_others_answer() {
    let all = |router: &mut Router| (router.pcp, router.natpmp, router.upnp) = (true, true, true);
    let world = World::new(all);
    assert_eq!(world.mapped(), Some((Protocol::Pcp, outside(51821))));
    let mut world = World::new(|router| (router.natpmp, router.upnp) = (true, true));
    assert_eq!(world.mapped(), Some((Protocol::NatPmp, outside(51821))));
    world.run_s(1);
    // A router that answers late is waited for no longer than a preferred one may take.
    let mut world = World::new(|router| router.upnp = true);
    assert_eq!(world.mapped(), None);
    world.run(PREFER);
    assert_eq!(world.mapped(), Some((Protocol::Upnp, outside(51821))));
}

#[test]
fn a_router_that_restarts_without_a_word_is_found_out() {
    for protocol in Protocol::ALL {
        let mut world = World::new(|router| {
            router.pcp = protocol == Protocol::Pcp;
            router.natpmp = protocol == Protocol::NatPmp;
            router.upnp = protocol == Protocol::Upnp;
        });
        world.run_s(2);
        world.reboot();
        let within = if protocol == Protocol::Upnp { 310 } else { 61 };
        world.run_s(within);
        assert_eq!(world.router.mappings.len(), 1, "{protocol}");
        assert_eq!(world.mapped(), Some((protocol, outside(51821))));
    }
}

#[test]
fn an_announced_restart_is_found_out_within_seconds() {
    for natpmp in [false, true] {
        let mut world = World::new(|router| (router.natpmp, router.pcp) = (natpmp, !natpmp));
        world.run_s(2);
        world.reboot();
        let announcement = match natpmp {
            true => vec![0, 128, 0, 0, 0, 0, 0, 0, 203, 0, 114, 4],
            false => [&[2, 128][..], &[0; 22]].concat(),
        };
        let now = world.now;
        world
            .client
            .handle_announcement(at("192.168.1.77:1").ip(), &announcement, now);
        world.run_s(5);
        assert!(world.router.mappings.is_empty(), "a stranger was believed");
        let now = world.now;
        world
            .client
            .handle_announcement(at("192.168.1.1:1").ip(), &announcement, now);
        world.run_s(5);
        assert_eq!(world.router.mappings.len(), 1);
    }
}

#[test]
fn another_address_outside_is_noticed() {
    for protocol in [Protocol::NatPmp, Protocol::Upnp] {
        let mut world = World::new(|router| {
            router.natpmp = protocol == Protocol::NatPmp;
            router.upnp = protocol == Protocol::Upnp;
        });
        world.run_s(2);
        world.router.outside = Ipv4Addr::new(203, 0, 114, 99);
        world.run_s(310);
        assert_eq!(world.mapped(), Some((protocol, at("203.0.114.99:51821"))));
    }
}

#[test]
fn a_taken_port_becomes_another() {
    let mut world = World::new(|router| (router.pcp, router.taken) = (true, vec![51821]));
    assert_eq!(world.mapped(), Some((Protocol::Pcp, outside(51822))));
    world.run_s(7200);
    assert_eq!(world.mapped(), Some((Protocol::Pcp, outside(51822))));
    let mut world = World::new(|router| (router.upnp, router.taken) = (true, vec![51821]));
    world.run_s(1);
    let Some((Protocol::Upnp, external)) = world.mapped() else {
        panic!("{:?}", world.client.report());
    };
    assert!(external.port() >= 20_000 && external.port() != 51821);
    world.run_s(7200);
    assert_eq!(world.mapped(), Some((Protocol::Upnp, external)));
    let mut world =
        World::new(|router| (router.upnp, router.taken) = (true, (1..=65535).collect()));
    world.run_s(20);
    let refused = Outcome::Refused {
        protocol: Protocol::Upnp,
        refusal: Refusal::Conflict,
    };
    assert_eq!(world.client.report().outcome, refused);
}

#[test]
fn a_refusal_is_told_and_the_router_left_alone() {
    let mut world = World::new(|router| {
        (router.pcp, router.natpmp, router.upnp, router.code) = (true, true, true, 2);
    });
    world.run_s(30);
    let refused = Outcome::Refused {
        protocol: Protocol::Pcp,
        refusal: Refusal::NotAuthorized,
    };
    assert_eq!(world.client.report().outcome, refused);
    let sent = world.sent.len();
    world.run_s(900);
    assert_eq!(world.sent.len(), sent, "it was asked again within minutes");
    world.router.code = 0;
    // A refusal by PCP says how long it holds: here as long as the mapping would have.
    world.run_s(7200);
    assert!(world.mapped().is_some());
}

#[test]
fn where_nothing_answers_little_is_sent() {
    let mut world = World::new(|_| {});
    world.run_s(10);
    assert_eq!(world.client.report().outcome, Outcome::Nothing);
    // PCP and searches three times, NAT-PMP six times.
    assert_eq!(world.sent.len(), 3 + 3 + 6);
    world.run_s(1000);
    assert_eq!(world.sent.len(), 12);
    world.router.natpmp = true;
    world.run_s(30);
    assert_eq!(world.mapped(), Some((Protocol::NatPmp, outside(51821))));
}

#[test]
fn nothing_is_mapped_behind_a_second_nat() {
    let carrier = Ipv4Addr::new(100, 64, 3, 2);
    for protocol in Protocol::ALL {
        let mut world = World::new(|router| {
            router.pcp = protocol == Protocol::Pcp;
            router.natpmp = protocol == Protocol::NatPmp;
            router.upnp = protocol == Protocol::Upnp;
            router.outside = carrier;
        });
        world.run_s(20);
        let report = world.client.report();
        assert_eq!(report.outcome, Outcome::TwoLayers, "{protocol}");
        assert_eq!(report.external, Some(carrier.into()));
        assert!(world.router.mappings.is_empty(), "{protocol}");
    }
}

#[test]
fn a_router_that_falls_silent_lets_the_mapping_lapse() {
    let mut world = World::new(|router| router.pcp = true);
    world.router.pcp = false;
    world.run_s(7100);
    assert!(world.mapped().is_some(), "it lives for two hours");
    world.run_s(200);
    assert_eq!(world.mapped(), None);
}

#[test]
fn looking_changes_nothing() {
    let now = Instant::now() + Duration::from_secs(100_000);
    let mut world =
        World::new(|router| (router.pcp, router.natpmp, router.upnp) = (true, true, true));
    world.client = Client::new(config(Purpose::Look), now);
    world.router.mappings.clear();
    world.settle();
    let report = world.client.report();
    assert_eq!(report.outcome, Outcome::Offered);
    assert_eq!(report.protocols, Protocol::ALL);
    assert_eq!(report.external, Some(OUTSIDE.into()));
    assert!(world.router.mappings.is_empty());
}

#[test]
fn answers_that_are_not_to_us_mean_nothing() {
    let mut world = World::new(|_| {});
    let now = world.now;
    // Another nonce, another port: not our mapping.
    let mut forged = pcp::map(&pcp::MapRequest {
        local: at(LOCAL),
        nonce: &[8; NONCE_LEN],
        suggested: outside(51821),
        lifetime: 7200,
    });
    forged[1] |= 0x80;
    world.client.handle_server(&forged, now);
    let mapped = [
        &[0, 129, 0, 0, 0, 0, 0, 1][..],
        &[0xca, 0x6d, 0xca, 0x6d, 0, 0, 28, 32],
    ]
    .concat();
    world.client.handle_server(&mapped, now);
    world.client.handle_search_reply(
        at("192.168.1.77:1900"),
        &search_answer("http://192.168.1.1:5000/d.xml"),
    );
    world.client.handle_response(0, None, now);
    assert_eq!(world.client.poll_transmit(), None);
    assert_eq!(world.client.report().outcome, Outcome::Looking);
    assert!(!world.client.handle_server(&[], now));
    // Our own nonce while another protocol is held, and after the end.
    let mut world = World::new(|router| router.natpmp = true);
    let before = world.client.report();
    forged[24..36].fill(7);
    let now = world.now;
    world.client.handle_server(&forged, now);
    assert_eq!(world.client.report(), before);
}

/// It once woke up without a pause while a protocol had answered and another had not.
#[test]
fn looking_ends_although_one_is_silent() {
    let mut world = World::new(|router| router.natpmp = true);
    world.client = Client::new(config(Purpose::Look), world.now);
    world.settle();
    world.run(LOOK);
    assert_eq!(world.client.report().outcome, Outcome::Offered);
    assert_eq!(world.client.report().protocols, [Protocol::NatPmp]);
    assert!(world.sent.len() < 20, "{} messages", world.sent.len());
}
