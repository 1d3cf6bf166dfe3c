//! The relay and the STUN servers: `wice turn`, or coturn as people run it.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

use super::config::TurnServer;
use super::error::{Doing as _, LabError};
use super::netns::NetNs;
use super::plan;
use super::probe;
use super::process::Process;
use super::tools;
use super::world::Lab;

/// STUN and TURN over UDP and TCP (RFC 8656 §19).
pub const STUN_PORT: u16 = 3478;
/// The other port of RFC 5780: coturn's is the one after its port.
pub(super) const STUN_OTHER_PORT: u16 = STUN_PORT + 1;
/// TURN over TLS (RFC 8656 §19).
pub const TURNS_PORT: u16 = 5349;
/// TURN over TLS where only the web's ports are open.
pub const WEB_TLS_PORT: u16 = 443;
/// Secret of the relay's time-limited credentials.
pub const TURN_SECRET: &str = "lab-turn-secret";
/// The relay's realm.
pub const TURN_REALM: &str = "lab.example";

/// Relay ports of `wice turn`: some twenty for each node of the largest lab, and with both families fewer sockets than the
/// 4,096 open files that users may have on old systems.
const RELAY_PORTS: &str = "49152-50175";

/// What a service has until it answers; coturn takes some 50 ms on an idle machine.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is asked.
const READY_POLL: Duration = Duration::from_millis(5);
/// How long one question may take: the service is in the same namespace.
const READY_ANSWER: Duration = Duration::from_millis(20);

/// What tells that a service is ready, asked from within its own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// It answers a STUN binding request.
    Stun(SocketAddr),
    /// It accepts TCP.
    Tcp(SocketAddr),
}

/// A certificate authority made for the lab, and the relay's certificate under it.
#[derive(Clone, Debug)]
pub(super) struct Certificates {
    pub(super) authority: PathBuf,
    chain: PathBuf,
    key: PathBuf,
}

impl Certificates {
    /// Where they are in the lab's directory.
    pub(super) fn at(folder: &Path) -> Self {
        Self {
            authority: folder.join("ca.pem"),
            chain: folder.join("turn.pem"),
            key: folder.join("turn.key"),
        }
    }

    pub(super) fn create(folder: &Path) -> Result<(), LabError> {
        let doing = || "making the relay's certificate".to_string();
        let (authority_pem, chain_pem, key_pem) =
            generate().map_err(io::Error::other).doing(doing)?;
        let files = Self::at(folder);
        std::fs::write(&files.authority, authority_pem).doing(doing)?;
        std::fs::write(&files.chain, chain_pem).doing(doing)?;
        std::fs::write(&files.key, key_pem).doing(doing)
    }
}

/// A server's command, and what tells that it is ready.
pub(super) type Service = (Command, Vec<Ready>);

impl Lab {
    /// The relay: UDP and TCP on 3478, TLS on 5349 and 443, a second address for RFC 5780.
    pub(super) fn turn(&self, ns: &NetNs) -> Result<Service, LabError> {
        let addresses: [IpAddr; 4] = [
            plan::TURN.into(),
            plan::TURN_OTHER.into(),
            plan::TURN_V6.into(),
            plan::TURN_OTHER_V6.into(),
        ];
        let relayed: [IpAddr; 2] = [plan::TURN.into(), plan::TURN_V6.into()];
        let certificates = Certificates::at(self.directory());
        let command = match self.config.turn_server {
            TurnServer::Wice => {
                let mut command = self.wice_turn(ns, "turn", &addresses, &relayed)?;
                for address in relayed {
                    let mut listen = |scheme, port| {
                        command.args(["--listen", &listener(scheme, address, port)]);
                    };
                    listen("tcp", STUN_PORT);
                    listen("tls", TURNS_PORT);
                    listen("tls", WEB_TLS_PORT);
                }
                command.arg("--cert").arg(&certificates.chain);
                command.arg("--key").arg(&certificates.key);
                command
            }
            TurnServer::Coturn => {
                let mut command = self.coturn(ns, "turn", &addresses);
                for address in relayed {
                    command.arg(format!("--relay-ip={address}"));
                    let web = SocketAddr::new(address, WEB_TLS_PORT);
                    command.arg(format!("--aux-server={web}"));
                }
                command
                    .arg(format!("--tls-listening-port={TURNS_PORT}"))
                    .arg("--use-auth-secret")
                    .arg(format!("--static-auth-secret={TURN_SECRET}"))
                    .arg(format!("--cert={}", certificates.chain.display()))
                    .arg(format!("--pkey={}", certificates.key.display()));
                command
            }
        };
        let at = |port| Ready::Tcp(SocketAddr::new(plan::TURN.into(), port));
        let mut ready = stun_ready(&addresses);
        ready.extend([STUN_PORT, TURNS_PORT, WEB_TLS_PORT].map(at));
        Ok((command, ready))
    }

    /// The second STUN server.
    pub(super) fn stun_2(&self, ns: &NetNs) -> Result<Service, LabError> {
        let addresses: [IpAddr; 2] = [plan::STUN_2.into(), plan::STUN_2_V6.into()];
        let command = match self.config.turn_server {
            TurnServer::Wice => self.wice_turn(ns, "stun-2", &addresses, &addresses)?,
            TurnServer::Coturn => {
                let mut command = self.coturn(ns, "stun-2", &addresses);
                command.args(["--stun-only", "--no-tls", "--no-dtls"]);
                command
            }
        };
        Ok((command, stun_ready(&addresses)))
    }

    /// `wice turn` at UDP 3478 and 3479 of each address, as RFC 5780 wants of two.
    fn wice_turn(
        &self,
        ns: &NetNs,
        name: &str,
        addresses: &[IpAddr],
        relayed: &[IpAddr],
    ) -> Result<Command, LabError> {
        let secret = self.directory().join(format!("{name}.secret"));
        write_secret(&secret).doing(|| "writing the relay's secret".into())?;
        let mut command = ns.command(self.binary()?);
        command.args(["turn", "--threads", "1", "--realm", TURN_REALM]);
        command.args(["--ports", RELAY_PORTS]);
        command.arg("--secret-file").arg(secret);
        for address in addresses {
            for port in [STUN_PORT, STUN_OTHER_PORT] {
                command.args(["--listen", &listener("udp", *address, port)]);
            }
        }
        for address in relayed {
            command.args(["--relay-ip", &address.to_string()]);
        }
        for range in plan::PUBLIC_RANGES {
            command.args(["--allow-peer", range]);
        }
        Ok(command)
    }

    fn coturn(&self, ns: &NetNs, name: &str, addresses: &[IpAddr]) -> Command {
        let program = tools::find("turnserver").unwrap_or_else(|| "turnserver".into());
        let file = |ending| self.directory().join(format!("{name}.{ending}"));
        let mut command = ns.command(program);
        command
            .args([
                "-n",
                "--no-cli",
                "--log-file=stdout",
                "--simple-log",
                "--relay-threads=1",
            ])
            .arg(format!("--realm={TURN_REALM}"))
            .arg(format!("--listening-port={STUN_PORT}"))
            .arg(format!("--userdb={}", file("sqlite").display()))
            .arg(format!("--pidfile={}", file("pid").display()));
        for address in addresses {
            command.arg(format!("--listening-ip={address}"));
        }
        command
    }
}

fn listener(scheme: &str, address: IpAddr, port: u16) -> String {
    format!("{scheme}://{}", SocketAddr::new(address, port))
}

fn stun_ready(addresses: &[IpAddr]) -> Vec<Ready> {
    let stun = |ip: &IpAddr| Ready::Stun(SocketAddr::new(*ip, STUN_PORT));
    addresses.iter().map(stun).collect()
}

/// Others may not read it, or `wice turn` refuses it.
fn write_secret(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(TURN_SECRET.as_bytes())
}

/// Waits until a service answers everything that it should.
pub(super) fn wait_ready(
    ns: &NetNs,
    process: &mut Process,
    ready: &[Ready],
) -> Result<(), LabError> {
    let deadline = Instant::now() + READY_TIMEOUT;
    for &sign in ready {
        while !ns.run(|| answers(sign))? {
            if let Some(status) = process.status() {
                return Err(process.failed(format!("ended before it was ready ({status})")));
            }
            if tools::interrupted() {
                return Err(LabError::Interrupted);
            }
            if Instant::now() >= deadline {
                let what = format!("did not answer within {READY_TIMEOUT:?} ({sign:?})");
                return Err(process.failed(what));
            }
            std::thread::sleep(READY_POLL);
        }
    }
    Ok(())
}

fn answers(sign: Ready) -> bool {
    match sign {
        Ready::Tcp(address) => TcpStream::connect_timeout(&address, READY_ANSWER).is_ok(),
        Ready::Stun(address) => {
            let Ok(socket) = UdpSocket::bind(SocketAddr::new(address.ip(), 0)) else {
                return false;
            };
            matches!(probe::binding(&socket, address, READY_ANSWER), Ok(Some(_)))
        }
    }
}

/// Authority, chain and key in PEM.
fn generate() -> Result<(String, String, String), rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, "wice lab");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let names = [
        plan::TURN_NAME.to_string(),
        plan::TURN.to_string(),
        plan::TURN_OTHER.to_string(),
        plan::TURN_V6.to_string(),
    ];
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(names)?.signed_by(&key, &authority)?;
    let chain = format!("{}{}", leaf.pem(), authority.pem());
    Ok((authority.pem(), chain, key.serialize_pem()))
}
