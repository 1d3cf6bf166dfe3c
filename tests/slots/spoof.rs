//! Packets whose source is a lie.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::namespace::Namespace;

const ETHERTYPE_IPV4: u16 = 0x0800;
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// What a slot would forward: a transport message.
pub(crate) fn data() -> Vec<u8> {
    [&[4, 0, 0, 0][..], &[7; 60]].concat()
}

/// The hardware address of an interface there.
pub(crate) fn mac(namespace: &Namespace, interface: &'static str) -> [u8; 6] {
    let asked = namespace.spawn(move || {
        let output = std::process::Command::new("ip")
            .args(["-o", "link", "show", interface])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    let line = asked.join().unwrap();
    let text = line.split("link/ether ").nth(1).unwrap();
    let mut bytes = text
        .split(' ')
        .next()
        .unwrap()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap());
    std::array::from_fn(|_| bytes.next().unwrap())
}

/// Puts a UDP datagram on the wire, past routing and its scruples.
pub(crate) fn send(interface: &str, mac: [u8; 6], from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    let payload = data();
    let udp_len = UDP_HEADER + payload.len();
    let total = (IPV4_HEADER + udp_len) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&total.to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend_from_slice(&from.0.octets());
    ip.extend_from_slice(&to.0.octets());
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = mac.to_vec();
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    frame.extend_from_slice(&ip);
    for field in [from.1, to.1, udp_len as u16, 0] {
        frame.extend_from_slice(&field.to_be_bytes());
    }
    frame.extend_from_slice(&payload);

    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    assert!(fd >= 0, "needs CAP_NET_RAW");
    // SAFETY: just opened, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: a string that ends in zero and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: plain data for which all zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: frame and address outlive the call, with their true lengths.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(&address).cast(),
            std::mem::size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    assert_eq!(
        sent,
        frame.len() as isize,
        "{}",
        std::io::Error::last_os_error()
    );
}
