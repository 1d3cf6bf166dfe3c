//! The port mapping client against a router that says anything.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use wice::core::portmap::{
    Client, Config, MAX_RESPONSE, NONCE_LEN, Outcome, Purpose, Transmit, parse_response,
};

use super::Fed;
use super::script::Script;
use super::world::world;

const NONCE: [u8; NONCE_LEN] = [7; NONCE_LEN];
/// Messages that one step may cause: three protocols once, and a farewell.
const MAX_SENT: usize = 8;
/// Timeouts that follow each other without time going by: a busy loop has more.
const MAX_TURNS: usize = 8;

/// A response of HTTP, in parts and whole.
pub(super) fn router_http(data: &[u8]) -> Fed {
    for length in [data.len() / 3, data.len() / 2] {
        let _ = parse_response(&data[..length], false);
    }
    let whole = parse_response(data, true);
    if let Ok(response) = &whole {
        let response = response.as_ref().expect("nothing more will come");
        assert!(response.body.len() <= MAX_RESPONSE && response.status >= 100);
    }
    Fed::one(whole.is_ok())
}

pub(super) fn router_http_seeds() -> Vec<Vec<u8>> {
    let responses = [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.0 500 x\r\n\r\n<errorCode>718</errorCode>",
    ];
    responses.map(|response| response.into()).to_vec()
}

/// Messages of all protocols, damaged and whole, between stretches of time.
pub(super) fn router(data: &[u8]) -> Fed {
    let mut script = Script::new(data);
    let start = script.byte();
    let purpose = match start & 6 == 6 {
        true => Purpose::Look,
        false => Purpose::Map,
    };
    let mut rig = Rig::new(start & 1 == 1, purpose);
    while let Some(step) = script.step() {
        rig.step(step % 12, &mut script);
        rig.settle();
    }
    rig.client.stop();
    rig.settle();
    assert_eq!(rig.client.poll_timeout(), None);
    rig.fed
}

pub(super) fn router_seeds() -> Vec<Vec<u8>> {
    vec![
        // PCP found, mapped, renewed, lost.
        vec![0, 0, 0, 1, 0, 9, 200, 6, 1, 0, 2, 0, 9, 255, 6],
        // NAT-PMP found and mapped, then nothing for hours.
        vec![0, 2, 0, 9, 100, 4, 3, 0, 9, 255, 6, 3, 0, 9, 255, 6],
        // UPnP: searched, described, asked, added, checked.
        vec![
            0, 9, 250, 4, 4, 0, 5, 0, 6, 0, 9, 100, 4, 6, 0, 7, 0, 9, 255, 6, 9, 255, 6,
        ],
        // Only looked at.
        vec![6, 2, 0, 0, 0, 0, 9, 100, 4, 9, 255, 5],
        (0..=255).collect(),
    ]
}

struct Rig {
    client: Client,
    gateway: IpAddr,
    now: Instant,
    exchange: u32,
    fed: Fed,
}

impl Rig {
    fn new(v6: bool, purpose: Purpose) -> Self {
        let now = world().start;
        let (local, gateway) = match v6 {
            true => ("[2001:db8::2]:51821", "fe80::1"),
            false => ("192.168.1.2:51821", "192.168.1.1"),
        };
        let gateway = gateway.parse().unwrap();
        let config = Config {
            local: local.parse().unwrap(),
            gateway,
            purpose,
            nonce: NONCE,
            seed: [3; 32],
        };
        Self {
            client: Client::new(config, now),
            gateway,
            now,
            exchange: 0,
            fed: Fed::default(),
        }
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        let now = self.now;
        let mut message = match step {
            0 => pcp(0, script),
            1 => pcp(1, script),
            2 => vec![0, 128, 0, 0, 0, 0, 0, 60, 203, 0, 114, 4],
            3 => natpmp_map(script),
            4 => b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                   LOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n"
                .to_vec(),
            5 => http(
                "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1\
                 </serviceType><controlURL>/c</controlURL></service>",
            ),
            6 => http("<NewExternalIPAddress>203.0.114.4</NewExternalIPAddress>"),
            7 => http("<NewInternalClient>192.168.1.2</NewInternalClient>"),
            8 => http("<errorCode>718</errorCode>"),
            9 => {
                self.now += script.time();
                return self.fed.count(false);
            }
            10 => {
                self.client.handle_unreachable(now);
                return self.fed.count(false);
            }
            _ => script.bytes(255).to_vec(),
        };
        let choice = script.byte();
        if choice & 1 == 1 {
            script.damage(&mut message);
        }
        if step == 4 || choice & 0x70 == 0x70 {
            let from = SocketAddr::new(self.gateway, 1900);
            self.client.handle_search_reply(from, &message);
        } else if (5..9).contains(&step) {
            let response = parse_response(&message, true).ok().flatten();
            self.client
                .handle_response(self.exchange, response.as_ref(), now);
        } else if choice & 0x30 == 0x30 {
            self.client.handle_announcement(self.gateway, &message, now);
        } else {
            let known = self.client.handle_server(&message, now);
            return self.fed.count(known);
        }
        self.fed.count(true);
    }

    /// Fetches what is to be sent and does what is due: little, towards the gateway alone.
    fn settle(&mut self) {
        for turn in 0.. {
            let mut sent = 0;
            while let Some(transmit) = self.client.poll_transmit() {
                sent += 1;
                if let Transmit::Exchange {
                    id,
                    address,
                    request,
                } = transmit
                {
                    assert_eq!(address.ip(), self.gateway, "sent elsewhere");
                    let lines = request.split(|byte| *byte == b'\n');
                    let head = lines.take_while(|line| line.len() > 1).count();
                    assert!(head == 3 || head == 6, "a line was smuggled in");
                    self.exchange = id;
                }
            }
            assert!(sent <= MAX_SENT);
            assert!(turn < MAX_TURNS, "busy");
            match self.client.poll_timeout() {
                Some(due) if due <= self.now => self.client.handle_timeout(self.now),
                Some(_) | None => break,
            }
        }
        if let Outcome::Mapped {
            external, until, ..
        } = self.client.report().outcome
        {
            assert!(external.port() != 0 && !external.ip().is_loopback());
            assert!(until > self.now && until <= self.now + Duration::from_secs(86_400));
        }
    }
}

fn pcp(opcode: u8, script: &mut Script<'_>) -> Vec<u8> {
    let mut message = vec![
        2,
        0x80 | opcode,
        0,
        0,
        0,
        0,
        28,
        32,
        0,
        0,
        script.byte(),
        60,
    ];
    message.extend_from_slice(&[0; 12]);
    if opcode == 1 {
        message.extend_from_slice(&NONCE);
        message.extend_from_slice(&[17, 0, 0, 0, 0xca, 0x6d, 0xca, 0x6d]);
        message.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 114, 4]);
    }
    message
}

fn natpmp_map(script: &mut Script<'_>) -> Vec<u8> {
    let epoch = script.byte();
    vec![
        0, 129, 0, 0, 0, 0, 0, epoch, 0xca, 0x6d, 0xca, 0x6d, 0, 0, 28, 32,
    ]
}

fn http(body: &str) -> Vec<u8> {
    let status = if body.contains("error") { 500 } else { 200 };
    format!("HTTP/1.1 {status} x\r\n\r\n{body}").into_bytes()
}
