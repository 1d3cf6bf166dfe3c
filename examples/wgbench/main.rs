//! In-process WireGuard between static endpoints, to be measured against others in namespaces:
//! `wgbench INTERFACE LISTEN ENDPOINT|- PRIVATE PEER_PUBLIC ADDRESS/LEN[,ADDRESS/LEN] ALLOWED[,ALLOWED] [no-offload]`,
//! keys in base64 as `wg` prints them. Runs until its standard input ends, then prints what it
//! counted.

mod node;

use std::io::Read as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [
        interface,
        listen,
        endpoint,
        private_key,
        peer_key,
        addresses,
        allowed,
        rest @ ..,
    ] = args.as_slice()
    else {
        return Err("usage: wgbench INTERFACE LISTEN ENDPOINT|- PRIVATE PEER_PUBLIC ADDRESSES ALLOWED [no-offload]".into());
    };
    let config = node::Config {
        interface: interface.clone(),
        offload: rest.is_empty(),
        mtu: 1420,
        private_key: key(private_key)?,
        peer_key: key(peer_key)?,
        allowed_ips: allowed
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()?,
        addresses: addresses
            .split(',')
            .map(address)
            .collect::<Result<_, _>>()?,
        listen: listen.parse()?,
        endpoint: if endpoint == "-" {
            None
        } else {
            Some(endpoint.parse()?)
        },
        rekey_every: None,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        seen.store(true, Ordering::Relaxed);
    });
    println!("{:#?}", node::run(config, &stop)?);
    Ok(())
}

fn key(text: &str) -> Result<[u8; 32], Error> {
    STANDARD
        .decode(text)?
        .try_into()
        .map_err(|_| "a key has 32 bytes".into())
}

fn address(text: &str) -> Result<(IpAddr, u8), Error> {
    let (ip, len) = text
        .split_once('/')
        .ok_or("an address needs its prefix length")?;
    Ok((ip.parse()?, len.parse()?))
}
