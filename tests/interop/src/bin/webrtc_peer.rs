//! The `webrtc-ice` crate (webrtc-rs).

use std::sync::Arc;
use std::time::Duration;

use ice_interop::{args, lines, remote};
use tokio::sync::mpsc;
use webrtc_ice::agent::Agent;
use webrtc_ice::agent::agent_config::AgentConfig;
use webrtc_ice::candidate::Candidate;
use webrtc_ice::candidate::candidate_base::unmarshal_candidate;
use webrtc_ice::network_type::NetworkType;
use webrtc_ice::url::Url;
use webrtc_util::Conn;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = args()?;
    let address = args.address;
    let agent = Agent::new(AgentConfig {
        network_types: vec![NetworkType::Udp4],
        urls: relays()?,
        is_controlling: args.controlling,
        ip_filter: Arc::new(Some(Box::new(move |ip| ip == address))),
        host_acceptance_min_wait: Some(Duration::ZERO),
        srflx_acceptance_min_wait: Some(Duration::ZERO),
        prflx_acceptance_min_wait: Some(Duration::ZERO),
        relay_acceptance_min_wait: Some(Duration::ZERO),
        ..AgentConfig::default()
    })
    .await?;
    let (gathered, mut gathering) = mpsc::channel(1);
    agent.on_candidate(Box::new(move |candidate| {
        let gathered = gathered.clone();
        Box::pin(async move {
            match candidate {
                Some(candidate) => println!("cand {}", candidate.marshal()),
                None => drop(gathered.send(()).await),
            }
        })
    }));
    let (ufrag, pwd) = agent.get_local_user_credentials().await;
    println!("ufrag {ufrag}\npwd {pwd}");
    agent.gather_candidates()?;
    gathering.recv().await;
    println!("end");
    let mut lines = lines();
    let remote = remote(&mut lines).await?;
    for body in remote.candidates {
        let candidate: Arc<dyn Candidate + Send + Sync> = Arc::new(unmarshal_candidate(&body)?);
        agent.add_remote_candidate(&candidate)?;
    }
    let (_cancel, cancelled) = mpsc::channel(1);
    let connection: Arc<dyn Conn + Send + Sync> = if args.controlling {
        agent.dial(cancelled, remote.ufrag, remote.pwd).await?
    } else {
        agent.accept(cancelled, remote.ufrag, remote.pwd).await?
    };
    println!("state connected");
    let mut buffer = vec![0; 65_535];
    loop {
        tokio::select! {
            received = connection.recv(&mut buffer) => {
                println!("data {}", String::from_utf8_lossy(&buffer[..received?]));
            }
            line = lines.recv() => {
                let Some(line) = line else { return Ok(()) };
                connection.send(line.as_bytes()).await?;
            }
        }
    }
}

/// The TURN server that the environment names, if any.
fn relays() -> anyhow::Result<Vec<Url>> {
    let Ok(server) = std::env::var("INTEROP_TURN") else {
        return Ok(Vec::new());
    };
    let mut url = Url::parse_url(&format!("turn:{server}?transport=udp"))?;
    url.username = std::env::var("INTEROP_TURN_USER")?;
    url.password = std::env::var("INTEROP_TURN_PASSWORD")?;
    Ok(vec![url])
}
