//! The `is` crate (str0m's agent) over one UDP socket.

use std::time::{Duration, Instant};

use ice_interop::{args, lines, remote};
use is::stun::{StunMessage, StunPacket};
use is::{Candidate, IceAgent, IceAgentEvent, IceCreds, Protocol};
use tokio::net::UdpSocket;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = args()?;
    let socket = UdpSocket::bind((args.address, 0)).await?;
    let local = socket.local_addr()?;
    let creds = IceCreds::new();
    println!("ufrag {}\npwd {}", creds.ufrag, creds.pass);
    let mut agent = IceAgent::new(creds);
    agent.set_controlling(args.controlling);
    let candidate = Candidate::host(local, "udp")?;
    let line = candidate.to_sdp_string();
    println!("cand {}\nend", line.trim_start_matches("candidate:"));
    agent.add_local_candidate(candidate);
    let mut lines = lines();
    let remote = remote(&mut lines).await?;
    agent.set_remote_credentials(IceCreds {
        ufrag: remote.ufrag,
        pass: remote.pwd,
    });
    for body in remote.candidates {
        let line = format!("candidate:{body}");
        agent.add_remote_candidate(Candidate::from_sdp_string(&line)?);
    }
    let mut target = None;
    let mut buffer = vec![0; 65_535];
    loop {
        agent.handle_timeout(Instant::now());
        while let Some(transmit) = agent.poll_transmit() {
            let _ = socket
                .send_to(&transmit.contents, transmit.destination)
                .await;
        }
        while let Some(event) = agent.poll_event() {
            if let IceAgentEvent::NominatedSend { destination, .. } = event {
                if target.is_none() {
                    println!("state connected");
                }
                target = Some(destination);
            }
        }
        let due = agent
            .poll_timeout()
            .unwrap_or_else(|| Instant::now() + Duration::from_millis(50));
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                let (length, source) = received?;
                let bytes = &buffer[..length];
                match StunMessage::parse(bytes) {
                    Ok(message) => {
                        let packet = StunPacket { proto: Protocol::Udp, source, destination: local, message };
                        agent.handle_packet(Instant::now(), packet);
                    }
                    Err(_) => println!("data {}", String::from_utf8_lossy(bytes)),
                }
            }
            line = lines.recv() => {
                let Some(line) = line else { return Ok(()) };
                if let Some(target) = target {
                    socket.send_to(line.as_bytes(), target).await?;
                }
            }
            () = tokio::time::sleep_until(due.into()) => {}
        }
    }
}
