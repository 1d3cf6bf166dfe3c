//! Clients that move (RFC 8016), between addresses, transports and so threads.

use wice_turn::server::Transport;

use crate::{World, echo, echoes};

#[test]
fn a_client_moves_between_threads_and_transports_and_keeps_its_relayed_address() {
    let world = World::new(|_| {});
    let mut client = world.client(Transport::Udp);
    let (relayed, mut ticket) = client.allocate_movable();
    let peer = echo(relayed.ip());
    client.bind(0x4000, peer);
    // Of two threads each move hits one by chance.
    for n in 0..24 {
        let transport = [
            Transport::Udp,
            Transport::Tcp,
            Transport::Udp,
            Transport::Tls,
        ][n % 4];
        client.move_away(transport, world.at(transport, false));
        ticket = client.show(&ticket).unwrap();
        echoes(&mut client, |c, payload| c.send_on(0x4000, payload), peer);
        assert_eq!(world.service.allocations(), 1, "move {n}");
    }
    client.refresh(0);
    assert_eq!(world.service.allocations(), 0);
}

#[test]
fn many_clients_move_at_once() {
    let world = World::new(|_| {});
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = world.client(Transport::Udp);
                let (relayed, mut ticket) = client.allocate_movable();
                let peer = echo(relayed.ip());
                client.permit(peer);
                for _ in 0..10 {
                    client.move_away(Transport::Udp, world.at(Transport::Udp, false));
                    ticket = client.show(&ticket).unwrap();
                    client.send_to(peer, b"still here");
                    assert_eq!(client.payload(), (peer, b"still here".to_vec()));
                }
            });
        }
    });
    assert_eq!(world.service.allocations(), 16);
}

#[test]
fn a_ticket_of_nobody_is_refused() {
    let world = World::new(|_| {});
    let mut client = world.client(Transport::Udp);
    let (_, mut ticket) = client.allocate_movable();
    client.move_away(Transport::Udp, world.at(Transport::Udp, false));
    ticket[0] = b'z';
    assert_eq!(client.show(&ticket), Err(400));
}
