use super::*;

const KEY: PublicKey = PublicKey([7; 32]);

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Written out by hand after linux/wireguard.h and linux/netlink.h.
#[test]
fn a_new_endpoint_is_the_only_thing_that_is_set() {
    const NESTED: u16 = 0x8000;
    let endpoint = "127.3.2.1:51822".parse().unwrap();
    let bytes = encode(set_endpoint("wg0", KEY, endpoint, 0x1f), 0x5, 9);
    let sockaddr = [
        &2u16.to_ne_bytes()[..],
        &51822u16.to_be_bytes(),
        &[127, 3, 2, 1],
        &[0; 8],
    ]
    .concat();
    let peer = [
        attribute(1, &KEY.0),
        attribute(3, &4u32.to_ne_bytes()), // WGPEER_F_UPDATE_ONLY
        attribute(4, &sockaddr),
    ]
    .concat();
    let payload = [
        vec![1, 1, 0, 0], // WG_CMD_SET_DEVICE, version 1
        attribute(2, b"wg0\0"),
        attribute(8 | NESTED, &attribute(NESTED, &peer)),
    ]
    .concat();
    let mut expected = Vec::new();
    expected.extend_from_slice(&((16 + payload.len()) as u32).to_ne_bytes());
    expected.extend_from_slice(&0x1fu16.to_ne_bytes());
    expected.extend_from_slice(&0x5u16.to_ne_bytes());
    expected.extend_from_slice(&9u32.to_ne_bytes());
    expected.extend_from_slice(&0u32.to_ne_bytes());
    expected.extend_from_slice(&payload);
    assert_eq!(bytes, expected);
}

#[test]
fn an_ipv6_endpoint_is_a_sockaddr_in6() {
    let endpoint = "[2001:db8::7]:51820".parse().unwrap();
    let bytes = encode(set_endpoint("wg0", KEY, endpoint, 1), 5, 1);
    let sockaddr = [
        &10u16.to_ne_bytes()[..],
        &51820u16.to_be_bytes(),
        &[0; 4],
        &"2001:db8::7"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets(),
        &[0; 4],
    ]
    .concat();
    let wanted = attribute(4, &sockaddr);
    assert!(bytes.windows(wanted.len()).any(|window| window == wanted));
}

/// Written out by hand after linux/wireguard.h: what only an interface's owner sends.
#[test]
fn an_own_peer_is_set_whole() {
    const NESTED: u16 = 0x8000;
    let described = owner::described(&OwnPeer {
        key: KEY,
        endpoint: Some("127.3.2.1:51822".parse().unwrap()),
        allowed_ips: &[
            "100.91.0.7/32".parse().unwrap(),
            "fd7a:91c:20::7/128".parse().unwrap(),
        ],
        keepalive: Some(25),
    });
    let peers = vec![WireguardAttribute::Peers(vec![described])];
    let bytes = encode(owner::set_device("wice0", peers, 0x1f), 0x5, 9);
    let allowed = |family: u16, address: &[u8], cidr: u8| {
        let parts = [
            attribute(1, &family.to_ne_bytes()),
            attribute(2, address),
            attribute(3, &[cidr]),
        ];
        attribute(NESTED, &parts.concat())
    };
    let v6 = "fd7a:91c:20::7".parse::<std::net::Ipv6Addr>().unwrap();
    let ips = [
        allowed(2, &[100, 91, 0, 7], 32),
        allowed(10, &v6.octets(), 128),
    ];
    let sockaddr = [
        &2u16.to_ne_bytes()[..],
        &51822u16.to_be_bytes(),
        &[127, 3, 2, 1],
        &[0; 8],
    ];
    let peer = [
        attribute(1, &KEY.0),
        attribute(3, &2u32.to_ne_bytes()), // WGPEER_F_REPLACE_ALLOWEDIPS
        attribute(9 | NESTED, &ips.concat()),
        attribute(4, &sockaddr.concat()),
        attribute(5, &25u16.to_ne_bytes()),
    ];
    let expected = [
        vec![1, 1, 0, 0], // WG_CMD_SET_DEVICE, version 1
        attribute(2, b"wice0\0"),
        attribute(8 | NESTED, &attribute(NESTED, &peer.concat())),
    ];
    assert_eq!(bytes[16..], expected.concat()); // after the netlink header
}

fn peer(key: u8, more: Vec<WireguardPeerAttribute>) -> WireguardPeer {
    let mut attributes = vec![WireguardPeerAttribute::PublicKey([key; 32])];
    attributes.extend(more);
    WireguardPeer(attributes)
}

fn allowed(ip: &str, cidr: u8) -> netlink_packet_wireguard::WireguardAllowedIp {
    netlink_packet_wireguard::WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::IpAddr(ip.parse().unwrap()),
        WireguardAllowedIpAttr::Cidr(cidr),
    ])
}

#[test]
fn a_dump_in_pieces_is_one_device() {
    let endpoint = "192.0.2.1:51820".parse().unwrap();
    let time = netlink_packet_wireguard::WireguardTimeSpec {
        seconds: 1_700_000_000,
        nano_seconds: 5,
    };
    let first = WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes: vec![
            WireguardAttribute::PrivateKey([8; 32]),
            WireguardAttribute::PublicKey([9; 32]),
            WireguardAttribute::ListenPort(51820),
            WireguardAttribute::Fwmark(7),
            WireguardAttribute::Peers(vec![peer(
                1,
                vec![
                    WireguardPeerAttribute::Endpoint(endpoint),
                    WireguardPeerAttribute::LastHandshake(time),
                    WireguardPeerAttribute::RxBytes(10),
                    WireguardPeerAttribute::TxBytes(20),
                    WireguardPeerAttribute::PersistentKeepalive(25),
                    WireguardPeerAttribute::AllowedIps(vec![allowed("10.0.0.1", 32)]),
                ],
            )]),
        ],
    };
    // The kernel goes on with a peer that did not fit by its key and further allowed IPs.
    let second = WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes: vec![WireguardAttribute::Peers(vec![
            peer(
                1,
                vec![WireguardPeerAttribute::AllowedIps(vec![allowed(
                    "fd00::", 64,
                )])],
            ),
            peer(2, Vec::new()),
        ])],
    };
    let device = merge([first, second].into_iter());
    assert_eq!(device.listen_port, 51820);
    assert_eq!(device.fwmark, 7);
    assert_eq!(device.public_key, Some(PublicKey([9; 32])));
    assert!(device.private_key.is_some());
    let expected = DevicePeer {
        endpoint: Some(endpoint),
        last_handshake: Some(Duration::new(1_700_000_000, 5)),
        rx_bytes: 10,
        tx_bytes: 20,
        allowed_ips: vec!["10.0.0.1/32".parse().unwrap(), "fd00::/64".parse().unwrap()],
        keepalive: 25,
        ..DevicePeer::new(PublicKey([1; 32]))
    };
    assert_eq!(
        device.peers,
        [expected, DevicePeer::new(PublicKey([2; 32]))]
    );
}

#[test]
fn no_key_and_no_handshake_are_none() {
    let message = WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes: vec![
            WireguardAttribute::PrivateKey([0; 32]),
            WireguardAttribute::PublicKey([0; 32]),
            WireguardAttribute::Peers(vec![peer(
                1,
                vec![WireguardPeerAttribute::LastHandshake(Default::default())],
            )]),
        ],
    };
    let device = merge(std::iter::once(message));
    assert!(device.private_key.is_none() && device.public_key.is_none());
    assert_eq!(device.peers[0].last_handshake, None);
}

/// Wherever this runs, whether the kernel has WireGuard or not, the answer is clear.
#[test]
fn a_missing_interface_is_said() {
    let error = Kernel::open("wice-none").unwrap_err();
    assert!(
        matches!(
            error,
            BackendError::NoSuchInterface(_)
                | BackendError::NoWireGuard { .. }
                | BackendError::NoPermission(_)
        ),
        "{error}"
    );
    assert!(error.to_string().contains('\n'), "{error}");
}

#[test]
fn error_numbers_are_told_in_words() {
    let kernel = Kernel {
        interface: "wg0".into(),
        socket: open_socket().unwrap(),
        family: 0,
        sequence: 0,
    };
    let says = |errno| {
        kernel
            .explain(Failure::Refused(errno), "read wg0")
            .to_string()
    };
    assert!(says(libc::ENODEV).starts_with("there is no WireGuard interface wg0 here"));
    assert!(says(libc::EOPNOTSUPP).starts_with("wg0 is not a WireGuard interface"));
    assert!(says(libc::EPERM).contains("no permission"));
    assert!(says(libc::EIO).starts_with("cannot read wg0: "));
}

/// Truncated or lying lengths end the reading of a buffer, and nothing else.
#[test]
fn lengths_that_lie_are_not_followed() {
    for lie in [0u32, 3, 15, 17, u32::MAX] {
        let mut bytes = [0u8; 16];
        bytes[..4].copy_from_slice(&lie.to_ne_bytes());
        let mut rest = &bytes[..];
        assert!(next_message(&mut rest).is_none(), "{lie}");
    }
}
