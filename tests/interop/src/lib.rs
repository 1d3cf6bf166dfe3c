//! Other ICE stacks as programs that speak the lines of `icecat`: `controlling|controlled ADDRESS` as
//! arguments, credentials and candidates as lines both ways, then `state connected`, `data TEXT`.

use tokio::sync::mpsc;

/// How a peer is started.
pub struct Args {
    /// Whether it controls.
    pub controlling: bool,
    /// The address of its only host candidate.
    pub address: std::net::IpAddr,
}

/// What the other side says before `end`.
#[derive(Debug, Default)]
pub struct Remote {
    /// Its username fragment.
    pub ufrag: String,
    /// Its password.
    pub pwd: String,
    /// Bodies of its candidates, without `candidate:`.
    pub candidates: Vec<String>,
}

/// The two arguments.
pub fn args() -> anyhow::Result<Args> {
    let words: Vec<String> = std::env::args().collect();
    let [_, role, address] = words.as_slice() else {
        anyhow::bail!("usage: PEER controlling|controlled ADDRESS");
    };
    Ok(Args {
        controlling: role == "controlling",
        address: address.parse()?,
    })
}

/// Lines of standard input.
pub fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Reads up to `end`.
pub async fn remote(lines: &mut mpsc::Receiver<String>) -> anyhow::Result<Remote> {
    let mut remote = Remote::default();
    while let Some(line) = lines.recv().await {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "ufrag" => remote.ufrag = rest.to_owned(),
            "pwd" => remote.pwd = rest.to_owned(),
            "cand" => remote.candidates.push(rest.to_owned()),
            "end" => return Ok(remote),
            other => anyhow::bail!("not understood: {other}"),
        }
    }
    anyhow::bail!("standard input ended before `end`")
}
