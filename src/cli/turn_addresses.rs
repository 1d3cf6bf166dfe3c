//! Whether this machine has the addresses that `wice turn` is to serve and relay at.

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use wice_turn::io::Settings;

use super::{Usage, block_on};
use crate::wireguard::netlink::{Interface, Netlink};

/// What a new IPv6 address may take until it can be bound: duplicate address detection waits for a random time of up to 1 s and
/// then for 1 s (RFC 4862 §5.4.2, RFC 4861 §10), on a machine that starts up after its router has answered.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile.
const POLL: Duration = Duration::from_millis(20);

/// Waits for addresses that are there and cannot be bound yet, as those of a machine that has just started. A relay address that
/// is not there is refused, for relayed addresses would be given out at which nobody answers; listeners say so by themselves.
pub(super) fn check_addresses(settings: &Settings) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for ip in &settings.relay_ips {
        if !is_bindable_by(*ip, deadline)? {
            return Err(not_there(*ip)?.into());
        }
    }
    for listen in &settings.listen {
        is_bindable_by(listen.address.ip(), deadline)?;
    }
    Ok(())
}

/// Whether an address can be bound, at the latest at `deadline` if it is there; whatever else is wrong the service says when it
/// starts.
fn is_bindable_by(ip: IpAddr, deadline: Instant) -> anyhow::Result<bool> {
    loop {
        match UdpSocket::bind((ip, 0)) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {}
            Ok(_) | Err(_) => return Ok(true),
        }
        let has = |interface: &Interface| interface.addresses.iter().any(|own| own.ip == ip);
        if Instant::now() >= deadline || !interfaces()?.iter().any(has) {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
}

fn not_there(ip: IpAddr) -> anyhow::Result<Usage> {
    let interfaces = interfaces()?;
    let all = interfaces.iter().flat_map(|interface| {
        let on = &interface.name;
        let own = interface.addresses.iter();
        own.map(move |address| (address.ip, format!("{} ({on})", address.ip)))
    });
    let (own, named): (Vec<IpAddr>, Vec<String>) = all.unzip();
    Ok(Usage(if own.contains(&ip) {
        format!(
            "--relay-ip {ip}: this machine has the address and cannot use it\n  another machine on the link may have it as well: ip -6 address shows it as tentative or dadfailed"
        )
    } else {
        format!(
            "--relay-ip {ip}: this machine does not have this address\n  it has {}; behind a 1:1 NAT give the one that it has, and --external-ip {ip}",
            named.join(", ")
        )
    }))
}

fn interfaces() -> anyhow::Result<Vec<Interface>> {
    block_on(async { Ok(Netlink::connect()?.interfaces().await?) })
}
