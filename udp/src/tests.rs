use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use super::*;

fn loopback(family: Family) -> SocketAddr {
    match family {
        Family::V4 => "127.0.0.1:0".parse().unwrap(),
        Family::V6 => "[::1]:0".parse().unwrap(),
    }
}

fn wait(socket: &UdpSocket, events: i16) {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    // SAFETY: one pollfd that outlives the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 2000) };
    assert_eq!(ready, 1, "nothing within 2 s");
}

fn receive_all(
    socket: &UdpSocket,
    datagrams: usize,
) -> Vec<(SocketAddr, Option<IpAddr>, u32, Vec<u8>)> {
    let mut buffers = ReceiveBuffers::new();
    let mut all = Vec::new();
    while all.len() < datagrams {
        wait(socket, libc::POLLIN);
        socket.receive(&mut buffers).unwrap();
        all.extend(
            buffers
                .datagrams()
                .map(|d| (d.remote, d.local, d.ifindex, d.payload.to_vec())),
        );
    }
    all
}

fn to(remote: SocketAddr) -> Destination {
    Destination {
        remote,
        source: None,
    }
}

#[test]
fn runs_leave_in_few_calls_and_arrive_in_order_with_their_addresses() {
    for family in [Family::V4, Family::V6] {
        let a = UdpSocket::bind(loopback(family)).unwrap();
        let b = UdpSocket::bind(loopback(family)).unwrap();
        let remote = b.local_addr().unwrap();
        let payloads: Vec<Vec<u8>> = (0..100u8)
            .map(|i| vec![i; if i == 99 { 7 } else { 1400 }])
            .collect();
        let mut failures = SendFailures::new();
        let mut out = Coalescer::new(&a, &failures);
        for payload in &payloads {
            out.push(to(remote), None, payload);
        }
        drop(out);
        assert_eq!(failures.drain().count(), 0);
        // 46 segments of 1400 fill 65,507 bytes: 46 + 46 + 8.
        assert_eq!(a.counters().send_calls, 3);
        assert_eq!(a.counters().sent, 100);
        let got = receive_all(&b, 100);
        for (expected, (from, local, ifindex, payload)) in payloads.iter().zip(&got) {
            assert_eq!(payload, expected);
            assert_eq!(*from, a.local_addr().unwrap());
            assert_eq!(*local, Some(remote.ip()));
            assert_eq!(*ifindex, 1);
        }
        assert_eq!(b.counters().received, 100);
    }
}

#[test]
fn a_longer_datagram_or_another_destination_starts_a_new_run() {
    let a = UdpSocket::bind(loopback(Family::V4)).unwrap();
    let b = UdpSocket::bind(loopback(Family::V4)).unwrap();
    let c = UdpSocket::bind(loopback(Family::V4)).unwrap();
    let bytes = [7u8; 300];
    let failures = SendFailures::new();
    let mut out = Coalescer::new(&a, &failures);
    let (b_addr, c_addr) = (b.local_addr().unwrap(), c.local_addr().unwrap());
    for (remote, len) in [
        (b_addr, 100),
        (b_addr, 50),
        (b_addr, 50),
        (b_addr, 200),
        (c_addr, 200),
        (b_addr, 0),
        (b_addr, 9),
    ] {
        out.push(to(remote), None, &bytes[..len]);
    }
    drop(out);
    assert_eq!(a.counters().send_calls, 6);
    let lens: Vec<usize> = receive_all(&b, 5).iter().map(|d| d.3.len()).collect();
    // The empty datagram is dropped on arrival and counted.
    assert_eq!(lens, [100, 50, 50, 200, 9]);
    assert_eq!(b.counters().receive_malformed, 1);
    assert_eq!(receive_all(&c, 1)[0].3.len(), 200);
}

#[test]
fn channel_headers_stand_before_every_segment() {
    for gso in [true, false] {
        let server = UdpSocket::bind(loopback(Family::V4)).unwrap();
        let client =
            UdpSocket::connect(loopback(Family::V4), server.local_addr().unwrap(), Some(1))
                .unwrap();
        if !gso {
            client.disable_gso();
        }
        let segments: Vec<u8> = (0..10 * 100 + 30).map(|i| i as u8).collect();
        let failures = SendFailures::new();
        let header = |len: usize| [0x40, 0x01, (len >> 8) as u8, len as u8];
        let mut out = Coalescer::new(&client, &failures);
        out.push_framed_segments(to(server.local_addr().unwrap()), header, &segments, 100);
        drop(out);
        assert_eq!(client.counters().send_calls, if gso { 1 } else { 11 });
        let got = receive_all(&server, 11);
        for (expected, (from, _, _, payload)) in segments.chunks(100).zip(&got) {
            assert_eq!(payload[..4], [0x40, 0x01, 0, expected.len() as u8]);
            assert_eq!(&payload[4..], expected);
            assert_eq!(*from, client.local_addr().unwrap());
        }
    }
}

/// Many at once are cut where a send is full, take up what was there, and end at the short one.
#[test]
fn segments_are_taken_many_at_once_and_come_out_one_by_one() {
    for gso in [true, false] {
        let a = UdpSocket::bind(loopback(Family::V4)).unwrap();
        let b = UdpSocket::bind(loopback(Family::V4)).unwrap();
        if !gso {
            a.disable_gso();
        }
        let remote = b.local_addr().unwrap();
        let bytes: Vec<u8> = (0..150 * 700 + 5).map(|i| (i / 700) as u8).collect();
        let failures = SendFailures::new();
        let mut out = Coalescer::new(&a, &failures);
        out.push(to(remote), None, &bytes[..700]);
        out.push_segments(to(remote), &bytes[700..], 700);
        // Another size; then one that is shorter than said, which its like may follow.
        out.push_segments(to(remote), &bytes[..300], 100);
        out.push_segments(to(remote), &bytes[..50], 1400);
        out.push_segments(to(remote), &bytes[..50], 50);
        out.flush();
        drop(out);
        // 64 + 64 + 23 with the short one, 3 and the first 50, the second 50.
        assert_eq!(a.counters().send_calls, if gso { 5 } else { 156 });
        assert_eq!(a.counters().sent, 156);
        let got = receive_all(&b, 156);
        let lens: Vec<usize> = got.iter().map(|d| d.3.len()).collect();
        assert_eq!(lens[..150], [700; 150]);
        assert_eq!(lens[150..], [5, 100, 100, 100, 50, 50]);
        for (index, datagram) in got.iter().take(150).enumerate() {
            assert!(datagram.3.iter().all(|byte| usize::from(*byte) == index));
        }
    }
}

#[test]
fn what_is_thrown_away_is_counted_and_what_comes_then_is_there() {
    let a = UdpSocket::bind(loopback(Family::V4)).unwrap();
    let options = UdpOptions {
        timestamps: true,
        ..UdpOptions::default()
    };
    let b = UdpSocket::bind_with(loopback(Family::V4), &options).unwrap();
    let remote = b.local_addr().unwrap();
    let failures = SendFailures::new();
    assert_eq!(b.discard(), (0, 0));
    let bytes = [1; 3030];
    let mut out = Coalescer::new(&a, &failures);
    out.push_segments(to(remote), &bytes, 100);
    out.push(to(remote), None, &bytes[..700]);
    drop(out);
    wait(&b, libc::POLLIN);
    // Joined or not, as the kernel likes: 31 and the last.
    let thrown = std::iter::from_fn(|| Some(b.discard()).filter(|(runs, _)| *runs > 0));
    assert_eq!(thrown.map(|(_, datagrams)| datagrams).sum::<u64>(), 32);
    let before = std::time::SystemTime::now();
    Coalescer::new(&a, &failures).push(to(remote), None, b"now");
    wait(&b, libc::POLLIN);
    let mut buffers = ReceiveBuffers::new();
    b.receive(&mut buffers).unwrap();
    let arrival = buffers.arrivals().next().unwrap();
    assert_eq!(arrival.bytes, b"now");
    let at = std::time::UNIX_EPOCH + arrival.at.unwrap();
    let late = at.duration_since(before).unwrap();
    assert!(late < std::time::Duration::from_secs(2), "{late:?}");
}

#[test]
fn the_source_address_is_the_one_asked_for() {
    let a = UdpSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let b = UdpSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let source = Source {
        ip: Ipv4Addr::new(127, 9, 8, 7).into(),
        ifindex: 1,
    };
    let port = b.local_addr().unwrap().port();
    let remote = SocketAddr::from((Ipv4Addr::new(127, 1, 2, 3), port));
    let failures = SendFailures::new();
    Coalescer::new(&a, &failures).push(
        Destination {
            remote,
            source: Some(source),
        },
        None,
        b"hello",
    );
    let got = receive_all(&b, 1);
    assert_eq!(got[0].0.ip(), source.ip);
    assert_eq!(got[0].1, Some(remote.ip()));
}

#[test]
fn oversize_is_reported_and_the_rest_still_leaves() {
    let a = UdpSocket::bind(loopback(Family::V4)).unwrap();
    let b = UdpSocket::bind(loopback(Family::V4)).unwrap();
    let bytes = vec![0u8; 66_000];
    let mut failures = SendFailures::new();
    let mut out = Coalescer::new(&a, &failures);
    out.push(to(b.local_addr().unwrap()), None, &bytes);
    out.push(to(b.local_addr().unwrap()), None, &bytes[..10]);
    drop(out);
    let all: Vec<SendFailure> = failures.drain().collect();
    assert_eq!(all.len(), 1);
    assert_eq!(
        (all[0].kind, all[0].bytes),
        (SendFailureKind::TooLarge, 66_000)
    );
    assert_eq!(a.counters().send_too_large, 1);
    assert_eq!(receive_all(&b, 1)[0].3.len(), 10);
}

#[test]
fn a_source_that_is_not_ours_fails_without_giving_up_gso() {
    let a = UdpSocket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let b = UdpSocket::bind(loopback(Family::V4)).unwrap();
    let source = Source {
        ip: Ipv4Addr::new(192, 0, 2, 1).into(),
        ifindex: 0,
    };
    let to = Destination {
        remote: b.local_addr().unwrap(),
        source: Some(source),
    };
    let mut failures = SendFailures::new();
    Coalescer::new(&a, &failures).push_segments(to, &[1; 300], 100);
    assert!(a.gso());
    assert_eq!(a.counters().send_failed, 3);
    assert!(
        failures
            .drain()
            .all(|f| matches!(f.kind, SendFailureKind::Other(_)))
    );
}

#[test]
fn port_unreachable_names_the_destination_and_harms_no_other() {
    for family in [Family::V4, Family::V6] {
        let a = UdpSocket::bind(loopback(family)).unwrap();
        let b = UdpSocket::bind(loopback(family)).unwrap();
        let closed = UdpSocket::bind(loopback(family))
            .unwrap()
            .local_addr()
            .unwrap();
        let failures = SendFailures::new();
        Coalescer::new(&a, &failures).push(to(closed), None, b"anyone?");
        wait(&a, 0); // POLLERR is always reported.
        // The pending error must not swallow this one.
        Coalescer::new(&a, &failures).push(to(b.local_addr().unwrap()), None, b"hello");
        assert_eq!(receive_all(&b, 1)[0].3, b"hello");
        let error = a.next_error().unwrap();
        assert_eq!((error.remote, error.kind), (closed, PathErrorKind::Refused));
        assert!(matches!(error.origin, ErrorOrigin::Icmp(Some(_))));
        assert_eq!(a.next_error(), None);
        assert_eq!(a.receive(&mut ReceiveBuffers::new()).unwrap(), 0);
    }
}

#[test]
fn a_held_port_is_named_with_a_remedy() {
    let held = UdpSocket::bind(loopback(Family::V4)).unwrap();
    let error = UdpSocket::bind(held.local_addr().unwrap()).unwrap_err();
    assert!(matches!(error, UdpError::PortInUse(_)));
    assert!(error.to_string().contains("ss -lunp"));
    let error = UdpSocket::bind("192.0.2.1:0".parse().unwrap()).unwrap_err();
    assert!(matches!(error, UdpError::NoSuchAddress(_)));
}

#[test]
fn the_kernel_joins_what_arrives_as_one_send() {
    let a = UdpSocket::bind(loopback(Family::V4)).unwrap();
    let b = UdpSocket::bind(loopback(Family::V4)).unwrap();
    assert!(a.gso() && b.gro());
    let failures = SendFailures::new();
    Coalescer::new(&a, &failures).push_segments(
        to(b.local_addr().unwrap()),
        &[1; 4 * 1000 + 1],
        1000,
    );
    wait(&b, libc::POLLIN);
    let mut buffers = ReceiveBuffers::new();
    assert_eq!(b.receive(&mut buffers).unwrap(), 1);
    let arrival = buffers.arrivals().next().unwrap();
    assert_eq!((arrival.segment_size, arrival.bytes.len()), (1000, 4001));
    assert_eq!(buffers.datagrams().count(), 5);
}
