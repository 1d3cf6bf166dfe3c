//! The relay and the STUN servers: coturn, as people run it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

use super::error::{Doing as _, LabError};
use super::netns::NetNs;
use super::plan;
use super::probe;
use super::process::Process;
use super::tools;

/// STUN and TURN over UDP and TCP (RFC 8656 §19).
pub const STUN_PORT: u16 = 3478;
/// TURN over TLS (RFC 8656 §19).
pub const TURNS_PORT: u16 = 5349;
/// TURN over TLS where only the web's ports are open.
pub const WEB_TLS_PORT: u16 = 443;
/// Secret of the relay's time-limited credentials (coturn's `use-auth-secret`).
pub const TURN_SECRET: &str = "lab-turn-secret";
/// The relay's realm.
pub const TURN_REALM: &str = "lab.example";

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

    pub(super) fn create(folder: &Path) -> Result<Self, LabError> {
        let doing = || "making the relay's certificate".to_string();
        let (authority_pem, chain_pem, key_pem) =
            generate().map_err(io::Error::other).doing(doing)?;
        let files = Self::at(folder);
        std::fs::write(&files.authority, authority_pem).doing(doing)?;
        std::fs::write(&files.chain, chain_pem).doing(doing)?;
        std::fs::write(&files.key, key_pem).doing(doing)?;
        Ok(files)
    }
}

/// The relay: UDP and TCP on 3478, TLS on 5349 and 443, a second address for RFC 5780.
pub(super) fn turn(
    ns: &NetNs,
    folder: &Path,
    certificates: &Certificates,
) -> (std::process::Command, Vec<Ready>) {
    let mut command = coturn(ns, folder, "turn");
    let addresses: [IpAddr; 4] = [
        plan::TURN.into(),
        plan::TURN_OTHER.into(),
        plan::TURN_V6.into(),
        plan::TURN_OTHER_V6.into(),
    ];
    for address in addresses {
        command.arg(format!("--listening-ip={address}"));
    }
    command
        .arg(format!("--relay-ip={}", plan::TURN))
        .arg(format!("--relay-ip={}", plan::TURN_V6))
        .arg(format!("--tls-listening-port={TURNS_PORT}"))
        .arg(format!("--aux-server={}:{WEB_TLS_PORT}", plan::TURN))
        .arg(format!("--aux-server=[{}]:{WEB_TLS_PORT}", plan::TURN_V6))
        .arg("--use-auth-secret")
        .arg(format!("--static-auth-secret={TURN_SECRET}"))
        .arg(format!("--cert={}", certificates.chain.display()))
        .arg(format!("--pkey={}", certificates.key.display()));
    let at = |port| SocketAddr::new(plan::TURN.into(), port);
    let stun = |ip: IpAddr| Ready::Stun(SocketAddr::new(ip, STUN_PORT));
    let mut ready: Vec<Ready> = addresses.into_iter().map(stun).collect();
    ready.extend([STUN_PORT, TURNS_PORT, WEB_TLS_PORT].map(|port| Ready::Tcp(at(port))));
    (command, ready)
}

/// The second STUN server.
pub(super) fn stun_2(ns: &NetNs, folder: &Path) -> (std::process::Command, Vec<Ready>) {
    let mut command = coturn(ns, folder, "stun-2");
    let addresses: [IpAddr; 2] = [plan::STUN_2.into(), plan::STUN_2_V6.into()];
    for address in addresses {
        command.arg(format!("--listening-ip={address}"));
    }
    command.args(["--stun-only", "--no-tls", "--no-dtls"]);
    let ready = addresses.map(|ip| Ready::Stun(SocketAddr::new(ip, STUN_PORT)));
    (command, ready.to_vec())
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

fn coturn(ns: &NetNs, folder: &Path, name: &str) -> std::process::Command {
    let program = tools::find("turnserver").unwrap_or_else(|| "turnserver".into());
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
        .arg(format!(
            "--userdb={}",
            folder.join(format!("{name}.sqlite")).display()
        ))
        .arg(format!(
            "--pidfile={}",
            folder.join(format!("{name}.pid")).display()
        ));
    command
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
